"""
Tests for L{tbvast.bus.statistics}.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast import __version__
from tbvast.bus.access_control import AccessControl
from tbvast.bus.client_work import ClientWork
from tbvast.bus.ingest import Intake
from tbvast.bus.statistics import SAMPLE_INTERVAL, Statistics
from tbvast.errors import JournalFailed
from tbvast.interfaces import ICounters
from tbvast.values import Received
from tests.doubles import MemoryJournal, MemoryPub, a_sighting, an_indicator
from tests.doubles_bus import DirectSubscription, MemoryBus, MemorySub, a_request, encode_report


class StatisticsTests(SynchronousTestCase):
    """
    Tests for L{Statistics}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.journal = MemoryJournal(self.clock, "bus")
        self.bus = MemoryBus(self.clock, self.journal, MemoryPub(), DirectSubscription)
        self.subscriptions = self.bus.subscriptions
        self.statistics = Statistics(
            self.clock, self.journal, self.subscriptions.everybody, lambda: 0.25, lambda: (3, 10)
        )
        self.work = ClientWork(self.clock)
        self.intake = Intake(
            self.clock,
            self.work,
            self.journal,
            AccessControl(None),
            self.statistics,
            self.bus.deliver,
            lambda envelope: None,
            MemorySub(),
            60,
        )
        self.statistics.startService()

    def tearDown(self) -> None:
        self.successResultOf(self.statistics.stopService())

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = msgspec.json.decode(self.successResultOf(self.statistics.report()))
        return report

    def receive(self, *frames: bytes) -> None:
        self.intake.receive([Received("", [frame]) for frame in frames])
        self.clock.advance(0)

    def test_interface(self) -> None:
        """
        It is an L{ICounters}.
        """
        verifyObject(ICounters, self.statistics)

    def test_idle(self) -> None:
        """
        A bus that has just begun has a name, a version, and nothing else.
        """
        self.assertEqual(
            self.report(),
            {
                "status": "success",
                "protocol": "tbvast/1",
                "version": __version__,
                "plugin": "bus",
                "uptime": 0.0,
                "longest_turn": 0.25,
                "connections": {"open": 3, "limit": 10},
                "journal": {"head": 0, "indicators": 0, "sightings": 0},
                "set_aside": {"count": 0, "newest": ""},
                "received": {},
                "rates": {"indicator": 0.0, "sighting": 0.0},
                "subscriptions": [],
            },
        )

    def test_counts(self) -> None:
        """
        It counts received items by outcome, and the entries of the journal.
        """
        item = encode_report(an_indicator())
        self.receive(item, item, encode_report(a_sighting()), b"nonsense")
        report = self.report()
        self.assertEqual(
            report["received"],
            {
                "indicator": {"accepted": 1, "repeated": 1},
                "sighting": {"accepted": 1},
                "message": {"refused": 1},
            },
        )
        self.assertEqual(report["journal"], {"head": 2, "indicators": 1, "sightings": 1})

    def test_shared(self) -> None:
        """
        One report answers all who ask while the one before is made, and another one is not made
        at once.
        """
        asked: list[Deferred[dict[str, int]]] = []

        def counts() -> Deferred[dict[str, int]]:
            asked.append(Deferred())
            return asked[-1]

        self.patch(self.journal, "counts", counts)
        first = self.statistics.report()
        later = [self.statistics.report() for _ in range(300)]
        self.clock.advance(2)
        asked[0].callback({"indicators": 1})
        self.successResultOf(first)
        self.assertNoResult(later[0])
        self.clock.advance(1.9)
        self.assertEqual(len(asked), 1)
        self.clock.advance(0.1)
        asked[1].callback({"indicators": 2})
        answers = {self.successResultOf(each) for each in later}
        self.assertEqual(len(answers), 1)
        self.assertEqual(len(asked), 2)
        last = self.statistics.report()
        asked[2].callback({"indicators": 3})
        self.assertEqual(json.loads(self.successResultOf(last))["journal"]["indicators"], 3)

    def test_abandoned(self) -> None:
        """
        A report that is being made when the bus stops is abandoned.
        """
        self.patch(self.journal, "counts", Deferred)
        report = self.statistics.report()
        self.successResultOf(self.statistics.stopService())
        self.assertNoResult(report)

    def test_rates(self) -> None:
        """
        Rates are of the last minute, or of the time since the start.
        """
        for second in range(120):
            self.receive(encode_report(a_sighting(second)))
            if second == 9:
                self.assertEqual(self.report()["rates"], {"indicator": 0.0, "sighting": 1.11})
            self.clock.advance(1)
        self.assertAlmostEqual(self.report()["rates"]["sighting"], 1.0, delta=0.1)
        for _ in range(60):
            self.clock.advance(1)
        self.assertAlmostEqual(self.report()["rates"]["sighting"], 0.0, delta=0.1)
        for _ in range(round(2 * SAMPLE_INTERVAL)):
            self.clock.advance(1)
        self.assertEqual(self.report()["rates"]["sighting"], 0.0)
        self.assertEqual(self.report()["uptime"], 120 + 60 + 2 * SAMPLE_INTERVAL)

    def test_subscriptions(self) -> None:
        """
        It describes each subscription.
        """
        subscription = self.bus.open(a_request("stix2/sighting", name="one"))
        self.clock.advance(2)
        self.subscriptions.heartbeat(subscription.topic, {"engine": "up"})
        self.clock.advance(3)
        self.receive(encode_report(a_sighting(1)))
        (described,) = self.report()["subscriptions"]
        self.assertEqual(
            described,
            {
                "name": "one",
                "topics": ["stix2/sighting"],
                "dialect": "stix2",
                "attached": False,
                "age": 5.0,
                "silent": 3.0,
                "queued": 1,
                "queued_bytes": 294,
                "behind": 0,
                "sent": 0,
                "dropped": 0,
                "report": {"engine": "up"},
            },
        )

    def test_journal_fails(self) -> None:
        """
        It fails as the journal does.
        """
        self.journal.failing = True
        self.failureResultOf(self.statistics.report(), JournalFailed)

    def test_stopped(self) -> None:
        """
        No call is left when it has stopped.
        """
        self.successResultOf(self.statistics.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.statistics.startService()
