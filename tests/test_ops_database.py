"""
Tests for L{tbvast.ops.database}.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.ops.database import FromLater, connect, migrate

FIRST = "CREATE TABLE a (x); INSERT INTO a VALUES (1);"
SECOND = "ALTER TABLE a ADD COLUMN y DEFAULT 2;"


class MigrateTests(SynchronousTestCase):
    """
    Tests for L{migrate}.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def rows(self, *steps: str) -> list[tuple[int, ...]]:
        """
        What is there after a file was opened by a version that knows some steps.
        """
        connection = connect(self.path)
        self.addCleanup(connection.close)
        migrate(connection, steps)
        return connection.execute("SELECT * FROM a").fetchall()

    def test_new(self) -> None:
        """
        A new file takes all steps.
        """
        self.assertEqual(self.rows(FIRST, SECOND), [(1, 2)])

    def test_old(self) -> None:
        """
        An old file takes those it has not taken, once.
        """
        self.assertEqual(self.rows(FIRST), [(1,)])
        self.assertEqual(self.rows(FIRST, SECOND), [(1, 2)])
        self.assertEqual(self.rows(FIRST, SECOND), [(1, 2)])

    def test_later(self) -> None:
        """
        A file of a later version is left alone.
        """
        self.rows(FIRST, SECOND)
        self.assertIn("version 2", str(self.assertRaises(FromLater, self.rows, FIRST)))

    def test_half(self) -> None:
        """
        A step that fails leaves nothing behind.
        """
        self.assertRaises(sqlite3.Error, self.rows, FIRST, "nonsense")
        self.assertEqual(self.rows(FIRST), [(1,)])

    def test_durable(self) -> None:
        """
        Commits are on disk before they are done.
        """
        connection = connect(self.path)
        self.addCleanup(connection.close)
        self.assertEqual(connection.execute("PRAGMA journal_mode").fetchone(), ("wal",))
        self.assertEqual(connection.execute("PRAGMA synchronous").fetchone(), (2,))
