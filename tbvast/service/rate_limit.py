"""
Limits how often something is logged.
"""

from __future__ import annotations

import math

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_MINUTE = 60.0


class RateLimit:
    """
    Allows a number of events a minute; a minute begins with an event.
    """

    def __init__(self, clock: IReactorTime, per_minute: int) -> None:
        """
        @param per_minute: The most events that are allowed in a minute.
        """
        self._clock = clock
        self._per_minute = per_minute
        self._began = -math.inf
        self._allowed = 0

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
        if now - self._began >= _MINUTE:
            self._began = now
            self._allowed = 0
        if self._allowed >= self._per_minute:
            return False
        self._allowed += 1
        return True
