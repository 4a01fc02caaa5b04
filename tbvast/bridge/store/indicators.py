"""
The indicators in the bridge's store: blocking calls, from one thread at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from tbvast.bridge.store.decisions import (
    ENDED,
    IN_FORCE,
    NO_TERMS,
    StoredIndicator,
    changes_anything,
    state_at,
    terms_of,
)
from tbvast.bridge.store.entries import NETWORK, EntryTable
from tbvast.bridge.store.schema import NO_END
from tbvast.bridge.store.store_file import StoreFile, digests_of, encode_terms, json_list
from tbvast.bridge.store.values import in_messages, merge_changes
from tbvast.errors import Invalid, StoreFailed
from tbvast.protocol.unreadable import ids_in
from tbvast.stix.indicators import Indicator, decode_indicator
from tbvast.stix.observables import Observable
from tbvast.stix.pattern_conditions import PATTERN_RULES, sure_observable
from tbvast.storage.set_aside import SetAside, Stage, reason_of, store_set_aside
from tbvast.storage.sifting import sift
from tbvast.storage.sqlite import IN_JSON_LIST, insert, microseconds, transaction
from tbvast.values import Changes, Position

MAX_ROWS_PER_READ = 5000
"""
The most indicators that one query reads.
"""


_encode_lines = msgspec.json.Encoder().encode_lines


class IndicatorTable:
    """
    The indicators, their observables, and the position in the bus's journal.

    L{tbvast.interfaces.IIndicatorStore} documents the other methods. Dates are
    in seconds since the epoch; C{search} is whether to search past events for new indicators.
    """

    def __init__(self, file: StoreFile, entries: EntryTable) -> None:
        self._file, self._db = file, file.connection
        self._entries = entries
        self._by_id = file.by_id
        self._generation, self._rules = self._db.execute(
            "SELECT generation, rules FROM position"
        ).fetchone()
        (self._number,) = self._db.execute(
            "SELECT coalesce(max(number), 0) FROM indicators"
        ).fetchone()
        self._failed_run = 0

    @property
    def position(self) -> Position | None:
        """
        The position up to which the bus's journal has been applied; C{None} if nothing was.
        """
        plugin, number = self._db.execute("SELECT plugin, number FROM position").fetchone()
        return None if plugin is None else Position(plugin, number)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """
        A transaction that also restores the state in memory if it fails.
        """
        number = self._number
        try:
            with self._by_id.committing(), self._entries.committing(), transaction(self._db):
                yield
        except BaseException:
            self._number = number
            raise

    def set_aside(
        self,
        items: Sequence[SetAside],
        ids: Sequence[str],
        now: float,
        position: Position | None = None,
    ) -> None:
        claimed = {id: None for each in items for id in (each.id, *ids_in(each.body)) if id}
        with self._transaction():
            stored = self._file.find(digests_of(list(claimed | dict.fromkeys(ids))))
            store_set_aside(self._db, items, microseconds(now))
            self._retain_in_snapshot(each.number for each in stored.values())
            self._store_position(position)

    def _retain_in_snapshot(self, numbers: Iterable[int]) -> None:
        self._db.execute(
            f"UPDATE indicators SET generation = ? WHERE number {IN_JSON_LIST}",
            (self._generation, json_list(numbers)),
        )

    def apply_batch(
        self,
        indicators: Sequence[Indicator],
        now: float,
        search: bool,
        position: Position | None,
        decided: bool,
        run: int,
    ) -> Changes:
        """
        As L{apply}, but indicators that cannot be stored are set aside.

        @raise StoreFailed: If an earlier batch of the same run failed.
        """
        if run == self._failed_run:
            raise StoreFailed("an earlier batch could not be applied")

        def apply(some: Sequence[Indicator]) -> Changes:
            whole = some is indicators
            return self.apply(some, now, search, position if whole else None, decided)

        try:
            applied, failed = sift(indicators, apply)
            if failed or len(applied) > 1:
                aside = [
                    SetAside(Stage.STORE, reason_of(e), each.raw, "indicator", each.id)
                    for each, e in failed
                ]
                self.set_aside(aside, (), now, position)
            return merge_changes(applied or [Changes(self._entries.change)])
        except Exception:
            self._failed_run = run
            raise

    def apply(
        self,
        indicators: Sequence[Indicator],
        now: float,
        search: bool,
        position: Position | None = None,
        decided: bool = False,
    ) -> Changes:
        moment = microseconds(now)
        with self._transaction():
            by_id = digests_of([indicator.id for indicator in indicators])
            stored = self._file.find(by_id)
            all_differ = len(by_id) == len(indicators)
            plain: list[Indicator] = []
            documents = self._file.documents(stored.values()) if stored else {}
            latest: dict[str, Indicator] = {}
            repeated: list[int] = []
            for indicator in indicators:
                id_ = indicator.id
                known = stored.get(id_)
                state = state_at(indicator, moment)
                if known is None:
                    if state == ENDED:
                        continue
                    if all_differ and state == IN_FORCE and indicator.surely_matchable:
                        plain.append(indicator)
                        continue
                    self._number += 1
                    known = stored[id_] = StoredIndicator(
                        self._number, id_, by_id[id_], 0, ENDED, True, self._generation, (), True
                    )
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
                self._retain_in_snapshot(repeated)
            changes = self._write(
                [(stored[id], each) for id, each in latest.items()],
                search,
                plain,
                [by_id[each.id] for each in plain],
                moment,
            )
            self._store_position(position)
        return changes

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
        @param plain: Further indicators, with different ids: new, in force, and with a single
            observable that needs no parser, as most are.
        @param digests: The digests of the ids of C{plain}.
        @param moment: The date of C{plain}, in microseconds since the epoch.
        @return: The changes for the engine.
        """
        if not items and not plain:
            return Changes(self._entries.change)
        self._entries.change += 1
        known = [stored.number for stored, _ in items if not stored.is_new]
        before = self._file.observables_of(known) if known else {}
        rows: list[tuple[Any, ...]] = []
        more_terms: list[tuple[Observable, int]] = []
        networks: list[tuple[int]] = []
        unmatched: dict[str, tuple[str, ...]] = {}
        change, generation = self._entries.change, self._generation
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
                if observable.kind is NETWORK:
                    networks.append((number,))
            rows.append(
                (
                    number, stored.id, stored.digest, stored.modified,
                    start or 0, NO_END if end is None else end,
                    stored.state, change,
                    0 if search and not (nothing_new and stored.searched) else 1,
                    generation, encode_terms(after),
                    json.dumps(reasons) if reasons else "[]",
                    bytearray(b"" if stored.state == ENDED else indicator.raw),
                )
            )  # fmt: skip
        self._entries.remove(before)
        # Column by column, which is faster than row by row.
        plain_rows = zip(
            numbers,
            [each.id for each in plain],
            digests,
            [min(each.modified, moment) for each in plain],
            [each.valid_from or 0 for each in plain],
            [NO_END if each.valid_until is None else each.valid_until for each in plain],
            *map(itertools.repeat, (IN_FORCE, change, 0 if search else 1, generation)),
            _encode_lines([(each,) for each in observables]).decode().split("\n"),
            itertools.repeat("[]"),
            [bytearray(each.raw) for each in plain],
            strict=False,
        )
        insert(self._db, "indicators", list(plain_rows))
        insert(self._db, "indicators", rows, "INSERT OR REPLACE")
        new = list(zip(digests, numbers, strict=True))
        new += [(stored.digest, stored.number) for stored, _ in items if stored.is_new]
        self._by_id.change(new)
        return self._entries.update(touched, terms, more_terms, networks, new_ids, unmatched)

    def _store_position(self, position: Position | None) -> None:
        if position is not None:
            self._db.execute(
                "UPDATE position SET plugin = ?, number = ?", (position.plugin, position.number)
            )

    def begin_snapshot(self) -> None:
        self._db.execute("UPDATE position SET generation = generation + 1")
        self._generation += 1

    def end_snapshot(self, position: Position) -> Iterator[Changes]:
        with self._transaction():
            self._store_position(position)
            return in_messages(self._end_where("generation != ?", self._generation))

    def _end_where(self, condition: str, parameter: int | str) -> Changes:
        ended = self._file.read_json(
            list[int],
            f"SELECT json_group_array(number) FROM indicators WHERE state != 0 AND {condition}",
            parameter,
        )
        if not ended:
            return Changes(self._entries.change)
        self._entries.change += 1
        terms = self._file.observables_of(ended)
        self._entries.remove(terms)
        self._db.execute(
            "UPDATE indicators SET state = 0, change = ?, wanted = '[]', unmatched = '[]',"
            f" body = x'' WHERE number {IN_JSON_LIST}",
            (self._entries.change, json_list(ended)),
        )
        return self._entries.update(set[Observable]().union(*terms.values()))

    def update_validity(self, now: float, search: bool) -> Iterator[Changes]:
        moment = microseconds(now)
        with self._transaction():
            ended = self._end_where(f"valid_until < {NO_END} AND valid_until <= ?", moment)
            due = self._db.execute(
                "SELECT body, number, id FROM indicators INDEXED BY beginning"
                " WHERE state = 2 AND valid_from <= ?",
                (moment,),
            ).fetchall()
            return in_messages(merge_changes([ended, self._activate(due, search, now)]))

    def rebuild_observables(self, search: bool) -> None:
        """
        Extract the observables of all indicators again if other rules did it last.
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
        @param now: The date at which a damaged one is set aside.
        """
        indicators: list[Indicator] = []
        damaged: list[int] = []
        for body, number, id in rows:
            try:
                indicators.append(decode_indicator(body))
            except Invalid as e:  # damaged since it was written
                damaged.append(number)
                aside = SetAside(Stage.STORE, reason_of(e), body, "indicator", id)
                store_set_aside(self._db, [aside], microseconds(now))
        ended = self._end_where(f"number {IN_JSON_LIST}", json_list(damaged)) if damaged else None
        stored = self._file.find(digests_of([each.id for each in indicators]))
        indicators = [each for each in indicators if each.id in stored]
        for indicator in indicators:
            stored[indicator.id].state = IN_FORCE
        changes = self._write([(stored[each.id], each) for each in indicators], search)
        return merge_changes([ended, changes]) if ended else changes

    def bodies(self, ids: Collection[str]) -> dict[str, bytes]:
        return self._file.documents(
            each
            for each in self._file.find(digests_of(list(ids))).values()
            if each.state == IN_FORCE
        )
