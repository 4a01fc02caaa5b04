"""
How far the bus's journal has been applied to the bridge's store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from tbvast.bridge.store import BridgeStore, Changes
from tbvast.intel.indicators import Indicator
from tbvast.interfaces import ICursor
from tbvast.ops.threads import Defer
from tbvast.wire.frames import Item
from tbvast.wire.manage import Position


@implementer(ICursor)
class StoreCursor:
    """
    Applies what the bus sends to the store, and tells what has changed.
    """

    def __init__(
        self,
        store: BridgeStore,
        defer: Defer,
        clock: IReactorTime,
        search: bool,
        changed: Callable[[Changes], None],
        changing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        @param defer: Calls the store in its thread.
        @param search: Whether past events are to be searched for new indicators.
        @param changed: Called with what the engine is to be told.
        @param changing: What is inside is the change.
        """
        self.position = store.position
        self._store = store
        self._defer = defer
        self._clock = clock
        self._search = search
        self._changed = changed
        self._changing = changing

    async def apply(self, items: Sequence[Item], position: Position | None) -> None:
        indicators = [item for item in items if isinstance(item, Indicator)]
        now = self._clock.seconds()
        with self._changing():
            self._took(
                await self._defer(self._store.apply, indicators, now, self._search, position)
            )

    async def begin_snapshot(self) -> None:
        await self._defer(self._store.begin_snapshot)

    async def end_snapshot(self, position: Position) -> None:
        self._took(await self._defer(self._store.end_snapshot, position))

    def _took(self, changes: Changes) -> None:
        self.position = self._store.position
        self._changed(changes)
