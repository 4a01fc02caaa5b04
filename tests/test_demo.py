"""
Tests for L{devtools.telemetry} and L{devtools.score}.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from devtools.score import Score
from devtools.telemetry import (
    INDICATORS,
    SURICATA_PIPELINE,
    DemoIndicator,
    Event,
    Log,
    Occurrence,
    find_occurrences,
    read_logs,
    split_past_and_future,
    time_of,
)
from tbvast.errors import StartupRefused
from tbvast.stix.sightings import MatchType

DATA = Path(__file__).with_name("data")
DOCUMENTED = [15, 11, 11, 15, 9, 9, 11, 6, 2, 4, 2, 1, 1, 2]
"""
For each of the indicators, the number of events with its value, without those in
Zeek's own format.
"""

RETRO, LIVE = MatchType.RETRO, MatchType.LIVE


def log(*events: Event) -> Log:
    stamped = [{"timestamp": f"1970-01-01T00:00:0{n}Z", **e} for n, e in enumerate(events)]
    return Log("eve", SURICATA_PIPELINE, stamped)


class TelemetryTests(SynchronousTestCase):
    def test_documented(self) -> None:
        """
        The values occur in the telemetry as often as its README documents.
        """
        counts: Counter[str] = Counter()
        for found, count in find_occurrences(INDICATORS, read_logs(DATA)).items():
            counts[found.value] += count
        self.assertEqual([counts[each.value] for each in INDICATORS], DOCUMENTED)

    def test_halves(self) -> None:
        """
        Each event is in one of the halves; most kinds occur in both.
        """
        logs = read_logs(DATA)
        past, future = split_past_and_future(logs)
        whole = sorted(len(each.text) for each in logs)
        self.assertEqual(
            sum(whole), sum(len(each.text) for half in (past, future) for each in half)
        )
        for half in (past, future):
            kinds = {w.kind for w in INDICATORS if find_occurrences([w], half)}
            self.assertTrue({"address", "network", "domain", "URL", "e-mail"} <= kinds, kinds)

    def test_missing(self) -> None:
        error = self.assertRaises(StartupRefused, read_logs, Path(self.mktemp()))
        self.assertIn("--data", str(error))

    def test_repeats(self) -> None:
        """
        No event is repeated.
        """
        texts = [t for each in read_logs(DATA) for t in each.text.splitlines()]
        self.assertEqual(len(texts), len(set(texts)))

    def test_kinds(self) -> None:
        """
        Each kind is found in its field, and not in a similar value.
        """
        cases: tuple[tuple[str, str, Event, Event], ...] = (
            ("address", "192.0.2.1", {"a": [{"b": "192.0.2.1"}]}, {"a": "192.0.2.11"}),
            ("network", "192.0.2.0/24", {"a": "192.0.2.7"}, {"a": "192.0.3.7", "b": 1}),
            ("domain", "a.example", {"a": "A.Example"}, {"a": "b.a.example"}),
            (
                "URL",
                "http://a.example/x?y",
                {"http": {"hostname": "a.example", "url": "/x?y"}},
                {"http": {"hostname": "a.example", "url": "/x"}},
            ),
            ("URL", "http://a.example/x", {"host": "a.example", "uri": "/x"}, {"host": "a"}),
            ("e-mail", "a@b.example", {"to": ["A <A@b.example>"]}, {"to": ["aa@b.example"]}),
        )
        for kind, value, event, other in cases:
            found = find_occurrences([DemoIndicator(kind, value)], [log(other, event)])
            self.assertEqual(found, {Occurrence(value, 1_000_000): 1}, kind)

    def test_time(self) -> None:
        self.assertEqual(time_of({"timestamp": "1970-01-01T02:00:01.5+0200"}), 1_500_000)
        self.assertEqual(time_of({"ts": "1970-01-01T00:00:01Z"}), 1_000_000)


class ScoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.score = Score(
            {RETRO: Counter({Occurrence("a", 1): 2}), LIVE: Counter({Occurrence("a", 3): 1})}
        )

    def test_perfect(self) -> None:
        self.score.count(RETRO, Occurrence("a", 1), 1.0)
        self.assertFalse(self.score.complete(RETRO))
        self.score.count(RETRO, Occurrence("a", 1), 2.0)
        self.assertTrue(self.score.complete(RETRO))
        self.assertFalse(self.score.perfect)
        self.score.count(LIVE, Occurrence("a", 3), 0.25)
        self.assertTrue(self.score.perfect)
        self.assertEqual(
            self.score.lines(),
            [
                "retro: from publication to sighting 1.50 s (median), 2.00 s (most)",
                "live: from import to sighting 0.25 s (median), 0.25 s (most)",
            ],
        )

    def test_imperfect(self) -> None:
        """
        Missing and unexpected sightings are listed; a repeated sighting is unexpected.
        """
        self.score.count(LIVE, Occurrence("a", 3), 0.5)
        self.score.count(LIVE, Occurrence("a", 3), 0.5)
        self.score.count(LIVE, Occurrence("b", 1), 0.5)
        self.assertFalse(self.score.perfect)
        self.assertEqual(
            self.score.lines()[1:],
            [
                "missing, retro: 2 of a",
                "unexpected, live: 1 of a",
                "unexpected, live: 1 of b",
            ],
        )

    def test_unexpected_only(self) -> None:
        for phase, found in (
            (RETRO, Occurrence("a", 1)),
            (RETRO, Occurrence("a", 1)),
            (LIVE, Occurrence("a", 3)),
        ):
            self.score.count(phase, found, 0.0)
        self.score.count(LIVE, Occurrence("a", 9), 0.0)
        self.assertFalse(self.score.perfect)

    def test_table(self) -> None:
        self.score.count(RETRO, Occurrence("a", 1), 1.0)
        out = io.StringIO()
        Console(file=out, width=80).print(self.score.table([DemoIndicator("domain", "a")]))
        [row] = [line.split() for line in out.getvalue().splitlines() if "domain" in line]
        self.assertEqual(row, ["domain", "a", "1", "of", "2", "0", "of", "1"])
