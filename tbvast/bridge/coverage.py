"""
From where on past events are searched after an interruption. Pure.

An engine dates its imports, and a date may be set: forward, and back. The moment up to
which everything has been matched is therefore kept by two clocks: by the date, and by the
seconds since the machine's start, which nobody sets. By the difference of the two it is
seen that the date was set.
"""

from __future__ import annotations

from tbvast.intel.matches import Covered, Moment

OVERLAP = 10.0
"""
Seconds that are searched again: an engine may date what it imports, and hand it to the
live match some seconds later.
"""


def covered(moment: Moment, lowest: float, boot: str) -> Covered:
    """
    @param lowest: The least that the date was ahead since that moment.
    @param boot: The machine's start.
    """
    return Covered(min(moment.imported, moment.awake + lowest), moment.awake, boot)


def search_from(known: Covered, heard: Moment, boot: str) -> float | None:
    """
    The date from which on events are searched, so that none is left out that was imported
    after a moment.

    @param known: The moment.
    @param heard: What has just been imported.
    @param boot: The machine's start.
    @return: Seconds since the epoch; C{None} if all events have to be searched.
    """
    if boot and boot == known.boot:
        # If the date was set back since, it tells that moment otherwise today.
        return min(known.until, known.awake + heard.ahead) - OVERLAP
    return None if heard.imported < known.until else known.until - OVERLAP
