"""
The process that keeps the bridge's store, and what it can be asked.

    python -m tbvast.bridge.store.worker PATH yes|no

The second argument says whether past events are searched.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tbvast.bridge.store.indicators import BridgeStore, Changes, DesiredPage, merged
from tbvast.bridge.store.renewal import NOWHERE, renew
from tbvast.errors import Invalid, StartupRefused, StoreFailed
from tbvast.protocol.manage import Position
from tbvast.protocol.unreadable import Unreadable
from tbvast.stix.indicators import Indicator
from tbvast.stix.observables import Observable
from tbvast.stix.sightings import Sighting
from tbvast.storage.file_guard import FileGuard, damage_of
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.storage.sifting import is_of_an_item, sift
from tbvast.storage.sqlite import acquire_writer_lock
from tbvast.storage.worker_server import serve
from tbvast.values import Covered, Entry

PIECE = 5000
"""
The most entries in one part of a result: whoever asks reads each in a turn of its own.
"""

YES, NO = "yes", "no"


class Keeper:
    """
    A L{BridgeStore}, as another process asks for it.

    @ivar guard: Watches the file: each method is to be called inside.
    """

    def __init__(
        self, store: BridgeStore, guard: FileGuard | None = None, renewed: str = ""
    ) -> None:
        """
        @param renewed: What was done about a store that could not be read.
        """
        self.guard = guard
        self._renewed = renewed
        self._store = store
        self._held: list[Entry] = []
        self._failed = 0

    def apply(
        self,
        indicators: list[Indicator],
        now: float,
        search: bool,
        position: Position | None,
        run: int,
        decided: bool,
    ) -> Changes:
        """
        @see: L{BridgeStore.apply}

        @param run: Until when something fails: if one part could not be applied,
            neither is what follows, which may have the position.
        """
        if run == self._failed:
            raise StoreFailed("what came before could not be applied")
        try:
            return self._apply(indicators, now, search, position, decided)
        except Exception:
            self._failed = run
            raise

    def renewed(self) -> str:
        """
        What was done about a store that could not be read; empty for nothing.
        """
        return self._renewed

    def _apply(
        self,
        indicators: list[Indicator],
        now: float,
        search: bool,
        position: Position | None,
        decided: bool,
    ) -> Changes:
        store = self._store
        try:
            return store.apply(indicators, now, search, position, decided)
        except Exception as e:
            if not is_of_an_item(e):
                raise
        applied, failed = sift(
            indicators, lambda some: store.apply(some, now, search, None, decided)
        )
        aside = [
            SetAside(Stage.STORE, reason_of(e), indicator.raw, "indicator", indicator.id)
            for indicator, e in failed
        ]
        store.set_aside(aside, now, position)
        return merged(applied or [Changes(store.change)])

    def set_aside(self, items: list[Unreadable], now: float) -> None:
        """
        Keep what could not be read.

        @see: L{BridgeStore.set_aside}
        """
        self._store.set_aside(
            [
                SetAside(
                    Stage.RECEPTION,
                    each.reason,
                    each.raw,
                    "",
                    each.ids[0] if len(each.ids) == 1 else "",
                    each.number,
                )
                for each in items
            ],
            now,
        )
        self._store.outlast([id for each in items for id in each.ids])

    def set_unmade_aside(self, items: list[tuple[str, str, bytes]], now: float) -> None:
        """
        Keep matches that no sighting could be made of.

        @param items: Of each the indicator's id, the reason, and the event.
        """
        self._store.set_aside(
            [SetAside(Stage.MATCH, reason, event, "event", id) for id, reason, event in items],
            now,
        )

    def set_sightings_aside(self, reasons: dict[str, str], now: float) -> None:
        """
        @see: L{BridgeStore.set_sightings_aside}
        """
        self._store.set_sightings_aside(reasons, now)

    def begin_snapshot(self) -> None:
        """
        @see: L{BridgeStore.begin_snapshot}
        """
        self._store.begin_snapshot()

    def end_snapshot(self, position: Position) -> Iterator[Changes]:
        """
        @see: L{BridgeStore.end_snapshot}
        """
        return _pieces(self._store.end_snapshot(position))

    def expire(self, now: float) -> Iterator[Changes]:
        """
        @see: L{BridgeStore.expire}
        """
        return _pieces(self._store.expire(now))

    def begin(self, now: float, search: bool) -> Iterator[Changes]:
        """
        @see: L{BridgeStore.begin}
        """
        return _pieces(self._store.begin(now, search))

    def entries(self, after: tuple[int, int]) -> DesiredPage:
        """
        @see: L{BridgeStore.entries_page}
        """
        return self._store.entries_page(after, PIECE)

    def compare(self, held: list[Entry], start: int) -> None:
        """
        Take some of what the engine holds, for L{reconcile}.

        @param start: How much of it came before.
        """
        self._held[start:] = held

    def reconcile(self) -> Iterator[Changes]:
        """
        @see: L{BridgeStore.reconcile}
        """
        held, self._held = self._held, []
        return _pieces(self._store.reconcile(held))

    def unsearched(self, until: int, limit: int, after: tuple[int, int]) -> DesiredPage:
        """
        @see: L{BridgeStore.unsearched}
        """
        return self._store.unsearched(until, min(limit, PIECE), after)

    def mark_searched(self, ids: list[str], until: int) -> None:
        """
        @see: L{BridgeStore.mark_searched}
        """
        self._store.mark_searched(ids, until)

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

    def bodies(self, ids: list[str]) -> dict[str, bytes]:
        """
        @see: L{BridgeStore.bodies}
        """
        return self._store.bodies(ids)

    def counts(self) -> dict[str, Any]:
        """
        @see: L{BridgeStore.counts}
        """
        return self._store.counts()

    def remember(self, sightings: list[Sighting], now: float) -> int:
        """
        @see: L{BridgeStore.remember}

        @return: How many were new.
        """
        new, failed = sift(sightings, lambda some: len(self._store.remember(some, now)))
        if failed:
            self._store.set_aside(
                [SetAside(Stage.MATCH, reason_of(e), s.raw, "sighting", s.id) for s, e in failed],
                now,
            )
        return sum(new)

    def unsent(self, limit: int, size: int, without: list[str]) -> list[tuple[str, bytes]]:
        """
        @see: L{BridgeStore.unsent}
        """
        return self._store.unsent(limit, size, set(without))

    def unsent_among(self, ids: list[str]) -> list[tuple[str, bytes]]:
        """
        @see: L{BridgeStore.unsent_among}
        """
        return self._store.unsent_among(ids)

    def mark_sent(self, ids: list[str]) -> None:
        """
        @see: L{BridgeStore.mark_sent}
        """
        self._store.mark_sent(ids)

    def forget(self, now: float) -> None:
        """
        @see: L{BridgeStore.forget}
        """
        self._store.forget(now)


def _pieces(changes: Changes) -> Iterator[Changes]:
    """
    Changes in parts, of which the first one says what is not matched.
    """
    unmatched = changes.unmatched
    for start in range(0, max(len(changes.write), len(changes.erase), 1), PIECE):
        end = start + PIECE
        write: tuple[Entry, ...] = changes.write[start:end]
        erase: tuple[Observable, ...] = changes.erase[start:end]
        yield Changes(changes.number, write, erase, unmatched)
        unmatched = {}


@contextlib.contextmanager
def opened(path: Path, search: bool) -> Iterator[tuple[Keeper, Position | None]]:
    """
    A store, and how far the bus's journal has been applied to it, for as long as it is kept.

    @param search: Whether past events are searched.
    @raise StartupRefused: If it cannot be.
    """
    lock = path.with_name(f"{path.name}-writer")
    gone = lock.exists() and not path.exists()
    try:
        acquire_writer_lock(path)
    except OSError as e:
        raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e
    renewed = ""
    try:
        store = _derived(path, search, gone)
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
        store = _derived(path, search)
    guard = store.make_guard(path, lambda: renew(path))
    try:
        yield Keeper(store, guard, renewed), store.position
    finally:
        with contextlib.suppress(sqlite3.Error):  # as of one that was damaged
            store.close()


def _derived(path: Path, search: bool, gone: bool = False) -> BridgeStore:
    """
    A store with which everything can be read.

    @param gone: Whether there was one that is no longer there.
    """
    store = BridgeStore(path)
    try:
        if gone:
            store.apply((), 0.0, search, NOWHERE)
        store.derive(search)
    except BaseException:
        store.close()
        raise
    return store


def main(path: str, search: str) -> None:
    """
    Keep a store, as asked on standard input, which is a socket.
    """
    serve(opened(Path(path), search == YES), (sqlite3.Error, StartupRefused, StoreFailed))


if __name__ == "__main__":
    main(*sys.argv[1:])
