"""
Writes the journal's file: SQLite, by blocking calls.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from tbvast.bus.journal.batch import Batch, Unwritable
from tbvast.bus.journal.schema import (
    BODY,
    CHECKED,
    FLOOR,
    HAS_BODY,
    MIGRATIONS,
    OLDEST_VERSION,
    STREAM_OF_NUMBER,
    SUPERSEDED,
    check_document,
    journal_errors,
    read_number,
    readable_text,
    set_aside_row,
)
from tbvast.bus.journal.values import EVERYBODY, PackedOutcome, Pruned, Run
from tbvast.bus.journal.versions import BusDates, Step
from tbvast.errors import JournalFailed
from tbvast.protocol.frames import Item
from tbvast.service.clock import calendar
from tbvast.storage.digest_index import DigestIndex, digest
from tbvast.storage.file_guard import FileGuard
from tbvast.storage.set_aside import SetAside, Stage, id_in, reason_of, store_set_aside
from tbvast.storage.sqlite import IN_JSON_LIST, connect, microseconds, migrate, transaction
from tbvast.values import Position

_CLOCK_STEPS = "clock_steps"
"""
The key of C{meta} for the L{Step}s of the clock.
"""

UPGRADE_ROWS = 10_000
UPGRADE_BYTES = 1 << 24
"""
The most entries of an earlier version, and their bytes, that are checked in one transaction.
"""


class JournalStore:
    """
    Writes the journal's file. Only one thread of one process may use it.
    L{tbvast.interfaces.IJournal} and L{tbvast.interfaces.IRetention} document the other methods.
    Dates are in seconds since the epoch.
    """

    def __init__(self, path: Path, new_identity: str) -> None:
        """
        Open the file, or create it.

        @param new_identity: The identity of a new journal.
        @raise JournalFailed: If it cannot be opened, is damaged, or was written
            by a later tbvast.
        """
        self._path = path
        self._failed: tuple[int, JournalFailed] | None = None
        with journal_errors("open", path):
            self._connection = connect(path)
            self._connection.text_factory = readable_text
            migrate(self._connection, MIGRATIONS, OLDEST_VERSION)
            self._connection.execute(
                "INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (new_identity,)
            )
            meta = dict(self._connection.execute("SELECT key, value FROM meta"))
            self.identity = str(meta["identity"])
            (self.head,) = self._connection.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
            ).fetchone()
            (last,) = self._connection.execute(
                "SELECT coalesce((SELECT received FROM entries ORDER BY number DESC LIMIT 1), 0)"
            ).fetchone()
            steps = msgspec.json.decode(meta.get(_CLOCK_STEPS, "[]"), type=list[Step])
            self._dates = BusDates(steps, last)
            self._index = DigestIndex(self._connection, "latest", self._latest_above)
            self.floor = read_number(self._connection, FLOOR)
            self._check_unchecked()
            self.guard = FileGuard(self._connection, path, "the journal")

    def _check_unchecked(self) -> None:
        """
        Add checksums to the entries of a version without checksums. Entries that could not
        be delivered are set aside.
        """
        moment = microseconds(calendar())
        first = last = read_number(self._connection, CHECKED)
        while rows := self._unchecked(last):
            sound, bad = [], []
            for number, stream, id_, body in rows:
                try:
                    check_document(STREAM_OF_NUMBER[stream], id_, body)
                    sound.append((crc32(body), number))
                except Exception as e:
                    bad.append(
                        set_aside_row(number, stream, id_, body, Stage.UPGRADE, reason_of(e))
                    )
            last = rows[-1][0]
            with transaction(self._connection):
                self._connection.executemany("UPDATE entries SET crc = ? WHERE number = ?", sound)
                self._set_aside(bad, moment)
                self._set_meta(CHECKED, str(last))
        if self.head > first:
            self._set_meta(CHECKED, str(self.head))

    def _unchecked(self, after: int) -> list[tuple[int, int, str, bytes]]:
        """
        Read the next entries without a checksum: number, stream, id and body.
        """
        rows: list[tuple[int, int, str, bytes]] = []
        size = 0
        for row in self._connection.execute(
            f"SELECT number, stream, id, {BODY} FROM entries"
            " WHERE number > ? AND crc IS NULL ORDER BY number LIMIT ?",
            (after, UPGRADE_ROWS),
        ):
            rows.append(row)
            size += len(row[3])
            if size > UPGRADE_BYTES:
                break
        return rows

    def _set_meta(self, key: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def set_aside(self, items: Sequence[SetAside], now: float) -> None:
        with journal_errors("write", self._path), transaction(self._connection):
            self._set_aside(items, microseconds(now))

    def _set_aside(self, items: Sequence[SetAside], moment: int) -> None:
        stored = []
        for item in items:
            number = item.number or self._number_of(item)
            if number:
                done = self._connection.execute(
                    f"UPDATE entries SET body = x'', crc = 0 WHERE number = ? AND {HAS_BODY}",
                    (number,),
                )
                if not done.rowcount:
                    continue  # it was set aside before, or has been pruned
            stored.append(msgspec.structs.replace(item, number=number))
        if stored:
            store_set_aside(self._connection, stored, moment)

    def _number_of(self, item: SetAside) -> int:
        """
        Find the number of the entry with an item's body; C{0} if there is none.
        """
        id_ = item.id or id_in(item.body)
        if item.stage is Stage.INTAKE or item.stage is Stage.APPEND or not id_:
            return 0
        (number,) = self._connection.execute(
            "SELECT coalesce(max(number), 0) FROM entries WHERE body = ?"
            f" AND number {IN_JSON_LIST}",
            (item.body, json.dumps(self._index.find([digest(id_)]))),
        ).fetchone()
        return int(number)

    def _latest_above(self, number: int) -> Iterable[tuple[int, int]]:
        return self._connection.execute(
            "SELECT digest, number FROM entries WHERE number > ? AND state != 0 ORDER BY number",
            (number,),
        )

    def close(self) -> None:
        """
        Close the file. No other method may be called afterwards.
        """
        self._connection.close()

    def append(
        self,
        items: Sequence[Item],
        now: float,
        publishers: Sequence[Run] = (),
        failures: int = 0,
    ) -> list[PackedOutcome]:
        """
        @param failures: The number of failed calls that the caller has seen. Until it has
            seen the last one, nothing more is appended.
        """
        if self._failed is not None and self._failed[0] == failures:
            raise self._failed[1]
        try:
            return self._append(items, now, publishers or ((len(items), EVERYBODY),))
        except JournalFailed as e:
            self._failed = (failures, e)
            raise

    def _append(
        self, items: Sequence[Item], now: float, publishers: Sequence[Run]
    ) -> list[PackedOutcome]:
        bad: dict[int, str] = {}
        while True:
            outcomes: list[PackedOutcome] = []
            try:
                with self._batch(microseconds(now)) as batch:
                    batch.look_up(item.id for item in items)
                    for count, publisher in publishers:
                        batch.publisher = publisher
                        start = len(outcomes)
                        outcomes += batch.add_all(items[start : start + count], bad)
                return outcomes
            except Unwritable as e:
                # Nothing of the batch is in the file. Repeat it without that item.
                place = next(n for n, each in enumerate(outcomes) if each.number == e.number)
                bad[id(items[place])] = e.reason

    @contextlib.contextmanager
    def _batch(self, moment: int) -> Iterator[Batch]:
        with journal_errors("write", self._path):
            if self._dates.has_stepped_back(moment, self.head):
                self._set_meta(_CLOCK_STEPS, msgspec.json.encode(self._dates.steps).decode())
            # One transaction for everything: beginning one is slow.
            with self._index.committing(), transaction(self._connection):
                batch = Batch(self._connection, self._index, self._dates, self.head, moment)
                yield batch
                batch.write()
                if batch.aside:
                    self._set_aside(batch.aside, moment)
            self.head = batch.head

    def expire(self, now: float, limit: int) -> list[PackedOutcome]:
        moment = microseconds(now)
        with self._batch(moment) as batch:
            rows = self._connection.execute(
                f"SELECT number, id, modified, {BODY}, crc FROM entries"
                " WHERE state = 1 AND valid_until <= ? ORDER BY valid_until LIMIT ?",
                (moment, limit),
            ).fetchall()
            return batch.expire(rows)

    def prune(self, since: float, size: int, limit: int) -> Pruned:
        """
        @param since: Older entries are deleted.
        """
        with journal_errors("write", self._path):
            (used,) = self._connection.execute(
                "SELECT (page_count - freelist_count) * page_size"
                " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
            ).fetchone()
            old = self._connection.execute(
                "SELECT number, digest, state FROM entries WHERE (stream != 1 OR state != 1)"
                " AND (received < ? OR ?) ORDER BY number LIMIT ?",
                (microseconds(since), used > size, limit),
            ).fetchall()
            if old:
                floor = max(self.floor, old[-1][0])
                with self._index.committing(), transaction(self._connection):
                    self._connection.executemany(
                        "DELETE FROM entries WHERE number = ?", [(number,) for number, _, _ in old]
                    )
                    self._index.change((), [(d, n) for n, d, state in old if state != SUPERSEDED])
                    self._set_meta(FLOOR, str(floor))
                self.floor = floor
                # As a script: a single statement would free only one page.
                self._connection.executescript("PRAGMA incremental_vacuum")
        return Pruned(len(old), self.floor)

    def check(self) -> None:
        """
        Do nothing: the guard checks the file.
        """

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> None:
        with journal_errors("write", self._path), transaction(self._connection):
            self._connection.executemany(
                "DELETE FROM subscriptions WHERE topic = ?", [(topic,) for topic in changes]
            )
            self._connection.executemany(
                "INSERT INTO subscriptions VALUES (?, ?)",
                [(topic, request) for topic, request in changes.items() if request is not None],
            )

    def set_position(self, reader: str, position: Position) -> None:
        with journal_errors("write", self._path):
            self._connection.execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                (reader, position.plugin, position.number),
            )
