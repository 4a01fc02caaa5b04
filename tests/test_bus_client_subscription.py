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

from tbvast.bus_client import subscription
from tbvast.bus_client.manage_client import REQUEST_TIMEOUT
from tbvast.bus_client.subscription import BusSubscription, Listener, SubscriptionRequest
from tbvast.interfaces import ICursor
from tbvast.protocol import manage
from tbvast.protocol.frames import SIGHTING_TOPIC, Item
from tbvast.protocol.replay import Mark, encode_batch, encode_item, encode_mark, encode_part
from tbvast.protocol.topics import Stream
from tbvast.protocol.unreadable import Unreadable
from tbvast.service.flusher import Reported
from tbvast.values import Position
from tests.doubles import a_sighting, an_indicator, indicator_document, indicator_id
from tests.doubles_scripted_bus import ClientTestCase

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
    An L{ICursor} that remembers in memory what it was told.

    @ivar applied: The ids of the items that were applied, and the beginnings and
        ends of snapshots.
    @ivar failure: What it fails with.
    @ivar holding: What L{apply} waits for.
    @ivar committing: What L{commit} waits for.
    @ivar calls: How often L{apply} was called.
    @ivar decided: Whether the bus had decided between versions, the last time.
    @ivar aside: What could not be read.
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
        It provides what it should, as its double does.
        """
        verifyObject(ICursor, Listener(lambda items: None))
        verifyObject(ICursor, MemoryCursor())

    def test_waits(self) -> None:
        """
        The position is another one when what arrived was received.
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

    async def stop(self) -> None:
        if self.subscription.running:
            self.bus.silent = False
            await self.subscription.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def start(self) -> None:
        """
        Subscribe, up to the moment at which something can be sent.
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
    How a subscription comes about, stands, and ends.
    """

    snapshot = 30

    async def test_request(self) -> None:
        """
        The bus is told what is wanted, by whom.
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
        Heartbeats are sent at an interval, and say how it is doing.
        """
        await self.start()
        for count in (1, 2, 3):
            self.clock.advance(HEARTBEAT)
            await self.until(lambda n=count: len(self.bus.asked("heartbeat")) == n)  # type: ignore[misc]
            await self.until(lambda: self.subscription._breaking is not None)
        beat = self.bus.asked("heartbeat")[0]
        self.assertEqual((beat["topic"], beat["report"]), (self.bus.topic, {"state": "well"}))

    async def test_old_host(self) -> None:
        """
        A Threat Bus host is told nothing that it does not know, and its items apply.
        """
        self.bus.plugin = ""
        await self.start()
        self.bus.send(b"indicator " + indicator_document(1), b"nonsense", b"indicator {}")
        await self.applied(indicator_id(1))
        await self.until(lambda: self.subscription.refused == 2)
        self.assertIsNone(self.cursor.position)
        self.assertIs(self.cursor.decided, False)
        self.clock.advance(HEARTBEAT)
        await self.until(lambda: self.bus.asked("heartbeat"))
        self.assertNotIn("report", self.bus.asked("heartbeat")[0])

    async def test_forgotten(self) -> None:
        """
        When the bus has forgotten the subscription, it is made again.
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
        When the bus does not answer a heartbeat, it is subscribed to again.
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
        While the bus does not answer it is asked again, after delays that double.
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
        A bus that refuses is asked again.
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
        At the end the bus is told, and nothing is left.
        """
        await self.start()
        await self.stop()
        (request,) = self.bus.asked("unsubscribe")
        self.assertEqual(request["topic"], self.bus.topic)
        self.assertFalse(self.subscription.connected)

    async def test_stop_unheard(self) -> None:
        """
        A bus that does not answer is not waited for long.
        """
        await self.start()
        self.bus.silent = True
        stopped = self.subscription.stopService()
        await self.until(lambda: self.bus.asked("unsubscribe"))
        self.clock.advance(1.0)
        self.successResultOf(stopped)

    async def test_stop_while_asking(self) -> None:
        """
        It can be stopped before the bus has answered.
        """
        self.bus.silent = True
        self.subscription.startService()
        await self.until(lambda: self.bus.requests)
        self.successResultOf(self.subscription.stopService())


