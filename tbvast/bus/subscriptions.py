"""
Subscriptions: the streams and the dialect of each, and the frames that wait for it.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bus.fanout import CommittedBatch, render_each
from tbvast.errors import ProtocolInvalid
from tbvast.protocol.frames import render_document
from tbvast.protocol.manage import PROTOCOL, Subscribe
from tbvast.protocol.topics import STIX2_TOPIC_LENGTH, Dialect, Stream, new_topic, streams_of
from tbvast.service.rate_limit import RateLimit

SWEEP_INTERVAL = 1.0
"""
Seconds between checks for subscriptions that have timed out.
"""

RETRY_INTERVAL = 0.001
"""
Seconds before frames are offered again to a peer whose queue was full.
"""

TURN_BUDGET_SECONDS = 0.005
"""
Seconds after which long work continues in another turn of the reactor.
"""

PUMP_FRAMES = 500
"""
The most frames that are sent to one subscriber at once.
"""

SAVE_DELAY = 1.0
"""
Seconds before a change of the subscriptions is saved.
"""

PROGRESS_INTERVAL = 0.5
"""
Seconds between checks of the progress of each subscription, which is then saved.
"""

PROGRESS_AGE = 0.4
"""
Seconds after which a frame has left ZeroMQ's own queue, if the kernel has room.
"""

FLUSH_INTERVAL = 0.02
"""
Seconds between checks, when the bus stops, whether subscribers have everything.
"""

FLUSH_AGE = 0.1
"""
As L{PROGRESS_AGE}, when the bus stops: ZeroMQ sends the rest of its queue while it lingers.
"""

LOSSES_PER_MINUTE = 60
"""
The most log lines a minute about subscribers that read too slowly.
"""

Save = Callable[[dict[str, bytes | None]], Deferred[None]]
"""
L{tbvast.interfaces.ISubscriptionStore.save_subscriptions}.
"""

Send = Callable[[Sequence[bytes]], int]
"""
Gives frames for one subscriber to the pub endpoint, in order. Returns the number that it
accepted: fewer than given if the subscriber's queue is full.
"""

Unacknowledged = Callable[[Iterable[bytes]], int | None]
"""
The bytes that wait in the kernel for the peers that listen to some ZeroMQ topics; C{None}
if unknown. ZeroMQ's own queue is not counted.
"""


class Limits(msgspec.Struct, frozen=True):
    """
    The limits of subscriptions.

    @ivar subscriptions: The most subscriptions.
    @ivar client_subscriptions: The most subscriptions of one client.
    @ivar topics: The most topics of one subscription.
    @ivar queue_messages: The most frames that wait in memory for one subscription.
    @ivar queue_bytes: Their most bytes.
    @ivar heartbeat_timeout: Seconds without a heartbeat after which a subscription that had
        heartbeats is closed.
    @ivar detached_timeout: Seconds without a ZeroMQ subscription after which a subscription
        is closed.
    """

    subscriptions: int
    client_subscriptions: int
    topics: int
    queue_messages: int
    queue_bytes: int
    heartbeat_timeout: float
    detached_timeout: float


class _Frames:
    """
    Waiting frames, and their total size.
    """

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._frames)

    def extend(self, frames: Iterable[bytes]) -> None:
        more = list(frames)
        self._frames.extend(more)
        self.size += sum(map(len, more))

    def drop_oldest(self) -> None:
        self.size -= len(self._frames.popleft())

    def send(self, send: Send, budget: int) -> int:
        """
        @return: The number of frames sent.
        """
        frames = list(itertools.islice(self._frames, budget))
        sent = send(frames)
        self.size -= sum(map(len, frames[:sent]))
        for _ in range(sent):
            self._frames.popleft()
        return sent


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


class Subscription:
    """
    One subscriber, with its own topic and its own queue.

    Nothing is sent before the subscriber's ZeroMQ subscription has arrived. A snapshot is
    sent before everything that is delivered after the subscription was made.

    @ivar topic: The topic that only this subscriber knows.
    @ivar request: Its request.
    @ivar user: The user who made the request, as the access control knows it.
    @ivar streams: The streams that it gets.
    @ivar since: When it was made; seconds.
    @ivar heard: When the subscriber last sent a heartbeat; seconds.
    @ivar beating: Whether there have been heartbeats.
    @ivar detached: When the last ZeroMQ subscription ended; seconds; C{None} while there
        is one.
    @ivar report: The subscriber's last report about itself.
    @ivar sent: The number of frames sent.
    @ivar dropped: The number of frames lost: the queue was full, or the journal has pruned
        them.
    @ivar closed: Whether it has ended.
    @ivar listening: Its ZeroMQ subscriptions: how often each topic was subscribed to.
    """

    _log = Logger()

    def __init__(
        self,
        request: Subscribe,
        user: str,
        topic: str,
        send: Send,
        stuck: Callable[[Subscription], None],
        lost: Callable[[Subscription], None],
        limits: Limits,
        now: float,
    ) -> None:
        """
        @param user: The user who made the request.
        @param topic: Its own topic.
        @param send: Sends frames.
        @param stuck: Called when frames wait only for room in ZeroMQ's queue;
            L{pump} is to be called again soon.
        @param lost: Called when frames were lost because the queue was full.
        @param now: Seconds.
        """
        self.topic = topic
        self.request = request
        self.user = user
        self.streams = streams_of(request.topics)
        self.since = now
        self.heard = now
        self.beating = False
        self.detached: float | None = now
        self.report: dict[str, Any] = {}
        self.sent = 0
        self.dropped = 0
        self.closed = False
        self._prefix = topic.encode()
        self._send = send
        self._stuck = stuck
        self._lost = lost
        self._limits = limits
        self.listening: Counter[bytes] = Counter()
        self._live = _Frames()
        self._snapshot: _Frames | None = None
        self._snapshot_done: Deferred[Any] = succeed(None)
        self._drained: Deferred[None] | None = None

    @property
    def queued(self) -> int:
        """
        The number of waiting frames.
        """
        return len(self._live) + (0 if self._snapshot is None else len(self._snapshot))

    @property
    def answers_snapshots(self) -> bool:
        """
        Whether the subscriber may be able to answer a snapshot request.
        """
        return self.request.dialect is Dialect.STIX2 and self.request.protocol != PROTOCOL

    @property
    def behind(self) -> int:
        """
        The number of journal entries, at most, that are neither sent nor waiting.
        """
        return 0

    @property
    def saved(self) -> bytes | None:
        """
        Its state to save; C{None} if there is none.
        """
        return msgspec.json.encode(Saved(self.request, self.user))

    def attach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription arrived.

        @param topic: Its own topic, or one that begins with it.
        """
        self.listening[topic] += 1
        self.detached = None

    def detach(self, topic: bytes, now: float) -> None:
        """
        A ZeroMQ subscription ended.
        """
        self.listening -= Counter([topic])
        if not self.listening:
            self.detached = now

    def update_acknowledged(
        self, now: float, unacknowledged: int | None, age: float, until: int
    ) -> bool:
        """
        Find out which frames have certainly left ZeroMQ's queue.

        @param now: Seconds.
        @param unacknowledged: The bytes that the kernel holds for the subscriber; C{None}
            if unknown.
        @param age: Seconds after which a frame is in the kernel if that has room.
        @param until: The number up to which everything was delivered.
        @return: Whether L{saved} may have changed.
        """
        return False

    def committed(self, batch: CommittedBatch) -> None:
        """
        Deliver the items of a batch that belong to its streams.
        """
        raise NotImplementedError

    def deliver(self, payloads: Iterable[bytes]) -> None:
        """
        Send frames, now or as soon as possible.

        @param payloads: The frames without the topic.
        """
        frames = [self._prefix + payload for payload in payloads]
        if self.detached is None and self._snapshot is None and not self._live:
            taken = self._send(frames)
            self.sent += taken
            frames = frames[taken:]
        if frames:
            self._live.extend(frames)
            self._drop_oldest()
            if self.detached is None and self._snapshot is None:
                self._stuck(self)

    def _drop_oldest(self) -> None:
        before = self.dropped
        while self._live and (
            len(self._live) > self._limits.queue_messages
            or self._live.size > self._limits.queue_bytes
        ):
            self._live.drop_oldest()
            self.dropped += 1
        if self.dropped != before:
            self._lost(self)

    def take_snapshot(
        self, deliver: Callable[[Callable[[Iterable[bytes]], Deferred[None]]], Deferred[Any]]
    ) -> None:
        """
        Send a snapshot first; everything that is delivered meanwhile waits.

        @param deliver: Called with a callable that sends a page, given as frames without
            the topic, and returns a C{Deferred} that fires when the next page may be sent.
            Returns a C{Deferred} that fires when the snapshot is complete; it is cancelled
            if the subscription ends first.
        """
        self._abandon_snapshot()
        self._snapshot = _Frames()
        self._snapshot_done = deliver(self._deliver_page)
        self._snapshot_done.addBoth(self._snapshot_over, self._snapshot)

    def _abandon_snapshot(self) -> None:
        done, self._snapshot_done = self._snapshot_done, succeed(None)
        self._snapshot = self._drained = None
        done.cancel()

    def _deliver_page(self, payloads: Iterable[bytes]) -> Deferred[None]:
        assert self._snapshot is not None
        self._snapshot.extend(self._prefix + payload for payload in payloads)
        self._drained = Deferred()
        drained = self._drained
        self.pump()
        return drained

    def _snapshot_over(self, result: Any, snapshot: _Frames) -> None:
        if snapshot is not self._snapshot:  # another one has begun
            return
        if isinstance(result, Failure) and not self.closed:
            self._log.failure("A snapshot failed before its end", result)
        self._snapshot_ended()
        self._snapshot = None
        self.pump()

    def _snapshot_ended(self) -> None:
        """
        ZeroMQ has accepted the whole snapshot.
        """

    def render_snapshot_page(
        self, documents: Sequence[bytes]
    ) -> tuple[list[bytes], list[tuple[bytes, Exception]]]:
        """
        Render some indicators of a snapshot.

        @return: Frames without the topic; and the documents that cannot be rendered, with
            their errors.
        """
        render = functools.partial(render_document, self.request.dialect, Stream.INTEL)
        return render_each(render, documents)

    def snapshot_end(self, full: bool, failed: Sequence[str]) -> Iterable[bytes]:
        """
        Render the end of a snapshot.

        @param full: Whether the snapshot holds everything that is in force.
        @param failed: The sources that could not answer.
        @return: Frames without the topic.
        """
        return ()

    def pump(self) -> None:
        """
        Send a bounded number of waiting frames.
        """
        if self.detached is not None:
            return
        if self._snapshot is not None:
            self.sent += self._snapshot.send(self._send, PUMP_FRAMES)
            if not self._snapshot and self._drained is not None:
                drained, self._drained = self._drained, None
                drained.callback(None)
        elif self._live:
            self.sent += self._live.send(self._send, PUMP_FRAMES)
        if self._live if self._snapshot is None else self._snapshot:
            self._stuck(self)

    def close(self) -> None:
        """
        End the subscription, and drop its waiting frames.
        """
        self.closed = True
        self.detached = self.since
        self._abandon_snapshot()
        self._live = _Frames()


