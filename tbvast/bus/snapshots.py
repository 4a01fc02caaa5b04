"""
Snapshots: the intel of the last days, from every source that answers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence

import attrs
import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.bus.fanout import Refuse, render_entries
from tbvast.bus.journal.values import JournalEntry
from tbvast.bus.subscription import (
    CLIENT_LINES_PER_MINUTE,
    LINES_PER_MINUTE,
    LOSSES_PER_MINUTE,
    Subscription,
)
from tbvast.interfaces import IJournal, ISnapshotSource, SendPage
from tbvast.protocol.frames import Envelope, encode_snapshot_request, stream_of
from tbvast.protocol.topics import Stream
from tbvast.service.clock import Calendar
from tbvast.service.rate_limit import ClientRateLimit, RateLimit
from tbvast.storage.set_aside import Stage

PAGE_ITEMS = 1000
PAGE_BYTES = 256 * 1024
"""
The most indicators that are read, and held in memory, at a time, and their bytes.
"""

ANSWER_TIME = 600.0
"""
Seconds that other subscribers have to answer a snapshot request.
"""

SPARE_ASKERS = 16
"""
The most subscriptions that have ended, besides as many as have not, to which a question still
refers.
"""

CLIENT_REQUESTS_PER_MINUTE, REQUESTS_PER_MINUTE = 20, 120
"""
The most snapshots a minute of one client, and of all, for which other subscribers are asked.
"""

_DAY = 86400.0


@implementer(ISnapshotSource)
@attrs.define(eq=False)
class JournalSource:
    """
    The bus's own journal, as a source of snapshots.
    """

    name = "journal"
    time_limit = None

    _journal: IJournal

    async def pages(self, since: float, send: Callable[[list[bytes]], Deferred[None]]) -> int:
        after = count = 0
        until = self._journal.head
        await send([])  # fires when there is a subscriber to send to
        while page := await self._journal.current(after, until, since, PAGE_ITEMS, PAGE_BYTES):
            after = page[-1][0]
            count += len(page)
            sent = send([document for _, document in page])
            del page  # the queue of the subscription has it
            await sent
        return count


class _Question(msgspec.Struct):
    """
    A snapshot request to other subscribers.

    @ivar id: The request's id, which the answers repeat.
    @ivar until: When answers are no longer accepted; seconds.
    @ivar askers: The subscriptions that get the answers; some may have ended.
    @ivar waiting: How many had not ended when those that had were dropped last.
    @ivar asked: The topics of the subscriptions that were asked.
    @ivar answered: Whether there was an answer; then no more askers can join.
    """

    id: str
    stream: Stream
    days: int
    until: float
    askers: list[Subscription] = []
    waiting: int = 0
    asked: set[str] = set()
    answered: bool = False


@attrs.define(eq=False)
class Snapshots:
    """
    Delivers snapshots to subscriptions, from every source in turn.

    @param now: The calendar from which days are counted back.
    @param sources: The sources, in order.
    @param everybody: Returns all subscriptions. They are asked, too; a subscriber that
        knows more answers with envelopes.
    @param refuse: Sets answers of subscribers aside that cannot be rendered.
    """

    _log = Logger()

    _clock: IReactorTime
    _now: Calendar
    _sources: Sequence[ISnapshotSource]
    _everybody: Callable[[], Iterable[Subscription]]
    _refuse: Refuse
    _asked: dict[str, _Question] = attrs.field(init=False, factory=dict)
    _lines: ClientRateLimit = attrs.field(init=False)
    _requests: ClientRateLimit = attrs.field(init=False)
    _complaints: RateLimit = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._requests = ClientRateLimit(
            self._clock, CLIENT_REQUESTS_PER_MINUTE, REQUESTS_PER_MINUTE
        )
        self._complaints = RateLimit(self._clock, LOSSES_PER_MINUTE)
        self._lines = ClientRateLimit(self._clock, CLIENT_LINES_PER_MINUTE, LINES_PER_MINUTE)

    def begin(self, subscription: Subscription) -> None:
        """
        Send a subscription the snapshot that it begins with, if any.
        """
        if subscription.snapshot_days != 0:
            self.deliver(subscription, subscription.snapshot_days)

    def deliver(self, subscription: Subscription, days: int | None) -> None:
        """
        Send a subscription the intel of some days before anything else.

        A source that fails is logged, and the others are still asked. The answers of other
        subscribers follow as they arrive; these are not asked for too many snapshots a minute.

        @param days: The number of days; C{None} for everything that is in force.
        """
        subscription.take_snapshot(lambda send: self._deliver(subscription, days, send))
        if days is not None:
            for stream in subscription.streams:
                self._ask_others(subscription, stream, days)

    def _ask_others(self, subscription: Subscription, stream: Stream, days: int) -> None:
        allowed = self._requests.allows(subscription.user)
        if allowed:
            self._drop_ended()
        question = self._open_question(stream, days)
        if question is None and allowed:
            until = self._clock.seconds() + ANSWER_TIME
            question = _Question(str(uuid.uuid4()), stream, days, until)
            self._asked[question.id] = question
        if question is None:
            text = "Asked nobody for a snapshot for {name}: there are too many requests."
            self._complaints.warn(self._log, text, name=subscription.name)
            return
        question.askers.append(subscription)
        if len(question.askers) > 2 * question.waiting + SPARE_ASKERS:
            self._waiting(question)
        if allowed:
            self._ask(question, subscription)

    def _open_question(self, stream: Stream, days: int) -> _Question | None:
        """
        @return: A question whose answers serve another subscription, too.
        """
        now = self._clock.seconds()
        for question in self._asked.values():
            wanted = (question.stream, question.days, question.answered) == (stream, days, False)
            if wanted and question.until > now:
                return question
        return None

    def _ask(self, question: _Question, subscription: Subscription) -> None:
        seconds = round(question.days * _DAY)
        payload = encode_snapshot_request(question.id, question.stream, seconds)
        for other in self._everybody():
            if (
                other is not subscription
                and other.answers_snapshots
                and other.topic not in question.asked
            ):
                question.asked.add(other.topic)
                other.deliver([payload])

    def _drop_ended(self) -> None:
        for request, question in list(self._asked.items()):
            if not self._waiting(question):
                del self._asked[request]

    def _waiting(self, question: _Question) -> bool:
        """
        Drop the askers of a question that have ended.

        @return: Whether there are others that still wait for answers.
        """
        question.askers = [asker for asker in question.askers if not asker.closed]
        question.waiting = len(question.askers)
        return bool(question.askers) and question.until > self._clock.seconds()

    def answered(self, envelope: Envelope) -> None:
        """
        Send an envelope of another subscriber's answer to the askers.
        """
        question = self._asked.get(envelope.snapshot)
        if question is None or not self._waiting(question):
            self._log.debug("Ignored a snapshot envelope that no subscription waits for.")
            return
        question.answered = True
        item = envelope.item
        entry = JournalEntry(0, stream_of(item), item.raw)
        payloads = {
            dialect: render_entries(dialect, [entry], Stage.SNAPSHOT, self._refuse)[1]
            for dialect in {asker.request.dialect for asker in question.askers}
        }
        for asker in question.askers:
            asker.deliver(payloads[asker.request.dialect])

    async def _deliver(self, subscription: Subscription, days: int | None, send: SendPage) -> None:
        started = self._clock.seconds()
        since = 0.0 if days is None else self._now() - days * _DAY
        count = 0
        failed = []

        async def send_page(documents: list[bytes]) -> None:
            await send(await subscription.render_page(documents))

        for source in self._sources if Stream.INTEL in subscription.streams else ():
            answer: Deferred[int] = Deferred.fromCoroutine(
                source.pages(since, lambda documents: Deferred.fromCoroutine(send_page(documents)))
            )
            if source.time_limit is not None:
                answer.addTimeout(source.time_limit, self._clock)
            try:
                count += await answer
            except CancelledError:
                raise
            except Exception:
                failed.append(source.name)
                self._log.failure("Cannot get a snapshot from {source}", source=source.name)
        await send(subscription.render_end(days is None, failed))
        self._lines.info(
            subscription.user,
            self._log,
            "Snapshot of {days} for {name}: {count} indicators in {elapsed:.3f} s.",
            days="all" if days is None else f"{days} days",
            name=subscription.name,
            count=count,
            elapsed=self._clock.seconds() - started,
        )
