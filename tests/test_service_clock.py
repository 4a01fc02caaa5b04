"""
Tests for L{tbvast.service.clock}.
"""

from __future__ import annotations

import time
from typing import Any
from unittest import TestCase

from twisted.internet.epollreactor import EPollReactor

from tbvast.service.clock import calendar, use_monotonic_time


class MonotonicTests(TestCase):
    """
    Tests for L{use_monotonic_time}, on a reactor that is not run.
    """

    def test_delays(self) -> None:
        """
        Delayed calls, and the reactor's time, use the monotonic clock.
        """
        reactor: Any = EPollReactor()
        self.addCleanup(reactor._poller.close)
        use_monotonic_time(reactor)
        before = time.monotonic()
        call = reactor.callLater(60.0, self.fail)
        self.assertLessEqual(before + 60.0, call.getTime())
        self.assertLessEqual(call.getTime(), time.monotonic() + 60.0)
        call.reset(30.0)
        self.assertLessEqual(call.getTime(), time.monotonic() + 30.0)
        self.assertLessEqual(before, reactor.seconds())

    def test_calendar(self) -> None:
        """
        The calendar is the machine's.
        """
        self.assertAlmostEqual(calendar(), time.time(), delta=5.0)
