"""
Tests for L{tbvast.zeromq.connection_table}.
"""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tbvast.interfaces import IPeerConnection
from tbvast.service.rate_limit import RateLimit
from tbvast.zeromq.connection_table import (
    GRACE_SECONDS,
    REFUSALS_PER_SECOND,
    SILENCE_LIMIT,
    SPARED_SILENT,
    ConnectionTable,
)
from tests.doubles_bus import MemoryCounters

HERE, THERE = "192.0.2.1", "192.0.2.2"

LIMIT = 16
RESERVE = 2
COMPLAINTS = 3


@implementer(IPeerConnection)
class MemoryConnection:
    """
    A connection that is only counted.

    @ivar aborted: Whether it was shut down.
    @ivar spoken: Whether more has arrived than a handshake.
    @ivar arrived: The bytes that have arrived.
    """

    arrived = 0

    def __init__(self, address: str) -> None:
        self.address = address
        self.aborted = self.spoken = self.gone = False

    def has_spoken(self) -> bool:
        return self.spoken

    def received(self) -> int:
        return self.arrived

    def abort(self) -> None:
        self.aborted = True


class TableTestCase(SynchronousTestCase):
    """
    A table, and connections with descriptors of their own.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.make()

    def make(self, limit: int = LIMIT, address_limit: int = LIMIT) -> None:
        self.counters = MemoryCounters()
        self.descriptors = itertools.count()
        self.table = ConnectionTable(
            self.clock,
            limit,
            address_limit,
            ["sub"],
            self.counters,
            RateLimit(self.clock, COMPLAINTS),
        )

    def accept(self, address: str = HERE, endpoint: str = "manage") -> tuple[int, MemoryConnection]:
        """
        @return: The descriptor of a new connection, and the connection.
        """
        descriptor, connection = next(self.descriptors), MemoryConnection(address)
        self.table.accepted(endpoint, descriptor, connection)
        return descriptor, connection

    def several(self, count: int, address: str = HERE) -> list[MemoryConnection]:
        """
        Connections that say nothing, older than the grace.
        """
        made = [self.accept(address)[1] for _ in range(count)]
        self.clock.advance(GRACE_SECONDS)
        return made

    def speaking(
        self, count: int, address: str = HERE, vouched: bool = False
    ) -> list[MemoryConnection]:
        """
        Connections that have said something.
        """
        made = []
        for _ in range(count):
            descriptor, connection = self.accept(address)
            self.table.heard("manage", descriptor, vouched)
            made.append(connection)
        return made

    def counted(self, verdict: str) -> int:
        return self.counters.counts["connection", verdict]


class LimitTests(TableTestCase):
    """
    Connections up to the limits, and beyond.
    """

    def test_interface(self) -> None:
        verifyObject(IPeerConnection, MemoryConnection(HERE))

    def test_within(self) -> None:
        """
        Nobody is refused while there is room, and the end of a connection makes room.
        """
        made = self.several(LIMIT - RESERVE)
        for _ in range(3):
            self.table.ended("manage", next(self.descriptors) - 1)
            made.append(self.accept()[1])
        self.assertFalse(any(connection.aborted for connection in made))
        self.assertEqual(len(self.table), LIMIT - RESERVE)
        self.assertEqual((self.counted("accepted"), self.counted("refused")), (LIMIT + 1, 0))

    def test_end_unknown(self) -> None:
        """
        The end of a connection that the table has ended changes nothing.
        """
        self.table.ended("manage", 7)
        self.table.heard("manage", 7, True)
        self.assertEqual(len(self.table), 0)

    def test_replaced(self) -> None:
        """
        A connection whose end was not reported is gone when its descriptor is used again; on
        another endpoint the descriptor is another connection until then.
        """
        for endpoint in ("manage", "manage", "pub"):
            self.table.accepted(endpoint, 7, MemoryConnection(HERE))
        self.assertEqual(len(self.table), 2)

    def test_address(self) -> None:
        """
        An address with its most connections loses the one that has been silent for longest.
        """
        self.make(LIMIT, 3)
        first, *others = self.several(3)
        newest = self.accept()[1]
        self.assertTrue(first.aborted)
        self.assertFalse(any(connection.aborted for connection in (*others, newest)))
        self.assertEqual((len(self.table), self.counted("refused")), (3, 1))

    def test_speakers_stay(self) -> None:
        """
        A connection that has spoken does not make room for another one of its address.
        """
        self.make(LIMIT, 3)
        speaking = self.speaking(2)
        [silent] = self.several(1)
        self.accept()
        self.assertTrue(silent.aborted)
        self.clock.advance(GRACE_SECONDS)
        speaking += self.speaking(1)
        self.assertTrue(self.accept()[1].aborted)
        self.assertFalse(any(connection.aborted for connection in speaking))

    def test_grace(self) -> None:
        """
        A connection that may still begin to speak does not make room.
        """
        self.make(LIMIT, 3)
        made = [self.accept()[1] for _ in range(3)]
        self.assertTrue(self.accept()[1].aborted)
        self.assertFalse(any(connection.aborted for connection in made))

    def test_publishers(self) -> None:
        """
        A publisher that has sent something is not silent, though nobody reports its messages.
        """
        self.make(LIMIT, 2)
        publishers = [self.accept(endpoint="sub")[1] for _ in range(2)]
        publishers[0].spoken = True
        self.clock.advance(GRACE_SECONDS)
        newcomer = self.accept()[1]
        self.assertEqual([each.aborted for each in (*publishers, newcomer)], [False, True, False])

    def test_fairness(self) -> None:
        """
        If all connections are used, the address with the most of them loses one: it cannot keep
        others out, although its connections have spoken.
        """
        many = self.speaking(LIMIT - RESERVE)
        self.clock.advance(GRACE_SECONDS)
        few = [self.accept(THERE)[1] for _ in range(3)]
        self.assertEqual([each.aborted for each in many], [True] * 3 + [False] * (len(many) - 3))
        self.assertFalse(any(connection.aborted for connection in few))

    def test_silent_first(self) -> None:
        """
        For somebody from elsewhere, a new and silent connection makes room before an old one that
        has spoken.
        """
        speaking = self.speaking(3)
        self.clock.advance(GRACE_SECONDS)
        silent = [self.accept()[1] for _ in range(LIMIT - RESERVE - 3)]
        self.accept(THERE)
        self.assertEqual([each.aborted for each in silent[:2]], [True, False])
        self.assertFalse(any(connection.aborted for connection in speaking))

    def test_share(self) -> None:
        """
        An address cannot take more than an equal share.
        """
        many, others = self.speaking(LIMIT // 2), self.speaking(LIMIT, THERE)
        shares = [sum(not each.aborted for each in crowd) for crowd in (many, others)]
        self.assertEqual(shares, [(LIMIT - RESERVE) / 2] * 2)

    def test_reserve(self) -> None:
        """
        The last connections are for addresses that are known.
        """
        self.speaking(1, THERE, vouched=True)
        strangers = self.speaking(LIMIT - RESERVE)
        self.assertEqual([each.aborted for each in strangers[-2:]], [False, True])
        known = self.speaking(RESERVE, THERE)
        self.assertFalse(any(connection.aborted for connection in (*known, *strangers[:-1])))
        self.assertEqual(len(self.table), LIMIT)


class HoldOffTests(TableTestCase):
    """
    Addresses whose attempts have to wait.
    """

    def test_refused_often(self) -> None:
        """
        An address that has been refused often waits until the next sweep; others do not.
        """
        self.speaking(1, THERE)
        self.speaking(LIMIT - RESERVE - 1)
        for _ in range(REFUSALS_PER_SECOND):
            self.assertEqual(self.table.held_off, frozenset())
            self.assertTrue(self.accept()[1].aborted)
        self.assertEqual(self.table.held_off, {HERE})
        self.table.sweep()
        self.assertEqual(self.table.held_off, frozenset())

    def test_others(self) -> None:
        """
        An address that loses connections to others does not wait.
        """
        self.make(400, 400)
        self.speaking(350)
        self.clock.advance(GRACE_SECONDS)
        self.speaking(100, THERE)
        self.assertEqual(self.counted("refused"), 100)
        self.assertEqual(self.table.held_off, frozenset())


class SilenceTests(TableTestCase):
    """
    Tests for L{ConnectionTable.sweep}.
    """

    def test_silent(self) -> None:
        """
        A connection that says nothing ends in time, unless silence is usual on its endpoint.
        """
        self.speaking(1)
        self.accept(endpoint="sub")
        silent = self.several(2)
        self.clock.advance(SILENCE_LIMIT - GRACE_SECONDS - 0.1)
        later = self.accept(endpoint="pub")[1]
        self.table.sweep()
        self.assertFalse(silent[0].aborted)
        self.clock.advance(0.1)
        self.table.sweep()
        self.assertTrue(all(connection.aborted for connection in silent))
        self.assertFalse(later.aborted)
        self.assertEqual((len(self.table), self.counted("silent")), (3, 2))

    def test_few(self) -> None:
        """
        Where few may be silent, those above that are refused, of the address with the most; some of
        each address are spared.
        """
        self.make(1000, 1000)
        self.table.limit_silent("pub", SPARED_SILENT + 4)
        many = [self.accept(endpoint="pub")[1] for _ in range(SPARED_SILENT + 6)]
        self.assertEqual([each.aborted for each in many[-3:]], [False, True, True])
        few = [self.accept(THERE, "pub")[1] for _ in range(SPARED_SILENT)]
        self.assertFalse(any(each.aborted for each in few))
        self.assertEqual([each.aborted for each in many], [False] * SPARED_SILENT + [True] * 6)
        self.assertEqual(self.table.silent("pub"), 2 * SPARED_SILENT)
        self.assertFalse(self.accept()[1].aborted)

    def test_fewer(self) -> None:
        """
        When fewer may be silent than there are, the newest go, and not all at once; so it is when
        many are silent for too long.
        """
        self.make(1000, 1000)
        many = [self.accept(endpoint="pub")[1] for _ in range(60)]
        for left in (40, 20, SPARED_SILENT, SPARED_SILENT):
            self.table.limit_silent("pub", 20 if left > SPARED_SILENT else 4)
            self.table.trim()
            self.assertEqual([each.aborted for each in many], [False] * left + [True] * (60 - left))
        self.clock.advance(SILENCE_LIMIT)
        for left in (SPARED_SILENT - 4, SPARED_SILENT - 8):
            self.table.sweep()
            self.assertEqual(self.table.silent("pub"), left)
            self.table.sweep()
            self.assertEqual(self.table.silent("pub"), left)
            self.table.trim()

    def test_burst(self) -> None:
        """
        Of many that come at once above the limit, some are refused at once, the others later; their
        address has to wait.
        """
        self.make(1000, 1000)
        self.table.limit_silent("pub", 30)
        many = [self.accept(endpoint="pub")[1] for _ in range(90)]
        self.assertEqual(sum(each.aborted for each in many), 30)
        self.assertEqual(self.table.held_off, {HERE})
        self.table.trim()
        self.assertEqual(sum(each.aborted for each in many), 60)
        self.assertFalse(any(each.aborted for each in many[:30]))

    def test_unfinished(self) -> None:
        self.table.unfinished("manage")
        self.assertEqual(self.counted("unfinished"), 1)


class OversizedTests(TableTestCase):
    """
    Connections that ask too much of the memory, or of the reactor.
    """

    def test_ended(self) -> None:
        """
        Each of them is ended and counted once, and the log names its address and the reason.
        """
        (large, one), (long, other) = self.accept(), self.accept(THERE)
        with capturedLogs() as events:
            for _ in range(2):
                self.table.end_oversized("manage", large)
                self.table.end_overlong("manage", long)
        self.assertTrue(one.aborted and other.aborted)
        self.assertEqual(self.counted("oversized"), 2)
        self.assertEqual([event["address"] for event in events], [HERE, THERE])
        self.assertEqual(len({event["reason"] for event in events}), 2)

    def test_unidentified(self) -> None:
        """
        If the sender of a message of too many frames is unknown, nobody is ended.
        """
        connection = self.accept()[1]
        with capturedLogs() as events:
            self.table.end_overlong("manage", None)
        self.assertFalse(connection.aborted)
        self.assertEqual((self.counted("oversized"), len(events)), (1, 1))


class LogTests(TableTestCase):
    """
    The log names address and limits, at a bounded rate.
    """

    def test_bounded(self) -> None:
        self.make(LIMIT, 1)
        with capturedLogs() as events:
            self.speaking(10 * COMPLAINTS)
        self.assertEqual(len(events), COMPLAINTS)
        self.assertEqual((events[0]["address"], events[0]["most"]), (HERE, 1))


class PropertyTests(SynchronousTestCase):
    """
    Whatever happens, the limits hold.
    """

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["accept", "end", "hear", "sweep", "wait"]),
                st.sampled_from(["manage", "pub", "sub"]),
                st.integers(0, 30),
                st.integers(0, 3),
            ),
            max_size=200,
        )
    )
    def test_any(self, steps: list[tuple[str, str, int, int]]) -> None:
        clock, counters = Clock(), MemoryCounters()
        table = ConnectionTable(clock, 10, 5, ["sub"], counters, RateLimit(clock, 0))
        living: dict[tuple[str, int], MemoryConnection] = {}
        for action, endpoint, descriptor, host in steps:
            match action:
                case "accept":
                    connection = MemoryConnection(f"192.0.2.{host}")
                    living[endpoint, descriptor] = connection
                    table.accepted(endpoint, descriptor, connection)
                case "end":
                    living.pop((endpoint, descriptor), None)
                    table.ended(endpoint, descriptor)
                case "hear":
                    table.heard(endpoint, descriptor, host == 0)
                case "sweep":
                    table.sweep()
                case "wait":
                    clock.advance(host * 10)
            living = {key: each for key, each in living.items() if not each.aborted}
            self.assertEqual(len(table), len(living))
            self.assertLessEqual(len(table), 10)
            hosts = [each.address for each in living.values()]
            self.assertLessEqual(max(map(hosts.count, hosts), default=0), 5)
