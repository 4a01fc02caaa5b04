"""
The bridge's store: one SQLite file, used by blocking calls from one thread at a time.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tbvast.bridge.store.entries import EntryTable
from tbvast.bridge.store.indicators import IndicatorTable
from tbvast.bridge.store.outbox_table import OutboxTable
from tbvast.bridge.store.rows import RowReader
from tbvast.bridge.store.schema import open_database
from tbvast.bridge.store.searches import SearchProgress
from tbvast.errors import StartupRefused
from tbvast.storage import set_aside
from tbvast.storage.digest_index import DigestIndex
from tbvast.values import JsonObject

MAX_LISTED = 50
MAX_LISTED_REASONS = 2
"""
The most indicators that L{BridgeStore.counts} lists as not or only partly matched, and the
most reasons for each. L{MAX_LISTED} is also the most reasons that are counted separately: a
bus accepts no longer report.
"""

OTHER_REASONS = "other reasons"
"""
The key under which all further reasons are counted.
"""


class BridgeStore:
    """
    The open file. Not thread-safe.

    @ivar indicators: The indicators, and the position in the bus's journal.
    @ivar entries: The entries that the engine should hold.
    @ivar searches: The progress of the searches.
    @ivar outbox: The sightings.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: The file; it is created if it does not exist.
        @raise StartupRefused: If the file cannot be used.
        """
        try:
            self.connection = open_database(path)
            self._rows = RowReader(self.connection)
            by_id = DigestIndex(self.connection, "ids", self._ids_above)
            self.entries = EntryTable(self.connection, self._rows)
            self.indicators = IndicatorTable(self.connection, self._rows, self.entries, by_id)
            self.searches = SearchProgress(self.connection, self._rows, self.entries, by_id)
            self.outbox = OutboxTable(self.connection)
        except sqlite3.Error as e:
            raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e

    def _ids_above(self, number: int) -> Iterator[tuple[int, int]]:
        return self.connection.execute(
            "SELECT digest, number FROM indicators WHERE number > ?", (number,)
        )

    def close(self) -> None:
        """
        Close the file.
        """
        self.connection.close()

    @property
    def objects(self) -> tuple[object, ...]:
        """
        The objects whose methods are called from the reactor's process.
        """
        return self, self.indicators, self.entries, self.searches, self.outbox

    def counts(self) -> JsonObject:
        """
        @see: L{tbvast.interfaces.IIndicatorStore.counts}
        """
        aside = set_aside.report(self.connection)
        return {
            **self._rows.read(self._count_indicators),
            "unsent": self.outbox.count_unsent(),
            "set_aside": {"count": aside.count, "newest": aside.newest} if aside.count else {},
        }

    def _count_indicators(self) -> JsonObject:
        indicators, unsearched, not_yet = self.connection.execute(
            "SELECT count(*) FILTER (WHERE state = 1),"
            " count(*) FILTER (WHERE state = 1 AND NOT searched),"
            " count(*) FILTER (WHERE state = 2) FROM indicators WHERE state != 0"
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
        return {
            "indicators": indicators,
            "unsearched": unsearched,
            "not_yet": not_yet,
            "unmatched": _most_frequent(dict(reasons)),
            "unmatched_ids": {
                id: msgspec.json.decode(why, type=list[str])[:MAX_LISTED_REASONS]
                for id, why in listed
            },
        }


def _most_frequent(reasons: dict[str, int]) -> dict[str, int]:
    """
    Limit the number of reasons.

    @param reasons: The number of indicators of each, the most frequent first.
    """
    apart = dict(itertools.islice(reasons.items(), MAX_LISTED))
    others = sum(reasons.values()) - sum(apart.values())
    return {**apart, OTHER_REASONS: others} if others else apart
