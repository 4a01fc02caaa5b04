"""
Tests for L{tbvast.bus.queued_subscription}, among the subscriptions of a bus.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tbvast.bus.checkpoints import CHECKPOINTS, ENCODER_BYTES, HELD_BYTES, HELD_MESSAGES
from tbvast.bus.queued_subscription import QueuedSubscription
from tbvast.bus.subscription_saver import FLUSH_AGE, PROGRESS_AGE, PROGRESS_INTERVAL
from tbvast.bus.subscriptions import RETRY_INTERVAL
from tbvast.errors import JournalFailed
from tbvast.interfaces import IPublisher
from tbvast.protocol.frames import Item
from tests.doubles import MemoryJournal, a_sighting, an_indicator
from tests.doubles_bus import MemoryBus, a_batch, a_request

BOTH = ("stix2/indicator", "stix2/sighting")


@implementer(IPublisher)
class Wire:
    """
    A pub endpoint for one subscriber: ZeroMQ's queue, the kernel, and a subscriber that
    reads or does not.

    @ivar received: The frames that arrived.
    @ivar reading: Whether the subscriber reads.
    @ivar known: Whether the kernel can be inspected.
    @ivar cut_off: Whether the process has ended.
    @ivar late: How many of the last frames the subscriber's system has not acknowledged yet.
    """

    def __init__(self, queue: int = 1_000_000, kernel: int = 1_000_000) -> None:
        """
        @param queue: The most frames in ZeroMQ's queue.
        @param kernel: The most frames in the kernel.
        """
        self.received: list[bytes] = []
        self.reading = True
        self.known = True
        self.late = 0
        self.cut_off = False
        self._sizes = queue, kernel
        self._queue: list[bytes] = []
        self._kernel: list[bytes] = []

    def send_frames(self, frames: Iterable[bytes]) -> int:
        if self.cut_off:
            return 0
        taken = list(itertools.islice(frames, max(0, self._sizes[0] - len(self._queue))))
        self._queue.extend(taken)
        return len(taken)

    def unacknowledged(self, topics: Iterable[bytes]) -> int | None:
        if not self.known:
            return None
        held = sum(map(len, self._kernel))
        # A real kernel is never full with less than this.
        return held if len(self._kernel) < self._sizes[1] else held + ENCODER_BYTES + 1

    def flow(self) -> None:
        """
        Let some time pass, in which frames move on.
        """
        while self._queue or self._kernel:
            if self.reading:
                read = max(0, len(self._kernel) + len(self._queue) - self.late)
                self.received += self._kernel[:read]
                del self._kernel[:read]
            room = self._sizes[1] - len(self._kernel)
            if not room or not self._queue:
                break
            self._kernel += self._queue[:room]
            del self._queue[:room]

    def kill(self) -> None:
        """
        The process ends; the kernel still has the frames that it accepted.
        """
        self._queue.clear()
        self.received += self._kernel
        self._kernel.clear()

    def cut(self) -> None:
        """
        The connection ends.
        """
        self._queue.clear()
        self._kernel.clear()


class QueuedTestCase(SynchronousTestCase):
    """
    One bus, with a journal that outlives it, and the wire to one subscriber.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = MemoryJournal(self.clock, "bus")
        self.wire = Wire()
        self.limits: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """
        Start a bus with the saved subscriptions.
        """
        self.bus = MemoryBus(
            self.clock, self.journal, self.wire, **{"detached_timeout": 1e9, **self.limits}
        )
        self.subscriptions = self.bus.subscriptions
        self.snapshots = self.bus.snapshots
        self.bus.start()

    def tearDown(self) -> None:
        self.stop()

    def stop(self) -> None:
        """
        Stop the bus in order.
        """
        self.successResultOf(self.bus.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def kill(self) -> None:
        """
        End the bus without giving it the time to remember anything, and start it again.
        """
        self.wire.kill()
        self.wire.cut_off = True
        saved = dict(self.journal.saved)
        self.bus.stop()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.wire.cut_off = False
        self.journal.saved = saved
        self.start()

    def open(self, *topics: str, attached: bool = True, **changes: Any) -> QueuedSubscription:
        subscription = self.bus.open(a_request(*(topics or BOTH), **changes))
        assert isinstance(subscription, QueuedSubscription)
        if attached:
            self.attach()
        return subscription

    @property
    def only(self) -> QueuedSubscription:
        (found,) = self.subscriptions.everybody()
        assert isinstance(found, QueuedSubscription)
        return found

    def attach(self) -> None:
        self.subscriptions.attach(self.only.topic.encode())
        self.turn()

    def detach(self) -> None:
        self.wire.cut()
        self.subscriptions.detach(self.only.topic.encode())

    def turn(self, count: int = 3) -> None:
        self.clock.pump([RETRY_INTERVAL] * count)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)
            self.wire.flow()

    def commit(self, *items: Item) -> None:
        """
        Commit and deliver items as one batch.
        """
        outcomes = self.successResultOf(self.journal.append(items))
        self.bus.deliver(a_batch([(o.number, o.item) for o in outcomes]))

    def commit_numbered(self, *numbers: int) -> None:
        self.commit(*(an_indicator(number) for number in numbers))

    def ids(self) -> list[int]:
        """
        The numbers of the documents that arrived.
        """
        self.turn(20)
        self.wire.flow()
        self.turn(20)
        self.wire.flow()
        received = [json.loads(frame.partition(b" ")[2]) for frame in self.wire.received]
        return [int(document["id"][-12:], 16) for document in received if "id" in document]


