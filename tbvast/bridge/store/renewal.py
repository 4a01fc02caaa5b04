"""
Rebuilds a store that cannot be read.

The bus has every indicator, and sends all of them to a store whose position is in another
bus's journal. Only the store has its sightings, so the new store takes over those that are
still readable.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.errors import Invalid
from tbvast.service.clock import calendar
from tbvast.stix.sightings import decode_sighting
from tbvast.storage.file_guard import move_aside
from tbvast.values import Covered, Position

NOWHERE = Position("renewed", 0)
"""
A position in no bus's journal. A bus sends everything in force to a bridge that resumes
there, whatever number of days a new bridge asks for.
"""


def renew(path: Path) -> str:
    """
    Move a store aside, and create a new one in its place.

    @return: A description of the steps, for the log.
    @raise OSError: If the store cannot be moved.
    @raise StartupRefused: If a new one cannot be created.
    """
    aside = move_aside(path, "damaged", calendar())
    sightings, covered = _legible(aside)
    with closing(BridgeStore(path)) as store:
        if covered is not None:
            store.set_covered(covered)
        unsent = store.outbox.carry_over(sightings)
        store.indicators.apply((), 0.0, False, NOWHERE)
    return (
        f"a new one was made, which the bus fills, and {unsent} sightings were carried over"
        f" that had not been sent; the old one is {aside}"
    )


def _legible(path: Path) -> tuple[list[tuple[str, int, bytes | None]], Covered | None]:
    """
    @return: The readable sightings (id, creation time, and the document of an unsent one),
        and the moment up to which everything was matched.
    """
    found: dict[str, tuple[str, int, bytes | None]] = {}
    covered: Covered | None = None
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database:
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        with suppress(sqlite3.Error, msgspec.ValidationError):
            database.row_factory = sqlite3.Row
            row = database.execute("SELECT * FROM covered").fetchone()
            covered = None if row is None else msgspec.convert(dict(row), Covered)
        database.row_factory = None
        # From both ends, up to the damage.
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.Error):
                for row in database.execute(
                    f"SELECT id, made, body FROM sightings ORDER BY id {order}"
                ):
                    if _is_legible(*row):
                        found[row[0]] = row
    return list(found.values()), covered


def _is_legible(id: Any, made: Any, body: Any) -> bool:
    if not isinstance(made, int) or not isinstance(id, str):
        return False
    if body is None:
        return True
    try:
        return decode_sighting(body).id == id
    except (Invalid, TypeError):
        return False
