"""
Tests for L{tbvast.engines.tenzir.markers}.
"""

from __future__ import annotations

import itertools
import json
import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir import pipelines, rows
from tbvast.engines.tenzir.markers import (
    LOOKUPS_PER_ROUND,
    PULSE_SECONDS,
    PULSES_BETWEEN_WIDE_ROUNDS,
    Markers,
    Round,
    group_leaves,
)
from tbvast.engines.tenzir.rows import Marker
from tbvast.values import Progress

LOOKED_UP = [10, LOOKUPS_PER_ROUND, 5, 80, 80]


class MarkersTests(SynchronousTestCase):
    """
    L{Markers} reports the progress of a match.
    """

    def setUp(self) -> None:
        self.markers = Markers(LOOKED_UP)
        self.now = 100.0

    def out(self, round: Round, date: float = 1e9, reports: int = 2) -> list[Progress]:
        """
        The markers of a round come out, a tenth of a second later, after some reports that the
        tables are whole.
        """
        for _ in range(reports):
            self.markers.reported()
        self.now += 0.1
        found = [
            self.markers.passed(Marker(round.number, leaf, date + self.now), self.now)
            for leaf in round.leaves
        ]
        return [each for each in found if each is not None]

    def test_every_leaf(self) -> None:
        """
        Nothing is covered before every leaf has been passed, in rounds without a pause. Then
        everything is covered that was imported before the round preceding the oldest of these.
        """
        passed: list[int] = []
        told: list[Progress] = []
        while self.markers.wait(self.now) == 0.0:
            round = self.markers.begin(self.now)
            if told:
                passed += round.leaves
            told += self.out(round)
        self.assertEqual(sorted(passed), list(range(len(LOOKED_UP))))
        self.assertEqual({each.covered for each in told}, {None})
        self.assertGreater(self.markers.wait(self.now), PULSE_SECONDS / 2)
        (last,) = self.out(self.markers.begin(self.now))
        self.assertEqual(last.covered, told[0].heard)

    def test_tables(self) -> None:
        """
        Nothing is covered before the second report that the tables are whole: the first may have
        been made before the matches. The second was made after the markers before the first.
        """
        while not (first := self.out(self.markers.begin(self.now)))[0].covered:
            pass
        for _ in range(3):
            (told,) = self.out(self.markers.begin(self.now), reports=0)
            self.assertEqual(told.covered, first[0].covered)
        assert told.heard is not None
        self.markers.reported()
        (again,) = self.out(self.markers.begin(self.now), reports=0)
        self.assertEqual(again.covered, first[0].covered)
        self.assertEqual(self.markers.reported(), told.heard.awake)
        (later,) = self.out(self.markers.begin(self.now), reports=0)
        assert later.covered is not None and again.covered is not None
        self.assertGreater(later.covered.awake, again.covered.awake)
        self.assertLess(later.covered.awake, told.heard.awake)

    def test_not_heard(self) -> None:
        """
        Reports before the first marker say nothing about their time.
        """
        self.assertEqual([self.markers.reported() for _ in range(3)], [-math.inf] * 3)

    def test_wide(self) -> None:
        """
        A leaf with many lookups is passed at first, and rarely then.
        """
        self.markers = Markers([10, 5 * LOOKUPS_PER_ROUND, 20])
        passed: list[float] = []
        while len(passed) < 3:
            round = self.markers.begin(self.now)
            if 1 in round.leaves:
                passed.append(self.now)
            self.out(round)
            self.now += self.markers.wait(self.now)
        self.assertLess(passed[0], 101)
        for one, two in itertools.pairwise(passed):
            self.assertGreaterEqual(two - one, PULSES_BETWEEN_WIDE_ROUNDS * PULSE_SECONDS)
            self.assertLess(two - one, (PULSES_BETWEEN_WIDE_ROUNDS + 2) * PULSE_SECONDS)

    def test_one_round(self) -> None:
        """
        There is one round at a time, and a report when its last marker is out.
        """
        self.out(self.markers.begin(self.now))
        round = self.markers.begin(self.now)
        self.assertRaises(ValueError, self.markers.begin, self.now)
        *first, last = round.leaves
        for leaf in first:
            self.assertIsNone(self.markers.passed(Marker(round.number, leaf, 1e9), self.now))
        self.assertTrue(self.markers.pending)
        self.assertIsNotNone(self.markers.passed(Marker(round.number, last, 1e9), self.now))
        self.assertFalse(self.markers.pending)

    def test_others(self) -> None:
        """
        A marker of another round, or one that comes out again, says nothing.
        """
        first = self.markers.begin(self.now)
        self.assertEqual(self.markers.again(), first)
        self.out(first)
        self.assertEqual(self.out(first), [])
        second = self.markers.begin(self.now)
        self.assertEqual(self.out(first), [])
        self.assertEqual(len(self.out(second)), 1)

    def test_behind(self) -> None:
        """
        How far it is behind is how long the slowest marker took.
        """
        self.out(self.markers.begin(self.now))
        round = self.markers.begin(self.now)
        self.now += 7
        (told,) = self.out(round)
        self.assertAlmostEqual(told.behind, 7.1)
        self.assertLess(told.heard.ahead if told.heard else 0, 1e9 + 0.1)

    def test_date_set_back(self) -> None:
        """
        If the date is set back, it is told until all that is not covered was imported
        later.
        """
        date = 1e9 + 86400
        while True:
            (told,) = self.out(self.markers.begin(self.now), date)
            if told.covered is not None:
                break
        (told,) = self.out(self.markers.begin(self.now), 1e9)
        assert told.covered is not None
        self.assertGreater(told.covered.imported, 1e9 + 86400)
        self.assertLess(told.lowest, 1e9 + 60)

    @given(st.lists(st.integers(0, 900), min_size=1))
    def test_grouped(self, lookups: list[int]) -> None:
        """
        Every leaf is in one round, and no round costs much that need not.
        """
        groups = group_leaves(lookups)
        self.assertEqual(sorted(leaf for each in groups for leaf in each), [*range(len(lookups))])
        for group in groups:
            if len(group) > 1:
                self.assertLessEqual(sum(lookups[leaf] for leaf in group), LOOKUPS_PER_ROUND)