class RestartTests(QueuedTestCase):
    """
    A subscription continues after a restart.
    """

    def test_committed_while_away(self) -> None:
        """
        Items committed while the bus or the subscriber was away arrive.
        """
        self.open()
        self.commit_numbered(1, 2)
        self.pass_time(3)
        self.kill()
        self.commit_numbered(3)
        self.attach()
        self.commit_numbered(4)
        self.assertEqual(self.ids(), [1, 2, 3, 4])

    def test_in_the_queue(self) -> None:
        """
        Frames that ZeroMQ had not written when the process was killed are sent again.
        """
        self.open()
        self.commit_numbered(1)
        self.pass_time(3)
        self.commit_numbered(2, 3)  # and the wire does not flow
        self.kill()
        self.attach()
        self.assertEqual(self.ids(), [1, 2, 3])

    def test_not_read(self) -> None:
        """
        So is all of a subscriber that does not read, however long it does not.
        """
        self.wire = Wire(queue=3, kernel=2)
        self.restart()
        self.open()
        self.wire.reading = False
        self.commit_numbered(*range(1, 10))
        self.pass_time(60)
        self.wire.reading = True
        self.kill()
        self.attach()
        self.pass_time(5)
        # Two were in the kernel, which still delivers them.
        self.assertEqual(self.ids(), [1, 2, *range(1, 10)])

    def restart(self) -> None:
        self.stop()
        self.start()

    def test_unknown(self) -> None:
        """
        If the kernel cannot be inspected, as many frames as it and ZeroMQ can hold are sent
        again.
        """
        self.wire.known = False
        subscription = self.open()
        size = HELD_BYTES // HELD_MESSAGES + 1
        for number in range(HELD_MESSAGES + 20):
            self.commit(an_indicator(number, name="x" * size))
            self.pass_time(PROGRESS_INTERVAL)
        self.assertGreater(subscription.acknowledged_until, 0)
        self.assertLessEqual(subscription.acknowledged_until, 20)

    def test_many_checkpoints(self) -> None:
        """
        Unacknowledged progress is stored as a bounded number of checkpoints.
        """
        self.wire.known = False
        subscription = self.open()
        for number in range(100):
            self.commit_numbered(number)
            self.pass_time(PROGRESS_INTERVAL)
        self.assertLessEqual(len(subscription._checkpoints), CHECKPOINTS)
        self.wire.known = True
        self.pass_time(3)
        self.assertEqual(
            (subscription.acknowledged_until, len(subscription._checkpoints)), (100, 0)
        )

    def test_busy(self) -> None:
        """
        Of a subscriber that is always being sent something, nothing old is sent again.
        """
        self.open()
        for number in range(40):
            self.commit_numbered(number)
            self.pass_time(0.25)
        self.kill()
        self.wire.late = 0
        self.attach()
        again = self.ids()[40:]
        self.assertEqual(again, list(range(40 - len(again), 40)))
        self.assertLessEqual(len(again), (2 * PROGRESS_INTERVAL + PROGRESS_AGE) / 0.25 + 1)

    def test_never_all(self) -> None:
        """
        The same holds if the subscriber's system acknowledges late, so that the kernel holds
        data at every check.
        """
        self.wire.late = 2
        self.test_busy()

    def test_full(self) -> None:
        """
        A kernel without room proves nothing: ZeroMQ's queue is sent again.
        """
        self.wire = Wire(queue=500, kernel=2)
        self.restart()
        self.open()
        self.wire.reading = False
        for number in range(1, 5):
            self.commit(an_indicator(number, name="x" * ENCODER_BYTES))
            self.pass_time(1)
        self.assertEqual(self.only.acknowledged_until, 0)

    def test_in_order(self) -> None:
        """
        When the bus is stopped in order, and the subscriber reads, nothing is sent twice.
        """
        self.open()
        self.commit_numbered(1, 2, 3)
        flushed = Deferred.fromCoroutine(self.bus.saver.flush(5.0))
        for _ in range(20):
            self.wire.flow()
            self.clock.advance(FLUSH_AGE / 4)
        self.successResultOf(flushed)
        self.restart()
        self.commit_numbered(4)
        self.attach()
        self.assertEqual(self.ids(), [1, 2, 3, 4])

    def test_in_order_while_busy(self) -> None:
        """
        Nor is anything if the machine is so busy that there are few looks.
        """
        self.open()
        self.commit_numbered(1, 2, 3)
        self.wire.flow()
        flushed = Deferred.fromCoroutine(self.bus.saver.flush(5.0))
        self.clock.advance(4 * FLUSH_AGE)
        self.successResultOf(flushed)
        self.restart()
        self.commit_numbered(4)
        self.attach()
        self.assertEqual(self.ids(), [1, 2, 3, 4])

    def test_flush_limit(self) -> None:
        """
        A subscriber that does not read is not waited for any longer.
        """
        self.wire.reading = False
        self.open()
        self.commit_numbered(1)
        flushed = Deferred.fromCoroutine(self.bus.saver.flush(1.0))
        for _ in range(9):
            self.pass_time(0.25)
            self.clock.pump([0.02] * 5)
        self.successResultOf(flushed)

    def test_other_stream(self) -> None:
        """
        Entries of other streams advance its number, too.
        """
        subscription = self.open("stix2/sighting")
        self.commit_numbered(1, 2, 3)
        self.pass_time(3)
        self.assertEqual(subscription.acknowledged_until, 3)
        self.assertIn(b'"number":3', self.journal.saved[subscription.topic])

    def test_dialects(self) -> None:
        """
        Each dialect is rendered from the journal as it is when it is committed.
        """
        for topics in (BOTH, ("threatbus/intel",), ("threatbus/sighting",)):
            self.wire.received.clear()
            subscription = self.open(*topics)
            self.pass_time(2)
            number = len(topics[-1])
            self.commit(an_indicator(number), a_sighting(number))
            self.turn()
            self.wire.flow()
            live, self.wire.received = self.wire.received, []
            self.assertNotEqual(live, [])
            self.kill()  # before anything is acknowledged
            self.attach()
            self.turn()
            self.wire.flow()
            self.assertEqual(self.wire.received, live)
            self.subscriptions.close(subscription.topic)
            self.pass_time(3)

    def test_saved_by_0_1_0(self) -> None:
        """
        A subscription saved by an earlier version begins with the next entry.
        """
        self.commit_numbered(1)
        self.stop()
        saved = {"request": a_request("stix2/"), "user": ""}
        self.journal.saved["a" * 32] = msgspec.json.encode(saved)
        self.start()
        self.attach()
        self.commit_numbered(2)
        self.assertEqual(self.ids(), [2])

    def test_journal_made_anew(self) -> None:
        """
        A number beyond the end of the journal is ignored: the next entry arrives.
        """
        self.open()
        self.commit_numbered(1, 2, 3)
        self.pass_time(3)
        self.journal, saved = MemoryJournal(self.clock), self.journal.saved
        self.journal.saved = saved
        self.kill()
        self.attach()
        self.commit_numbered(4)
        self.assertEqual(self.ids(), [1, 2, 3, 4])

    def test_saving_fails(self) -> None:
        """
        A failed save is retried, and logged once.
        """
        subscription = self.open()
        self.pass_time(3)
        self.journal.failing = True
        with capturedLogs() as events:
            self.journal.failing = False
            self.commit_numbered(1)
            self.journal.failing = True
            self.pass_time(5)
        self.assertEqual([e["reason"] for e in events if "reason" in e], ["the disk refuses"])
        self.journal.failing = False
        self.pass_time(3)
        self.assertIn(b'"number":1', self.journal.saved[subscription.topic])

    def test_read_in_part(self) -> None:
        """
        A batch that was read from the journal before its delivery, wholly or in part, is not
        sent twice.
        """
        for number, topics in enumerate((BOTH, ("stix2/indicator",), ("threatbus/intel",))):
            self.wire.received.clear()
            subscription = self.open(*topics, attached=False)
            items: list[Item] = [
                an_indicator(number),
                a_sighting(number),
                an_indicator(number + 50),
            ]
            outcomes = self.successResultOf(self.journal.append(items[:2]))
            self.attach()
            rest = self.successResultOf(self.journal.append(items[2:]))
            self.bus.deliver(a_batch([(o.number, o.item) for o in [*outcomes, *rest]]))
            self.turn()
            self.wire.flow()
            self.assertEqual(len(self.wire.received), 3 if topics is BOTH else 2)
            self.subscriptions.close(subscription.topic)


