"""
The bridge's store: one SQLite file, used by blocking calls from one thread at a time.
"""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import msgspec

from tbvast.bridge.store.entries import EntryTable
from tbvast.bridge.store.indicators import IndicatorTable
from tbvast.bridge.store.outbox_table import OutboxTable
from tbvast.bridge.store.store_file import StoreFile
from tbvast.errors import StartupRefused
from tbvast.storage import set_aside
from tbvast.values import Covered, JsonObject

MAX_LISTED = 50
MAX_LISTED_REASONS = 2
"""
The most indicators that L{BridgeStore.counts} lists as not or only partly matched, or reasons that
it counts separately, and the most reasons for each: a bus accepts no longer report.
"""

OTHER_REASONS = "other reasons"
"""
The key under which all further reasons are counted.
"""


class BridgeStore:
    """
    The open file. Not thread-safe. L{tbvast.interfaces.IIndicatorStore} documents the rest.

    @ivar indicators: The indicators, and the position in the bus's journal.
    @ivar entries: The entries that the engine should hold.
    @ivar outbox: The sightings.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: The file; it is created if it does not exist.
        @raise StartupRefused: If the file cannot be used.
        """
        try:
            self._file = StoreFile(path)
            self.entries = EntryTable(self._file)
            self.indicators = IndicatorTable(self._file, self.entries)
        except sqlite3.Error as e:
            raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e
        self.connection = self._file.connection
        self.outbox = OutboxTable(self.connection)

    def close(self) -> None:
        self.connection.close()

    @property
    def objects(self) -> tuple[object, ...]:
        """
        The objects whose methods are called from the reactor's process.
        """
        return self, self.indicators, self.entries, self.outbox

    @property
    def identity(self) -> str:
        """
        The name of the store, of the form L{tbvast.bridge.store.values.IDENTITY}.
        """
        (name,) = self.connection.execute("SELECT name FROM identity").fetchone()
        return str(name)

    def set_identity(self, name: str) -> None:
        self.connection.execute("UPDATE identity SET name = ?", (name,))

    def covered(self) -> Covered | None:
        found = self.connection.execute("SELECT until, awake, boot FROM covered").fetchone()
        return None if found is None else Covered(*found)

    def set_covered(self, covered: Covered) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO covered VALUES (1, ?, ?, ?)",
            (covered.until, covered.awake, covered.boot),
        )

    def counts(self) -> JsonObject:
        aside = set_aside.report(self.connection)
        return {
            **self._file.read(self._count_indicators),
            "set_aside": {"count": aside.count, "newest": aside.newest} if aside.count else {},
        }

    def _count_indicators(self) -> JsonObject:
        indicators, unsearched, not_yet, unsent = self.connection.execute(
            "SELECT count(*) FILTER (WHERE state = 1),"
            " count(*) FILTER (WHERE state = 1 AND NOT searched),"
            " count(*) FILTER (WHERE state = 2),"
            " (SELECT count(*) FROM sightings WHERE body IS NOT NULL)"
            " FROM indicators WHERE state != 0"
        ).fetchone()
        reasons = self.connection.execute(
            "SELECT r.value, count(*)"
            " FROM indicators i INDEXED BY unmatched, json_each(i.unmatched) r"
            " WHERE state = 1 AND unmatched != '[]' GROUP BY r.value ORDER BY 2 DESC, 1"
        )
        listed = self.connection.execute(
            "SELECT id, unmatched FROM indicators INDEXED BY unmatched"
            " WHERE state = 1 AND unmatched != '[]' ORDER BY change DESC, number DESC LIMIT ?",
            (MAX_LISTED,),
        )
        counted = dict(reasons)
        frequent = dict(itertools.islice(counted.items(), MAX_LISTED))
        if others := sum(counted.values()) - sum(frequent.values()):
            frequent[OTHER_REASONS] = others
        return {
            "indicators": indicators,
            "unsearched": unsearched,
            "not_yet": not_yet,
            "unmatched": frequent,
            "unmatched_ids": {
                id: msgspec.json.decode(why, type=list[str])[:MAX_LISTED_REASONS]
                for id, why in listed
            },
            "unsent": unsent,
        }
