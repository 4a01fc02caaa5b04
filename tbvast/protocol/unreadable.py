"""
Items that arrived but cannot be read.
"""

from __future__ import annotations

import re

import msgspec

REASON_LENGTH = 500
KEPT_BYTES = 64 * 1024
MOST_IDS = 1000
"""
The most characters of a reason, and the most bytes and ids of an unreadable item that are kept.
"""


class Unreadable(msgspec.Struct, frozen=True, array_like=True):
    """
    An unreadable item among readable ones.

    @ivar number: Its number in the bus's journal; C{0} if unknown.
    @ivar ids: The STIX ids that it may have: those that are still readable in it.
    @ivar reason: The reason, in words; at most L{REASON_LENGTH} characters.
    @ivar raw: The first L{KEPT_BYTES} of its bytes.
    """

    number: int
    ids: tuple[str, ...]
    reason: str
    raw: bytes


def unreadable(reason: str, raw: bytes, number: int = 0) -> Unreadable:
    """
    Describe an unreadable item.

    @param reason: A text of any length, with any characters; unprintable ones are escaped.
    @param raw: All of the item's bytes.
    @param number: As in L{Unreadable}; any impossible one is unknown.
    """
    number = number if 0 < number < 1 << 63 else 0
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason[:REASON_LENGTH])
    return Unreadable(number, ids_in(raw), shown[:REASON_LENGTH], raw[:KEPT_BYTES])


def ids_in(raw: bytes) -> tuple[str, ...]:
    """
    @return: The ids of indicators and sightings that an item claims, for itself or for a
        document inside it; none if there are more than L{MOST_IDS}.
    """
    ids = tuple({match[1].decode(): None for match in _ID.finditer(raw)})
    return ids if len(ids) <= MOST_IDS else ()


_ID = re.compile(
    rb'"id"\s*:\s*"((?:indicator|sighting)--[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"'
)
