"""
The intake: what arrives is decoded once, made durable, and then spread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import Invalid, JournalFailed, PatternUnmatchable, ProtocolInvalid
from tbvast.intel.indicators import STIX, Indicator, Operation
from tbvast.intel.patterns import matchable
from tbvast.interfaces import IJournal
from tbvast.ops.ratelimit import RateLimit
from tbvast.plugin.commit import Commit
from tbvast.plugin.gate import TO_PUBLISH, Gate
from tbvast.plugin.store import Outcome
from tbvast.wire.frames import Envelope, Item, decode_item, decode_report, stream_of

BATCH = 2000
"""
The most items that are made durable in one commit.
"""

FULL = 20_000
"""
How many items wait before the sub endpoint is no longer read.
"""

RETRY_DELAY = 1.0
"""
Seconds before a commit that failed is tried again.
"""


class Intake:
    """
    Takes items in, in order, and hands on those that were new and are durable.

    What cannot be kept is not accepted: while the journal fails, nothing more is
    read from the sub endpoint, and whoever publishes by request is told.

    @ivar counts: How many items had each outcome, by stream and verdict, e.g.
        C{("indicator", "accepted")}; C{("message", "refused")} for what was no
        item at all.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        journal: IJournal,
        gate: Gate,
        spread: Callable[[Commit], None],
        answered: Callable[[Envelope], None],
        errors_per_minute: int,
    ) -> None:
        """
        @param spread: Called with all that was accepted, in order.
        @param answered: Called with every part of an answer to a snapshot request.
        """
        self.counts: Counter[tuple[str, str]] = Counter()
        self.pause: Callable[[], None] = _nothing
        self.resume: Callable[[], None] = _nothing
        self._clock = clock
        self._journal = journal
        self._gate = gate
        self._spread = spread
        self._answered = answered
        self._complaints = RateLimit(clock, errors_per_minute)
        self._waiting: deque[tuple[Item, Deferred[Outcome] | None]] = deque()
        self._committing = False
        self._paused = False
        self._finished: Deferred[None] | None = None

    def receive(self, messages: list[tuple[str, list[bytes]]]) -> None:
        """
        Take what arrived on the sub endpoint; what is not valid is logged.

        @param messages: Users, and what each sent.
        """
        for user, message in messages:
            try:
                report = decode_report(message)
                item = admissible(report.item if isinstance(report, Envelope) else report)
                if not self._gate.may(user, TO_PUBLISH[stream_of(item)]):
                    self._forbidden(user)
                elif isinstance(report, Envelope):
                    self._answered(report)
                else:
                    self._waiting.append((item, None))
            except Invalid as e:
                self._refused(e)
        if len(self._waiting) >= FULL and not self._paused:
            self._paused = True
            self.pause()
        self._commit()

    def publish(
        self, documents: Sequence[bytes], user: str = ""
    ) -> Deferred[list[Outcome | Invalid]]:
        """
        Take indicators and sightings in.

        @param user: Who publishes them.
        @return: Fires when all are durable, with an outcome, or the reason of
            the refusal, for each.
        """

        def decode(document: bytes) -> Item:
            item = decode_item(document)
            permission = TO_PUBLISH[stream_of(item)]
            if not self._gate.may(user, permission):
                raise ProtocolInvalid("type", stream_of(item).value.decode(), "yours to publish")
            return item

        return self._take(decode, documents)

    def take(self, items: Sequence[Item]) -> Deferred[list[Outcome | Invalid]]:
        """
        Take in what another bus sent.

        @return: As L{publish}.
        """
        return self._take(lambda item: item, items)

    def _take(
        self, decode: Callable[[Any], Item], given: Sequence[Any]
    ) -> Deferred[list[Outcome | Invalid]]:
        results: list[Deferred[Outcome | Invalid]] = []
        for each in given:
            try:
                item = admissible(decode(each))
            except Invalid as e:
                self._refused(e)
                results.append(succeed(e))
            else:
                result: Deferred[Any] = Deferred()
                self._waiting.append((item, result))
                results.append(result)
        self._commit()
        return gatherResults(results, consumeErrors=True)

    def finish(self) -> Deferred[None]:
        """
        Take nothing more in.

        @return: Fires when all that was taken in has been handed on.
        """
        self._finished = Deferred()
        if not self._committing and not self._waiting:
            self._finished.callback(None)
        return self._finished

    def _forbidden(self, user: str) -> None:
        self.counts["message", "forbidden"] += 1
        if self._complaints.allows():
            self._log.warn(
                "Dropped a message of {client}, who may not send it.", client=self._gate.name(user)
            )

    def _refused(self, error: Invalid) -> None:
        self.counts["message", "refused"] += 1
        if self._complaints.allows():
            self._log.warn("Refused a message: {reason}", reason=str(error))

    def _commit(self) -> None:
        if self._committing:
            return
        if not self._waiting:
            if self._finished is not None and not self._finished.called:
                self._finished.callback(None)
            return
        self._committing = True
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._append(batch)

    def _append(self, batch: list[tuple[Item, Deferred[Outcome] | None]]) -> None:
        (
            self._journal.append([item for item, _ in batch])
            .addCallbacks(
                self._cb_committed, self._eb_failed, callbackArgs=(batch,), errbackArgs=(batch,)
            )
            .addErrback(self._eb_unexpected, batch)
        )

    def _cb_committed(
        self, outcomes: list[Outcome], batch: list[tuple[Item, Deferred[Outcome] | None]]
    ) -> None:
        self.hand_on(outcomes)
        for (_, waiting), outcome in zip(batch, outcomes, strict=True):
            if waiting is not None:
                waiting.callback(outcome)
        self._go_on()

    def _go_on(self) -> None:
        self._committing = False
        if self._paused and len(self._waiting) < FULL // 2:
            self._paused = False
            self.resume()
        # In a turn of its own, so that nobody else waits for a long queue.
        self._clock.callLater(0, self._commit)

    def hand_on(self, outcomes: Sequence[Outcome]) -> None:
        """
        Spread what the journal has accepted. What cannot be spread is logged.
        """
        tally = Counter((stream_of(outcome.item), outcome.verdict) for outcome in outcomes)
        for (stream, verdict), count in tally.items():
            self.counts[stream.value.decode(), verdict] += count
        accepted = [(outcome.number, outcome.item) for outcome in outcomes if outcome.number]
        if accepted:
            try:
                self._spread(Commit(accepted))
            except Exception:
                self._log.failure("While spreading what was accepted")

    def _eb_failed(
        self, failure: Failure, batch: list[tuple[Item, Deferred[Outcome] | None]]
    ) -> None:
        failure.trap(JournalFailed)
        self._log.error(
            "{count} messages are not accepted: {reason}; trying again in {delay} s.",
            count=len(batch),
            reason=str(failure.value),
            delay=RETRY_DELAY,
        )
        if not self._paused:
            self._paused = True
            self.pause()
        kept: list[tuple[Item, Deferred[Outcome] | None]] = []
        for item, waiting in batch:
            if waiting is None:
                kept.append((item, None))
            else:  # whoever waits is told, and keeps it
                waiting.errback(failure)
        self._clock.callLater(RETRY_DELAY, self._append, kept)

    def _eb_unexpected(
        self, failure: Failure, batch: list[tuple[Item, Deferred[Outcome] | None]]
    ) -> None:
        self._log.failure("{count} messages are lost", failure, count=len(batch))
        for _, waiting in batch:
            if waiting is not None and not waiting.called:
                waiting.errback(failure)
        self._go_on()


def admissible(item: Item) -> Item:
    """
    @return: The item, if it can be meant.
    @raise ObservableInvalid: If it is an indicator of a value that is none: of an
        address that is no address, say. What merely cannot be matched is carried.
    """
    if (
        isinstance(item, Indicator)
        and item.operation is not Operation.REMOVE
        and item.pattern_type == STIX
    ):
        try:  # quicker than contextlib.suppress, for each and every item
            matchable(item.pattern or "")
        except PatternUnmatchable:
            pass
    return item


def _nothing() -> None:
    """
    The default of a callable that is given later.
    """
