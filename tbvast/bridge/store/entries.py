"""
The entries that the engine should hold: the observables of the indicators in force.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence

from tbvast.bridge.store.store_file import IndicatorTerms, StoreFile, json_list
from tbvast.bridge.store.values import BEGINNING, MAX_ENTRIES_PER_MESSAGE, DesiredPage, in_messages
from tbvast.stix.network_index import NetworkIndex
from tbvast.stix.observables import Kind, Observable
from tbvast.storage.digest_index import DigestIndex, digest, digests
from tbvast.storage.sqlite import IN_JSON_LIST, JSON_LIST, insert, transaction
from tbvast.values import Changes, Entry

NETWORK = Kind.NETWORK
# A module's global is found faster than a member of an enumeration.


class EntryTable:
    """
    The index of the indicators in force by their observables.
    L{tbvast.interfaces.IIndicatorStore} documents the other methods.

    @ivar change: The number of the last change.
    """

    def __init__(self, file: StoreFile) -> None:
        self._file, self._db = file, file.connection
        self._index = DigestIndex(self._db, "terms", self._terms_above)
        self._networks = NetworkIndex(
            term.value
            for each in file.read_terms("SELECT number FROM networks")
            for term in each.terms
            if term.kind is NETWORK
        )
        (self.change,) = self._db.execute(
            "SELECT coalesce(max(change), 0) FROM indicators"
        ).fetchone()
        self._undo: list[Callable[[], None]] = []
        self._held: list[Entry] = []

    def _terms_above(self, number: int) -> Iterator[tuple[int, int]]:
        query = "SELECT number FROM indicators WHERE number > ?"
        for each in self._file.read_terms(query, number):
            for term in each.terms:
                yield _key(term.observable), each.number

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """
        Wraps a transaction that changes entries.
        """
        change, self._undo = self.change, []
        try:
            with self._index.committing():
                yield
        except BaseException:
            self.change = change
            for undo in reversed(self._undo):
                undo()
            raise

    def update(
        self,
        touched: set[Observable],
        terms: Sequence[tuple[Observable, int]] = (),
        more_terms: Sequence[tuple[Observable, int]] = (),
        networks: Sequence[tuple[int]] = (),
        added_ids: Mapping[Observable, list[str]] = {},
        unmatched: Mapping[str, tuple[str, ...]] = {},
    ) -> Changes:
        """
        Add the observables of indicators that are not in the index yet, or no longer.

        @param touched: The observables whose indicators change, or were removed.
        @param terms: The observables and numbers of new indicators.
        @param more_terms: Those of indicators that were stored before.
        @param networks: The numbers of the indicators with networks.
        @param added_ids: The ids of all these indicators, by observable.
        @param unmatched: The reasons, by indicator, that are new.
        @return: The changes for the engine, with all networks inside a changed one.
        """
        # The ids of the new indicators, then those of stored ones.
        ids = {observable: added_ids.get(observable) or [] for observable in touched}
        keys = _keys(touched | added_ids.keys())
        self._add_ids(ids, [keys[observable] for observable in touched])
        self._index.change([(keys[observable], number) for observable, number in terms])
        self._index.insert([(keys[observable], number) for observable, number in more_terms])
        insert(self._db, "networks", networks, "INSERT OR IGNORE")
        changed_networks = [o for o in touched if o.kind is NETWORK]
        for network in changed_networks:
            self._index_network(network.value, bool(ids[network]))
        ids |= self._ids_covering(
            {each for o in changed_networks for each in self._networks.covered(o.value)}
        )
        return Changes(
            self.change,
            tuple(
                [
                    Entry(o, (found[0],) if len(found) == 1 else tuple(sorted(found)))
                    for o, found in ids.items()
                    if found
                ]
            ),
            tuple([o for o, found in ids.items() if not found]),
            dict(unmatched),
        )

    def remove(self, terms: Mapping[int, Iterable[Observable]]) -> None:
        """
        Remove indicators, given by number, and their observables from the index.
        """
        if not terms:
            return
        pairs = [(_key(o), number) for number, observables in terms.items() for o in observables]
        self._index.change((), pairs)
        self._db.execute(f"DELETE FROM networks WHERE number {IN_JSON_LIST}", (json_list(terms),))

    def _index_network(self, network: str, present: bool) -> None:
        do, undo = self._networks.add, self._networks.discard
        if not present:
            do, undo = undo, do
        do(network)
        self._undo.append(functools.partial(undo, network))

    def _add_ids(self, ids: Mapping[Observable, list[str]], keys: Sequence[int]) -> None:
        """
        Add the ids of the stored indicators of each observable, found by their keys.
        """
        numbers = self._index.find(keys)
        for each in self._file.read_terms(JSON_LIST, json_list(numbers)) if numbers else ():
            for term in each.terms:
                if (some := ids.get(term.observable)) is not None:
                    some.append(each.id)

    def _entries(
        self, ids: dict[Observable, list[str]], joint: Container[Observable] = ()
    ) -> tuple[Entry, ...]:
        """
        @return: The entries; that of a network also has the ids of those that cover it.
        """
        ids |= self._ids_covering(o.value for o in ids if o.kind is NETWORK)
        return tuple(Entry(o, tuple(sorted(found)), o in joint) for o, found in ids.items())

    def _ids_covering(self, networks: Iterable[str]) -> dict[Observable, list[str]]:
        """
        @return: For each network, the ids of its indicators and of those of the networks
            that cover it.
        """
        covering = {network: list(self._networks.covering(network)) for network in networks}
        ids: dict[Observable, list[str]] = {
            _network(each): [] for wider in covering.values() for each in wider
        }
        self._add_ids(ids, list(_keys(ids).values()))
        return {
            _network(network): list({id for each in wider for id in ids[_network(each)]})
            for network, wider in covering.items()
        }

    def all(self) -> Iterator[Entry]:
        """
        @return: All entries that the engine should hold.
        """
        page = DesiredPage(BEGINNING)
        while page.last is not None:
            page = self.page(page.last)
            yield from page.entries

    def page(self, after: tuple[int, int], limit: int = MAX_ENTRIES_PER_MESSAGE) -> DesiredPage:
        """
        Read a page of the entries that the engine should hold.

        @param after: The end of the previous page; L{BEGINNING} for the first page.
        @param limit: The most observables.
        """
        if after == BEGINNING:
            with self._index.committing(), transaction(self._db):
                self._index.write_all()
        page = self._file.read_json(
            list[IndicatorTerms],
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
                if len(each.terms) == 1 or _key(observable) == each.place:
                    ids.setdefault(observable, []).append(each.id)
        return DesiredPage(
            (max(each.place for each in page), 0),
            self._entries(ids),
        )

    def unsearched(self, until: int, limit: int, after: tuple[int, int] = BEGINNING) -> DesiredPage:
        """
        Read a page of the indicators for which no past events have been searched.

        @param after: The end of the previous page; L{BEGINNING} for the first page.
        """
        found = self._file.read_json(
            list[IndicatorTerms],
            "SELECT json_group_array(json_array(number, id, json(wanted), change))"
            " FROM (SELECT number, id, wanted, change FROM indicators WHERE state = 1"
            " AND searched = 0 AND change <= ? AND (change, number) > (?, ?)"
            " ORDER BY change, number LIMIT ?)",
            until,
            *after,
            min(limit, MAX_ENTRIES_PER_MESSAGE),
        )
        if not found:
            return DesiredPage(None)
        ids: dict[Observable, list[str]] = {}
        for each in found:
            for term in each.terms:
                ids.setdefault(term.observable, []).append(each.id)
        joint = {term.observable for each in found for term in each.terms if term.joint}
        return DesiredPage(
            (found[-1].place, found[-1].number),
            self._entries(ids, joint),
            tuple(each.id for each in found),
        )

    def mark_searched(self, ids: Sequence[str], until: int) -> None:
        numbers = self._file.by_id.find(digests(ids))
        with transaction(self._db):
            self._db.execute(
                "UPDATE indicators SET searched = 1"
                f" WHERE number {IN_JSON_LIST} AND id {IN_JSON_LIST} AND change <= ?",
                (json_list(numbers), json.dumps(ids), until),
            )

    def add_held(self, held: Sequence[Entry], start: int) -> None:
        """
        Take a part of the entries that the engine holds, for L{reconcile}.

        @param start: The number of entries before it.
        """
        self._held[start:] = held

    def reconcile(self) -> Iterator[Changes]:
        stale = {entry.observable: entry.ids for entry in self._held}
        self._held = []
        write = []
        for entry in self.all():
            found = stale.pop(entry.observable, None)
            if found is None or tuple(sorted(found)) != entry.ids:
                write.append(entry)
        return in_messages(Changes(self.change, tuple(write), tuple(stale)))


def _keys(observables: Collection[Observable]) -> dict[Observable, int]:
    found = digests([observable.kind + " " + observable.value for observable in observables])
    return dict(zip(observables, found, strict=True))


def _key(observable: Observable) -> int:
    return digest(observable.kind + " " + observable.value)


def _network(text: str) -> Observable:
    return Observable(NETWORK, text)
