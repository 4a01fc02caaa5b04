"""
Tests for L{tbvast.storage.digest_index}.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.storage.digest_index import INDEXED_TABLE, DigestIndex, digest, index_table
from tbvast.storage.sqlite import connect, migrate, transaction

FEW = 4
"""
How many gather before they are written, in these tests.
"""

SOME_DIGESTS = st.integers(0, 9)


class DigestTests(SynchronousTestCase):
    """
    Tests for L{digest}.
    """

    def test_digest(self) -> None:
        """
        A text and its bytes have the same digest, and another text another one.
        """
        self.assertEqual(digest("a"), digest(b"a"))
        self.assertNotEqual(digest("a"), digest("b"))
        self.assertLess(digest("a"), 1 << 48)


class Refused(Exception):
    """
    A transaction that is to fail.
    """


class IndexTestCase(SynchronousTestCase):
    """
    An index of rows that have a digest each, or several.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.open()
        self.head = 0

    def open(self) -> None:
        self.connection = connect(self.path)
        self.addCleanup(self.connection.close)
        rows = "CREATE TABLE rows (digest INTEGER, number INTEGER)"
        migrate(self.connection, [f"{rows}; {index_table('by_digest')}; {INDEXED_TABLE}"])
        self.index = DigestIndex(self.connection, "by_digest", self.rows, FEW, FEW // 2)

    def rows(self, number: int) -> Iterable[tuple[int, int]]:
        return self.connection.execute(
            "SELECT digest, number FROM rows WHERE number > ? ORDER BY number", (number,)
        )

    def reopen(self) -> None:
        self.connection.close()
        self.open()

    def change(
        self, added: Iterable[int], removed: Iterable[tuple[int, int]] = (), fails: bool = False
    ) -> None:
        """
        Add rows with these digests, and remove some.
        """
        new = [(each, self.head + number) for number, each in enumerate(added, 1)]
        gone = list(removed)
        try:
            with self.index.committing(), transaction(self.connection):
                self.connection.executemany("INSERT INTO rows VALUES (?, ?)", new)
                self.connection.executemany(
                    "DELETE FROM rows WHERE digest = ? AND number = ?", gone
                )
                self.index.change(new, gone)
                self.assertEqual(self.found(), self.there())
                if fails:
                    raise Refused
        except Refused:
            return
        self.head += len(new)

    def there(self) -> list[tuple[int, int]]:
        return sorted(self.rows(0))

    def found(self) -> list[tuple[int, int]]:
        """
        The numbers of each digest, looked up one by one and all at once, which must agree.
        """
        digests = list(range(10))
        found = [(each, number) for each in digests for number in set(self.index.find([each]))]
        self.assertEqual(set(self.index.find(digests)), {number for _, number in found})
        return sorted(found)

    def written(self) -> int:
        """
        How many are in the file.
        """
        (count,) = self.connection.execute("SELECT count(*) FROM by_digest").fetchone()
        return int(count)


class IndexTests(IndexTestCase):
    """
    Tests for L{DigestIndex}.
    """

    def test_gathers(self) -> None:
        """
        New digests are in memory, and written gradually.
        """
        self.change([3, 1])
        self.change([2, 0])
        self.assertEqual((self.written(), self.found()), (0, self.there()))
        self.change([9, 8])
        self.assertEqual(self.written(), 2)
        self.change([7])
        self.assertEqual(self.written(), 2)
        self.change([6])
        self.assertEqual((self.written(), self.found()), (4, self.there()))

    def test_many_at_once(self) -> None:
        """
        As many are written as are added, so that there are never too many in memory.
        """
        for _ in range(20):
            self.change(range(10))
        self.assertGreater(self.written(), 20 * 10 - 3 * 10)
        self.assertEqual(self.found(), self.there())

    def test_same_digest(self) -> None:
        """
        Rows may have the same digest.
        """
        self.change([1, 1])
        self.change([1])
        self.assertEqual(sorted(self.index.find([1])), [1, 2, 3])

    def test_reopened(self) -> None:
        """
        Digests that were only in memory are read when the file is opened again; the more is
        written, the less is read.
        """
        self.change([1, 2, 3, 4, 5])
        self.change([6, 7])
        self.reopen()
        self.assertEqual(self.found(), self.there())
        for each in range(20):
            self.change([each % 10])
        (until,) = self.connection.execute("SELECT until FROM indexed").fetchone()
        self.assertGreater(until, self.head - 4 * FEW)

    def test_write_all(self) -> None:
        """
        Everything can be written at once, and is read from the file from then on.
        """
        for added in ([3, 1], [2, 4, 5], [6]):
            self.change(added)
        with self.index.committing(), transaction(self.connection):
            self.index.write_all()
        self.assertEqual(self.written(), 6)
        self.assertEqual(self.found(), self.there())
        with self.index.committing(), transaction(self.connection):
            self.index.write_all()
        self.change([7])
        self.assertEqual((self.written(), self.found()), (6, self.there()))
        self.reopen()
        self.assertEqual((self.written(), self.found()), (6, self.there()))

    def test_insert(self) -> None:
        """
        A row that is not new can get another digest.
        """
        self.change([1, 2])
        with self.index.committing(), transaction(self.connection):
            self.index.change((), [(1, 1)])
            self.index.insert([(5, 1)])
            self.assertEqual(self.found(), [(2, 2), (5, 1)])
        self.assertEqual(self.found(), [(2, 2), (5, 1)])

    def test_twice(self) -> None:
        """
        A digest may be added and removed in one transaction.
        """
        with self.index.committing(), transaction(self.connection):
            self.index.change([(1, 1), (2, 2)])
            self.index.change([(3, 3)], [(1, 1)])
            self.assertEqual(self.found(), [(2, 2), (3, 3)])
        self.assertEqual(self.found(), [(2, 2), (3, 3)])

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.lists(SOME_DIGESTS, max_size=6),
                st.sets(st.integers(0, 30), max_size=3),
                st.sampled_from(["", "", "fails", "reopen", "write"]),
            ),
            max_size=12,
        )
    )
    def test_any_order(self, steps: list[tuple[list[int], set[int], str]]) -> None:
        """
        After any sequence of additions, removals, failures and reopenings, exactly the existing
        rows are found.
        """
        self.setUp()
        for added, removed, what in steps:
            there = self.there()
            gone = [there[place] for place in removed if place < len(there)]
            self.change(added, gone, what == "fails")
            self.assertEqual(self.found(), self.there())
            if what == "reopen":
                self.reopen()
            elif what == "write":
                with self.index.committing(), transaction(self.connection):
                    self.index.write_all()
            self.assertEqual(self.found(), self.there())
        self.connection.close()
