"""
Tests for the memory that all subscriptions of a bus share.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.subscription import REST, STALLED, Subscription
from tbvast.bus.subscriptions import RETRY_INTERVAL
from tbvast.protocol.frames import Item
from tbvast.protocol.manage import PROTOCOL
from tbvast.protocol.replay import Batch, Mark, Part, decode_delivery
from tests.doubles import MemoryJournal, MemoryPub, an_indicator
from tests.doubles_bus import MemoryBus, a_batch, a_request

LIMIT = 1 << 20


class BudgetTestCase(SynchronousTestCase):
    """
    A bus with little memory, and subscribers that do not read unless the test says so.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = MemoryJournal(self.clock)
        self.pub = MemoryPub()
        self.bus = MemoryBus(self.clock, self.journal, self.pub, queue_total_bytes=LIMIT)
        self.bus.start()
        self.items: list[Item] = []

    def tearDown(self) -> None:
        self.successResultOf(self.bus.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.bus.subscriptions.budget.used, 0)

    def open(self, user: str = "", reads: bool = False, **changes: Any) -> Subscription:
        """
        Open a subscription whose subscriber is there.
        """
        subscription: Subscription = self.bus.open(a_request(**changes), user)
        if not reads:
            self.pub.closed.add(subscription.topic)
        self.bus.subscriptions.attach(subscription.topic.encode())
        self.bus.snapshots.begin(subscription)
        self.clock.advance(RETRY_INTERVAL)
        return subscription

    def commit(self, count: int, size: int = 1000) -> None:
        """
        Have indicators committed and delivered.
        """
        first = len(self.items)
        new = [
            an_indicator(number, description="x" * size) for number in range(first, first + count)
        ]
        self.items += new
        outcomes = self.successResultOf(self.journal.append(new))
        batch = a_batch([(each.number, each.item) for each in outcomes])
        self.successResultOf(Deferred.fromCoroutine(self.bus.subscriptions.deliver(batch)))
        self.clock.advance(0)

    def read(self, subscription: Subscription) -> None:
        """
        Have a subscriber read for a while.
        """
        self.pub.closed.discard(subscription.topic)
        self.clock.pump([REST, *[STALLED] * 4, *[RETRY_INTERVAL] * 200])

    def pass_time(self, seconds: float) -> None:
        """
        Let time pass in which subscribers are tried again, and yet no heartbeat is missed.
        """
        self.clock.pump([STALLED] * round(seconds / STALLED))

    def assert_bounded(self) -> None:
        used = sum(each.held for each in self.bus.subscriptions.everybody())
        self.assertEqual(self.bus.subscriptions.budget.used, used)
        self.assertLessEqual(used, LIMIT)

    def got(self, subscription: Subscription) -> list[bytes]:
        return [frame.partition(b" ")[2] for frame in self.pub.to(subscription.topic)]


