"""
The journal's file, as it is written: SQLite, by blocking calls.

One table holds every accepted item under its number. A row's C{state} says
whether it is the latest version of its STIX id, and whether that version is in
force. The latest versions are indexed by a digest of the id, which is an eighth
of what the ids themselves would take; a repeat is found by it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tbvast.errors import JournalFailed
from tbvast.intel.indicators import Indicator, Operation, decode_indicator, with_operation
from tbvast.ops.database import connect, insert, migrate, transaction
from tbvast.ops.digests import UNTIL, DigestIndex, digest, digests, index_table, settled
from tbvast.wire.frames import Item
from tbvast.wire.manage import Position
from tbvast.wire.topics import Stream

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    stream INTEGER NOT NULL,
    id TEXT NOT NULL,
    received INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    valid_until INTEGER,
    state INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX latest ON entries (id) WHERE state != 0;
CREATE INDEX expiring ON entries (valid_until) WHERE state = 1 AND valid_until IS NOT NULL;
CREATE INDEX history ON entries (number) WHERE stream != 1 OR state != 1;
CREATE INDEX sightings ON entries (number) WHERE stream = 2;
CREATE TABLE subscriptions (topic TEXT PRIMARY KEY, request BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (
    reader TEXT PRIMARY KEY,
    plugin TEXT NOT NULL,
    number INTEGER NOT NULL
) WITHOUT ROWID;
"""

_BY_DIGEST = """
ALTER TABLE entries ADD COLUMN digest INTEGER;
UPDATE entries SET digest = digest_of(id) WHERE state != 0;
DROP INDEX latest;
CREATE INDEX latest ON entries (digest) WHERE state != 0
"""

_GATHERED = f"""
DROP INDEX latest;
{index_table("latest")};
INSERT INTO latest SELECT digest, number FROM entries WHERE state != 0 ORDER BY digest, number;
{UNTIL};
INSERT INTO indexed SELECT 'latest', coalesce(max(number), 0) FROM entries
"""

_NUMBER, _ID, _MODIFIED, _STATE, _BODY, _DIGEST = 0, 2, 4, 6, 7, 8
"""
Which columns of a row these are.
"""

_NO_END = -(1 << 62)
"""
What stands for a missing C{valid_until} in what is given to SQLite: it is a time that
no calendar has.
"""

_ROW = f"(?, ?, ?, ?, ?, nullif(?, {_NO_END}), ?, ?, ?)"

STREAM_NUMBER = {Stream.INTEL: 1, Stream.SIGHTING: 2}
"""
What a row's C{stream} says.
"""

_INTEL = STREAM_NUMBER[Stream.INTEL]
_SIGHTING = STREAM_NUMBER[Stream.SIGHTING]

MICROSECONDS = 1_000_000

SUPERSEDED, IN_FORCE, ENDED = range(3)
"""
What a row's C{state} says. Plain numbers, as L{bytearray} for the body, and L{_NO_END}:
the module C{sqlite3} takes many times as long for anything else, for it first asks
whether somebody wants to adapt it.
"""


class Verdict(enum.StrEnum):
    """
    What the journal made of an item.
    """

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    OUTDATED = "outdated"
    UNKNOWN = "unknown"
    EXPIRED = "expired"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """
    @ivar number: The item's number if it was accepted, or expired; else C{0}.
    @ivar item: The item as it is to be forwarded: a removal that came without
        its pattern has got it from the version that was in force.
    """

    verdict: Verdict
    number: int
    item: Item


_Row = list[Any]
"""
A row of C{entries}. Of one that is in the file, not in the batch that is being written,
the body is L{None}, and what a batch does not need.
"""


