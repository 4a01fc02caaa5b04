"""
Values that the bridge's store returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tbvast.stix.observables import Observable
from tbvast.values import Entry


class Changes(msgspec.Struct, frozen=True, array_like=True):
    """
    What the engine is to be told.

    @ivar number: Counts the changes; higher is later.
    @ivar write: Entries that are new, or whose ids have changed.
    @ivar erase: Observables that nobody wants any more.
    @ivar unmatched: Why some indicators are not matched, or not all of them, by id.
    """

    number: int
    write: tuple[Entry, ...] = ()
    erase: tuple[Observable, ...] = ()
    unmatched: dict[str, tuple[str, ...]] = {}


class DesiredPage(msgspec.Struct, frozen=True, array_like=True):
    """
    A page of what the engine should look for.

    @ivar last: Where the page ended: given back, it asks for the next one. C{None} if
        there are no more.
    @ivar entries: The entries. Of networks, they also name the indicators of networks that
        cover them.
    @ivar ids: The indicators, where the page is one of indicators.
    """

    last: tuple[int, int] | None
    entries: tuple[Entry, ...] = ()
    ids: tuple[str, ...] = ()


BEGINNING = (-1, -1)
"""
Asks for the first page.
"""


def merged(all: Sequence[Changes]) -> Changes:
    """
    Several changes, in their order, as one.

    @param all: At least one.
    """
    if len(all) == 1:
        return all[0]
    wanted: dict[Observable, Entry | None] = {}
    unmatched: dict[str, tuple[str, ...]] = {}
    for each in all:
        wanted |= {entry.observable: entry for entry in each.write}
        wanted |= dict.fromkeys(each.erase)
        unmatched |= each.unmatched
    return Changes(
        max(each.number for each in all),
        tuple(entry for entry in wanted.values() if entry is not None),
        tuple(observable for observable, entry in wanted.items() if entry is None),
        unmatched,
    )
