"""
Tests for L{tbvast.bus.upstream}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bus.upstream import IntelCursor, JournalBacklog, Upstream
from tbvast.errors import JournalFailed
from tbvast.interfaces import IBacklog, ICursor
from tbvast.protocol.frames import Item
from tbvast.service.flusher import RETRY_DELAY
from tbvast.service.pages import PAGE, PAGE_BYTES, STRIKE_DELAY, STRIKES
from tbvast.settings.schema import UpstreamSettings
from tbvast.values import PageRequest, Position
from tbvast.zeromq.sockets import Factory
from tests.doubles import MemoryJournal, a_sighting, an_indicator
from tests.doubles_bus import MemoryBusSubscription, a_batch, encode_report


class IntelCursorTests(SynchronousTestCase):
    """
    Tests for L{IntelCursor}.
    """

    def setUp(self) -> None:
        self.journal = MemoryJournal(Clock(), "here")
        self.taken: list[list[Item]] = []
        self.taking: Deferred[Any] = succeed(None)
        self.cursor = self.make_cursor()

    def make_cursor(self, reader: str = "one") -> IntelCursor:
        return IntelCursor(self.take, self.journal, reader)

    def take(self, items: Sequence[Item]) -> Deferred[Any]:
        self.taken.append(list(items))
        return self.taking

    def recalled(self, reader: str = "one") -> Position | None:
        """
        The position that another cursor of a reader begins with.
        """
        cursor = self.make_cursor(reader)
        self.successResultOf(Deferred.fromCoroutine(cursor.recall()))
        return cursor.position

    def apply(self, items: Sequence[Item], position: Position | None) -> Deferred[None]:
        return Deferred.fromCoroutine(self.cursor.apply(items, position))

    def test_interface(self) -> None:
        """
        It is an L{ICursor}.
        """
        verifyObject(ICursor, self.cursor)

    def test_applied(self) -> None:
        """
        Received items are taken in, and the position is stored for this reader.
        """
        self.assertIsNone(self.cursor.position)
        self.successResultOf(self.apply([an_indicator()], Position("up", 3)))
        self.assertEqual(self.taken, [[an_indicator()]])
        self.assertEqual(self.cursor.position, Position("up", 3))
        self.assertEqual(self.recalled(), Position("up", 3))
        self.assertIsNone(self.recalled("two"))

    def test_not_before_durable(self) -> None:
        """
        The position advances only when the items are durable.
        """
        self.taking = Deferred()
        d = self.apply([an_indicator()], Position("up", 3))
        self.assertEqual((self.cursor.position, self.recalled()), (None, None))
        self.taking.callback(None)
        self.successResultOf(d)
        self.taking = fail(JournalFailed("full"))
        self.failureResultOf(self.apply([an_indicator()], Position("up", 4)), JournalFailed)
        self.assertEqual((self.cursor.position, self.recalled()), (Position("up", 3),) * 2)

    def test_not_remembered(self) -> None:
        """
        A position that cannot be remembered is not reached.
        """
        self.journal.failing = True
        self.failureResultOf(self.apply([], Position("up", 3)), JournalFailed)
        self.assertIsNone(self.cursor.position)

    def test_without_position(self) -> None:
        """
        Items without a number leave the position where it was.
        """
        self.successResultOf(self.apply([], Position("up", 3)))
        self.successResultOf(self.apply([an_indicator()], None))
        self.assertEqual(self.cursor.position, Position("up", 3))

    def test_snapshot(self) -> None:
        """
        A snapshot takes nothing away, and ends with its position.
        """
        self.successResultOf(Deferred.fromCoroutine(self.cursor.begin_snapshot()))
        self.successResultOf(self.apply([an_indicator()], None))
        self.assertIsNone(self.recalled())
        end = self.cursor.end_snapshot(Position("up", 9))
        self.successResultOf(Deferred.fromCoroutine(end))
        self.assertEqual(self.recalled(), Position("up", 9))
        self.assertEqual(self.taken, [[an_indicator()]])


class UpstreamTests(SynchronousTestCase):
    """
    Tests for L{Upstream}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = MemoryJournal(self.clock, "here")
        self.factory = Factory(self.clock)
        self.addCleanup(self.factory.shutdown)
        self.start()

    def start(self) -> None:
        self.made: list[MemoryBusSubscription] = []

        def subscribe(*args: Any, **more: Any) -> Any:
            self.made.append(MemoryBusSubscription(*args, **more))
            return self.made[-1]

        self.upstream = Upstream(
            self.clock,
            self.factory,
            UpstreamSettings(threatbus="up.example:13370", snapshot=3),
            self.journal,
            lambda items: self.journal.append(items),
            subscribe,
        )
        (self.bus,) = self.made
        self.upstream.startService()

    def tearDown(self) -> None:
        if self.upstream.running:
            self.successResultOf(self.upstream.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def accept(self, *items: Item) -> None:
        outcomes = self.successResultOf(self.journal.append(items))
        accepted = [(o.number, o.item) for o in outcomes if o.number]
        if accepted:
            self.upstream.deliver(a_batch(accepted))

    def passed_up(self) -> Position | None:
        position: Position | None = self.successResultOf(
            self.journal.position("sightings up.example:13370")
        )
        return position

    def test_request(self) -> None:
        """
        It subscribes to the intel of the other bus, with the snapshot that was
        wanted, from where it was.
        """
        (_, factory, bus, request, cursor), _ = self.bus.given
        self.assertIs(factory, self.factory)
        self.assertEqual(str(bus), "up.example:13370")
        self.assertEqual((request.topics, request.snapshot), (("stix2/indicator",), 3))
        self.assertTrue(self.bus.running)
        self.successResultOf(Deferred.fromCoroutine(cursor.apply((), Position("up", 7))))
        self.successResultOf(self.upstream.stopService())
        self.assertFalse(self.bus.running)
        self.start()
        self.assertEqual(self.bus.given[0][4].position, Position("up", 7))

    def test_sent_once(self) -> None:
        """
        A Threat Bus host is sent each sighting once, and no indicator.
        """
        self.bus.connect()
        self.accept(an_indicator(1), a_sighting(1), a_sighting(2))
        self.accept(a_sighting(1), a_sighting(3))
        self.bus.connect()
        expected = [encode_report(a_sighting(n)) for n in (1, 2, 3)]
        self.assertEqual(self.bus.sent, expected)
        self.assertEqual(self.passed_up(), Position("here", 4))
        self.successResultOf(self.upstream.stopService())
        self.start()
        self.bus.connect()
        self.assertEqual(self.bus.sent, [])

    def test_not_there(self) -> None:
        """
        Sightings that the other bus could not accept are sent in order when it is there.
        """
        sightings = [a_sighting(number) for number in range(PAGE + 10)]
        self.accept(*sightings)
        self.assertEqual((self.bus.sent, len(self.clock.getDelayedCalls())), ([], 1))
        self.bus.connect()
        self.assertEqual(self.bus.sent, [encode_report(item) for item in sightings])

    def test_full(self) -> None:
        """
        While its queue is full, it is tried again from time to time, by one call.
        """
        self.bus.connect()
        self.bus.room = 1
        for number in range(4):
            self.accept(a_sighting(number))
        self.assertEqual((len(self.bus.sent), len(self.clock.getDelayedCalls())), (1, 1))
        self.bus.room = 2
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(len(self.bus.sent), 3)
        self.bus.room = 2
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.bus.sent, [encode_report(a_sighting(n)) for n in range(4)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_acknowledged(self) -> None:
        """
        A bus that speaks tbvast/1 gets requests, and unaccepted sightings are offered again.
        """
        self.bus.connect("up")
        self.bus.room = 2
        self.accept(*(a_sighting(number) for number in range(3)))
        self.assertEqual(self.passed_up(), Position("here", 2))
        self.bus.room = 2
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.bus.reported, [a_sighting(n).raw for n in range(3)])
        self.assertEqual((self.bus.sent, self.passed_up()), ([], Position("here", 3)))

    def test_not_before_durable(self) -> None:
        """
        Unacknowledged sightings are sent again; those accepted meanwhile follow.
        """
        self.bus.holding = True
        self.bus.connect("up")
        self.accept(a_sighting(1))
        self.accept(a_sighting(2))
        self.assertIsNone(self.passed_up())
        self.bus.release()
        self.assertEqual(self.passed_up(), Position("here", 1))
        self.bus.release()
        self.assertEqual(self.passed_up(), Position("here", 2))
        self.assertEqual(self.bus.reported, [a_sighting(1).raw, a_sighting(2).raw])

    def test_journal_fails(self) -> None:
        """
        A journal that cannot be read is asked again.
        """
        self.accept(a_sighting(1))
        self.journal.failing = True
        self.bus.connect()
        self.assertEqual(len(self.flushLoggedErrors(JournalFailed)), 1)
        self.journal.failing = False
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(len(self.bus.sent), 1)

    def test_stopped(self) -> None:
        """
        It stops at once, even while a request is unanswered; unacknowledged sightings are
        offered again after a restart.
        """
        self.bus.holding = True
        self.bus.connect("up")
        self.accept(a_sighting(1))
        self.successResultOf(self.upstream.stopService())
        self.assertIsNone(self.passed_up())
        self.upstream.deliver(a_batch([(2, a_sighting(2))]))
        self.start()
        self.bus.connect("up")
        self.assertEqual(self.bus.reported, [a_sighting(1).raw])

    def test_stopped_while_full(self) -> None:
        """
        No call is left then, either.
        """
        self.bus.connect()
        self.bus.room = 0
        self.accept(a_sighting(1))
        self.successResultOf(self.upstream.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_started(self) -> None:
        """
        Where it was cannot be read: the other bus is not asked, and the log says so.
        """
        self.successResultOf(self.upstream.stopService())
        self.journal.failing = True
        self.start()
        self.assertFalse(self.bus.running)
        self.assertEqual(len(self.flushLoggedErrors(JournalFailed)), 1)

    def test_poison(self) -> None:
        """
        A sighting with which the other bus takes no request keeps no other one waiting.
        After a restart everything from it on is offered again; it is set aside when it was
        not taken again and again while others were.
        """
        sightings = [a_sighting(n) for n in range(1, 100)]
        bad = sightings[40]
        self.bus.poison.add(bad.raw)
        self.bus.connect("up")
        self.accept(*sightings)
        others = [each.raw for each in sightings if each is not bad]
        self.assertEqual(sorted(self.bus.reported), sorted(others))
        self.assertEqual(self.passed_up(), Position("here", 40))
        self.successResultOf(self.upstream.stopService())
        self.start()
        self.bus.poison.add(bad.raw)
        self.bus.connect("up")
        self.assertEqual(sorted(self.bus.reported), sorted(others[40:]))
        for number in range(100, 100 + STRIKES - 1):
            self.assertEqual(self.journal.aside, [])
            self.accept(a_sighting(number))
            self.clock.advance(STRIKE_DELAY)
        (aside,) = self.journal.aside
        self.assertEqual((aside.id, aside.number, aside.body), (bad.id, 41, bad.raw))
        self.assertEqual(self.passed_up(), Position("here", 98 + STRIKES))

    def test_refused(self) -> None:
        """
        One that the other bus refuses is set aside, and not offered again.
        """
        self.bus.refused[a_sighting(2).raw] = "no sighting"
        self.bus.connect("up")
        self.accept(*(a_sighting(n) for n in range(1, 4)))
        self.assertEqual(self.bus.reported, [a_sighting(1).raw, a_sighting(3).raw])
        (aside,) = self.journal.aside
        self.assertEqual((aside.id, aside.reason), (a_sighting(2).id, "no sighting"))
        self.assertEqual(self.passed_up(), Position("here", 3))


class BacklogTests(SynchronousTestCase):
    """
    Tests for L{JournalBacklog}.
    """

    def setUp(self) -> None:
        self.journal = MemoryJournal(Clock(), "here")
        self.backlog = JournalBacklog(self.journal, "one")

    def page(self, count: int = 100, without: Sequence[int] = ()) -> list[int]:
        request = PageRequest(count, PAGE_BYTES, tuple(map(str, without)))
        found = Deferred.fromCoroutine(self.backlog.page(request))
        return [int(key) for key, _ in self.successResultOf(found)]

    def sent(self, *numbers: int) -> Position | None:
        """
        @return: The stored position afterwards.
        """
        self.successResultOf(
            Deferred.fromCoroutine(self.backlog.mark_sent([*map(str, numbers)], None))
        )
        position: Position | None = self.successResultOf(self.journal.position("one"))
        return position

    def accept(self, *items: Item) -> None:
        self.successResultOf(self.journal.append(items))

    def test_interface(self) -> None:
        """
        It is an L{IBacklog}.
        """
        verifyObject(IBacklog, self.backlog)

    def test_order(self) -> None:
        """
        Pages continue where the last one ended; sightings that were not sent come before.
        """
        self.accept(*(a_sighting(n) for n in range(1, 7)))
        self.assertEqual(self.page(4), [1, 2, 3, 4])
        self.assertEqual(self.sent(1, 3), Position("here", 1))
        self.assertEqual(self.page(1), [2])
        self.assertEqual(self.page(), [2, 4])
        self.assertEqual(self.page(2, [2]), [4])
        self.assertEqual(self.sent(4), Position("here", 1))
        self.assertEqual(self.page(without=[2]), [5, 6])
        self.assertEqual(self.sent(5, 6), Position("here", 1))
        self.assertEqual(self.page(without=[2]), [])
        self.assertEqual(self.sent(2), Position("here", 6))
        self.assertEqual(self.page(), [])

    def test_one(self) -> None:
        """
        One is found by its number.
        """
        self.accept(a_sighting(1), an_indicator(1), a_sighting(2))
        self.page()
        for number, expected in ((2, []), (3, [("3", a_sighting(2).raw)]), (4, [])):
            found = Deferred.fromCoroutine(self.backlog.one(str(number)))
            self.assertEqual(self.successResultOf(found), expected)

    def test_pruned(self) -> None:
        """
        One that the journal has pruned meanwhile waits no longer.
        """
        self.accept(*(a_sighting(n) for n in range(1, 5)))
        self.page()
        self.journal.prune(2)
        self.assertEqual(self.page(1), [3])
        self.assertEqual(self.sent(3, 4), Position("here", 4))
