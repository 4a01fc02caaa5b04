"""
The indicators in the bridge's store: blocking calls, from one thread at a time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from tbvast.bridge.store.decisions import (
    ENDED,
    IN_FORCE,
    NO_TERMS,
    StoredIndicator,
    Terms,
    changes_anything,
    split_fast_path,
    state_at,
    terms_of,
)
from tbvast.bridge.store.schema import IN_JSON_LIST, JSON_LIST, MICROSECONDS, NO_END
from tbvast.bridge.store.values import BEGINNING, DesiredPage, merge_changes
from tbvast.errors import Invalid
from tbvast.protocol.unreadable import ids_in
from tbvast.stix.indicators import Indicator, decode_indicator
from tbvast.stix.network_index import NetworkIndex
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.pattern_conditions import PATTERN_RULES, sure_observable
from tbvast.storage import set_aside
from tbvast.storage.digest_index import DigestIndex, committing, digest, digests
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.storage.sifting import is_of_an_item
from tbvast.storage.sqlite import insert, transaction
from tbvast.values import Changes, Entry, JsonObject, Position

MAX_LISTED = 50
MAX_LISTED_REASONS = 2
"""
The most indicators that L{IndicatorTable.counts} lists as not or only partly matched, and the
most reasons for each. L{MAX_LISTED} is also the most reasons that are counted separately: a
bus accepts no longer report.
"""

OTHER_REASONS = "other reasons"
"""
The key under which all further reasons are counted.
"""

MAX_ROWS_PER_READ = 5000
"""
The most indicators or observables that one query reads.
"""

_NETWORK = Kind.NETWORK
# A module's global is found faster than a member of an enumeration.

_T = TypeVar("_T")


class _StoredTerm(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One observable of an indicator.

    @ivar joint: Whether it does not suffice alone: the same event has to contain others.
    """

    kind: Kind
    value: str
    joint: bool | int = False

    @property
    def observable(self) -> Observable:
        """
        The observable.
        """
        return Observable(self.kind, self.value)


class _IndicatorTerms(msgspec.Struct, array_like=True):
    """
    An indicator and its observables.

    @ivar digest: The digest by which a query found it, if any.
    """

    number: int
    id: str
    terms: tuple[_StoredTerm, ...]
    digest: int = 0


class _UnsearchedIndicator(msgspec.Struct, array_like=True):
    """
    An indicator for which no past events have been searched.

    @ivar change: The number of its last change.
    """

    number: int
    id: str
    terms: tuple[_StoredTerm, ...]
    change: int