class AwayTests(QueuedTestCase):
    """
    A subscriber that loses its connection and comes back.
    """

    def test_away(self) -> None:
        """
        Nothing is held for it meanwhile, and it gets all.
        """
        subscription = self.open()
        self.commit_numbered(1)
        self.pass_time(3)
        self.detach()
        self.commit_numbered(*range(2, 50))
        self.assertEqual((subscription.queued, subscription.behind), (0, 48))
        self.attach()
        self.assertEqual(self.ids(), list(range(1, 50)))
        self.assertEqual((subscription.dropped, subscription.behind), (0, 0))

    def test_on_its_way(self) -> None:
        """
        Frames in transit when the connection ended are sent again.
        """
        self.wire.reading = False
        self.open()
        self.commit_numbered(1, 2)
        self.pass_time(10)
        self.detach()
        self.wire.reading = True
        self.attach()
        self.assertEqual(self.ids(), [1, 2])

    def test_new_connection_before_the_old_one_ends(self) -> None:
        """
        A second connection gets the frames that were lost in the first one, which is dead.
        """
        subscription = self.open()
        self.wire.reading = False
        self.commit_numbered(1, 2)
        self.pass_time(10)
        self.wire.cut()
        self.wire.reading = True
        self.attach()
        self.subscriptions.detach(subscription.topic.encode())
        self.commit_numbered(3)
        self.assertEqual(self.ids(), [1, 2, 3])


