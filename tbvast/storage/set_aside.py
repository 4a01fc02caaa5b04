"""
Items that could not be handled: kept for a person to inspect, and never retried.

One bad item among many must cost one item. It is set aside: its bytes, the stage of the
failure and the reason go into a table, and its neighbours are processed as usual.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Sequence

import msgspec

from tbvast.errors import shown
from tbvast.protocol.unreadable import KEPT_BYTES, REASON_LENGTH, ids_in

MOST_ITEMS = 1000
"""
The most items of the table; beyond it, the oldest are deleted.
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
The SQL that creates the table. C{place} counts all items that were ever set aside, and
C{date} is in microseconds since the epoch.
"""


class Stage(enum.StrEnum):
    """
    The stage at which an item failed.
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

    @ivar stage: The stage of the failure.
    @ivar reason: The reason, in words.
    @ivar body: Its bytes.
    @ivar stream: The type of the item; empty if it is not known.
    @ivar id: Its STIX id; empty if it is not known.
    @ivar number: Its number in the journal; C{0} if it has none, or if it is not known.
    """

    stage: Stage
    reason: str
    body: bytes
    stream: str = ""
    id: str = ""
    number: int = 0


class SetAsideReport(msgspec.Struct, frozen=True, array_like=True):
    """
    The report of set-aside items in the status.

    @ivar count: The number of items that were ever set aside.
    @ivar newest: The stage and the reason of the newest one; empty if there is none.
    """

    count: int = 0
    newest: str = ""


def reason_of(error: BaseException) -> str:
    """
    An error as the reason for setting an item aside: one line, bounded.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return _encodable(text)[:REASON_LENGTH]


def _encodable(text: str) -> str:
    # Lone surrogates are replaced.
    return text.encode("utf-8", "replace").decode()


def id_in(body: bytes) -> str:
    """
    The first STIX id that a damaged document claims; empty if there is none.
    """
    return next(iter(ids_in(body)), "")


def store_set_aside(connection: sqlite3.Connection, items: Sequence[SetAside], date: int) -> None:
    """
    Write items into the table. Called in a transaction.

    @param date: Microseconds since the epoch.
    """
    connection.executemany(
        "INSERT INTO set_aside (number, stream, id, stage, reason, date, size, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                *(each.number, _encodable(each.stream), _encodable(each.id), each.stage.value),
                *(_encodable(each.reason)[:REASON_LENGTH], date),
                *(len(each.body), each.body[:KEPT_BYTES]),
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
    Count the set-aside items, and describe the newest one.
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
    Describe an item for a log line.
    """
    number = f", number {item.number}" if item.number else ""
    return f"{item.id or shown(item.body)}{number} ({item.stage}): {item.reason}"
