"""
The bridge's own memory: SQLite, by blocking calls, from one thread at a time.

It is the truth of which indicators are in force, which observables they hold,
which of them have been looked for in past events, and which sightings have been
made. The engine's tables are a copy of it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sqlite3
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tbvast.errors import Invalid, PatternUnmatchable, StartupRefused
from tbvast.protocol.manage import Position
from tbvast.protocol.unreadable import ids_in
from tbvast.stix.indicators import STIX, Indicator, Operation, decode_indicator
from tbvast.stix.limits import LARGEST_SIGHTING
from tbvast.stix.network_index import Nesting
from tbvast.stix.observables import Kind, Observable, unescaped
from tbvast.stix.pattern_conditions import PATTERN_RULES, Term, matchable, sure_observable
from tbvast.stix.sighting_size import fitted
from tbvast.stix.sightings import Sighting
from tbvast.storage import set_aside
from tbvast.storage.digest_index import (
    INDEXED_TABLE,
    DigestIndex,
    committing,
    digest,
    digests,
    index_table,
)
from tbvast.storage.file_guard import FileGuard
from tbvast.storage.set_aside import SET_ASIDE_TABLE, SetAside, Stage, reason_of
from tbvast.storage.sifting import is_of_an_item
from tbvast.storage.sqlite import connect, insert, migrate, transaction
from tbvast.values import Covered, Entry

SIGHTING_MEMORY_DAYS = 30
"""
Days after which a sighting that was sent may be made again.
"""

LISTED = 50
LISTED_REASONS = 2
"""
The most indicators that are listed because they are not matched, or not all of them,
the most reasons that are given for each, and the most reasons that are counted
apart: a bus takes no longer report.
"""

OTHER_REASONS = "other reasons"
"""
What the reasons that are not counted apart are counted as.
"""

PAGE = 5000
"""
Indicators, or observables, that are read at once where all are read.
"""

FIRST_SCHEMA = """
CREATE TABLE indicators (
    id TEXT PRIMARY KEY,
    modified INTEGER NOT NULL,
    valid_until INTEGER,
    in_force INTEGER NOT NULL,
    change INTEGER NOT NULL,
    searched INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    unmatched TEXT,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX unsearched ON indicators (change) WHERE in_force AND NOT searched;
CREATE INDEX expiring ON indicators (valid_until) WHERE in_force AND valid_until IS NOT NULL;
CREATE TABLE terms (
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (kind, value, id)
) WITHOUT ROWID;
CREATE INDEX terms_by_id ON terms (id);
CREATE TABLE sightings (
    id TEXT PRIMARY KEY,
    made INTEGER NOT NULL,
    body BLOB
) WITHOUT ROWID;
CREATE TABLE position (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    plugin TEXT,
    number INTEGER,
    generation INTEGER NOT NULL
);
INSERT INTO position VALUES (1, NULL, NULL, 0);
CREATE TABLE covered (only INTEGER PRIMARY KEY CHECK (only = 1), until REAL NOT NULL);
CREATE INDEX unsent ON sightings (made) WHERE body IS NOT NULL;
"""

_NO_END = 1 << 62
"""
What stands for a C{valid_until} that is not there.
"""

_NUMBERED = f"""
DROP INDEX unsearched;
DROP INDEX expiring;
ALTER TABLE indicators RENAME TO named;
CREATE TABLE indicators (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    digest INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    valid_from INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    state INTEGER NOT NULL,
    change INTEGER NOT NULL,
    searched INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    wanted TEXT NOT NULL,
    unmatched TEXT NOT NULL,
    body BLOB NOT NULL
);
INSERT INTO indicators (
    id, digest, modified, valid_from, valid_until, state, change, searched, generation,
    wanted, unmatched, body
) SELECT
    id, digest_of(id), modified, 0, coalesce(valid_until, {_NO_END}), in_force, change,
    searched, generation,
    (SELECT json_group_array(json_array(kind, value, 0)) FROM terms WHERE terms.id = named.id),
    '[]',
    body
FROM named;
DROP TABLE named;
CREATE INDEX by_digest ON indicators (digest);
CREATE INDEX by_state ON indicators (state, searched, change);
CREATE INDEX beginning ON indicators (valid_from) WHERE state = 2;
CREATE INDEX ending ON indicators (valid_until) WHERE state != 0 AND valid_until < {_NO_END};
CREATE INDEX unmatched ON indicators (change) WHERE state = 1 AND unmatched != '[]';
ALTER TABLE terms RENAME TO named_terms;
CREATE TABLE terms (
    digest INTEGER NOT NULL,
    number INTEGER NOT NULL,
    network INTEGER NOT NULL,
    PRIMARY KEY (digest, number)
) WITHOUT ROWID;
CREATE INDEX networks ON terms (number) WHERE network;
INSERT OR IGNORE INTO terms
SELECT digest_of(kind || ' ' || value), number, kind = 'network'
FROM named_terms JOIN indicators ON indicators.id = named_terms.id;
DROP TABLE named_terms;
ALTER TABLE position ADD COLUMN rules INTEGER NOT NULL DEFAULT 0
"""

_GATHERED = f"""
DROP INDEX by_digest;
DROP INDEX networks;
{INDEXED_TABLE};
{index_table("ids")};
INSERT INTO ids SELECT digest, number FROM indicators ORDER BY digest, number;
CREATE TABLE networks (number INTEGER PRIMARY KEY);
INSERT INTO networks SELECT DISTINCT number FROM terms WHERE network;
ALTER TABLE terms RENAME TO wide_terms;
{index_table("terms")};
INSERT INTO terms SELECT digest, number FROM wide_terms ORDER BY digest, number;
DROP TABLE wide_terms;
INSERT INTO indexed SELECT 'ids', coalesce(max(number), 0) FROM indicators;
INSERT INTO indexed SELECT 'terms', coalesce(max(number), 0) FROM indicators
"""

_BY_TWO_CLOCKS = """
ALTER TABLE covered ADD COLUMN awake REAL NOT NULL DEFAULT 0;
ALTER TABLE covered ADD COLUMN boot TEXT NOT NULL DEFAULT ''
"""

_MICROSECONDS = 1_000_000

_T = TypeVar("_T")

_Wanted = dict[Observable, bool]
"""
The observables of an indicator; of each, whether it is joint.
"""


_ENDED, _IN_FORCE, _NOT_YET = range(3)
"""
What an indicator's C{state} says; plain numbers, for SQLite takes them as they are.
"""

_REMOVE = Operation.REMOVE
_NETWORK = Kind.NETWORK
# Names of the module are found quicker than those of an enumeration.


class Changes(msgspec.Struct, frozen=True, array_like=True):
    """
    What the engine is to be told.

    @ivar number: Counts the changes; higher is later.
    @ivar write: Entries that are new, or whose ids have changed.
    @ivar erase: Observables that nobody wants any more.
    @ivar unmatched: Why some indicators are not matched, or not all of them, by id.
    """

    number: int
    write: tuple[Entry, ...] = ()
    erase: tuple[Observable, ...] = ()
    unmatched: dict[str, tuple[str, ...]] = {}


class DesiredPage(msgspec.Struct, frozen=True, array_like=True):
    """
    A page of what the engine should look for.

    @ivar last: Where the page ended: given back, it asks for the next one. C{None} if
        there are no more.
    @ivar entries: The entries. Of networks, they also name the indicators of networks that
        cover them.
    @ivar ids: The indicators, where the page is one of indicators.
    """

    last: tuple[int, int] | None
    entries: tuple[Entry, ...] = ()
    ids: tuple[str, ...] = ()


BEGINNING = (-1, -1)
"""
Asks for the first page.
"""


def merged(all: Sequence[Changes]) -> Changes:
    """
    Several changes, in their order, as one.

    @param all: At least one.
    """
    if len(all) == 1:
        return all[0]
    wanted: dict[Observable, Entry | None] = {}
    unmatched: dict[str, tuple[str, ...]] = {}
    for each in all:
        wanted |= {entry.observable: entry for entry in each.write}
        wanted |= dict.fromkeys(each.erase)
        unmatched |= each.unmatched
    return Changes(
        max(each.number for each in all),
        tuple(entry for entry in wanted.values() if entry is not None),
        tuple(observable for observable, entry in wanted.items() if entry is None),
        unmatched,
    )


class _Kept(msgspec.Struct, array_like=True, gc=False):
    """
    What is kept of an indicator.

    @ivar unmatched: Why it is not matched, or not all of it.
    @ivar is_new: Whether nothing is, so far.
    """

    number: int
    id: str
    digest: int
    modified: int
    state: int
    searched: bool
    generation: int
    unmatched: tuple[str, ...]
    is_new: bool = False


class _Term(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One observable of an indicator.

    @ivar joint: Whether it is not enough for the indicator, but has to be in one event
        with others.
    """

    kind: Kind
    value: str
    joint: bool | int = False

    @property
    def observable(self) -> Observable:
        return Observable(self.kind, self.value)


class _Wanting(msgspec.Struct, array_like=True):
    """
    An indicator, and what it wants.

    @ivar digest: That by which it was found, if it was found by one.
    """

    number: int
    id: str
    wanted: tuple[_Term, ...]
    digest: int = 0


class _Unsearched(msgspec.Struct, array_like=True):
    number: int
    id: str
    wanted: tuple[_Term, ...]
    change: int


class BridgeStore:
    """
    The file. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        """
        @raise StartupRefused: If the file cannot be used.
        """
        try:
            self._db = connect(path)
            self._db.create_function("digest_of", 1, digest, deterministic=True)
            migrate(
                self._db,
                [FIRST_SCHEMA, _NUMBERED, _GATHERED, SET_ASIDE_TABLE, _BY_TWO_CLOCKS],
            )
            self._by_id = DigestIndex(self._db, "ids", self._ids_above)
            self._by_term = DigestIndex(self._db, "terms", self._terms_above)
        except sqlite3.Error as e:
            raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e
        plugin, number, self._generation, self._rules = self._db.execute(
            "SELECT plugin, number, generation, rules FROM position"
        ).fetchone()
        self._position = None if plugin is None else Position(plugin, number)
        self._number, self._change = self._db.execute(
            "SELECT coalesce(max(number), 0), coalesce(max(change), 0) FROM indicators"
        ).fetchone()
        self._nesting = Nesting(
            term.value
            for each in self._wanting("SELECT number FROM networks")
            for term in each.wanted
            if term.kind is Kind.NETWORK
        )
        self._undo: list[Callable[[], None]] = []

    def _ids_above(self, number: int) -> Iterator[tuple[int, int]]:
        return self._db.execute("SELECT digest, number FROM indicators WHERE number > ?", (number,))

    def _terms_above(self, number: int) -> Iterator[tuple[int, int]]:
        for each in self._wanting("SELECT number FROM indicators WHERE number > ?", number):
            for term in each.wanted:
                yield _key(term.observable), each.number

    def close(self) -> None:
        self._db.close()

    def make_guard(self, path: Path, replacement: Callable[[], str]) -> FileGuard:
        """
        @param path: The file.
        @param replacement: As L{FileGuard} takes it.
        """
        return FileGuard(self._db, path, "the bridge's store", replacement)

    @property
    def change(self) -> int:
        """
        The number of the last change.
        """
        return self._change

    @property
    def position(self) -> Position | None:
        """
        How far the bus's journal was applied.
        """
        return self._position

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """
        A transaction; if it fails, what is known in memory is as it was before.
        """
        self._undo = [functools.partial(self._recall, self._number, self._change)]
        try:
            with committing(self._by_id, self._by_term), transaction(self._db):
                yield
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            raise

    def _recall(self, number: int, change: int) -> None:
        self._number, self._change = number, change

    def _one(self, type: type[_T], query: str, *parameters: Any) -> _T:
        """
        Ask for all rows as one JSON text, which is one step.
        """
        try:
            return self._decoded(type, query, parameters)
        except (sqlite3.OperationalError, msgspec.MsgspecError) as e:
            if not is_of_an_item(e):
                raise
        # One value of a row is damaged.
        self._repair()
        return self._decoded(type, query, parameters)

    def _decoded(self, type: type[_T], query: str, parameters: Sequence[Any]) -> _T:
        (found,) = self._db.execute(query, parameters).fetchone()
        return msgspec.json.decode(found, type=type)

    def _repair(self) -> None:
        """
        Find out again what the indicators want whose row no longer says it; why others
        are not matched is not known any more.
        """
        for number, unmatched in self._db.execute(
            "SELECT number, cast(unmatched AS BLOB) FROM indicators WHERE unmatched != '[]'"
        ).fetchall():
            try:
                _unmatched_decoder.decode(unmatched)
            except msgspec.MsgspecError:
                self._db.execute(
                    "UPDATE indicators SET unmatched = '[]' WHERE number = ?", (number,)
                )
        rows = self._db.execute(
            "SELECT number, id, body, cast(wanted AS BLOB) FROM indicators WHERE wanted != '[]'"
        ).fetchall()
        for number, id, body, wanted in rows:
            try:
                _wanted_decoder.decode(wanted)
                continue
            except msgspec.MsgspecError:
                pass  # its document says it, too
            try:
                after, _ = _observables(decode_indicator(body))
            except Invalid as e:
                after = _NONE
                self._keep_aside([SetAside(Stage.STORE, reason_of(e), body, "indicator", id)], 0)
            self._db.execute(
                "UPDATE indicators SET wanted = ? WHERE number = ?", (_written(after), number)
            )

    # What is set aside

    def set_aside(
        self, items: Sequence[SetAside], now: float, position: Position | None = None
    ) -> None:
        """
        Keep what cannot be handled, for a person to look at. What is known of the
        indicators that may be meant outlasts the snapshot that is being applied.

        @param now: Seconds since the epoch.
        @param position: As for L{apply}.
        """
        ids = list({id: None for each in items for id in (each.id, *ids_in(each.body)) if id})
        with self._writing():
            self._keep_aside(items, now)
            self._outlast(ids)
            self._set_position(position)
        self._position = position or self._position

    def outlast(self, ids: Sequence[str]) -> None:
        """
        Have indicators outlast the snapshot that is being applied.

        @param ids: They need not be known.
        """
        with self._writing():
            self._outlast(ids)

    def _outlast(self, ids: Sequence[str]) -> None:
        numbers = [kept.number for kept in self._kept(_digests(ids)).values()]
        self._db.execute(
            f"UPDATE indicators SET generation = ? WHERE number {_AMONG}",
            (self._generation, _listed(numbers)),
        )

    def _keep_aside(self, items: Sequence[SetAside], now: float) -> None:
        set_aside.store_set_aside(self._db, items, int(now * _MICROSECONDS))

    # Indicators

    def apply(
        self,
        indicators: Sequence[Indicator],
        now: float,
        search: bool,
        position: Position | None = None,
        decided: bool = False,
    ) -> Changes:
        """
        Take indicators in; a repeat changes nothing.

        @param now: Seconds since the epoch; what is no longer valid then is
            removed, and what is not valid yet waits.
        @param search: Whether past events are to be searched for the new ones.
        @param position: How far the bus's journal has been applied then, if it has
            numbers.
        @param decided: Whether the bus has decided, so that each of them is what is in
            force from then on, or is not any more. Otherwise a removal ends what is in
            force, and of two versions the later one is, where one from the future counts
            as of now.
        @return: What the engine is to be told, durable here.
        """
        moment = int(now * _MICROSECONDS)
        with self._writing():
            by_id = _digests([indicator.id for indicator in indicators])
            kept = self._kept(by_id)
            plain: list[Indicator] = []
            if len(by_id) == len(indicators):
                plain, indicators = _parted(indicators, kept, moment)
            documents = self._documents(kept.values()) if kept else {}
            latest: dict[str, Indicator] = {}
            repeated: list[int] = []
            for indicator in indicators:
                id_ = indicator.id
                known = kept.get(id_)
                state = _state(indicator, moment)
                if known is None:
                    if state == _ENDED:
                        continue
                    known = kept[id_] = self._new(id_, by_id[id_])
                elif not _changes_anything(
                    indicator, state, known, documents, None if decided else moment
                ):
                    if known.generation != self._generation:
                        repeated.append(known.number)
                    continue
                version = min(indicator.modified, moment)
                # What has ended is not to come back with an earlier version.
                known.modified = max(known.modified, version) if state == _ENDED else version
                known.state = state
                documents[id_] = indicator.raw
                latest[id_] = indicator
            if repeated:
                self._db.execute(
                    f"UPDATE indicators SET generation = ? WHERE number {_AMONG}",
                    (self._generation, _listed(repeated)),
                )
            changes = self._replace(
                [(kept[id], each) for id, each in latest.items()],
                search,
                plain,
                [by_id[each.id] for each in plain],
                moment,
            )
            self._set_position(position)
        self._position = position or self._position
        return changes

    def _new(self, id: str, digest: int) -> _Kept:
        self._number += 1
        return _Kept(self._number, id, digest, 0, _ENDED, True, self._generation, (), True)

    def _kept(self, digests: Mapping[str, int]) -> dict[str, _Kept]:
        """
        What is kept of those of some indicators that are known.

        @param digests: Those of the indicators' ids, by id.
        """
        numbers = self._by_id.find(tuple(digests.values()))
        if not numbers:
            return {}
        found = self._one(
            list[_Kept],
            "SELECT json_group_array(json_array(number, id, digest, modified, state,"
            " json(iif(searched, 'true', 'false')), generation,"
            " json(unmatched)))"
            f" FROM indicators WHERE number {_AMONG}",
            _listed(numbers),
        )
        return {kept.id: kept for kept in found if kept.id in digests}

    def _documents(self, kept: Iterable[_Kept]) -> dict[str, bytes]:
        """
        The documents of what is kept, by id; that of what has ended is empty.
        """
        ids = {each.number: each.id for each in kept}
        found = self._db.execute(
            f"SELECT number, body FROM indicators WHERE number {_AMONG}", (_listed(ids),)
        )
        return {ids[number]: body for number, body in found}

    def _replace(
        self,
        items: Sequence[tuple[_Kept, Indicator]],
        search: bool,
        plain: Sequence[Indicator] = (),
        digests: Sequence[int] = (),
        moment: int = 0,
    ) -> Changes:
        """
        Write indicators, with their observables.

        @param items: What is to be kept of each, and the indicator.
        @param plain: More of them, new and L{plain<_parted>}.
        @param digests: Those of the ids of C{plain}.
        @param moment: When C{plain} was received, in microseconds since the epoch.
        """
        if not items and not plain:
            return Changes(self._change)
        self._change += 1
        known = [kept.number for kept, _ in items if not kept.is_new]
        before = {
            each.number: {term.observable: bool(term.joint) for term in each.wanted}
            for each in (self._wanting(_AMONG_THESE, _listed(known)) if known else ())
        }
        rows: list[tuple[Any, ...]] = []
        more_terms: list[tuple[Observable, int]] = []
        networks: list[tuple[int]] = []
        unmatched: dict[str, tuple[str, ...]] = {}
        change, generation = self._change, self._generation
        observables = [sure_observable(each.pattern) for each in plain if each.pattern]
        numbers = range(self._number + 1, self._number + 1 + len(plain))
        self._number += len(plain)
        terms = list(zip(observables, numbers, strict=True))
        touched = set(observables)
        wanted: dict[Observable, list[str]] = {}
        for observable, indicator in zip(observables, plain, strict=True):
            wanted.setdefault(observable, []).append(indicator.id)
        for kept, indicator in items:
            start, end = indicator.valid_from, indicator.valid_until
            after, reasons = _NOTHING if kept.state != _IN_FORCE else _observables(indicator)
            earlier = before.get(kept.number, _NONE)
            if earlier:
                touched |= earlier.keys() ^ after.keys()
                # Of the same terms, others may be wanted together.
                nothing_new = after.keys() <= earlier.keys() and not (
                    any(after.values()) or any(earlier.values())
                )
            else:
                touched.update(after)
                nothing_new = not after
            if reasons and reasons != kept.unmatched:
                unmatched[kept.id] = reasons
            number = kept.number
            for observable in after:
                wanted.setdefault(observable, []).append(kept.id)
                (terms if kept.is_new else more_terms).append((observable, number))
                if observable.kind is _NETWORK:
                    networks.append((number,))
            rows.append(
                (
                    number, kept.id, kept.digest, kept.modified,
                    start or 0, _NO_END if end is None else end,
                    kept.state, change,
                    0 if search and not (nothing_new and kept.searched) else 1,
                    generation, _written(after),
                    json.dumps(reasons) if reasons else "[]",
                    bytearray(b"" if kept.state == _ENDED else indicator.raw),
                )
            )  # fmt: skip
        self._erase_terms(before)
        # Those of the items that want them, and who else does.
        ids = {observable: wanted.get(observable) or [] for observable in touched}
        keys = _keys(touched | wanted.keys())
        self._add_ids(ids, [keys[observable] for observable in touched])
        # Column by column, which is quicker.
        plain_rows = zip(
            numbers,
            [each.id for each in plain],
            digests,
            [min(each.modified, moment) for each in plain],
            [each.valid_from or 0 for each in plain],
            [_NO_END if each.valid_until is None else each.valid_until for each in plain],
            *map(itertools.repeat, (_IN_FORCE, change, 0 if search else 1, generation)),
            _encoder.encode_lines([(each,) for each in observables]).decode().split("\n"),
            itertools.repeat("[]"),
            [bytearray(each.raw) for each in plain],
            strict=False,
        )
        insert(self._db, "indicators", list(plain_rows))
        insert(self._db, "indicators", rows, "INSERT OR REPLACE")
        new = list(zip(digests, numbers, strict=True))
        new += [(kept.digest, kept.number) for kept, _ in items if kept.is_new]
        self._by_id.change(new)
        self._by_term.change([(keys[observable], number) for observable, number in terms])
        self._by_term.insert([(keys[observable], number) for observable, number in more_terms])
        insert(self._db, "networks", networks, "INSERT OR IGNORE")
        return self._changes(ids, unmatched)

    def _wanting(self, numbers: str, *parameters: Any) -> list[_Wanting]:
        """
        Indicators that want anything, and what each wants.

        @param numbers: SQL that gives their numbers.
        """
        return self._one(
            list[_Wanting],
            "SELECT json_group_array(json_array(number, id, json(wanted)))"
            f" FROM indicators WHERE wanted != '[]' AND number IN ({numbers})",
            *parameters,
        )

    def _erase_terms(self, wanted: Mapping[int, Iterable[Observable]]) -> None:
        """
        @param wanted: The observables of each indicator, by number.
        """
        if not wanted:
            return
        pairs = [(_key(o), number) for number, observables in wanted.items() for o in observables]
        self._by_term.change((), pairs)
        self._db.execute(f"DELETE FROM networks WHERE number {_AMONG}", (_listed(wanted),))

    def _set_position(self, position: Position | None) -> None:
        if position is not None:
            self._db.execute(
                "UPDATE position SET plugin = ?, number = ?", (position.plugin, position.number)
            )

    def begin_snapshot(self) -> None:
        """
        All that is in force is applied from now on; what is not, ends with
        L{end_snapshot}.
        """
        self._db.execute("UPDATE position SET generation = generation + 1")
        self._generation += 1

    def end_snapshot(self, position: Position) -> Changes:
        """
        End every indicator that was not applied since L{begin_snapshot}.

        @param position: How far the bus's journal has been applied.
        """
        with self._writing():
            self._set_position(position)
            changes = self._end("generation != ?", self._generation)
        self._position = position
        return changes

    def expire(self, now: float) -> Changes:
        """
        End what is no longer valid.

        @param now: Seconds since the epoch.
        """
        with self._writing():
            return self._end(
                f"valid_until < {_NO_END} AND valid_until <= ?", int(now * _MICROSECONDS)
            )

    def _end(self, condition: str, parameter: int | str) -> Changes:
        """
        @param condition: Which indicators are no longer in force.
        """
        ended = self._one(
            list[int],
            f"SELECT json_group_array(number) FROM indicators WHERE state != 0 AND {condition}",
            parameter,
        )
        if not ended:
            return Changes(self._change)
        self._change += 1
        numbers = _listed(ended)
        wanted = {
            each.number: [term.observable for term in each.wanted]
            for each in self._wanting(_AMONG_THESE, numbers)
        }
        self._erase_terms(wanted)
        self._db.execute(
            "UPDATE indicators SET state = 0, change = ?, wanted = '[]', unmatched = '[]',"
            f" body = x'' WHERE number {_AMONG}",
            (self._change, numbers),
        )
        touched = set[Observable]().union(*wanted.values())
        return self._changes(self._ids(touched), {})

    def begin(self, now: float, search: bool) -> Changes:
        """
        Put in force what has become valid.

        @param now: Seconds since the epoch.
        @param search: Whether past events are to be searched for it.
        """
        moment = int(now * _MICROSECONDS)
        with self._writing():
            begun = self._db.execute(
                "SELECT body, number, id FROM indicators INDEXED BY beginning"
                " WHERE state = 2 AND valid_from <= ?",
                (moment,),
            ).fetchall()
            return self._put_in_force(begun, search, now)

    def derive(self, search: bool) -> None:
        """
        Find the observables of all indicators again, if they were found by another
        version's rules.

        @param search: Whether past events are to be searched for new ones.
        """
        if self._rules == PATTERN_RULES:
            return
        with self._writing():
            last = 0
            while rows := self._db.execute(
                "SELECT body, number, id FROM indicators WHERE state = 1 AND number > ?"
                " ORDER BY number LIMIT ?",
                (last, PAGE),
            ).fetchall():
                last = rows[-1][1]
                self._put_in_force(rows, search, 0.0)
            self._db.execute("UPDATE position SET rules = ?", (PATTERN_RULES,))
        self._rules = PATTERN_RULES

    def _put_in_force(
        self, rows: Sequence[tuple[bytes, int, str]], search: bool, now: float
    ) -> Changes:
        """
        @param rows: The document, the number and the id of each. One that is damaged ends.
        """
        indicators: list[Indicator] = []
        damaged: list[int] = []
        for body, number, id in rows:
            try:
                indicators.append(decode_indicator(body))
            except Invalid as e:  # it was one when it was written
                damaged.append(number)
                self._keep_aside([SetAside(Stage.STORE, reason_of(e), body, "indicator", id)], now)
        ended = self._end(f"number {_AMONG}", _listed(damaged)) if damaged else None
        kept = self._kept(_digests([each.id for each in indicators]))
        indicators = [each for each in indicators if each.id in kept]
        for indicator in indicators:
            kept[indicator.id].state = _IN_FORCE
        changes = self._replace([(kept[each.id], each) for each in indicators], search)
        return merged([ended, changes]) if ended else changes

    # Observables

    def _changes(
        self, ids: dict[Observable, list[str]], unmatched: dict[str, tuple[str, ...]]
    ) -> Changes:
        """
        @param ids: Who wants what was changed.
        """
        networks = [o for o in ids if o.kind is _NETWORK]
        for network in networks:
            self._nest(network.value, bool(ids[network]))
        covered = {each for network in networks for each in self._nesting.covered(network.value)}
        ids |= self._covering_ids(covered)
        return Changes(
            self._change,
            tuple(
                [
                    Entry(o, (found[0],) if len(found) == 1 else tuple(sorted(found)))
                    for o, found in ids.items()
                    if found
                ]
            ),
            tuple([o for o, found in ids.items() if not found]),
            unmatched,
        )

    def _nest(self, network: str, wanted: bool) -> None:
        do, undo = self._nesting.add, self._nesting.discard
        if not wanted:
            do, undo = undo, do
        do(network)
        self._undo.append(functools.partial(undo, network))

    def _ids(self, observables: Collection[Observable]) -> dict[Observable, list[str]]:
        """
        Who wants each of some observables.
        """
        ids: dict[Observable, list[str]] = {observable: [] for observable in observables}
        self._add_ids(ids, list(_keys(observables).values()))
        return ids

    def _add_ids(self, ids: Mapping[Observable, list[str]], keys: Sequence[int]) -> None:
        """
        Add who wants each of some observables.

        @param keys: L{_key} of each of them.
        """
        numbers = self._by_term.find(keys)
        for each in self._wanting(_AMONG_THESE, _listed(numbers)) if numbers else ():
            for term in each.wanted:
                if (some := ids.get(term.observable)) is not None:
                    some.append(each.id)

    def _covering_ids(self, networks: Iterable[str]) -> dict[Observable, list[str]]:
        """
        Who wants each of some networks, or one that covers it.
        """
        covering = {network: list(self._nesting.covering(network)) for network in networks}
        wanted = {_network(each) for wider in covering.values() for each in wider}
        ids = self._ids(wanted)
        return {
            _network(network): list({id for each in wider for id in ids[_network(each)]})
            for network, wider in covering.items()
        }

    def entries(self) -> Iterator[Entry]:
        """
        Everything that the engine should hold.
        """
        last: tuple[int, int] | None = BEGINNING
        while last is not None:
            page = self.entries_page(last, PAGE)
            yield from page.entries
            last = page.last

    def entries_page(self, after: tuple[int, int], limit: int) -> DesiredPage:
        """
        A page of everything that the engine should hold.

        @param limit: The most observables.
        """
        if after == BEGINNING:
            with self._writing():
                self._by_term.write_all()
        page = self._one(
            list[_Wanting],
            "SELECT json_group_array(json_array(i.number, i.id, json(i.wanted), t.digest))"
            " FROM terms t JOIN indicators i ON i.number = t.number WHERE t.digest IN"
            " (SELECT DISTINCT digest FROM terms WHERE digest > ? ORDER BY digest LIMIT ?)",
            after[0],
            limit,
        )
        if not page:
            return DesiredPage(None)
        ids: dict[Observable, list[str]] = {}
        for each in page:
            for observable in (term.observable for term in each.wanted):
                if len(each.wanted) == 1 or _key(observable) == each.digest:
                    ids.setdefault(observable, []).append(each.id)
        wider = self._covering_ids(o.value for o in ids if o.kind is Kind.NETWORK)
        return DesiredPage(
            (max(each.digest for each in page), 0),
            tuple(Entry(o, tuple(sorted(found))) for o, found in (ids | wider).items()),
        )

    def reconcile(self, held: Sequence[Entry]) -> Changes:
        """
        What the engine is to be told so that it holds what it should.

        @param held: What it holds.
        """
        stale = {entry.observable: entry.ids for entry in held}
        write = []
        for entry in self.entries():
            found = stale.pop(entry.observable, None)
            if found is None or tuple(sorted(found)) != entry.ids:
                write.append(entry)
        return Changes(self._change, tuple(write), tuple(stale))

    def unsearched(self, until: int, limit: int, after: tuple[int, int] = BEGINNING) -> DesiredPage:
        """
        A page of the oldest indicators for which no past events have been searched.

        @param until: The number of the last change to look at.
        @param limit: The most indicators.
        """
        found = self._one(
            list[_Unsearched],
            "SELECT json_group_array(json_array(number, id, json(wanted), change))"
            " FROM (SELECT number, id, wanted, change FROM indicators WHERE state = 1"
            " AND searched = 0 AND change <= ? AND (change, number) > (?, ?)"
            " ORDER BY change, number LIMIT ?)",
            until,
            *after,
            limit,
        )
        if not found:
            return DesiredPage(None)
        wanted: dict[Observable, list[str]] = {}
        joint: set[Observable] = set()
        for each in found:
            for term in each.wanted:
                wanted.setdefault(term.observable, []).append(each.id)
                if term.joint:
                    joint.add(term.observable)
        wanted |= self._covering_ids(o.value for o in wanted if o.kind is Kind.NETWORK)
        return DesiredPage(
            (found[-1].change, found[-1].number),
            tuple(Entry(o, tuple(sorted(some)), o in joint) for o, some in wanted.items()),
            tuple(each.id for each in found),
        )

    def mark_searched(self, ids: Iterable[str], until: int) -> None:
        """
        @param until: As given to L{unsearched}; what has changed since has to be
            searched again.
        """
        searched = list(ids)
        with transaction(self._db):
            self._db.execute(
                f"UPDATE indicators SET searched = 1 WHERE number {_AMONG} AND id {_AMONG}"
                " AND change <= ?",
                (
                    _listed(self._by_id.find(digests(searched))),
                    json.dumps(searched),
                    until,
                ),
            )

    @property
    def covered(self) -> Covered | None:
        """
        Up to where every arriving event was matched.
        """
        found = self._db.execute("SELECT until, awake, boot FROM covered").fetchone()
        return None if found is None else Covered(*found)

    def set_covered(self, covered: Covered) -> None:
        """
        @param covered: Every event that arrived before was matched, and its sighting
            remembered.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO covered VALUES (1, ?, ?, ?)",
            (covered.until, covered.awake, covered.boot),
        )

    def bodies(self, ids: Iterable[str]) -> dict[str, bytes]:
        """
        The documents of those of some indicators that are in force.
        """
        return self._documents(
            each for each in self._kept(_digests(list(ids))).values() if each.state == _IN_FORCE
        )

    def counts(self) -> dict[str, Any]:
        """
        @see: L{_counts}
        """
        try:
            return self._counts()
        except (sqlite3.OperationalError, msgspec.MsgspecError) as e:
            if not is_of_an_item(e):
                raise
        self._repair()
        return self._counts()

    def _counts(self) -> dict[str, Any]:
        """
        @return: C{indicators} in force, C{unsearched} ones among them, and those
            that are C{not_yet} valid; C{unmatched} ones by reason, where one may
            have several, and the L{LISTED} newest of these by id, as
            C{unmatched_ids}; C{unsent} sightings; and how many items were C{set_aside},
            with the newest reason, if any were.
        """
        indicators, unsearched, not_yet = self._db.execute(
            "SELECT count(*) FILTER (WHERE state = 1),"
            " count(*) FILTER (WHERE state = 1 AND NOT searched),"
            " count(*) FILTER (WHERE state = 2) FROM indicators WHERE state != 0"
        ).fetchone()
        reasons = self._db.execute(
            "SELECT r.value, count(*)"
            " FROM indicators i INDEXED BY unmatched, json_each(i.unmatched) r"
            " WHERE state = 1 AND unmatched != '[]' GROUP BY r.value ORDER BY 2 DESC, 1"
        )
        listed = self._db.execute(
            "SELECT id, unmatched FROM indicators INDEXED BY unmatched"
            " WHERE state = 1 AND unmatched != '[]' ORDER BY change DESC, number DESC LIMIT ?",
            (LISTED,),
        )
        (unsent,) = self._db.execute(
            "SELECT count(*) FROM sightings WHERE body IS NOT NULL"
        ).fetchone()
        aside = set_aside.report(self._db)
        return {
            "indicators": indicators,
            "unsearched": unsearched,
            "not_yet": not_yet,
            "unmatched": _most_frequent(dict(reasons)),
            "unmatched_ids": {
                id: list(_unmatched_decoder.decode(why)[:LISTED_REASONS]) for id, why in listed
            },
            "unsent": unsent,
            "set_aside": {"count": aside.count, "newest": aside.newest} if aside.count else {},
        }

    # Sightings

    def remember(self, sightings: Sequence[Sighting], now: float) -> list[Sighting]:
        """
        Keep sightings until they are sent.

        @param now: Seconds since the epoch.
        @return: Those that were new.
        """
        new = {sighting.id: sighting for sighting in reversed(sightings)}
        with transaction(self._db):
            for id in self._one(
                list[str],
                f"SELECT json_group_array(id) FROM sightings WHERE id {_AMONG}",
                json.dumps(list(new)),
            ):
                del new[id]
            fresh = list(reversed(new.values()))
            insert(self._db, "sightings", [(each.id, int(now), each.raw) for each in fresh])
        return fresh

    def carry_over(self, sightings: Sequence[tuple[str, int, bytes | None]]) -> int:
        """
        Take in the sightings of another store.

        @param sightings: Of each its id, when it was made, and its document if it has not
            been sent.
        @return: How many have not been sent.
        """
        with transaction(self._db):
            self._db.executemany(
                "INSERT OR IGNORE INTO sightings (id, made, body) VALUES (?, ?, ?)", sightings
            )
        return sum(body is not None for _, _, body in sightings)

    def unsent(
        self, limit: int, size: int, without: Collection[str] = ()
    ) -> list[tuple[str, bytes]]:
        """
        The oldest sightings that have not been sent: id and document.

        @param limit: The most to return.
        @param size: Bytes of documents beyond which no more are returned; the first is
            returned however long it is.
        @param without: The ids of some that are left out.
        """
        found: list[tuple[str, bytes]] = []
        for id, body in self._db.execute(
            "SELECT id, body FROM sightings WHERE body IS NOT NULL ORDER BY made"
        ):
            if id in without:
                continue
            if len(body) > LARGEST_SIGHTING:  # of an earlier version
                body = fitted(body)
            size -= len(body)
            if found and size < 0:
                break
            found.append((id, body))
            if len(found) >= limit:
                break
        return found

    def unsent_among(self, ids: Iterable[str]) -> list[tuple[str, bytes]]:
        """
        Those of some sightings that have not been sent: id and document.
        """
        return self._db.execute(
            f"SELECT id, body FROM sightings WHERE body IS NOT NULL AND id {_AMONG}",
            (json.dumps(list(ids)),),
        ).fetchall()

    def set_sightings_aside(self, reasons: Mapping[str, str], now: float) -> None:
        """
        Give sightings up: they will not be sent, and not be made again.

        @param reasons: Why, by id.
        @param now: Seconds since the epoch.
        """
        with transaction(self._db):
            self._keep_aside(
                [
                    SetAside(Stage.REPORT, reasons[id], body, "sighting", id)
                    for id, body in self.unsent_among(reasons)
                ],
                now,
            )
            self._db.execute(
                f"UPDATE sightings SET body = NULL WHERE id {_AMONG}", (json.dumps(list(reasons)),)
            )

    def mark_sent(self, ids: Iterable[str]) -> None:
        with transaction(self._db):
            self._db.execute(
                f"UPDATE sightings SET body = NULL WHERE id {_AMONG}", (json.dumps(list(ids)),)
            )

    def forget(self, now: float) -> None:
        """
        Forget sightings that were sent long ago.

        @param now: Seconds since the epoch.
        """
        with transaction(self._db):
            self._db.execute(
                "DELETE FROM sightings WHERE body IS NULL AND made < ?",
                (int(now) - SIGHTING_MEMORY_DAYS * 86400,),
            )


