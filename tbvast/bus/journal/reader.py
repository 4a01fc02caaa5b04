"""
Reads the journal's file: SQLite, by blocking calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from tbvast.bus.journal.schema import (
    BODY,
    FLOOR,
    HAS_BODY,
    IN_FORCE,
    MOST_BYTES,
    STREAM_NUMBER,
    STREAM_OF_NUMBER,
    damage,
    journal_errors,
    read_number,
    readable_text,
    set_aside_row,
)
from tbvast.bus.journal.values import JournalEntry, Page
from tbvast.errors import FileLost, JournalFailed
from tbvast.protocol.topics import Stream
from tbvast.storage.file_guard import damage_of
from tbvast.storage.set_aside import SetAside, SetAsideReport, Stage, report
from tbvast.storage.sqlite import IN_JSON_LIST, connect, microseconds, snapshot
from tbvast.values import Position

_MOST = {number: MOST_BYTES[stream] for number, stream in STREAM_OF_NUMBER.items()}

_Row = Sequence[Any]
"""
The number, the stream, the document and the checksum of an entry, at least.
"""


class JournalReader:
    """
    Reads the journal while another process writes it. Called in any thread, one call at a time.
    L{tbvast.interfaces.IJournal} documents the other methods. Dates are in seconds since the
    epoch.
    """

    def __init__(self, path: Path) -> None:
        """
        @param path: A file made by L{tbvast.bus.journal.writer.JournalStore}.
        @raise JournalFailed: If it cannot be read.
        """
        self._path = path
        with journal_errors("open", path):
            self._connection = connect(path)
            self._connection.text_factory = readable_text

    def close(self) -> None:
        """
        Close the file. No other method may be called afterwards.
        """
        self._connection.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with journal_errors("read", self._path):
                yield
        except JournalFailed as e:
            if damage_of(e) is not None:
                raise FileLost(str(e)) from e
            raise

    def current(
        self, after: int, until: int, since: float, limit: int, size: int, now: float
    ) -> Page[tuple[int, bytes]]:
        fixed = (until, IN_FORCE, STREAM_NUMBER[Stream.INTEL])
        dates = (microseconds(since), microseconds(now))

        def read(after: int) -> list[_Row]:
            return self._rows(
                "SELECT number, stream, body, crc, length(body) FROM entries"
                " WHERE number > ? AND number <= ? AND state = ? AND stream = ?"
                " AND received >= ? AND (valid_until IS NULL OR valid_until > ?)"
                f" AND {HAS_BODY} ORDER BY number LIMIT ?",
                (after, *fixed, *dates, limit),
                size,
            )

        with self._reading():
            sound, damaged = self._sound(read, after, Stage.SNAPSHOT)
        return Page([(number, body) for number, _, body, *_ in sound], damaged)

    def _rows(self, statement: str, parameters: Sequence[object], size: int) -> list[_Row]:
        """
        @param statement: Selects, in the fifth column, the length of each row's document.
        @param size: Bytes of documents after which no more rows are read.
        """
        found: list[_Row] = []
        for row in self._connection.execute(statement, parameters):
            found.append(row)
            size -= row[4]
            if size <= 0:
                break
        return found

    def _sound(
        self, read: Callable[[int], list[_Row]], after: int, stage: Stage
    ) -> tuple[list[_Row], list[SetAside]]:
        """
        Read a page, and verify it. An empty page would mean the end, so a page of which all
        rows are damaged is followed by the next one.

        @param read: Reads the rows after a number.
        @return: The sound rows, and the damaged ones.
        """
        sound: list[_Row] = []
        damaged: list[SetAside] = []
        while not sound and (rows := read(after)):
            after = rows[-1][0]
            try:
                sound = [
                    row for row in rows if crc32(row[2]) == row[3] and len(row[2]) <= _MOST[row[1]]
                ]
            except (TypeError, KeyError):  # a column of a damaged row may have any type
                sound = [row for row in rows if _damage(*row[:4]) is None]
            if len(sound) < len(rows):
                numbers = {row[0] for row in rows} - {row[0] for row in sound}
                damaged += self._damaged(sorted(numbers), stage)
        return sound, damaged

    def _damaged(self, numbers: Collection[int], stage: Stage) -> Iterator[SetAside]:
        """
        Read entries to set aside, except those that were pruned meanwhile.
        """
        for number in numbers:
            for stream, id_, body, crc, type_ in self._connection.execute(
                f"SELECT stream, id, {BODY}, crc, typeof(body) FROM entries WHERE number = ?",
                (number,),
            ):
                reason = _damage(number, stream, body, crc)
                if type_ != "blob" and stream in STREAM_OF_NUMBER:
                    reason = f"damaged: the document is stored as {type_}"
                if reason is not None:
                    yield set_aside_row(number, stream, id_, body, stage, reason)

    def counts(self, now: float) -> dict[str, int]:
        with self._reading():
            indicators, sightings = self._connection.execute(
                "SELECT count(*) FILTER (WHERE stream = ?"
                " AND (valid_until IS NULL OR valid_until > ?)),"
                " count(*) FILTER (WHERE stream = ?)"
                f" FROM entries WHERE state = ? AND {HAS_BODY}",
                (
                    STREAM_NUMBER[Stream.INTEL],
                    microseconds(now),
                    STREAM_NUMBER[Stream.SIGHTING],
                    IN_FORCE,
                ),
            ).fetchone()
        return {"indicators": indicators, "sightings": sightings}

    def set_aside_report(self) -> SetAsideReport:
        with self._reading():
            return report(self._connection)

    def subscriptions(self) -> dict[str, bytes]:
        """
        Read the saved states of subscriptions, by topic.
        """
        with self._reading():
            return dict(self._connection.execute("SELECT topic, request FROM subscriptions"))

    def entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> Page[JournalEntry]:
        wanted = json.dumps([STREAM_NUMBER[stream] for stream in streams])

        def read(after: int) -> list[_Row]:
            return self._rows(
                "SELECT number, stream, body, crc, length(body) FROM entries WHERE number > ?"
                f" AND stream {IN_JSON_LIST} AND {HAS_BODY} ORDER BY number LIMIT ?",
                (after, wanted, limit),
                size,
            )

        with self._reading(), snapshot(self._connection):
            floor = read_number(self._connection, FLOOR)
            sound, damaged = self._sound(read, after, Stage.REPLAY)
        entries = [JournalEntry(row[0], STREAM_OF_NUMBER[row[1]], row[2]) for row in sound]
        return Page(entries, damaged, floor)

    def pruned(self, after: int, until: int) -> int:
        with self._reading():
            (left,) = self._connection.execute(
                "SELECT count(*) FROM entries WHERE number > ? AND number <= ?", (after, until)
            ).fetchone()
        return until - after - int(left)

    def position(self, reader: str) -> Position | None:
        with self._reading():
            found = self._connection.execute(
                "SELECT plugin, number FROM positions WHERE reader = ?", (reader,)
            ).fetchone()
        return None if found is None else Position(*found)


def _damage(number: int, stream: int, body: bytes, crc: int) -> str | None:
    known = STREAM_OF_NUMBER.get(stream)
    return f"damaged: stream {stream!r}" if known is None else damage(known, body, crc)
