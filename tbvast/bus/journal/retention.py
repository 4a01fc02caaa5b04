"""
What a journal needs from time to time: what is no longer valid ends, and what is of no
use any more goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
Seconds between looks for what is no longer valid, and for what is too old.
"""

MAX_BATCH_ENTRIES = 1000
"""
The most entries that are dealt with in one commit, so that the intake need not wait
long for its turn.
"""


class Retention(MultiService):
    """
    Keeps one journal in order while the service runs.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        journal: IRetention,
        fan_out: Callable[[Sequence[Outcome]], Deferred[None]],
        age: float,
        size: int,
    ) -> None:
        """
        @param fan_out: Spreads that indicators have ended.
        @param age: Seconds after which what is no longer in force is let go of.
        @param size: Bytes of the journal beyond which it is earlier.
        """
        super().__init__()
        self._journal = journal
        self._fan_out = fan_out
        self._age = age
        self._size = size
        for interval, call in (
            (EXPIRY_INTERVAL, self._expire),
            (PRUNE_INTERVAL, self._prune),
        ):
            timer = TimerService(interval, call)
            timer.clock = clock
            timer.setServiceParent(self)

    async def _expire(self) -> None:
        try:
            while expired := await self._journal.expire(MAX_BATCH_ENTRIES):
                await self._fan_out(expired)
                self._log.info("{count} indicators are no longer valid.", count=len(expired))
        except JournalFailed as e:
            self._log.error("Nothing expires: {reason}", reason=str(e))
        except Exception:  # it may be any: the timer would end with it
            self._log.failure("Nothing expires; trying again")

    async def _prune(self) -> None:
        total = 0
        try:
            while count := await self._journal.prune(self._age, self._size, MAX_BATCH_ENTRIES):
                total += count
        except JournalFailed as e:
            self._log.error("Nothing is let go of: {reason}", reason=str(e))
        except Exception:
            self._log.failure("Nothing is let go of; trying again")
        if total:
            self._log.info("The journal has let go of {count} old entries.", count=total)