class FullTests(QueuedTestCase):
    """
    A subscriber for which there is more than fits into memory.
    """

    def setUp(self) -> None:
        super().setUp()
        self.stop()
        self.limits = {"queue_messages": 3}
        self.wire = Wire(queue=2, kernel=2)
        self.start()

    def test_messages(self) -> None:
        """
        No more waits than may; all of it arrives, in order, and again at once when it
        keeps up.
        """
        subscription = self.open()
        self.wire.reading = False
        for start in range(0, 40, 4):
            self.commit_numbered(*range(start, start + 4))
            self.assertLessEqual(subscription.queued, 3)
        self.assertGreater(subscription.behind, 20)
        self.wire.reading = True
        self.pass_time(30)
        self.assertEqual(self.ids(), list(range(40)))
        before = len(self.wire.received)
        self.commit_numbered(99)
        self.wire.flow()
        self.assertEqual(len(self.wire.received), before + 1)
        self.assertEqual((subscription.dropped, subscription.queued), (0, 0))

    def test_bytes(self) -> None:
        """
        So it is with the limit of bytes; a frame that is longer by itself arrives, too.
        """
        self.stop()
        self.limits = {"queue_bytes": 2000}
        self.start()
        subscription = self.open()
        self.wire.reading = False
        self.commit(*(an_indicator(number, name="x" * 400) for number in range(20)))
        self.commit(an_indicator(20, name="x" * 4000), an_indicator(21))
        self.assertLessEqual(subscription._queue.size, 2000)
        self.wire.reading = True
        self.pass_time(30)
        self.assertEqual(self.ids(), list(range(22)))
        self.assertEqual(subscription._queue.size, 0)

    def test_vast(self) -> None:
        """
        An item of several frames is not parted from them for good.
        """
        subscription = self.open("threatbus/intel")
        self.wire.reading = False
        pattern = " OR ".join(f"ipv4-addr:value = '192.0.2.{n}'" for n in range(5))
        for number in range(10):
            self.commit(an_indicator(number, pattern=f"[{pattern}]"))
        self.wire.reading = True
        self.pass_time(30)
        got = [json.loads(frame.partition(b" ")[2]) for frame in self.wire.received]
        expected = [
            (f"threatbus__{an_indicator(number).id}", f"192.0.2.{n}")
            for number, n in itertools.product(range(10), range(5))
        ]
        self.assertEqual([(g["reference"], g["ioc"]) for g in got], expected)
        self.assertEqual(subscription.queued, 0)

    def test_pruned(self) -> None:
        """
        Pruned entries are lost, counted and logged; the remaining ones arrive.
        """
        subscription = self.open(name="slow")
        self.wire.reading = False
        self.commit_numbered(*range(1, 21))
        self.journal.prune(15, keep={4, 9})
        with capturedLogs() as events:
            self.wire.reading = True
            self.pass_time(10)
        got = self.ids()
        self.assertEqual(got, [n for n in range(1, 21) if n in got])
        self.assertTrue({4, 9, *range(16, 21)} <= set(got))
        self.assertEqual(subscription.dropped, 20 - len(got))
        (said,) = [e for e in events if "pruned" in (e["log_format"] or "")]
        self.assertEqual((said["count"], said["name"]), (20 - len(got), "slow"))

    def test_end(self) -> None:
        """
        The log line about the end of a subscription counts the entries that were not sent.
        """
        subscription = self.open()
        self.wire.reading = False
        self.commit_numbered(*range(20))
        self.pass_time(2)
        with capturedLogs() as events:
            self.subscriptions.close(subscription.topic)
        (said,) = [e for e in events if "reason" in e]
        self.assertEqual(said["sent"] + said["queued"] + said["behind"], 20)
        self.assertEqual(said["dropped"], 0)

    def test_journal_fails(self) -> None:
        """
        While the journal cannot be read, nothing is lost, and the failure is logged once.
        """
        subscription = self.open()
        self.wire.reading = False
        self.commit_numbered(*range(20))
        self.journal.failing = True
        self.wire.reading = True
        with capturedLogs() as events:
            self.pass_time(5)
        said = [e for e in events if "Cannot read the journal" in (e["log_format"] or "")]
        self.assertEqual(len(said), 1)
        self.journal.failing = False
        self.pass_time(10)
        self.assertEqual(self.ids(), list(range(20)))
        self.assertEqual(subscription.dropped, 0)

    def test_unreadable_entry(self) -> None:
        """
        An entry that cannot be rendered is lost alone, and set aside; the log names it if
        that fails.
        """
        subscription = self.open("threatbus/intel")
        self.wire.reading = False
        self.commit_numbered(*range(1, 21))
        self.journal.damage(12, b'{"type":"indicator"')
        self.wire.reading = True
        self.pass_time(20)
        self.assertEqual(len(self.wire.received), 19)
        self.assertEqual(subscription.dropped, 1)
        self.assertEqual([(a.number, a.stage) for a in self.journal.aside], [(12, "delivery")])

    def test_not_set_aside(self) -> None:
        """
        If an entry that cannot be rendered cannot be set aside either, the log names it.
        """
        self.open("threatbus/intel")
        self.wire.reading = False
        self.commit_numbered(*range(1, 21))
        self.journal.damage(12, b'{"type":"indicator"')
        self.journal.set_aside = lambda items: _failed()  # type: ignore[method-assign]
        self.wire.reading = True
        with capturedLogs() as events:
            self.pass_time(20)
        self.assertEqual(len(self.wire.received), 19)
        self.assertEqual(["number 12" in e["what"] for e in events if "what" in e], [True])

    def test_closed_while_reading(self) -> None:
        """
        A closed subscription cancels its read.
        """
        subscription = self.open()
        self.pass_time(1)
        self.wire.reading = False
        self.journal.holding_reads = True
        self.commit_numbered(*range(20))
        self.wire.reading = True
        self.pass_time(1)
        self.assertEqual(len(self.journal.held_reads), 1)
        self.subscriptions.close(subscription.topic)
        self.journal.release()
        before = len(self.wire.received)
        self.pass_time(1)
        self.assertEqual((len(self.wire.received), subscription.queued), (before, 0))


