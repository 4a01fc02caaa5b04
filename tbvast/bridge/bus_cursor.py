"""
The bridge's cursor in the bus's journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from zope.interface import implementer

from tbvast.interfaces import ICursor, IIndicatorStore
from tbvast.protocol.frames import Item
from tbvast.protocol.unreadable import Unreadable
from tbvast.stix.indicators import Indicator
from tbvast.storage.set_aside import SetAside, Stage
from tbvast.values import Changes, Position

MAX_INDICATORS_PER_COMMIT = 2000
"""
The most indicators in one commit: larger batches do not fit in the processor's caches.
"""


@implementer(ICursor)
@attrs.define(eq=False)
class StoreCursor:
    """
    Applies the items of the bus to the store, and reports the changes.

    @ivar position: The position up to which all items were applied durably; C{None} at first.
    @param changed: Called with the changes for the engine.
    @param changing: A context manager inside which a commit is under way.
    """

    _store: IIndicatorStore
    position: Position | None
    _changed: Callable[[Changes], None]
    _changing: Callable[[], AbstractContextManager[None]] = nullcontext
    _run: int = attrs.field(init=False, default=1)
    _last: Deferred[None] = attrs.field(init=False, factory=lambda: succeed(None))

    async def apply(
        self, items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> None:
        indicators = [item for item in items if isinstance(item, Indicator)]
        # One batch is sent while another one is written; the last has the position.
        count = max(-(-len(indicators) // MAX_INDICATORS_PER_COMMIT), 1)
        size = max(-(-len(indicators) // count), 1)
        applied = [
            self._store.apply(
                indicators[number * size : (number + 1) * size],
                position if number == count - 1 else None,
                self._run,
                decided,
            ).addCallback(self._changed)
            for number in range(count)
        ]
        # The next call may send its batches before the last one is written.
        before = [self._last, *applied[:-1]]
        self._last = Deferred.fromCoroutine(self._applied(applied[-1], position))
        await self._done(before)

    async def _applied(self, last: Deferred[None], position: Position | None) -> None:
        with self._changing():
            await last
        self.position = position or self.position

    async def _done(self, applied: Sequence[Deferred[None]]) -> None:
        try:
            await gatherResults(applied, consumeErrors=True)
        except FirstError as e:
            # The worker refuses the batches under way, and accepts those of the next run.
            self._run += 1
            self._last.addErrback(lambda failure: None)
            e.subFailure.raiseException()

    async def set_aside(self, items: Sequence[Unreadable]) -> None:
        await self.commit()
        await self._store.set_aside(
            [
                SetAside(
                    Stage.RECEPTION,
                    each.reason,
                    each.raw,
                    id=each.ids[0] if len(each.ids) == 1 else "",
                    number=each.number,
                )
                for each in items
            ],
            [id for each in items for id in each.ids],
        )

    async def commit(self) -> None:
        await self._done([self._last])

    async def begin_snapshot(self) -> None:
        await self.commit()
        await self._store.begin_snapshot()

    async def end_snapshot(self, position: Position) -> None:
        await self.commit()
        ended = await self._store.end_snapshot(position)
        self.position = position
        for changes in ended:
            self._changed(changes)
