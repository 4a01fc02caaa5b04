"""
Subscriptions that follow the journal, and read it when they are behind.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.values import JournalEntry
from tbvast.bus.subscription import BusParts, FrameQueue, Subscription
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.topics import Dialect

PAGE_BYTES = 256 * 1024
PAGE_ITEMS = {Dialect.STIX2: 2000, Dialect.VAST: 250}
"""
The most bytes and items of one page of the journal, for one subscriber that is behind. The
vast dialect has smaller pages, because each of its items has to be decoded.
"""


class JournalSubscription(Subscription):
    """
    The part of a subscription that does not depend on its protocol.

    While the subscriber keeps up, it gets each batch at its commit. Otherwise the
    subscription reads the journal, page by page, until nothing is missing.
    """

    _log = Logger()

    def __init__(
        self, parts: BusParts, request: Subscribe, user: str, topic: str, number: int
    ) -> None:
        """
        @param request: As for L{Subscription}.
        @param user: As for L{Subscription}.
        @param topic: As for L{Subscription}.
        @param number: The number in the journal after which the subscriber gets everything.
        """
        super().__init__(parts, request, user, topic)
        self._queue = FrameQueue()
        self._queued_until = number
        self._keeps_up = self._missed = False
        self._reading: Deferred[list[JournalEntry]] | None = None

    @property
    def position(self) -> int:
        """
        The number up to which ZeroMQ has accepted everything.
        """
        return self._queue.first - 1 if self._queue else self._queued_until

    @property
    def queued(self) -> int:
        return super().queued + len(self._queue)

    def _pump_entries(self) -> None:
        self._send_from(self._queue)
        if self._queue:
            self._parts.retry(self)
        elif not (self._keeps_up or self._reading or self.closed):
            self._read()

    def committed(self, batch: CommittedBatch) -> None:
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

    def _append_page(self, entries: list[JournalEntry]) -> None:
        """
        Put a page of the journal into the empty queue.
        """
        raise NotImplementedError

    def _fall_behind(self) -> None:
        """
        Read the journal once the queue is empty.
        """
        self._keeps_up = False
        self._missed = True
        self._parts.retry(self)

    def _read(self) -> None:
        self._missed = False
        settings, after = self._parts.settings, self._queued_until
        reading = self._parts.replay.entries(
            after,
            self.streams,
            min(PAGE_ITEMS[self.request.dialect], settings.queue_messages),
            min(PAGE_BYTES, settings.queue_bytes),
        )
        self._reading = reading
        reading.addCallback(self._cb_read, after, self._parts.journal.head).addErrback(
            self._eb_read
        )

    def _cb_read(self, entries: list[JournalEntry], after: int, head: int) -> None:
        self._reading = None
        if self._parts.replay.floor > after:
            self._pruned(after)
        if entries:
            self._append_page(entries)
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
        self._queue = FrameQueue()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()

    def close(self) -> None:
        super().close()
        self._keeps_up = False
        self._drop_queue()