class SnapshotTests(QueuedTestCase):
    """
    A snapshot that was under way is not cut.
    """

    def begin(self, *, attached: bool = True) -> None:
        """
        Begin a snapshot of ten indicators, of which the subscriber reads few.
        """
        self.commit_numbered(*range(10))
        self.wire = Wire(queue=2, kernel=2)
        self.stop()
        self.start()
        self.wire.reading = False
        self.open(snapshot=1, attached=attached)
        self.snapshots.deliver(self.only, 1)
        self.pass_time(3)

    def test_killed(self) -> None:
        """
        If the bus was killed meanwhile, the snapshot is sent again, before later entries.
        """
        self.begin()
        self.commit_numbered(10)
        self.pass_time(2)
        self.wire.received.clear()
        self.kill()
        self.wire.received.clear()
        self.wire.reading = True
        self.commit_numbered(11)
        self.attach()
        self.pass_time(10)
        # The new snapshot holds the tenth as well.
        self.assertEqual(self.ids(), [*range(11), 10, 11])

    def test_cut(self) -> None:
        """
        So it does when the connection was cut.
        """
        self.begin()
        self.wire.reading = True
        self.detach()
        self.attach()
        self.pass_time(10)
        self.assertEqual(self.ids(), list(range(10)))

    def test_lost_end(self) -> None:
        """
        All of it was handed to ZeroMQ, but not written.
        """
        self.wire = Wire(queue=100, kernel=2)
        self.commit_numbered(*range(10))
        self.stop()
        self.start()
        self.wire.reading = False
        self.open(snapshot=1)
        self.snapshots.deliver(self.only, 1)
        self.pass_time(5)
        self.assertEqual(self.only.queued, 0)
        self.kill()
        self.wire.received.clear()
        self.wire.reading = True
        self.attach()
        self.pass_time(5)
        self.assertEqual(self.ids(), list(range(10)))

    def test_acknowledged(self) -> None:
        """
        One that arrived whole is not sent again.
        """
        self.begin(attached=False)
        self.wire.reading = True
        self.attach()
        self.pass_time(10)
        self.assertEqual(self.ids(), list(range(10)))
        self.kill()
        self.attach()
        self.pass_time(3)
        self.assertEqual(self.ids(), list(range(10)))


