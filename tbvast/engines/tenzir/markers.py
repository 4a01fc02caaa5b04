"""
Tracks the progress of a live match by marker events that pass through it.

Pure: no sockets, no clock. The lookups of a live match form a tree, whose leaves work in
parallel: a marker can overtake events in another leaf, but never in its own. So each leaf
gets its own markers, a few leaves at a time. Nothing counts as covered before the node has
reported that the tables were whole meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from tbvast.engines.tenzir.rows import Marker
from tbvast.values import Moment, Progress

LOOKUPS_PER_ROUND = 120
"""
The approximate number of lookups that the markers of one round pass. Each costs some
tenths of a millisecond.
"""

PULSE_SECONDS = 2.0
"""
Seconds between rounds, once markers have passed every leaf.
"""

PULSES_BETWEEN_WIDE_ROUNDS = 150
"""
Pulses between two rounds through a leaf with more than L{LOOKUPS_PER_ROUND} lookups: such a round
delays the events that arrive meanwhile.
"""


class Round(msgspec.Struct, frozen=True):
    """
    Markers that are imported together.

    @ivar number: The number of the round.
    @ivar leaves: The leaves that the markers pass, one marker each.
    """

    number: int
    leaves: tuple[int, ...]


class Markers:
    """
    The markers of one live match, one round at a time.

    Take an event that was imported before the previous round. When that round's markers
    came out, the event had left the stage that gathers batches: it has passed, or it is in
    its leaf when the markers of this round enter. Hence a marker that comes out of a leaf
    proves that everything imported before the previous round has come out of it, too.
    """

    def __init__(self, lookups: Sequence[int]) -> None:
        """
        @param lookups: The number of lookups in each leaf.
        """
        self._groups = group_leaves(lookups)
        self._wide = [
            sum(lookups[leaf] for leaf in each) > LOOKUPS_PER_ROUND for each in self._groups
        ]
        self._begun = [-math.inf] * len(self._groups)
        self._group = -1
        self._number = 0
        self._waiting: set[int] = set()
        self._sent = 0.0
        self._next = 0.0
        self._imported = math.inf
        self._last: Moment | None = None
        self._matched: Moment | None = None
        self._at_report: tuple[Moment | None, Moment | None] = None, None
        self._covered: Moment | None = None
        self._passed: dict[int, Moment] = {}
        self._leaves = len(lookups)
        self._seen: list[Moment] = []

    @property
    def pending(self) -> bool:
        """
        Whether markers have yet to come out.
        """
        return bool(self._waiting)

    def wait(self, awake: float) -> float:
        """
        @return: Seconds until the next round.
        """
        return max(0.0, self._next - awake)

    def begin(self, awake: float) -> Round:
        """
        Import a round of markers.

        @param awake: Seconds since the machine's start.
        @raise ValueError: If markers of the previous round have yet to come out.
        """
        if self._waiting:
            raise ValueError("markers are pending")
        count = len(self._groups)
        following = [each % count for each in range(self._group + 1, self._group + 1 + count)]
        pause = PULSES_BETWEEN_WIDE_ROUNDS * PULSE_SECONDS
        due = (i for i in following if not self._wide[i] or awake - self._begun[i] >= pause)
        self._group = next(due, following[0])
        self._begun[self._group] = awake
        leaves = self._groups[self._group]
        self._number += 1
        self._waiting = set(leaves)
        self._sent = awake
        self._imported = math.inf
        return Round(self._number, leaves)

    def again(self) -> Round:
        """
        Repeat the first round: the match may not have been running at its import.
        """
        return Round(self._number, self._groups[0])

    @property
    def heard(self) -> bool:
        """
        Whether a marker has come out at all.
        """
        return self._last is not None

    def passed(self, marker: Marker, awake: float) -> Progress | None:
        """
        Record that a marker has come out, and that all matches before it are processed.

        @param awake: Seconds since the machine's start.
        @return: The progress of the match, when the last marker of the round is out.
        """
        if marker.number != self._number or marker.leaf not in self._waiting:
            return None
        self._waiting.remove(marker.leaf)
        self._imported = min(self._imported, marker.imported)
        if self._waiting:
            return None
        heard = Moment(self._imported, self._sent, self._imported - awake)
        if self._last is not None:
            for leaf in self._groups[self._group]:
                self._passed[leaf] = self._last
        self._last = heard
        self._seen.append(heard)
        behind = awake - self._sent
        if len(self._passed) < self._leaves:
            self._next = awake  # until the progress of all leaves is known
        else:
            self._next = max(awake, self._sent + PULSE_SECONDS)
            self._matched = min(self._passed.values(), key=lambda each: each.awake)
        if (covered := self._covered) is not None:
            self._seen = [each for each in self._seen if each.awake >= covered.awake]
        return Progress(heard, covered, behind, min(each.ahead for each in self._seen))

    def reported(self) -> float:
        """
        Record that the node has reported whole tables. It makes a report after the previous one
        has left it, and so after all markers before that one: everything that these show to be
        matched was matched with whole tables.

        @return: The report was made later; seconds since the machine's start.
        """
        last, self._covered = self._at_report
        self._at_report = self._last, self._matched
        return -math.inf if last is None else last.awake


def group_leaves(lookups: Sequence[int]) -> list[tuple[int, ...]]:
    """
    The leaves of each round: neighbours with about L{LOOKUPS_PER_ROUND} lookups in all. The first
    round has only the cheapest leaf, to show quickly that the match hears.
    """
    cheapest = min(range(len(lookups)), key=lookups.__getitem__)
    groups = [[cheapest]]
    size = LOOKUPS_PER_ROUND + 1
    for leaf, count in enumerate(lookups):
        if leaf == cheapest:
            continue
        if size + count > LOOKUPS_PER_ROUND:
            groups.append([])
            size = 0
        groups[-1].append(leaf)
        size += count
    return [tuple(group) for group in groups]
