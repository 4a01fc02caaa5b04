"""
Tests for L{tbvast.bridge.commands.sink_delivery}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.commands.sink_delivery import DeliverToSink
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.service.flusher import Reported
from tbvast.stix.sightings import MatchType
from tests.doubles import MemorySink, a_sighting

EVENT = {"timestamp": "2026-01-02T03:04:05Z", "src_ip": "192.0.2.1"}


class DeliverToSinkTests(SynchronousTestCase):
    """
    Tests for L{DeliverToSink}.
    """

    def setUp(self) -> None:
        self.sink = MemorySink()
        self.deliver = DeliverToSink(self.sink)
        self.document = a_sighting(
            1,
            x_threatbus_sighting_context={"a": 1},
            x_threatbus_indicator_value="192.0.2.1",
            x_threatbus_match_type="RETRO",
        ).raw

    def test_taken(self) -> None:
        """
        The sink gets the context, the value and the type.
        """
        reported = self.successResultOf(self.deliver([self.document]))
        self.assertEqual(reported, Reported([True]))
        self.assertEqual(self.sink.taken, [({"a": 1}, "192.0.2.1", MatchType.RETRO)])

    def test_not_taken(self) -> None:
        """
        A sighting that the sink did not take this time stays in the outbox.
        """
        self.sink.failure = CommandFailed("sink", "it ended")
        reported = self.successResultOf(self.deliver([self.document] * 2))
        self.assertEqual((reported.taken, reported.refused), ([False] * 2, {}))
        self.assertFalse(reported.poisoned)

    def test_refused(self) -> None:
        """
        A sighting that the sink never takes is refused.
        """
        self.sink.failure = CommandRefused("sink", "too long")
        reported = self.successResultOf(self.deliver([self.document]))
        self.assertEqual(reported.taken, [True])
        self.assertIn("too long", reported.refused[0])

    def test_damaged(self) -> None:
        """
        A document that was damaged where it was kept is refused alone.
        """
        reported = self.successResultOf(self.deliver([b"{", self.document]))
        self.assertEqual(reported.taken, [True, True])
        self.assertEqual(list(reported.refused), [0])
