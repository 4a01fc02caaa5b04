"""
The process of the bridge's store, and the calls that it serves. Its command is::

    python -m tbvast.bridge.store.worker PATH yes|no

The second argument is C{yes} if past events are searched.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.renewal import NOWHERE, renew
from tbvast.bridge.store.values import DesiredPage, merge_changes
from tbvast.errors import Invalid, StartupRefused, StoreFailed
from tbvast.stix.indicators import Indicator
from tbvast.stix.observables import Observable
from tbvast.stix.sightings import Sighting
from tbvast.storage.file_guard import FileGuard, damage_of
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.storage.sifting import is_of_an_item, sift
from tbvast.storage.sqlite import acquire_writer_lock
from tbvast.storage.worker_server import serve
from tbvast.values import (
    Changes,
    Covered,
    Entry,
    JsonObject,
    PageRequest,
    Position,
    WaitingSighting,
)

MAX_ENTRIES_PER_MESSAGE = 5000
"""
The most entries in one message of a call or a result. The reactor handles each message in a
turn of its own.
"""

YES, NO = "yes", "no"


class StoreWorker:
    """
    The calls that the process of the bridge's store serves.

    @ivar guard: The guard of the file, inside which every method is called; C{None} for no
        guard.
    """

    def __init__(
        self, store: BridgeStore, guard: FileGuard | None = None, renewed: str = ""
    ) -> None:
        """
        @param store: The store.
        @param guard: The guard of its file.
        @param renewed: The result of L{renewed}.
        """
        self.guard = guard
        self._renewed = renewed
        self._store = store
        self._held: list[Entry] = []
        self._failed = 0

    def apply(
        self,
        indicators: Sequence[Indicator],
        now: float,
        search: bool,
        position: Position | None,
        run: int,
        decided: bool,
    ) -> Changes:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.apply}

        @param run: The generation of the batch. After a failure every later call of the
            same run is refused, so that none commits the position past a gap.
        """
        if run == self._failed:
            raise StoreFailed("an earlier batch could not be applied")
        try:
            return self._apply(indicators, now, search, position, decided)
        except Exception:
            self._failed = run
            raise

    def renewed(self) -> str:
        """
        @return: A description of the replacement of an unreadable store, for the log;
            empty if it was not replaced.
        """
        return self._renewed

    def _apply(
        self,
        indicators: Sequence[Indicator],
        now: float,
        search: bool,
        position: Position | None,
        decided: bool,
    ) -> Changes:
        store = self._store
        try:
            return store.indicators.apply(indicators, now, search, position, decided)
        except Exception as e:
            if not is_of_an_item(e):
                raise
        applied, failed = sift(
            indicators, lambda some: store.indicators.apply(some, now, search, None, decided)
        )
        aside = [
            SetAside(Stage.STORE, reason_of(e), indicator.raw, "indicator", indicator.id)
            for indicator, e in failed
        ]
        store.indicators.set_aside(aside, now, position)
        return merge_changes(applied or [Changes(store.indicators.change)])

    def set_aside(self, items: Sequence[SetAside], ids: Sequence[str], now: float) -> None:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.set_aside}
        """
        self._store.indicators.set_aside(items, now, None, ids)

    def set_sightings_aside(self, reasons: Mapping[str, str], now: float) -> None:
        """
        @see: L{tbvast.bridge.store.outbox_table.OutboxTable.set_aside}
        """
        self._store.outbox.set_aside(reasons, now)

    def begin_snapshot(self) -> None:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.begin_snapshot}
        """
        self._store.indicators.begin_snapshot()

    def end_snapshot(self, position: Position) -> Iterator[Changes]:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.end_snapshot}
        """
        return _in_messages(self._store.indicators.end_snapshot(position))

    def expire(self, now: float) -> Iterator[Changes]:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.expire}
        """
        return _in_messages(self._store.indicators.expire(now))

    def activate_due(self, now: float, search: bool) -> Iterator[Changes]:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.activate_due}
        """
        return _in_messages(self._store.indicators.activate_due(now, search))

    def entries(self, after: tuple[int, int]) -> DesiredPage:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.entries_page}
        """
        return self._store.indicators.entries_page(after, MAX_ENTRIES_PER_MESSAGE)

    def add_held(self, held: Sequence[Entry], start: int) -> None:
        """
        Take a part of the entries that the engine holds, for L{reconcile}.

        @param held: The part.
        @param start: The number of entries before it.
        """
        self._held[start:] = held

    def reconcile(self) -> Iterator[Changes]:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.reconcile}
        """
        held, self._held = self._held, []
        return _in_messages(self._store.indicators.reconcile(held))

    def unsearched(self, until: int, limit: int, after: tuple[int, int]) -> DesiredPage:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.unsearched}
        """
        return self._store.indicators.unsearched(until, min(limit, MAX_ENTRIES_PER_MESSAGE), after)

    def mark_searched(self, ids: Sequence[str], until: int) -> None:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.mark_searched}
        """
        self._store.indicators.mark_searched(ids, until)

    def covered(self) -> Covered | None:
        """
        @see: L{BridgeStore.covered}
        """
        return self._store.covered

    def set_covered(self, covered: Covered) -> None:
        """
        @see: L{BridgeStore.set_covered}
        """
        self._store.set_covered(covered)

    def bodies(self, ids: Sequence[str]) -> dict[str, bytes]:
        """
        @see: L{tbvast.bridge.store.indicators.IndicatorTable.bodies}
        """
        return self._store.indicators.bodies(ids)

    def counts(self) -> JsonObject:
        """
        @see: L{BridgeStore.counts}
        """
        return self._store.counts()

    def remember(
        self, sightings: Sequence[Sighting], now: float, request: PageRequest | None
    ) -> tuple[int, list[WaitingSighting] | None]:
        """
        @see: L{tbvast.bridge.store.outbox_table.OutboxTable.remember}

        @param request: The page to read next; C{None} for none.
        @return: The number of new ones, and that page.
        """
        new, failed = sift(sightings, lambda some: len(self._store.outbox.remember(some, now)))
        if failed:
            self._store.indicators.set_aside(
                [SetAside(Stage.MATCH, reason_of(e), s.raw, "sighting", s.id) for s, e in failed],
                now,
            )
        return sum(new), None if request is None else self.unsent(request)

    def unsent(self, request: PageRequest) -> list[WaitingSighting]:
        """
        @see: L{tbvast.bridge.store.outbox_table.OutboxTable.unsent}
        """
        return self._store.outbox.unsent(request.count, request.size, set(request.without))

    def unsent_among(self, ids: Sequence[str]) -> list[WaitingSighting]:
        """
        @see: L{tbvast.bridge.store.outbox_table.OutboxTable.unsent_among}
        """
        return self._store.outbox.unsent_among(ids)

    def mark_sent(
        self, ids: Sequence[str], request: PageRequest | None
    ) -> list[WaitingSighting] | None:
        """
        @see: L{tbvast.bridge.store.outbox_table.OutboxTable.mark_sent}

        @param request: The page to read next; C{None} for none.
        @return: That page.
        """
        self._store.outbox.mark_sent(ids)
        return None if request is None else self.unsent(request)

    def prune(self, now: float) -> None:
        """
        @see: L{tbvast.bridge.store.outbox_table.OutboxTable.prune}
        """
        self._store.outbox.prune(now)


def _in_messages(changes: Changes) -> Iterator[Changes]:
    """
    Split changes so that each fits in a message. The first part has all reasons.
    """
    unmatched = changes.unmatched
    for start in range(0, max(len(changes.write), len(changes.erase), 1), MAX_ENTRIES_PER_MESSAGE):
        end = start + MAX_ENTRIES_PER_MESSAGE
        write: tuple[Entry, ...] = changes.write[start:end]
        erase: tuple[Observable, ...] = changes.erase[start:end]
        yield Changes(changes.number, write, erase, unmatched)
        unmatched = {}


@contextlib.contextmanager
def open_store(path: Path, search: bool) -> Iterator[tuple[StoreWorker, Position | None]]:
    """
    Open the store, and close it on exit. An unreadable store is replaced.

    @param path: The file.
    @param search: Whether past events are searched.
    @return: The store's calls, and the position up to which the bus's journal has been
        applied.
    @raise StartupRefused: If the store can neither be used nor replaced.
    """
    lock = path.with_name(f"{path.name}-writer")
    gone = lock.exists() and not path.exists()
    try:
        acquire_writer_lock(path)
    except OSError as e:
        raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e
    renewed = ""
    try:
        store = _open_current(path, search, gone)
        if gone:
            renewed = (
                f"The store {path} is gone: a new one was made, which the bus fills; sightings"
                " that had not been sent are lost."
            )
    except (StartupRefused, sqlite3.Error, Invalid, msgspec.MsgspecError) as e:
        damage = damage_of(e) if isinstance(e, StartupRefused | sqlite3.Error) else e
        if damage is None:
            raise
        try:
            renewed = f"The store {path} is damaged ({damage}): {renew(path)}."
        except OSError as refusal:
            raise StartupRefused(f"{e}, and it cannot be moved aside: {refusal}") from e
        store = _open_current(path, search)
    guard = store.make_guard(path, lambda: renew(path))
    try:
        yield StoreWorker(store, guard, renewed), store.indicators.position
    finally:
        with contextlib.suppress(sqlite3.Error):  # a damaged file may not close
            store.close()


def _open_current(path: Path, search: bool, gone: bool = False) -> BridgeStore:
    """
    Open the store and bring its observables up to date.

    @param gone: Whether an earlier store has disappeared.
    """
    store = BridgeStore(path)
    try:
        if gone:
            store.indicators.apply((), 0.0, search, NOWHERE)
        store.indicators.rebuild_observables(search)
    except BaseException:
        store.close()
        raise
    return store


def main(path: str, search: str) -> None:
    """
    Serve the store on standard input, which is a socket.

    @param path: The store's file.
    @param search: L{YES} if past events are searched.
    """
    serve(open_store(Path(path), search == YES), (sqlite3.Error, StartupRefused, StoreFailed))


if __name__ == "__main__":
    main(*sys.argv[1:])
