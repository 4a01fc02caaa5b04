"""
Tests for L{tbvast.zeromq.connection_guard}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.rate_limit import RateLimit
from tbvast.zeromq.connection_guard import (
    CHECK_INTERVAL,
    CONNECTION_BYTES,
    MEMORY_MULTIPLE,
    SPARE_BYTES,
    ConnectionGuard,
)
from tbvast.zeromq.connection_table import ConnectionTable
from tbvast.zeromq.receive_limits import GROWTH, LOOKS, ReceiveLimits
from tests.doubles_bus import MemoryCounters
from tests.test_zeromq_connection_table import MemoryConnection

TOTAL = 1 << 28
ENDPOINTS = ("manage", "sub")


class MemoryTests(SynchronousTestCase):
    """
    Connections end when ZeroMQ needs too much memory for their unfinished messages.
    """

    def setUp(self) -> None:
        self.clock, self.counters, self.memory = Clock(), MemoryCounters(), 0
        complaints = RateLimit(self.clock, 0)
        self.table = ConnectionTable(self.clock, 5000, 5000, ["sub"], self.counters, complaints)
        self.limits = {each: ReceiveLimits(self.clock, TOTAL, TOTAL) for each in ENDPOINTS}
        guard = ConnectionGuard(self.clock, self.table, self.limits, 0, lambda: self.memory)
        guard.startService()
        self.addCleanup(guard.stopService)

    def accept(self, endpoint: str, arrived: int, host: int = 1) -> MemoryConnection:
        connection = MemoryConnection(f"192.0.2.{host}")
        connection.arrived = arrived
        descriptor = len(self.table)
        self.table.accepted(endpoint, descriptor, connection)
        self.limits[endpoint].accepted(descriptor, connection)
        return connection

    def check(self) -> None:
        self.clock.advance(CHECK_INTERVAL)

    def test_within(self) -> None:
        """
        Nobody ends while memory is spare, or a multiple of the arrived bytes suffices.
        """
        one = self.accept("sub", 100_000_000)
        for memory in (
            0,
            SPARE_BYTES + CONNECTION_BYTES,
            SPARE_BYTES + MEMORY_MULTIPLE * 99_000_000,
        ):
            self.memory = memory
            self.check()
        self.assertFalse(one.aborted)

    def test_excess(self) -> None:
        """
        Those end that may have taken too much, of the address with the most bytes.
        """
        few = [self.accept("manage", 60_000, host=1) for _ in range(200)]
        large = self.accept("sub", 1_000_000, host=2)
        small = self.accept("manage", 0, host=1)
        arrived = 200 * 60_000 + 1_000_000
        excess = 50 * GROWTH * 60_000 - GROWTH * 30_000
        spare = SPARE_BYTES + 202 * CONNECTION_BYTES
        self.memory = spare + MEMORY_MULTIPLE * arrived + excess
        self.check()
        self.assertEqual(sum(each.aborted for each in few), 50)
        self.assertFalse(large.aborted or small.aborted)
        self.assertEqual(self.counters.counts["connection", "oversized"], 50)
        self.memory = SPARE_BYTES
        self.check()
        self.assertEqual(self.counters.counts["connection", "oversized"], 50)

    def test_not_looked_at(self) -> None:
        """
        Nobody ends before all connections have been looked at.
        """
        for _ in range(LOOKS):
            self.accept("sub", 0)
        last = self.accept("sub", 10_000_000)
        spare = SPARE_BYTES + (LOOKS + 1) * CONNECTION_BYTES
        self.memory = spare + MEMORY_MULTIPLE * 10_000_000 + 1
        self.check()
        self.assertFalse(last.aborted)
        self.check()
        self.assertTrue(last.aborted)

    def test_nobody(self) -> None:
        """
        Memory that belongs to no connection ends none.
        """
        one = self.accept("sub", 0)
        self.memory = 10 * TOTAL
        self.check()
        self.assertFalse(one.aborted)
