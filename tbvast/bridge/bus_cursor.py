"""
How far the bus's journal has been applied to the bridge's store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from zope.interface import implementer

from tbvast.bridge.store.indicators import Changes
from tbvast.bridge.store.worker import Keeper
from tbvast.interfaces import ICursor
from tbvast.protocol.frames import Item
from tbvast.protocol.manage import Position
from tbvast.protocol.unreadable import Unreadable
from tbvast.service.clock import Calendar
from tbvast.stix.indicators import Indicator
from tbvast.storage.worker_client import CallWorker

PIECE = 2000
"""
The most indicators that are applied in one commit: more do not stay in the processor's
caches.
"""


@implementer(ICursor)
class StoreCursor:
    """
    Applies what the bus sends to the store, and tells what has changed.
    """

    def __init__(
        self,
        ask: CallWorker,
        position: Position | None,
        now: Calendar,
        search: bool,
        changed: Callable[[Changes], None],
        changing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        @param ask: Asks the L{Keeper}.
        @param position: How far the journal has been applied so far.
        @param now: The date that decides whether an indicator is valid.
        @param search: Whether past events are to be searched for new indicators.
        @param changed: Called with what the engine is to be told.
        @param changing: What is inside is the change.
        """
        self.position = position
        self._ask = ask
        self._now = now
        self._search = search
        self._changed = changed
        self._changing = changing
        self._run = 1
        self._last: Deferred[None] = succeed(None)

    async def apply(
        self, items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> None:
        indicators = [item for item in items if isinstance(item, Indicator)]
        now = self._now()
        # One piece is on its way while another one is written; the last has the position.
        count = max(-(-len(indicators) // PIECE), 1)
        size = max(-(-len(indicators) // count), 1)
        applied = [
            self._ask(
                *(Keeper.apply, indicators[number * size : (number + 1) * size], now),
                *(self._search, position if number == count - 1 else None, self._run, decided),
            ).addCallback(self._changed)
            for number in range(count)
        ]
        # The last one need not have been written for others to be on their way.
        before, self._last = (
            [self._last, *applied[:-1]],
            Deferred.fromCoroutine(self._applied(applied[-1], position)),
        )
        await self._done(before)

    async def _applied(self, last: Deferred[None], position: Position | None) -> None:
        with self._changing():
            await last
        self.position = position or self.position

    async def _done(self, applied: Sequence[Deferred[None]]) -> None:
        try:
            await gatherResults(applied, consumeErrors=True)
        except FirstError as e:
            # What is on its way is refused. What comes after this is not.
            self._run += 1
            self._last.addErrback(lambda failure: None)
            e.subFailure.raiseException()

    async def set_aside(self, items: Sequence[Unreadable]) -> None:
        await self.settle()
        await self._ask(Keeper.set_aside, list(items), self._now())

    async def settle(self) -> None:
        await self._done([self._last])

    async def begin_snapshot(self) -> None:
        await self.settle()
        await self._ask(Keeper.begin_snapshot)

    async def end_snapshot(self, position: Position) -> None:
        await self.settle()
        ended = await self._ask(Keeper.end_snapshot, position)
        self.position = position
        for changes in ended:
            self._changed(changes)