class AnyOrderTests(QueuedTestCase):
    """
    Whatever happens, in whatever order.
    """

    @given(
        st.lists(
            st.sampled_from(
                [
                    *("commit", "commit", "many", "time", "time", "turn"),
                    *("stop reading", "read", "kill", "restart", "cut", "hold", "release"),
                ]
            ),
            max_size=40,
        ),
        st.sampled_from(["stix2/indicator", "threatbus/intel"]),
        st.integers(1, 5),
    )
    @example(["commit", "stop reading", "time", "commit", "time", "cut"], "stix2/indicator", 1)
    def test_any(self, events: list[str], topic: str, room: int) -> None:
        """
        A subscriber gets every committed item, in order, at least once; items repeat only after
        a new connection.
        """
        self.tearDown()
        self.limits = {"queue_messages": 4}
        self.wire = Wire(room, room)
        self.clock = Clock()
        self.journal = MemoryJournal(self.clock, "bus")
        self.start()
        self.open(topic)
        self.pass_time(2)  # until it is remembered
        connected = 1
        count = 0
        for event in events:
            if event == "commit":
                self.commit_numbered(count)
                count += 1
            elif event == "many":
                self.commit_numbered(*range(count, count + 7))
                count += 7
            elif event == "time":
                self.pass_time(1.25)
            elif event == "turn":
                self.turn()
                self.wire.flow()
            elif event == "kill":
                self.kill()
                self.attach()
                connected += 1
            elif event == "restart":
                self.wire.kill()
                self.stop()
                self.start()
                self.attach()
                connected += 1
            elif event == "cut":
                self.detach()
                self.attach()
                connected += 1
            elif event == "hold":
                self.journal.holding_reads = True
            elif event == "release":
                self.journal.holding_reads = False
                self.journal.release()
            else:
                self.wire.reading = event == "read"
        self.wire.reading = True
        self.journal.holding_reads = False
        self.journal.release()
        self.pass_time(2.0 * count + 5)
        key = "id" if topic.startswith("stix2") else "reference"
        received = [json.loads(f.partition(b" ")[2])[key][-12:] for f in self.wire.received]
        most, back = -1, 0
        for before, number in itertools.pairwise([-1, *(int(id, 16) for id in received)]):
            self.assertLessEqual(number, most + 1)
            back += number != before + 1
            most = max(most, number)
        self.assertEqual(most, count - 1)
        self.assertLess(back, connected)
        self.assertEqual(self.only.dropped, 0)


