"""
Values that the bridge's store returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tbvast.stix.observables import Observable
from tbvast.values import Changes, Entry


class DesiredPage(msgspec.Struct, frozen=True, array_like=True):
    """
    A page of the entries that the engine should hold or search for.

    @ivar last: The end of the page, with which the next one is read; C{None} on the page
        after the last.
    @ivar entries: The entries. The entry of a network also names the indicators of the
        networks that cover it.
    @ivar ids: The indicators, if the page is one of indicators.
    """

    last: tuple[int, int] | None
    entries: tuple[Entry, ...] = ()
    ids: tuple[str, ...] = ()


BEGINNING = (-1, -1)
"""
The end of the previous page, if the first one is read.
"""


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