@contextlib.contextmanager
def translated(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as e:
        raise JournalFailed(f"cannot {doing} the journal {path}: {e}") from e


def read_floor(connection: sqlite3.Connection) -> int:
    """
    @return: The number up to which entries may have been let go of.
    """
    (floor,) = connection.execute(
        "SELECT coalesce(max(CAST(value AS INTEGER)), 0) FROM meta WHERE key = 'floor'"
    ).fetchone()
    return int(floor)


class JournalStore:
    """
    The journal's file, for who writes to it: one process, and one thread.
    """

    def __init__(self, path: Path, new_identity: str) -> None:
        """
        Open the file, or make it.

        @param new_identity: What a new journal is called.
        @raise JournalFailed: If it cannot be opened, is damaged, or was written
            by a later tbvast.
        """
        self._path = path
        with translated("open", path):
            self._connection = connect(path)
            self._connection.create_function("digest_of", 1, digest, deterministic=True)
            migrate(self._connection, [_SCHEMA, _BY_DIGEST, _GATHERED])
            self.identity = self._identify(new_identity)
            (self.head,) = self._connection.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
            ).fetchone()
            self._index = DigestIndex(self._connection, "latest", self._latest_above)
            self.floor = read_floor(self._connection)

    def _latest_above(self, number: int) -> Iterable[tuple[int, int]]:
        return self._connection.execute(
            "SELECT digest, number FROM entries WHERE number > ? AND state != 0 ORDER BY number",
            (number,),
        )

    def _identify(self, new_identity: str) -> str:
        self._connection.execute(
            "INSERT OR IGNORE INTO meta VALUES ('identity', ?)", (new_identity,)
        )
        (identity,) = self._connection.execute(
            "SELECT value FROM meta WHERE key = 'identity'"
        ).fetchone()
        return str(identity)

    def close(self) -> None:
        """
        Close the file; nothing can be asked any more.
        """
        self._connection.close()

    def append(self, items: Sequence[Item], now: float) -> list[Outcome]:
        """
        @see: L{tbvast.interfaces.IJournal.append}

        @param now: Seconds since the epoch.
        """
        with self._batch(int(now * MICROSECONDS)) as batch:
            batch.look_up(item.id for item in items)
            return [batch.add(item) for item in items]

    @contextlib.contextmanager
    def _batch(self, moment: int) -> Iterator[_Batch]:
        """
        A batch that is committed in the end.
        """
        with translated("write", self._path):
            # All in one transaction, for SQLite takes a while to begin one.
            with settled(self._index), transaction(self._connection):
                batch = _Batch(self._connection, self._index, self.head, moment)
                yield batch
                batch.write()
            self.head = batch.head

    def expire(self, now: float, limit: int) -> list[Outcome]:
        """
        @see: L{tbvast.interfaces.IKeeper.expire}

        @param now: Seconds since the epoch.
        """
        moment = int(now * MICROSECONDS)
        with self._batch(moment) as batch:
            bodies = self._connection.execute(
                "SELECT body FROM entries WHERE state = 1 AND valid_until <= ?"
                " ORDER BY valid_until LIMIT ?",
                (moment, limit),
            ).fetchall()
            ended = [decode_indicator(with_operation(body, Operation.REMOVE)) for (body,) in bodies]
            batch.look_up(item.id for item in ended)
            return [batch.expire(item) for item in ended]

    def forget(self, since: float, size: int, limit: int) -> int:
        """
        @see: L{tbvast.interfaces.IKeeper.forget}
        """
        with translated("write", self._path):
            (used,) = self._connection.execute(
                "SELECT (page_count - freelist_count) * page_size"
                " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
            ).fetchone()
            old = self._connection.execute(
                "SELECT number, digest, state FROM entries WHERE (stream != 1 OR state != 1)"
                " AND (received < ? OR ?) ORDER BY number LIMIT ?",
                (int(since * MICROSECONDS), used > size, limit),
            ).fetchall()
            if old:
                floor = max(self.floor, old[-1][0])
                with settled(self._index), transaction(self._connection):
                    self._connection.executemany(
                        "DELETE FROM entries WHERE number = ?", [(number,) for number, _, _ in old]
                    )
                    self._index.change((), [(d, n) for n, d, state in old if state != SUPERSEDED])
                    self._connection.execute(
                        "INSERT OR REPLACE INTO meta VALUES ('floor', ?)", (str(floor),)
                    )
                self.floor = floor
                # As a script: otherwise it is one step, which frees one page.
                self._connection.executescript("PRAGMA incremental_vacuum")
        return len(old)

    def find(self, ids: Iterable[str]) -> dict[str, bytes]:
        """
        @see: L{tbvast.interfaces.IJournal.find}
        """
        wanted = list(ids)
        with translated("read", self._path):
            numbers = self._index.find(digests(wanted))
            return dict(
                self._connection.execute(
                    "SELECT id, body FROM entries"
                    " WHERE number IN (SELECT value FROM json_each(?))"
                    " AND state = ? AND stream = ? AND id IN (SELECT value FROM json_each(?))",
                    (json.dumps(numbers), IN_FORCE, _INTEL, json.dumps(wanted)),
                )
            )

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> None:
        """
        @see: L{tbvast.interfaces.ISubscriptionStore.save_subscriptions}
        """
        with translated("write", self._path), transaction(self._connection):
            self._connection.executemany(
                "DELETE FROM subscriptions WHERE topic = ?", [(topic,) for topic in changes]
            )
            self._connection.executemany(
                "INSERT INTO subscriptions VALUES (?, ?)",
                [(topic, request) for topic, request in changes.items() if request is not None],
            )

    def set_position(self, reader: str, position: Position) -> None:
        """
        @see: L{tbvast.interfaces.IReplay.set_position}
        """
        with translated("write", self._path):
            self._connection.execute(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                (reader, position.plugin, position.number),
            )