class DefectTests(QueuedTestCase):
    """
    One subscription that meets a defect.
    """

    def test_others(self) -> None:
        """
        The others get their waiting frames, and make progress.
        """
        odd = self.open()
        self.attach()
        other = self.bus.open(a_request(*BOTH))
        assert isinstance(other, QueuedSubscription)

        def fails(*_: Any) -> Any:
            raise ZeroDivisionError

        self.patch(odd, "pump", fails)
        self.patch(odd, "check_progress", fails)
        for each in (odd, other):
            self.subscriptions.attach(each.topic.encode())
        self.turn()
        self.commit_numbered(1)
        self.pass_time(3)
        self.assertEqual(len([f for f in self.wire.received if other.topic.encode() in f]), 1)
        self.assertEqual(other.acknowledged_until, 1)
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class UnreadableTests(QueuedTestCase):
    """
    Subscriptions while the journal fails.
    """

    def test_pruned_cannot_be_counted(self) -> None:
        """
        A failure to count pruned entries is logged, and does no harm.
        """
        self.open(attached=False)
        self.commit_numbered(1, 2)
        self.journal.prune(1)
        self.journal.pruned = lambda after, until: _failed()  # type: ignore[method-assign]
        with capturedLogs() as events:
            self.attach()
        self.assertEqual(self.ids(), [2])
        self.assertIn("Cannot count pruned", " ".join(str(e["log_format"]) for e in events))


def _failed() -> Deferred[Any]:
    failed: Deferred[Any] = Deferred()
    failed.errback(JournalFailed("the disk refuses"))
    return failed
