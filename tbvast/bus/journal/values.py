"""
The values of the journal, which its client, its reader and its writer exchange.
"""

from __future__ import annotations

import enum
from typing import Generic, NamedTuple, TypeVar

import msgspec

from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.storage.set_aside import SetAside

T = TypeVar("T")


class Verdict(enum.StrEnum):
    """
    The journal's decision about an item.
    """

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    OUTDATED = "outdated"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REFUSED = "refused"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """
    The journal's decision about an item, and the item as it was stored.

    @ivar verdict: L{Verdict.REFUSED}, with a reason, if another publisher owns the item;
        without a reason if it could not be stored and was set aside.
    @ivar number: The item's number if it was accepted or has expired; else C{0}.
    @ivar item: The item to forward: a removal without a pattern takes the pattern from the
        version that was in force.
    @ivar reason: Why it was refused or is outdated; else empty.
    """

    verdict: Verdict
    number: int
    item: Item
    reason: str = ""


class PackedOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    An L{Outcome} on its way from the writer's process.

    @ivar item: C{None} if it is the item that was appended, unchanged.
    """

    verdict: Verdict
    number: int = 0
    item: Item | None = None
    reason: str = ""


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """
    An item of the journal.

    @ivar number: Its number.
    @ivar stream: Its type.
    @ivar raw: Its document.
    """

    number: int
    stream: Stream
    raw: bytes


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """
    The writer's first message.

    @ivar identity: The journal's identity.
    @ivar head: The highest number so far.
    @ivar floor: The number up to which entries may have been pruned.
    """

    identity: str
    head: int
    floor: int


class Pruned(msgspec.Struct, frozen=True, array_like=True):
    """
    The result of pruning the journal.

    @ivar count: The number of entries that were deleted.
    @ivar floor: The number up to which entries may be missing.
    """

    count: int
    floor: int


class Page(NamedTuple, Generic[T]):
    """
    A page that was read from the journal.

    @ivar sound: Its sound entries.
    @ivar damaged: Its damaged ones, which have to be set aside.
    @ivar floor: The number up to which entries may have been pruned when it was read; C{0} if
        that does not matter.
    """

    sound: list[T]
    damaged: list[SetAside]
    floor: int = 0
