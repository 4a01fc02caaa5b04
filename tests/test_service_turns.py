"""
Tests for L{tbvast.service.turns}.
"""

from __future__ import annotations

import time

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.turns import TURN_BUDGET_SECONDS, TurnWatch, in_turns
from tests.doubles import BusyClock


class InTurnsTests(SynchronousTestCase):
    """
    Tests for L{in_turns}.
    """

    def setUp(self) -> None:
        self.clock = BusyClock(TURN_BUDGET_SECONDS / 4)
        self.handled: list[int] = []

    def handle(self, thing: int) -> None:
        self.handled.append(10 // thing)

    def test_turns(self) -> None:
        """
        All things are handled in order, a few in each turn.
        """
        done = Deferred.fromCoroutine(
            in_turns(self.clock, [2] * 20, self.handle, "Cannot handle it")
        )
        turns = 1
        while not done.called:
            self.assertLessEqual(len(self.handled), turns * 5)
            self.clock.advance(0)
            turns += 1
        self.successResultOf(done)
        self.assertEqual(self.handled, [5] * 20)

    def test_error(self) -> None:
        """
        An error is logged, and the other things are handled.
        """
        self.clock = BusyClock(0)
        things = in_turns(self.clock, [1, 0, 2], self.handle, "Cannot handle it")
        self.successResultOf(Deferred.fromCoroutine(things))
        self.assertEqual(self.handled, [10, 5])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_cancelled(self) -> None:
        """
        Work that is cancelled leaves no call behind.
        """
        things = in_turns(self.clock, [1] * 20, self.handle, "Cannot handle it")
        done = Deferred.fromCoroutine(things)
        done.addErrback(lambda failure: None)
        done.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertLess(len(self.handled), 20)


class TurnWatchTests(SynchronousTestCase):
    """
    Tests for L{TurnWatch}.
    """

    def test_longest(self) -> None:
        """
        It measures from turn to turn, from the first one on, until it is stopped.
        """

        class Reactor:
            turns = 0

            def runUntilCurrent(self) -> None:
                self.turns += 1

        now = [100.0]
        self.patch(time, "thread_time", lambda: now[0])
        reactor = Reactor()
        watch = TurnWatch(reactor)
        watch.startService()
        for took in (0.25, 0.5, 0.125):
            reactor.runUntilCurrent()
            now[0] += took
        reactor.runUntilCurrent()
        self.assertEqual((watch.longest, reactor.turns), (0.5, 4))
        watch.stopService()
        now[0] += 9
        reactor.runUntilCurrent()
        self.assertEqual((watch.longest, reactor.turns), (0.5, 5))
