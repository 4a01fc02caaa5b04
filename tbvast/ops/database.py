"""
SQLite files: opened durable, and brought to the newest form.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

WAIT = 10.0
"""
Seconds to wait for another connection's transaction.
"""


LOG_PAGES = 8192
"""
Pages of 4 KiB in the write-ahead log before they are copied into the file: what is
written again and again is copied once.
"""

CACHE_KIB = 16 * 1024
"""
The most memory that one connection keeps pages in.
"""


class FromLater(sqlite3.DatabaseError):
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
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection


def migrate(connection: sqlite3.Connection, steps: Sequence[str]) -> None:
    """
    Bring a file to the newest form, in one transaction.

    @param steps: SQL statements, separated by semicolons, from each version to the
        next; the first one makes everything.
    @raise FromLater: If its version is none that C{steps} lead to.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise FromLater(
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
