"""
Bounds the number of events that a search finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry, Hit, Match

MAX_COMBINATIONS = 50_000
"""
The most combinations of observables that one search counts; any further ones pass.
"""


class SearchBudget:
    """
    Limits the events per observable, and per combination of observables that an indicator may
    require together, which can be rare although each of them is frequent.
    """

    def __init__(self, limit: int, entries: Collection[Entry] = ()) -> None:
        """
        @param limit: The most events per observable; C{0} is unlimited.
        @param entries: The entries of the search.
        """
        self._limit = limit
        self._joint = _joint(entries)
        self._seen: Counter[Observable] = Counter()
        self._combined: Counter[tuple[str, frozenset[Observable]]] = Counter()

    def apply(self, found: Sequence[Match]) -> list[Match]:
        """
        Remove the hits that exceed the limit, and matches without remaining hits.

        @param found: The next matches of the search.
        @return: The remaining matches, in order.
        """
        if not self._limit:
            return list(found)
        return [kept for match in found if (kept := self._reduced(match)) is not None]

    def _reduced(self, match: Match) -> Match | None:
        found = [(hit, Observable(hit.kind, hit.value)) for hit in match.hits]
        below_limit = {each for _, each in found if self._seen[each] < self._limit}
        self._seen.update(below_limit)
        ids = {id for hit, each in found if each in below_limit for id in hit.ids}
        ids.update(self._ids_within(found))
        hits = tuple(
            Hit(hit.field, hit.kind, hit.value, left)
            for hit in match.hits
            if (left := tuple(id for id in hit.ids if id in ids))
        )
        return Match(match.event, match.schema, hits) if hits else None

    def _ids_within(self, found: Sequence[tuple[Hit, Observable]]) -> Iterator[str]:
        """
        Count the combinations of an event.

        @return: The ids of the indicators whose combination is still within the limit.
        """
        combinations: dict[str, set[Observable]] = {}
        for hit, observable in found:
            if observable in self._joint:
                for id in hit.ids:
                    combinations.setdefault(id, set()).add(observable)
        for id, together in combinations.items():
            if len(together) < 2:
                continue
            key = (id, frozenset(together))
            if key in self._combined or len(self._combined) < MAX_COMBINATIONS:
                self._combined[key] += 1
            if self._combined[key] <= self._limit:
                yield id


def _joint(entries: Collection[Entry]) -> set[Observable]:
    """
    @return: The observables of joint entries, and all networks of their indicators: an engine
        may report only the narrowest of several networks.
    """
    wide = {
        id
        for entry in entries
        if entry.joint and entry.observable.kind is Kind.NETWORK
        for id in entry.ids
    }
    return {
        entry.observable
        for entry in entries
        if entry.joint or (entry.observable.kind is Kind.NETWORK and not wide.isdisjoint(entry.ids))
    }
