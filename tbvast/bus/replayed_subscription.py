"""
Subscriptions of tbvast/1, which replay the journal and therefore lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.fanout import CommittedBatch, Rendered, render_batches
from tbvast.bus.journal.values import JournalEntry
from tbvast.bus.subscription import BusParts, Subscription
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.replay import (
    Mark,
    chunks,
    encode_item,
    encode_mark,
    encode_part,
)
from tbvast.protocol.topics import Stream
from tbvast.values import Position


class ReplayedSubscription(Subscription):
    """
    A subscription of tbvast/1. Its only state is the number of the last entry sent.

    It ends when the journal has pruned entries that it has not sent, and when its subscriber
    goes away: a subscriber that comes back subscribes again. It is therefore not saved.

    @ivar resumed: Whether it continues where the subscriber was.
    """

    _log = Logger()

    def __init__(self, parts: BusParts, request: Subscribe, user: str, topic: str) -> None:
        journal, resume = parts.journal, request.resume
        self.resumed = (
            resume is not None
            and resume.plugin == journal.identity
            and journal.floor <= resume.number <= journal.head
        )
        number = resume.number if resume is not None and self.resumed else journal.head
        super().__init__(parts, request, user, topic, number)
        self.answers_snapshots = False
        if resume is not None:
            # It gets either exactly the entries that it missed, or everything anew.
            self.snapshot_days = 0 if self.resumed else None
        self.beginning = Position(journal.identity, number)
        self._sent_to_snapshot = 0

    def _left(self) -> None:
        # Frames that the socket had accepted may be lost. The subscriber resumes after the
        # last number that it has.
        self._parts.close(self.topic, "was cut off")

    async def render_page(self, documents: Sequence[bytes]) -> list[bytes]:
        self._sent_to_snapshot += len(documents)
        items = ((0, encode_item(0, Stream.INTEL, raw)) for raw in documents)
        return [encode_part(chunk.items) for chunk in chunks(items)]

    def render_end(self, full: bool, failed: Sequence[str]) -> Iterable[bytes]:
        mark = Mark(self.position, self._sent_to_snapshot, full, tuple(failed))
        return (encode_mark(mark),)

    def give_up_queue(self) -> None:
        if self._snapshot:  # it could not tell which part came twice
            self._parts.close(self.topic, "does not read its snapshot, while memory is short,")
        else:
            super().give_up_queue()

    def _append(self, batch: CommittedBatch) -> None:
        numbers, frames = batch.batches(self.streams, self._queued_until)
        if not frames:
            return
        self._queue.extend(frames, numbers)
        self._queued_until = batch.until
        self._send_from(self._queue)
        if self._queue:
            self._fall_behind()

    async def _render(self, entries: list[JournalEntry], after: int) -> Rendered:
        items = ((e.number, encode_item(e.number, e.stream, e.raw)) for e in entries)
        return render_batches(after, chunks(items))

    def _pruned(self, after: int) -> None:
        self._close_unreadable()

    def _unreadable(self, failure: Failure) -> None:
        self._log.failure("Cannot read the journal for a subscription", failure)
        self._close_unreadable()

    def _close_unreadable(self) -> None:
        self._parts.close(self.topic, "cannot replay the journal,")
