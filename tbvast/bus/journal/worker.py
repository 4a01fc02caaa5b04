"""
The process that writes the journal. Its command is::

    python -m tbvast.bus.journal.worker PATH IDENTITY
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tbvast.bus.journal.schema import journal_errors
from tbvast.bus.journal.values import Opened
from tbvast.bus.journal.writer import JournalStore
from tbvast.errors import JournalFailed
from tbvast.storage.sqlite import acquire_writer_lock
from tbvast.storage.worker_server import Served, serve


@contextlib.contextmanager
def opened(path: Path, identity: str) -> Iterator[Served]:
    """
    Open a journal for writing, and close it afterwards.

    @param identity: The identity of a new journal.
    @raise JournalFailed: If it cannot be opened.
    """
    with journal_errors("open", path):
        acquire_writer_lock(path)
    store = JournalStore(path, identity)
    try:
        yield Served([store], Opened(store.identity, store.head, store.floor), store.guard)
    finally:
        store.close()


if __name__ == "__main__":
    serve(opened(Path(sys.argv[1]), sys.argv[2]), (JournalFailed,))