Make = Callable[..., Subscription]
"""
Makes a subscription; has the parameters of L{Subscription}.
"""


class Subscriptions(MultiService):
    """
    The subscriptions of one bus. One whose subscriber is silent, or away, for too long is
    closed.

    @ivar send: Sends frames to one subscriber.
    @ivar save: Saves changed subscriptions.
    @ivar unacknowledged: Asks for the bytes that the kernel holds for a subscriber.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits,
        make_replayed: Make,
        make_queued: Make,
    ) -> None:
        """
        @param make_replayed: Makes subscriptions of tbvast/1.
        @param make_queued: Makes subscriptions of the old dialects. Its parameter C{saved}
            takes a saved state.
        """
        super().__init__()
        self._make_replayed = make_replayed
        self._make_queued = make_queued
        self._clock = clock
        self._limits = limits
        self._by_topic: dict[str, Subscription] = {}
        self._by_user: Counter[str] = Counter()
        self._stuck: dict[Subscription, None] = {}
        self._fanning_out: deque[tuple[CommittedBatch, Iterator[Subscription], Deferred[None]]] = (
            deque()
        )
        self._going_on: IDelayedCall | None = None
        self._retrying: IDelayedCall | None = None
        self._losses = RateLimit(clock, LOSSES_PER_MINUTE)
        self._unsaved: dict[str, None] = {}
        self._saving: IDelayedCall | None = None
        self._saved: Deferred[None] = succeed(None)
        self._failing = False
        self._delivered_until = 0
        self._checking: list[Subscription] = []
        self._checking_on: IDelayedCall | None = None
        self.send: Send = _nowhere
        self.save: Save = _not_saved
        self.unacknowledged: Unacknowledged = _unknown
        sweep = TimerService(SWEEP_INTERVAL, self._sweep)
        sweep.clock = clock
        sweep.setServiceParent(self)
        progress = TimerService(PROGRESS_INTERVAL, self._check_progress)
        progress.clock = clock
        progress.setServiceParent(self)

    def __len__(self) -> int:
        return len(self._by_topic)

    def everybody(self) -> list[Subscription]:
        """
        @return: All subscriptions.
        """
        return list(self._by_topic.values())

    def restore(self, saved: dict[str, bytes]) -> dict[str, tuple[bytes, Exception]]:
        """
        Make the saved subscriptions again when the bus starts.

        @param saved: Their saved states, by topic.
        @return: The states that cannot be read, with their errors, by topic; they are
            deleted.
        """
        bad: dict[str, tuple[bytes, Exception]] = {}
        for topic, raw in saved.items():
            try:
                known = msgspec.json.decode(raw, type=Saved)
                self._add(topic, known.request, known.user, known)
            except Exception as e:
                bad[topic] = (raw, e)
                self._unsaved[topic] = None
                self._save_soon()
        return bad

    def open(self, request: Subscribe, user: str = "") -> Subscription:
        """
        Make a subscription.

        @param user: The user who asks, as the access control knows it.
        @raise ProtocolInvalid: If there are too many subscriptions, or it names too many
            topics.
        """
        if len(self) >= self._limits.subscriptions:
            raise ProtocolInvalid(
                "subscriptions", len(self), f"less than the limit, {self._limits.subscriptions}"
            )
        if len(request.topics) > self._limits.topics:
            raise ProtocolInvalid(
                "topic", len(request.topics), f"at most {self._limits.topics} topics"
            )
        if user and self._by_user[user] >= self._limits.client_subscriptions:
            raise ProtocolInvalid(
                "subscriptions",
                self._by_user[user],
                f"less than the limit for one client, {self._limits.client_subscriptions}",
            )
        topic = new_topic(request.topics[0], request.dialect)
        subscription = self._add(topic, request, user)
        self._mark_unsaved(subscription)
        self._log.info(
            "{name} subscribed to {topics} ({dialect}, {snapshot} days); {count} subscriptions.",
            name=request.name or "somebody",
            topics=", ".join(request.topics),
            dialect=request.dialect,
            snapshot=request.snapshot,
            count=len(self),
        )
        return subscription

    def _add(
        self, topic: str, request: Subscribe, user: str, saved: Saved | None = None
    ) -> Subscription:
        make = self._make_replayed if request.protocol == PROTOCOL else self._make_queued
        if saved is not None:
            make = functools.partial(make, saved=saved)
        subscription = make(
            request,
            user,
            topic,
            lambda frames: self.send(frames),
            self._retry_soon,
            self._has_lost,
            self._limits,
            self._clock.seconds(),
        )
        self._by_topic[topic] = subscription
        self._by_user[user] += 1
        return subscription

    def _has_lost(self, subscription: Subscription) -> None:
        if self._losses.allows():
            self._log.warn(
                "{name} reads too slowly and has lost {dropped} messages so far.",
                name=subscription.request.name or "somebody",
                dropped=subscription.dropped,
            )

    def _mark_unsaved(self, subscription: Subscription) -> None:
        if subscription.request.protocol == PROTOCOL:
            return  # its subscriber subscribes again, and resumes
        self._unsaved[subscription.topic] = None
        self._save_soon()

    def _save_soon(self) -> None:
        if self._saving is None and self._saved.called:
            self._saving = self._clock.callLater(SAVE_DELAY, self._save)

    def _save(self) -> Deferred[None]:
        self._saving = None
        unsaved, self._unsaved = self._unsaved, {}
        changes = {
            topic: None if (found := self._by_topic.get(topic)) is None else found.saved
            for topic in unsaved
        }
        saved = self._saved = self.save(changes)
        return saved.addCallbacks(self._cb_saved, self._eb_saved, errbackArgs=(unsaved,))

    def _cb_saved(self, _: None) -> None:
        self._failing = False
        if self._unsaved and self.running:
            self._saving = self._clock.callLater(SAVE_DELAY, self._save)

    def _eb_saved(self, failure: Failure, unsaved: dict[str, None]) -> None:
        if not self._failing:  # log it once; it is retried
            self._failing = True
            self._log.error("Cannot save subscriptions: {reason}", reason=str(failure.value))
        self._unsaved = unsaved | self._unsaved
        if self.running:
            self._saving = self._clock.callLater(SAVE_DELAY, self._save)

    def _check_progress(self) -> None:
        """
        Check the progress of all subscriptions. Many of them take several turns.
        """
        if not self._checking:
            self._checking = self.everybody()
            self._check_some()

    def _check_some(self) -> None:
        self._checking_on = None
        until = self._clock.seconds() + TURN_BUDGET_SECONDS
        while self._checking:
            try:
                self._check_one(self._checking.pop(), PROGRESS_AGE)
            except Exception:
                self._log.failure("Cannot check the progress of a subscriber")
            if self._checking and self._clock.seconds() > until:
                self._checking_on = self._clock.callLater(0, self._check_some)
                return
        if self._unsaved and self._saved.called:
            if self._saving is not None:
                self._saving.cancel()
            self._save()

    def _check_one(self, subscription: Subscription, age: float) -> int | None:
        """
        @return: The bytes that its connection holds; C{None} if unknown.
        """
        if subscription.closed or subscription.detached is not None:
            return 0
        held = self.unacknowledged(subscription.listening)
        if subscription.update_acknowledged(
            self._clock.seconds(), held, age, self._delivered_until
        ):
            self._unsaved[subscription.topic] = None
        return held

    async def flush(self, limit: float) -> None:
        """
        Wait until the attached subscribers have received everything that was accepted.

        @param limit: The most seconds to wait.
        """
        deadline = self._clock.seconds() + limit
        quiet_since: float | None = None
        while (now := self._clock.seconds()) < deadline:
            busy = bool(self._fanning_out)
            there = [each for each in self.everybody() if each.detached is None]
            if not (busy or there):
                return
            for each in there:
                held = self._check_one(each, FLUSH_AGE)
                busy |= bool(held or each.queued or each.behind)
            if busy:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since >= 2 * FLUSH_AGE:  # this look has stored the progress
                return
            await deferLater(self._clock, FLUSH_INTERVAL)

    def get(self, topic: str) -> Subscription | None:
        """
        @return: The subscription with a topic, if any.
        """
        return self._by_topic.get(topic)

    def heartbeat(self, topic: str, report: dict[str, Any]) -> bool:
        """
        Note that a subscriber is alive.

        @param report: Its report about itself.
        @return: Whether there is such a subscription.
        """
        subscription = self._by_topic.get(topic)
        if subscription is None:
            return False
        subscription.heard = self._clock.seconds()
        subscription.beating = True
        subscription.report = report
        return True

    def close_all(self, users: Collection[str]) -> None:
        """
        Close the subscriptions of users who have lost permissions.
        """
        for subscription in self.everybody():
            if subscription.user in users:
                self.close(subscription.topic, "was removed or restricted")

    def close(self, topic: str, reason: str = "unsubscribed") -> bool:
        """
        Close a subscription.

        @param reason: The reason for the log, after the subscriber's name.
        @return: Whether there was such a subscription.
        """
        subscription = self._by_topic.pop(topic, None)
        if subscription is None:
            return False
        queued, behind = subscription.queued, subscription.behind
        subscription.close()
        self._by_user -= Counter([subscription.user])
        self._mark_unsaved(subscription)
        self._log.info(
            "{name} {reason} after {sent} messages; {dropped} lost, {queued} waiting and up to"
            " {behind} in the journal not sent; {count} subscriptions.",
            name=subscription.request.name or "somebody",
            reason=reason,
            sent=subscription.sent,
            dropped=subscription.dropped,
            queued=queued,
            behind=behind,
            count=len(self),
        )
        return True

    def attach(self, topic: bytes) -> bool:
        """
        A ZeroMQ subscription arrived.

        @return: Whether it belongs to a subscription; other peers may not listen.
        """
        subscription = self._owner(topic)
        if subscription is None:
            return False
        subscription.attach(topic)
        # Waiting frames are sent once the socket knows its new subscriber.
        self._retry_soon(subscription)
        return True

    def detach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription ended.
        """
        subscription = self._owner(topic)
        if subscription is None:
            return
        subscription.detach(topic, self._clock.seconds())
        if subscription.detached is not None and subscription.request.protocol == PROTOCOL:
            # Frames that the socket had accepted may be lost. The subscriber resumes after
            # the last number that it has.
            self.close(subscription.topic, "was cut off")

    def _owner(self, topic: bytes) -> Subscription | None:
        text = topic.decode("ascii", "replace")
        return self._by_topic.get(text) or self._by_topic.get(text[:STIX2_TOPIC_LENGTH])

    def fan_out(self, batch: CommittedBatch) -> Deferred[None]:
        """
        Deliver a batch to all current subscriptions to its streams, after all earlier
        batches.

        @return: Fires when every subscription has been given it, perhaps many turns later.
        """
        wanting = [each for each in self._by_topic.values() if each.streams & batch.streams]
        done: Deferred[None] = Deferred()
        self._fanning_out.append((batch, iter(wanting), done))
        if len(self._fanning_out) == 1:
            self._fan_out()
        return done

    def _fan_out(self) -> None:
        until = self._clock.seconds() + TURN_BUDGET_SECONDS
        while self._fanning_out:
            batch, wanting, done = self._fanning_out[0]
            for subscription in wanting:
                try:
                    if not subscription.closed:
                        subscription.committed(batch)
                except Exception:
                    self._log.failure("Cannot deliver to a subscriber")
                if self._clock.seconds() > until:
                    self._going_on = self._clock.callLater(0, self._fan_out)
                    return
            self._fanning_out.popleft()
            self._delivered_until = batch.until
            done.callback(None)

    def _retry_soon(self, subscription: Subscription) -> None:
        if self._retrying is None:
            self._retrying = self._clock.callLater(RETRY_INTERVAL, self._retry)
        self._stuck[subscription] = None

    def _retry(self) -> None:
        self._retrying = None
        until = self._clock.seconds() + TURN_BUDGET_SECONDS
        stuck, self._stuck = self._stuck, {}
        for subscription in list(stuck):
            del stuck[subscription]
            try:
                subscription.pump()
            except Exception:
                self._log.failure("Cannot send waiting frames to a subscriber")
            if self._clock.seconds() > until:
                break
        if stuck:  # before those that got stuck again
            self._stuck = stuck | self._stuck
            self._retry_at_once()

    def _retry_at_once(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
        self._retrying = self._clock.callLater(0, self._retry)

    def _sweep(self) -> None:
        now = self._clock.seconds()
        for subscription in self.everybody():
            if subscription.beating and now - subscription.heard >= self._limits.heartbeat_timeout:
                self.close(subscription.topic, "fell silent")
            elif (
                subscription.detached is not None
                and now - subscription.detached >= self._limits.detached_timeout
            ):
                self.close(subscription.topic, "went away")

    async def _stop(self) -> None:
        await super().stopService()
        for subscription in self.everybody():
            subscription.close()
        if self._retrying is not None:
            self._retrying.cancel()
            self._retrying = None
        self._stuck.clear()
        if self._going_on is not None and self._going_on.active():
            self._going_on.cancel()
        if self._checking_on is not None:
            self._checking_on.cancel()
            self._checking_on = None
        self._checking.clear()
        await self._saved  # a save in progress
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        if self._unsaved:
            await self._save()

    def stopService(self) -> Deferred[None]:
        """
        Drop all waiting frames, and save the subscriptions.
        """
        return Deferred.fromCoroutine(self._stop())


def _unknown(topics: Iterable[bytes]) -> int | None:
    return None


def _nowhere(frames: Sequence[bytes]) -> int:
    return 0


def _not_saved(changes: dict[str, bytes | None]) -> Deferred[None]:
    return succeed(None)
