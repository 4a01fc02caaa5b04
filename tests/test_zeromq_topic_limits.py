"""
Tests for L{tbvast.zeromq.topic_limits}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.topic_limits import BYTES_PER_TOPIC, TOTAL_BYTES, TopicLimits
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

    def begin(self, *topics: bytes, name: str = "1") -> list[str | None]:
        connection = self.one if name == "1" else self.other
        return [self.limits.begun(name, connection, topic) for topic in topics]

    def test_count(self) -> None:
        """
        A connection with too many topics is named; another one is not.
        """
        self.assertEqual(self.begin(*map(a_topic, range(MOST))), [None] * MOST)
        self.assertEqual(self.begin(a_topic(0), name="2"), [None])
        self.assertEqual(self.begin(a_topic(MOST)), ["1"])

    def test_repeated(self) -> None:
        """
        A topic counts once, and no longer when its subscription has ended.
        """
        self.assertEqual(self.begin(*[a_topic(1)] * 10), [None] * 10)
        for number in range(2, 10):
            self.assertEqual(self.begin(a_topic(number)), [None])
            self.limits.ended("1", a_topic(number))
            self.limits.ended("1", a_topic(number))
        self.limits.ended("unknown", a_topic(1))

    def test_bytes(self) -> None:
        """
        Few long topics are too many, too.
        """
        self.assertEqual(self.begin(bytes(MOST * BYTES_PER_TOPIC)), [None])
        self.assertEqual(self.begin(bytes(2 * BYTES_PER_TOPIC)), ["1"])

    def test_gone(self) -> None:
        """
        Another connection with the name of one that is gone has topics of its own.
        """
        self.begin(*map(a_topic, range(MOST)))
        self.one.gone, self.one = True, MemoryConnection("192.0.2.3")
        self.assertEqual(self.begin(a_topic(MOST)), [None])

    def test_unknown(self) -> None:
        """
        Connections that cannot be told apart count together.
        """
        for number in range(MOST):
            self.assertIsNone(self.limits.begun("", None, a_topic(number)))
        self.assertEqual(self.limits.begun("", None, a_topic(MOST)), "")
        self.assertIsNone(self.limits.begun("", None, a_topic(MOST)))

    def test_total(self) -> None:
        """
        If all together have too many, the connection with the most ends; those that are gone
        count no longer.
        """
        limits = TopicLimits(1000)
        each = TOTAL_BYTES // (BYTES_PER_TOPIC + 36)
        named = []
        for number in range(each + 1):
            named.append(limits.begun(str(number % 100), self.one, a_topic(number, 36)))
            if number == 0:
                limits.begun("0", self.one, a_topic(-1, 36))
        self.assertEqual([name for name in named if name is not None], ["0"])
        self.one.gone = True
        limits.begun("new", self.other, b"")
        for number in range(each - 2):
            name = str(1000 + number % 100)
            self.assertIsNone(limits.begun(name, self.other, a_topic(number, 36)))

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
            named = limits.begun(name, self.one, a_topic(number))
            self.assertEqual(named, name if excess else None)
            if excess:
                known[name].clear()
