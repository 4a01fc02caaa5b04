"""
No more of what a search finds than was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry, Hit, Match

MOST_COMBINATIONS = 50_000
"""
How many combinations of observables are counted in one search; events with others
are let through.
"""


class Limit:
    """
    Lets at most so many events through for each observable, and for each combination
    of such as an indicator may want together: these may be rare, however frequent
    each of them is.
    """

    def __init__(self, limit: int, entries: Collection[Entry] = ()) -> None:
        """
        @param limit: C{0} lets all of them through.
        @param entries: What is searched for.
        """
        self._limit = limit
        self._joint = _joint(entries)
        self._seen: Counter[Observable] = Counter()
        self._combined: Counter[tuple[str, frozenset[Observable]]] = Counter()

    def apply(self, found: Sequence[Match]) -> list[Match]:
        """
        Leave out what is too much: of an event what nobody gets to see any more, and
        events of which nothing is left.
        """
        if not self._limit:
            return list(found)
        return [kept for match in found if (kept := self._kept(match)) is not None]

    def _kept(self, match: Match) -> Match | None:
        observables = [Observable(hit.kind, hit.value) for hit in match.hits]
        open_ = {each for each in observables if self._seen[each] < self._limit}
        self._seen.update(open_)
        ids = set(self._together(match.hits, observables))
        for hit, observable in zip(match.hits, observables, strict=True):
            if observable in open_:
                ids.update(hit.ids)
        hits: list[Hit] = []
        for hit, observable in zip(match.hits, observables, strict=True):
            if observable in open_:
                hits.append(hit)
            elif left := tuple(id for id in hit.ids if id in ids):
                hits.append(Hit(hit.field, hit.kind, hit.value, left))
        return Match(match.event, match.schema, tuple(hits)) if hits else None

    def _together(self, hits: Sequence[Hit], observables: Sequence[Observable]) -> Iterator[str]:
        """
        Count the combinations.

        @return: The ids of those indicators which the event is still to be shown to.
        """
        wanted: dict[str, set[Observable]] = {}
        for hit, observable in zip(hits, observables, strict=True):
            if observable in self._joint:
                for id in hit.ids:
                    wanted.setdefault(id, set()).add(observable)
        for id, together in wanted.items():
            if len(together) < 2:
                continue
            key = (id, frozenset(together))
            if key in self._combined or len(self._combined) < MOST_COMBINATIONS:
                self._combined[key] += 1
            if self._combined[key] <= self._limit:
                yield id


def _joint(entries: Collection[Entry]) -> set[Observable]:
    """
    What is joint, or a network within one that is: an engine may name only that one.
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
