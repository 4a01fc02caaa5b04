"""
SQLite files: opened durable, brought to the newest form, and written to with a
handful of statements of many rows each.

A statement lets go of the interpreter at each step and has to wait for it again
while another thread is busy: one a row would cost more than the row does.
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
The size of a page of a new file: with smaller ones, indicators would make many more of them,
each with its own cost.
"""

LOG_PAGES = 8192
"""
Pages in the write-ahead log before they are copied into the file: what is written again
and again is copied once.
"""

LOOK_INTERVAL = 0.02
"""
Seconds between two looks whether another process still writes.
"""

CACHE_KIB = 16 * 1024
"""
The most memory that one connection keeps pages in.
"""


class SchemaTooNew(sqlite3.DatabaseError):
    """
    A file that a later tbvast has changed.
    """


def connect(path: Path) -> sqlite3.Connection:
    """
    Open a file, or make it. What was committed is on disk: a crash of the machine
    takes nothing of it back.

    @return: A connection that any thread may use, one at a time, and that begins no
        transaction by itself.
    @raise sqlite3.Error: If it cannot be used.
    """
    connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection


def acquire_writer_lock(path: Path, wait: float = WAIT) -> int:
    """
    Keep every other process from writing to a file: that of a service that was killed may
    have something left to write.

    @param wait: Seconds that it is given to end.
    @return: The lock: a descriptor of an open file, which holds it until it is closed.
    @raise OSError: If it has not ended by then, or there can be no lock.
    """
    lock = os.open(f"{path}-writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as e:
            if time.monotonic() >= until:
                os.close(lock)
                raise TimeoutError("another process writes to it") from e
        time.sleep(LOOK_INTERVAL)


def migrate(connection: sqlite3.Connection, steps: Sequence[str]) -> None:
    """
    Bring a file to the newest form, in one transaction.

    @param steps: SQL statements, separated by semicolons, from each version to the
        next; the first one makes everything.
    @raise SchemaTooNew: If its version is none that C{steps} lead to.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise SchemaTooNew(
            f"it has version {version}, written by a later tbvast; this one knows {len(steps)}"
        )
    if version == len(steps):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for step in steps[version:]:
            for statement in step.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")


ROWS = (2000, 250, 32, 4, 1)
"""
How many rows one statement inserts; what there is to insert is split into these.
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

    @param into: A table's name.
    @param rows: Of one length, which is at most 15. SQLite takes an C{int}, a C{str} and
        a C{bytearray} as they are; anything else, C{None} and C{bytes} too, takes longer.
    @param verb: C{INSERT OR REPLACE}, say.
    @param row: What becomes of a row's values, in SQL; as they are if not given.
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
    What is written inside is written as a whole, or not at all.
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
    What is read inside was all there at one time.
    """
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()
