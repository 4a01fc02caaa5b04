"""
Items that could not be handled: kept for a person to look at, and never tried again.

One bad item among many must cost one item. It is set aside: its bytes, where it failed and
why go into a table, and what stands before and behind it goes on.
"""

from __future__ import annotations

import enum
import re
import sqlite3
from collections.abc import Sequence

import msgspec

from tbvast.errors import shown

MOST_ITEMS = 1000
"""
How many items the table holds; the oldest ones beyond it are deleted.
"""

MOST_BYTES = 64 * 1024
"""
How many bytes of an item are kept: its beginning.
"""

MOST_REASON = 500
"""
How many characters of a reason are kept.
"""

SET_ASIDE_TABLE = """
CREATE TABLE set_aside (
    place INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    stream TEXT NOT NULL,
    id TEXT NOT NULL,
    stage TEXT NOT NULL,
    reason TEXT NOT NULL,
    date INTEGER NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL
)
"""
"""
SQL that makes the table. A row's C{place} counts all that were ever set aside, and C{date}
is in microseconds since the epoch.
"""


class Stage(enum.StrEnum):
    """
    Where an item failed.
    """

    INTAKE = "intake"
    APPEND = "append"
    UPGRADE = "upgrade"
    REMOVAL = "removal"
    EXPIRY = "expiry"
    SNAPSHOT = "snapshot"
    REPLAY = "replay"
    DELIVERY = "delivery"
    SUBSCRIPTION = "subscription"
    RECEPTION = "reception"
    STORE = "store"
    MATCH = "match"
    REPORT = "report"


class SetAside(msgspec.Struct, frozen=True, array_like=True):
    """
    An item that could not be handled.

    @ivar stage: Where it failed.
    @ivar reason: Why.
    @ivar body: Its bytes.
    @ivar stream: The type of the item; empty if it is not known.
    @ivar id: Its STIX id; empty if it is not known.
    @ivar number: The number that it has in the journal; C{0} for none, or one that is not
        known.
    """

    stage: Stage
    reason: str
    body: bytes
    stream: str = ""
    id: str = ""
    number: int = 0


class SetAsideReport(msgspec.Struct, frozen=True, array_like=True):
    """
    What status says of the items that were set aside.

    @ivar count: How many there ever were.
    @ivar newest: Where the newest one failed, and why; empty if there is none.
    """

    count: int = 0
    newest: str = ""


def reason_of(error: BaseException) -> str:
    """
    An error as the reason why an item was set aside: one line, bounded.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return encodable(text)[:MOST_REASON]


def encodable(text: str) -> str:
    """
    A text that can be written as UTF-8, which lone surrogates cannot.
    """
    return text.encode("utf-8", "replace").decode()


_ID = re.compile(rb'"id"\s{0,8}:\s{0,8}"([a-z][a-z0-9-]{0,63}--[0-9a-fA-F-]{36})"')


def id_in(body: bytes) -> str:
    """
    The first STIX id that a damaged document says is its own; empty if there is none.
    """
    found = _ID.search(body)
    return "" if found is None else found[1].decode()


def keep(connection: sqlite3.Connection, items: Sequence[SetAside], date: int) -> None:
    """
    Write items into the table. Called in a transaction.

    @param date: Microseconds since the epoch.
    """
    connection.executemany(
        "INSERT INTO set_aside (number, stream, id, stage, reason, date, size, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                *(each.number, encodable(each.stream), encodable(each.id), each.stage.value),
                *(encodable(each.reason)[:MOST_REASON], date),
                *(len(each.body), each.body[:MOST_BYTES]),
            )
            for each in items
        ],
    )
    connection.execute(
        "DELETE FROM set_aside WHERE place <= (SELECT max(place) FROM set_aside) - ?",
        (MOST_ITEMS,),
    )


def report(connection: sqlite3.Connection) -> SetAsideReport:
    """
    How many items were set aside, and why the newest one was.
    """
    found = connection.execute(
        "SELECT place, stage, id, reason FROM set_aside ORDER BY place DESC LIMIT 1"
    ).fetchone()
    if found is None:
        return SetAsideReport()
    count, stage, id_, reason = found
    return SetAsideReport(count, f"{stage}: {id_ or 'no id'}: {reason}")


def described(item: SetAside) -> str:
    """
    An item as a line of a log names it.
    """
    number = f", number {item.number}" if item.number else ""
    return f"{item.id or shown(item.body)}{number} ({item.stage}): {item.reason}"