class ReplayTests(SubscriptionTestCase):
    """
    What a bus that speaks tbvast/1 sends.
    """

    async def test_batches(self) -> None:
        """
        Batches are applied in order, with the position that they lead to.
        """
        await self.start()
        self.bus.send(batch(0, 2, 1, 2), batch(2, 7), batch(7, 8, 8))
        await self.applied(*map(indicator_id, (1, 2, 8)))
        self.assertEqual(self.cursor.position, Position("bus", 8))
        self.assertEqual(self.subscription.received, 3)

    async def test_beginning(self) -> None:
        """
        Without a snapshot the bus's number is where it begins, at once.
        """
        self.bus.number = 41
        await self.start()
        self.assertEqual(self.cursor.position, Position("bus", 41))

    async def test_gap(self) -> None:
        """
        When a number is missing, it is subscribed again from the last one applied on.
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
        Of a batch with something that cannot be read, only that is refused.
        """
        await self.start()
        bad = encode_item(1, Stream.INTEL, b'{"type":"indicator"}')
        good = encode_item(2, Stream.INTEL, indicator_document(2))
        self.bus.send(encode_batch(0, 2, bad + b"," + good))
        await self.applied(indicator_id(2))
        self.assertEqual(self.subscription.refused, 1)
        self.assertEqual(self.cursor.position, Position("bus", 2))
        (refused,) = self.cursor.aside
        self.assertEqual((refused.number, refused.raw), (1, b'{"type":"indicator"}'))

    async def test_damaged_frame(self) -> None:
        """
        So it is with a frame that is not well-formed, or nested too deep, as a whole.
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
        A frame whose range cannot be read is asked for once more; then it is passed over,
        and what can be read of it is taken.
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
        So it is with bytes that are no frame at all.
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
        Numbers that the bus leaves out again and again are done without.
        """
        await self.start()
        for times in range(1, subscription.SAME_GAP):
            self.bus.send(batch(5, 6, 6))
            await self.until(lambda: not self.subscription.connected)
            (call,) = self.clock.getDelayedCalls()
            self.clock.advance(call.getTime() - self.clock.seconds())
            await self.subscribed(times + 1)
        self.bus.send(batch(5, 6, 6))
        await self.applied(indicator_id(6))
        self.assertEqual(self.cursor.position, Position("bus", 6))
        self.assertEqual(self.subscription.refused, 1)

    async def test_backwards(self) -> None:
        """
        A batch of numbers that were applied already moves nothing back.
        """
        await self.start()
        self.bus.send(batch(0, 5, 5), batch(1, 3, 3), batch(2, 7, 7), batch(7, 8, 8))
        await self.applied(*map(indicator_id, (5, 3, 7, 8)))
        self.assertEqual(self.cursor.position, Position("bus", 8))
        self.assertEqual(len(self.bus.asked("subscribe")), 1)

    async def test_impossible_range(self) -> None:
        """
        Numbers that are none of a journal do not become the position.
        """
        await self.start()
        self.bus.send(batch(0, 1 << 63, 1), batch(-5, 2, 2), batch(3, 1, 3), batch(0, 4, 4))
        await self.applied(*map(indicator_id, (1, 2, 3, 4)))
        self.assertEqual(self.cursor.position, Position("bus", 4))

    async def test_too_many_bytes(self) -> None:
        """
        When what waits is too long, no more is read until that is being applied.
        """
        self.patch(subscription, "MOST_WAITING_BYTES", 1000)
        await self.start()
        self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: not self.subscription._applying.called)
        self.bus.send(b"nonsense " + b"x" * 1000)
        await self.until(lambda: self.subscription._waiting == 1)
        sub = self.subscription._sub
        assert sub is not None
        self.assertTrue(sub.paused)
        holding, self.cursor.holding = self.cursor.holding, None
        holding.callback(None)
        await self.until(lambda: self.subscription.refused)
        self.assertFalse(sub.paused)

    async def test_slow(self) -> None:
        """
        What arrives while something is being applied is applied afterwards, together,
        and nothing is lost.
        """
        await self.start()
        calls = self.cursor.calls
        self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: not self.subscription._applying.called)
        self.bus.send(*(batch(n, n + 1, n + 1) for n in range(1, 50)))
        await self.until(lambda: self.subscription._waiting == 49)
        holding, self.cursor.holding = self.cursor.holding, None
        self.assertEqual(self.subscription.received, 1)
        holding.callback(None)
        await self.applied(*map(indicator_id, range(1, 51)))
        self.assertEqual(self.cursor.calls - calls, 2)

    async def test_too_slow(self) -> None:
        """
        When too much waits, no more is read until that is being applied.
        """
        self.patch(subscription, "MOST_WAITING", 1)
        await self.start()
        self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: not self.subscription._applying.called)
        self.bus.send(batch(1, 2, 2))
        await self.until(lambda: self.subscription._waiting == 1)
        sub = self.subscription._sub
        assert sub is not None
        self.assertTrue(sub.paused)
        self.bus.send(batch(2, 3, 3))
        holding, self.cursor.holding = self.cursor.holding, None
        holding.callback(None)
        self.assertFalse(sub.paused)
        await self.applied(*map(indicator_id, (1, 2, 3)))

    async def test_not_applied(self) -> None:
        """
        What cannot be applied is logged, and sent again once more, and once more.
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
        When nothing more arrives, it is waited for that all is durable; what arrives
        meanwhile is applied then.
        """
        await self.start()
        committing = self.cursor.committing = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.applied(indicator_id(1))
        self.assertFalse(self.subscription._applying.called)
        self.bus.send(batch(1, 2, 2))
        await self.until(lambda: self.subscription._waiting == 1)
        self.cursor.committing = None
        committing.callback(None)
        await self.applied(indicator_id(1), indicator_id(2))
        await self.until(lambda: self.subscription._applying.called)

    async def test_not_committed(self) -> None:
        """
        What was applied and is not durable is sent again.
        """
        await self.start()
        self.cursor.committing = fail(OSError("the disk refuses"))
        self.bus.send(batch(0, 1, 1))
        await self.again(2)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    async def test_lost_while_applying(self) -> None:
        """
        What is still being applied when the subscription is lost is waited for: only
        then it is known what is to be sent again.
        """
        await self.start()
        holding = self.cursor.holding = Deferred()
        self.bus.send(batch(0, 1, 1))
        await self.until(lambda: not self.subscription._applying.called)
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
        It has stopped when what was being applied has been, also if the subscription
        was lost meanwhile.
        """
        for lost in (False, True):
            await self.start()
            holding = self.cursor.holding = Deferred()
            self.bus.send(batch(0, 1, 1))
            await self.until(lambda: not self.subscription._applying.called)
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
        A bus that names ports which are none is asked again.
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
        A cursor that cannot begin a snapshot does not end the subscription for good.
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
        A snapshot for who comes from another bus ends what it does not hold.
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
        Who was here already gets no snapshot, only what follows.
        """
        self.cursor.position = Position("bus", 5)
        self.bus.number = 9
        await self.start()
        self.bus.send(batch(5, 6, 6))
        await self.applied(indicator_id(6))

    async def test_incomplete(self) -> None:
        """
        A snapshot of which something is missing ends nothing; what follows it is applied,
        and it is asked for again, later and later, from where it was.
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
            self.clock.advance(subscription.INCOMPLETE_FIRST * 2 ** (times - 1) - 0.1)
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
        One of which too much came is no more complete.
        """
        self.cursor.position = Position("another", 100)
        await self.start()
        self.bus.send(part(1, 2), encode_mark(Mark(0, 1, True)))
        await self.until(lambda: self.subscription._incomplete_snapshots)
        self.assertEqual(self.cursor.position, Position("another", 100))

    async def test_refused_item(self) -> None:
        """
        An item that cannot be read counts; without an id, nothing is ended for it.
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
        A mark without a snapshot, or a second one, ends nothing and moves nothing.
        """
        self.cursor.position = Position("bus", 5)
        await self.start()
        self.bus.send(encode_mark(Mark(9, 0, True)), batch(5, 6, 6), encode_mark(Mark(99, 0, True)))
        await self.applied(indicator_id(6))
        self.assertEqual(self.cursor.position, Position("bus", 6))

    async def test_without_end(self) -> None:
        """
        A snapshot that goes over into what follows is incomplete.
        """
        self.cursor.position = Position("another", 100)
        await self.start()
        self.bus.send(part(1), batch(0, 1, 2), encode_mark(Mark(9, 1, True)))
        await self.applied("begin", indicator_id(1), indicator_id(2))
        self.assertEqual(self.cursor.position, Position("another", 100))

    async def test_not_asked_for(self) -> None:
        """
        A bus that calls a snapshot of some days all that is in force ends nothing.
        """
        await self.start()
        self.bus.send(part(1), encode_mark(Mark(9, 1, True)))
        await self.until(lambda: self.cursor.position == Position("bus", 9))
        self.assertEqual(self.cursor.applied, [indicator_id(1)])

    async def test_failed(self) -> None:
        """
        A snapshot without some source ends nothing, and is asked for again, later and
        later.
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
    How sightings are reported.
    """

    documents = [a_sighting(1).raw, a_sighting(2).raw]

    def taken(self) -> Deferred[list[bool]]:
        reported = self.subscription.report_sightings(self.documents)
        return reported.addCallback(lambda reported: reported.taken)

    async def test_acknowledged(self) -> None:
        """
        Sightings are taken when the bus has said so.
        """
        await self.start()
        handed = self.taken()
        self.assertNoResult(handed)
        self.assertEqual(await handed, [True, True])
        (request,) = self.bus.asked("publish")
        self.assertEqual(len(request["documents"]), 2)

    async def test_not_acknowledged(self) -> None:
        """
        Without an answer in time they are not taken.
        """
        await self.start()
        self.bus.silent = True
        handed = self.taken()
        await self.until(lambda: self.bus.asked("publish"))
        self.subscription._reports.close()
        self.assertEqual(self.successResultOf(handed), [False, False])

    async def test_refused(self) -> None:
        """
        A bus that cannot keep them now has not taken them.
        """
        await self.start()
        self.bus.refusal = manage.refused("the disk is full")
        self.assertEqual(await self.taken(), [False, False])
        self.bus.refusal = manage.encode_published(["accepted"], {})
        self.assertEqual(await self.taken(), [False, False])
        self.bus.refusal = b""

    async def test_refused_item(self) -> None:
        """
        What the bus can never take is done with.
        """
        await self.start()
        self.bus.refusal = manage.encode_published(["refused", "accepted"], {0: "no sighting"})
        reported = await self.subscription.report_sightings(self.documents)
        self.assertEqual(reported, Reported([True, True], {0: "no sighting"}))
        self.bus.refusal = b""

    async def test_poisoned(self) -> None:
        """
        A request that is refused without a reason, or answered for others, or not at all
        by a bus that answers heartbeats, may have something in it; not one to a bus that
        is away, or that says how it is.
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
                await self.until(lambda: self.subscription._answered == self.clock.seconds())
                for _ in range(5):
                    self.clock.advance(HEARTBEAT)
                    await self.until(lambda: self.subscription._breaking is not None)
            else:
                self.bus.silent = True
                self.clock.advance(subscription.REPORT_TIMEOUT)
            reported = await silent
            self.assertEqual((reported.taken, reported.poisoned), ([False, False], beats))

    async def test_old_host(self) -> None:
        """
        A Threat Bus host gets them on its sub endpoint, once it listens.
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
        Without a subscription nothing is reported.
        """
        self.assertEqual(await self.taken(), [False, False])
        self.assertFalse(self.subscription.send(SIGHTING_TOPIC + b" {}"))
