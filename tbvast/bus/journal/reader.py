"""
Reads the journal's file: SQLite, by blocking calls.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

from tbvast.bus.journal.schema import (
    BODY,
    DAMAGE_ADVICE,
    FLOOR,
    HAS_BODY,
    IN_FORCE,
    STREAM_NUMBER,
    STREAM_OF_NUMBER,
    journal_errors,
    read_number,
    readable_text,
    set_aside_row,
)
from tbvast.bus.journal.soundness import MOST_BYTES, damage
from tbvast.bus.journal.values import JournalEntry, Page
from tbvast.errors import FileLost, JournalFailed
from tbvast.protocol.topics import Stream
from tbvast.storage.file_guard import damage_of
from tbvast.storage.set_aside import SetAside, SetAsideReport, Stage, report
from tbvast.storage.sqlite import IN_JSON_LIST, connect, microseconds, snapshot
from tbvast.values import Position


class JournalReader:
    """
    Reads the journal while another process writes it. Called in any thread, one call at a
    time.
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
        """
        @raise FileLost: If the file is damaged.
        """
        try:
            with journal_errors("read", self._path):
                yield
        except JournalFailed as e:
            if (damage := damage_of(e)) is not None:
                advice = DAMAGE_ADVICE.format(path=self._path)
                raise FileLost(f"cannot read the journal {self._path}: {damage}; {advice}") from e
            raise

    def current(
        self, after: int, until: int, since: float, limit: int, now: float
    ) -> Page[tuple[int, bytes]]:
        """
        @see: L{tbvast.interfaces.IJournal.current}

        @param now: Seconds since the epoch.
        """
        good: list[tuple[int, bytes]] = []
        bad: list[SetAside] = []
        with self._reading():
            # An empty page would mean the end.
            while not good and (
                rows := self._connection.execute(
                    "SELECT number, body, crc FROM entries"
                    " WHERE number > ? AND number <= ? AND state = ? AND stream = ?"
                    " AND received >= ? AND (valid_until IS NULL OR valid_until > ?)"
                    f" AND {HAS_BODY} ORDER BY number LIMIT ?",
                    (
                        after,
                        until,
                        IN_FORCE,
                        STREAM_NUMBER[Stream.INTEL],
                        microseconds(since),
                        microseconds(now),
                        limit,
                    ),
                ).fetchall()
            ):
                after = rows[-1][0]
                good, found = _sound(rows)
                bad += self._damaged(found, Stage.SNAPSHOT)
        return Page(good, bad)

    def _damaged(self, numbers: Collection[int], stage: Stage) -> Iterator[SetAside]:
        """
        Read entries to set aside, except those that were pruned meanwhile.
        """
        for number in numbers:
            for stream, id_, body, crc, type_ in self._connection.execute(
                f"SELECT stream, id, {BODY}, crc, typeof(body) FROM entries WHERE number = ?",
                (number,),
            ):
                known = STREAM_OF_NUMBER.get(stream)
                if known is None:
                    reason: str | None = f"damaged: stream {stream!r}"
                elif type_ != "blob":
                    reason = f"damaged: the document is stored as {type_}"
                else:
                    reason = damage(known, body, crc)
                if reason is not None:
                    yield set_aside_row(number, stream, id_, body, stage, reason)

    def counts(self, now: float) -> dict[str, int]:
        """
        @see: L{tbvast.interfaces.IJournal.counts}

        @param now: Seconds since the epoch.
        """
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
        """
        @see: L{tbvast.interfaces.IJournal.set_aside_report}
        """
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
        """
        @see: L{tbvast.interfaces.IReplay.entries}
        """
        wanted = json.dumps([STREAM_NUMBER[stream] for stream in streams])
        good: list[JournalEntry] = []
        bad: list[int] = []
        with self._reading(), snapshot(self._connection):
            floor = read_number(self._connection, FLOOR)
            # An empty page would mean the end.
            while not good and (found := self._read_entries(after, wanted, limit, size)):
                after = found[-1][0]
                for number, stream, body, crc, _ in found:
                    try:
                        known = STREAM_OF_NUMBER[stream]
                        if crc32(body) == crc and len(body) <= MOST_BYTES[known]:
                            good.append(JournalEntry(number, known, body))
                            continue
                    except (TypeError, KeyError):
                        pass  # a column of a damaged row may have any type
                    bad.append(number)
            return Page(good, list(self._damaged(bad, Stage.REPLAY)), floor)

    def _read_entries(
        self, after: int, streams: str, limit: int, size: int
    ) -> list[tuple[int, int, bytes, int, int]]:
        """
        @param streams: Their numbers, as a JSON list.
        """
        found = []
        for row in self._connection.execute(
            "SELECT number, stream, body, crc, length(body) FROM entries WHERE number > ?"
            f" AND stream {IN_JSON_LIST} AND {HAS_BODY}"
            " ORDER BY number LIMIT ?",
            (after, streams, limit),
        ):
            found.append(row)
            size -= row[4]
            if size <= 0:
                break
        return found

    def pruned(self, after: int, until: int) -> int:
        """
        @see: L{tbvast.interfaces.IReplay.pruned}
        """
        with self._reading():
            (left,) = self._connection.execute(
                "SELECT count(*) FROM entries WHERE number > ? AND number <= ?", (after, until)
            ).fetchone()
        return until - after - int(left)

    def position(self, reader: str) -> Position | None:
        """
        @see: L{tbvast.interfaces.IReplay.position}
        """
        with self._reading():
            found = self._connection.execute(
                "SELECT plugin, number FROM positions WHERE reader = ?", (reader,)
            ).fetchone()
        return None if found is None else Position(*found)


def _sound(rows: list[tuple[int, bytes, int]]) -> tuple[list[tuple[int, bytes]], list[int]]:
    """
    @param rows: Number, document and checksum of indicators.
    @return: The sound ones, and the numbers of the others.
    """
    most = MOST_BYTES[Stream.INTEL]
    try:
        good = [
            (number, body) for number, body, crc in rows if crc32(body) == crc and len(body) <= most
        ]
    except TypeError:  # a column of a damaged row may have any type
        good = [
            (number, body) for number, body, crc in rows if damage(Stream.INTEL, body, crc) is None
        ]
    if len(good) == len(rows):
        return good, []
    return good, sorted({row[0] for row in rows} - {number for number, _ in good})