_AMONG_THESE = "SELECT value FROM json_each(?)"
_AMONG = f"IN ({_AMONG_THESE})"
"""
With a parameter that is a JSON list: one parameter for any number of values.
"""

_wanted_decoder = msgspec.json.Decoder(tuple[_Term, ...])
_unmatched_decoder = msgspec.json.Decoder(tuple[str, ...])

_encoder = msgspec.json.Encoder()
_encode = _encoder.encode

_NONE: _Wanted = {}
_NOTHING: tuple[_Wanted, tuple[str, ...]] = (_NONE, ())


def _most_frequent(reasons: dict[str, int]) -> dict[str, int]:
    """
    @param reasons: The most frequent ones first.
    """
    apart = dict(itertools.islice(reasons.items(), LISTED))
    others = sum(reasons.values()) - sum(apart.values())
    return {**apart, OTHER_REASONS: others} if others else apart


def _listed(numbers: Iterable[int]) -> str:
    return _encode(list(numbers)).decode()


def _written(wanted: _Wanted) -> str:
    """
    An indicator's observables, as they are kept.
    """
    terms: list[Any] = list(wanted)  # an observable is a term that is not joint
    if any(wanted.values()):
        terms = [(o.kind, o.value, joint) for o, joint in wanted.items()]
    return _encode(terms).decode()


