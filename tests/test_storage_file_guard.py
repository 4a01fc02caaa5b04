"""
Tests for L{tbvast.storage.file_guard}.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import FileLost
from tbvast.storage.file_guard import FileGuard, beside, damage_of, move_aside
from tbvast.storage.sqlite import PAGE_BYTES, connect

ROWS = 400


class FileGuardTests(SynchronousTestCase):
    """
    Tests for L{FileGuard}, on a file whose newest rows are only in the write-ahead log.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "the.db"
        self.path.parent.mkdir()
        self.connection = connect(self.path)
        self.addCleanup(self.connection.close)
        self.connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        self.add(ROWS // 2)
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.guard = FileGuard(self.connection, self.path, "the file", now=lambda: 0.0)
        with self.guard:
            self.add(ROWS // 2)

    def add(self, count: int) -> None:
        self.connection.executemany(
            "INSERT INTO t (body) VALUES (?)", [(b"x" * 1000,) for _ in range(count)]
        )

    def names(self) -> list[str]:
        return sorted(each.name for each in self.path.parent.iterdir())

    def rows(self, path: Path) -> int:
        """
        The number of rows in a file that is no longer in use.
        """
        self.connection.close()
        other = sqlite3.connect(path)
        self.addCleanup(other.close)
        self.assertEqual(other.execute("PRAGMA quick_check").fetchall(), [("ok",)])
        (count,) = other.execute("SELECT count(*) FROM t").fetchone()
        return int(count)

    def lost(self) -> str:
        """
        The text of the loss, which is the same for every check.
        """
        said = str(self.assertRaises(FileLost, self.guard.check))
        self.assertEqual(str(self.assertRaises(FileLost, self.guard.__enter__)), said)
        self.assertNotIn("\n", said)
        return said

    def test_there(self) -> None:
        """
        Growing and shrinking are no damage.
        """
        with self.guard:
            self.add(ROWS)
        with self.guard:
            self.connection.execute("DELETE FROM t WHERE number > 10")
            self.connection.executescript("PRAGMA incremental_vacuum")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.guard.check()
        self.assertEqual(self.names(), ["the.db", "the.db-shm", "the.db-wal"])

    def test_removed(self) -> None:
        """
        A removed file is written again, with or without its log.
        """
        for removed in (("",), ("", "-wal"), ("", "-wal", "-shm"), ("-wal",), ("-shm",)):
            with self.subTest(removed):
                self.setUp()
                for each in removed:
                    os.unlink(f"{self.path}{each}")
                said = self.lost()
                self.assertIn(f"{self.path}{removed[0]} was removed while it was in use", said)
                self.assertIn("all that was committed has been written to it again", said)
                self.assertEqual(self.rows(self.path), ROWS)

    def test_within(self) -> None:
        """
        Data written after the file was removed does not count as committed.
        """

        def write() -> None:
            with self.guard:
                self.add(1)
                self.path.unlink()

        self.assertRaises(FileLost, write)
        self.assertEqual(self.rows(self.path), ROWS + 1)

    def test_replaced(self) -> None:
        """
        Another file in its place is not touched; the committed data is written beside it.
        """
        other = self.path.with_name("other")
        other.write_bytes(b"other")
        other.replace(self.path)
        said = self.lost()
        self.assertIn("was replaced", said)
        self.assertEqual(self.path.read_bytes(), b"other")
        rescued = self.path.with_name("the.db-rescued-19700101T000000Z")
        self.assertIn(str(rescued), said)
        self.assertEqual(self.rows(rescued), ROWS)
        self.assertEqual(rescued.stat().st_mode & 0o777, 0o600)

    def test_cut(self) -> None:
        """
        Of a file that was cut, all that is still in memory is written again.
        """
        size = self.path.stat().st_size
        os.truncate(self.path, size - PAGE_BYTES)
        said = self.lost()
        self.assertIn(f"was cut from {size} to {size - PAGE_BYTES} bytes", said)
        self.assertEqual(self.rows(self.path), ROWS)
        self.assertIn("the.db-damaged-19700101T000000Z", self.names())

    def damage(self) -> None:
        """
        Overwrite pages that are not in memory.
        """
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.close()
        content = bytearray(self.path.read_bytes())
        content[PAGE_BYTES * 3 : -PAGE_BYTES] = b"\xff" * (len(content) - 4 * PAGE_BYTES)
        self.path.write_bytes(content)
        self.connection = connect(self.path)
        self.connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()

    def count(self) -> None:
        with self.guard:
            self.connection.execute("SELECT sum(length(body)) FROM t").fetchone()

    def test_damaged(self) -> None:
        """
        A damaged file is no longer used, and stays in its place.
        """
        self.damage()
        before = self.path.read_bytes()
        self.guard = FileGuard(self.connection, self.path, "the file")
        said = str(self.assertRaises(FileLost, self.count))
        self.assertIn("damaged", said)
        self.assertIn("could not be written again", said)
        self.assertEqual(self.lost(), said)
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual(self.names(), ["the.db", "the.db-shm", "the.db-wal"])

    def test_replacement(self) -> None:
        """
        The replacement is called, if there is one.
        """
        made: list[str] = []

        def make() -> str:
            made.append("one")
            return "another was made"

        self.damage()
        self.guard = FileGuard(self.connection, self.path, "the file", make)
        said = str(self.assertRaises(FileLost, self.count))
        self.assertIn("another was made", said)
        self.assertEqual(self.lost(), said)
        self.assertEqual(made, ["one"])

    def test_other_errors(self) -> None:
        """
        A refusal of a method, or a full disk, is no loss of the file.
        """

        def fail(error: Callable[[], Exception]) -> None:
            with self.guard:
                raise error()

        def full() -> sqlite3.OperationalError:
            e = sqlite3.OperationalError("database or disk is full")
            e.sqlite_errorcode = sqlite3.SQLITE_FULL
            return e

        self.assertRaises(KeyError, fail, KeyError)
        self.assertRaises(sqlite3.OperationalError, fail, full)
        self.guard.check()

    def test_no_directory(self) -> None:
        """
        A failure to write the data again is reported.
        """
        for each in self.path.parent.iterdir():
            each.unlink()
        self.path.parent.rmdir()
        self.assertIn("could not be written again", self.lost())


class FunctionTests(SynchronousTestCase):
    """
    Tests for the functions.
    """

    def test_damage(self) -> None:
        """
        Damage is found among the causes of an error; other errors are no damage.
        """
        damaged = sqlite3.DatabaseError("malformed")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT_VTAB
        outer = ValueError("outer")
        outer.__cause__ = damaged
        self.assertIs(damage_of(outer), damaged)
        locked = sqlite3.OperationalError("locked")
        locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
        for error in (None, ValueError("x"), locked, sqlite3.DatabaseError("of the module")):
            self.assertIsNone(damage_of(error))

    def test_text(self) -> None:
        """
        A text that is none is damage, too.
        """
        connection = sqlite3.connect(":memory:")
        self.addCleanup(connection.close)
        e = self.assertRaises(
            sqlite3.OperationalError,
            lambda: connection.execute("SELECT CAST(x'ff' AS TEXT)").fetchone(),
        )
        self.assertIs(damage_of(e), e)

    def test_moved_aside(self) -> None:
        """
        A file is moved with its companions, and never onto another file.
        """
        folder = Path(self.mktemp())
        folder.mkdir()
        path = folder / "a.db"
        for content in (b"1", b"2"):
            for each in ("", "-wal"):
                Path(f"{path}{each}").write_bytes(content)
            aside = move_aside(path, "damaged", 0.0)
            self.assertEqual(aside.read_bytes(), content)
            self.assertEqual(Path(f"{aside}-wal").read_bytes(), content)
            self.assertFalse(path.exists())
        self.assertEqual(beside(path, "damaged", 0.0), folder / "a.db-damaged-19700101T000000Z-3")
        self.assertRaises(OSError, move_aside, path, "damaged", 0.0)
