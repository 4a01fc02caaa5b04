"""
Tests for L{tbvast.bridge.outbox}.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.outbox import Counters, Outbox
from tbvast.service.flusher import RETRY_DELAY, STUCK_DELAY, Reported
from tbvast.service.pages import PAGE, PAGE_BYTES, STRIKE_DELAY, STRIKES
from tbvast.stix.sightings import Sighting
from tbvast.values import PageRequest
from tests.doubles import a_sighting, call_now
from tests.doubles_bridge import MemoryStore


class Receiver:
    """
    A receiver of sightings.

    @ivar given: The documents of each call.
    @ivar answers: The next answers; after them, everything is taken.
    @ivar poison: Documents that make it take no page.
    @ivar away: Whether the receiver is away.
    """

    def __init__(self) -> None:
        self.given: list[list[bytes]] = []
        self.answers: list[Deferred[list[bool]]] = []
        self.poison: set[bytes] = set()
        self.refused: dict[bytes, str] = {}
        self.away = False

    def __call__(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        self.given.append(list(documents))
        if self.answers:
            return self.answers.pop(0).addCallback(Reported)
        none = [False] * len(documents)
        if self.away:
            return succeed(Reported(none))
        if self.poison.intersection(documents):
            return succeed(Reported(none, {}, "no answer", True))
        refused = {n: self.refused[raw] for n, raw in enumerate(documents) if raw in self.refused}
        return succeed(Reported([True] * len(documents), refused))


class OutboxTests(SynchronousTestCase):
    """
    Tests for L{Outbox}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.receiver = Receiver()
        self.calls = 0

        def call(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            self.calls += 1
            return call_now(f, *arguments)

        memory = MemoryStore(self.clock.seconds, call=call)
        self.addCleanup(memory.close)
        self.store = memory.file
        self.counters = Counters()
        self.outbox = Outbox(self.clock, memory.outbox, self.receiver, self.counters)
        self.outbox.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if self.outbox.running:
            self.successResultOf(self.outbox.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def add(self, *sightings: Sighting) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.outbox.add(sightings)))

    def unsent(self) -> list[str]:
        return [id for id, _ in self.store.outbox.page(PageRequest(1000, 1 << 30))]

    def test_taken(self) -> None:
        """
        A sighting that was taken no longer waits.
        """
        one = a_sighting(1)
        self.add(one)
        self.assertEqual(self.receiver.given, [[one.raw]])
        self.assertEqual(self.unsent(), [])
        self.assertEqual((self.counters.made, self.counters.delivered), (1, 1))

    def test_calls(self) -> None:
        """
        A batch takes two calls of the store, and each further page one.
        """
        self.calls = 0
        self.add(*(a_sighting(number) for number in range(1, PAGE + 2)))
        self.assertEqual(self.calls, 3)

    def test_unread(self) -> None:
        """
        Sightings that were stored are sent, even if the page after that could not be read.
        """

        def fail(*arguments: Any) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        patch = self.patch(self.store.outbox, "page", fail)
        added = Deferred.fromCoroutine(self.outbox.add([a_sighting(1)]))
        self.failureResultOf(added, sqlite3.OperationalError)
        self.assertEqual(len(self.flushLoggedErrors(sqlite3.OperationalError)), 1)
        patch.restore()
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.receiver.given, [[a_sighting(1).raw]])
        self.assertEqual(self.unsent(), [])

    def test_repeat(self) -> None:
        """
        A repeat is not sent again.
        """
        self.add(a_sighting(1))
        self.add(a_sighting(1))
        self.assertEqual(len(self.receiver.given), 1)
        self.assertEqual(self.counters.made, 1)

    def test_kept_until_taken(self) -> None:
        """
        A sighting is stored until the receiver has answered.
        """
        answer: Deferred[list[bool]] = Deferred()
        self.receiver.answers.append(answer)
        self.add(a_sighting(1))
        self.assertEqual(self.unsent(), [a_sighting(1).id])
        answer.callback([True])
        self.assertEqual(self.unsent(), [])

    def test_tried_again(self) -> None:
        """
        A sighting that was not taken is sent again, alone, after a delay.
        """
        one, two = a_sighting(1), a_sighting(2)
        self.receiver.answers.append(succeed([True, False]))
        self.add(one, two)
        self.assertEqual(self.unsent(), [two.id])
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.receiver.given[1:], [[two.raw]])
        self.assertEqual(self.unsent(), [])
        self.assertEqual(self.counters.delivered, 2)

    def test_failed(self) -> None:
        """
        A failure is logged, loses nothing, and does not end the trying.
        """
        answer: Deferred[list[bool]] = Deferred()
        answer.errback(RuntimeError())
        self.receiver.answers.append(answer)
        self.add(a_sighting(1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.unsent(), [a_sighting(1).id])
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.unsent(), [])

    def test_ready(self) -> None:
        """
        When the receiver is back, the sighting is sent at once, and only once.
        """
        self.receiver.answers.append(succeed([False]))
        self.add(a_sighting(1))
        self.outbox.flush()
        self.assertEqual(self.unsent(), [])
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(len(self.receiver.given), 2)

    def test_one_at_a_time(self) -> None:
        """
        Sightings that are added meanwhile follow, and none is sent twice at once.
        """
        answer: Deferred[list[bool]] = Deferred()
        self.receiver.answers.append(answer)
        self.add(a_sighting(1))
        self.add(a_sighting(2))
        self.outbox.flush()
        self.assertEqual(len(self.receiver.given), 1)
        answer.callback([True])
        self.assertEqual(self.receiver.given[1:], [[a_sighting(2).raw]])

    def test_pages(self) -> None:
        """
        Many sightings are sent page by page.
        """
        self.add(*(a_sighting(number) for number in range(1, PAGE + 2)))
        self.assertEqual([len(given) for given in self.receiver.given], [PAGE, 1])

    def test_started_again(self) -> None:
        """
        Waiting sightings are sent when the service starts, and not while it is stopped.
        """
        self.stop()
        self.add(a_sighting(1))
        self.assertEqual(self.receiver.given, [])
        self.outbox.startService()
        self.assertEqual(self.receiver.given, [[a_sighting(1).raw]])

    def test_stop(self) -> None:
        """
        The stop waits for the page under way; nothing is sent afterwards.
        """
        answer: Deferred[list[bool]] = Deferred()
        self.receiver.answers.append(answer)
        self.add(a_sighting(1))
        stopped = self.outbox.stopService()
        self.assertNoResult(stopped)
        answer.callback([False])
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.unsent(), [a_sighting(1).id])

    # Sightings that are not taken

    def aside(self) -> int:
        found: int = self.store.counts()["set_aside"].get("count", 0)
        return found

    def test_bytes(self) -> None:
        """
        A page holds no more bytes than it may, and a long sighting is alone.
        """
        long = [a_sighting(n, x="x" * PAGE_BYTES * 2) for n in (1, 3)]
        some = [a_sighting(n, x="x" * (PAGE_BYTES // 3)) for n in (4, 5, 6, 7)]
        self.add(long[0], a_sighting(2), long[1], *some)
        self.assertEqual(sum(map(len, self.receiver.given)), 7)
        for given in self.receiver.given:
            self.assertTrue(len(given) == 1 or sum(map(len, given)) <= PAGE_BYTES)
        self.assertLess(len(self.receiver.given), 7)

    def test_refused(self) -> None:
        """
        A refused sighting is set aside, and neither sent nor stored again.
        """
        one, two = a_sighting(1), a_sighting(2)
        self.receiver.refused[one.raw] = "no sighting"
        self.add(one, two)
        self.assertEqual(self.unsent(), [])
        self.add(one)
        self.assertEqual(len(self.receiver.given), 1)
        self.assertEqual((self.counters.delivered, self.counters.set_aside), (1, 1))
        self.assertEqual(self.aside(), 1)
        self.assertIn("no sighting", self.store.counts()["set_aside"]["newest"])

    def test_poison(self) -> None:
        """
        One for which no page is taken keeps no other one waiting, and is given up when it
        was not taken again and again while others were.
        """
        all = [a_sighting(n) for n in range(1, 200)]
        bad = all[77]
        self.receiver.poison.add(bad.raw)
        self.add(*all)
        self.assertEqual(self.unsent(), [bad.id])
        self.assertEqual(self.counters.delivered, 198)
        self.assertLess(len(self.receiver.given), 30)
        for number in range(200, 200 + STRIKES - 1):
            self.assertEqual(self.aside(), 0)
            self.add(a_sighting(number))
            self.clock.advance(STRIKE_DELAY)
        self.assertEqual(self.unsent(), [])
        self.assertEqual((self.aside(), self.counters.set_aside), (1, 1))

    def test_poison_alone(self) -> None:
        """
        While nothing else is taken, nothing is given up; it is offered again and again.
        """
        bad = [a_sighting(n) for n in range(1, 4)]
        self.receiver.poison = {each.raw for each in bad}
        self.add(*bad)
        for _ in range(20):
            given = len(self.receiver.given)
            self.clock.advance(STRIKE_DELAY)
            self.assertGreater(len(self.receiver.given), given)
        self.assertEqual((len(self.unsent()), self.aside()), (3, 0))
        self.receiver.poison = set()
        self.clock.advance(STRIKE_DELAY)
        self.assertEqual(self.unsent(), [])

    def test_nothing_taken(self) -> None:
        """
        A receiver that answers, and takes nothing at all, costs nothing but time, and is
        not asked without a pause.
        """
        all = [a_sighting(n) for n in range(1, 100)]
        self.receiver.poison = {each.raw for each in all}
        self.add(*all)
        self.assertLess(len(self.receiver.given), 40)
        for _ in range(50):
            given = len(self.receiver.given)
            self.clock.advance(STUCK_DELAY)
            self.assertLess(len(self.receiver.given) - given, 20)
        self.assertEqual((len(self.unsent()), self.aside()), (99, 0))
        self.receiver.poison = set()
        self.clock.advance(STRIKE_DELAY)
        self.assertEqual(self.unsent(), [])

    def test_away(self) -> None:
        """
        A receiver that is away is offered the same pages when it is back.
        """
        self.receiver.away = True
        all = [a_sighting(n) for n in range(1, 100)]
        self.add(*all)
        for _ in range(50):
            self.clock.advance(RETRY_DELAY)
        self.assertEqual({len(given) for given in self.receiver.given}, {99})
        self.receiver.away = False
        self.clock.advance(RETRY_DELAY)
        self.assertEqual((self.unsent(), self.aside()), ([], 0))
