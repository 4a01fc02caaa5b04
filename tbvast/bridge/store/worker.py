"""
The process of the bridge's store. Its command is::

    python -m tbvast.bridge.store.worker PATH yes|no

The second argument is C{yes} if past events are searched.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.renewal import NOWHERE, renew
from tbvast.bridge.store.values import OpenedStore
from tbvast.errors import Invalid, StartupRefused, StoreFailed
from tbvast.storage.file_guard import FileGuard, damage_of
from tbvast.storage.sqlite import acquire_writer_lock
from tbvast.storage.worker_server import Served, serve

YES, NO = "yes", "no"


@contextlib.contextmanager
def open_store(path: Path, search: bool) -> Iterator[Served]:
    """
    Open the store, and close it on exit. An unreadable store is replaced.

    @param search: Whether past events are searched.
    @return: The tables; the first message is an L{OpenedStore}.
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
    guard = FileGuard(store.connection, path, "the bridge's store", lambda: renew(path))
    try:
        yield Served(store.objects, OpenedStore(store.indicators.position, renewed), guard)
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

    @param search: L{YES} if past events are searched.
    """
    serve(open_store(Path(path), search == YES), (sqlite3.Error, StartupRefused, StoreFailed))


if __name__ == "__main__":
    main(*sys.argv[1:])
