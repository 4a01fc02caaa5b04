"""
Subscriptions of tbvast/1, which replay the journal and therefore lose nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.values import JournalEntry
from tbvast.bus.subscriptions import Subscription
from tbvast.interfaces import IJournal, IReplay
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.replay import (
    Chunk,
    Mark,
    chunks,
    encode_batch,
    encode_item,
    encode_mark,
    encode_part,
)
from tbvast.protocol.topics import Stream

PAGE_ITEMS = 2000
PAGE_BYTES = 256 * 1024
"""
The most items and bytes of one page of the journal, for one subscriber that is behind.
"""


class ReplayedSubscription(Subscription):
    """
    A subscription of tbvast/1. Its only state is the number of the last entry sent.

    While the subscriber keeps up, it gets each batch at its commit; otherwise the
    subscription replays the journal. It ends when the journal has pruned entries that it has
    not sent, and when its subscriber goes away: a subscriber that comes back subscribes
    again.

    @ivar position: The number up to which everything was sent.
    @ivar resumed: Whether it continues where the subscriber was.
    """

    _log = Logger()

    def __init__(
        self,
        request: Subscribe,
        *args: Any,
        journal: IJournal,
        replay: IReplay,
        unreadable: Callable[[ReplayedSubscription], None],
    ) -> None:
        """
        @param args: As for L{Subscription}.
        @param replay: The same journal.
        @param unreadable: Called if the journal cannot be read, or has pruned entries
            that come next.
        """
        super().__init__(request, *args)
        resume = request.resume
        self.resumed = (
            resume is not None
            and resume.plugin == journal.identity
            and replay.floor <= resume.number <= journal.head
        )
        self.position = resume.number if resume and self.resumed else journal.head
        self._replay = replay
        self._unreadable = unreadable
        self._keeps_up = False
        self._missed = False
        self._reading: Deferred[Any] | None = None
        self._frames: deque[tuple[int, bytes]] = deque()
        self._sent_to_snapshot = 0

    @property
    def queued(self) -> int:
        return super().queued + len(self._frames)

    def committed(self, batch: CommittedBatch) -> None:
        if not self._keeps_up:
            self._missed = True
            return
        if batch.until <= self.position:  # it was read from the journal already
            return
        if batch.first <= self.position:  # some of it was
            self._keeps_up = False
            self._missed = True
            self._stuck(self)
            return
        try:
            self._extend(batch.chunks(self.streams))
        except Exception:
            # Replay the journal instead, so that no range of numbers has a gap.
            self._keeps_up = False
            self._missed = True
            self._stuck(self)
            raise
        self._send_frames()

    def _extend(self, found: Iterable[Chunk]) -> None:
        after = self._frames[-1][0] if self._frames else self.position
        for chunk in found:
            frame = self._prefix + encode_batch(after, chunk.until, chunk.items)
            self._frames.append((chunk.until, frame))
            after = chunk.until

    def _send_frames(self) -> None:
        for _ in range(self._send([frame for _, frame in self._frames])):
            self.position, _ = self._frames.popleft()
            self.sent += 1
        if self._frames:
            self._keeps_up = False
            self._missed = True
            self._stuck(self)

    def pump(self) -> None:
        super().pump()
        if self.detached is not None or self._snapshot is not None or self.closed:
            return
        self._send_frames()
        if not self._frames and not self._keeps_up and self._reading is None:
            self._missed = False
            reading = self._replay.entries(self.position, self.streams, PAGE_ITEMS, PAGE_BYTES)
            self._reading = reading
            reading.addCallback(self._cb_read).addErrback(self._eb_read)

    def _cb_read(self, entries: list[JournalEntry]) -> None:
        self._reading = None
        if self._replay.floor > self.position:
            self._unreadable(self)
            return
        if entries:
            self._extend(
                chunks((e.number, encode_item(e.number, e.stream, e.raw)) for e in entries)
            )
        elif not self._missed:
            self._keeps_up = True
            return
        self.pump()

    def _eb_read(self, failure: Failure) -> None:
        self._reading = None
        if not self.closed:
            self._log.failure("Cannot read the journal for a subscription", failure)
            self._unreadable(self)

    def render_snapshot_page(
        self, documents: Sequence[bytes]
    ) -> tuple[list[bytes], list[tuple[bytes, Exception]]]:
        self._sent_to_snapshot += len(documents)
        items = ((0, encode_item(0, Stream.INTEL, raw)) for raw in documents)
        return [encode_part(chunk.items) for chunk in chunks(items)], []

    def snapshot_end(self, full: bool, failed: Sequence[str]) -> Iterable[bytes]:
        mark = Mark(self.position, self._sent_to_snapshot, full, tuple(failed))
        return (encode_mark(mark),)

    def close(self) -> None:
        super().close()
        self._frames.clear()
        if self._reading is not None:
            self._reading.cancel()
