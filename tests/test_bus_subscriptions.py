"""
Tests for L{tbvast.bus.subscriptions}.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bus.subscription import (
    CLIENT_LINES_PER_MINUTE,
    LOSSES_PER_MINUTE,
    NO_REPORT,
    PUMP_FRAMES,
    STALLED,
    Subscription,
)
from tbvast.bus.subscription_saver import PAGE_SUBSCRIPTIONS, PROGRESS_INTERVAL
from tbvast.bus.subscriptions import (
    CLIENT_REPORT_BYTES,
    RETRY_INTERVAL,
    SWEEP_INTERVAL,
    TOTAL_REPORT_BYTES,
)
from tbvast.errors import LimitExceeded
from tbvast.interfaces import IPublisher
from tbvast.protocol.topics import Stream
from tbvast.service.turns import TURN_BUDGET_SECONDS
from tbvast.stix.indicators import Indicator
from tbvast.stix.sightings import Sighting
from tests.doubles import BusyClock, MemoryJournal, MemoryPub, a_sighting, an_indicator
from tests.doubles_bus import DirectSubscription, MemoryBus, a_batch, a_request


def frames_of(*items: Indicator | Sighting) -> list[bytes]:
    """
    The stix2 frames of items, without the topic.
    """
    kinds = {Indicator: b"indicator ", Sighting: b"sighting "}
    return [kinds[type(item)] + item.raw for item in items]


class SubscriptionsTestCase(SynchronousTestCase):
    """
    Subscriptions on a clock, and a pub endpoint in memory.
    """

    kind: Any = DirectSubscription

    def setUp(self) -> None:
        self.clock = Clock()
        self.pub = MemoryPub()
        self.journal = MemoryJournal(self.clock)
        self.start()

    def restart_with(self, **limits: Any) -> None:
        """
        Start anew, with other limits.
        """
        self.successResultOf(self.bus.stop())
        self.start(**limits)

    def start(self, **limits: Any) -> None:
        self.bus = MemoryBus(self.clock, self.journal, self.pub, self.kind, **limits)
        self.subscriptions = self.bus.subscriptions
        self.bus.start()

    def tearDown(self) -> None:
        self.successResultOf(self.bus.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def open(self, *topics: str, attached: bool = True, **changes: Any) -> Subscription:
        subscription: Subscription = self.bus.open(a_request(*topics, **changes))
        if attached:
            self.attach(subscription)
        return subscription

    def attach(self, subscription: Subscription) -> None:
        self.assertTrue(self.subscriptions.attach(subscription.topic.encode()))
        self.clock.advance(RETRY_INTERVAL)

    def detach(self, subscription: Subscription) -> None:
        self.subscriptions.detach(subscription.topic.encode())

    def fan_out(self, *items: Indicator | Sighting) -> None:
        self.successResultOf(self.bus.deliver(a_batch(list(enumerate(items, 1)))))

    def got(self, subscription: Subscription) -> list[bytes]:
        return self.pub.to(subscription.topic)

    def reasons(self, events: Iterable[dict[str, Any]]) -> list[str]:
        return [event["reason"] for event in events if "reason" in event]

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds / 0.5))


class InterfaceTests(SubscriptionsTestCase):
    """
    The interface of the double.
    """

    def test_publisher(self) -> None:
        """
        The double of the pub endpoint is an L{IPublisher}.
        """
        verifyObject(IPublisher, self.pub)


class TurnTests(SubscriptionsTestCase):
    """
    Many subscribers are served in many turns.
    """

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.bus.stop())
        self.clock = BusyClock(TURN_BUDGET_SECONDS / 4)
        self.start()

    def advance(self) -> None:
        self.clock.advance(RETRY_INTERVAL)

    def test_in_turns(self) -> None:
        """
        Everybody gets everything, in order, but not all in one turn.
        """
        subscriptions = [self.open() for _ in range(30)]
        items = [an_indicator(number) for number in range(3)]

        async def deliver() -> None:
            for number, item in enumerate(items):
                await self.bus.deliver(a_batch([(number, item)]))

        delivery = Deferred.fromCoroutine(deliver())
        late = self.open()
        self.assertNoResult(delivery)
        for _ in range(200):
            before = len(self.pub.frames)
            self.clock.advance(STALLED)
            self.assertLessEqual(len(self.pub.frames) - before, 20)
        self.successResultOf(delivery)
        for each in subscriptions:
            self.assertEqual(self.got(each), frames_of(*items))
        self.assertEqual(self.got(late), frames_of(*items[1:]))

    def test_closed_between(self) -> None:
        """
        A subscriber that has left in the meantime gets nothing more.
        """
        subscriptions = [self.open() for _ in range(30)]
        delivery = self.bus.deliver(a_batch([(1, an_indicator(1))]))
        self.subscriptions.close(subscriptions[-1].topic)
        for _ in range(30):
            self.advance()
        self.successResultOf(delivery)
        self.assertEqual(self.got(subscriptions[-1]), [])
        self.assertEqual(len(self.got(subscriptions[-2])), 1)

    def test_many_stuck(self) -> None:
        """
        Subscribers with full queues are served over several turns, and none is forgotten.
        """
        subscriptions = [self.open() for _ in range(30)]
        self.pub.room = 0
        delivery = self.bus.deliver(a_batch([(1, an_indicator(1))]))
        for _ in range(30):
            self.advance()
        self.successResultOf(delivery)
        self.pub.room = 1_000_000
        for _ in range(60):
            before = len(self.pub.frames)
            self.clock.advance(STALLED)
            self.assertLessEqual(len(self.pub.frames) - before, 20)
        for each in subscriptions:
            self.assertEqual(len(self.got(each)), 1)

    def test_overdue(self) -> None:
        """
        Many subscriptions that are overdue together are not all closed in one turn.
        """
        for _ in range(100):
            self.open(attached=False)
        self.clock.rightNow += 60
        while left := len(self.subscriptions):
            self.clock.advance(SWEEP_INTERVAL)
            self.assertLess(left - len(self.subscriptions), 10)

    def test_stopped_between(self) -> None:
        """
        A bus that stops meanwhile leaves nothing behind.
        """
        for _ in range(30):
            self.open()
        self.bus.deliver(a_batch([(1, an_indicator(1))]))


class SpreadTests(SubscriptionsTestCase):
    """
    The delivery to subscribers.
    """

    def test_streams(self) -> None:
        """
        Each subscriber gets the streams of its topics, in its dialect.
        """
        items = an_indicator(1), a_sighting(1), an_indicator(2)
        intel = self.open("stix2/indicator")
        sightings = self.open("stix2/sighting")
        both = self.open("stix2/indicator", "stix2/sighting")
        vast = self.open("threatbus/intel")
        self.fan_out(*items)
        self.assertEqual(self.got(intel), frames_of(items[0], items[2]))
        self.assertEqual(self.got(sightings), frames_of(items[1]))
        self.assertEqual(self.got(both), frames_of(*items))
        self.assertEqual(len(self.got(vast)), 2)
        self.assertIn(b'"ioc":"192.0.2.1"', self.got(vast)[0])
        self.assertTrue(self.got(vast)[0].startswith(b" {"))
        self.assertEqual([s.sent for s in (intel, sightings, both, vast)], [2, 1, 3, 2])

    def test_overlapping_topics(self) -> None:
        """
        Topics that overlap deliver each message once.
        """
        subscription = self.open("stix2/indicator", "stix2/", "stix2/ind", "threatbus/intel")
        self.fan_out(an_indicator())
        self.assertEqual(self.got(subscription), frames_of(an_indicator()))

    def test_unknown_topic(self) -> None:
        """
        A subscription to an unknown topic stands, and gets nothing.
        """
        subscription = self.open("weather")
        self.fan_out(an_indicator(), a_sighting())
        self.assertEqual(self.got(subscription), [])
        self.assertEqual(self.subscriptions.everybody(), [subscription])

    def test_topics(self) -> None:
        """
        Own topics are random; those of the vast dialect begin with the requested topic.
        """
        first, second = self.open("stix2/indicator"), self.open("stix2/indicator")
        self.assertNotEqual(first.topic, second.topic)
        self.assertRegex(first.topic, r"^[a-z]{32}$")
        self.assertRegex(self.open("threatbus/intel").topic, r"^threatbus/intel[a-z]{10}$")

    def test_order(self) -> None:
        """
        Items are delivered in the order of the commits.
        """
        subscription = self.open()
        items = [an_indicator(number) for number in range(20)]
        for item in items:
            self.fan_out(item)
        self.assertEqual(self.got(subscription), frames_of(*items))


class OwnerTests(SubscriptionsTestCase):
    """
    Subscriptions of clients with keys.
    """

    def test_attach(self) -> None:
        """
        Only a peer that shows the key of the subscription's client may listen.
        """
        subscription = self.bus.open(a_request(), "key")
        topic = subscription.topic.encode()
        for each in (topic, topic + b"indicator"):
            self.assertFalse(self.subscriptions.attach(each, "another key"))
        self.assertFalse(subscription.describe()["attached"])
        self.assertTrue(self.subscriptions.attach(topic, "key"))
        self.assertTrue(subscription.describe()["attached"])

    def test_no_keys(self) -> None:
        """
        Without keys, everybody who knows the topic may listen, from any address.
        """
        subscription = self.bus.open(a_request(), "192.0.2.1")
        self.assertTrue(self.subscriptions.attach(subscription.topic.encode()))


class AttachTests(SubscriptionsTestCase):
    """
    The slow joiner.
    """

    def test_nothing_before(self) -> None:
        """
        Nothing is sent before the ZeroMQ subscription has been seen, however late,
        and then everything, in order.
        """
        subscription = self.open(attached=False)
        items = [an_indicator(number) for number in range(40)]
        for item in items[:30]:
            self.fan_out(item)
            self.pass_time(0.5)
        self.assertEqual(self.pub.frames, [])
        self.assertEqual(subscription.queued, 30)
        self.assertIsNotNone(subscription.detached)
        self.attach(subscription)
        self.assertEqual(self.got(subscription), frames_of(*items[:30]))
        self.assertEqual(subscription.queued, 0)
        for item in items[30:]:
            self.fan_out(item)
        self.assertEqual(self.got(subscription), frames_of(*items))

    def test_not_in_the_same_turn(self) -> None:
        """
        Waiting frames are sent after the turn in which the subscription was admitted, because
        the socket does not know it before.
        """
        subscription = self.open(attached=False)
        self.fan_out(an_indicator())
        self.subscriptions.attach(subscription.topic.encode())
        self.assertEqual(self.pub.frames, [])
        self.fan_out(an_indicator(2))
        self.assertEqual(self.pub.frames, [])
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(subscription), frames_of(an_indicator(), an_indicator(2)))

    def test_longer_topic(self) -> None:
        """
        A subscriber of the stix2 dialect may listen to one type only; one of the vast
        dialect listens to its topic.
        """
        for topic, ending in (("stix2/indicator", b"indicator"), ("threatbus/intel", b"")):
            subscription = self.open(topic, attached=False)
            self.assertTrue(self.subscriptions.attach(subscription.topic.encode() + ending))
            self.assertIsNone(subscription.detached)
            self.subscriptions.detach(subscription.topic.encode() + ending)
            self.assertIsNotNone(subscription.detached)
        self.clock.advance(RETRY_INTERVAL)

    def test_unknown(self) -> None:
        """
        Topics without a subscription are refused: the empty topic, the beginning of a topic,
        and bytes that are no text.
        """
        subscription = self.open()
        for topic in (b"", subscription.topic[:31].encode(), b"stix2/indicator", b"\xff" * 32):
            with self.subTest(topic):
                self.assertFalse(self.subscriptions.attach(topic))
                self.subscriptions.detach(topic)
        self.assertIsNone(subscription.detached)

    def test_several(self) -> None:
        """
        A subscription is attached until the last of its attachments has ended; an
        end too many does no harm.
        """
        subscription = self.open()
        self.attach(subscription)
        self.detach(subscription)
        self.fan_out(an_indicator(1))
        self.assertEqual(len(self.got(subscription)), 1)
        self.detach(subscription)
        self.detach(subscription)
        self.assertEqual(subscription.detached, self.clock.seconds())
        self.fan_out(an_indicator(2))
        self.assertEqual(len(self.got(subscription)), 1)
        self.attach(subscription)
        self.assertEqual(len(self.got(subscription)), 2)


class SlowTests(SubscriptionsTestCase):
    """
    Subscribers that read slowly.
    """

    def test_refused(self) -> None:
        """
        Frames that the socket refuses are offered again, and nothing overtakes them.
        """
        subscription = self.open()
        self.pub.room = 1
        items = [an_indicator(number) for number in range(6)]
        self.fan_out(*items[:3])
        self.fan_out(items[3])
        self.assertEqual(self.got(subscription), frames_of(items[0]))
        self.pub.room = 1
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(subscription), frames_of(*items[:2]))
        self.pub.room = 100
        self.fan_out(items[4])
        self.assertEqual(self.got(subscription), frames_of(*items[:2]))
        self.clock.advance(RETRY_INTERVAL)
        self.fan_out(items[5])
        self.assertEqual(self.got(subscription), frames_of(*items))
        self.assertEqual((subscription.sent, subscription.dropped), (6, 0))

    def test_others_go_on(self) -> None:
        """
        A subscriber with a full queue does not delay the others.
        """
        slow, fast = self.open(), self.open()
        self.pub.closed.add(slow.topic)
        self.fan_out(an_indicator(1), an_indicator(2))
        self.assertEqual(len(self.got(fast)), 2)
        self.assertEqual((slow.queued, fast.queued), (2, 0))

    def test_one_retry(self) -> None:
        """
        However many wait, they share one call.
        """
        before = len(self.clock.getDelayedCalls())
        for subscription in [self.open() for _ in range(5)]:
            self.assertIsNone(subscription.detached)
        self.pub.room = 0
        self.fan_out(an_indicator())
        calls = len(self.clock.getDelayedCalls()) - before
        self.assertLessEqual(calls, 2)  # the other one saves the subscriptions

    def test_bounded_turn(self) -> None:
        """
        A long queue is sent over several turns, so that other subscribers need not wait.
        """
        count = 2 * PUMP_FRAMES + 1
        subscription = self.bus.open(a_request())
        subscription.deliver([b"x %d" % number for number in range(count)])
        self.subscriptions.attach(subscription.topic.encode())
        for _ in range(3):
            before = len(self.pub.frames)
            self.clock.advance(RETRY_INTERVAL)
            self.assertLessEqual(len(self.pub.frames) - before, PUMP_FRAMES)
        self.assertEqual(self.got(subscription), [b"x %d" % n for n in range(count)])


class BoundTests(SubscriptionsTestCase):
    """
    The queue is bounded.
    """

    def test_messages(self) -> None:
        """
        Beyond the limit of messages the oldest are lost, and counted.
        """
        self.restart_with(queue_messages=3)
        subscription = self.open(attached=False)
        items = [an_indicator(number) for number in range(5)]
        for item in items:
            self.fan_out(item)
        self.assertEqual((subscription.queued, subscription.dropped), (3, 2))
        self.attach(subscription)
        self.assertEqual(self.got(subscription), frames_of(*items[2:]))

    def test_bytes(self) -> None:
        """
        So they are beyond the limit of bytes; a message that is larger by itself is
        lost, too.
        """
        size = 32 + len(frames_of(an_indicator(1))[0])
        self.restart_with(queue_bytes=2 * size)
        subscription = self.open(attached=False)
        self.fan_out(*(an_indicator(number) for number in range(1, 5)))
        self.assertEqual((subscription.queued, subscription.dropped), (2, 2))
        self.fan_out(an_indicator(5, name="x" * 2 * size))
        self.assertEqual((subscription.queued, subscription.dropped), (0, 5))
        self.fan_out(an_indicator(6))
        self.attach(subscription)
        self.assertEqual(self.got(subscription), frames_of(an_indicator(6)))

    def test_attached(self) -> None:
        """
        The limits hold for a subscriber that is there and does not read, as well.
        """
        self.restart_with(queue_messages=2)
        subscription = self.open()
        self.pub.room = 0
        for number in range(4):
            self.fan_out(an_indicator(number))
        self.assertEqual((subscription.queued, subscription.dropped), (2, 2))
        self.pub.room = 10
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(subscription), frames_of(an_indicator(2), an_indicator(3)))

    def test_logged(self) -> None:
        """
        A loss is logged, with the count, so many times a minute and no more.
        """
        self.restart_with(queue_messages=1)
        subscription = self.open(attached=False, name="slow")
        with capturedLogs() as events:
            for number in range(LOSSES_PER_MINUTE + 20):
                self.fan_out(an_indicator(number))
        self.assertEqual(len(events), LOSSES_PER_MINUTE)
        self.assertEqual((events[0]["name"], events[0]["dropped"]), ("slow", 1))
        self.assertEqual(subscription.dropped, LOSSES_PER_MINUTE + 19)


Part = Callable[[Iterable[bytes]], Deferred[None]]


class SnapshotTests(SubscriptionsTestCase):
    """
    A snapshot is sent before items that are delivered meanwhile.
    """

    def setUp(self) -> None:
        super().setUp()
        self.cancelled = 0
        self.over: Deferred[Any] = Deferred(self.cancel)

    def cancel(self, over: Deferred[Any]) -> None:
        self.cancelled += 1

    def begin(self, subscription: Subscription) -> Part:
        """
        Begin a snapshot that is over when the test says so.
        """
        parts: list[Part] = []

        def deliver(send: Part) -> Deferred[Any]:
            parts.append(send)
            return self.over

        subscription.take_snapshot(deliver)
        return parts[0]

    def test_before(self) -> None:
        """
        The pages of the snapshot come first, then the waiting frames.
        """
        subscription = self.open()
        send = self.begin(subscription)
        self.successResultOf(send([b"s 1", b"s 2"]))
        self.fan_out(an_indicator())
        self.successResultOf(send([b"s 3"]))
        self.assertEqual(self.got(subscription), [b"s 1", b"s 2", b"s 3"])
        self.over.callback(None)
        self.assertEqual(
            self.got(subscription), [b"s 1", b"s 2", b"s 3", *frames_of(an_indicator())]
        )

    def test_back_pressure(self) -> None:
        """
        The next part is wanted when half of the last one has been sent: not before the
        subscriber is there, nor while it does not read.
        """
        subscription = self.open(attached=False)
        send = self.begin(subscription)
        first = send([b"s 1"])
        self.assertNoResult(first)
        self.attach(subscription)
        self.successResultOf(first)
        self.pub.room = 1
        second = send([b"s 2", b"s 3", b"s 4", b"s 5"])
        self.assertNoResult(second)
        self.assertEqual(subscription.queued, 3)
        self.pub.room = 1
        self.clock.advance(RETRY_INTERVAL)
        self.successResultOf(second)
        self.assertEqual(subscription.queued, 2)
        self.pub.room = 10
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(subscription), [b"s %d" % n for n in range(1, 6)])
        self.over.callback(None)

    def test_end(self) -> None:
        """
        It is over when ZeroMQ has accepted all of it.
        """
        subscription = self.open()
        self.pub.room = 1
        send = self.begin(subscription)
        self.successResultOf(send([b"s 1", b"s 2"]))
        self.over.callback(None)
        self.fan_out(an_indicator())
        self.pub.room = 10
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(subscription), [b"s 1", b"s 2", *frames_of(an_indicator())])

    def test_failed(self) -> None:
        """
        A snapshot that fails does not block the waiting frames.
        """
        subscription = self.open()
        self.begin(subscription)
        self.fan_out(an_indicator())
        self.over.errback(ValueError())
        self.assertEqual(self.got(subscription), frames_of(an_indicator()))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_cancelled(self) -> None:
        """
        A snapshot ends with its subscription, and nothing is sent any more.
        """
        subscription = self.open()
        self.pub.room = 1
        send = self.begin(subscription)
        self.assertNoResult(send([b"s 1", b"s 2", b"s 3", b"s 4"]))
        self.fan_out(an_indicator())
        self.subscriptions.close(subscription.topic)
        self.assertEqual(self.cancelled, 1)
        self.pub.room = 10
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(subscription), [b"s 1"])
        self.assertEqual(subscription.queued, 0)


class EndTests(SubscriptionsTestCase):
    """
    Subscriptions that end.
    """

    def test_unsubscribed(self) -> None:
        """
        One that is closed is gone, once, and holds nothing.
        """
        subscription = self.open(attached=False)
        self.fan_out(an_indicator())
        self.assertTrue(self.subscriptions.close(subscription.topic))
        self.assertFalse(self.subscriptions.close(subscription.topic))
        self.assertEqual(len(self.subscriptions), 0)
        self.assertEqual(self.subscriptions.everybody(), [])
        self.assertEqual((subscription.queued, subscription.closed), (0, True))
        self.assertFalse(self.subscriptions.heartbeat(subscription.topic, {}))
        self.assertFalse(self.subscriptions.attach(subscription.topic.encode()))

    def test_closed_while_attaching(self) -> None:
        """
        One that is closed in the turn in which it was attached is sent nothing.
        """
        subscription = self.open(attached=False)
        self.fan_out(an_indicator())
        self.subscriptions.attach(subscription.topic.encode())
        self.subscriptions.close(subscription.topic)
        self.clock.advance(1)
        self.assertEqual(self.pub.frames, [])

    def test_silent(self) -> None:
        """
        A subscription is closed when its heartbeats stop for too long, even if it is attached.
        """
        subscription = self.open()
        for _ in range(5):
            self.assertTrue(self.subscriptions.heartbeat(subscription.topic, {"a": 1}))
            self.pass_time(10)
        self.assertEqual(bytes(subscription.report), b'{"a":1}')
        self.assertEqual(len(self.subscriptions), 1)
        with capturedLogs() as events:
            self.pass_time(6)
        self.assertEqual(len(self.subscriptions), 0)
        self.assertEqual(self.reasons(events), ["fell silent"])

    def test_never_beating(self) -> None:
        """
        One that never had heartbeats is not missed for them while it is attached.
        """
        self.open()
        self.pass_time(100)
        self.assertEqual(len(self.subscriptions), 1)

    def test_never_came(self) -> None:
        """
        One that is not attached in time ends; one that is stays.
        """
        self.open(attached=False)
        late = self.open(attached=False)
        self.pass_time(59)
        self.assertEqual(len(self.subscriptions), 2)
        self.attach(late)
        with capturedLogs() as events:
            self.pass_time(2)
        self.assertEqual(self.subscriptions.everybody(), [late])
        self.assertEqual(self.reasons(events), ["went away"])

    def test_went_away(self) -> None:
        """
        A subscriber that lost its ZeroMQ subscription has the same time to come back.
        """
        subscription = self.open()
        self.pass_time(50)
        self.detach(subscription)
        self.pass_time(50)
        self.attach(subscription)
        self.pass_time(50)
        self.detach(subscription)
        self.pass_time(59)
        self.assertEqual(len(self.subscriptions), 1)
        self.pass_time(2)
        self.assertEqual(len(self.subscriptions), 0)

    def test_many(self) -> None:
        """
        A thousand that come and go leave nothing.
        """
        calls = len(self.clock.getDelayedCalls())
        for _ in range(1000):
            subscription = self.open(attached=False)
            subscription.take_snapshot(lambda send: Deferred())
            self.subscriptions.close(subscription.topic)
        self.assertEqual(len(self.subscriptions), 0)
        self.assertLessEqual(len(self.clock.getDelayedCalls()), calls + 1)
        self.pass_time(1)
        self.assertEqual(self.journal.saves, [])

    def test_users(self) -> None:
        """
        The subscriptions of users who have lost permissions end, and no others.
        """
        for user in ("one", "two", "one", ""):
            self.bus.open(a_request(), user)
        self.subscriptions.close_all({"one"})
        self.assertEqual([s.user for s in self.subscriptions.everybody()], ["two", ""])

    def test_stopped(self) -> None:
        """
        When the bus stops, nothing more is sent.
        """
        subscription = self.open()
        self.pub.room = 0
        self.fan_out(an_indicator())
        self.assertEqual(subscription.queued, 1)
        self.successResultOf(self.bus.stop())
        self.assertEqual(subscription.queued, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.bus.start()  # which tearDown stops


class LimitTests(SubscriptionsTestCase):
    """
    The limits of subscriptions.
    """

    def refused(self, field: str, *topics: str, user: str = "") -> None:
        before = len(self.subscriptions)
        error = self.assertRaises(LimitExceeded, self.bus.open, a_request(*topics), user)
        self.assertEqual(error.field, field)
        self.assertEqual(len(self.subscriptions), before)

    def test_all(self) -> None:
        """
        There may be so many; one that ends makes room.
        """
        self.restart_with(max_subscriptions=2)
        subscription = self.open()
        self.open()
        self.refused("subscriptions")
        self.subscriptions.close(subscription.topic)
        self.open()
        self.refused("subscriptions")

    def test_client(self) -> None:
        """
        The subscriptions of one client are limited. Those whose client is not known count as
        those of one.
        """
        self.restart_with(max_client_subscriptions=1)
        first = self.bus.open(a_request(), "one")
        self.bus.open(a_request(), "two")
        self.refused("subscriptions", user="one")
        self.bus.open(a_request())
        self.refused("subscriptions")
        self.subscriptions.close(first.topic)
        self.bus.open(a_request(), "one")

    def test_topics(self) -> None:
        """
        One subscription may name so many topics.
        """
        self.restart_with(max_topics=2)
        self.open("stix2/indicator", "stix2/sighting")
        self.refused("topic", "stix2/indicator", "stix2/sighting", "threatbus/intel")

    def test_reports(self) -> None:
        """
        The reports of one client's subscribers are dropped if they are too long together, and
        so are those of all. Their subscriptions stay, and other reports do.
        """
        report = {"a": "x" * (CLIENT_REPORT_BYTES // 4)}
        users = [str(number) for number in range(2 * TOTAL_REPORT_BYTES // CLIENT_REPORT_BYTES)]
        opened = {user: [self.bus.open(a_request(), user) for _ in range(4)] for user in users}
        with capturedLogs() as events:
            for subscription in itertools.chain(*opened.values()):
                for _ in range(2):
                    self.assertTrue(self.subscriptions.heartbeat(subscription.topic, report))

        def kept(user: str) -> int:
            return sum(each.report != NO_REPORT for each in opened[user])

        self.assertEqual(kept("0"), 3)
        self.assertEqual(
            sum(map(kept, users)), TOTAL_REPORT_BYTES // (CLIENT_REPORT_BYTES // 4) - 1
        )
        self.assertIn("too long", events[0]["log_format"])
        for each in opened["0"][:2]:
            self.subscriptions.close(each.topic)
        last = opened["0"][3]
        self.subscriptions.heartbeat(last.topic, report)
        self.assertNotEqual(last.report, NO_REPORT)
        for each in itertools.chain(*opened.values()):
            self.subscriptions.close(each.topic)
        again = self.bus.open(a_request(), "0")
        self.subscriptions.heartbeat(again.topic, {"a": "x" * (CLIENT_REPORT_BYTES - 20)})
        self.assertNotEqual(again.report, NO_REPORT)

    def test_many_topics_shown(self) -> None:
        """
        The status shows the first topics, and how many more there are.
        """
        topics = ("stix2/indicator", *(f"{n:0250}" for n in range(15)))
        subscription = self.open(*topics)
        self.assertEqual(
            subscription.describe()["topics"], ("stix2/indicator", topics[1], "… and 14 more")
        )
        few = ("stix2/indicator", "stix2/sighting")
        self.assertEqual(self.open(*few).describe()["topics"], few)

    def test_log(self) -> None:
        """
        A client that subscribes and unsubscribes again and again does not fill the log: its lines
        are short, and not more than some a minute. Others have theirs.
        """
        topics = ("stix2/indicator", *(f"{n}" + "\u00ad" * 250 for n in range(15)))
        with capturedLogs() as events:
            for user, count in (("one", 1000), ("two", 1)):
                for _ in range(count):
                    opened = self.bus.open(a_request(*topics, name="\u00ad" * 256), user)
                    self.subscriptions.close(opened.topic)
        self.assertEqual(len(events), CLIENT_LINES_PER_MINUTE + 2)
        self.assertLess(max(len(formatEvent(event)) for event in events), 600)
        self.clock.advance(60)
        with capturedLogs() as events:
            self.bus.open(a_request(), "one")
        self.assertEqual(len(events), 1)


class RememberedTests(SubscriptionsTestCase):
    """
    Subscriptions outlive a restart.
    """

    kind = None

    def restart(self) -> None:
        self.restart_with()

    def test_restored(self) -> None:
        """
        A subscription is there again, with its topic, and counts for its client.
        """
        first = self.bus.open(a_request("threatbus/intel", name="one"), "user")
        self.open("stix2/sighting")
        self.restart()
        (restored,) = (s for s in self.subscriptions.everybody() if s.topic == first.topic)
        self.assertEqual(
            (restored.request, restored.user, restored.streams),
            (first.request, "user", frozenset([Stream.INTEL])),
        )
        self.assertEqual(len(self.subscriptions), 2)
        self.assertTrue(self.subscriptions.heartbeat(first.topic, {}))
        self.journal.append([an_indicator()])
        self.fan_out(an_indicator())
        self.assertEqual(self.got(restored), [])
        self.attach(restored)
        self.assertEqual(len(self.got(restored)), 1)

    def test_did_not_come_back(self) -> None:
        """
        A subscription whose subscriber does not come back ends, and is deleted.
        """
        self.open()
        self.restart()
        self.pass_time(61)
        self.assertEqual(len(self.subscriptions), 0)
        self.pass_time(2)
        self.assertEqual(self.journal.saved, {})

    def test_together(self) -> None:
        """
        Changes are saved together, after a moment.
        """
        for _ in range(5):
            self.open(attached=False)
        self.assertEqual(self.journal.saves, [])
        self.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual([len(changes) for changes in self.journal.saves], [5])

    def test_many_together(self) -> None:
        """
        Many changes are saved in several calls.
        """
        self.restart_with(max_subscriptions=2000, max_client_subscriptions=2000)
        for _ in range(PAGE_SUBSCRIPTIONS + 1):
            self.open(attached=False)
        for _ in range(10):
            self.clock.advance(PROGRESS_INTERVAL)
        self.assertEqual([len(changes) for changes in self.journal.saves], [PAGE_SUBSCRIPTIONS, 1])
        self.assertEqual(len(self.journal.saved), PAGE_SUBSCRIPTIONS + 1)

    def test_closed(self) -> None:
        """
        One that was closed does not come back.
        """
        self.subscriptions.close(self.open().topic)
        other = self.open()
        self.restart()
        self.assertEqual([s.topic for s in self.subscriptions.everybody()], [other.topic])

    def test_not_those_that_resume(self) -> None:
        """
        Subscribers of tbvast/1 subscribe again, so their subscriptions are not saved.
        """
        subscription = self.open(protocol="tbvast/1")
        self.subscriptions.close(subscription.topic)
        self.open(protocol="tbvast/1")
        self.restart()
        self.assertEqual((self.journal.saves, self.journal.saved), ([], {}))

    def test_disk_refuses(self) -> None:
        """
        Subscriptions that cannot be saved still work; the log says why.
        """
        subscription = self.open()
        self.journal.failing = True
        with capturedLogs() as events:
            self.pass_time(5)
        self.assertEqual(self.reasons(events), ["the disk refuses"])
        self.journal.failing = False
        self.journal.append([an_indicator()])
        self.fan_out(an_indicator())
        self.assertEqual(len(self.got(subscription)), 1)
        self.pass_time(1)
        self.assertEqual(len(self.journal.saved), 1)
