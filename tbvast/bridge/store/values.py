"""
The messages of the store's worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from tbvast.stix.observables import Observable
from tbvast.values import Changes, Entry, Position

MAX_ENTRIES_PER_MESSAGE = 5000
"""
The most entries in one message. The reactor handles each message in a turn of its own.
"""


IDENTITY = re.compile(r"[0-9a-f]{16}", re.ASCII)
"""
The form of the name of a store, which no other one has.
"""


class OpenedStore(msgspec.Struct, frozen=True, array_like=True):
    """
    The worker's first message.

    @ivar position: The position up to which the bus's journal has been applied.
    @ivar identity: The name of the store, of the form L{IDENTITY}.
    @ivar renewed: How an unreadable store was replaced, for the log; empty if it was not.
    """

    position: Position | None
    identity: str
    renewed: str = ""


class DesiredPage(msgspec.Struct, frozen=True, array_like=True):
    """
    A page of the entries that the engine should hold or search for.

    @ivar last: The end of the page, for the next one; C{None} on the page after the last.
    @ivar entries: The entries; a network also has the indicators of those that cover it.
    @ivar ids: The indicators, if the page is one of indicators.
    """

    last: tuple[int, int] | None
    entries: tuple[Entry, ...] = ()
    ids: tuple[str, ...] = ()


BEGINNING = (-1, -1)
"""
The end of the previous page, if the first one is read.
"""


def in_messages(changes: Changes) -> Iterator[Changes]:
    """
    Split changes so that each fits in a message. The first part has all reasons.
    """
    unmatched = changes.unmatched
    for start in range(0, max(len(changes.write), len(changes.erase), 1), MAX_ENTRIES_PER_MESSAGE):
        end = start + MAX_ENTRIES_PER_MESSAGE
        yield Changes(changes.number, changes.write[start:end], changes.erase[start:end], unmatched)
        unmatched = {}


def merge_changes(all: Sequence[Changes]) -> Changes:
    """
    Merge consecutive changes into one.

    @param all: The changes, in order; at least one.
    """
    if len(all) == 1:
        return all[0]
    latest: dict[Observable, Entry | None] = {}
    unmatched: dict[str, tuple[str, ...]] = {}
    for each in all:
        latest |= {entry.observable: entry for entry in each.write}
        latest |= dict.fromkeys(each.erase)
        unmatched |= each.unmatched
    return Changes(
        max(each.number for each in all),
        tuple(entry for entry in latest.values() if entry is not None),
        tuple(observable for observable, entry in latest.items() if entry is None),
        unmatched,
    )
