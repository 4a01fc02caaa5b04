"""
Batches of items that are written to the journal: the decision about each, and its row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import attrs
import msgspec

from tbvast.bus.journal.schema import (
    BODY,
    ENDED,
    HAS_BODY,
    IN_FORCE,
    LAPSED,
    STREAM_NUMBER,
    SUPERSEDED,
    damage,
    set_aside_row,
)
from tbvast.bus.journal.values import EVERYBODY, NOBODY, PackedOutcome, Publisher, Verdict
from tbvast.bus.journal.versions import BusDates, read_decided, shown_date, write_decided
from tbvast.errors import Invalid
from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.stix.admission import bare_removal
from tbvast.stix.indicators import (
    Indicator,
    Operation,
    decode_indicator,
    with_operation,
    with_version,
)
from tbvast.storage.digest_index import DigestIndex, digests
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.storage.sqlite import IN_JSON_LIST, insert

(
    _NUMBER, _STREAM, _ID, _RECEIVED, _MODIFIED, _UNTIL, _STATE, _BODY, _DIGEST, _OWNER, _DECIDED,
    _CRC,
) = range(12)  # fmt: skip
"""
The positions of the columns in a row.
"""

_NO_END = -(1 << 62)
"""
The value for a missing C{valid_until} in the parameters for SQLite: a time outside every
calendar. C{None} would be slower.
"""

_ROW = f"(?, ?, ?, ?, ?, nullif(?, {_NO_END}), ?, ?, ?, ?, ?, ?)"

_INTEL = STREAM_NUMBER[Stream.INTEL]
_SIGHTING = STREAM_NUMBER[Stream.SIGHTING]

_Row = list[Any]
"""
A row of C{entries}. If it is in the file, not in the current batch, the body and the columns
that a batch does not need are C{None}.
"""


@attrs.define(eq=False)
class Batch:
    """
    A batch of items within one transaction.

    @param connection: The connection, in a transaction.
    @param index: Finds the latest versions by the digests of their ids.
    @param dates: The dates of earlier versions.
    @param now: The date of receipt, in microseconds since the epoch.
    @ivar head: The highest number given so far.
    @ivar publisher: The publisher of the items that are added next.
    @ivar aside: The items that could not be handled.
    """

    _connection: sqlite3.Connection
    _index: DigestIndex
    _dates: BusDates
    head: int
    _now: int
    publisher: Publisher = attrs.field(init=False, default=EVERYBODY)
    aside: list[SetAside] = attrs.field(init=False, factory=list)
    _latest: dict[str, _Row] = attrs.field(init=False, factory=dict)
    _digests: dict[str, int] = attrs.field(init=False, factory=dict)
    _rows: list[_Row] = attrs.field(init=False, factory=list)
    _superseded: list[tuple[int, int]] = attrs.field(init=False, factory=list)

    def look_up(self, ids: Iterable[str]) -> None:
        """
        Find the latest versions of all items that will be added.
        """
        wanted = list(ids)
        found = digests(wanted)
        self._digests = dict(zip(wanted, found, strict=True))
        numbers = self._index.find(found)
        if not numbers:
            return
        (latest,) = self._connection.execute(
            # An item that was set aside can be published again with the same version, and so
            # can a sighting, which has no versions.
            "SELECT json_group_object(id, json_array("
            f"number, NULL, id, received, modified - (NOT {HAS_BODY}), valid_until, state, NULL,"
            " NULL, owner, decided)) FROM entries"
            f" WHERE state != 0 AND number {IN_JSON_LIST}"
            f" AND (stream != 2 OR {HAS_BODY})",
            (json.dumps(numbers),),
        ).fetchone()
        self._latest = json.loads(latest)

    def add_all(self, items: Sequence[Item], bad: Mapping[int, str]) -> list[PackedOutcome]:
        """
        Add items that were looked up. One that cannot be added is set aside.

        @param bad: The reasons why some objects among them cannot be added, by C{id}.
        """
        outcomes: list[PackedOutcome] = []
        left = iter(items)
        while len(outcomes) < len(items):
            try:
                # If one fails, the outcomes of those before it stay.
                outcomes.extend(map(partial(self._add_unless, bad) if bad else self.add, left))
            except sqlite3.Error:
                raise
            except Exception as e:
                outcomes.append(self._refuse(items[len(outcomes)], reason_of(e)))
        return outcomes

    def _add_unless(self, bad: Mapping[int, str], item: Item) -> PackedOutcome:
        reason = bad.get(id(item))
        return self.add(item) if reason is None else self._refuse(item, reason)

    def _refuse(self, item: Item, reason: str) -> PackedOutcome:
        stream = _INTEL if isinstance(item, Indicator) else _SIGHTING
        self.aside.append(set_aside_row(0, stream, item.id, item.raw, Stage.APPEND, reason))
        return PackedOutcome(Verdict.REFUSED)

    def add(self, item: Item) -> PackedOutcome:
        """
        Add an item that was looked up.
        """
        latest = self._latest.get(item.id)
        if isinstance(item, Indicator):
            return self._add_indicator(item, latest)
        if latest is not None:
            return PackedOutcome(Verdict.REPEATED)
        return self._store(item, 0, IN_FORCE, NOBODY)

    def expire(self, rows: Iterable[tuple[int, str, int, bytes, int]]) -> list[PackedOutcome]:
        """
        Add the removals of expired indicators. Unreadable ones are set aside, and the subscribers
        that got them still get a removal. Only an entry without a readable id ends without one.

        @param rows: Number, id, version, document and checksum of each.
        """
        removals = []
        for number, id_, modified, body, crc in rows:
            try:
                removal = _withdrawn(id_, body, crc)
            except Exception as e:
                self._set_aside(number, id_, body, Stage.EXPIRY, e)
                try:
                    removal = bare_removal(id_, modified, body if crc32(body) == crc else b"")
                except Invalid:
                    self._end_silently(number)
                    continue
            removals.append((number, removal))
        self.look_up(removal.id for _, removal in removals)
        return [outcome for each in removals if (outcome := self._expire(*each)) is not None]

    def _expire(self, number: int, removal: Indicator) -> PackedOutcome | None:
        latest = self._latest.get(removal.id)
        if latest is None or latest[_NUMBER] != number:
            # In a damaged file, an entry in force may not be the latest version of its id.
            self._end_silently(number)
            return None
        self._supersede(latest)
        version = max(latest[_MODIFIED], removal.modified)
        self._store(removal, version, LAPSED, latest[_OWNER], latest[_DECIDED])
        return PackedOutcome(Verdict.EXPIRED, self.head, removal)

    def _end_silently(self, number: int) -> None:
        self._connection.execute(
            "UPDATE entries SET state = ? WHERE number = ?", (SUPERSEDED, number)
        )

    def write(self) -> None:
        """
        Write the changes. Nothing may be added afterwards.

        @raise Unwritable: If an item cannot be written, even to a healthy disk.
        """
        if self._superseded:
            self._connection.execute(
                f"UPDATE entries SET state = ? WHERE number {IN_JSON_LIST}",
                (SUPERSEDED, json.dumps([number for _, number in self._superseded])),
            )
        try:
            insert(self._connection, "entries", self._rows, row=_ROW)
        except (OverflowError, UnicodeError, *_NOT_BOUND):
            self._find_unwritable()
            raise
        latest = [(row[_DIGEST], row[_NUMBER]) for row in self._rows if row[_STATE] != SUPERSEDED]
        self._index.change(latest, self._superseded)

    def _find_unwritable(self) -> None:
        values = f"SELECT {', '.join('?' * len(self._rows[0]))}"
        for row in self._rows:
            try:
                self._connection.execute(values, row)
            except (OverflowError, UnicodeError, *_NOT_BOUND) as e:
                raise Unwritable(row[_NUMBER], reason_of(e)) from e

    def _add_indicator(self, item: Indicator, latest: _Row | None) -> PackedOutcome:
        publisher = self.publisher
        if latest is None:
            if item.operation is _REMOVE:
                return self._remove_unknown(item)
            return self._store(item, item.modified, IN_FORCE, publisher.name)
        removal = item.operation is _REMOVE
        verdict, reason = (self._judge_removal if removal else self._judge)(item, latest)
        if verdict is not _ACCEPTED:
            return PackedOutcome(verdict, reason=reason)
        owner: str = latest[_OWNER]
        if not publisher.may_change(owner):
            reason = f"it belongs to {owner}: to change it takes the permission manage-intel"
            return PackedOutcome(Verdict.REFUSED, reason=reason)
        decided = read_decided(latest[_DECIDED])
        version = before = latest[_MODIFIED]
        given = item
        if removal:
            item = self._completed(item, latest)
            decided += (before, -item.modified)
            version = max(version, item.modified)
        elif item.modified != version:
            if latest[_STATE] != ENDED:  # else it is the version of a removal
                decided.append(before)
            version = item.modified
        self._supersede(latest)
        state = ENDED if removal else IN_FORCE
        owner = owner if removal else owner or publisher.name
        decided_text = write_decided(decided, min(version, self._now))
        outcome = self._store(item, version, state, owner, decided_text)
        return outcome if item is given else PackedOutcome(_ACCEPTED, self.head, item)

    def _remove_unknown(self, item: Indicator) -> PackedOutcome:
        """
        Remove an indicator before it arrives. If clients own indicators, none may do that.
        """
        if item.pattern is None or self.publisher.name != NOBODY:
            return PackedOutcome(Verdict.UNKNOWN)
        decided = write_decided([-item.modified] if item.modified else [], self._now)
        return self._store(item, item.modified, ENDED, NOBODY, decided)

    def _judge_removal(self, item: Indicator, latest: _Row) -> tuple[Verdict, str]:
        """
        Decide about a removal. It ends every version in force, unless it repeats an earlier
        removal; an expired version stays ended by it.
        """
        if latest[_STATE] == ENDED:
            return Verdict.REPEATED, ""
        if item.modified and -item.modified in read_decided(latest[_DECIDED]):
            since = shown_date(latest[_MODIFIED])
            reason = f"this removal was made before, and the version of {since} came since"
            return Verdict.OUTDATED, reason
        return _ACCEPTED, ""

    def _judge(self, item: Indicator, latest: _Row) -> tuple[Verdict, str]:
        now, version = self._now, item.modified
        in_force = latest[_STATE] == IN_FORCE
        if version == latest[_MODIFIED]:
            if in_force:
                changes = item.operation is Operation.EDIT or not version
                if changes and item.raw != self._document(latest)[0]:
                    return _ACCEPTED, ""
                return Verdict.REPEATED, ""
            end = item.valid_until
            if latest[_STATE] == LAPSED and (end is None or end > now):
                return _ACCEPTED, ""  # the bus's clock was ahead, or valid_until was extended
        date = self._dates.date_of(latest[_MODIFIED], latest[_RECEIVED], latest[_NUMBER], now)
        lapsed_before = latest[_STATE] == LAPSED and version == latest[_MODIFIED]
        later = (version > date or version > now) and not lapsed_before
        if later and version not in read_decided(latest[_DECIDED]):
            return _ACCEPTED, ""
        return Verdict.OUTDATED, _newer_known(latest[_STATE], latest[_RECEIVED], date, later)

    def _completed(self, removal: Indicator, latest: _Row) -> Indicator:
        """
        Complete a removal with the removed document and a date.
        """
        version = removal.modified or self._now
        if removal.pattern is not None:
            if removal.modified:
                return removal
            return _dated(removal.raw, version)
        id_ = removal.id
        body, crc = self._document(latest)
        try:
            return _dated(_withdrawn(id_, body, crc).raw, version)
        except Exception as e:
            self._set_aside(latest[_NUMBER], id_, body, Stage.REMOVAL, e)
            sound = body if crc32(body) == crc else b""
            bare = bare_removal(id_, max(version, latest[_MODIFIED]), sound)
            return msgspec.structs.replace(bare, modified=version)

    def _set_aside(self, number: int, id: str, body: bytes, stage: Stage, error: Exception) -> None:
        if body:  # otherwise it was set aside before
            self.aside.append(set_aside_row(number, _INTEL, id, body, stage, reason_of(error)))

    def _document(self, latest: _Row) -> tuple[bytes, int]:
        if latest[_BODY] is not None:
            return bytes(latest[_BODY]), latest[_CRC]
        found: tuple[bytes, int] = self._connection.execute(
            f"SELECT {BODY}, crc FROM entries WHERE number = ?", (latest[_NUMBER],)
        ).fetchone()
        return found

    def _supersede(self, latest: _Row) -> None:
        if latest[_BODY] is None:
            self._superseded.append((self._digests[latest[_ID]], latest[_NUMBER]))
        else:
            latest[_STATE] = SUPERSEDED

    def _store(
        self, item: Item, modified: int, state: int, owner: str, decided: str = ""
    ) -> PackedOutcome:
        id_ = item.id
        stream, valid_until = _SIGHTING, None
        if isinstance(item, Indicator):
            stream, valid_until = _INTEL, item.valid_until
        self.head += 1
        row = [
            self.head, stream, id_, self._now, modified,
            _NO_END if valid_until is None else valid_until,
            state, bytearray(item.raw), self._digests[id_], owner, decided, crc32(item.raw),
        ]  # fmt: skip
        self._rows.append(row)
        self._latest[id_] = row
        return PackedOutcome(_ACCEPTED, self.head)


_REMOVE = Operation.REMOVE
_ACCEPTED = Verdict.ACCEPTED
# Module-level names are faster to look up than members of an enumeration.


def _newer_known(state: int, received: int, date: int, known: bool) -> str:
    """
    The reason why a version is outdated.

    @param state: The state of the latest version.
    @param received: The receipt of the latest version.
    @param date: The effective date of the latest version.
    @param known: Whether the journal had the outdated version before.
    """
    before = "this version was there before; " if known else ""
    needed = f"only one that was modified after {shown_date(date)}"
    if state == IN_FORCE:
        return f"{before}a later version is in force, and {needed} replaces it"
    how = "removed" if state == ENDED else "no longer valid"
    return f"{before}it is {how} since {shown_date(received)}, and {needed} brings it back"


_NOT_BOUND = (sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)


@attrs.define
class Unwritable(Exception):
    """
    A row that SQLite cannot store.

    @ivar number: Its number.
    @ivar reason: The reason.
    """

    number: int
    reason: str


def _dated(raw: bytes, version: int) -> Indicator:
    return msgspec.structs.replace(decode_indicator(with_version(raw, version)), modified=version)


def _withdrawn(id: str, body: bytes, crc: int) -> Indicator:
    """
    Make the removal of an indicator from its document.

    @raise Exception: If the document cannot be read.
    """
    if (found := damage(Stream.INTEL, bytes(body), crc)) is not None:
        raise ValueError(found)
    item = decode_indicator(with_operation(body, _REMOVE))
    if item.id != id:
        raise ValueError(f"it is the document of {item.id}")
    return item
