"""
The progress of the searches: indicators for which past events have been searched, and the moment
up to which arriving events have been matched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tbvast.bridge.store.entries import EntryTable
from tbvast.bridge.store.store_file import IndicatorTerms, StoreFile, json_list
from tbvast.bridge.store.values import BEGINNING, MAX_ENTRIES_PER_MESSAGE, DesiredPage
from tbvast.stix.observables import Observable
from tbvast.storage.digest_index import digests
from tbvast.storage.sqlite import IN_JSON_LIST, transaction
from tbvast.values import Covered, Entry


class SearchProgress:
    """
    The columns and the table that record the searches.
    """

    def __init__(self, file: StoreFile, entries: EntryTable) -> None:
        """
        @param file: The open store.
        @param entries: Has the networks that cover others.
        """
        self._file, self._db = file, file.connection
        self._entries = entries

    def unsearched(self, until: int, limit: int, after: tuple[int, int] = BEGINNING) -> DesiredPage:
        """
        Read a page of the indicators for which no past events have been searched, oldest
        first.

        @param until: The number of the last change to include.
        @param limit: The most indicators.
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
        joint: set[Observable] = set()
        for each in found:
            for term in each.terms:
                ids.setdefault(term.observable, []).append(each.id)
                if term.joint:
                    joint.add(term.observable)
        return DesiredPage(
            (found[-1].place, found[-1].number),
            tuple(
                Entry(o, tuple(sorted(some)), o in joint)
                for o, some in self._entries.with_networks(ids).items()
            ),
            tuple(each.id for each in found),
        )

    def mark_searched(self, ids: Sequence[str], until: int) -> None:
        """
        @see: L{tbvast.interfaces.IIndicatorStore.mark_searched}
        """
        numbers = self._file.by_id.find(digests(ids))
        with transaction(self._db):
            self._db.execute(
                "UPDATE indicators SET searched = 1"
                f" WHERE number {IN_JSON_LIST} AND id {IN_JSON_LIST} AND change <= ?",
                (json_list(numbers), json.dumps(ids), until),
            )

    def covered(self) -> Covered | None:
        """
        @see: L{tbvast.interfaces.IIndicatorStore.covered}
        """
        found = self._db.execute("SELECT until, awake, boot FROM covered").fetchone()
        return None if found is None else Covered(*found)

    def set_covered(self, covered: Covered) -> None:
        """
        @see: L{tbvast.interfaces.IIndicatorStore.set_covered}
        """
        self._db.execute(
            "INSERT OR REPLACE INTO covered VALUES (1, ?, ?, ?)",
            (covered.until, covered.awake, covered.boot),
        )
