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
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tbvast.bus.ownership import EVERYBODY, NOBODY, Publisher, Run
from tbvast.bus.versions import BusDates, Step, read_decided, shown_date, write_decided
from tbvast.errors import JournalFailed
from tbvast.intel.indicators import (
    Indicator,
    Operation,
    decode_indicator,
    with_operation,
    with_version,
)
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

_OWNED = """
ALTER TABLE entries ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE entries ADD COLUMN decided TEXT NOT NULL DEFAULT ''
"""
"""
Whose each indicator is; and the versions that were decided on before, which a later row
of the same id carries on. Rows of before have neither.
"""

_CLOCK_STEPS = "clock_steps"
"""
The key of C{meta} under which the L{Step}s of the clock are kept.
"""

_NUMBER, _ID, _RECEIVED, _MODIFIED, _UNTIL, _STATE, _BODY, _DIGEST, _OWNER, _DECIDED = (
    0, 2, 3, 4, 5, 6, 7, 8, 9, 10,
)  # fmt: skip
"""
Which columns of a row these are.
"""

_NO_END = -(1 << 62)
"""
What stands for a missing C{valid_until} in what is given to SQLite: it is a time that
no calendar has.
"""

_ROW = f"(?, ?, ?, ?, ?, nullif(?, {_NO_END}), ?, ?, ?, ?, ?)"

STREAM_NUMBER = {Stream.INTEL: 1, Stream.SIGHTING: 2}
"""
What a row's C{stream} says.
"""

_INTEL = STREAM_NUMBER[Stream.INTEL]
_SIGHTING = STREAM_NUMBER[Stream.SIGHTING]

MICROSECONDS = 1_000_000

