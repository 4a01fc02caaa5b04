"""
Tests for L{tbvast.bus.replayed_subscription} and L{tbvast.bus.fanout}.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.replayed_subscription import ReplayedSubscription
from tbvast.bus.subscription import PAGE_ITEMS, Subscription
from tbvast.bus.subscriptions import RETRY_INTERVAL
from tbvast.errors import JournalFailed
from tbvast.protocol.frames import Item
from tbvast.protocol.manage import PROTOCOL
from tbvast.protocol.replay import FRAME_BYTES, Batch, Mark, Part, decode_delivery
from tbvast.protocol.topics import Dialect, Stream
from tbvast.values import Position
from tests.doubles import MemoryJournal, MemoryPub, a_sighting, an_indicator
from tests.doubles_bus import MemoryBus, a_batch, a_request

INTEL = frozenset([Stream.INTEL])
BOTH = frozenset(Stream)


class CommitTests(SynchronousTestCase):
    """
    Tests for L{CommittedBatch}.
    """

    def test_streams(self) -> None:
        """
        It knows its streams and its last number.
        """
        commit = a_batch([(3, an_indicator()), (5, an_indicator(2))])
        self.assertEqual((commit.streams, commit.until), (INTEL, 5))
        self.assertEqual(a_batch([(1, an_indicator()), (2, a_sighting())]).streams, BOTH)

    def test_frames(self) -> None:
        """
        Each dialect and choice of streams has its frames, made once.
        """
        commit = a_batch([(1, an_indicator()), (2, a_sighting())])
        payloads = commit.numbered(Dialect.STIX2, INTEL)[1]
        self.assertEqual(payloads, [b"indicator " + an_indicator().raw])
        self.assertIs(commit.numbered(Dialect.STIX2, INTEL)[1], payloads)
        self.assertEqual(
            commit.numbered(Dialect.STIX2, BOTH)[1], [*payloads, b"sighting " + a_sighting().raw]
        )
        self.assertEqual(len(commit.numbered(Dialect.VAST, INTEL)[1]), 1)
        self.assertNotEqual(commit.numbered(Dialect.VAST, INTEL)[1], payloads)

    def test_numbered(self) -> None:
        """
        Each frame has the number of its entry, in either dialect.
        """
        pattern = "[ipv4-addr:value = '192.0.2.1' OR ipv4-addr:value = '192.0.2.2']"
        items: list[tuple[int, Item]] = [
            (3, an_indicator(1, pattern=pattern)),
            (4, a_sighting()),
            (6, an_indicator(2)),
        ]
        commit = a_batch(items)
        for streams in (BOTH, INTEL):
            numbers, _ = commit.numbered(Dialect.STIX2, streams)
            self.assertEqual(numbers, [3, 4, 6] if streams is BOTH else [3, 6])
        numbers, _ = commit.numbered(Dialect.VAST, INTEL)
        self.assertEqual(numbers, [3, 3, 6])
        self.assertIs(commit.numbered(Dialect.VAST, INTEL), commit.numbered(Dialect.VAST, INTEL))

    def test_chunks(self) -> None:
        """
        The last chunk ends with the commit, also if its last item is not wanted.
        """
        commit = a_batch([(1, an_indicator()), (2, a_sighting())])
        (chunk,) = commit.chunks(INTEL)
        self.assertEqual(chunk.until, 2)
        self.assertIn(an_indicator().raw, chunk.items)
        self.assertNotIn(a_sighting().raw, chunk.items)
        self.assertIs(commit.chunks(INTEL), commit.chunks(INTEL))
        self.assertEqual(a_batch([(1, an_indicator())]).chunks(frozenset([Stream.SIGHTING])), [])


class FedSubscriptionTests(SynchronousTestCase):
    """
    Tests for L{ReplayedSubscription}, among the subscriptions of a bus.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.pub = MemoryPub()
        self.journal = MemoryJournal(self.clock, "bus")
        self.bus = MemoryBus(self.clock, self.journal, self.pub)
        self.subscriptions = self.bus.subscriptions
        self.snapshots = self.bus.snapshots
        self.bus.start()

    def tearDown(self) -> None:
        self.pub.room = 1 << 30
        self.successResultOf(self.bus.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def open(self, *topics: str, **changes: Any) -> ReplayedSubscription:
        subscription = self.bus.open(a_request(*topics, protocol=PROTOCOL, **changes))
        assert isinstance(subscription, ReplayedSubscription)
        return subscription

    def resume(self, number: int, plugin: str = "bus") -> ReplayedSubscription:
        return self.open(resume=Position(plugin, number))

    def attach(self, subscription: Subscription) -> None:
        self.subscriptions.attach(subscription.topic.encode())
        self.turn()

    def turn(self) -> None:
        self.clock.advance(RETRY_INTERVAL)

    def accept(self, *items: Item) -> None:
        """
        Commit and deliver items as one batch.
        """
        outcomes = self.successResultOf(self.journal.append(items))
        self.bus.deliver(a_batch([(o.number, o.item) for o in outcomes]))

    def got(self, subscription: Subscription) -> list[Any]:
        topic = subscription.topic
        return [
            decode_delivery(topic.encode(), [topic.encode() + tail]) for tail in self.pub.to(topic)
        ]

    def check_chain(self, subscription: Subscription, after: int, until: int) -> list[Item]:
        """
        The batches follow each other without a gap.

        @return: Their items.
        """
        items: list[Item] = []
        for batch in self.got(subscription):
            self.assertIsInstance(batch, Batch)
            self.assertEqual(batch.after, after)
            self.assertEqual(batch.refused, ())
            self.assertGreater(batch.until, batch.after)
            after = batch.until
            items.extend(batch.items)
        self.assertEqual(after, until)
        return items

    def test_numbers(self) -> None:
        """
        A subscriber that keeps up gets each batch in one frame, with its range of numbers.
        """
        subscription = self.open()
        self.attach(subscription)
        self.accept(an_indicator(1), an_indicator(2))
        self.accept(an_indicator(3), a_sighting(1))
        self.assertEqual(
            self.got(subscription),
            [
                Batch(0, 2, (an_indicator(1), an_indicator(2)), ()),
                Batch(2, 4, (an_indicator(3),), ()),
            ],
        )
        self.assertEqual((subscription.position, subscription.sent), (4, 2))

    def test_other_stream(self) -> None:
        """
        A commit of which nothing is wanted costs nothing, and leaves no gap.
        """
        subscription = self.open()
        self.attach(subscription)
        self.accept(an_indicator(1))
        self.accept(a_sighting(1))
        self.accept(an_indicator(2))
        items = self.check_chain(subscription, 0, 3)
        self.assertEqual(items, [an_indicator(1), an_indicator(2)])

    def test_begins_with_the_head(self) -> None:
        """
        Without a position to resume from, it begins with the next entry.
        """
        self.accept(an_indicator(1))
        subscription = self.open()
        self.assertEqual((subscription.position, subscription.resumed), (1, False))
        self.attach(subscription)
        self.accept(an_indicator(2))
        self.assertEqual(self.check_chain(subscription, 1, 2), [an_indicator(2)])

    def test_not_before(self) -> None:
        """
        Nothing is sent, or held, before the subscriber is there; then all of it.
        """
        subscription = self.open()
        items = [an_indicator(number) for number in range(30)]
        for item in items:
            self.accept(item)
        self.assertEqual((self.pub.frames, subscription.queued), ([], 0))
        self.attach(subscription)
        self.assertEqual(self.check_chain(subscription, 0, 30), items)
        self.accept(an_indicator(99))
        self.assertEqual(self.check_chain(subscription, 0, 31), [*items, an_indicator(99)])

    def test_falls_behind(self) -> None:
        """
        A slow subscriber gets the journal replayed, without a queue in memory, until it keeps
        up again.
        """
        subscription = self.open()
        self.attach(subscription)
        items = [an_indicator(number) for number in range(50)]
        self.accept(items[0])
        self.pub.room = 0
        for item in items[1:40]:
            self.accept(item)
        self.assertLessEqual(subscription.queued, 1)
        self.assertEqual(subscription.position, 1)
        self.pub.room = 1
        self.turn()
        self.assertEqual(subscription.position, 2)
        self.pub.room = 100
        self.turn()
        self.assertEqual(subscription.position, 40)
        frames = len(self.got(subscription))
        for item in items[40:]:
            self.accept(item)
        self.assertEqual(len(self.got(subscription)), frames + 10)  # as they are committed
        self.assertEqual(self.check_chain(subscription, 0, 50), items)
        self.assertEqual(subscription.dropped, 0)

    def test_pages(self) -> None:
        """
        A subscriber far behind gets the journal page by page, in frames of bounded size.
        """
        items = [an_indicator(number) for number in range(PAGE_ITEMS[Dialect.STIX2] + 10)]
        subscription = self.open()
        self.accept(*items)
        self.attach(subscription)
        self.assertEqual(self.check_chain(subscription, 0, len(items)), items)
        self.assertLess(max(map(len, self.pub.frames)), FRAME_BYTES + 200)
        self.assertGreater(len(self.pub.frames), 2)

    def test_accepted_while_reading(self) -> None:
        """
        Items accepted during a read are neither missed nor sent twice.
        """
        self.journal.holding_reads = True
        subscription = self.open()
        self.accept(an_indicator(1))
        self.attach(subscription)
        self.assertEqual(len(self.journal.held_reads), 1)
        self.accept(an_indicator(2))
        for _ in range(3):
            self.journal.release()
        self.accept(an_indicator(3))
        self.journal.release()
        self.assertEqual(self.check_chain(subscription, 0, 3), [an_indicator(n) for n in (1, 2, 3)])
        self.assertEqual(self.journal.held_reads, [])

    def test_read_in_part(self) -> None:
        """
        A batch that was read from the journal before its delivery, except for an end of another
        stream, is not sent twice.
        """
        subscription = self.open()
        outcomes = self.successResultOf(self.journal.append([an_indicator(1), a_sighting(1)]))
        self.attach(subscription)
        self.bus.deliver(a_batch([(o.number, o.item) for o in outcomes]))
        self.turn()
        self.accept(an_indicator(2))
        items = self.check_chain(subscription, 0, 3)
        self.assertEqual(items, [an_indicator(1), an_indicator(2)])

    def test_resume(self) -> None:
        """
        A returning subscriber gets exactly the entries that it missed.
        """
        items = [an_indicator(number) for number in range(8)]
        for item in items[:6]:
            self.accept(item)
        for number in (0, 2, 6):
            with self.subTest(number):
                subscription = self.resume(number)
                self.assertEqual((subscription.position, subscription.resumed), (number, True))
                self.attach(subscription)
                self.assertEqual(self.check_chain(subscription, number, 6), items[number:6])
        subscription = self.resume(5)
        self.accept(items[6])
        self.attach(subscription)
        self.accept(items[7])
        self.assertEqual(self.check_chain(subscription, 5, 8), items[5:])

    def test_not_resumed(self) -> None:
        """
        A position in another journal, before the floor, or beyond the end is invalid.
        """
        self.accept(*(an_indicator(number) for number in range(5)))
        self.journal.floor = 2
        for subscription in (self.resume(3, "other"), self.resume(1), self.resume(6)):
            self.assertEqual((subscription.resumed, subscription.position), (False, 5))
        self.assertTrue(self.resume(2).resumed)

    def test_snapshot(self) -> None:
        """
        A full snapshot comes first and ends with a mark, which stands for the
        numbers up to the first batch.
        """
        self.accept(an_indicator(1), an_indicator(2), a_sighting(1))
        subscription = self.resume(3, "other")
        self.snapshots.deliver(subscription, None)
        self.accept(an_indicator(3))
        self.attach(subscription)
        self.accept(an_indicator(4))
        part, mark, *_ = self.got(subscription)
        self.assertEqual(part, Part((an_indicator(1), an_indicator(2)), ()))
        self.assertEqual(mark, Mark(3, 2, True))
        batches = self.got(subscription)[2:]
        self.assertEqual([(b.after, b.until) for b in batches], [(3, 4), (4, 5)])

    def test_empty_snapshot(self) -> None:
        """
        A snapshot of nothing has its mark, too.
        """
        subscription = self.open()
        self.snapshots.deliver(subscription, 7)
        self.attach(subscription)
        self.assertEqual(self.got(subscription), [Mark(0, 0, False)])

    def test_snapshot_of_sightings(self) -> None:
        """
        So has the snapshot of a subscriber without the intel stream.
        """
        self.accept(an_indicator(1))
        subscription = self.open("stix2/sighting", resume=Position("other", 1))
        self.snapshots.deliver(subscription, None)
        self.attach(subscription)
        self.accept(a_sighting(1))
        self.assertEqual(
            self.got(subscription), [Mark(1, 0, True), Batch(1, 2, (a_sighting(1),), ())]
        )

    def test_journal_fails(self) -> None:
        """
        A subscription that cannot replay the journal is closed: its subscriber notices, and
        comes back.
        """
        subscription = self.open()
        self.accept(an_indicator(1))
        self.journal.failing = True
        with capturedLogs() as events:
            self.attach(subscription)
        self.assertTrue(subscription.closed)
        self.assertEqual(events[-1]["reason"], "cannot replay the journal,")
        self.assertEqual(len(self.flushLoggedErrors(JournalFailed)), 1)
        self.assertFalse(self.subscriptions.heartbeat(subscription.topic, {}))

    def test_too_far_behind(self) -> None:
        """
        So is one that is so slow that the journal has pruned its next entries.
        """
        subscription = self.open()
        self.accept(an_indicator(1), an_indicator(1, 2), an_indicator(2))
        self.journal.floor = 1
        self.attach(subscription)
        self.assertEqual((subscription.closed, self.pub.frames), (True, []))
        self.assertFalse(self.resume(0).resumed)

    def test_closed_while_reading(self) -> None:
        """
        A closed subscription cancels its read.
        """
        self.journal.holding_reads = True
        subscription = self.open()
        self.accept(an_indicator(1))
        self.attach(subscription)
        self.subscriptions.close(subscription.topic)
        self.journal.release()
        self.assertEqual(self.pub.frames, [])
        self.assertEqual(subscription.queued, 0)

    def test_closed_while_slow(self) -> None:
        """
        One that is closed while frames wait is sent nothing more.
        """
        subscription = self.open()
        self.attach(subscription)
        self.pub.room = 0
        self.accept(an_indicator(1))
        self.assertEqual(subscription.queued, 1)
        self.subscriptions.close(subscription.topic)
        self.pub.room = 10
        self.turn()
        self.assertEqual((self.pub.frames, subscription.queued), ([], 0))

    def test_cut_off(self) -> None:
        """
        Frames that the socket had accepted may be lost with the connection: the subscription
        ends, so that its subscriber resumes after its number.
        """
        subscription = self.open()
        self.attach(subscription)
        self.accept(an_indicator(1))
        self.subscriptions.detach(subscription.topic.encode())
        self.accept(an_indicator(2))
        self.assertFalse(self.subscriptions.heartbeat(subscription.topic, {}))
        self.assertFalse(self.subscriptions.attach(subscription.topic.encode()))
        self.assertEqual(self.check_chain(subscription, 0, 1), [an_indicator(1)])
        again = self.resume(1)
        self.attach(again)
        self.assertEqual(self.check_chain(again, 1, 2), [an_indicator(2)])

    def test_several_attachments(self) -> None:
        """
        It continues while one attachment is left.
        """
        subscription = self.open()
        self.attach(subscription)
        self.attach(subscription)
        self.subscriptions.detach(subscription.topic.encode())
        self.accept(an_indicator(1))
        self.assertEqual(self.check_chain(subscription, 0, 1), [an_indicator(1)])

    def test_envelopes(self) -> None:
        """
        Frames for this subscription alone are sent between the batches, without a number.
        """
        subscription = self.open()
        self.attach(subscription)
        self.accept(an_indicator(1))
        subscription.deliver([b"indicator " + an_indicator(7).raw])
        self.accept(an_indicator(2))
        self.assertEqual(
            self.got(subscription),
            [
                Batch(0, 1, (an_indicator(1),), ()),
                an_indicator(7),
                Batch(1, 2, (an_indicator(2),), ()),
            ],
        )

    def test_not_asked(self) -> None:
        """
        It is not asked for a snapshot, for it answers none.
        """
        self.assertFalse(self.open().answers_snapshots)

    def test_snapshot_cancelled(self) -> None:
        """
        A snapshot ends with its subscription.
        """
        subscription = self.open()
        over: Deferred[None] = Deferred()
        subscription.take_snapshot(lambda send: over)
        self.subscriptions.close(subscription.topic)
        self.assertTrue(over.called)

    @given(
        st.lists(
            st.sampled_from(["accept", "sighting", "turn", "full", "room", "one", "read"]),
            max_size=40,
        )
    )
    def test_any_order(self, events: list[str]) -> None:
        """
        However slow the subscriber and the disk are, everything arrives once and in order.
        """
        self.setUp()
        self.journal.holding_reads = True
        subscription = self.open()
        self.attach(subscription)
        expected: list[Item] = []
        for number, event in enumerate(events):
            if event == "accept":
                expected.append(an_indicator(number))
                self.accept(expected[-1])
            elif event == "sighting":
                self.accept(a_sighting(number))
            elif event == "turn":
                self.turn()
            elif event == "read":
                self.journal.release()
            else:
                self.pub.room = {"full": 0, "one": 1, "room": 1000}[event]
        self.pub.room = 1000
        self.journal.holding_reads = False
        self.journal.release()
        self.turn()
        batches = self.got(subscription)
        self.assertEqual([item for batch in batches for item in batch.items], expected)
        for before, after in itertools.pairwise(batches):
            self.assertEqual(before.until, after.after)
        self.tearDown()
