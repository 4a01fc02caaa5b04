"""
Limits how often something is logged.
"""

from __future__ import annotations

import math

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
