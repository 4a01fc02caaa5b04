"""
Logs the failures of a command, at a limited rate.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.errors import CommandFailed


class FailureLog:
    """
    Logs the first failure at once, then one a minute, with the number of failures since the
    last line.
    """

    INTERVAL_SECONDS = 60.0

    def __init__(self, log: Logger, clock: IReactorTime, consequence: str) -> None:
        """
        @param log: The logger.
        @param clock: The clock of the limit.
        @param consequence: The consequence of a failure for the events, for the log.
        """
        self._log = log
        self._clock = clock
        self._consequence = consequence
        self._unlogged = 0
        self._next: float | None = None

    def add(self, error: CommandFailed) -> None:
        """
        Log a failure, or count it.
        """
        self._unlogged += 1
        now = self._clock.seconds()
        if self._next is not None and now < self._next:
            return
        self._next = now + self.INTERVAL_SECONDS
        failures, self._unlogged = self._unlogged, 0
        self._log.warn(
            "Command {program} failed ({failures} new failures): {reason}; {consequence}.",
            program=error.program,
            failures=failures,
            reason=error.reason,
            consequence=self._consequence,
            stderr=error.stderr,
        )
