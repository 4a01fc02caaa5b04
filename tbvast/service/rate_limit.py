"""
Limits how often something happens or is logged.
"""

from __future__ import annotations

import math
from collections import Counter

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger


@attrs.define(eq=False)
class RateLimit:
    """
    Allows a number of events a minute; a minute begins with an event.

    @param per_minute: The most events that are allowed in a minute.
    """

    _clock: IReactorTime
    _per_minute: int
    _began: float = attrs.field(init=False, default=-math.inf)
    _allowed: int = attrs.field(init=False, default=0)

    def warn(self, log: Logger, text: str, **values: object) -> None:
        """
        Log a warning, if one is allowed now.
        """
        if self.allows():
            log.warn(text, **values)

    def allows(self) -> bool:
        """
        @return: Whether the event that happens now is allowed.
        """
        now = self._clock.seconds()
        if now - self._began >= 60.0:
            self._began = now
            self._allowed = 0
        if self._allowed >= self._per_minute:
            return False
        self._allowed += 1
        return True


@attrs.define(eq=False)
class ClientRateLimit:
    """
    Allows each client a number of events a minute, and all together another one; a minute begins
    with an event.

    @param per_client: The most events of one client that are allowed in a minute.
    @param per_minute: The most events of all.
    """

    _clock: IReactorTime
    _per_client: int
    _per_minute: int
    _began: float = attrs.field(init=False, default=-math.inf)
    _allowed: Counter[str] = attrs.field(init=False, factory=Counter)
    _allowed_in_all: int = attrs.field(init=False, default=0)

    def info(self, client: str, log: Logger, text: str, **values: object) -> None:
        """
        Log something about a client, if that is allowed now.
        """
        if self.allows(client):
            log.info(text, **values)

    def allows(self, client: str) -> bool:
        """
        @return: Whether the event that happens now is allowed.
        """
        now = self._clock.seconds()
        if now - self._began >= 60.0:
            self._began = now
            self._allowed.clear()
            self._allowed_in_all = 0
        if self._allowed[client] >= self._per_client or self._allowed_in_all >= self._per_minute:
            return False
        self._allowed[client] += 1
        self._allowed_in_all += 1
        return True
