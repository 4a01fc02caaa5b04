"""
Logs the failures of a command, at a limited rate.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.errors import CommandFailed
from tbvast.service.rate_limit import RateLimit


class FailureLog:
    """
    Logs the first failure at once, then one a minute, with the number of failures since the
    last line.
    """

    def __init__(self, log: Logger, clock: IReactorTime, consequence: str) -> None:
        """
        @param log: The logger.
        @param clock: The clock of the limit.
        @param consequence: The consequence of a failure for the events, for the log.
        """
        self._log = log
        self._limit = RateLimit(clock, 1)
        self._consequence = consequence
        self._unlogged = 0

    def add(self, error: CommandFailed) -> None:
        """
        Log a failure, or count it.
        """
        self._unlogged += 1
        if not self._limit.allows():
            return
        failures, self._unlogged = self._unlogged, 0
        self._log.warn(
            "Command {program} failed ({failures} new failures): {reason}; {consequence}.",
            program=error.program,
            failures=failures,
            reason=error.reason,
            consequence=self._consequence,
            stderr=error.stderr,
        )