class TotalTests(BudgetTestCase):
    """
    No more waits in memory than allowed, and yet nothing is lost.
    """

    def test_many(self) -> None:
        """
        Many subscriptions that nobody reads hold no more than a few.
        """
        subscriptions = [self.open() for _ in range(50)]
        for _ in range(10):
            self.commit(10)
            self.assert_bounded()
        self.pass_time(10)
        self.assert_bounded()
        for each in subscriptions:
            self.read(each)
            self.assert_bounded()
        for each in subscriptions:
            self.assertEqual(self.got(each), [item.raw for item in self.items])
            self.assertEqual(each.dropped, 0)

    def test_shared(self) -> None:
        """
        All hold the same frame.
        """
        first, second = self.open(), self.open()
        self.commit(1)
        frames = [each._queue.head(1)[0] for each in (first, second)]
        self.assertIs(*frames)

    def test_shared_batches(self) -> None:
        """
        So do those of tbvast/1.
        """
        first, second = self.open(protocol=PROTOCOL), self.open(protocol=PROTOCOL)
        self.commit(1)
        frames = [each._queue.head(1)[0] for each in (first, second)]
        self.assertIs(*frames)

    def test_never_attached(self) -> None:
        """
        One that was never attached holds nothing.
        """
        subscription = self.bus.open(a_request())
        self.commit(10)
        self.assertEqual((subscription.held, subscription.behind), (0, 10))

    def test_most_first(self) -> None:
        """
        The client with most loses its queues; the queue of another one stays.
        """
        greedy = [self.open("greedy") for _ in range(20)]
        self.commit(30)
        other = self.open("other")
        with capturedLogs() as events:
            self.commit(30)
        self.assertGreater(other.held, 0)
        given_up = [each for each in greedy if not each.held]
        self.assertTrue(given_up)
        self.assertTrue([e for e in events if "Too much" in str(e.get("log_format"))])

    def test_reader(self) -> None:
        """
        A subscriber that reads gets everything at once, whatever the others hold.
        """
        for _ in range(50):
            self.open("greedy")
        reader = self.open("reader", reads=True)
        for _ in range(5):
            self.commit(20)
            self.assertEqual(self.got(reader), [item.raw for item in self.items])

    def test_replayed(self) -> None:
        """
        A subscription of tbvast/1 continues where it was.
        """
        subscription = self.open(protocol=PROTOCOL)
        self.commit(1200)
        self.assert_bounded()
        self.assertEqual(subscription.held, 0)
        self.read(subscription)
        self.assertFalse(subscription.closed)
        last = 0
        items: list[Item] = []
        for frame in self.pub.to(subscription.topic):
            batch = decode_delivery(b"", [frame])
            assert isinstance(batch, Batch)
            self.assertEqual(batch.after, last)
            last = batch.until
            items += batch.items
        self.assertEqual([item.raw for item in items], [item.raw for item in self.items])

    def test_probes(self) -> None:
        """
        One that has lost its queue, and does not read, holds little afterwards.
        """
        subscriptions = [self.open() for _ in range(20)]
        self.commit(100)
        self.pass_time(10)
        sizes = sorted(each.held for each in subscriptions)
        self.assertLess(sizes[0], 6000)
        self.assertGreater(sizes[0], 0)

    def test_answers(self) -> None:
        """
        Answers of other subscribers are in no journal: they are lost, and counted.
        """
        subscription = self.open()
        subscription.deliver([b"x" * 1000] * 2000)
        self.clock.advance(0)
        self.assert_bounded()
        self.assertEqual(subscription.dropped, 2000)


class SnapshotTests(BudgetTestCase):
    """
    Snapshots that nobody reads.
    """

    def setUp(self) -> None:
        super().setUp()
        self.commit(1500)

    def test_old(self) -> None:
        """
        That of an old dialect begins again.
        """
        subscriptions = [self.open(snapshot=1) for _ in range(20)]
        self.assert_bounded()
        self.pass_time(5)
        self.assert_bounded()
        for each in subscriptions:
            self.read(each)
        for each in subscriptions:
            self.assertEqual(set(self.got(each)), {item.raw for item in self.items})
            self.assertFalse(each.closed)

    def test_replayed(self) -> None:
        """
        A subscription of tbvast/1 ends, so that it is made anew: otherwise its subscriber could
        not count the items.
        """
        subscriptions = [self.open(protocol=PROTOCOL, snapshot=1) for _ in range(20)]
        self.assert_bounded()
        ended = [each for each in subscriptions if each.closed]
        self.assertTrue(ended)
        left = next(each for each in subscriptions if not each.closed)
        self.read(left)
        counts: Counter[type] = Counter()
        for frame in self.pub.to(left.topic):
            delivery = decode_delivery(b"", [frame])
            if isinstance(delivery, Part):
                counts[Part] += len(delivery.items)
            elif isinstance(delivery, Mark):
                counts[Mark] += delivery.count
        self.assertEqual(counts, {Part: 1500, Mark: 1500})


class StalledTests(BudgetTestCase):
    """
    Subscribers that read nothing are tried seldom.
    """

    def test_seldom(self) -> None:
        tried: list[float] = []
        subscription = self.open()
        original = subscription.pump

        def pump() -> None:
            tried.append(self.clock.seconds())
            original()

        self.patch(subscription, "pump", pump)
        self.commit(10)
        self.clock.pump([RETRY_INTERVAL] * 1000)
        at_first, later = round(STALLED / RETRY_INTERVAL), round(1.0 / STALLED)
        self.assertLessEqual(abs(len(tried) - at_first - later), 5)
