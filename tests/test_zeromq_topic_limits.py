"""
Tests for L{tbvast.zeromq.topic_limits}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.topic_limits import (
    ADDRESS_BYTES,
    BYTES_PER_TOPIC,
    TOTAL_BYTES,
    WALK_BYTES,
    TopicLimits,
)
from tests.test_zeromq_connection_table import MemoryConnection

MOST = 3


def a_topic(number: int, length: int = 8) -> bytes:
    return b"%0*d" % (length, number)


class TopicLimitsTests(SynchronousTestCase):
    """
    Tests for L{TopicLimits}.
    """

    def setUp(self) -> None:
        self.limits = TopicLimits(MOST)
        self.one, self.other = MemoryConnection("192.0.2.1"), MemoryConnection("192.0.2.2")

    def begin(self, *topics: bytes, name: str = "1") -> list[bool]:
        connection = self.one if name == "1" else self.other
        return [self.limits.begun(name, connection, topic) for topic in topics]

    def test_count(self) -> None:
        """
        A connection with too many topics is named; another one is not.
        """
        self.assertEqual(self.begin(*map(a_topic, range(MOST))), [False] * MOST)
        self.assertEqual(self.begin(a_topic(0), name="2"), [False])
        self.assertEqual(self.begin(a_topic(MOST)), [True])

    def test_repeated(self) -> None:
        """
        A topic counts once, and no longer when its subscription has ended.
        """
        self.assertEqual(self.begin(*[a_topic(1)] * 10), [False] * 10)
        for number in range(2, 10):
            self.assertEqual(self.begin(a_topic(number)), [False])
            self.limits.ended("1", a_topic(number))
            self.limits.ended("1", a_topic(number))
        self.limits.ended("unknown", a_topic(1))

    def test_bytes(self) -> None:
        """
        Few long topics are too many, too.
        """
        self.assertEqual(self.begin(bytes(MOST * BYTES_PER_TOPIC)), [False])
        self.assertEqual(self.begin(bytes(2 * BYTES_PER_TOPIC)), [True])

    def test_gone(self) -> None:
        """
        Another connection with the name of one that is gone has topics of its own.
        """
        self.begin(*map(a_topic, range(MOST)))
        self.one.gone, self.one = True, MemoryConnection("192.0.2.3")
        self.assertEqual(self.begin(a_topic(MOST)), [False])

    def test_unknown(self) -> None:
        """
        Connections that cannot be told apart count together.
        """
        for number in range(MOST):
            self.assertFalse(self.limits.begun("", None, a_topic(number)))
        self.assertTrue(self.limits.begun("", None, a_topic(MOST)))
        self.assertFalse(self.limits.begun("", None, a_topic(MOST)))

    def test_total(self) -> None:
        """
        If all together have too many, the latest connection of the address with the most ends, not
        a larger one of another address; those that are gone count no longer.
        """
        limits = TopicLimits(1000)
        for number in range(800):
            limits.begun("known", self.other, a_topic(-number, 36))
        each = TOTAL_BYTES // (BYTES_PER_TOPIC + 36) - 800
        for number in range(each):
            limits.begun(str(number % 100), self.one, a_topic(number, 36))
        self.assertIsNone(limits.excess(1))
        limits.begun("0", self.one, a_topic(each, 36))
        self.assertEqual(limits.excess(1), "99")
        self.assertIsNone(limits.excess(1))
        self.one.gone = True
        limits.tidy()
        self.assertEqual(limits.walk, 2 * 36 * 800)

    def test_refused(self) -> None:
        """
        When so many connections could end that ZeroMQ would look at too many bytes, the latest one
        of the address with the most refused topics ends; admitted topics are spared.
        """
        limits = TopicLimits(1000)
        for number in range(500):
            limits.begun("known", self.other, a_topic(-number, 32))
        for number in range(200):
            name = f"stranger {number // 50}"
            limits.begun(name, self.one, a_topic(number, 32))
            limits.refused(name, a_topic(number, 32))
        self.assertEqual(limits.walk, 2 * 32 * 500 + 32 * 200)
        connections = WALK_BYTES // limits.walk
        self.assertEqual(limits.connections, connections)
        self.assertIsNone(limits.excess(connections))
        self.assertEqual(limits.excess(connections + 1), "stranger 3")
        self.assertEqual(limits.walk, 2 * 32 * 500 + 32 * 150)
        self.assertEqual(limits.excess(1000), "stranger 2")
        self.assertLessEqual(32 * 100, ADDRESS_BYTES)
        self.assertIsNone(limits.excess(1000))

    def test_refused_and_gone(self) -> None:
        """
        Connections that are gone make room first.
        """
        limits = TopicLimits(1000)
        for name, connection in (("there", self.one), ("gone", MemoryConnection("192.0.2.1"))):
            for number in range(200):
                topic = name.encode() + a_topic(number, 32)
                limits.begun(name, connection, topic)
                limits.refused(name, topic)
            self.assertIsNone(limits.excess(1))
        connection.gone = True
        self.assertIsNone(limits.excess(WALK_BYTES // limits.walk + 1))
        self.assertEqual(limits.excess(1000), "there")
        self.assertEqual(limits.walk, 0)

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from("123"), st.integers(0, 9))))
    def test_any(self, steps: list[tuple[bool, str, int]]) -> None:
        """
        A connection is named exactly when it has more topics than it may.
        """
        limits, known = TopicLimits(MOST), {name: set[int]() for name in "123"}
        for begins, name, number in steps:
            if not begins:
                limits.ended(name, a_topic(number))
                known[name].discard(number)
                continue
            known[name].add(number)
            excess = len(known[name]) > MOST
            self.assertEqual(limits.begun(name, self.one, a_topic(number)), excess)
            if excess:
                known[name].clear()
            held = set[int]().union(*known.values())
            self.assertEqual(limits.walk, 2 * 8 * len(held))
