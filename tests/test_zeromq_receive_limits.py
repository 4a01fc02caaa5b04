"""
Tests for L{tbvast.zeromq.receive_limits}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.receive_limits import LOOKS, OVERHEAD_BYTES, ReceiveLimits
from tests.test_zeromq_connection_table import MemoryConnection

MOST = 4 * OVERHEAD_BYTES
TOTAL = 10 * OVERHEAD_BYTES


class ReceiveLimitsTests(SynchronousTestCase):
    """
    Tests for L{ReceiveLimits}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.limits = ReceiveLimits(self.clock, MOST, TOTAL)
        self.connections: list[MemoryConnection] = []

    def accept(self, arrived: int = 0) -> MemoryConnection:
        connection = MemoryConnection("192.0.2.1")
        connection.arrived = arrived
        self.limits.accepted(len(self.connections), connection)
        self.connections.append(connection)
        return connection

    def test_one(self) -> None:
        """
        A connection is over its limit when so much has arrived and was not handed over.
        """
        one, other = self.accept(MOST), self.accept(MOST)
        self.assertEqual(self.limits.excessive(), [])
        one.arrived += 1
        other.arrived += MOST
        self.limits.handed_over(1, MOST)
        self.assertEqual(self.limits.excessive(), [0])

    def test_all(self) -> None:
        """
        Of many within their limit, those with the most end, until the rest is within the limit of
        all.
        """
        for number in range(5):
            self.accept(MOST - number)
        self.assertEqual(self.limits.excessive(), [0, 1, 2])
        for descriptor in (0, 1, 2):
            self.limits.ended(descriptor)
        self.assertEqual(self.limits.excessive(), [])

    def test_overhead(self) -> None:
        """
        Handshakes, framing and heartbeats do not count, however many there were.
        """
        busy, idle = self.accept(300), self.accept(300)
        for _ in range(1000):
            self.clock.advance(3600.0)
            busy.arrived += 1000 + 50_000
            self.limits.handed_over(0, 1000)
            idle.arrived += 3600 * 20
            self.assertEqual(self.limits.excessive(), [])
        busy.arrived += MOST + OVERHEAD_BYTES
        self.assertEqual(self.limits.excessive(), [0])

    def test_many(self) -> None:
        """
        Only some connections are looked at in one turn, and each one after some turns.
        """
        for _ in range(2 * LOOKS + 1):
            self.accept()
        self.connections[-1].arrived = MOST + 1
        self.assertEqual([self.limits.excessive() for _ in range(3)], [[], [], [2 * LOOKS]])

    def test_caught_up(self) -> None:
        """
        After a message that was among the last, nothing waits.
        """
        connection = self.accept(MOST + 1)
        self.limits.caught_up(0)
        self.limits.caught_up(7)
        connection.arrived += MOST
        self.assertEqual(self.limits.excessive(), [])
        connection.arrived += 1
        self.assertEqual(self.limits.excessive(), [0])

    def test_unknown(self) -> None:
        """
        Messages and ends of connections that were ended already change nothing.
        """
        self.limits.handed_over(7, 1)
        self.limits.ended(7)
        self.assertEqual(self.limits.excessive(), [])

    @given(st.lists(st.integers(0, 2 * MOST), max_size=20))
    def test_any(self, sizes: list[int]) -> None:
        """
        What is left holds the limits, and nobody ends who is smaller than somebody that stays.
        """
        self.setUp()
        for size in sizes:
            self.accept(size)
        ending = self.limits.excessive()
        left = [size for index, size in enumerate(sizes) if index not in ending]
        counted = [size for size in left if size >= OVERHEAD_BYTES]
        self.assertLessEqual(max(left, default=0), MOST)
        self.assertLessEqual(sum(counted), TOTAL)
        self.assertLessEqual(
            max(left, default=0), min((sizes[i] for i in ending), default=2 * MOST)
        )
