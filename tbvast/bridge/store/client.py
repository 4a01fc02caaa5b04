"""
The bridge's store for the reactor's thread. Another process holds the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.entries import EntryTable
from tbvast.bridge.store.indicators import IndicatorTable
from tbvast.bridge.store.outbox_table import OutboxTable
from tbvast.bridge.store.values import BEGINNING, MAX_ENTRIES_PER_MESSAGE, DesiredPage
from tbvast.interfaces import IIndicatorStore, ISightingOutbox
from tbvast.service.clock import Calendar
from tbvast.stix.indicators import Indicator
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.sightings import Sighting
from tbvast.storage.set_aside import SetAside
from tbvast.storage.worker_client import CallWorker
from tbvast.values import (
    Changes,
    Covered,
    Entry,
    JsonObject,
    PageRequest,
    Position,
    Unsearched,
    WaitingSighting,
)


@implementer(IIndicatorStore)
@attrs.define(eq=False)
class IndicatorStore:
    """
    The indicators in the store. Long lists go to and fro in messages of bounded length.

    @param ask: Calls the objects of a L{BridgeStore}.
    @param now: The date that decides whether an indicator is valid.
    @param search: Whether to search past events for new indicators.
    """

    _ask: CallWorker
    _now: Calendar
    _search: bool

    def apply(
        self,
        indicators: Sequence[Indicator],
        position: Position | None,
        run: int,
        decided: bool = False,
    ) -> Deferred[Changes]:
        now, search = self._now(), self._search
        return self._ask(
            IndicatorTable.apply_batch, indicators, now, search, position, decided, run
        )

    def set_aside(self, items: Sequence[SetAside], ids: Sequence[str] = ()) -> Deferred[None]:
        return self._ask(IndicatorTable.set_aside, items, ids, self._now(), None)

    def begin_snapshot(self) -> Deferred[None]:
        return self._ask(IndicatorTable.begin_snapshot)

    def end_snapshot(self, position: Position) -> Deferred[list[Changes]]:
        return self._ask(IndicatorTable.end_snapshot, position)

    def update_validity(self) -> Deferred[list[Changes]]:
        return self._ask(IndicatorTable.update_validity, self._now(), self._search)

    async def entries(self) -> list[Entry]:
        found: list[Entry] = []
        page = DesiredPage(BEGINNING)
        while page.last is not None:
            page = await self._ask(EntryTable.page, page.last, MAX_ENTRIES_PER_MESSAGE)
            found += page.entries
        return found

    async def reconcile(self, held: Sequence[Entry]) -> list[Changes]:
        for start in range(0, max(len(held), 1), MAX_ENTRIES_PER_MESSAGE):
            part = held[start : start + MAX_ENTRIES_PER_MESSAGE]
            await self._ask(EntryTable.add_held, part, start)
        return await self._ask(EntryTable.reconcile)

    async def unsearched(self, until: int, limit: int) -> Unsearched:
        found: dict[Observable, Entry] = {}
        ids: list[str] = []
        page = DesiredPage(BEGINNING)
        while page.last is not None and len(ids) < limit:
            page = await self._ask(EntryTable.unsearched, until, limit - len(ids), page.last)
            ids += page.ids
            for entry in page.entries:
                known = found.get(entry.observable)
                if known is not None:
                    both = tuple(sorted({*known.ids, *entry.ids}))
                    entry = Entry(entry.observable, both, known.joint or entry.joint)
                found[entry.observable] = entry
        return Unsearched(ids, list(_restricted(found.values(), frozenset(ids))))

    async def mark_searched(self, ids: Sequence[str], until: int) -> None:
        for start in range(0, len(ids), MAX_ENTRIES_PER_MESSAGE):
            part = ids[start : start + MAX_ENTRIES_PER_MESSAGE]
            await self._ask(EntryTable.mark_searched, part, until)

    def bodies(self, ids: Collection[str]) -> Deferred[dict[str, bytes]]:
        return self._ask(IndicatorTable.bodies, list(ids))

    def covered(self) -> Deferred[Covered | None]:
        return self._ask(BridgeStore.covered)

    def set_covered(self, covered: Covered) -> Deferred[None]:
        return self._ask(BridgeStore.set_covered, covered)

    def counts(self) -> Deferred[JsonObject]:
        return self._ask(BridgeStore.counts)


@implementer(ISightingOutbox)
@attrs.define(eq=False)
class SightingOutbox:
    """
    The sightings in the store.

    @param now: The date at which a sighting is stored or set aside.
    """

    _ask: CallWorker
    _now: Calendar

    def remember(
        self, sightings: Sequence[Sighting], request: PageRequest | None
    ) -> Deferred[tuple[int, list[WaitingSighting] | None]]:
        return self._ask(OutboxTable.remember, sightings, self._now(), request)

    def page(self, request: PageRequest) -> Deferred[list[WaitingSighting]]:
        return self._ask(OutboxTable.page, request)

    def one(self, key: str) -> Deferred[list[WaitingSighting]]:
        return self._ask(OutboxTable.unsent, [key])

    def mark_sent(
        self, keys: Collection[str], request: PageRequest | None
    ) -> Deferred[list[WaitingSighting] | None]:
        return self._ask(OutboxTable.mark_sent, list(keys), request)

    def set_aside(self, reasons: Mapping[str, str]) -> Deferred[None]:
        return self._ask(OutboxTable.set_aside, reasons, self._now())

    def prune(self) -> Deferred[None]:
        return self._ask(OutboxTable.prune, self._now())


def _restricted(entries: Iterable[Entry], ids: frozenset[str]) -> Iterable[Entry]:
    """
    @return: The entries, with only some indicators. Only those of networks name others.
    """
    for entry in entries:
        if entry.observable.kind is Kind.NETWORK and not ids.issuperset(entry.ids):
            entry = Entry(entry.observable, tuple(filter(ids.__contains__, entry.ids)), entry.joint)
        yield entry
