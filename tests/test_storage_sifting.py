"""
Tests for L{tbvast.storage.sifting}.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.storage.sifting import is_of_an_item, sift


class SiftTests(SynchronousTestCase):
    """
    Tests for L{sift}.
    """

    @given(st.lists(st.integers(0, 50)), st.sets(st.integers(0, 50), max_size=5))
    def test_each(self, items: list[int], bad: set[int]) -> None:
        """
        Possible items are processed in order and once; the others are returned.
        """

        def do(some: Sequence[int]) -> list[int]:
            for each in some:
                if each in bad:
                    raise ValueError(each)
            return list(some)

        done, failed = sift(items, do)
        self.assertEqual(
            [each for some in done for each in some], [each for each in items if each not in bad]
        )
        self.assertEqual([each for each, _ in failed], [each for each in items if each in bad])

    def test_others(self) -> None:
        """
        An error that no item caused is raised, and ends the attempt.
        """
        calls = []

        def do(some: Sequence[int]) -> None:
            calls.append(some)
            raise OSError("the disk refuses")

        self.assertRaises(OSError, sift, [1, 2, 3], do)
        self.assertEqual(len(calls), 1)

    def test_errors(self) -> None:
        """
        An error of SQLite is one of the disk, or of an item.
        """
        with sqlite3.connect(":memory:") as database:
            database.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
            database.execute("INSERT INTO t VALUES (1)")
            for statement, expected in (
                ("INSERT INTO t VALUES (1)", True),
                ("INSERT INTO t VALUES ('x')", True),
                ("SELECT json('{')", True),
                ("PRAGMA query_only = ON; INSERT INTO t VALUES (2)", False),
            ):
                *before, last = statement.split(";")
                for each in before:
                    database.execute(each)
                error = self.assertRaises(sqlite3.Error, database.execute, last)
                self.assertEqual(is_of_an_item(error), expected, statement)
        database.close()
        self.assertFalse(is_of_an_item(self.assertRaises(sqlite3.Error, database.execute, "")))
