"""
An index of rows by digests, of which the newest part is in memory.

Digests come in no order, so that each new one changes another page of an index, and a
commit writes nearly as many pages as it has rows: more than the rows themselves take.
Here, what is new gathers in memory; then it is put in order, and a part of it written with
each of the next commits, so that what shares a page is written together. What is in memory
only is read from the rows when the file is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from tbvast.storage.sqlite import insert, transaction

BITS = 48
"""
The bits of a digest.
"""

MOST_NEW = 32_768
"""
How many new ones gather before they are put in order and written. There may be as many
that are being written.
"""

LEAST_WRITTEN = 2048
"""
The fewest that are written with one commit, while there are so many.
"""

FEW = 4
"""
The most digests that are looked for without being made a list of.
"""

INDEXED_TABLE = """
CREATE TABLE indexed (name TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID
"""
"""
SQL that makes the table which says of each index up to which number it is written.
"""


def digest(text: str | bytes) -> int:
    """
    A number of L{BITS} that stands for a text in an index, at a fraction of what the
    text would take; others may have the same.
    """
    if isinstance(text, str):
        text = text.encode()
    return int.from_bytes(_blake2b(text, digest_size=BITS // 8).digest())


def digests(texts: Iterable[str]) -> tuple[int, ...]:
    """
    L{digest} of each of many texts, which is quicker for all at once.
    """
    size = BITS // 8
    found = [_blake2b(text.encode(), digest_size=size).digest() for text in texts]
    # Two bytes make eight of six; the highest come first.
    whole = b"\0\0".join([b"", *found])
    return struct.unpack(f">{len(found)}Q", whole)


_blake2b = hashlib.blake2b

_encode = msgspec.json.Encoder().encode
# Quicker than json.dumps, and this is done for each indicator.


def index_table(name: str) -> str:
    """
    SQL that makes an index's table.
    """
    return (
        f"CREATE TABLE {name} (digest INTEGER NOT NULL, number INTEGER NOT NULL,"
        " PRIMARY KEY (digest, number)) WITHOUT ROWID"
    )


class DigestIndex:
    """
    Finds the numbers of rows. What changes anything is called in a transaction, and
    L{committing} with it.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        table: str,
        rows: Callable[[int], Iterable[tuple[int, int]]],
        most_new: int = MOST_NEW,
        least_written: int = LEAST_WRITTEN,
    ) -> None:
        """
        @param connection: What is written with.
        @param table: As L{index_table} made it.
        @param rows: The digests and numbers of all rows above a number.
        """
        self._connection = connection
        self._table = table
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._to_write: list[int] = []
        self._most_new = most_new
        self._least_written = least_written
        self._added_since = 0
        self._begin()
        found = connection.execute("SELECT until FROM indexed WHERE name = ?", (table,)).fetchone()
        with committing(self), transaction(connection):
            self._add(list(rows(found[0] if found else 0)))

    def _begin(self) -> None:
        self._added: dict[int, int] = {}
        self._removed: set[tuple[int, int]] = set()
        self._written = 0
        self._wrote_all = False

    def find(self, digests: Sequence[int]) -> list[int]:
        """
        @return: The numbers of the rows that have these digests, in any order; some more
            than once, and some of rows that are gone.
        """
        numbers = [
            some[digest]
            for some in (self._new, self._old, self._added)
            for digest in some.keys() & digests
            if (digest, some[digest]) not in self._removed
        ]
        # A list takes a while to be read, but its length does not make another statement.
        few = len(digests) <= FEW
        wanted = ", ".join("?" * len(digests)) if few else "SELECT value FROM json_each(?)"
        (found,) = self._connection.execute(
            f"SELECT json_group_array(number) FROM {self._table} WHERE digest IN ({wanted})",
            tuple(digests) if few else (_encode(digests).decode(),),
        ).fetchone()
        return numbers + json.loads(found)

    def change(
        self, added: Sequence[tuple[int, int]], removed: Collection[tuple[int, int]] = ()
    ) -> None:
        """
        @param added: Digests and numbers, all of them above all there were.
        @param removed: Digests and numbers that are there.
        """
        if removed:
            self._removed.update(removed)
            self._added = dict(self._added.items() - self._removed)
            self._connection.execute(
                f"DELETE FROM {self._table} WHERE (digest, number) IN"
                " (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
                (json.dumps(list(removed)),),
            )
        self._add(added)
        self._write()

    def insert(self, pairs: Collection[tuple[int, int]]) -> None:
        """
        Add what is not new: rows that have been there, and get another digest.
        """
        insert(self._connection, self._table, sorted(pairs), "INSERT OR IGNORE")

    def _add(self, pairs: Sequence[tuple[int, int]]) -> None:
        added = dict(pairs)
        # In memory, a digest has one number.
        taken = {
            digest
            for digest in added.keys() & self._new.keys()
            if (digest, self._new[digest]) not in self._removed
        }
        taken |= added.keys() & self._added.keys()
        if taken or len(added) < len(pairs):
            for digest in taken:
                del added[digest]
            self.insert(set(pairs) - added.items())
        if self._added:
            self._added.update(added)
        else:
            self._added = added

    def _write(self) -> None:
        """
        Write about as much of what is old as has been added.
        """
        count = self._added_since + len(self._added)
        if count < self._least_written or not self._to_write:
            return
        digests = self._to_write[self._written : self._written + count]
        self._written += len(digests)
        old = self._old
        numbers = list(map(old.get, digests))
        rows: list[tuple[int, Any]] = list(zip(digests, numbers, strict=True))
        if self._removed or None in numbers:
            rows = [row for row in rows if row[1] is not None and row not in self._removed]
        insert(self._connection, self._table, rows, "INSERT OR IGNORE")
        if self._written == len(self._to_write):
            self._note(old.values())

    def write_all(self) -> None:
        """
        Write everything that is in memory. Called in a transaction of its own.
        """
        self.insert(self._new.items() | self._old.items())
        self._note([*self._new.values(), *self._old.values()])
        self._wrote_all = True

    def _note(self, numbers: Iterable[int]) -> None:
        """
        Up to the highest of these, everything is in the table.
        """
        self._connection.execute(
            "INSERT INTO indexed VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET until = max(until, excluded.until)",
            (self._table, max(numbers, default=0)),
        )

    def commit(self) -> None:
        """
        What was changed has been committed.
        """
        for digest, number in self._removed:
            for some in (self._new, self._old):
                if some.get(digest) == number:
                    del some[digest]
        if self._wrote_all:
            self._new, self._old, self._to_write = {}, {}, []
        self._new.update(self._added)
        self._added_since += len(self._added)
        if self._written:
            del self._to_write[: self._written]
            self._added_since = 0
        if not self._to_write:
            self._old = {}
            if len(self._new) >= self._most_new:
                # In this order: who looks into the new ones first finds them in one of both.
                self._old = self._new
                self._new = {}
                self._to_write = sorted(self._old)
                self._added_since = 0
        self._begin()

    def roll_back(self) -> None:
        """
        What was changed has not been committed.
        """
        self._begin()


@contextlib.contextmanager
def committing(*indexes: DigestIndex) -> Iterator[None]:
    """
    Goes around a transaction that changes indexes.
    """
    try:
        yield
    except BaseException:
        for index in indexes:
            index.roll_back()
        raise
    for index in indexes:
        index.commit()
