"""
The bridge's store: one SQLite file, used by blocking calls from one thread at a time.

It decides which indicators are in force, which observables they hold, which of them have
been searched for in past events, and which sightings exist. The engine's tables are a copy
of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from tbvast.bridge.store.indicators import IndicatorTable
from tbvast.bridge.store.outbox_table import OutboxTable
from tbvast.bridge.store.schema import open_database
from tbvast.errors import StartupRefused
from tbvast.storage import set_aside
from tbvast.storage.file_guard import FileGuard
from tbvast.values import Covered, JsonObject


class BridgeStore:
    """
    The open file. Not thread-safe.

    @ivar indicators: The indicators, and the position in the bus's journal.
    @ivar outbox: The sightings.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: The file; it is created if it does not exist.
        @raise StartupRefused: If the file cannot be used.
        """
        try:
            self._db = open_database(path)
            self.indicators = IndicatorTable(self._db)
        except sqlite3.Error as e:
            raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e
        self.outbox = OutboxTable(self._db)

    def close(self) -> None:
        """
        Close the file.
        """
        self._db.close()

    def make_guard(self, path: Path, replacement: Callable[[], str]) -> FileGuard:
        """
        Make a guard that notices damage to the file, and its removal.

        @param path: The file.
        @param replacement: As for L{FileGuard}.
        """
        return FileGuard(self._db, path, "the bridge's store", replacement)

    @property
    def covered(self) -> Covered | None:
        """
        The moment up to which every arriving event has been matched; C{None} at first.
        """
        found = self._db.execute("SELECT until, awake, boot FROM covered").fetchone()
        return None if found is None else Covered(*found)

    def set_covered(self, covered: Covered) -> None:
        """
        Store the moment up to which every arriving event has been matched.

        @param covered: The moment. All sightings of earlier events must have been stored.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO covered VALUES (1, ?, ?, ?)",
            (covered.until, covered.awake, covered.boot),
        )

    def counts(self) -> JsonObject:
        """
        @return: The counts of L{IndicatorTable.counts}; the number of C{unsent} sightings;
            and how many items were C{set_aside}, with the newest reason, if any were.
        """
        indicators = self.indicators.counts()
        aside = set_aside.report(self._db)
        return {
            **indicators,
            "unsent": self.outbox.count_unsent(),
            "set_aside": {"count": aside.count, "newest": aside.newest} if aside.count else {},
        }
