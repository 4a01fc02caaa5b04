"""
The sightings in the bridge's store: blocking calls, from one thread at a time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

import attrs
import msgspec

from tbvast.stix.limits import LARGEST_SIGHTING
from tbvast.stix.sighting_size import fitted
from tbvast.stix.sightings import Sighting
from tbvast.storage.set_aside import SetAside, Stage, reason_of, store_set_aside
from tbvast.storage.sifting import sift
from tbvast.storage.sqlite import IN_JSON_LIST, insert, microseconds, transaction
from tbvast.values import PageRequest, WaitingSighting

SIGHTING_MEMORY_DAYS = 30
"""
Days after which the id of a sent sighting is pruned. The same sighting is then new again.
"""


@attrs.define(eq=False, slots=False)
class OutboxTable:
    """
    The waiting sightings, and the ids of those that were sent recently. Dates are in seconds since
    the epoch. L{tbvast.interfaces.ISightingOutbox} documents the other methods.
    """

    _db: sqlite3.Connection

    def remember(
        self, sightings: Sequence[Sighting], now: float, request: PageRequest | None = None
    ) -> tuple[int, list[WaitingSighting] | None]:
        new, failed = sift(sightings, lambda some: self._remember(some, now))
        if failed:
            self._set_aside(
                [SetAside(Stage.MATCH, reason_of(e), s.raw, "sighting", s.id) for s, e in failed],
                now,
            )
        return sum(new), None if request is None else self.page(request)

    def _remember(self, sightings: Sequence[Sighting], now: float) -> int:
        new = {sighting.id: sighting for sighting in reversed(sightings)}
        with transaction(self._db):
            # All ids as one JSON text: a single step of SQLite.
            (known,) = self._db.execute(
                f"SELECT json_group_array(id) FROM sightings WHERE id {IN_JSON_LIST}",
                (json.dumps(list(new)),),
            ).fetchone()
            for id in msgspec.json.decode(known, type=list[str]):
                del new[id]
            rows = [(each.id, int(now), each.raw) for each in reversed(new.values())]
            insert(self._db, "sightings", rows)
        return len(rows)

    def carry_over(self, sightings: Sequence[tuple[str, int, bytes | None]]) -> int:
        """
        Add the sightings of another store.

        @param sightings: The id and the creation time of each; the document if it is unsent.
        @return: The number of unsent sightings.
        """
        with transaction(self._db):
            self._db.executemany(
                "INSERT OR IGNORE INTO sightings (id, made, body) VALUES (?, ?, ?)", sightings
            )
        return sum(body is not None for _, _, body in sightings)

    def page(self, request: PageRequest) -> list[WaitingSighting]:
        without, size = frozenset(request.without), request.size
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
            if len(found) >= request.count:
                break
        return found

    def unsent(self, ids: Sequence[str]) -> list[WaitingSighting]:
        """
        @return: Those of some sightings that are unsent.
        """
        found = self._db.execute(
            f"SELECT id, body FROM sightings WHERE body IS NOT NULL AND id {IN_JSON_LIST}",
            (json.dumps(ids),),
        )
        return list(map(WaitingSighting._make, found))

    def set_aside(self, reasons: Mapping[str, str], now: float) -> None:
        ids = list(reasons)
        items = [
            SetAside(Stage.REPORT, reasons[id], body, "sighting", id)
            for id, body in self.unsent(ids)
        ]
        self._set_aside(items, now, ids)

    def _set_aside(self, items: Sequence[SetAside], now: float, stored: Sequence[str] = ()) -> None:
        """
        @param stored: The ids of those among them that are stored.
        """
        with transaction(self._db):
            store_set_aside(self._db, items, microseconds(now))
            self._drop_documents(stored)

    def mark_sent(
        self, ids: Sequence[str], request: PageRequest | None = None
    ) -> list[WaitingSighting] | None:
        self._drop_documents(ids)
        return None if request is None else self.page(request)

    def _drop_documents(self, ids: Sequence[str]) -> None:
        self._db.execute(
            f"UPDATE sightings SET body = NULL WHERE id {IN_JSON_LIST}", (json.dumps(ids),)
        )

    def prune(self, now: float) -> None:
        self._db.execute(
            "DELETE FROM sightings WHERE body IS NULL AND made < ?",
            (int(now) - SIGHTING_MEMORY_DAYS * 86400,),
        )
