"""
The intake: items are decoded once, committed, and then delivered to subscribers.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence

import attrs
from twisted.internet.defer import Deferred, DeferredLock, DeferredSemaphore, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.access_control import TO_PUBLISH, AccessControl
from tbvast.bus.client_work import ClientWork, Steps
from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.client import set_aside
from tbvast.bus.journal.values import Outcome, Publisher, Verdict, runs_of
from tbvast.errors import DialectUnspoken, Invalid, JournalFailed, ProtocolInvalid
from tbvast.interfaces import ICounters, IJournal, IPausable
from tbvast.protocol.frames import Envelope, Item, admit_document, decode_report, stream_of
from tbvast.protocol.manage import Published
from tbvast.service.rate_limit import RateLimit
from tbvast.service.turns import in_turns
from tbvast.stix.admission import admit
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.values import Received

MAX_BATCH_ITEMS = 2000
MAX_BATCH_BYTES = 1 << 22
"""
The most items of one commit, and their bytes. Smaller batches cost more writing per item; larger
ones do not stay in the processor's caches from one step to the next.
"""

MAX_COMMITS_IN_FLIGHT = 3
"""
The most batches that are being committed or delivered, so that neither step waits for the
other. While a commit is in progress, only a full batch follows it.
"""

MAX_QUEUED_ITEMS = 20_000
MAX_QUEUED_BYTES = 1 << 26
"""
The most items from the sub endpoint that wait, and their bytes; then it is no longer read.
"""

MAX_OFFERED_ITEMS = MAX_COMMITS_IN_FLIGHT * MAX_BATCH_ITEMS
MAX_OFFERED_BYTES = MAX_COMMITS_IN_FLIGHT * MAX_BATCH_BYTES
"""
The most items of publish requests that wait, and their bytes; then no more are decoded. An item of
another request does not wait longer.
"""

RETRY_DELAY = 1.0
"""
Seconds before a failed commit is retried.
"""

STEP_DOCUMENTS = 20
STEP_BYTES = 1 << 13
"""
The most documents of a request that are decoded in one step, and the bytes after which no more
are.
"""


REASONS = 1000
"""
The most reasons in the reply to a publish request.
"""

SET_ASIDE = "it could not be kept, and was set aside"
"""
The reason of a refusal without another one.
"""


@attrs.define(eq=False)
class _Offer:
    """
    Items that a publisher offers together, and waits for. Nothing is kept of those that are
    resolved but the reply.

    @param count: Their number.
    @ivar done: Fires with the reply. Once it has failed, the publisher keeps all of them.
    """

    _count: int
    done: Deferred[Published] = attrs.field(init=False, factory=Deferred)
    _outcomes: list[str] = attrs.field(init=False)
    _unresolved: int = attrs.field(init=False)
    _reasons: dict[int, str] = attrs.field(init=False, factory=dict)
    _reasons_until: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._outcomes = [""] * self._count
        self._unresolved = self._reasons_until = self._count

    def resolve(self, index: int, verdict: Verdict, reason: str | Invalid = "") -> None:
        self._outcomes[index] = verdict
        if reason and index < self._reasons_until:
            self._reasons[index] = str(reason)
            if len(self._reasons) >= 2 * REASONS:
                self._reasons = self._first_reasons
                self._reasons_until = max(self._reasons)
        self._unresolved -= 1
        if not (self._unresolved or self.done.called):
            self.done.callback(Published(self._outcomes, self._first_reasons))

    @property
    def _first_reasons(self) -> dict[int, str]:
        return dict(sorted(self._reasons.items())[:REASONS])

    def fail(self, failure: Failure) -> None:
        if not self.done.called:
            self.done.errback(failure)


_Waiting = tuple[Item, _Offer | None, int, Publisher]
"""
An item that is not yet durable; the offer that it is part of, if any; its index there; and
its publisher.
"""


@attrs.define(eq=False)
class _Queue:
    """
    Waiting items.

    @ivar size: The bytes of their documents.
    """

    _items: deque[_Waiting] = attrs.field(init=False, factory=deque)
    size: int = attrs.field(init=False, default=0)

    def __len__(self) -> int:
        return len(self._items)

    def append(self, waiting: _Waiting) -> None:
        self._items.append(waiting)
        self.size += len(waiting[0].raw)

    def put_back(self, items: Sequence[_Waiting]) -> None:
        """
        Put items before all others.
        """
        self._items.extendleft(reversed(items))
        self.size += sum([len(waiting[0].raw) for waiting in items])

    def take(self, count: int, size: int) -> list[_Waiting]:
        """
        Take the oldest items, and drop those of offers that have failed.

        @param count: The most items.
        @param size: Bytes after which no more are taken.
        """
        taken: list[_Waiting] = []
        while self._items and len(taken) < count and size > 0:
            waiting = self._items.popleft()
            item, offer, _, _ = waiting
            self.size -= len(item.raw)
            if offer is None or not offer.done.called:
                taken.append(waiting)
                size -= len(item.raw)
        return taken


@attrs.define(eq=False, slots=False)
class Intake:
    """
    Commits items in order, and delivers those that the journal accepted.

    Two coroutines, commit and fan out, and a semaphore that bounds the batches in both.

    While the journal fails, nothing is accepted: the sub endpoint is not read, and
    publish requests fail.

    Each batch has as many items of requests as of the sub endpoint, if enough of both wait; and
    the requests of each client have the same share, so that nobody waits for the others.

    @param work: Decodes the documents of requests.
    @param access: Decides who may publish.
    @param counters: Counts items by stream and verdict, and the messages that are refused.
    @param deliver: Delivers an accepted batch; called for each in order. Done when every
        subscription has been given it.
    @param answered: Called with each envelope of an answer to a snapshot request.
    @param sub: The sub endpoint, which is not read while too much waits.
    @param errors_per_minute: The most log lines a minute about messages that are refused.
    """

    _log = Logger()

    _clock: IReactorTime
    _work: ClientWork
    _journal: IJournal
    _access: AccessControl
    _counters: ICounters
    _deliver: Callable[[CommittedBatch], Awaitable[None]]
    _answered: Callable[[Envelope], None]
    _sub: IPausable
    _errors_per_minute: int

    def __attrs_post_init__(self) -> None:
        self._complaints = RateLimit(self._clock, self._errors_per_minute)
        self._offered = _Queue()
        self._reported = _Queue()
        self._kept: list[_Waiting] = []
        self._in_flight = DeferredSemaphore(MAX_COMMITS_IN_FLIGHT)
        self._in_order = DeferredLock()
        self._committing = self._fanning_out = 0
        self._fewest = 1
        self._failing = self._paused = False
        self._receiving: Deferred[None] = succeed(None)
        self._news: Deferred[None] = Deferred()
        self._finished: Deferred[None] | None = None
        Deferred.fromCoroutine(self._commit())

    def receive(self, messages: list[Received]) -> None:
        """
        Take messages from the sub endpoint, perhaps in many turns; meanwhile it is not read.
        Invalid ones are logged.

        @param messages: Messages and their senders.
        """
        self._receiving = Deferred.fromCoroutine(
            in_turns(self._clock, messages, self._receive_one, "Cannot handle a message")
        )
        if not self._receiving.called:
            self._pause()
        self._receiving.addCallback(self._cb_received)

    def _receive_one(self, received: Received) -> None:
        user, message = received.user, received.frames
        try:
            report = decode_report(message)
            item = report.item if isinstance(report, Envelope) else report
            if not self._access.may(user, TO_PUBLISH[stream_of(item)]):
                self._counters.count("message", "forbidden")
                text = "Dropped a message from {client}, which may not send it."
                self._complaints.warn(self._log, text, client=self._access.name(user))
            elif isinstance(report, Envelope):
                self._answered(report)
            else:
                self._reported.append((item, None, 0, self._access.publisher(user)))
        except Invalid as e:
            self._refused(e)
        except Exception as e:
            self._refused(self._unexpected(b" ".join(message), e))

    def _cb_received(self, _: None) -> None:
        if self._fullness >= 1:
            self._pause()
        else:
            self._resume()
        self._wake()

    @property
    def _fullness(self) -> float:
        """
        The share of the items from the sub endpoint that may wait.
        """
        reported = self._reported
        return max(len(reported) / MAX_QUEUED_ITEMS, reported.size / MAX_QUEUED_BYTES)

    def publish(self, documents: Sequence[bytes], user: str = "") -> Steps[Deferred[Published]]:
        """
        Take in indicators and sightings.

        @param documents: Their documents.
        @param user: The user who publishes them.
        @return: The work, whose result fires with the reply when all are durable.
        """

        def decode(document: bytes) -> Item:
            item = admit_document(document)
            stream = stream_of(item)
            if not self._access.may(user, TO_PUBLISH[stream]):
                raise ProtocolInvalid("type", stream.value.decode(), "yours to publish")
            return item

        return self._take(decode, documents, self._access.publisher(user))

    def take(self, items: Sequence[Item], publisher: Publisher) -> Deferred[Published]:
        """
        Take in items from another bus.

        @param publisher: Their owner in this bus.
        @return: Fires as the result of L{publish} does.
        """
        work = self._take(admit, [item.raw for item in items], publisher)
        return self._work.do(publisher.name, work)

    def _take(
        self, decode: Callable[[bytes], Item], documents: Sequence[bytes], publisher: Publisher
    ) -> Steps[Deferred[Published]]:
        yield None
        offer = _Offer(len(documents))
        if not documents:
            offer.done.callback(Published([], {}))
        size = 0
        for index, raw in enumerate(documents):
            if offer.done.called:  # it has failed
                break
            self._decode_one(decode, offer, index, raw, publisher)
            size += len(raw)
            if size >= STEP_BYTES or index % STEP_DOCUMENTS == STEP_DOCUMENTS - 1:
                size = 0
                self._wake()
                yield None
            while self._offered.size >= MAX_OFFERED_BYTES or (
                len(self._offered) >= MAX_OFFERED_ITEMS
            ):
                yield self._news
        self._wake()
        return offer.done

    def _decode_one(
        self,
        decode: Callable[[bytes], Item],
        offer: _Offer,
        index: int,
        raw: bytes,
        publisher: Publisher,
    ) -> None:
        try:
            self._offered.append((decode(raw), offer, index, publisher))
        # No local variable may hold an error: its traceback would hold the variable.
        except Invalid as e:
            self._refuse(offer, index, e)
        except Exception as e:
            self._refuse(offer, index, self._unexpected(raw, e))

    def _refuse(self, offer: _Offer, index: int, error: Invalid) -> None:
        self._refused(error)
        offer.resolve(index, _REFUSED, error)

    def _refused(self, error: Invalid) -> None:
        unspoken = isinstance(error, DialectUnspoken)
        self._counters.count("message", "dialect not spoken" if unspoken else "refused")
        if self._complaints.allows():  # the text of an error may be long
            self._log.warn("Refused a message: {reason}", reason=str(error))

    def _unexpected(self, raw: bytes, error: Exception) -> Invalid:
        """
        Set a message aside after an unexpected error.

        @return: The refusal of the message.
        """
        self._log.failure("Cannot handle a message")
        set_aside(self._journal, [SetAside(Stage.INTAKE, reason_of(error), raw)])
        return ProtocolInvalid("document", raw, f"one that can be handled ({reason_of(error)})")

    def finish(self) -> Deferred[None]:
        """
        Finish all items that were taken in. Nothing more may be taken in.

        @return: Fires when they have been committed and delivered.
        """
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        await self._work.finish()
        while not self._receiving.called:
            await self._news
        self._finished = Deferred()
        self._wake()
        await self._finished

    def _wake(self) -> None:
        """
        Have the coroutines notice that something has changed.
        """
        news, self._news = self._news, Deferred()
        news.callback(None)
        if self._finished is None or self._finished.called:
            return
        busy = self._queued or self._committing or self._fanning_out
        if not (busy or self._failing):
            self._finished.callback(None)

    @property
    def _queued(self) -> int:
        return len(self._offered) + len(self._reported)

    @property
    def _full_batch(self) -> bool:
        size = self._offered.size + self._reported.size
        return self._queued >= MAX_BATCH_ITEMS or size >= MAX_BATCH_BYTES

    async def _commit(self) -> None:
        while True:
            await self._in_flight.acquire()
            # A small batch waits for the commit in progress, so that slowly arriving items
            # are committed together.
            while self._failing or not (
                self._full_batch if self._committing else self._queued >= self._fewest
            ):
                await self._news
            self._fewest = 1
            self._committing += 1
            Deferred.fromCoroutine(self._commit_batch(self._next_batch()))

    def _next_batch(self) -> list[_Waiting]:
        offered, reported = self._offered, self._reported
        before = offered.size
        batch = offered.take(
            MAX_BATCH_ITEMS - min(len(reported), MAX_BATCH_ITEMS // 2),
            MAX_BATCH_BYTES - min(reported.size, MAX_BATCH_BYTES // 2),
        )
        taken = before - offered.size
        return batch + reported.take(MAX_BATCH_ITEMS - len(batch), MAX_BATCH_BYTES - taken)

    async def _commit_batch(self, batch: list[_Waiting]) -> None:
        outcomes: list[Outcome] = []
        try:
            outcomes = await self._journal.append(
                [waiting[0] for waiting in batch], runs_of([waiting[3] for waiting in batch])
            )
        except JournalFailed:
            self._postpone(batch, Failure())
        except Exception:
            self._log.failure("Lost {count} messages", count=len(batch))
            _fail(batch, Failure())
        self._committing -= 1
        try:
            if outcomes:
                await self.fan_out(outcomes)
                self._resolve(outcomes, batch)
        except Exception:
            self._log.failure("Cannot answer publishers")
        self._in_flight.release()
        self._resume()
        self._wake()

    def _resolve(self, outcomes: list[Outcome], batch: list[_Waiting]) -> None:
        for (item, offer, index, publisher), outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict is _REFUSED and outcome.reason:
                text = "Refused a change of {id} by {publisher}: {reason}."
                name, reason = publisher.name or "somebody", outcome.reason
                self._complaints.warn(self._log, text, id=item.id, publisher=name, reason=reason)
            if offer is not None:
                unkept = SET_ASIDE if outcome.verdict is _REFUSED else ""
                offer.resolve(index, outcome.verdict, outcome.reason or unkept)

    def fan_out(self, outcomes: Sequence[Outcome]) -> Deferred[None]:
        """
        Deliver items that the journal has accepted, after those that it accepted before.
        Errors are logged.

        @param outcomes: The outcomes of one batch.
        @return: Fires when every subscription has been given them; never fails.
        """
        return Deferred.fromCoroutine(self._fan_out(outcomes))

    async def _fan_out(self, outcomes: Sequence[Outcome]) -> None:
        self._fanning_out += 1
        turn = self._in_order.acquire()
        self._wake()  # the next batch is committed meanwhile
        await turn
        try:
            self._count(outcomes)
            accepted = [(outcome.number, outcome.item) for outcome in outcomes if outcome.number]
            if accepted:
                refuse = functools.partial(set_aside, self._journal)
                await self._deliver(CommittedBatch(accepted, refuse))
        except Exception:
            self._log.failure("Cannot deliver a batch")
        # In another turn, so that a long queue does not block the reactor.
        self._clock.callLater(0, self._in_order.release)
        self._fanning_out -= 1
        self._wake()

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        tally = Counter([(stream_of(outcome.item), outcome.verdict) for outcome in outcomes])
        for (stream, verdict), count in tally.items():
            self._counters.count(stream.value.decode(), verdict, count)
        # A refusal with a reason is about ownership: nothing is set aside.
        if aside := sum(o.verdict is _REFUSED and not o.reason for o in outcomes):
            self._log.error("{count} items were set aside: see the status.", count=aside)

    def _postpone(self, batch: list[_Waiting], failure: Failure) -> None:
        """
        Have a batch that the journal refused retried before any other one.
        """
        text = "{count} messages are not accepted: {reason}; trying again in {delay} s."
        reason = str(failure.value)
        self._log.error(text, count=len(batch), reason=reason, delay=RETRY_DELAY)
        self._pause()
        # A publisher keeps its items.
        _fail(batch, failure)
        self._kept += [waiting for waiting in batch if waiting[1] is None]
        if not self._failing:
            self._failing = True
            self._clock.callLater(RETRY_DELAY, self._retry)

    def _retry(self) -> None:
        if self._committing:  # it is about to fail, too
            self._clock.callLater(RETRY_DELAY, self._retry)
            return
        self._failing = False
        self._reported.put_back(self._kept)
        self._kept.clear()
        self._fewest = 0  # without items, an empty batch tells whether the journal works again
        self._wake()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._sub.pause()

    def _resume(self) -> None:
        ready = self._receiving.called and not self._failing and self._fullness < 0.5
        if self._paused and ready:
            self._paused = False
            self._sub.resume()


def _fail(batch: list[_Waiting], failure: Failure) -> None:
    for _, offer, _, _ in batch:
        if offer is not None:
            offer.fail(failure)


_REFUSED = Verdict.REFUSED
# Module-level names are faster to look up than members of an enumeration.
