"""
The values of the journal, which its client, its reader and its writer exchange.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.storage.set_aside import SetAside

T = TypeVar("T")


NOBODY = ""
"""
The owner of an indicator that anybody may replace or remove.
"""


class Publisher(msgspec.Struct, frozen=True, array_like=True):
    """
    A publisher of indicators, as recorded in the journal.

    Where clients have keys, an indicator belongs to the client that published it first, under
    its name in the file of clients. Without keys, everybody owns everything.

    @ivar name: The owner of the indicators that it publishes.
    @ivar manages: Whether it may replace and remove indicators of other owners.
    """

    name: str
    manages: bool

    def may_change(self, owner: str) -> bool:
        """
        Whether it may replace or remove an indicator of an owner.
        """
        return self.manages or owner in (NOBODY, self.name)


EVERYBODY = Publisher(NOBODY, True)
"""
The publisher of everything if there are no keys.
"""

Run = tuple[int, Publisher]
"""
A number of consecutive items, and their one publisher.
"""


def upstream_publisher(address: str) -> Publisher:
    """
    Another bus as the publisher of its intel. No client can have this name: client names
    contain no space.

    @param address: Its manage endpoint.
    """
    return Publisher(f"upstream {address}", False)


def runs_of(publishers: Sequence[Publisher]) -> list[Run]:
    """
    @param publishers: The publisher of each item.
    """
    if publishers and publishers.count(publishers[0]) == len(publishers):  # as most often
        return [(len(publishers), publishers[0])]
    return [(len(list(group)), publisher) for publisher, group in itertools.groupby(publishers)]


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
