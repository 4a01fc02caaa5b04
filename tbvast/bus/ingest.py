"""
The intake: items are decoded once, committed, and then delivered to subscribers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.access_control import TO_PUBLISH, AccessControl
from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.client import log_not_set_aside
from tbvast.bus.journal.ownership import Publisher, runs_of
from tbvast.bus.journal.values import Outcome, Verdict
from tbvast.bus.subscriptions import TURN_BUDGET_SECONDS
from tbvast.errors import Invalid, JournalFailed, ProtocolInvalid
from tbvast.interfaces import IJournal
from tbvast.protocol.frames import Envelope, Item, decode_report, stream_of
from tbvast.service.rate_limit import RateLimit
from tbvast.stix.admission import admit
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.values import Received

MAX_BATCH_ITEMS = 2000
"""
The most items of one commit. Smaller batches cost more writing per item; larger ones do not
stay in the processor's caches from one step to the next.
"""

MAX_COMMITS_IN_FLIGHT = 3
"""
The most batches that are being committed or delivered, so that neither step waits for the
other. While a commit is in progress, only a full batch follows it.
"""

MAX_QUEUED_ITEMS = 20_000
"""
The most items that wait; then the sub endpoint is no longer read.
"""

RETRY_DELAY = 1.0
"""
Seconds before a failed commit is retried.
"""


DECODES_PER_CLOCK_CHECK = 50
"""
The documents that are decoded between two checks of the clock.
"""


class _Offer:
    """
    Items that a publisher offers together, and waits for.

    @ivar decode: Decodes one of them.
    @ivar publisher: The publisher.
    @ivar given: The items, not yet decoded.
    @ivar begun: The number of them that have been decoded.
    @ivar done: Fires with an outcome, or the reason of the refusal, for each.
    """

    def __init__(
        self, decode: Callable[[Any], Item], given: Sequence[Any], publisher: Publisher
    ) -> None:
        self.decode = decode
        self.publisher = publisher
        self.given = given
        self.begun = 0
        self.done: Deferred[list[Outcome | Invalid]] = Deferred()
        self._results: list[Any] = [None] * len(given)
        self._left = len(given)

    def resolve(self, index: int, result: Outcome | Invalid) -> None:
        """
        Set the result of one item; the last result fires L{done}.
        """
        self._results[index] = result
        self._left -= 1
        if not self._left and not self.done.called:
            self.done.callback(self._results)

    def fail(self, failure: Failure) -> None:
        """
        Fail L{done}, unless it has fired.
        """
        if not self.done.called:
            self.done.errback(failure)


_Waiting = tuple[Item, _Offer | None, int, Publisher]
"""
An item that is not yet durable; the offer that it is part of, if any; its index there; and
its publisher.
"""


class Intake:
    """
    Commits items in order, and delivers those that the journal accepted.

    While the journal fails, nothing is accepted: the sub endpoint is not read, and
    publish requests fail.

    @ivar counts: The number of items by stream and verdict, e.g.
        C{("indicator", "accepted")}; C{("message", "refused")} counts messages that
        are not items.
    @ivar pause: Called when the sub endpoint is to be read no longer.
    @ivar resume: Called when it is to be read again.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        journal: IJournal,
        access: AccessControl,
        deliver: Callable[[CommittedBatch], Deferred[None]],
        answered: Callable[[Envelope], None],
        errors_per_minute: int,
    ) -> None:
        """
        @param access: Decides who may publish.
        @param deliver: Delivers an accepted batch; called for each in order. Fires when
            every subscription has been given it.
        @param answered: Called with each envelope of an answer to a snapshot request.
        @param errors_per_minute: The most log lines a minute about messages that are
            refused.
        """
        self.counts: Counter[tuple[str, str]] = Counter()
        self.pause: Callable[[], None] = _nothing
        self.resume: Callable[[], None] = _nothing
        self._clock = clock
        self._journal = journal
        self._access = access
        self._deliver = deliver
        self._answered = answered
        self._complaints = RateLimit(clock, errors_per_minute)
        self._waiting: deque[_Waiting] = deque()
        self._offers: deque[_Offer] = deque()
        self._durable: deque[tuple[Sequence[Outcome], Deferred[None]]] = deque()
        self._committing = 0
        self._retrying = False
        self._kept: list[_Waiting] = []
        self._paused = False
        self._finished: Deferred[None] | None = None

    def receive(self, messages: list[Received]) -> None:
        """
        Take messages from the sub endpoint. Invalid ones are logged.

        @param messages: Messages and their senders.
        """
        for received in messages:
            user, message = received.user, received.frames
            try:
                report = decode_report(message)
                item = report.item if isinstance(report, Envelope) else report
                if not self._access.may(user, TO_PUBLISH[stream_of(item)]):
                    self._forbidden(user)
                elif isinstance(report, Envelope):
                    self._answered(report)
                else:
                    self._waiting.append((item, None, 0, self._access.publisher(user)))
            except Invalid as e:
                self._refused(e)
            except Exception as e:
                self._refused(self._unexpected(b" ".join(message), e))
        if len(self._waiting) >= MAX_QUEUED_ITEMS and not self._paused:
            self._paused = True
            self.pause()
        self._commit()

    def publish(
        self, documents: Sequence[bytes], user: str = ""
    ) -> Deferred[list[Outcome | Invalid]]:
        """
        Take in indicators and sightings.

        @param documents: Their documents.
        @param user: The user who publishes them.
        @return: Fires when all are durable, with an outcome, or the reason of
            the refusal, for each.
        """

        def decode(document: bytes) -> Item:
            item = admit(document)
            permission = TO_PUBLISH[stream_of(item)]
            if not self._access.may(user, permission):
                raise ProtocolInvalid("type", stream_of(item).value.decode(), "yours to publish")
            return item

        return self._take(decode, documents, self._access.publisher(user))

    def take(
        self, items: Sequence[Item], publisher: Publisher
    ) -> Deferred[list[Outcome | Invalid]]:
        """
        Take in items from another bus.

        @param publisher: Their owner in this bus.
        @return: As L{publish}.
        """
        return self._take(lambda item: admit(item.raw), items, publisher)

    def _take(
        self, decode: Callable[[Any], Item], given: Sequence[Any], publisher: Publisher
    ) -> Deferred[list[Outcome | Invalid]]:
        if not given:
            return succeed([])
        offer = _Offer(decode, given, publisher)
        self._offers.append(offer)
        if len(self._offers) == 1:
            self._decode()
        return offer.done

    def _decode(self) -> None:
        """
        Decode offered items, for as long as one turn of the reactor may take.
        """
        until = self._clock.seconds() + TURN_BUDGET_SECONDS
        while self._offers:
            if self._clock.seconds() > until:
                self._clock.callLater(0, self._decode)
                break
            offer = self._offers[0]
            start, offer.begun = offer.begun, offer.begun + DECODES_PER_CLOCK_CHECK
            for index, each in enumerate(offer.given[start : offer.begun], start):
                try:
                    item = offer.decode(each)
                    self._waiting.append((item, offer, index, offer.publisher))
                except Invalid as e:
                    self._refused(e)
                    offer.resolve(index, e)
                except Exception as e:
                    refusal = self._unexpected(each, e)
                    self._refused(refusal)
                    offer.resolve(index, refusal)
            if offer.begun >= len(offer.given):
                self._offers.popleft()
        self._commit()

    def finish(self) -> Deferred[None]:
        """
        Finish all items that were taken in. Nothing more may be taken in.

        @return: Fires when they have been committed and delivered.
        """
        self._finished = Deferred()
        finished = self._finished
        self._check_finished()
        return finished

    def _check_finished(self) -> None:
        if self._finished is None or self._finished.called:
            return
        busy = self._committing or self._retrying or self._waiting or self._offers
        if not (busy or self._durable):
            self._finished.callback(None)

    def _forbidden(self, user: str) -> None:
        self.counts["message", "forbidden"] += 1
        if self._complaints.allows():
            self._log.warn(
                "Dropped a message from {client}, which may not send it.",
                client=self._access.name(user),
            )

    def _not_owned(self, item: Item, outcome: Outcome, publisher: Publisher) -> None:
        if self._complaints.allows():
            self._log.warn(
                "Refused a change of {id} by {publisher}: {reason}.",
                publisher=publisher.name or "somebody",
                id=item.id,
                reason=outcome.reason,
            )

    def _unexpected(self, given: Any, error: Exception) -> Invalid:
        """
        Set a message aside after an unexpected error.

        @return: The refusal of the message.
        """
        raw = given if isinstance(given, bytes) else getattr(given, "raw", b"")
        self._log.failure("Cannot handle a message")
        self.set_aside([SetAside(Stage.INTAKE, reason_of(error), raw)])
        return ProtocolInvalid("document", raw, f"one that can be handled ({reason_of(error)})")

    def set_aside(self, items: Sequence[SetAside]) -> None:
        """
        Set items aside that cannot be handled. If that fails, they are logged.
        """
        self._journal.set_aside(items).addErrback(log_not_set_aside, items)

    def _refused(self, error: Invalid) -> None:
        self.counts["message", "refused"] += 1
        if self._complaints.allows():
            self._log.warn("Refused a message: {reason}", reason=str(error))

    def _commit(self) -> None:
        while not self._retrying and self._committing + len(self._durable) < MAX_COMMITS_IN_FLIGHT:
            if len(self._waiting) < (MAX_BATCH_ITEMS if self._committing else 1):
                break
            self._append()
        self._check_finished()

    def _append(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH_ITEMS, len(self._waiting)))]
        self._committing += 1
        (
            self._journal.append(
                [waiting[0] for waiting in batch], runs_of([waiting[3] for waiting in batch])
            )
            .addCallbacks(
                self._cb_committed, self._eb_failed, callbackArgs=(batch,), errbackArgs=(batch,)
            )
            .addErrback(self._eb_unexpected, batch)
        )

    def _cb_committed(self, outcomes: list[Outcome], batch: list[_Waiting]) -> None:
        self._committing -= 1
        (
            self.fan_out(outcomes)
            .addCallback(lambda _: self._resolve(outcomes, batch))
            .addErrback(lambda failure: self._log.failure("Cannot answer publishers", failure))
            .addCallback(lambda _: self._go_on())
        )

    def _resolve(self, outcomes: list[Outcome], batch: list[_Waiting]) -> None:
        for (item, offer, index, publisher), outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict is _REFUSED and outcome.reason:
                self._not_owned(item, outcome, publisher)
            if offer is not None:
                offer.resolve(index, outcome)

    def _go_on(self) -> None:
        if self._paused and not self._retrying and len(self._waiting) < MAX_QUEUED_ITEMS // 2:
            self._paused = False
            self.resume()
        # In another turn, so that a long queue does not block the reactor.
        self._clock.callLater(0, self._commit)

    def fan_out(self, outcomes: Sequence[Outcome]) -> Deferred[None]:
        """
        Deliver items that the journal has accepted, after those that it accepted before.
        Errors are logged.

        @param outcomes: The outcomes of one batch.
        @return: Fires when every subscription has been given them; never fails.
        """
        done: Deferred[None] = Deferred()
        self._durable.append((outcomes, done))
        if len(self._durable) == 1:
            self._commit()
            self._fan_out_next()
        return done

    def _fan_out_next(self) -> None:
        outcomes, done = self._durable[0]
        self._deliver_accepted(outcomes).addCallback(self._cb_fanned_out, done)

    def _cb_fanned_out(self, _: None, done: Deferred[None]) -> None:
        self._durable.popleft()
        if self._durable:
            # In another turn, so that a long queue does not block the reactor.
            self._clock.callLater(0, self._fan_out_next)
        done.callback(None)

    def _deliver_accepted(self, outcomes: Sequence[Outcome]) -> Deferred[None]:
        tally = Counter([(stream_of(outcome.item), outcome.verdict) for outcome in outcomes])
        for (stream, verdict), count in tally.items():
            self.counts[stream.value.decode(), verdict] += count
        # A refusal with a reason is about ownership: nothing is set aside.
        if aside := sum(o.verdict is _REFUSED and not o.reason for o in outcomes):
            self._log.error("{count} items were set aside: see the status.", count=aside)
        accepted = [(outcome.number, outcome.item) for outcome in outcomes if outcome.number]
        if not accepted:
            return succeed(None)
        return maybeDeferred(
            lambda: self._deliver(CommittedBatch(accepted, self.set_aside))
        ).addErrback(lambda failure: self._log.failure("Cannot deliver a batch", failure))

    def _eb_failed(self, failure: Failure, batch: list[_Waiting]) -> None:
        failure.trap(JournalFailed)
        self._log.error(
            "{count} messages are not accepted: {reason}; trying again in {delay} s.",
            count=len(batch),
            reason=str(failure.value),
            delay=RETRY_DELAY,
        )
        self._committing -= 1
        if not self._paused:
            self._paused = True
            self.pause()
        for waiting in batch:
            offer = waiting[1]
            if offer is None:
                self._kept.append(waiting)
            else:  # the publisher is told, and keeps the item
                offer.fail(failure)
        if not self._retrying:
            self._retrying = True
            self._clock.callLater(RETRY_DELAY, self._retry)

    def _retry(self) -> None:
        """
        Retry the failed batches before any other one. Without items to retry, an empty
        batch tells whether the journal works again.
        """
        if self._committing:  # it is about to fail, too
            self._clock.callLater(RETRY_DELAY, self._retry)
            return
        self._retrying = False
        self._waiting.extendleft(reversed(self._kept))
        self._kept.clear()
        self._append()

    def _eb_unexpected(self, failure: Failure, batch: list[_Waiting]) -> None:
        self._committing -= 1
        self._log.failure("Lost {count} messages", failure, count=len(batch))
        for _, offer, _, _ in batch:
            if offer is not None:
                offer.fail(failure)
        self._go_on()


_REFUSED = Verdict.REFUSED
# Module-level names are faster to look up than members of an enumeration.


def _nothing() -> None:
    """
    The default of a callable that is set later.
    """
