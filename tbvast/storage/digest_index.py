"""
An index of rows by digests. Its newest part is in memory.

Digests have no order, so each new one changes another page of an index, and a commit would write
nearly as many index pages as it has rows: more than the rows themselves take. New digests therefore
gather in memory, are sorted, and written in parts with the next commits: those of one page
together. At the start, the part in memory is read from the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import attrs
import msgspec

from tbvast.storage.sqlite import insert, transaction

_DIGEST_BYTES = 6

INDEXED_TABLE = """
CREATE TABLE indexed (name TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID
"""
"""
SQL that creates a table with the number up to which each index is written.
"""


def digest(text: str | bytes) -> int:
    """
    Hash a text to a number of 48 bits, which takes a fraction of the text's space in an
    index. Different texts may have the same digest.
    """
    if isinstance(text, str):
        text = text.encode()
    return int.from_bytes(_blake2b(text, digest_size=_DIGEST_BYTES).digest())


def digests(texts: Iterable[str]) -> tuple[int, ...]:
    """
    Compute the L{digest} of each of many texts, faster than one by one.
    """
    size = _DIGEST_BYTES
    found = [_blake2b(text.encode(), digest_size=size).digest() for text in texts]
    # Two zero bytes before each digest make it a big-endian integer of eight bytes.
    whole = b"\0\0".join([b"", *found])
    return struct.unpack(f">{len(found)}Q", whole)


_blake2b = hashlib.blake2b

_encode = msgspec.json.Encoder().encode
# Faster than json.dumps, and called for each indicator.


def index_table(name: str) -> str:
    """
    @return: SQL that creates the table of an index.
    """
    return (
        f"CREATE TABLE {name} (digest INTEGER NOT NULL, number INTEGER NOT NULL,"
        " PRIMARY KEY (digest, number)) WITHOUT ROWID"
    )


@attrs.define(eq=False, slots=False)
class DigestIndex:
    """
    Finds the numbers of rows by digest. It is changed in a transaction in L{committing}.

    @param connection: The connection that writes.
    @param table: A table made by L{index_table}.
    @param rows: Returns the digests and numbers of all rows above a number.
    @param most_new: The new digests that gather before they are sorted and written. As many
        again may be in the course of being written.
    @param least_written: The fewest digests that one commit writes, if there are as many.
    """

    _connection: sqlite3.Connection
    _table: str
    _rows: Callable[[int], Iterable[tuple[int, int]]]
    _most_new: int = 32_768
    _least_written: int = 2048
    _new: dict[int, int] = attrs.field(init=False, factory=dict)
    _old: dict[int, int] = attrs.field(init=False, factory=dict)
    _to_write: list[int] = attrs.field(init=False, factory=list)
    _added_since: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._begin()
        found = self._connection.execute(
            "SELECT until FROM indexed WHERE name = ?", (self._table,)
        ).fetchone()
        with self.committing(), transaction(self._connection):
            self._add(list(self._rows(found[0] if found else 0)))

    def _begin(self) -> None:
        self._added: dict[int, int] = {}
        self._removed: set[tuple[int, int]] = set()
        self._written = 0
        self._wrote_all = False

    def find(self, digests: Sequence[int]) -> list[int]:
        """
        @return: The numbers of the rows with these digests, in any order. Some may occur
            more than once, and some may belong to deleted rows.
        """
        numbers = [
            some[digest]
            for some in (self._new, self._old, self._added)
            for digest in some.keys() & digests
            if (digest, some[digest]) not in self._removed
        ]
        # A list is slower to read, but one statement serves lists of every length.
        few = len(digests) <= 4
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
        Add and remove rows.

        @param added: Digests and numbers; all numbers are above those in the index.
        @param removed: Digests and numbers that are in the index.
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
        Add digests of rows that are not new.

        @param pairs: Digests and numbers.
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
        Write about as many old digests as have been added.
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
        Write everything from memory. Called in a separate transaction.
        """
        self.insert(self._new.items() | self._old.items())
        self._note([*self._new.values(), *self._old.values()])
        self._wrote_all = True

    def _note(self, numbers: Iterable[int]) -> None:
        self._connection.execute(
            "INSERT INTO indexed VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET until = max(until, excluded.until)",
            (self._table, max(numbers, default=0)),
        )

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """
        Wraps a transaction that changes the index.
        """
        try:
            yield
            self._apply()
        finally:
            self._begin()

    def _apply(self) -> None:
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
                # In this order, so that a lookup in both always finds them.
                self._old = self._new
                self._new = {}
                self._to_write = sorted(self._old)
                self._added_since = 0