class MarkerLineTests(SynchronousTestCase):
    """
    L{rows.decode_results} tells markers from matches.
    """

    def test_marker(self) -> None:
        """
        A line of a marker is read, and is no match; its time has nanoseconds.
        """
        mark = {"s": pipelines.MARKER, "t": "2026-11-29T09:06:28.717616983Z"}
        fields = {
            pipelines.MARKER_SOURCE: "b1",
            pipelines.MARKER_NUMBER: 7,
            pipelines.MARKER_LEAF: 3,
        }
        lines = [json.dumps({**fields, pipelines.FINDINGS: mark})]
        results = rows.decode_results(lines, {})
        (marker,) = results.markers
        self.assertEqual((marker.number, marker.leaf), (7, 3))
        self.assertAlmostEqual(marker.imported, 1795943188.717617, 3)
        self.assertEqual(results.matches, [])

    def test_report(self) -> None:
        """
        A report on tables is read, and is no event.
        """
        lines = ['{"tables":[{"name":"a","entries":3},{"name":"b","entries":0}]}', '{"tables":[]}']
        results = rows.decode_results(lines, {})
        self.assertEqual(results.reports, [{"a": 3, "b": 0}, {}])
        self.assertEqual((results.matches, results.markers), ([], []))

    def test_event_with_tables(self) -> None:
        """
        An event with the field of a report is an event.
        """
        line = json.dumps({"tables": [{"name": "a", "entries": 3}], pipelines.FINDINGS: {"s": "x"}})
        self.assertEqual(rows.decode_results([line], {}).reports, [])

    def test_event(self) -> None:
        """
        An event that speaks of markers is an event.
        """
        for mark in ({"s": "x.y"}, {"s": pipelines.MARKER}, None):
            line = json.dumps({"a": pipelines.MARKER, pipelines.FINDINGS: mark})
            self.assertEqual(rows.decode_results([line], {}).markers, [])
