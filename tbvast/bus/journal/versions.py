"""
Orders the versions of an indicator by the bus's own date.

The C{modified} of a version comes from another machine's clock. As long as it lies in the
bus's future it proves nothing, and the version counts as of its receipt. All times are in
microseconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import msgspec

from tbvast.stix.documents import from_microseconds, timestamp

REMEMBERED = 16
"""
The most versions that are remembered with an indicator after their decision; the newest
stay.
"""

REMEMBERED_SPAN = 86_400_000_000
"""
The greatest age, relative to the version in force, of a version that is remembered. The
date identifies an older one, unless the bus's clock is set back by more.
"""

STEP = 1_000_000
"""
The least change of the bus's clock backward that counts as a step.
"""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """
    A step of the bus's clock backward.

    @ivar number: The journal's head at that moment.
    @ivar date: The date that the clock was set to.
    """

    number: int
    date: int


@attrs.define(eq=False)
class BusDates:
    """
    The dates that a bus has given to versions, across the steps of its clock.

    @ivar steps: The steps that still matter, in order of number, and so also of date.
    @param last: The last date known.
    """

    steps: list[Step]
    _last: int

    def has_stepped_back(self, now: int, head: int) -> bool:
        """
        Check the clock for a step.

        @param head: The journal's head.
        @return: Whether there is a new step.
        """
        stepped = now < self._last - STEP
        if stepped:
            self.steps = [step for step in self.steps if step.date < now]
            self.steps.append(Step(head, now))
        self._last = now
        return stepped

    def date_of(self, modified: int, received: int, number: int, now: int) -> int:
        """
        The effective date of a version in the journal.

        @param modified: The version's own date.
        @param received: Its receipt, by the clock of that time.
        @param number: Its number in the journal.
        """
        if modified <= now:
            return modified
        date = min(received, now)
        for step in self.steps:
            if number <= step.number:
                return min(date, step.date)
        return date


def read_decided(text: str) -> list[int]:
    """
    @see: L{write_decided}
    """
    return [int(each) for each in json.loads(text)] if text else []


def write_decided(decided: Sequence[int], date: int) -> str:
    """
    @param decided: The decided versions, the newest last: C{modified} of a publication,
        and the negative of C{modified} of a removal.
    @param date: The effective date of the version in force.
    @return: The versions worth remembering, for one column of the journal; usually empty.
    """
    since = date - REMEMBERED_SPAN
    kept = [each for each in dict.fromkeys(decided) if each < 0 or each > since]
    return json.dumps(kept[-REMEMBERED:]) if kept else ""


def shown_date(moment: int) -> str:
    """
    A time as people and STIX write it.
    """
    return timestamp(from_microseconds(moment))
