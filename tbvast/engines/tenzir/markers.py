"""
How far a live match has got, by events of our own that pass through it.

Pure: no sockets, no clock. The lookups of a live match are a tree of branches, whose
leaves work side by side: a marker overtakes what is under way in another leaf, but never
in its own. So each leaf is passed by markers of its own, some leaves at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tbvast.bridge.engines.rows import Marker
from tbvast.intel.matches import Moment, Progress

LOOKUPS = 120
"""
About how many lookups the markers of one round pass: each costs some tenths of a
millisecond.
"""

PULSE = 2.0
"""
Seconds between rounds, once every leaf has been passed.
"""


RARELY = 150
"""
Pulses between two rounds that pass a leaf with more than L{LOOKUPS} lookups: such a round
holds up what arrives meanwhile.
"""


class Round(msgspec.Struct, frozen=True):
    """
    Markers that are imported together.
    """

    number: int
    leaves: tuple[int, ...]


class Markers:
    """
    The markers of one live match. There is one round at a time.

    An event that was imported before the markers of the round before has left the
    gathering of batches when these came out: it is in its leaf, if it has not passed, when
    the markers of this round come in. Hence a marker that comes out says of its leaf
    that all that was imported before the last round has come out too.
    """

    def __init__(self, lookups: Sequence[int], pulse: float = PULSE) -> None:
        """
        @param lookups: The number of lookups in each leaf.
        @param pulse: Seconds between rounds.
        """
        self._groups = grouped(lookups)
        self._wide = [sum(lookups[leaf] for leaf in each) > LOOKUPS for each in self._groups]
        self._begun: list[float | None] = [None] * len(self._groups)
        self._turn = -1
        self._pulse = pulse
        self._number = 0
        self._waiting: set[int] = set()
        self._sent = 0.0
        self._next = 0.0
        self._imported: float | None = None
        self._last: Moment | None = None
        self._passed: dict[int, Moment] = {}
        self._leaves = len(lookups)
        self._seen: list[Moment] = []

    @property
    def under_way(self) -> bool:
        """
        Whether markers have not come out yet.
        """
        return bool(self._waiting)

    def wait(self, awake: float) -> float:
        """
        @return: Seconds until the next round.
        """
        return max(0.0, self._next - awake)

    def silence(self, awake: float) -> float:
        """
        @return: Seconds since the markers that have not come out were imported.
        """
        return awake - self._sent if self._waiting else 0.0

    def begin(self, awake: float) -> Round:
        """
        Import a round of markers.

        @param awake: Seconds since the machine's start.
        """
        if self._waiting:
            raise ValueError("markers are under way")
        self._turn = self._chosen(awake)
        self._begun[self._turn] = awake
        leaves = self._groups[self._turn]
        self._number += 1
        self._waiting = set(leaves)
        self._sent = awake
        self._imported = None
        return Round(self._number, leaves)

    def _chosen(self, awake: float) -> int:
        count = len(self._groups)
        for turn in (each % count for each in range(self._turn + 1, self._turn + 1 + count)):
            begun = self._begun[turn]
            if begun is None or not self._wide[turn]:
                return turn
            if awake - begun >= RARELY * self._pulse:
                return turn
        return (self._turn + 1) % count

    def again(self) -> Round:
        """
        The first round once more: nothing may have listened to it yet.
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
        A marker has come out, and all matches before it have been dealt with.

        @return: How far the match has got, when the last marker of the round is out.
        """
        if marker.number != self._number or marker.leaf not in self._waiting:
            return None
        self._waiting.remove(marker.leaf)
        imported = marker.imported
        if self._imported is None or imported < self._imported:
            self._imported = imported
        if self._waiting:
            return None
        return self._complete(self._imported, awake)

    def _complete(self, imported: float, awake: float) -> Progress:
        heard = Moment(imported, self._sent, imported - awake)
        if self._last is not None:
            for leaf in self._groups[self._turn]:
                self._passed[leaf] = self._last
        self._last = heard
        self._seen.append(heard)
        behind = awake - self._sent
        if len(self._passed) < self._leaves:
            self._next = awake  # until it is known how far all leaves are
            return Progress(heard, None, behind, min(each.ahead for each in self._seen))
        self._next = max(awake, self._sent + self._pulse)
        covered = min(self._passed.values(), key=lambda each: each.awake)
        self._seen = [each for each in self._seen if each.awake >= covered.awake]
        return Progress(heard, covered, behind, min(each.ahead for each in self._seen))


def grouped(lookups: Sequence[int]) -> list[tuple[int, ...]]:
    """
    The leaves of each round: neighbours, of about L{LOOKUPS} in all. The first has only
    the cheapest leaf: it is there to show quickly that the match hears.
    """
    cheapest = min(range(len(lookups)), key=lookups.__getitem__)
    groups: list[tuple[int, ...]] = []
    group: list[int] = []
    size = 0
    for leaf, count in enumerate(lookups):
        if leaf == cheapest:
            continue
        if group and size + count > LOOKUPS:
            groups.append(tuple(group))
            group, size = [], 0
        group.append(leaf)
        size += count
    if group:
        groups.append(tuple(group))
    return [(cheapest,), *groups]
