"""
The sightings in the bridge's store: blocking calls, from one thread at a time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from tbvast.bridge.store.schema import IN_JSON_LIST, MICROSECONDS
from tbvast.stix.limits import LARGEST_SIGHTING
from tbvast.stix.sighting_size import fitted
from tbvast.stix.sightings import Sighting
from tbvast.storage import set_aside
from tbvast.storage.set_aside import SetAside, Stage
from tbvast.storage.sqlite import insert, transaction
from tbvast.values import WaitingSighting

SIGHTING_MEMORY_DAYS = 30
"""
Days after which the id of a sent sighting is pruned. The same sighting counts as new again
from then on.
"""


class OutboxTable:
    """
    The sightings that wait to be sent, and the ids of those that were sent recently.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """
        @param connection: The open store.
        """
        self._db = connection

    def remember(self, sightings: Sequence[Sighting], now: float) -> list[Sighting]:
        """
        Store sightings until they are sent.

        @param now: The date that they get; seconds since the epoch.
        @return: The new ones. A known sighting is not stored again.
        """
        new = {sighting.id: sighting for sighting in reversed(sightings)}
        with transaction(self._db):
            # All ids as one JSON text: a single step of SQLite.
            (known,) = self._db.execute(
                f"SELECT json_group_array(id) FROM sightings WHERE id {IN_JSON_LIST}",
                (json.dumps(list(new)),),
            ).fetchone()
            for id in msgspec.json.decode(known, type=list[str]):
                del new[id]
            fresh = list(reversed(new.values()))
            insert(self._db, "sightings", [(each.id, int(now), each.raw) for each in fresh])
        return fresh

    def carry_over(self, sightings: Sequence[tuple[str, int, bytes | None]]) -> int:
        """
        Add the sightings of another store.

        @param sightings: The id and the creation time of each, and the document of an
            unsent one.
        @return: The number of unsent sightings.
        """
        with transaction(self._db):
            self._db.executemany(
                "INSERT OR IGNORE INTO sightings (id, made, body) VALUES (?, ?, ?)", sightings
            )
        return sum(body is not None for _, _, body in sightings)

    def unsent(self, limit: int, size: int, without: Collection[str] = ()) -> list[WaitingSighting]:
        """
        Read the oldest unsent sightings.

        @param limit: The most to return.
        @param size: The most bytes of documents to return; a longer one is returned alone.
        @param without: The ids of those to leave out.
        @return: The sightings; their keys are their ids.
        """
        found: list[WaitingSighting] = []
        for id, body in self._db.execute(
            "SELECT id, body FROM sightings WHERE body IS NOT NULL ORDER BY made"
        ):
            if id in without:
                continue
            if len(body) > LARGEST_SIGHTING:  # of an earlier version
                body = fitted(body)
            size -= len(body)
            if found and size < 0:
                break
            found.append(WaitingSighting(id, body))
            if len(found) >= limit:
                break
        return found

    def unsent_among(self, ids: Iterable[str]) -> list[WaitingSighting]:
        """
        @return: Those of some sightings that are unsent.
        """
        found = self._db.execute(
            f"SELECT id, body FROM sightings WHERE body IS NOT NULL AND id {IN_JSON_LIST}",
            (json.dumps(list(ids)),),
        )
        return list(map(WaitingSighting._make, found))

    def count_unsent(self) -> int:
        """
        @return: The number of unsent sightings.
        """
        (unsent,) = self._db.execute(
            "SELECT count(*) FROM sightings WHERE body IS NOT NULL"
        ).fetchone()
        return int(unsent)

    def set_aside(self, reasons: Mapping[str, str], now: float) -> None:
        """
        Give sightings up: they are neither sent nor stored again.

        @param reasons: The reasons, by id.
        @param now: Seconds since the epoch.
        """
        items = [
            SetAside(Stage.REPORT, reasons[id], body, "sighting", id)
            for id, body in self.unsent_among(reasons)
        ]
        with transaction(self._db):
            set_aside.store_set_aside(self._db, items, int(now * MICROSECONDS))
            self._drop_documents(reasons)

    def mark_sent(self, ids: Iterable[str]) -> None:
        """
        Store that sightings were sent: only their ids stay.
        """
        with transaction(self._db):
            self._drop_documents(ids)

    def _drop_documents(self, ids: Iterable[str]) -> None:
        self._db.execute(
            f"UPDATE sightings SET body = NULL WHERE id {IN_JSON_LIST}", (json.dumps(list(ids)),)
        )

    def prune(self, now: float) -> None:
        """
        Delete the ids of sightings that were sent long ago.

        @param now: Seconds since the epoch.
        """
        with transaction(self._db):
            self._db.execute(
                "DELETE FROM sightings WHERE body IS NULL AND made < ?",
                (int(now) - SIGHTING_MEMORY_DAYS * 86400,),
            )
