"""
A limit on how often something is said.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

_MINUTE = 60.0


class RateLimit:
    """
    Allows a number of things a minute, and counts what it did not allow.

    @ivar suppressed: How many were not allowed.
    """

    def __init__(self, clock: IReactorTime, per_minute: int) -> None:
        self.suppressed = 0
        self._clock = clock
        self._per_minute = per_minute
        self._began = clock.seconds()
        self._allowed = 0

    def allows(self) -> bool:
        now = self._clock.seconds()
        if now - self._began >= _MINUTE:
            self._began = now
            self._allowed = 0
        if self._allowed >= self._per_minute:
            self.suppressed += 1
            return False
        self._allowed += 1
        return True
