"""
Subscriptions of the old dialects: a queue in memory, backed by the journal.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.client import log_not_set_aside
from tbvast.bus.journal.values import JournalEntry
from tbvast.bus.subscriptions import PUMP_FRAMES, Saved, Send, Subscription
from tbvast.interfaces import IJournal, IReplay
from tbvast.protocol.frames import render_document
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.topics import Dialect
from tbvast.storage.set_aside import SetAside, Stage, id_in, reason_of
from tbvast.zeromq.sockets import PEER_MESSAGES

HELD_MESSAGES = 2 * PEER_MESSAGES
"""
The most frames that ZeroMQ holds for one peer: its queue, and the batch that it is
writing, which has several thousand bytes.
"""

HELD_BYTES = 4 * 2**20
"""
The most bytes that the kernel holds for one peer, if the connection cannot be inspected:
the default limit of Linux for a send buffer.
"""

ENCODER_BYTES = 16 * 1024
"""
More than ZeroMQ passes to the kernel at once, unless a single frame is longer.
"""

CHECKPOINTS = 16
"""
The most checkpoints of one subscription that are not acknowledged yet.
"""

PAGE_BYTES = 256 * 1024
PAGE_ITEMS = {Dialect.STIX2: 2000, Dialect.VAST: 250}
"""
The most bytes and items of one page of the journal. The vast dialect has smaller pages,
because each of its items has to be decoded.
"""


class _NumberedFrames:
    """
    Waiting frames, each with the number of its entry, and their total size.
    """

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._numbers: deque[int] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def first(self) -> int:
        """
        The number of the first one's entry.
        """
        return self._numbers[0]

    def extend(self, numbers: Sequence[int], frames: Sequence[bytes], size: int) -> None:
        self._numbers.extend(numbers)
        self._frames.extend(frames)
        self.size += size

    def clear(self) -> None:
        self._frames.clear()
        self._numbers.clear()

    def send(self, send: Send, budget: int) -> int:
        """
        @return: The number of frames sent. The caller subtracts their size from L{size}.
        """
        frames = list(itertools.islice(self._frames, budget))
        sent = send(frames)
        if sent == len(self._frames):
            self.clear()
        else:
            for _ in range(sent):
                self._frames.popleft()
                self._numbers.popleft()
        return sent


class _Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """
    The progress of a subscription at some time.

    @ivar at: The time; seconds.
    @ivar number: The number up to which ZeroMQ had accepted everything.
    @ivar frames: The number of frames accepted since the subscription was made.
    @ivar size: Their size.
    """

    at: float
    number: int
    frames: int
    size: int


class QueuedSubscription(Subscription):
    """
    A subscription of an old dialect, whose subscriber cannot acknowledge anything.

    While the subscriber keeps up, it gets each batch at its commit; frames that ZeroMQ does
    not accept wait in memory. Entries that do not fit there, and those committed while
    nobody is attached, are read from the journal once there is room. The subscriber loses
    only the entries that the journal has pruned meanwhile.

    Frames may still be in ZeroMQ's queue, or the kernel's, when the process or the
    connection ends. The subscription therefore remembers the number up to which the
    subscriber's system certainly has everything, resumes after it, and sends the rest
    again.

    @ivar acknowledged_until: That number.
    @ivar owed: Whether part of its snapshot is still to be sent.
    """

    _log = Logger()

    def __init__(
        self,
        request: Subscribe,
        *args: Any,
        journal: IJournal,
        replay: IReplay,
        again: Callable[[QueuedSubscription], None],
        saved: Saved | None = None,
    ) -> None:
        """
        @param args: As for L{Subscription}.
        @param replay: The same journal.
        @param again: Called if the requested snapshot has to start again.
        @param saved: The saved state of the subscription, if it existed before.
        """
        super().__init__(request, *args)
        number = None if saved is None else saved.number
        self.acknowledged_until = journal.head if number is None else min(number, journal.head)
        self.owed = saved is not None and saved.owed
        self._journal = journal
        self._replay = replay
        self._again = again
        self._queue = _NumberedFrames()
        self._queued_until = self.acknowledged_until
        self._keeps_up = False
        self._missed = False
        self._reading: Deferred[Any] | None = None
        self._pruned_until = 0
        self._given = 0
        self._given_size = 0
        self._hand = self._send
        self._send = self._send_counted
        self._checkpoints: list[_Checkpoint] = []
        self._snapshot_end: int | None = None
        self._snapshot_begun = False
        self._snapshot_due = False
        self._unreadable = False

    def _send_counted(self, frames: Sequence[bytes]) -> int:
        taken = self._hand(frames)
        self._given += taken
        self._given_size += sum(map(len, frames if taken == len(frames) else frames[:taken]))
        return taken

    @property
    def position(self) -> int:
        """
        The number up to which ZeroMQ has accepted everything.
        """
        return self._queue.first - 1 if self._queue else self._queued_until

    @property
    def queued(self) -> int:
        return super().queued + len(self._queue)

    @property
    def behind(self) -> int:
        return 0 if self._keeps_up else max(0, self._journal.head - self._queued_until)

    @property
    def saved(self) -> bytes:
        return msgspec.json.encode(
            Saved(self.request, self.user, self.acknowledged_until, self.owed)
        )

    def attach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription arrived. It may be from a new connection while an old one is
        dead, but not yet known to be. So everything unacknowledged is sent again.
        """
        super().attach(topic)
        self._rewind()
        # The socket knows its new subscriber only after this turn.
        self._snapshot_due = self._snapshot_begun

    def detach(self, topic: bytes, now: float) -> None:
        super().detach(topic, now)
        if self.detached is not None:
            self._rewind()

    def _rewind(self) -> None:
        self._queue = _NumberedFrames()
        self._checkpoints.clear()
        self._queued_until = self.acknowledged_until
        self._keeps_up = False
        self._missed = True
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()

    def committed(self, batch: CommittedBatch) -> None:
        if not self._keeps_up:
            self._missed = True
            return
        try:
            numbers, payloads = batch.numbered(self.request.dialect, self.streams)
        except Exception:
            self._log.failure("Cannot render a batch; retrying entry by entry")
            self._fall_behind()
            return
        if numbers and numbers[0] <= self._queued_until:  # some or all of it was read already
            start = bisect_right(numbers, self._queued_until)
            numbers, payloads = numbers[start:], payloads[start:]
        frames = [self._prefix + payload for payload in payloads]
        taken = 0
        if frames and self._snapshot is None and not self._live and not self._queue:
            taken = self._send(frames)
            self.sent += taken
        if taken < len(frames):
            self._enqueue(numbers[taken:], frames[taken:], batch.until)
            self._stuck(self)
        else:
            self._queued_until = max(self._queued_until, batch.until)

    def _enqueue(self, numbers: Sequence[int], frames: list[bytes], until: int) -> None:
        size = sum(map(len, frames))
        room = self._limits.queue_messages - len(self._queue)
        if len(frames) <= room and self._queue.size + size <= self._limits.queue_bytes:
            self._queue.extend(numbers, frames, size)
            self._queued_until = until
            return
        count = size = 0
        for entry, group in itertools.groupby(zip(numbers, frames, strict=True), lambda n: n[0]):
            more = [frame for _, frame in group]
            longer = size + sum(map(len, more))
            fits = (
                count + len(more) <= room and self._queue.size + longer <= self._limits.queue_bytes
            )
            if not fits and (count or self._queue):  # an empty queue takes one entry of any size
                self._queued_until = entry - 1
                break
            count, size = count + len(more), longer
            self._queued_until = entry
        self._queue.extend(numbers[:count], frames[:count], size)
        self._fall_behind()

    def _fall_behind(self) -> None:
        self._keeps_up = False
        self._missed = True
        self._stuck(self)

    def pump(self) -> None:
        """
        Send a bounded number of waiting frames; if none wait, read the journal.
        """
        if self.detached is not None or self.closed:
            return
        if self._snapshot_due:
            self._snapshot_due = False
            self._again(self)
        if self._snapshot:
            self._snapshot_begun = True
        super().pump()
        if self._snapshot is not None or self.closed or self._live:
            return
        if self._queue:
            before = self._given_size
            self.sent += self._queue.send(self._send, PUMP_FRAMES)
            self._queue.size -= self._given_size - before
            if self._queue:
                self._stuck(self)
                return
        if not self._keeps_up and self._reading is None:
            self._read()

    def _read(self) -> None:
        self._missed = False
        after = self._queued_until
        reading = self._replay.entries(
            after,
            self.streams,
            min(PAGE_ITEMS[self.request.dialect], self._limits.queue_messages),
            min(PAGE_BYTES, self._limits.queue_bytes),
        )
        self._reading = reading
        reading.addCallback(self._cb_read, after).addErrback(self._eb_read)

    def _cb_read(self, entries: list[JournalEntry], after: int) -> None:
        self._reading = None
        self._unreadable = False
        self._check_pruned(after)
        if entries:
            numbers, frames = self._render(entries)
            self._queue.extend(numbers, frames, sum(map(len, frames)))
            self._queued_until = entries[-1].number
        elif not self._missed:
            self._keeps_up = True
            return
        self._stuck(self)

    def _render(self, entries: Iterable[JournalEntry]) -> tuple[list[int], list[bytes]]:
        """
        Render entries; one that cannot be rendered is set aside, as by a L{CommittedBatch}.
        """
        numbers: list[int] = []
        frames: list[bytes] = []
        bad: list[SetAside] = []
        for entry in entries:
            try:
                payloads = render_document(self.request.dialect, entry.stream, entry.raw)
            except Exception as e:  # any error may be the item's fault
                stream, id_ = entry.stream.value.decode(), id_in(entry.raw)
                bad.append(
                    SetAside(Stage.DELIVERY, reason_of(e), entry.raw, stream, id_, entry.number)
                )
                continue
            for payload in payloads:
                numbers.append(entry.number)
                frames.append(self._prefix + payload)
        if bad:
            self.dropped += len(bad)
            self._journal.set_aside(bad).addErrback(log_not_set_aside, bad)
        return numbers, frames

    def _check_pruned(self, after: int) -> None:
        """
        Count the entries that the journal pruned before this subscription read them.
        """
        since, until = max(after, self._pruned_until), self._replay.floor
        if until <= since:
            return
        self._pruned_until = until
        self._replay.pruned(since, until).addCallbacks(self._cb_pruned, self._eb_pruned)

    def _cb_pruned(self, count: int) -> None:
        if count and not self.closed:
            self.dropped += count
            self._log.warn(
                "The journal has pruned {count} entries before {name} got them.",
                count=count,
                name=self.request.name or "somebody",
            )

    def _eb_pruned(self, failure: Failure) -> None:
        self._log.error("Cannot count pruned entries: {reason}", reason=failure.getErrorMessage())

    def _eb_read(self, failure: Failure) -> None:
        if failure.check(CancelledError) or self.closed:
            return
        self._reading = None
        self._missed = True
        if self._unreadable:  # logged already; the read is retried
            return
        self._unreadable = True
        self._log.error(
            "Cannot read the journal for {name}: {reason}",
            name=self.request.name or "somebody",
            reason=failure.getErrorMessage(),
        )

    def take_snapshot(
        self, deliver: Callable[[Callable[[Iterable[bytes]], Deferred[None]]], Deferred[Any]]
    ) -> None:
        self.owed = True
        self._snapshot_begun = False
        self._snapshot_end = None
        super().take_snapshot(deliver)

    def _snapshot_ended(self) -> None:
        self._snapshot_end = self._given

    def update_acknowledged(
        self, now: float, unacknowledged: int | None, age: float, until: int
    ) -> bool:
        if self._keeps_up and not self._queue:
            self._queued_until = max(self._queued_until, until)
        elif not self._keeps_up and self._reading is None and not self._queue:
            self._stuck(self)  # the journal could not be read
        found = self._count_acknowledged(now, unacknowledged, age)
        changed = False
        if found:
            reached = self._checkpoints[found - 1]
            del self._checkpoints[:found]
            changed = reached.number != self.acknowledged_until
            self.acknowledged_until = reached.number
            if self._snapshot_end is not None and reached.frames >= self._snapshot_end:
                self._snapshot_end = None
                self.owed = self._snapshot_begun = False
                changed = True
        self._add_checkpoint(now)
        return changed

    def _count_acknowledged(self, now: float, unacknowledged: int | None, age: float) -> int:
        """
        @return: How many of the checkpoints the subscriber's system has acknowledged.
        """
        held, written = HELD_BYTES, -1
        if unacknowledged is not None:
            held = unacknowledged + ENCODER_BYTES
            # The kernel has room, so ZeroMQ has written what it was given some time ago,
            # and the kernel holds the last of that.
            if unacknowledged <= ENCODER_BYTES:
                aged = [each.size for each in self._checkpoints if now - each.at >= age]
                written = max(aged, default=-1) - unacknowledged
        found = 0
        for count, each in enumerate(self._checkpoints, 1):
            behind, size = self._given - each.frames, self._given_size - each.size
            if each.size <= written or (behind >= HELD_MESSAGES and size >= held):
                found = count
        return found

    def _add_checkpoint(self, now: float) -> None:
        last = self._checkpoints[-1] if self._checkpoints else None
        number = self.position
        if last is None:
            if number == self.acknowledged_until and self._snapshot_end is None:
                return
        elif (last.number, last.frames) == (number, self._given):
            return
        if len(self._checkpoints) >= CHECKPOINTS:
            del self._checkpoints[1::2]
        self._checkpoints.append(_Checkpoint(now, number, self._given, self._given_size))

    def close(self) -> None:
        super().close()
        self._rewind()
