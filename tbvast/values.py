"""
Values that cross the seams between the parts.
"""

from __future__ import annotations

import re

import msgspec

REASON_LENGTH = 500
"""
The most characters of a reason.
"""

KEPT_BYTES = 64 * 1024
"""
The most bytes that are kept of an item that was set aside.
"""

MOST_IDS = 1000
"""
The most ids that are read in an item that was set aside.
"""


class SetAside(msgspec.Struct, frozen=True, array_like=True):
    """
    An item that cannot be handled, while all others are.

    @ivar number: Its number in the bus's journal; C{0} if it is not known.
    @ivar ids: The STIX ids that it may have: those that can still be read in it.
    @ivar reason: Why, in words; at most L{REASON_LENGTH} characters.
    @ivar raw: Its bytes; the first L{KEPT_BYTES} of them.
    """

    number: int
    ids: tuple[str, ...]
    reason: str
    raw: bytes


def set_aside(reason: str, raw: bytes, number: int = 0) -> SetAside:
    """
    @param reason: Of any length, and with any characters.
    @param raw: All of the item's bytes.
    """
    ids = tuple({match[1].decode(): None for match in _ID.finditer(raw)})
    return SetAside(
        number if 0 < number < 1 << 63 else 0,
        ids if len(ids) <= MOST_IDS else (),
        reason.encode("utf-8", "backslashreplace").decode()[:REASON_LENGTH],
        raw[:KEPT_BYTES],
    )


_ID = re.compile(
    rb'"id"\s*:\s*"((?:indicator|sighting)--[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"'
)
