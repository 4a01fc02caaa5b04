"""
Which of two versions of an indicator is the later one, by the bus's own date.

A version says when it was made, in C{modified}; that is some other machine's clock. As
long as it lies in the bus's future it proves nothing, and the version counts as of its
receipt. All times are in microseconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from tbvast.intel.documents import from_microseconds, timestamp

REMEMBERED = 16
"""
The most decided versions that are remembered with an indicator, the newest of them.
"""

REMEMBERED_SPAN = 86_400_000_000
"""
How long before an indicator's version another one may have been made that is remembered
with it. An older one is recognised by its date, unless the bus's clock is set back by more.
"""

STEP = 1_000_000
"""
By how much the bus's clock has to go back before that is a step.
"""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """
    The bus's clock was set back.

    @ivar number: The journal's head at that moment.
    @ivar date: The date from which it went on.
    """

    number: int
    date: int


class BusDates:
    """
    The dates that a bus has given to versions, across the steps of its clock.

    @ivar steps: Those that still matter, by number; then also by date.
    """

    def __init__(self, steps: Sequence[Step], last: int) -> None:
        """
        @param last: The last date known.
        """
        self.steps = list(steps)
        self._last = last

    def has_stepped_back(self, now: int, head: int) -> bool:
        """
        Look at the clock.

        @param head: The journal's.
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
        As of when a version counts that the journal holds.

        @param modified: What it says itself.
        @param received: When it was received, by the clock of then.
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
    The versions that were decided on before, as L{write_decided} wrote them.
    """
    return [int(each) for each in json.loads(text)] if text else []


def write_decided(decided: Sequence[int], date: int) -> str:
    """
    @param decided: Versions that were decided on: C{modified} of what was published, and
        the negative of it of a removal; the newest last.
    @param date: As of when the version in force counts.
    @return: Those worth remembering, for one column of the journal; usually empty.
    """
    since = date - REMEMBERED_SPAN
    kept = [each for each in dict.fromkeys(decided) if each < 0 or each > since]
    return json.dumps(kept[-REMEMBERED:]) if kept else ""


def shown_date(moment: int) -> str:
    """
    A time as people and STIX write it.
    """
    return timestamp(from_microseconds(moment))