class IndicatorTable:
    """
    The indicators, their observables, and the position in the bus's journal.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        """
        @param connection: The open store.
        @raise sqlite3.Error: If it cannot be read.
        """
        self._db = connection
        self._by_id = DigestIndex(self._db, "ids", self._ids_above)
        self._by_term = DigestIndex(self._db, "terms", self._terms_above)
        plugin, number, self._generation, self._rules = self._db.execute(
            "SELECT plugin, number, generation, rules FROM position"
        ).fetchone()
        self._position = None if plugin is None else Position(plugin, number)
        self._number, self._change = self._db.execute(
            "SELECT coalesce(max(number), 0), coalesce(max(change), 0) FROM indicators"
        ).fetchone()
        self._networks = NetworkIndex(
            term.value
            for each in self._read_terms("SELECT number FROM networks")
            for term in each.terms
            if term.kind is Kind.NETWORK
        )
        self._undo: list[Callable[[], None]] = []

    def _ids_above(self, number: int) -> Iterator[tuple[int, int]]:
        return self._db.execute("SELECT digest, number FROM indicators WHERE number > ?", (number,))

    def _terms_above(self, number: int) -> Iterator[tuple[int, int]]:
        for each in self._read_terms("SELECT number FROM indicators WHERE number > ?", number):
            for term in each.terms:
                yield _key(term.observable), each.number

    @property
    def change(self) -> int:
        """
        The number of the last change.
        """
        return self._change

    @property
    def position(self) -> Position | None:
        """
        The position up to which the bus's journal has been applied; C{None} if nothing was.
        """
        return self._position

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """
        A transaction that also restores the state in memory if it fails.
        """
        self._undo = [functools.partial(self._restore_numbers, self._number, self._change)]
        try:
            with committing(self._by_id, self._by_term), transaction(self._db):
                yield
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            raise

    def _restore_numbers(self, number: int, change: int) -> None:
        self._number, self._change = number, change

    def _read_json(self, type: type[_T], query: str, *parameters: Any) -> _T:
        """
        Read all rows as one JSON text: a single step of SQLite.

        @param type: The type of the rows.
        """
        return self._read(self._read_json_once, type, query, parameters)

    def _read(self, read: Callable[..., _T], *arguments: Any) -> _T:
        """
        Read rows, again after a repair if a value of some row is damaged.
        """
        try:
            return read(*arguments)
        except (sqlite3.OperationalError, msgspec.MsgspecError) as e:
            if not is_of_an_item(e):
                raise
        self._repair()
        return read(*arguments)

    def _read_json_once(self, type: type[_T], query: str, parameters: Sequence[Any]) -> _T:
        (found,) = self._db.execute(query, parameters).fetchone()
        return msgspec.json.decode(found, type=type)

    def _repair(self) -> None:
        """
        Rebuild damaged terms from the indicators' documents, and clear damaged reasons.
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
                _terms_decoder.decode(wanted)
                continue
            except msgspec.MsgspecError:
                pass  # rebuilt from the document
            try:
                after, _ = terms_of(decode_indicator(body))
            except Invalid as e:
                after = NO_TERMS
                self._set_aside([SetAside(Stage.STORE, reason_of(e), body, "indicator", id)], 0)
            self._db.execute(
                "UPDATE indicators SET wanted = ? WHERE number = ?", (_encode_terms(after), number)
            )

    # Items set aside

    def set_aside(
        self,
        items: Sequence[SetAside],
        now: float,
        position: Position | None = None,
        ids: Sequence[str] = (),
    ) -> None:
        """
        @see: L{tbvast.interfaces.IIndicatorStore.set_aside}

        @param now: Seconds since the epoch.
        @param position: As for L{apply}.
        """
        claimed = {id: None for each in items for id in (each.id, *ids_in(each.body)) if id}
        ids = list(claimed | dict.fromkeys(ids))
        with self._transaction():
            self._set_aside(items, now)
            self._retain_in_snapshot(ids)
            self._store_position(position)
        self._position = position or self._position

    def _retain_in_snapshot(self, ids: Sequence[str]) -> None:
        numbers = [stored.number for stored in self._find(_digests(ids)).values()]
        self._db.execute(
            f"UPDATE indicators SET generation = ? WHERE number {IN_JSON_LIST}",
            (self._generation, _json_list(numbers)),
        )

    def _set_aside(self, items: Sequence[SetAside], now: float) -> None:
        set_aside.store_set_aside(self._db, items, int(now * MICROSECONDS))

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
        Store indicators durably. A repeat changes nothing.

        @param indicators: The indicators, in the bus's order.
        @param now: The date that decides about validity, in seconds since the epoch:
            expired indicators end, future ones wait.
        @param search: Whether to search past events for the new ones.
        @param position: The position in the bus's journal after these indicators; C{None}
            if it has no numbers.
        @param decided: Whether the bus has already decided between versions: then the
            last one counts. Otherwise a removal ends the indicator, and the later of
            two versions counts; a version from the future counts as of C{now}.
        @return: The changes for the engine.
        """
        moment = int(now * MICROSECONDS)
        with self._transaction():
            by_id = _digests([indicator.id for indicator in indicators])
            stored = self._find(by_id)
            plain: list[Indicator] = []
            if len(by_id) == len(indicators):
                plain, indicators = split_fast_path(indicators, stored, moment)
            documents = self._read_documents(stored.values()) if stored else {}
            latest: dict[str, Indicator] = {}
            repeated: list[int] = []
            for indicator in indicators:
                id_ = indicator.id
                known = stored.get(id_)
                state = state_at(indicator, moment)
                if known is None:
                    if state == ENDED:
                        continue
                    known = stored[id_] = self._new_indicator(id_, by_id[id_])
                elif not changes_anything(
                    indicator, state, known, documents, None if decided else moment
                ):
                    if known.generation != self._generation:
                        repeated.append(known.number)
                    continue
                version = min(indicator.modified, moment)
                # An ended indicator does not come back with an earlier version.
                known.modified = max(known.modified, version) if state == ENDED else version
                known.state = state
                documents[id_] = indicator.raw
                latest[id_] = indicator
            if repeated:
                self._db.execute(
                    f"UPDATE indicators SET generation = ? WHERE number {IN_JSON_LIST}",
                    (self._generation, _json_list(repeated)),
                )
            changes = self._write(
                [(stored[id], each) for id, each in latest.items()],
                search,
                plain,
                [by_id[each.id] for each in plain],
                moment,
            )
            self._store_position(position)
        self._position = position or self._position
        return changes

    def _new_indicator(self, id: str, digest: int) -> StoredIndicator:
        self._number += 1
        return StoredIndicator(self._number, id, digest, 0, ENDED, True, self._generation, (), True)

    def _find(self, digests: Mapping[str, int]) -> dict[str, StoredIndicator]:
        """
        Read the known ones of some indicators.

        @param digests: The digests of their ids, by id.
        @return: The indicators, by id.
        """
        numbers = self._by_id.find(tuple(digests.values()))
        if not numbers:
            return {}
        found = self._read_json(
            list[StoredIndicator],
            "SELECT json_group_array(json_array(number, id, digest, modified, state,"
            " json(iif(searched, 'true', 'false')), generation,"
            " json(unmatched)))"
            f" FROM indicators WHERE number {IN_JSON_LIST}",
            _json_list(numbers),
        )
        return {stored.id: stored for stored in found if stored.id in digests}

    def _read_documents(self, stored: Iterable[StoredIndicator]) -> dict[str, bytes]:
        """
        @return: The documents, by id; empty for an indicator that has ended.
        """
        ids = {each.number: each.id for each in stored}
        found = self._db.execute(
            f"SELECT number, body FROM indicators WHERE number {IN_JSON_LIST}", (_json_list(ids),)
        )
        return {ids[number]: body for number, body in found}

    def _write(
        self,
        items: Sequence[tuple[StoredIndicator, Indicator]],
        search: bool,
        plain: Sequence[Indicator] = (),
        digests: Sequence[int] = (),
        moment: int = 0,
    ) -> Changes:
        """
        Write indicators, their observables and the indexes.

        @param items: Indicators, each with the row to store.
        @param search: Whether to search past events for the new ones.
        @param plain: Further, plain indicators: see L{split_fast_path}.
        @param digests: The digests of the ids of C{plain}.
        @param moment: The date of C{plain}, in microseconds since the epoch.
        @return: The changes for the engine.
        """
        if not items and not plain:
            return Changes(self._change)
        self._change += 1
        known = [stored.number for stored, _ in items if not stored.is_new]
        before = {
            each.number: {term.observable: bool(term.joint) for term in each.terms}
            for each in (self._read_terms(JSON_LIST, _json_list(known)) if known else ())
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
        new_ids: dict[Observable, list[str]] = {}
        for observable, indicator in zip(observables, plain, strict=True):
            new_ids.setdefault(observable, []).append(indicator.id)
        for stored, indicator in items:
            start, end = indicator.valid_from, indicator.valid_until
            after, reasons = (NO_TERMS, ()) if stored.state != IN_FORCE else terms_of(indicator)
            earlier = before.get(stored.number, NO_TERMS)
            if earlier:
                touched |= earlier.keys() ^ after.keys()
                # The same terms may be joined differently now.
                nothing_new = after.keys() <= earlier.keys() and not (
                    any(after.values()) or any(earlier.values())
                )
            else:
                touched.update(after)
                nothing_new = not after
            if reasons and reasons != stored.unmatched:
                unmatched[stored.id] = reasons
            number = stored.number
            for observable in after:
                new_ids.setdefault(observable, []).append(stored.id)
                (terms if stored.is_new else more_terms).append((observable, number))
                if observable.kind is _NETWORK:
                    networks.append((number,))
            rows.append(
                (
                    number, stored.id, stored.digest, stored.modified,
                    start or 0, NO_END if end is None else end,
                    stored.state, change,
                    0 if search and not (nothing_new and stored.searched) else 1,
                    generation, _encode_terms(after),
                    json.dumps(reasons) if reasons else "[]",
                    bytearray(b"" if stored.state == ENDED else indicator.raw),
                )
            )  # fmt: skip
        self._delete_terms(before)
        # The ids of the new indicators, then those of stored ones.
        ids = {observable: new_ids.get(observable) or [] for observable in touched}
        keys = _keys(touched | new_ids.keys())
        self._add_ids(ids, [keys[observable] for observable in touched])
        # Column by column, which is faster than row by row.
        plain_rows = zip(
            numbers,
            [each.id for each in plain],
            digests,
            [min(each.modified, moment) for each in plain],
            [each.valid_from or 0 for each in plain],
            [NO_END if each.valid_until is None else each.valid_until for each in plain],
            *map(itertools.repeat, (IN_FORCE, change, 0 if search else 1, generation)),
            _encoder.encode_lines([(each,) for each in observables]).decode().split("\n"),
            itertools.repeat("[]"),
            [bytearray(each.raw) for each in plain],
            strict=False,
        )
        insert(self._db, "indicators", list(plain_rows))
        insert(self._db, "indicators", rows, "INSERT OR REPLACE")
        new = list(zip(digests, numbers, strict=True))
        new += [(stored.digest, stored.number) for stored, _ in items if stored.is_new]
        self._by_id.change(new)
        self._by_term.change([(keys[observable], number) for observable, number in terms])
        self._by_term.insert([(keys[observable], number) for observable, number in more_terms])
        insert(self._db, "networks", networks, "INSERT OR IGNORE")
        return self._changes_of(ids, unmatched)

    def _read_terms(self, numbers: str, *parameters: Any) -> list[_IndicatorTerms]:
        """
        Read the observables of indicators; those without any are left out.

        @param numbers: SQL that selects the indicators' numbers.
        @param parameters: The parameters of that SQL.
        """
        return self._read_json(
            list[_IndicatorTerms],
            "SELECT json_group_array(json_array(number, id, json(wanted)))"
            f" FROM indicators WHERE wanted != '[]' AND number IN ({numbers})",
            *parameters,
        )

    def _delete_terms(self, terms: Mapping[int, Iterable[Observable]]) -> None:
        """
        @param terms: The observables of each indicator, by its number.
        """
        if not terms:
            return
        pairs = [(_key(o), number) for number, observables in terms.items() for o in observables]
        self._by_term.change((), pairs)
        self._db.execute(f"DELETE FROM networks WHERE number {IN_JSON_LIST}", (_json_list(terms),))

    def _store_position(self, position: Position | None) -> None:
        if position is not None:
            self._db.execute(
                "UPDATE position SET plugin = ?, number = ?", (position.plugin, position.number)
            )

    def begin_snapshot(self) -> None:
        """
        Begin a snapshot: an indicator that is not applied before L{end_snapshot} ends then.
        """
        self._db.execute("UPDATE position SET generation = generation + 1")
        self._generation += 1

    def end_snapshot(self, position: Position) -> Changes:
        """
        End every indicator that was not applied since L{begin_snapshot}.

        @param position: The position of the snapshot in the bus's journal.
        @return: The changes for the engine.
        """
        with self._transaction():
            self._store_position(position)
            changes = self._end_where("generation != ?", self._generation)
        self._position = position
        return changes

    def expire(self, now: float) -> Changes:
        """
        End the indicators that have reached their C{valid_until}.

        @param now: Seconds since the epoch.
        @return: The changes for the engine.
        """
        with self._transaction():
            return self._end_where(
                f"valid_until < {NO_END} AND valid_until <= ?", int(now * MICROSECONDS)
            )

    def _end_where(self, condition: str, parameter: int | str) -> Changes:
        """
        End indicators.

        @param condition: The SQL condition that selects them.
        @param parameter: The parameter of the condition.
        @return: The changes for the engine.
        """
        ended = self._read_json(
            list[int],
            f"SELECT json_group_array(number) FROM indicators WHERE state != 0 AND {condition}",
            parameter,
        )
        if not ended:
            return Changes(self._change)
        self._change += 1
        numbers = _json_list(ended)
        terms = {
            each.number: [term.observable for term in each.terms]
            for each in self._read_terms(JSON_LIST, numbers)
        }
        self._delete_terms(terms)
        self._db.execute(
            "UPDATE indicators SET state = 0, change = ?, wanted = '[]', unmatched = '[]',"
            f" body = x'' WHERE number {IN_JSON_LIST}",
            (self._change, numbers),
        )
        touched = set[Observable]().union(*terms.values())
        return self._changes_of(self._ids_of(touched), {})

    def activate_due(self, now: float, search: bool) -> Changes:
        """
        Put the indicators in force that have reached their C{valid_from}.

        @param now: Seconds since the epoch.
        @param search: Whether to search past events for them.
        @return: The changes for the engine.
        """
        moment = int(now * MICROSECONDS)
        with self._transaction():
            due = self._db.execute(
                "SELECT body, number, id FROM indicators INDEXED BY beginning"
                " WHERE state = 2 AND valid_from <= ?",
                (moment,),
            ).fetchall()
            return self._activate(due, search, now)

    def rebuild_observables(self, search: bool) -> None:
        """
        Extract the observables of all indicators again if another version's rules did it
        last.

        @param search: Whether to search past events for new observables.
        """
        if self._rules == PATTERN_RULES:
            return
        with self._transaction():
            last = 0
            while rows := self._db.execute(
                "SELECT body, number, id FROM indicators WHERE state = 1 AND number > ?"
                " ORDER BY number LIMIT ?",
                (last, MAX_ROWS_PER_READ),
            ).fetchall():
                last = rows[-1][1]
                self._activate(rows, search, 0.0)
            self._db.execute("UPDATE position SET rules = ?", (PATTERN_RULES,))
        self._rules = PATTERN_RULES

    def _activate(
        self, rows: Sequence[tuple[bytes, int, str]], search: bool, now: float
    ) -> Changes:
        """
        Put indicators in force. A damaged one ends and is set aside.

        @param rows: The document, the number and the id of each.
        @param search: Whether to search past events for them.
        @param now: The date at which a damaged one is set aside.
        @return: The changes for the engine.
        """
        indicators: list[Indicator] = []
        damaged: list[int] = []
        for body, number, id in rows:
            try:
                indicators.append(decode_indicator(body))
            except Invalid as e:  # damaged since it was written
                damaged.append(number)
                self._set_aside([SetAside(Stage.STORE, reason_of(e), body, "indicator", id)], now)
        ended = self._end_where(f"number {IN_JSON_LIST}", _json_list(damaged)) if damaged else None
        stored = self._find(_digests([each.id for each in indicators]))
        indicators = [each for each in indicators if each.id in stored]
        for indicator in indicators:
            stored[indicator.id].state = IN_FORCE
        changes = self._write([(stored[each.id], each) for each in indicators], search)
        return merge_changes([ended, changes]) if ended else changes

    # Observables

    def _changes_of(
        self, ids: dict[Observable, list[str]], unmatched: dict[str, tuple[str, ...]]
    ) -> Changes:
        """
        @param ids: The ids of the indicators of each changed observable.
        @param unmatched: The reasons, by indicator, that are new.
        @return: The changes for the engine, with all networks inside a changed one.
        """
        networks = [o for o in ids if o.kind is _NETWORK]
        for network in networks:
            self._index_network(network.value, bool(ids[network]))
        covered = {each for network in networks for each in self._networks.covered(network.value)}
        ids |= self._ids_covering(covered)
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

    def _index_network(self, network: str, present: bool) -> None:
        do, undo = self._networks.add, self._networks.discard
        if not present:
            do, undo = undo, do
        do(network)
        self._undo.append(functools.partial(undo, network))

    def _ids_of(self, observables: Collection[Observable]) -> dict[Observable, list[str]]:
        """
        @return: The ids of the indicators of each observable.
        """
        ids: dict[Observable, list[str]] = {observable: [] for observable in observables}
        self._add_ids(ids, list(_keys(observables).values()))
        return ids

    def _add_ids(self, ids: Mapping[Observable, list[str]], keys: Sequence[int]) -> None:
        """
        Add the ids of the stored indicators of each observable.

        @param ids: The ids, by observable.
        @param keys: The keys of the observables; see L{_key}.
        """
        numbers = self._by_term.find(keys)
        for each in self._read_terms(JSON_LIST, _json_list(numbers)) if numbers else ():
            for term in each.terms:
                if (some := ids.get(term.observable)) is not None:
                    some.append(each.id)

    def _ids_covering(self, networks: Iterable[str]) -> dict[Observable, list[str]]:
        """
        @return: For each network, the ids of its indicators and of those of the networks
            that cover it.
        """
        covering = {network: list(self._networks.covering(network)) for network in networks}
        observables = {_network(each) for wider in covering.values() for each in wider}
        ids = self._ids_of(observables)
        return {
            _network(network): list({id for each in wider for id in ids[_network(each)]})
            for network, wider in covering.items()
        }

    def entries(self) -> Iterator[Entry]:
        """
        @return: All entries that the engine should hold.
        """
        last: tuple[int, int] | None = BEGINNING
        while last is not None:
            page = self.entries_page(last, MAX_ROWS_PER_READ)
            yield from page.entries
            last = page.last

    def entries_page(self, after: tuple[int, int], limit: int) -> DesiredPage:
        """
        Read a page of the entries that the engine should hold.

        @param after: The end of the previous page; L{BEGINNING} for the first page.
        @param limit: The most observables.
        """
        if after == BEGINNING:
            with self._transaction():
                self._by_term.write_all()
        page = self._read_json(
            list[_IndicatorTerms],
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
            for observable in (term.observable for term in each.terms):
                if len(each.terms) == 1 or _key(observable) == each.digest:
                    ids.setdefault(observable, []).append(each.id)
        wider = self._ids_covering(o.value for o in ids if o.kind is Kind.NETWORK)
        return DesiredPage(
            (max(each.digest for each in page), 0),
            tuple(Entry(o, tuple(sorted(found))) for o, found in (ids | wider).items()),
        )

    def reconcile(self, held: Sequence[Entry]) -> Changes:
        """
        Compare the store with the engine.

        @param held: The entries that the engine holds.
        @return: The changes that make the engine hold the right ones.
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
        Read a page of the indicators for which no past events have been searched, oldest
        first.

        @param until: The number of the last change to include.
        @param limit: The most indicators.
        @param after: The end of the previous page; L{BEGINNING} for the first page.
        """
        found = self._read_json(
            list[_UnsearchedIndicator],
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
        ids: dict[Observable, list[str]] = {}
        joint: set[Observable] = set()
        for each in found:
            for term in each.terms:
                ids.setdefault(term.observable, []).append(each.id)
                if term.joint:
                    joint.add(term.observable)
        ids |= self._ids_covering(o.value for o in ids if o.kind is Kind.NETWORK)
        return DesiredPage(
            (found[-1].change, found[-1].number),
            tuple(Entry(o, tuple(sorted(some)), o in joint) for o, some in ids.items()),
            tuple(each.id for each in found),
        )

    def mark_searched(self, ids: Iterable[str], until: int) -> None:
        """
        Store that past events have been searched for indicators.

        @param ids: The indicators.
        @param until: The same number as for L{unsearched}: an indicator that has changed
            since has to be searched for again.
        """
        searched = list(ids)
        with transaction(self._db):
            self._db.execute(
                "UPDATE indicators SET searched = 1"
                f" WHERE number {IN_JSON_LIST} AND id {IN_JSON_LIST} AND change <= ?",
                (
                    _json_list(self._by_id.find(digests(searched))),
                    json.dumps(searched),
                    until,
                ),
            )

    def bodies(self, ids: Iterable[str]) -> dict[str, bytes]:
        """
        @return: The documents of those of some indicators that are in force, by id.
        """
        return self._read_documents(
            each for each in self._find(_digests(list(ids))).values() if each.state == IN_FORCE
        )

    def counts(self) -> JsonObject:
        """
        @return: C{indicators} in force, C{unsearched} ones among them, and those that are
            C{not_yet} valid; C{unmatched} ones by reason (one may have several), and the
            L{MAX_LISTED} newest of these by id, as C{unmatched_ids}.
        """
        return self._read(self._counts)

    def _counts(self) -> JsonObject:
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
            (MAX_LISTED,),
        )
        return {
            "indicators": indicators,
            "unsearched": unsearched,
            "not_yet": not_yet,
            "unmatched": _most_frequent(dict(reasons)),
            "unmatched_ids": {
                id: list(_unmatched_decoder.decode(why)[:MAX_LISTED_REASONS]) for id, why in listed
            },
        }


_terms_decoder = msgspec.json.Decoder(tuple[_StoredTerm, ...])
_unmatched_decoder = msgspec.json.Decoder(tuple[str, ...])

_encoder = msgspec.json.Encoder()
_encode = _encoder.encode


def _most_frequent(reasons: dict[str, int]) -> dict[str, int]:
    """
    Limit the number of reasons.

    @param reasons: The number of indicators of each, the most frequent first.
    """
    apart = dict(itertools.islice(reasons.items(), MAX_LISTED))
    others = sum(reasons.values()) - sum(apart.values())
    return {**apart, OTHER_REASONS: others} if others else apart


def _json_list(numbers: Iterable[int]) -> str:
    return _encode(list(numbers)).decode()


def _encode_terms(terms: Terms) -> str:
    """
    @return: The stored form of an indicator's terms.
    """
    rows: list[Any] = list(terms)  # a bare observable is a term that is not joint
    if any(terms.values()):
        rows = [(o.kind, o.value, joint) for o, joint in terms.items()]
    return _encode(rows).decode()


def _digests(ids: Sequence[str]) -> dict[str, int]:
    return dict(zip(ids, digests(ids), strict=True))


def _keys(observables: Collection[Observable]) -> dict[Observable, int]:
    """
    @return: The key of each observable; see L{_key}.
    """
    found = digests([observable.kind + " " + observable.value for observable in observables])
    return dict(zip(observables, found, strict=True))


def _key(observable: Observable) -> int:
    """
    @return: The digest by which the index finds an observable.
    """
    return digest(observable.kind + " " + observable.value)


def _network(text: str) -> Observable:
    return Observable(Kind.NETWORK, text)