def _digests(ids: Sequence[str]) -> dict[str, int]:
    return dict(zip(ids, digests(ids), strict=True))


def _keys(observables: Collection[Observable]) -> dict[Observable, int]:
    """
    L{_key} of each of many observables.
    """
    found = digests([observable.kind + " " + observable.value for observable in observables])
    return dict(zip(observables, found, strict=True))


def _key(observable: Observable) -> int:
    """
    A number that stands for an observable.
    """
    return digest(observable.kind + " " + observable.value)


def _network(text: str) -> Observable:
    return Observable(Kind.NETWORK, text)


def _parted(
    indicators: Iterable[Indicator], known: Container[str], moment: int
) -> tuple[list[Indicator], list[Indicator]]:
    """
    @param known: The ids that are known.
    @return: The plain ones: new, in force, and with one observable that is quickly found,
        as most are; and the others.
    """
    plain, others = [], []
    for indicator in indicators:
        if (
            indicator.surely_matchable
            and indicator.id not in known
            and _state(indicator, moment) == _IN_FORCE
        ):
            plain.append(indicator)
        else:
            others.append(indicator)
    return plain, others


def _state(indicator: Indicator, moment: int) -> int:
    """
    What an indicator is at a time, in microseconds since the epoch.
    """
    start, end = indicator.valid_from, indicator.valid_until
    if indicator.operation is _REMOVE or (end is not None and end <= moment):
        return _ENDED
    return _NOT_YET if start is not None and start > moment else _IN_FORCE


