"""
Tests for L{tbvast.service.rate_limit}.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import Logger, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.rate_limit import ClientRateLimit, RateLimit


class RateLimitTests(SynchronousTestCase):
    """
    Tests for L{RateLimit}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1e9 + 0.5)

    def allowed(self, limit: RateLimit, attempts: int) -> int:
        return sum(limit.allows() for _ in range(attempts))

    def test_limited(self) -> None:
        """
        So many a minute are allowed.
        """
        limit = RateLimit(self.clock, 3)
        self.assertEqual(self.allowed(limit, 10), 3)
        self.clock.advance(59.9)
        self.assertEqual(self.allowed(limit, 2), 0)

    def test_beginning(self) -> None:
        """
        A minute begins with the first event after the last minute.
        """
        limit = RateLimit(self.clock, 1)
        for _ in range(2):
            self.clock.advance(50)
            self.assertEqual(self.allowed(limit, 2), 1)
            self.clock.advance(59)
            self.assertEqual(self.allowed(limit, 2), 0)

    def test_next_minute(self) -> None:
        """
        The next minute allows as many again, and no more for those that were not
        used.
        """
        limit = RateLimit(self.clock, 3)
        self.assertEqual(self.allowed(limit, 1), 1)
        for _ in range(2):
            self.clock.advance(60)
            self.assertEqual(self.allowed(limit, 10), 3)
        self.clock.advance(100_000)
        self.assertEqual(self.allowed(limit, 10), 3)

    def test_warn(self) -> None:
        """
        A warning is logged if one is allowed.
        """
        limit = RateLimit(self.clock, 2)
        with capturedLogs() as events:
            for number in range(4):
                limit.warn(Logger(), "It is {number}", number=number)
        self.assertEqual([event["number"] for event in events], [0, 1])

    def test_none(self) -> None:
        """
        A limit of nothing allows nothing.
        """
        limit = RateLimit(self.clock, 0)
        self.assertEqual(self.allowed(limit, 2), 0)
        self.clock.advance(60)
        self.assertEqual(self.allowed(limit, 2), 0)


class ClientRateLimitTests(SynchronousTestCase):
    """
    Tests for L{ClientRateLimit}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.limit = ClientRateLimit(self.clock, 3, 5)

    def allowed(self, client: str) -> int:
        return sum(self.limit.allows(client) for _ in range(10))

    def test_limited(self) -> None:
        """
        One client does not use up what all may have; together they do.
        """
        self.assertEqual([self.allowed(each) for each in "abc"], [3, 2, 0])
        self.clock.advance(59)
        self.assertEqual([self.allowed(each) for each in "abc"], [0, 0, 0])

    def test_next_minute(self) -> None:
        """
        The next minute allows as many again.
        """
        self.allowed("a")
        self.clock.advance(60)
        self.assertEqual([self.allowed(each) for each in "bac"], [3, 2, 0])

    def test_info(self) -> None:
        """
        A line is logged if one is allowed.
        """
        with capturedLogs() as events:
            for number in range(5):
                self.limit.info("a", Logger(), "It is {number}", number=number)
        self.assertEqual([event["number"] for event in events], [0, 1, 2])
