"""
The start of the search over past events after an interruption. Pure.

An engine dates its imports, and an administrator may set the date forward or back. Two
clocks therefore record the moment up to which everything has been matched: the date, and
the seconds since the machine's start, which nobody sets. A change of their difference
shows that the date was set.
"""

from __future__ import annotations

from tbvast.values import Covered, Moment

OVERLAP = 10.0
"""
Seconds that are searched again: an engine may date an event and pass it to the live match
some seconds later.
"""


def covered(moment: Moment, lowest: float, boot: str) -> Covered:
    """
    Make the record of a moment up to which everything has been matched.

    @param moment: The moment, by both clocks.
    @param lowest: The least lead of the date over the other clock since that moment.
    @param boot: The identity of the machine's start.
    """
    return Covered(min(moment.imported, moment.awake + lowest), moment.awake, boot)


def search_from(known: Covered, heard: Moment, boot: str) -> float | None:
    """
    The date from which a search covers every event that was imported after a moment.

    @param known: The moment.
    @param heard: The import that the live match has just reported.
    @param boot: The identity of the machine's start.
    @return: Seconds since the epoch; C{None} if all events have to be searched.
    """
    if boot and boot == known.boot:
        # If the date was set back since, the moment has an earlier date today.
        return min(known.until, known.awake + heard.ahead) - OVERLAP
    return None if heard.imported < known.until else known.until - OVERLAP
