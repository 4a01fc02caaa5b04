"""
Tests for L{tbvast.storage.sqlite}.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.storage.sqlite import (
    SchemaUnknown,
    acquire_writer_lock,
    connect,
    insert,
    migrate,
    snapshot,
    transaction,
)

FIRST = "CREATE TABLE a (x); INSERT INTO a VALUES (1);"
SECOND = "ALTER TABLE a ADD COLUMN y DEFAULT 2;"


class MigrateTests(SynchronousTestCase):
    """
    Tests for L{migrate}.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def rows(self, *steps: str, oldest: int = 1) -> list[tuple[int, ...]]:
        """
        The content of a file that was opened by a version with some of the steps.
        """
        connection = connect(self.path)
        self.addCleanup(connection.close)
        migrate(connection, steps, oldest)
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
        self.assertIn("version 2", str(self.assertRaises(SchemaUnknown, self.rows, FIRST)))

    def test_earlier(self) -> None:
        """
        A new file begins with the oldest version; one that is older is left alone.
        """
        self.assertEqual(self.rows(FIRST, SECOND, oldest=3), [(1, 2)])
        self.assertEqual(
            self.rows(FIRST, SECOND, "ALTER TABLE a RENAME x TO z", oldest=3), [(1, 2)]
        )
        error = self.assertRaises(SchemaUnknown, self.rows, FIRST, oldest=6)
        self.assertIn("version 5, written by a tbvast before 0.1.0", str(error))

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


class InsertTests(SynchronousTestCase):
    """
    Rows, many at a time.
    """

    def setUp(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.addCleanup(self.connection.close)
        self.connection.execute("CREATE TABLE a (x INTEGER PRIMARY KEY, y)")

    @given(st.integers(0, 4600))
    def test_all(self, count: int) -> None:
        """
        All are there, in their order, however many.
        """
        self.connection.execute("DELETE FROM a")
        rows = [(None, number) for number in range(count)]
        insert(self.connection, "a", rows)
        found = self.connection.execute("SELECT y FROM a ORDER BY x").fetchall()
        self.assertEqual(found, [(number,) for number in range(count)])

    def test_replaced(self) -> None:
        """
        Another verb can replace existing rows.
        """
        insert(self.connection, "a", [(1, "old"), (2, "old")])
        insert(self.connection, "a", [(1, "new")], "INSERT OR REPLACE")
        found = self.connection.execute("SELECT * FROM a ORDER BY x").fetchall()
        self.assertEqual(found, [(1, "new"), (2, "old")])

    def test_as_a_whole(self) -> None:
        """
        Of a transaction that fails nothing is left.
        """
        with self.assertRaises(sqlite3.IntegrityError), transaction(self.connection):
            insert(self.connection, "a", [(1, "x")])
            insert(self.connection, "a", [(1, "x")])
        self.assertEqual(self.connection.execute("SELECT * FROM a").fetchall(), [])
        self.assertFalse(self.connection.in_transaction)


class SnapshotTests(SynchronousTestCase):
    """
    Tests for L{snapshot}.
    """

    def test_one_time(self) -> None:
        """
        A snapshot does not see commits of others until its end.
        """
        path = Path(self.mktemp())
        writer, reader = connect(path), connect(path)
        writer.execute("CREATE TABLE t (n INTEGER)")

        def count() -> int:
            (found,) = reader.execute("SELECT count(*) FROM t").fetchone()
            return int(found)

        def interrupted() -> None:
            with snapshot(reader):
                self.assertEqual(count(), 0)
                writer.execute("INSERT INTO t VALUES (1)")
                self.assertEqual(count(), 0)
                raise KeyError

        self.assertRaises(KeyError, interrupted)
        self.assertEqual(count(), 1)
        reader.close()
        writer.close()


class OwnTests(SynchronousTestCase):
    """
    Tests for L{acquire_writer_lock}.
    """

    def test_alone(self) -> None:
        """
        One process at a time writes: another one waits, and gives up in the end.
        """
        path = Path(self.mktemp())
        lock = acquire_writer_lock(path)
        e = self.assertRaises(TimeoutError, acquire_writer_lock, path, 0.0)
        self.assertEqual(str(e), "another process writes to it")
        os.close(lock)
        os.close(acquire_writer_lock(path, 0.0))

    def test_no_directory(self) -> None:
        """
        A lock that cannot be made is refused.
        """
        self.assertRaises(FileNotFoundError, acquire_writer_lock, Path(self.mktemp(), "deeper"))
