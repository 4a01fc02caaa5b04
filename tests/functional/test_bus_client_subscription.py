"""
Tests for L{tbvast.bus_client.subscription}, against a scripted bus.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tbvast.bus_client import reception, sighting_reports, subscription
from tbvast.bus_client.manage_client import REQUEST_TIMEOUT
from tbvast.bus_client.sighting_reports import SightingReports
from tbvast.bus_client.subscription import (
    BusSubscription,
    Listener,
    SubscriptionRequest,
)
from tbvast.interfaces import ICursor
from tbvast.protocol import manage
from tbvast.protocol.frames import SIGHTING_TOPIC, Item
from tbvast.protocol.replay import Mark, encode_batch, encode_item, encode_mark, encode_part
from tbvast.protocol.topics import Stream
from tbvast.protocol.unreadable import Unreadable
from tbvast.service.flusher import Reported
from tbvast.values import Position
from tests.doubles import a_sighting, an_indicator, indicator_document, indicator_id
from tests.functional.scripted_bus import ClientTestCase

HEARTBEAT = 5.0


def batch(after: int, until: int, *numbers: int) -> bytes:
    items = [encode_item(n, Stream.INTEL, indicator_document(n)) for n in numbers]
    return encode_batch(after, until, b",".join(items))


def part(*numbers: int) -> bytes:
    items = [encode_item(n, Stream.INTEL, indicator_document(n)) for n in numbers]
    return encode_part(b",".join(items))


@implementer(ICursor)
class MemoryCursor:
    """
    An L{ICursor} that records its calls in memory.

    @ivar applied: The ids of the applied items, and C{"begin"} and C{"end"} of snapshots.
    @ivar failure: The error with which calls fail.
    @ivar holding: L{apply} waits for it.
    @ivar committing: L{commit} waits for it.
    @ivar calls: The number of calls of L{apply}.
    @ivar decided: The argument C{decided} of the last call of L{apply}.
    @ivar aside: The unreadable items.
    """

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self.applied: list[str] = []
        self.failure: Exception | None = None
        self.holding: Deferred[None] | None = None
        self.committing: Deferred[None] | None = None
        self.calls = 0
        self.decided: bool | None = None
        self.aside: list[Unreadable] = []

    async def apply(
        self, items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> None:
        self.calls += 1
        self.decided = decided
        if self.holding is not None:
            await self.holding
        if self.failure is not None:
            raise self.failure
        self.applied.extend(item.id for item in items)
        if position is not None:
            self.position = position

    async def set_aside(self, items: Sequence[Unreadable]) -> None:
        self.aside.extend(items)

    async def commit(self) -> None:
        if self.committing is not None:
            await self.committing

    async def begin_snapshot(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.applied.append("begin")

    async def end_snapshot(self, position: Position) -> None:
        self.applied.append("end")
        self.position = position


class ListenerTests(SynchronousTestCase):
    """
    Tests for L{Listener}.
    """

    def test_interface(self) -> None:
        """
        L{Listener} provides its interface, as its double does.
        """
        verifyObject(ICursor, Listener(lambda items: None))
        verifyObject(ICursor, MemoryCursor())

    def test_waits(self) -> None:
        """
        The position moves on when the receiver is done.
        """
        received: list[Item] = []
        done: Deferred[None] = Deferred()

        def receive(items: list[Item]) -> Deferred[None]:
            received.extend(items)
            return done

        listener = Listener(receive)
        applied = Deferred.fromCoroutine(listener.apply([an_indicator(1)], Position("bus", 1)))
        self.assertEqual([item.id for item in received], [indicator_id(1)])
        self.assertIsNone(listener.position)
        done.callback(None)
        self.successResultOf(applied)
        self.assertEqual(listener.position, Position("bus", 1))


class SubscriptionTestCase(ClientTestCase):
    """
    A test with a subscription.
    """

    snapshot = 0

    def setUp(self) -> None:
        super().setUp()
        self.cursor = MemoryCursor()
        self.ready: list[None] = []
        self.subscription = BusSubscription(
            self.clock,
            self.factory,
            self.bus.address,
            SubscriptionRequest(("stix2/indicator",), self.snapshot, "a test", HEARTBEAT),
            self.cursor,
            lambda: {"state": "well"},
            lambda: self.ready.append(None),
        )
        self.addCleanup(self.stop)

    @property
    def reports(self) -> SightingReports:
        assert self.subscription._reports is not None
        return self.subscription._reports

    @property
    def applying(self) -> bool:
        """
        Whether items are being applied.
        """
        return not self.subscription.reception._applying.called

    async def stop(self) -> None:
        if self.subscription.running:
            self.bus.silent = False
            await self.subscription.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def start(self) -> None:
        """
        Subscribe, and wait until the bus can send items.
        """
        self.subscription.startService()
        await self.subscribed(1)

    async def subscribed(self, times: int) -> None:
        await self.until(lambda: len(self.bus.heard) == times and self.subscription.connected)

    async def again(self, times: int) -> None:
        """
        Subscribe again, after a delay.
        """
        await self.until(lambda: not self.subscription.connected)
        self.clock.advance(subscription.RETRY_FIRST)
        await self.subscribed(times)

    async def applied(self, *ids: str) -> None:
        await self.until(lambda: len(self.cursor.applied) >= len(ids))
        self.assertEqual(self.cursor.applied, list(ids))


class SubscribingTests(SubscriptionTestCase):
    """
    The beginning, upkeep and end of a subscription.
    """

    snapshot = 30

    async def test_request(self) -> None:
        """
        The request holds topic, snapshot, name and protocol.
        """
        await self.start()
        (request,) = self.bus.asked("subscribe")
        self.assertEqual(request["topic"], "stix2/indicator")
        self.assertEqual((request["snapshot"], request["name"]), (30, "a test"))
        self.assertEqual(request["protocol"], manage.PROTOCOL)
        self.assertNotIn("resume", request)
        self.assertEqual(self.bus.heard, [self.bus.topic.encode()])

    async def test_heartbeats(self) -> None:
        """
        Heartbeats are sent at an interval, and report the subscriber's state.
        """
        await self.start()
        for count in (1, 2, 3):
            self.clock.advance(HEARTBEAT)
            await self.until(lambda n=count: len(self.bus.asked("heartbeat")) == n)  # type: ignore[misc]
            await self.until(lambda: self.reports.answered == self.clock.seconds())
        beat = self.bus.asked("heartbeat")[0]
        self.assertEqual((beat["topic"], beat["report"]), (self.bus.topic, {"state": "well"}))

    async def test_old_host(self) -> None:
        """
        A Threat Bus host gets no keys of the extension, and its items are applied.
        """
        self.bus.plugin = ""
        await self.start()
        self.bus.send(b"indicator " + indicator_document(1), b"nonsense", b"indicator {}")
        await self.applied(indicator_id(1))
        await self.until(lambda: self.subscription.reception.refused == 2)
        self.assertIsNone(self.cursor.position)
        self.assertIs(self.cursor.decided, False)
        self.clock.advance(HEARTBEAT)
        await self.until(lambda: self.bus.asked("heartbeat"))
        self.assertNotIn("report", self.bus.asked("heartbeat")[0])

    async def test_forgotten(self) -> None:
        """
        The subscription is renewed when the bus no longer knows it.
        """
        await self.start()
        self.bus.knows = False
        self.clock.advance(HEARTBEAT)
        await self.until(lambda: not self.subscription.connected)
        self.bus.knows = True
        await self.again(2)
        self.assertEqual(len(set(self.bus.heard)), 2)

    async def test_lost(self) -> None:
        """
        The subscription is renewed when the bus does not reply to a heartbeat.
        """
        await self.start()
        self.bus.silent = True
        self.clock.advance(HEARTBEAT)
        await self.until(lambda: self.bus.asked("heartbeat"))
        self.clock.advance(REQUEST_TIMEOUT)
        self.bus.silent = False
        await self.again(2)

    async def test_unreachable(self) -> None:
        """
        While the bus does not reply, requests are repeated after delays that double.
        """
        self.bus.silent = True
        self.subscription.startService()
        for count, delay in ((1, 0.5), (2, 1.0), (3, 2.0)):
            await self.until(lambda n=count: len(self.bus.requests) == n)  # type: ignore[misc]
            self.clock.advance(REQUEST_TIMEOUT)
            (call,) = self.clock.getDelayedCalls()
            self.assertAlmostEqual(call.getTime() - self.clock.seconds(), delay)
            self.clock.advance(delay)
        await self.until(lambda: len(self.bus.requests) == 4)
        self.bus.silent = False
        self.clock.advance(REQUEST_TIMEOUT)
        self.clock.advance(4.0)
        await self.subscribed(1)

    async def test_refused(self) -> None:
        """
        The request is repeated after a refusal.
        """
        self.bus.refusal = manage.refused("you may not")
        self.subscription.startService()
        await self.until(self.clock.getDelayedCalls)
        await self.until(lambda: not self.subscription.connected and self.bus.requests)
        self.bus.refusal = b""
        await self.until(
            lambda: self.clock.getDelayedCalls()[0].getTime() == subscription.RETRY_FIRST
        )
        self.clock.advance(subscription.RETRY_FIRST)
        await self.subscribed(1)

    async def test_stop(self) -> None:
        """
        The service unsubscribes when it stops.
        """
        await self.start()
        await self.stop()
        (request,) = self.bus.asked("unsubscribe")
        self.assertEqual(request["topic"], self.bus.topic)
        self.assertFalse(self.subscription.connected)

    async def test_stop_unheard(self) -> None:
        """
        The service waits only briefly for the reply to that.
        """
        await self.start()
        self.bus.silent = True
        stopped = self.subscription.stopService()
        await self.until(lambda: self.bus.asked("unsubscribe"))
        self.clock.advance(1.0)
        self.successResultOf(stopped)

    async def test_stop_unstarted(self) -> None:
        """
        A service that was not started stops at once.
        """
        self.successResultOf(self.subscription.stopService())

    async def test_restart(self) -> None:
        """
        A service that is started while it stops subscribes again afterwards.
        """
        await self.start()
        stopped = self.subscription.stopService()
        self.subscription.startService()
        await stopped
        await self.subscribed(2)
        self.assertEqual(self.bus.actions(), ["subscribe", "unsubscribe", "subscribe"])

    async def test_stop_while_asking(self) -> None:
        """
        The service can stop while a request is pending.
        """
        self.bus.silent = True
        self.subscription.startService()
        await self.until(lambda: self.bus.requests)
        self.successResultOf(self.subscription.stopService())


class ReplayTests(SubscriptionTestCase):
    """
    Replays from a bus that speaks tbvast/1.
    """

    async def test_batches(self) -> None:
        """
        Batches are applied in order, each with its position.
        """
        await self.start()
        self.bus.send(batch(0, 2, 1, 2), batch(2, 7), batch(7, 8, 8))
        await self.applied(*map(indicator_id, (1, 2, 8)))
        self.assertEqual(self.cursor.position, Position("bus", 8))

    async def test_beginning(self) -> None:
        """
        Without a snapshot, the bus's number is the position at once.
        """
        self.bus.number = 41
        await self.start()
        self.assertEqual(self.cursor.position, Position("bus", 41))

    async def test_gap(self) -> None:
        """
        When a number is missing, the subscription is renewed from the last applied one.
        """
        await self.start()
        self.bus.send(batch(0, 1, 1), batch(2, 3, 3))
        await self.again(2)
        resume = self.bus.asked("subscribe")[1]["resume"]
        self.assertEqual(resume, {"plugin": "bus", "number": 1})
        self.bus.send(batch(1, 3, 2, 3))
        await self.applied(*map(indicator_id, (1, 2, 3)))

    async def test_bad_item(self) -> None:
        """
        An unreadable item in a batch is refused alone.
        """
        await self.start()
        bad = encode_item(1, Stream.INTEL, b'{"type":"indicator"}')
        good = encode_item(2, Stream.INTEL, indicator_document(2))
        self.bus.send(encode_batch(0, 2, bad + b"," + good))
        await self.applied(indicator_id(2))
        self.assertEqual(self.subscription.reception.refused, 1)
        self.assertEqual(self.cursor.position, Position("bus", 2))
        (refused,) = self.cursor.aside
        self.assertEqual((refused.number, refused.raw), (1, b'{"type":"indicator"}'))

    async def test_damaged_frame(self) -> None:
        """
        An item that makes its whole frame malformed, or nested too deep, is refused alone.
        """
        await self.start()
        bad = [b'{"type":"indicator', b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}"]
        for number, raw in enumerate(bad):
            after = 2 * number
            items = [
                encode_item(after + 1, Stream.INTEL, raw),
                encode_item(after + 2, Stream.INTEL, indicator_document(after + 2)),
            ]
            self.bus.send(encode_batch(after, after + 2, b",".join(items)))
        await self.applied(indicator_id(2), indicator_id(4))
        self.assertEqual(self.cursor.position, Position("bus", 4))
        self.assertEqual([each.number for each in self.cursor.aside], [1, 3])
        self.assertEqual(len(self.bus.asked("subscribe")), 1)

    async def test_torn(self) -> None:
        """
        A frame with an unreadable range is requested once more. Then the gap is skipped, and
        the readable items of the frame are applied.
        """
        await self.start()
        torn = batch(1, 3, 2, 3).replace(b'"after"', b'"aft\xffr"')
        for times in (1, 2):
            self.bus.send(*([batch(0, 1, 1)] if times == 1 else []), torn, batch(3, 4, 4))
            if times == 1:
                await self.again(2)
        await self.applied(*map(indicator_id, (1, 2, 3, 2, 3, 4)))
        self.assertEqual(self.cursor.position, Position("bus", 4))
        self.assertEqual(
            self.cursor.aside[-1].reason, "the bus does not send the numbers from 2 to 3"
        )
        self.assertEqual(len(self.bus.asked("subscribe")), 2)

    async def test_nothing_of_it(self) -> None:
        """
        A gap is also skipped after bytes that are not a frame.
        """
        await self.start()
        for times in (1, 2):
            self.bus.send(b"\xff nonsense", batch(5, 6, 6))
            if times == 1:
                await self.again(2)
        await self.applied(indicator_id(6))
        self.assertEqual(self.cursor.position, Position("bus", 6))

    async def test_same_gap(self) -> None:
        """
        Numbers that are missing several times in a row are skipped.
        """
        await self.start()
        for times in range(1, reception.SAME_GAP):
            self.bus.send(batch(5, 6, 6))
            await self.until(lambda: not self.subscription.connected)
            (call,) = self.clock.getDelayedCalls()
            self.clock.advance(call.getTime() - self.clock.seconds())
            await self.subscribed(times + 1)
        self.bus.send(batch(5, 6, 6))
        await self.applied(indicator_id(6))
        self.assertEqual(self.cursor.position, Position("bus", 6))
        self.assertEqual(self.subscription.reception.refused, 1)

    async def test_backwards(self) -> None:
        """
        A batch of numbers that were applied before does not move the position back.
        """
        await self.start()
        self.bus.send(batch(0, 5, 5), batch(1, 3, 3), batch(2, 7, 7), batch(7, 8, 8))
        await self.applied(*map(indicator_id, (5, 3, 7, 8)))
        self.assertEqual(self.cursor.position, Position("bus", 8))
        self.assertEqual(len(self.bus.asked("subscribe")), 1)

    async def test_impossible_range(self) -> None:
        """
        Impossible numbers do not become the position.
        """
        await self.start()
        self.bus.send(batch(0, 1 << 63, 1), batch(-5, 2, 2), batch(3, 1, 3), batch(0, 4, 4))
        await self.applied(*map(indicator_id, (1, 2, 3, 4)))
        self.assertEqual(self.cursor.position, Position("bus", 4))

    async def test_too_many_bytes(self) -> None:
        """
        Reading pauses while too many bytes wait to be applied.
        """
        self.patch(reception, "MOST_WAITING_BYTES", 1000)
        await self.start()
        self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: self.applying)
        self.bus.send(b"nonsense " + b"x" * 1000)
        await self.until(lambda: self.subscription.reception._waiting == 1)
        sub = self.subscription.reception._connection
        assert sub is not None
        self.assertTrue(sub.paused)
        holding, self.cursor.holding = self.cursor.holding, None
        holding.callback(None)
        await self.until(lambda: self.subscription.reception.refused)
        self.assertFalse(sub.paused)

    async def test_slow(self) -> None:
        """
        Items that arrive while others are applied are applied together afterwards.
        """
        await self.start()
        calls = self.cursor.calls
        self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: self.applying)
        self.bus.send(*(batch(n, n + 1, n + 1) for n in range(1, 50)))
        await self.until(lambda: self.subscription.reception._waiting == 49)
        holding, self.cursor.holding = self.cursor.holding, None
        holding.callback(None)
        await self.applied(*map(indicator_id, range(1, 51)))
        self.assertEqual(self.cursor.calls - calls, 2)

    async def test_too_slow(self) -> None:
        """
        Reading pauses while too many items wait to be applied.
        """
        self.patch(reception, "MOST_WAITING", 1)
        await self.start()
        self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: self.applying)
        self.bus.send(batch(1, 2, 2))
        await self.until(lambda: self.subscription.reception._waiting == 1)
        sub = self.subscription.reception._connection
        assert sub is not None
        self.assertTrue(sub.paused)
        self.bus.send(batch(2, 3, 3))
        holding, self.cursor.holding = self.cursor.holding, None
        holding.callback(None)
        self.assertFalse(sub.paused)
        await self.applied(*map(indicator_id, (1, 2, 3)))

    async def test_not_applied(self) -> None:
        """
        A failure to apply items is logged, and the bus sends the items again.
        """
        await self.start()
        self.cursor.failure = OSError("the disk refuses")
        self.bus.send(batch(0, 1, 1))
        await self.again(2)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.cursor.failure = None
        self.bus.send(batch(0, 1, 1))
        await self.applied(indicator_id(1))

    async def test_committed(self) -> None:
        """
        When no items are left, the cursor commits; items that arrive meanwhile are applied
        afterwards.
        """
        await self.start()
        committing = self.cursor.committing = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.applied(indicator_id(1))
        self.assertTrue(self.applying)
        self.bus.send(batch(1, 2, 2))
        await self.until(lambda: self.subscription.reception._waiting == 1)
        self.cursor.committing = None
        committing.callback(None)
        await self.applied(indicator_id(1), indicator_id(2))
        await self.until(lambda: not self.applying)

    async def test_not_committed(self) -> None:
        """
        The bus sends items again that were applied, but are not durable.
        """
        await self.start()
        self.cursor.committing = fail(OSError("the disk refuses"))
        self.bus.send(batch(0, 1, 1))
        await self.again(2)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    async def test_lost_while_applying(self) -> None:
        """
        The subscription is not renewed while items of the lost one are being applied: the
        position depends on them.
        """
        await self.start()
        holding = self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: self.applying)
        self.bus.knows = False
        self.clock.advance(HEARTBEAT)
        await self.until(lambda: not self.subscription.connected)
        self.bus.knows = True
        self.clock.advance(subscription.RETRY_FIRST)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.cursor.holding = None
        holding.callback(None)
        await self.subscribed(2)
        self.assertEqual(self.bus.asked("subscribe")[1]["resume"]["number"], 1)
        self.bus.send(batch(1, 2, 2))
        await self.applied(indicator_id(1), indicator_id(2))

    async def test_stopped_while_applying(self) -> None:
        """
        The service stops after the items that are being applied, even if the subscription was
        lost meanwhile.
        """
        for lost in (False, True):
            await self.start()
            holding = self.cursor.holding = Deferred()
            self.bus.send(batch(0, 1, 1))
            await self.until(lambda: self.applying)
            if lost:
                self.bus.knows = False
                self.clock.advance(HEARTBEAT)
                await self.until(lambda: not self.subscription.connected)
                self.clock.advance(subscription.RETRY_FIRST)
            stopped = self.subscription.stopService()
            await self.until(lambda: not self.subscription.connected)
            self.assertNoResult(stopped)
            self.cursor.holding = None
            holding.callback(None)
            await stopped
            self.assertEqual(self.cursor.applied, [indicator_id(1)])
            self.cursor.applied.clear()
            self.cursor.position = None
            self.bus.heard.clear()

    async def test_impossible_ports(self) -> None:
        """
        The request is repeated when the reply names impossible ports.
        """
        self.bus.refusal = msgspec.json.encode({"topic": "x", "pub_port": -1, "sub_port": -1})
        self.subscription.startService()
        await self.until(lambda: self.bus.requests)
        await self.until(
            lambda: (
                [c.getTime() for c in self.clock.getDelayedCalls()] == [subscription.RETRY_FIRST]
            )
        )
        self.bus.refusal = b""
        self.clock.advance(subscription.RETRY_FIRST)
        await self.subscribed(1)

    async def test_cannot_begin(self) -> None:
        """
        The request is repeated when the cursor cannot begin a snapshot.
        """
        self.cursor.position = Position("another", 1)
        self.cursor.failure = OSError("the disk refuses")
        self.subscription.startService()
        await self.until(lambda: self.flushLoggedErrors(OSError))
        self.cursor.failure = None
        self.clock.advance(subscription.RETRY_FIRST)
        await self.subscribed(1)
        self.assertEqual(self.cursor.applied, ["begin"])


class SnapshotTests(SubscriptionTestCase):
    """
    Snapshots, and the marks that end them.
    """

    snapshot = 30

    async def test_not_full(self) -> None:
        """
        A snapshot of some days ends nothing; its mark is a position.
        """
        self.bus.number = 9
        await self.start()
        self.bus.send(part(1, 2), part(3))
        await self.applied(*map(indicator_id, (1, 2, 3)))
        self.assertIsNone(self.cursor.position)
        self.bus.send(encode_mark(Mark(9, 3, False)), batch(9, 10, 10))
        await self.applied(*map(indicator_id, (1, 2, 3, 10)))
        self.assertEqual(self.cursor.position, Position("bus", 10))

    async def test_full(self) -> None:
        """
        A full snapshot, after a change of the bus, ends the items that it does not hold.
        """
        self.cursor.position = Position("another", 100)
        self.bus.number = 9
        await self.start()
        self.bus.send(part(1), encode_mark(Mark(9, 1, True)), batch(9, 10, 10))
        await self.applied("begin", indicator_id(1), "end", indicator_id(10))
        self.assertEqual(self.cursor.position, Position("bus", 10))
        self.assertIs(self.cursor.decided, True)

    async def test_resumed(self) -> None:
        """
        A subscriber that resumes gets no snapshot, only the following items.
        """
        self.cursor.position = Position("bus", 5)
        self.bus.number = 9
        await self.start()
        self.bus.send(batch(5, 6, 6))
        await self.applied(indicator_id(6))

    async def test_incomplete(self) -> None:
        """
        An incomplete snapshot ends nothing. The following items are applied, and the snapshot
        is requested again, after delays that double, from the same position.
        """
        self.cursor.position = Position("another", 100)
        for times in (1, 2, 3):
            if times == 1:
                await self.start()
            self.bus.send(part(1), encode_mark(Mark(0, 2, True)), batch(0, 5, 5))
            await self.until(lambda n=times: self.cursor.applied.count(indicator_id(5)) == n)  # type: ignore[misc]
            self.assertEqual(self.cursor.position, Position("another", 100))
            self.assertNotIn("end", self.cursor.applied)
            self.assertTrue(self.subscription.connected)
            self.clock.advance(reception.INCOMPLETE_FIRST * 2 ** (times - 1) - 0.1)
            self.assertTrue(self.subscription.connected)
            self.clock.advance(0.1)
            await self.until(lambda: not self.subscription.connected)
            self.clock.advance(subscription.RETRY_MOST)
            await self.subscribed(times + 1)
        self.bus.send(part(1, 2), encode_mark(Mark(9, 2, True)))
        await self.until(lambda: "end" in self.cursor.applied)
        self.assertEqual(self.cursor.position, Position("bus", 9))

    async def test_too_many(self) -> None:
        """
        A snapshot with too many items is incomplete.
        """
        self.cursor.position = Position("another", 100)
        await self.start()
        self.bus.send(part(1, 2), encode_mark(Mark(0, 1, True)))
        await self.until(lambda: self.subscription.reception._incomplete_snapshots)
        self.assertEqual(self.cursor.position, Position("another", 100))

    async def test_refused_item(self) -> None:
        """
        An unreadable item of a snapshot counts. If its id is unreadable, the snapshot ends
        nothing.
        """
        named = b'{"id":"%b",}' % indicator_id(2).encode()
        for raw, ended in ((named, True), (b'{"id":"?",}', False)):
            self.cursor.position = Position("another", 100)
            self.cursor.applied.clear()
            await self.start()
            item = encode_item(0, Stream.INTEL, raw)
            self.bus.send(part(1), encode_part(item), encode_mark(Mark(9, 2, True)))
            await self.until(lambda: self.cursor.position == Position("bus", 9))
            self.assertEqual("end" in self.cursor.applied, ended)
            await self.stop()
            self.bus.heard.clear()

    async def test_unbegun(self) -> None:
        """
        A mark without a snapshot, or a second one, has no effect.
        """
        self.cursor.position = Position("bus", 5)
        await self.start()
        self.bus.send(encode_mark(Mark(9, 0, True)), batch(5, 6, 6), encode_mark(Mark(99, 0, True)))
        await self.applied(indicator_id(6))
        self.assertEqual(self.cursor.position, Position("bus", 6))

    async def test_without_end(self) -> None:
        """
        A snapshot that is followed by a batch is incomplete.
        """
        self.cursor.position = Position("another", 100)
        await self.start()
        self.bus.send(part(1), batch(0, 1, 2), encode_mark(Mark(9, 1, True)))
        await self.applied("begin", indicator_id(1), indicator_id(2))
        self.assertEqual(self.cursor.position, Position("another", 100))

    async def test_not_asked_for(self) -> None:
        """
        A snapshot of some days ends nothing, even if the bus calls it full.
        """
        await self.start()
        self.bus.send(part(1), encode_mark(Mark(9, 1, True)))
        await self.until(lambda: self.cursor.position == Position("bus", 9))
        self.assertEqual(self.cursor.applied, [indicator_id(1)])

    async def test_failed(self) -> None:
        """
        A snapshot with a failed source ends nothing, and is requested again, after delays that
        double.
        """
        self.cursor.position = Position("another", 100)
        await self.start()
        self.bus.send(part(1), encode_mark(Mark(0, 1, True, ("journal",))))
        await self.again(2)
        self.assertEqual(self.cursor.applied, ["begin", indicator_id(1), "begin"])
        self.assertEqual(self.cursor.position, Position("another", 100))
        self.bus.send(encode_mark(Mark(0, 0, True, ("journal",))))
        await self.until(lambda: not self.subscription.connected)
        (call,) = self.clock.getDelayedCalls()
        self.assertAlmostEqual(call.getTime() - self.clock.seconds(), 2 * subscription.RETRY_FIRST)


class ReportTests(SubscriptionTestCase):
    """
    Reports of sightings.
    """

    documents = [a_sighting(1).raw, a_sighting(2).raw]

    def taken(self) -> Deferred[list[bool]]:
        reported = self.subscription.report_sightings(self.documents)
        return reported.addCallback(lambda reported: reported.taken)

    async def test_acknowledged(self) -> None:
        """
        Sightings are taken when the bus acknowledges them.
        """
        await self.start()
        handed = self.taken()
        self.assertNoResult(handed)
        self.assertEqual(await handed, [True, True])
        (request,) = self.bus.asked("publish")
        self.assertEqual(len(request["documents"]), 2)

    async def test_not_acknowledged(self) -> None:
        """
        Sightings without an acknowledgement in time are not taken.
        """
        await self.start()
        self.bus.silent = True
        handed = self.taken()
        await self.until(lambda: self.bus.asked("publish"))
        self.reports._manage.close()
        self.assertEqual(self.successResultOf(handed), [False, False])

    async def test_refused(self) -> None:
        """
        Sightings are not taken if the bus refuses the request.
        """
        await self.start()
        self.bus.refusal = manage.refused("the disk is full")
        self.assertEqual(await self.taken(), [False, False])
        self.bus.refusal = manage.encode_published(["accepted"], {})
        self.assertEqual(await self.taken(), [False, False])
        self.bus.refusal = b""

    async def test_refused_item(self) -> None:
        """
        A sighting that the bus refuses for good is taken.
        """
        await self.start()
        self.bus.refusal = manage.encode_published(["refused", "accepted"], {0: "no sighting"})
        reported = await self.subscription.report_sightings(self.documents)
        self.assertEqual(reported, Reported([True, True], {0: "no sighting"}))
        self.bus.refusal = b""

    async def test_poisoned(self) -> None:
        """
        A request is poisoned if the bus refuses it without a reason, replies with other
        outcomes, or answers heartbeats but not this request. It is not if the bus is away, or
        gives a reason.
        """
        await self.start()
        for reply, poisoned in (
            (manage.ERROR, True),
            (manage.encode_published(["accepted"], {}), True),
            (b"nonsense", True),
            (manage.refused("the disk is full"), False),
        ):
            self.bus.refusal = reply
            reported = await self.subscription.report_sightings(self.documents)
            self.assertEqual((reported.taken, reported.poisoned), ([False, False], poisoned))
            self.assertTrue(reported.reason)
        self.bus.refusal = b""
        for beats in (True, False):
            self.bus.deaf_to = "publish"
            asked = len(self.bus.asked("publish"))
            silent = self.subscription.report_sightings(self.documents)
            await self.until(lambda n=asked: len(self.bus.asked("publish")) > n)  # type: ignore[misc]
            if beats:
                self.clock.advance(HEARTBEAT)
                await self.until(lambda: self.reports.answered == self.clock.seconds())
                for _ in range(5):
                    self.clock.advance(HEARTBEAT)
                    await self.until(lambda: self.reports.answered == self.clock.seconds())
            else:
                self.bus.silent = True
                self.clock.advance(sighting_reports.REPORT_TIMEOUT)
            reported = await silent
            self.assertEqual((reported.taken, reported.poisoned), ([False, False], beats))

    async def test_old_host(self) -> None:
        """
        A Threat Bus host gets sightings on its sub endpoint, once it listens.
        """
        self.bus.plugin = ""
        await self.start()
        self.assertEqual(await self.taken(), [False, False])
        self.bus.listen()
        await self.until(lambda: self.ready)
        self.assertEqual(await self.taken(), [True, True])
        await self.until(lambda: len(self.bus.reports) == 2)
        self.assertEqual(self.bus.asked("publish"), [])
        self.assertEqual(self.bus.reports[0], SIGHTING_TOPIC + b" " + self.documents[0])

    async def test_disconnected(self) -> None:
        """
        Without a subscription no sightings are taken.
        """
        self.assertEqual(await self.taken(), [False, False])
