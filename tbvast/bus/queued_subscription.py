"""
Subscriptions of the old dialects: a queue in memory, backed by the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.checkpoints import Checkpoint, Checkpoints
from tbvast.bus.fanout import CommittedBatch, Form, Rendered, render_in_turns
from tbvast.bus.journal.values import JournalEntry
from tbvast.bus.subscription import BusParts, Subscription
from tbvast.interfaces import SendPage
from tbvast.protocol.manage import Subscribe
from tbvast.storage.set_aside import SetAside, Stage


class Saved(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    The saved state of a subscription.

    @ivar request: Its request.
    @ivar user: The user who made the request.
    @ivar number: The number up to which the subscriber certainly has everything; C{None}
        if tbvast 0.1.0 saved it.
    @ivar owed: Whether part of its snapshot is still to be sent.
    """

    request: Subscribe
    user: str
    number: int | None = None
    owed: bool = False


class QueuedSubscription(Subscription):
    """
    A subscription of an old dialect, whose subscriber cannot acknowledge anything.

    Frames that ZeroMQ does not accept wait in memory. Entries that do not fit there, and
    those committed while nobody is attached, are read from the journal once there is room.
    The subscriber loses only the entries that the journal has pruned meanwhile.

    Frames may still be in ZeroMQ's queue, or the kernel's, when the process or the
    connection ends. The subscription therefore remembers the number up to which the
    subscriber's system certainly has everything, resumes after it, and sends the rest
    again.

    @ivar acknowledged_until: That number.
    """

    _log = Logger()

    def __init__(
        self, parts: BusParts, request: Subscribe, user: str, topic: str, saved: Saved | None = None
    ) -> None:
        """
        @param saved: The saved state of the subscription, if it existed before.
        """
        number: int = parts.journal.head
        if saved is not None and saved.number is not None:
            number = min(saved.number, number)
        super().__init__(parts, request, user, topic, number)
        self.acknowledged_until = number
        self.owed = saved is not None and saved.owed
        self._checkpoints = Checkpoints()
        self._pruned_until = 0
        self._read_fails = False
        self._snapshot_begun = self._snapshot_due = False
        self._snapshot_frames: int | None = None

    @property
    def form(self) -> Form | None:  # type: ignore[override]
        return (self.request.dialect, self.streams) if self._keeps_up else None

    @property
    def behind(self) -> int:
        return max(0, self._parts.journal.head - self._queued_until)

    @property
    def saved(self) -> bytes:
        state = Saved(self.request, self.user, self.acknowledged_until, self.owed)
        return msgspec.json.encode(state)

    def attach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription arrived. It may be from a new connection while an old one is
        dead, but not yet known to be. So everything unacknowledged is sent again.
        """
        super().attach(topic)
        self._rewind()
        if self._snapshot_begun:
            self._abandon_snapshot()
            self._snapshot_due = True

    def _left(self) -> None:
        self._rewind()

    def give_up_queue(self) -> None:
        super().give_up_queue()
        if self._snapshot is not None and self.detached is None:
            # What was sent of it is sent again.
            self._abandon_snapshot()
            self._snapshot_due = True

    def _rewind(self) -> None:
        self._drop_queue()
        self._checkpoints.clear()
        self._queued_until = self.acknowledged_until
        self._keeps_up = False
        self._missed = True

    def pump(self) -> None:
        if self._snapshot_due and self.detached is None:
            if self._rests:
                self._parts.retry(self)
                return
            self._snapshot_due = False
            self._parts.begin_snapshot(self)
        if self._snapshot and self.detached is None:
            self._snapshot_begun = True
        super().pump()

    def take_snapshot(self, deliver: Callable[[SendPage], Awaitable[object]]) -> None:
        self.owed = True
        self._snapshot_begun = False
        self._snapshot_frames = None
        super().take_snapshot(deliver)

    def _snapshot_sent(self) -> None:
        self._snapshot_frames = self.sent

    def _append(self, batch: CommittedBatch) -> None:
        numbers, frames = batch.numbered(self.request.dialect, self.streams)
        taken = 0
        if frames and self._snapshot is None and not (self._live or self._queue):
            taken = self._send(frames)
        if taken == len(frames):
            self._queued_until = batch.until
            return
        begun = numbers[taken - 1] if taken else 0
        numbers, frames = numbers[taken:], frames[taken:]
        size, limits = sum(map(len, frames)), self._parts.settings
        if (
            len(self._queue) + len(frames) <= limits.queue_messages
            and self._queue.size + size <= limits.queue_bytes
        ):
            self._queue.extend(frames, numbers)
            self._queued_until = batch.until
            self._parts.retry(self)
            return
        # The rest of an entry that was sent in part follows; later ones are read again.
        count = numbers.count(begun)
        self._queue.extend(frames[:count], numbers[:count])
        self._queued_until = max(self._queued_until, begun)
        self._fall_behind()

    async def _render(self, entries: list[JournalEntry], after: int) -> Rendered:
        self._read_fails = False
        clock, dialect = self._parts.clock, self.request.dialect
        return await render_in_turns(clock, dialect, entries, Stage.DELIVERY, self._leave_out)

    def _leave_out(self, items: Sequence[SetAside]) -> None:
        self.dropped += len(items)
        self._parts.refuse(items)

    def _caught_up(self, head: int) -> None:
        self._read_fails = False
        self._queued_until = max(self._queued_until, head)

    def _pruned(self, after: int) -> None:
        """
        Count the entries that the journal pruned before this subscription read them.
        """
        journal = self._parts.journal
        since, until = max(after, self._pruned_until), journal.floor
        if since < until:
            self._pruned_until = until
            journal.pruned(since, until).addCallbacks(self._cb_pruned, self._eb_pruned)

    def _cb_pruned(self, count: int) -> None:
        if count and not self.closed:
            self.dropped += count
            self._log.warn(
                "The journal has pruned {count} entries before {name} got them.",
                count=count,
                name=self.name,
            )

    def _eb_pruned(self, failure: Failure) -> None:
        self._log.error("Cannot count pruned entries: {reason}", reason=failure.getErrorMessage())

    def _unreadable(self, failure: Failure) -> None:
        self._missed = True
        if not self._read_fails:  # it is logged once; the read is retried
            self._read_fails = True
            self._log.error(
                "Cannot read the journal for {name}: {reason}",
                name=self.name,
                reason=failure.getErrorMessage(),
            )

    def _acknowledge(self, held: int | None, age: float) -> None:
        if not (self._keeps_up or self._reading or self._queue):
            self._parts.retry(self)  # the journal could not be read
        now = Checkpoint(self._parts.clock.seconds(), self.position, self.sent, self._sent_bytes)
        reached = self._checkpoints.acknowledged(now, held, age)
        if reached is not None:
            self.acknowledged_until = reached.number
            if self._snapshot_frames is not None and reached.frames >= self._snapshot_frames:
                self._snapshot_frames = None
                self.owed = self._snapshot_begun = False
        waits = self._snapshot_frames is not None or now.number != self.acknowledged_until
        if waits or self._checkpoints:
            self._checkpoints.add(now)
