"""
The journal's file, as it is read: SQLite, by blocking calls.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import msgspec

from tbvast.ops.database import connect, snapshot
from tbvast.plugin.store import IN_FORCE, MICROSECONDS, STREAM_NUMBER, read_floor, translated
from tbvast.wire.manage import Position
from tbvast.wire.topics import Stream

_STREAM_OF_NUMBER = {number: stream for stream, number in STREAM_NUMBER.items()}


class Entered(msgspec.Struct, frozen=True, gc=False):
    """
    An item, and the number it has in the journal.
    """

    number: int
    stream: Stream
    raw: bytes


class JournalReader:
    """
    The journal's file, for who reads it while somebody else writes: any thread, one
    call at a time.

    @ivar floor: The number up to which entries may have been let go of; never behind
        what has been read.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: A file that a L{tbvast.plugin.store.JournalStore} has made.
        @raise JournalFailed: If it cannot be read.
        """
        self._path = path
        with translated("open", path):
            self._connection = connect(path)
            self.floor = read_floor(self._connection)

    def close(self) -> None:
        """
        Close the file; nothing can be asked any more.
        """
        self._connection.close()

    def current(
        self, after: int, until: int, since: float, limit: int, now: float
    ) -> list[tuple[int, bytes]]:
        """
        @see: L{tbvast.interfaces.IJournal.current}

        @param now: Seconds since the epoch.
        """
        with translated("read", self._path):
            return self._connection.execute(
                "SELECT number, body FROM entries"
                " WHERE number > ? AND number <= ? AND state = ? AND stream = ?"
                " AND received >= ? AND (valid_until IS NULL OR valid_until > ?)"
                " ORDER BY number LIMIT ?",
                (
                    after,
                    until,
                    IN_FORCE,
                    STREAM_NUMBER[Stream.INTEL],
                    int(since * MICROSECONDS),
                    int(now * MICROSECONDS),
                    limit,
                ),
            ).fetchall()

    def counts(self, now: float) -> dict[str, int]:
        """
        @see: L{tbvast.interfaces.IJournal.counts}

        @param now: Seconds since the epoch.
        """
        with translated("read", self._path):
            indicators, sightings = self._connection.execute(
                "SELECT count(*) FILTER (WHERE stream = ?"
                " AND (valid_until IS NULL OR valid_until > ?)),"
                " count(*) FILTER (WHERE stream = ?) FROM entries WHERE state = ?",
                (
                    STREAM_NUMBER[Stream.INTEL],
                    int(now * MICROSECONDS),
                    STREAM_NUMBER[Stream.SIGHTING],
                    IN_FORCE,
                ),
            ).fetchone()
        return {"indicators": indicators, "sightings": sightings}

    def subscriptions(self) -> dict[str, bytes]:
        """
        @see: L{tbvast.interfaces.ISubscriptionStore.subscriptions}
        """
        with translated("read", self._path):
            return dict(self._connection.execute("SELECT topic, request FROM subscriptions"))

    def entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> list[Entered]:
        """
        @see: L{tbvast.interfaces.IReplay.entries}
        """
        wanted = json.dumps([STREAM_NUMBER[stream] for stream in streams])
        found: list[Entered] = []
        with translated("read", self._path), snapshot(self._connection):
            self.floor = read_floor(self._connection)
            for number, stream, body in self._connection.execute(
                "SELECT number, stream, body FROM entries WHERE number > ?"
                " AND stream IN (SELECT value FROM json_each(?)) ORDER BY number LIMIT ?",
                (after, wanted, limit),
            ):
                found.append(Entered(number, _STREAM_OF_NUMBER[stream], body))
                size -= len(body)
                if size <= 0:
                    break
        return found

    def pruned(self, after: int, until: int) -> int:
        """
        @see: L{tbvast.interfaces.IReplay.pruned}
        """
        with translated("read", self._path):
            (left,) = self._connection.execute(
                "SELECT count(*) FROM entries WHERE number > ? AND number <= ?", (after, until)
            ).fetchone()
        return until - after - int(left)

    def position(self, reader: str) -> Position | None:
        """
        @see: L{tbvast.interfaces.IReplay.position}
        """
        with translated("read", self._path):
            found = self._connection.execute(
                "SELECT plugin, number FROM positions WHERE reader = ?", (reader,)
            ).fetchone()
        return None if found is None else Position(*found)
