"""
Tests for L{tbvast.bridge.store.values}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.values import BEGINNING, MAX_ENTRIES_PER_MESSAGE, DesiredPage
from tbvast.values import Changes, Entry, Position
from tests.doubles import an_indicator, indicator_id, moment

MANY = 2 * MAX_ENTRIES_PER_MESSAGE + 1


class PartsTests(SynchronousTestCase):
    """
    Long results arrive completely, in several messages.
    """

    def setUp(self) -> None:
        self.store = BridgeStore(Path(self.mktemp()))
        self.addCleanup(self.store.close)

    def know(self, count: int, **changes: Any) -> Changes:
        """
        So many indicators arrive.
        """
        indicators = [
            an_indicator(number, pattern=f"[url:value = 'http://{number}.example/']", **changes)
            for number in range(count)
        ]
        return self.store.indicators.apply(indicators, 0.0, True, Position("bus", count))

    def entries(self) -> list[Entry]:
        pages = list(self.pages(self.store.entries.page))
        self.assertLessEqual(max(len(page.entries) for page in pages), MAX_ENTRIES_PER_MESSAGE)
        return [entry for page in pages for entry in page.entries]

    def pages(self, ask: Callable[[tuple[int, int]], DesiredPage]) -> Iterator[DesiredPage]:
        last: tuple[int, int] | None = BEGINNING
        while last is not None:
            page = ask(last)
            yield page
            last = page.last

    def test_entries(self) -> None:
        """
        All that the engine should hold.
        """
        self.assertEqual(self.entries(), [])
        applied = self.know(MANY)
        self.assertEqual(len(applied.write), MANY)
        self.assertEqual(set(self.entries()), set(applied.write))

    def test_unsearched(self) -> None:
        """
        The ids and the entries to search for.
        """
        self.assertEqual(self.store.entries.unsearched(1, MANY), DesiredPage(None))
        self.know(MANY)
        pages = list(self.pages(lambda last: self.store.entries.unsearched(1, MANY, last)))
        self.assertEqual(
            [len(page.ids) for page in pages],
            [MAX_ENTRIES_PER_MESSAGE, MAX_ENTRIES_PER_MESSAGE, 1, 0],
        )
        ids = [id for page in pages for id in page.ids]
        self.assertEqual(ids, [indicator_id(number) for number in range(MANY)])
        self.assertEqual({e for page in pages for e in page.entries}, set(self.entries()))

    def test_reconciled(self) -> None:
        """
        The engine's entries arrive in parts; those of an earlier comparison are discarded.
        """
        self.know(MANY)
        held = self.entries()
        self.store.entries.add_held(held[:3], 0)
        for start in range(0, len(held), MAX_ENTRIES_PER_MESSAGE):
            self.store.entries.add_held(held[start : start + MAX_ENTRIES_PER_MESSAGE], start)
        self.assertEqual(list(self.store.entries.reconcile()), [Changes(1)])
        self.store.entries.add_held([], 0)
        parts = list(self.store.entries.reconcile())
        self.assertEqual(
            [len(part.write) for part in parts],
            [MAX_ENTRIES_PER_MESSAGE, MAX_ENTRIES_PER_MESSAGE, 1],
        )
        self.assertEqual({part.number for part in parts}, {1})

    def test_ended(self) -> None:
        """
        Many indicators end at once; only the first part has the reasons.
        """
        self.know(MANY, valid_until=moment(50))
        parts = list(self.store.indicators.update_validity(50.0, True))
        self.assertEqual(
            [len(part.erase) for part in parts],
            [MAX_ENTRIES_PER_MESSAGE, MAX_ENTRIES_PER_MESSAGE, 1],
        )
        self.assertEqual(list(self.store.indicators.update_validity(50.0, True)), [Changes(2)])

    def test_snapshot(self) -> None:
        """
        An indicator that a snapshot does not contain ends.
        """
        self.know(MANY)
        self.store.indicators.begin_snapshot()
        self.know(1)
        parts = list(self.store.indicators.end_snapshot(Position("bus", 9)))
        self.assertEqual(sum(len(part.erase) for part in parts), MANY - 1)
        self.assertEqual(self.store.indicators.position, Position("bus", 9))
