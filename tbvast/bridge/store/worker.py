"""
The process of the bridge's store. Its command is::

    python -m tbvast.bridge.store.worker PATH yes|no

The second argument is C{yes} if past events are searched.

A store that cannot be read is replaced. The bus has every indicator, and sends all of them to a
store whose position is in another bus's journal. Only the store has its sightings, so the new
store takes over those that are still readable.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.values import IDENTITY, OpenedStore
from tbvast.errors import Invalid, StartupRefused, StoreFailed
from tbvast.service.clock import calendar
from tbvast.stix.sightings import decode_sighting
from tbvast.storage.file_guard import FileGuard, damage_of, move_aside
from tbvast.storage.sqlite import acquire_writer_lock
from tbvast.storage.worker_server import Served, serve
from tbvast.values import Covered, Position

YES, NO = "yes", "no"

NOWHERE = Position("renewed", 0)
"""
A position in no bus's journal. A bus sends everything in force to a bridge that resumes
there, whatever number of days a new bridge asks for.
"""


@contextlib.contextmanager
def open_store(path: Path, search: bool) -> Iterator[Served]:
    """
    Open the store, and close it on exit.

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
        if gone:
            _create(path)
            renewed = (
                f"The store {path} is gone: a new one was made, which the bus fills; sightings"
                " that had not been sent are lost."
            )
        store = _open_current(path, search)
    except (StartupRefused, sqlite3.Error, Invalid, msgspec.MsgspecError) as e:
        damage = damage_of(e) if isinstance(e, StartupRefused | sqlite3.Error) else e
        if damage is None:
            raise
        try:
            renewed = f"The store {path} is damaged ({damage}): {_renew(path)}."
        except OSError as refusal:
            raise StartupRefused(f"{e}, and it cannot be moved aside: {refusal}") from e
        store = _open_current(path, search)
    guard = FileGuard(store.connection, path, "the bridge's store", lambda: _renew(path))
    greeting = OpenedStore(store.indicators.position, store.identity, renewed)
    try:
        yield Served(store.objects, greeting, guard)
    finally:
        with contextlib.suppress(sqlite3.Error):  # a damaged file may not close
            store.close()


def _open_current(path: Path, search: bool) -> BridgeStore:
    store = BridgeStore(path)
    try:
        store.indicators.rebuild_observables(search)
    except BaseException:
        store.close()
        raise
    return store


_Row = tuple[str, int, bytes | None]
# The id and creation time of a sighting, and the document of an unsent one.


def _renew(path: Path) -> str:
    """
    Move a store aside, and create a new one in its place.

    @return: A description of the steps, for the log.
    @raise OSError: If the store cannot be moved.
    @raise StartupRefused: If a new one cannot be created.
    """
    aside = move_aside(path, "damaged", calendar())
    unsent = _create(path, *_legible(aside))
    return (
        f"a new one was made, which the bus fills, and {unsent} sightings were carried over"
        f" that had not been sent; the old one is {aside}"
    )


def _create(
    path: Path,
    sightings: Sequence[_Row] = (),
    covered: Covered | None = None,
    identity: str | None = None,
) -> int:
    """
    Create a store that the bus fills.

    @return: The number of unsent sightings.
    """
    with contextlib.closing(BridgeStore(path)) as store:
        if covered is not None:
            store.set_covered(covered)
        if identity is not None:
            store.set_identity(identity)
        store.indicators.apply((), 0.0, False, NOWHERE)
        return store.outbox.carry_over(sightings)


def _legible(path: Path) -> tuple[list[_Row], Covered | None, str | None]:
    found: dict[str, _Row] = {}
    covered: Covered | None = None
    identity: str | None = None
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as database:
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        with contextlib.suppress(sqlite3.Error, msgspec.ValidationError):
            database.row_factory = sqlite3.Row
            row = database.execute("SELECT * FROM covered").fetchone()
            covered = None if row is None else msgspec.convert(dict(row), Covered)
        database.row_factory = None
        with contextlib.suppress(sqlite3.Error, TypeError):
            (name,) = database.execute("SELECT name FROM identity").fetchone()
            identity = name if IDENTITY.fullmatch(name) else None
        # From both ends, up to the damage.
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error):
                for row in database.execute(
                    f"SELECT id, made, body FROM sightings ORDER BY id {order}"
                ):
                    if _is_legible(*row):
                        found[row[0]] = row
    return list(found.values()), covered, identity


def _is_legible(id: Any, made: Any, body: Any) -> bool:
    if not isinstance(made, int) or not isinstance(id, str):
        return False
    if body is None:
        return True
    try:
        return decode_sighting(body).id == id
    except (Invalid, TypeError):
        return False


def main(path: str, search: str) -> None:
    """
    Serve the store on standard input, which is a socket.

    @param search: L{YES} if past events are searched.
    """
    serve(open_store(Path(path), search == YES), (sqlite3.Error, StartupRefused, StoreFailed))


if __name__ == "__main__":
    main(*sys.argv[1:])
