"""
The retention of a journal: indicators expire, and old entries are pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.bus.journal.values import Outcome
from tbvast.errors import JournalFailed
from tbvast.interfaces import IRetention

EXPIRY_INTERVAL = 1.0
PRUNE_INTERVAL = 60.0
"""
Seconds between checks for expired indicators, and for entries to prune.
"""

MAX_BATCH_ENTRIES = 1000
"""
The most entries of one commit, so that the intake does not wait long.
"""


@attrs.define(eq=False, slots=False)
class Retention(MultiService):
    """
    Enforces the retention policy of one journal.

    @param fan_out: Delivers the removals of expired indicators.
    @param age: Seconds after which entries that are not in force are pruned.
    @param size: Bytes of the journal; above this size, the oldest are pruned sooner.
    """

    _log = Logger()

    _clock: IReactorTime
    _journal: IRetention
    _fan_out: Callable[[Sequence[Outcome]], Deferred[None]]
    _age: float
    _size: int

    def __attrs_post_init__(self) -> None:
        super().__init__()
        for interval, call in (
            (EXPIRY_INTERVAL, self._expire),
            (PRUNE_INTERVAL, self._prune),
        ):
            timer = TimerService(interval, call)
            timer.clock = self._clock
            timer.setServiceParent(self)

    async def _expire(self) -> None:
        try:
            while expired := await self._journal.expire(MAX_BATCH_ENTRIES):
                await self._fan_out(expired)
                self._log.info("{count} indicators have expired.", count=len(expired))
        except JournalFailed as e:
            self._log.error("Cannot expire indicators: {reason}", reason=str(e))
        except Exception:  # any error would stop the timer
            self._log.failure("Cannot expire indicators; retrying")

    async def _prune(self) -> None:
        total = 0
        try:
            while count := await self._journal.prune(self._age, self._size, MAX_BATCH_ENTRIES):
                total += count
        except JournalFailed as e:
            self._log.error("Cannot prune the journal: {reason}", reason=str(e))
        except Exception:
            self._log.failure("Cannot prune the journal; retrying")
        if total:
            self._log.info("Pruned {count} old entries of the journal.", count=total)