class _Batch:
    """
    Items on their way into the file, within a transaction.

    @ivar head: The highest number given so far.
    """

    def __init__(
        self, connection: sqlite3.Connection, index: DigestIndex, head: int, now: int
    ) -> None:
        self.head = head
        self._connection = connection
        self._index = index
        self._now = now
        self._latest: dict[str, _Row] = {}
        self._digests: dict[str, int] = {}
        self._rows: list[_Row] = []
        self._superseded: list[tuple[int, int]] = []

    def look_up(self, ids: Iterable[str]) -> None:
        """
        Find the latest versions of all that will be added.
        """
        wanted = list(ids)
        found = digests(wanted)
        self._digests = dict(zip(wanted, found, strict=True))
        numbers = self._index.find(found)
        if not numbers:
            return
        (latest,) = self._connection.execute(
            "SELECT json_group_object(id, json_array("
            "number, NULL, id, NULL, modified, NULL, state, NULL, NULL)) FROM entries"
            " WHERE state != 0 AND number IN (SELECT value FROM json_each(?))",
            (json.dumps(numbers),),
        ).fetchone()
        self._latest = json.loads(latest)

    def add(self, item: Item) -> Outcome:
        """
        @param item: One that was looked up.
        """
        latest = self._latest.get(item.id)
        if isinstance(item, Indicator):
            return self._add_indicator(item, latest)
        if latest is not None:
            return Outcome(Verdict.REPEATED, 0, item)
        return self._keep(item, _SIGHTING, 0, None, IN_FORCE)

    def expire(self, item: Indicator) -> Outcome:
        """
        @param item: The removal of an indicator that is in force, and was looked up.
        """
        latest = self._latest[item.id]
        self._supersede(latest)
        outcome = self._keep(item, _INTEL, latest[_MODIFIED], item.valid_until, ENDED)
        return msgspec.structs.replace(outcome, verdict=Verdict.EXPIRED)

    def write(self) -> None:
        """
        Write what has changed; nothing is added any more.
        """
        if self._superseded:
            self._connection.execute(
                "UPDATE entries SET state = ? WHERE number IN (SELECT value FROM json_each(?))",
                (SUPERSEDED, json.dumps([number for _, number in self._superseded])),
            )
        insert(self._connection, "entries", self._rows, row=_ROW)
        latest = [(row[_DIGEST], row[_NUMBER]) for row in self._rows if row[_STATE] != SUPERSEDED]
        self._index.change(latest, self._superseded)

    def _add_indicator(self, item: Indicator, latest: _Row | None) -> Outcome:
        removal = item.operation is _REMOVE
        version = item.modified
        if latest is None:
            if item.pattern is None:
                return Outcome(Verdict.UNKNOWN, 0, item)
        elif not self._supersedes(item, latest, removal):
            ended = latest[_STATE] == ENDED
            if removal:
                older = 0 < version < latest[_MODIFIED] and not ended
            else:
                older = version < latest[_MODIFIED] or ended
            return Outcome(Verdict.OUTDATED if older else Verdict.REPEATED, 0, item)
        else:
            if item.pattern is None:
                item = _completed(item, self._body(latest))
            self._supersede(latest)
            version = max(version, latest[_MODIFIED])
        if removal:
            item = msgspec.structs.replace(item, modified=version)
        state = ENDED if removal else IN_FORCE
        return self._keep(item, _INTEL, version, item.valid_until, state)

    def _supersedes(self, item: Indicator, latest: _Row, removal: bool) -> bool:
        if removal:
            return bool(latest[_STATE] == IN_FORCE) and (
                item.modified >= latest[_MODIFIED] or item.modified == 0
            )
        if item.modified != latest[_MODIFIED]:
            return bool(item.modified > latest[_MODIFIED])
        return (
            latest[_STATE] == IN_FORCE
            and (item.operation is Operation.EDIT or item.modified == 0)
            and item.raw != self._body(latest)
        )

    def _body(self, latest: _Row) -> bytes:
        if latest[_BODY] is not None:
            return bytes(latest[_BODY])
        (body,) = self._connection.execute(
            "SELECT body FROM entries WHERE number = ?", (latest[_NUMBER],)
        ).fetchone()
        return bytes(body)

    def _supersede(self, latest: _Row) -> None:
        if latest[_BODY] is None:
            self._superseded.append((self._digests[latest[_ID]], latest[_NUMBER]))
        else:
            latest[_STATE] = SUPERSEDED

    def _keep(
        self, item: Item, stream: int, modified: int, valid_until: int | None, state: int
    ) -> Outcome:
        id_ = item.id
        self.head += 1
        row = [
            self.head, stream, id_, self._now, modified,
            _NO_END if valid_until is None else valid_until,
            state, bytearray(item.raw), self._digests[id_],
        ]  # fmt: skip
        self._rows.append(row)
        self._latest[id_] = row
        return Outcome(_ACCEPTED, self.head, item)


_REMOVE = Operation.REMOVE
_ACCEPTED = Verdict.ACCEPTED
# Names of the module are found quicker than those of an enumeration.


def _completed(removal: Indicator, body: bytes) -> Indicator:
    """
    A removal that came without a pattern, with all that it removes.
    """
    whole = decode_indicator(with_operation(body, Operation.REMOVE))
    return msgspec.structs.replace(whole, modified=removal.modified)