def _changes_anything(
    indicator: Indicator,
    state: int,
    known: _Kept,
    documents: Mapping[str, bytes],
    moment: int | None,
) -> bool:
    """
    @param state: What the indicator is now.
    @param known: What is kept of it.
    @param documents: The documents that are kept, by id.
    @param moment: The bridge's date, in microseconds since the epoch, if it is to decide
        between versions; L{None} if the bus has.
    """
    lasts = known.state != _ENDED
    if indicator.operation is _REMOVE:
        return lasts
    if lasts and indicator.raw == documents[indicator.id]:
        return state == _ENDED
    if moment is not None:
        version, before = min(indicator.modified, moment), min(known.modified, moment)
        if version < before or (not lasts and version == before != moment):
            return False
    return lasts or state != _ENDED


def _observables(indicator: Indicator) -> tuple[_Wanted, tuple[str, ...]]:
    """
    @return: What of an indicator is matched, and why something of it is not.
    """
    if indicator.pattern is None:
        return _NONE, ("no pattern",)
    if indicator.surely_matchable:  # as most are
        return {sure_observable(indicator.pattern): False}, ()
    if indicator.pattern_type != STIX:
        return _NONE, (f"pattern type {indicator.pattern_type}",)
    try:
        found = matchable(indicator.pattern)
    except PatternUnmatchable as e:
        return _NONE, (e.reason,)
    except Invalid as e:
        return _NONE, (f"{e.field} is not {e.expected}",)
    if isinstance(found.condition, Term):
        wanted = {found.condition.observable: False}
    else:
        alone = {term.observable for term in found.alone}
        wanted = {observable: observable not in alone for observable in found.observables}
    for observable, joint in list(wanted.items()):
        if (as_logged := unescaped(observable)) is not None:
            wanted[as_logged] = joint
    return wanted, tuple(dict.fromkeys(found.unmatched)) if found.unmatched else ()