SUPERSEDED, IN_FORCE, ENDED, LAPSED = range(4)
"""
What a row's C{state} says: L{ENDED} is what somebody removed, L{LAPSED} what was no longer
valid by the bus's own date. Plain numbers, as L{bytearray} for the body, and L{_NO_END}:
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
    REFUSED = "refused"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """
    @ivar number: The item's number if it was accepted, or expired; else C{0}.
    @ivar item: The item as it is to be forwarded: a removal that came without
        its pattern has got it from the version that was in force.
    @ivar reason: Why it was refused, or is outdated; else empty.
    """

    verdict: Verdict
    number: int
    item: Item
    reason: str = ""


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
            migrate(self._connection, [_SCHEMA, _BY_DIGEST, _GATHERED, _OWNED])
            self.identity = self._identify(new_identity)
            (self.head,) = self._connection.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
            ).fetchone()
            self._index = DigestIndex(self._connection, "latest", self._latest_above)
            self.floor = read_floor(self._connection)
            self._dates = self._read_dates()

    def _read_dates(self) -> BusDates:
        steps = self._connection.execute(
            "SELECT value FROM meta WHERE key = ?", (_CLOCK_STEPS,)
        ).fetchone()
        last = self._connection.execute(
            "SELECT received FROM entries ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return BusDates(
            msgspec.json.decode(steps[0], type=list[Step]) if steps else [],
            last[0] if last else 0,
        )

    def _look_at_clock(self, now: int) -> None:
        if self._dates.has_stepped_back(now, self.head):
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                (_CLOCK_STEPS, msgspec.json.encode(self._dates.steps).decode()),
            )

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

    def append(
        self, items: Sequence[Item], now: float, publishers: Sequence[Run] = ()
    ) -> list[Outcome]:
        """
        @see: L{tbvast.interfaces.IJournal.append}

        @param now: Seconds since the epoch.
        """
        with self._batch(int(now * MICROSECONDS)) as batch:
            batch.look_up(item.id for item in items)
            rest = iter(items)
            outcomes: list[Outcome] = []
            for count, publisher in publishers or ((len(items), EVERYBODY),):
                batch.publisher = publisher
                outcomes += [batch.add(item) for item in itertools.islice(rest, count)]
            return outcomes

    @contextlib.contextmanager
    def _batch(self, moment: int) -> Iterator[_Batch]:
        """
        A batch that is committed in the end.
        """
        with translated("write", self._path):
            self._look_at_clock(moment)
            # All in one transaction, for SQLite takes a while to begin one.
            with settled(self._index), transaction(self._connection):
                batch = _Batch(self._connection, self._index, self._dates, self.head, moment)
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
    @ivar publisher: Who gives what is added.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        index: DigestIndex,
        dates: BusDates,
        head: int,
        now: int,
    ) -> None:
        self.head = head
        self.publisher: Publisher = EVERYBODY
        self._dates = dates
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
            "number, NULL, id, received, modified, valid_until, state, NULL, NULL, owner, decided"
            ")) FROM entries"
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
        return self._keep(item, _SIGHTING, 0, None, IN_FORCE, NOBODY, "")

    def expire(self, item: Indicator) -> Outcome:
        """
        @param item: The removal of an indicator that is in force, and was looked up.
        """
        latest = self._latest[item.id]
        self._supersede(latest)
        outcome = self._keep(
            item, _INTEL, latest[_MODIFIED], item.valid_until, LAPSED,
            latest[_OWNER], latest[_DECIDED],
        )  # fmt: skip
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
        publisher = self.publisher
        if latest is None:
            if item.operation is _REMOVE:
                return self._remove_unknown(item)
            return self._keep(
                item, _INTEL, item.modified, item.valid_until, IN_FORCE, publisher.name, ""
            )
        removal = item.operation is _REMOVE
        verdict, reason = (self._judge_removal if removal else self._judge)(item, latest)
        if verdict is not _ACCEPTED:
            return Outcome(verdict, 0, item, reason)
        owner: str = latest[_OWNER]
        if not publisher.may_change(owner):
            return Outcome(Verdict.REFUSED, 0, item, _owned_by(owner))
        decided = read_decided(latest[_DECIDED])
        version = before = latest[_MODIFIED]
        if removal:
            item = self._completed(item, latest)
            decided += (before, -item.modified)
            version = max(version, item.modified)
        elif item.modified != version:
            decided.append(before)
            version = item.modified
        self._supersede(latest)
        return self._keep(
            item, _INTEL, version, item.valid_until, ENDED if removal else IN_FORCE,
            owner if removal else owner or publisher.name,
            write_decided(decided, min(version, self._now)),
        )  # fmt: skip

    def _remove_unknown(self, item: Indicator) -> Outcome:
        """
        Where clients own indicators, nobody removes one that is still to come.
        """
        if item.pattern is None or self.publisher.name != NOBODY:
            return Outcome(Verdict.UNKNOWN, 0, item)
        return self._keep(
            item, _INTEL, item.modified, item.valid_until, ENDED, NOBODY,
            write_decided([-item.modified] if item.modified else [], self._now),
        )  # fmt: skip

    def _judge_removal(self, item: Indicator, latest: _Row) -> tuple[Verdict, str]:
        """
        A removal ends whatever is in force, unless it is one that did so before; and what
        is only no longer valid, so that it stays so.
        """
        if latest[_STATE] == ENDED:
            return Verdict.REPEATED, ""
        if item.modified and -item.modified in read_decided(latest[_DECIDED]):
            return Verdict.OUTDATED, _published_since(latest[_MODIFIED])
        return _ACCEPTED, ""

    def _judge(self, item: Indicator, latest: _Row) -> tuple[Verdict, str]:
        """
        Whether an indicator takes the place of the version that is known.
        """
        now, version = self._now, item.modified
        in_force = latest[_STATE] == IN_FORCE
        if version == latest[_MODIFIED]:
            if in_force:
                changes = item.operation is Operation.EDIT or not version
                if changes and item.raw != self._body(latest):
                    return _ACCEPTED, ""
                return Verdict.REPEATED, ""
            end = item.valid_until
            if latest[_STATE] == LAPSED and (end is None or end > now):
                return _ACCEPTED, ""  # the bus's clock was ahead, or the end was put off
        date = self._dates.date_of(latest[_MODIFIED], latest[_RECEIVED], latest[_NUMBER], now)
        lapsed_before = latest[_STATE] == LAPSED and version == latest[_MODIFIED]
        later = (version > date or version > now) and not lapsed_before
        if later and version not in read_decided(latest[_DECIDED]):
            return _ACCEPTED, ""
        return Verdict.OUTDATED, _newer_known(latest[_STATE], latest[_RECEIVED], date, later)

    def _completed(self, removal: Indicator, latest: _Row) -> Indicator:
        """
        A removal with all that it removes, and with a date.
        """
        if removal.pattern is not None and removal.modified:
            return removal
        raw = removal.raw
        if removal.pattern is None:
            raw = with_operation(self._body(latest), Operation.REMOVE)
        version = removal.modified or self._now
        whole = decode_indicator(with_version(raw, version))
        return msgspec.structs.replace(whole, modified=version)

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
        self,
        item: Item,
        stream: int,
        modified: int,
        valid_until: int | None,
        state: int,
        owner: str,
        decided: str,
    ) -> Outcome:
        id_ = item.id
        self.head += 1
        row = [
            self.head, stream, id_, self._now, modified,
            _NO_END if valid_until is None else valid_until,
            state, bytearray(item.raw), self._digests[id_], owner, decided,
        ]  # fmt: skip
        self._rows.append(row)
        self._latest[id_] = row
        return Outcome(_ACCEPTED, self.head, item)


_REMOVE = Operation.REMOVE
_ACCEPTED = Verdict.ACCEPTED
# Names of the module are found quicker than those of an enumeration.


def _owned_by(owner: str) -> str:
    return f"it belongs to {owner}: to change it takes the permission manage-intel"


def _published_since(version: int) -> str:
    return f"this removal was made before, and the version of {shown_date(version)} came since"


def _newer_known(state: int, received: int, date: int, known: bool) -> str:
    """
    Why a version does not count.

    @param received: When that was received which does.
    @param date: As of when that counts.
    @param known: Whether the version was there before.
    """
    before = "this version was there before; " if known else ""
    needed = f"only one that was modified after {shown_date(date)}"
    if state == IN_FORCE:
        return f"{before}a later version is in force, and {needed} replaces it"
    how = "removed" if state == ENDED else "no longer valid"
    return f"{before}it is {how} since {shown_date(received)}, and {needed} brings it back"
