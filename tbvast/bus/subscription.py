"""
Subscriptions that follow the journal, and read it when they are behind.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.fanout import CommittedBatch, Form, Refuse, Rendered, render_in_turns
from tbvast.bus.journal.values import JournalEntry
from tbvast.errors import SHOWN
from tbvast.interfaces import IJournal, IPublisher, SendPage
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.topics import Dialect, Stream, streams_of
from tbvast.service.rate_limit import RateLimit
from tbvast.settings.schema import PluginSettings
from tbvast.storage.set_aside import Stage
from tbvast.values import Position

PUMP_FRAMES = 500
"""
The most frames that are sent to one subscriber at once.
"""

PAGE_BYTES = 256 * 1024
PAGE_ITEMS = {Dialect.STIX2: 2000, Dialect.VAST: 250}
"""
The most bytes and items of one page of the journal, for one subscriber that is behind. The
vast dialect has smaller pages, because each of its items has to be decoded.
"""

PROBE_BYTES = 4096
"""
The same, for a subscriber that has lost its queue, and has not read anything since.
"""

REST = 2.0
"""
Seconds after which a subscription that has lost its queue reads the journal again.
"""

NO_REPORT = msgspec.Raw(b"{}")
"""
The report of a subscriber that has sent none.
"""

SHOWN_TOPICS = 300
"""
The most characters of a subscription's topics that the status and the log show.
"""

STALLED = 0.25
"""
Seconds after which a subscriber of which ZeroMQ accepts nothing is tried less often. A slower one
has more in ZeroMQ's queue than it reads in that time.
"""

CLIENT_LINES_PER_MINUTE, LINES_PER_MINUTE = 200, 1000
"""
The most log lines a minute about what the subscribers of one client, and all, do.
"""

LOSSES_PER_MINUTE = 60
"""
The most log lines a minute about subscribers that read too slowly.
"""


@attrs.define(eq=False)
class QueueBudget:
    """
    The memory for all frames of a bus that wait for subscribers.

    A frame that waits for several subscribers counts once for each.

    @param limit: The bytes that may wait.
    @param exceeded: Called when more wait. It has to make room soon.
    @ivar used: The bytes that wait.
    """

    _limit: int
    _exceeded: Callable[[], None]
    used: int = attrs.field(init=False, default=0)

    @property
    def excess(self) -> int:
        """
        The bytes by which a quarter of the memory would be free again.
        """
        return self.used - self._limit * 3 // 4

    def change(self, size: int) -> None:
        """
        @param size: The bytes that wait in addition; negative if they no longer wait.
        """
        self.used += size
        if self.used > self._limit:
            self._exceeded()


@attrs.frozen
class BusParts:
    """
    The parts of a bus that all its subscriptions use.

    @ivar settings: The limits of a subscription, and the addresses that it is told.
    @ivar publisher: Sends frames.
    @ivar refuse: Sets items aside that cannot be rendered.
    @ivar retry: Has L{Subscription.pump} called soon.
    @ivar begin_snapshot: Begins the snapshot that a subscription asks for.
    @ivar close: Closes the subscription with a topic, for a reason as the log words it.
    @ivar losses: Limits the log lines about subscribers that read too slowly.
    @ivar budget: The memory for frames that wait.
    """

    clock: IReactorTime
    settings: PluginSettings
    publisher: IPublisher
    journal: IJournal
    refuse: Refuse
    retry: Callable[[Subscription], None]
    begin_snapshot: Callable[[Subscription], None]
    close: Callable[[str, str], object]
    losses: RateLimit
    budget: QueueBudget


@attrs.define(eq=False)
class FrameQueue:
    """
    Waiting frames without the subscription's own topic, so that subscriptions share them, each
    with the first number of the journal that it stands for.

    @param budget: Counts their bytes.
    @ivar size: Their total size, in bytes.
    """

    _budget: QueueBudget
    _frames: deque[bytes] = attrs.field(init=False, factory=deque)
    _numbers: deque[int] = attrs.field(init=False, factory=deque)
    size: int = attrs.field(init=False, default=0)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def first(self) -> int:
        """
        The number of the first frame.
        """
        return self._numbers[0]

    def extend(self, frames: Sequence[bytes], numbers: Sequence[int] = ()) -> None:
        """
        @param numbers: The numbers of the frames; none if they do not come from the journal.
        """
        self._frames.extend(frames)
        self._numbers.extend(numbers or [0] * len(frames))
        self._change(sum(map(len, frames)))

    def head(self, count: int) -> list[bytes]:
        """
        @return: The oldest frames, at most so many.
        """
        return list(itertools.islice(self._frames, count))

    def drop(self, count: int) -> None:
        """
        Drop the oldest frames.
        """
        if count == len(self._frames):
            self.clear()
            return
        size = 0
        for _ in range(count):
            size += len(self._frames.popleft())
            self._numbers.popleft()
        self._change(-size)

    def clear(self) -> None:
        """
        Drop all frames.
        """
        self._frames.clear()
        self._numbers.clear()
        self._change(-self.size)

    def _change(self, size: int) -> None:
        self.size += size
        self._budget.change(size)


class Subscription:
    """
    A subscription to the streams of a bus: the part that does not depend on its protocol.

    Nothing is sent before the subscriber's ZeroMQ subscription has arrived. A snapshot is
    sent before everything that is delivered after the subscription was made.

    While the subscriber keeps up, it gets each batch at its commit. Otherwise the
    subscription reads the journal, page by page, until nothing is missing.

    @ivar topic: The topic that only this subscriber knows.
    @ivar request: The subscriber's request.
    @ivar name: The subscriber's name for itself, for the log; its beginning if it is long.
    @ivar user: The user who made the request, as the access control knows it.
    @ivar streams: The streams that it gets.
    @ivar detached: When the last ZeroMQ subscription ended, in seconds; C{None} while there is one.
    @ivar closed: Whether it has ended.
    @ivar beginning: The position after which the subscriber gets everything; C{None} if it knows
        none.
    @ivar snapshot_days: The age of the snapshot that it begins with, in days; C{0} for no snapshot,
        C{None} for everything that is in force.
    @ivar owed: Whether part of a snapshot is to be sent again after a restart.
    @ivar form: The form in which it gets a batch at its commit; C{None} if it gets none, or another
        one.
    @ivar answers_snapshots: Whether the subscriber may be able to answer a snapshot request.
    @ivar sent: The number of frames sent.
    @ivar dropped: The number of frames lost: the queue was full, or the journal has pruned
        them.
    @ivar report: The subscriber's last report about itself, as JSON.
    @ivar shown_topics: The topics that it asked for, if these are not too long to be shown.
    """

    _log = Logger()

    beginning: Position | None = None
    owed = False
    form: Form | None = None

    def __init__(
        self, parts: BusParts, request: Subscribe, user: str, topic: str, number: int
    ) -> None:
        """
        @param number: The number in the journal after which the subscriber gets everything.
        """
        self.topic = topic
        self.request = request
        self.user = user
        self.name = _shortened(request.name) or "somebody"
        self.shown_topics = shown_topics(request.topics)
        self.streams = streams_of(request.topics)
        self.answers_snapshots = request.dialect is Dialect.STIX2
        self.snapshot_days: int | None = min(request.snapshot, parts.settings.max_snapshot_days)
        self.detached: float | None = parts.clock.seconds()
        self.closed = False
        self.report = NO_REPORT
        self.sent = self.dropped = 0
        self._parts = parts
        self._since = self._heard = self._progressed = parts.clock.seconds()
        self._rests_until = 0.0
        self._beating = False
        self._prefix = topic.encode()
        self._listening: Counter[bytes] = Counter()
        self._sent_bytes = 0
        self._snapshot: FrameQueue | None = None
        self._snapshot_done: Deferred[None] = succeed(None)
        self._drained: Deferred[None] | None = None
        self._low_water = 0
        self._live = FrameQueue(parts.budget)
        self._queue = FrameQueue(parts.budget)
        self._queued_until = number
        self._keeps_up = self._missed = False
        self._reading: Deferred[Any] | None = None

    @property
    def saved(self) -> bytes | None:
        """
        The state to save, with which it continues after a restart of the bus; C{None} if its
        subscriber subscribes again.
        """
        return None

    @property
    def position(self) -> int:
        """
        The number up to which ZeroMQ has accepted everything.
        """
        return self._queue.first - 1 if self._queue else self._queued_until

    @property
    def queued(self) -> int:
        """
        The number of waiting frames.
        """
        return len(self._live) + len(self._snapshot or ()) + len(self._queue)

    @property
    def held(self) -> int:
        """
        The bytes that wait in memory for its subscriber.
        """
        return self._live.size + self._queue.size + (self._snapshot.size if self._snapshot else 0)

    @property
    def stalled(self) -> bool:
        """
        Whether nothing could be sent for some time.
        """
        return self._parts.clock.seconds() - self._progressed >= STALLED

    @property
    def behind(self) -> int:
        """
        The number of journal entries, at most, that are neither sent nor waiting.
        """
        return 0

    def describe(self) -> dict[str, object]:
        """
        Describe it for the status. Its own topic is left out: knowing that is enough to
        listen.
        """
        now = self._parts.clock.seconds()
        return {
            "name": self.request.name,
            "topics": self.shown_topics,
            "dialect": self.request.dialect,
            "attached": self.detached is None,
            "age": now - self._since,
            "silent": now - self._heard,
            "queued": self.queued,
            "queued_bytes": self.held,
            "behind": self.behind,
            "sent": self.sent,
            "dropped": self.dropped,
            "report": self.report,
        }

    def heartbeat(self, report: msgspec.Raw) -> None:
        """
        The subscriber is alive.

        @param report: Its report about itself, as JSON.
        """
        self._heard = self._parts.clock.seconds()
        self._beating = True
        self.report = report

    @property
    def overdue(self) -> str:
        """
        The reason to close it, as the log words it: its subscriber is silent, or away, for too
        long. Empty if there is none.
        """
        now, settings = self._parts.clock.seconds(), self._parts.settings
        if self._beating and now - self._heard >= settings.heartbeat_timeout:
            return "fell silent"
        if self.detached is not None and now - self.detached >= settings.detached_timeout:
            return "went away"
        return ""

    def attach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription arrived.

        @param topic: Its own topic, or one that begins with it.
        """
        self._listening[topic] += 1
        self.detached = None
        self._progressed = self._parts.clock.seconds()
        self._rests_until = 0.0
        # Waiting frames are sent once the socket knows its new subscriber.
        self._parts.retry(self)

    def detach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription ended.
        """
        self._listening -= Counter([topic])
        if not self._listening:
            self.detached = self._parts.clock.seconds()
            self._left()

    def _left(self) -> None:
        """
        The subscriber's last ZeroMQ subscription has ended.
        """

    def check_progress(self, age: float) -> bool:
        """
        Find out what the subscriber's system has acknowledged.

        @param age: Seconds after which a frame is in the kernel if that has room.
        @return: Whether it has everything, as far as can be known, or is away.
        """
        if self.closed or self.detached is not None:
            return True
        held = self._parts.publisher.unacknowledged(self._listening)
        self._acknowledge(held, age)
        return not (held or self.queued or self.behind)

    def _acknowledge(self, held: int | None, age: float) -> None:
        """
        Find out which frames have certainly left ZeroMQ's queue.

        @param held: The bytes that the kernel holds for the subscriber; C{None} if unknown.
        @param age: Seconds after which a frame is in the kernel if that has room.
        """

    def _send(self, payloads: Sequence[bytes]) -> int:
        # The topic is put before a frame only when ZeroMQ is about to accept it.
        taken = self._parts.publisher.send_frames(map(self._prefix.__add__, payloads))
        if taken:
            self.sent += taken
            accepted = payloads if taken == len(payloads) else payloads[:taken]
            self._sent_bytes += sum(map(len, accepted)) + taken * len(self._prefix)
            self._progressed = self._parts.clock.seconds()
            self._rests_until = 0.0
        return taken

    def _send_from(self, queue: FrameQueue) -> None:
        if queue:
            queue.drop(self._send(queue.head(PUMP_FRAMES)))

    def pump(self) -> None:
        """
        Send a bounded number of waiting frames; if none wait, read the journal.
        """
        if self.detached is not None or self.closed:
            return
        if self._snapshot is not None:
            self._send_from(self._snapshot)
            if len(self._snapshot) <= self._low_water and self._drained is not None:
                drained, self._drained = self._drained, None
                drained.callback(None)
        else:
            self._send_from(self._live)
        if self._live if self._snapshot is None else self._snapshot:
            self._parts.retry(self)
        elif self._snapshot is None:
            self._pump_entries()

    def _pump_entries(self) -> None:
        self._send_from(self._queue)
        if self._queue:
            self._parts.retry(self)
        elif not (self._keeps_up or self._reading or self.closed):
            if self._rests:
                self._parts.retry(self)
            else:
                self._read()

    @property
    def _rests(self) -> bool:
        """
        Whether it has lost its queue a short while ago.
        """
        return self._parts.clock.seconds() < self._rests_until

    def give_up_queue(self) -> None:
        """
        Drop the waiting frames, because memory is short. Those of the journal are read from it
        later; a snapshot begins again. Others are lost, and counted.
        """
        self.dropped += len(self._live)
        self._live.clear()
        self._queued_until = self.position
        self._drop_queue()
        self._keeps_up = False
        self._missed = True
        self._rests_until = self._parts.clock.seconds() + REST
        self._parts.retry(self)

    def deliver(self, payloads: Iterable[bytes]) -> None:
        """
        Send frames for this subscriber alone, now or as soon as possible.

        @param payloads: The frames without the topic.
        """
        frames = list(payloads)
        ready = self.detached is None and self._snapshot is None
        if frames and ready and not self._live:
            del frames[: self._send(frames)]
        if not frames:
            return
        self._live.extend(frames)
        self._drop_oldest()
        if ready:
            self._parts.retry(self)

    def _drop_oldest(self) -> None:
        before, settings = self.dropped, self._parts.settings
        while len(self._live) > settings.queue_messages or self._live.size > settings.queue_bytes:
            self._live.drop(1)
            self.dropped += 1
        if self.dropped != before:
            self._parts.losses.warn(
                self._log,
                "{name} reads too slowly and has lost {dropped} messages so far.",
                name=self.name,
                dropped=self.dropped,
            )

    def take_snapshot(self, deliver: Callable[[SendPage], Awaitable[object]]) -> None:
        """
        Send a snapshot first; everything that is delivered meanwhile waits.

        @param deliver: Sends the pages. Done when the snapshot is complete; cancelled if the
            subscription ends first.
        """
        self._abandon_snapshot()
        self._snapshot = FrameQueue(self._parts.budget)
        self._snapshot_done = Deferred.fromCoroutine(self._send_snapshot(deliver, self._snapshot))

    def _abandon_snapshot(self) -> None:
        if self._snapshot is not None:
            self._snapshot.clear()
        self._snapshot = self._drained = None
        self._snapshot_done.cancel()

    async def _send_snapshot(
        self, deliver: Callable[[SendPage], Awaitable[object]], frames: FrameQueue
    ) -> None:
        try:
            await deliver(self._deliver_page)
        except Exception:
            if frames is self._snapshot:
                self._log.failure("A snapshot failed before its end")
        if frames is self._snapshot:  # no other one has begun
            await self._deliver_page(())
            self._snapshot_sent()
            self._snapshot = None
            self.pump()

    def _deliver_page(self, payloads: Iterable[bytes]) -> Deferred[None]:
        """
        @return: Fires when half of the page has been sent, so that the next one is read
            meanwhile; or everything, if there is nothing in the page.
        """
        assert self._snapshot is not None
        page = list(payloads)
        self._snapshot.extend(page)
        self._low_water = len(page) // 2
        drained: Deferred[None] = Deferred()
        self._drained = drained
        self.pump()
        return drained

    def _snapshot_sent(self) -> None:
        """
        ZeroMQ has accepted the whole snapshot.
        """

    async def render_page(self, documents: Sequence[bytes]) -> list[bytes]:
        """
        Render some indicators of a snapshot. Those that cannot be rendered are set aside.

        @return: Frames without the topic.
        """
        entries = [JournalEntry(0, Stream.INTEL, raw) for raw in documents]
        dialect, refuse = self.request.dialect, self._parts.refuse
        clock, stage = self._parts.clock, Stage.SNAPSHOT
        _, frames = await render_in_turns(clock, dialect, entries, stage, refuse)
        return frames

    def render_end(self, full: bool, failed: Sequence[str]) -> Iterable[bytes]:
        """
        Render the end of a snapshot.

        @param full: Whether the snapshot holds everything that is in force.
        @param failed: The sources that could not answer.
        @return: Frames without the topic.
        """
        return ()

    def committed(self, batch: CommittedBatch) -> None:
        """
        Deliver the items of a batch that belong to its streams.
        """
        if not self._keeps_up:
            self._missed = True
        elif batch.first <= self._queued_until < batch.until:
            self._fall_behind()  # some of it was read from the journal already
        elif batch.first > self._queued_until:
            try:
                self._append(batch)
            except Exception:
                self._log.failure("Cannot render a batch; retrying entry by entry")
                self._fall_behind()

    def _append(self, batch: CommittedBatch) -> None:
        """
        Send a batch, as far as ZeroMQ accepts it.
        """
        raise NotImplementedError

    async def _render(self, entries: list[JournalEntry], after: int) -> Rendered:
        """
        Render a page of the journal.

        @param after: The number before it.
        """
        raise NotImplementedError

    def _fall_behind(self) -> None:
        self._keeps_up = False
        self._missed = True  # the journal is read once the queue is empty
        self._parts.retry(self)

    def _read(self) -> None:
        self._missed = False
        settings, after, journal = self._parts.settings, self._queued_until, self._parts.journal
        reading: Deferred[Any] = journal.entries(
            after,
            self.streams,
            min(PAGE_ITEMS[self.request.dialect], settings.queue_messages),
            min(PROBE_BYTES if self._rests_until else PAGE_BYTES, settings.queue_bytes),
        )
        self._reading = reading
        reading.addCallback(lambda entries: Deferred.fromCoroutine(self._page(entries, after)))
        reading.addCallback(self._cb_read, after, journal.head).addErrback(self._eb_read)

    async def _page(
        self, entries: list[JournalEntry], after: int
    ) -> tuple[list[JournalEntry], Rendered]:
        return entries, await self._render(entries, after)

    def _cb_read(self, page: tuple[list[JournalEntry], Rendered], after: int, head: int) -> None:
        entries, (numbers, frames) = page
        self._reading = None
        if self._parts.journal.floor > after:
            self._pruned(after)
        if entries:
            self._queue.extend(frames, numbers)
            self._queued_until = entries[-1].number
        elif not self._missed:
            self._keeps_up = True
            self._caught_up(head)
            return
        self.pump()

    def _eb_read(self, failure: Failure) -> None:
        if not (failure.check(CancelledError) or self.closed):
            self._reading = None
            self._unreadable(failure)

    def _pruned(self, after: int) -> None:
        """
        The journal has pruned entries that came next.

        @param after: The number before them.
        """
        raise NotImplementedError

    def _unreadable(self, failure: Failure) -> None:
        """
        The journal cannot be read.
        """
        raise NotImplementedError

    def _caught_up(self, head: int) -> None:
        """
        No entry of the streams is missing, up to a number in the journal.
        """

    def _drop_queue(self) -> None:
        """
        Drop the frames that come from the journal, and cancel a read in progress.
        """
        self._queue.clear()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()

    def close(self) -> None:
        """
        End the subscription, and drop its waiting frames.
        """
        self.closed = True
        self.detached = self._since
        self._keeps_up = False
        self._abandon_snapshot()
        self._live.clear()
        self._drop_queue()


def _shortened(name: str) -> str:
    return name if len(name) <= SHOWN else f"{name[:SHOWN]}…"


def shown_topics(topics: Sequence[str]) -> tuple[str, ...]:
    """
    @return: The first topics, and the number of the others if they are too long together.
    """
    lengths = itertools.accumulate(map(len, topics))
    count = sum(length <= SHOWN_TOPICS for length in lengths)
    left_out = len(topics) - count
    return (*topics[:count], f"… and {left_out} more") if left_out else tuple(topics)
