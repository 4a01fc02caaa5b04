"""
The process that writes the journal, and its methods. Its command is::

    python -m tbvast.bus.journal.worker PATH IDENTITY
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tbvast.bus.journal.ownership import Run
from tbvast.bus.journal.schema import journal_errors
from tbvast.bus.journal.values import Opened, Outcome, PackedOutcome, Pruned
from tbvast.bus.journal.writer import JournalStore
from tbvast.errors import JournalFailed
from tbvast.protocol.frames import Item
from tbvast.storage.set_aside import SetAside
from tbvast.storage.sqlite import acquire_writer_lock
from tbvast.storage.worker_server import serve
from tbvast.values import Position


class Writer:
    """
    The methods that the bus's process calls.

    @ivar guard: Guards the file; each method is called inside this context manager.
    """

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self.guard = store.guard
        self._failed: tuple[int, JournalFailed] | None = None

    def append(
        self, items: Sequence[Item], now: float, failures: int, publishers: Sequence[Run]
    ) -> list[PackedOutcome]:
        """
        @see: L{JournalStore.append}

        @param now: Seconds since the epoch.
        @param failures: The number of failed calls that the caller has seen. Until it has
            seen the last one, nothing more is appended.
        """
        if self._failed is not None and self._failed[0] == failures:
            raise self._failed[1]
        try:
            outcomes = self._store.append(items, now, publishers)
        except JournalFailed as e:
            self._failed = (failures, e)
            raise
        return [_packed(outcome, item) for outcome, item in zip(outcomes, items, strict=True)]

    def expire(self, now: float, limit: int) -> list[PackedOutcome]:
        """
        @see: L{JournalStore.expire}
        """
        return [_packed(each) for each in self._store.expire(now, limit)]

    def prune(self, since: float, size: int, limit: int) -> Pruned:
        """
        @see: L{JournalStore.prune}
        """
        return Pruned(self._store.prune(since, size, limit), self._store.floor)

    def find(self, ids: list[str]) -> dict[str, bytes]:
        """
        @see: L{JournalStore.find}
        """
        return self._store.find(ids)

    def set_aside(self, items: Sequence[SetAside], now: float) -> None:
        """
        @see: L{JournalStore.set_aside}
        """
        self._store.set_aside(items, now)

    def check(self) -> None:
        """
        Do nothing: the guard checks the file.
        """

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> None:
        """
        @see: L{JournalStore.save_subscriptions}
        """
        self._store.save_subscriptions(changes)

    def set_position(self, reader: str, position: Position) -> None:
        """
        @see: L{JournalStore.set_position}
        """
        self._store.set_position(reader, position)


def _packed(outcome: Outcome, given: Item | None = None) -> PackedOutcome:
    """
    @param given: The item that was appended, if the outcome is of one.
    """
    item = None if outcome.item is given else outcome.item
    return PackedOutcome(outcome.verdict, outcome.number, item, outcome.reason)


@contextlib.contextmanager
def opened(path: Path, identity: str) -> Iterator[tuple[Writer, Opened]]:
    """
    Open a journal for writing, and close it afterwards.

    @param identity: The identity of a new journal.
    @raise JournalFailed: If it cannot be opened.
    """
    with journal_errors("open", path):
        acquire_writer_lock(path)
    store = JournalStore(path, identity)
    try:
        yield Writer(store), Opened(store.identity, store.head)
    finally:
        store.close()


def main(path: str, identity: str) -> None:
    """
    Serve a journal on standard input, which is a socket.

    @param path: The journal's file.
    @param identity: The identity of a new journal.
    """
    serve(opened(Path(path), identity), (JournalFailed,))


if __name__ == "__main__":
    main(*sys.argv[1:])
