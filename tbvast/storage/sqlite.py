"""
SQLite files: durable connections, schema migrations, and bulk insertion.

Every statement releases the interpreter at each step, and has to wait for it again while
another thread is busy. One statement for each row would cost more than the row itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WAIT = 10.0
"""
Seconds to wait for another connection's transaction.
"""

PAGE_BYTES = 8192
"""
The bytes of a page of a new file. Smaller pages would be many more, each with its own cost.
"""

JSON_LIST = "SELECT value FROM json_each(?)"
IN_JSON_LIST = f"IN ({JSON_LIST})"
"""
SQL whose parameter is a JSON list: one parameter for any number of values.
"""


def microseconds(seconds: float) -> int:
    """
    @param seconds: A date, in seconds since the epoch.
    @return: The same date in the unit of the tables.
    """
    return int(seconds * 1_000_000)


class SchemaUnknown(sqlite3.DatabaseError):
    """
    The file has the schema of a later tbvast, or of one before the first release.
    """


def connect(path: Path) -> sqlite3.Connection:
    """
    Open a file, or create it. Commits are durable, even if the machine crashes.

    @return: A connection for any thread, one at a time, that begins no transaction itself.
    @raise sqlite3.Error: If the file cannot be used.
    """
    connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # In pages. A page that is written repeatedly is copied from the log only once.
    connection.execute("PRAGMA wal_autocheckpoint = 8192")
    connection.execute("PRAGMA cache_size = -16384")  # negative: in KiB
    return connection


def acquire_writer_lock(path: Path, wait: float = WAIT) -> int:
    """
    Take the exclusive writer lock of a file. A killed service may still write: wait for it.

    @param wait: The most seconds to wait.
    @return: The descriptor of an open file; closing it releases the lock.
    @raise OSError: If another process still holds the lock, or locking is impossible.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{path}-writer", flags, 0o600)
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as e:
            if time.monotonic() >= until:
                os.close(lock)
                raise TimeoutError("another process writes to it") from e
        time.sleep(0.02)


def migrate(connection: sqlite3.Connection, steps: Sequence[str], oldest: int = 1) -> None:
    """
    Migrate a file to the newest schema, in one transaction.

    @param steps: SQL statements, separated by semicolons: the first step creates the oldest
        version of the schema, and the others change each version to the next.
    @param oldest: The number of the oldest version.
    @raise SchemaUnknown: If the file has a later version, or an earlier one.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = oldest + len(steps) - 1
    if version == newest:
        return
    if version and not oldest <= version < newest:
        writer = "a later tbvast" if version > newest else "a tbvast before 0.1.0"
        raise SchemaUnknown(
            f"it has version {version}, written by {writer}; this one knows {oldest} to {newest}"
        )
    with transaction(connection):
        for step in steps[version - oldest + 1 if version else 0 :]:
            for statement in step.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {newest}")


ROWS = (2000, 250, 32, 4, 1)
"""
The numbers of rows that one statement may insert; longer insertions are split into these.
"""


def insert(
    connection: sqlite3.Connection,
    into: str,
    rows: Sequence[Sequence[Any]],
    verb: str = "INSERT",
    row: str = "",
) -> None:
    """
    Insert rows, in their order.

    @param into: The name of a table.
    @param rows: Rows of the same length, at most 15. SQLite is fastest with C{int},
        C{str} and C{bytearray}; other types, also C{None} and C{bytes}, are slower.
    @param verb: The SQL verb, e.g. C{INSERT OR REPLACE}.
    @param row: SQL for the values of a row; by default, one placeholder for each.
    """
    start = 0
    for size in ROWS:
        while len(rows) - start >= size:
            values = row or f"({', '.join('?' * len(rows[start]))})"
            statement = _insertion(verb, into, values, size)
            some = itertools.chain.from_iterable(rows[start : start + size])
            connection.execute(statement, list(some))
            start += size


@functools.lru_cache(maxsize=64)
def _insertion(verb: str, into: str, row: str, count: int) -> str:
    return f"{verb} INTO {into} VALUES {', '.join([row] * count)}"


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """
    Commit everything that is written inside, or roll everything back.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """
    Make all reads inside see the same state of the file.
    """
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()
