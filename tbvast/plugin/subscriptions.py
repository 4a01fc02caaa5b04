"""
Subscriptions: who gets what, in which dialect, and what waits for them.
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
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import ProtocolInvalid
from tbvast.ops.ratelimit import RateLimit
from tbvast.plugin.commit import Commit, render_each
from tbvast.wire.frames import render_intel
from tbvast.wire.manage import PROTOCOL, Subscribe
from tbvast.wire.topics import STIX2_TOPIC_LENGTH, Dialect, new_topic, streams_of

SWEEP_INTERVAL = 1.0
"""
Seconds between looks for subscriptions that have ended.
"""

RETRY_INTERVAL = 0.001
"""
Seconds after which frames are offered again to a peer whose queue was full.
"""

TURN = 0.005
"""
Seconds after which work that can wait goes on in another turn of the reactor.
"""

PUMP_FRAMES = 500
"""
The most frames that one subscriber is sent in one go.
"""

SAVE_DELAY = 1.0
"""
Seconds after which a change of the subscriptions is remembered.
"""

LOSSES_PER_MINUTE = 60
"""
How often a minute it is logged that somebody reads too slowly.
"""

Save = Callable[[dict[str, bytes | None]], Deferred[None]]
"""
L{tbvast.interfaces.ISubscriptionStore.save_subscriptions}.
"""

Send = Callable[[Sequence[bytes]], int]
"""
Hands frames for one subscriber to the pub endpoint, in order. Returns how many it
took: fewer than given if the subscriber's queue is full.
"""


class Limits(msgspec.Struct, frozen=True):
    """
    What subscribers may cost.

    @ivar subscriptions: How many there may be.
    @ivar client_subscriptions: How many of them one client may have.
    @ivar topics: How many topics one may name.
    @ivar queue_messages: Frames that wait for one at the most.
    @ivar queue_bytes: Their size at the most.
    @ivar heartbeat_timeout: Seconds of silence that end one which had heartbeats.
    @ivar detached_timeout: Seconds that one lives without a ZeroMQ subscription.
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
    Frames that wait, and their size.
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
        @return: How many were sent.
        """
        frames = list(itertools.islice(self._frames, budget))
        sent = send(frames)
        self.size -= sum(map(len, frames[:sent]))
        for _ in range(sent):
            self._frames.popleft()
        return sent


class Subscription:
    """
    One subscriber: a topic of its own, and a queue of its own.

    Nothing is sent before the subscriber's ZeroMQ subscription has been seen.
    A snapshot goes before all that is delivered after the subscription was made.

    @ivar topic: The topic that only this subscriber knows.
    @ivar request: What was asked for.
    @ivar user: Who asked, as the gate knows it.
    @ivar streams: What it gets.
    @ivar since: When it was made; seconds.
    @ivar heard: When the subscriber was heard of last; seconds.
    @ivar beating: Whether there have been heartbeats.
    @ivar detached: Since when there has been no ZeroMQ subscription; C{None}
        while there is one.
    @ivar report: What the subscriber said of itself last.
    @ivar sent: Frames sent.
    @ivar dropped: Frames lost because the queue was full.
    @ivar closed: Whether it has ended.
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
        @param stuck: Called when frames wait only for room in ZeroMQ's queue;
            L{pump} is to be called again soon.
        @param lost: Called when frames were lost because the queue was full.
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
        self._attachments = 0
        self._live = _Frames()
        self._snapshot: _Frames | None = None
        self._snapshot_done: Deferred[Any] = succeed(None)
        self._drained: Deferred[None] | None = None

    @property
    def queued(self) -> int:
        """
        How many frames wait.
        """
        return len(self._live) + (0 if self._snapshot is None else len(self._snapshot))

    @property
    def answers_snapshots(self) -> bool:
        """
        Whether the subscriber may understand a snapshot request.
        """
        return self.request.dialect is Dialect.STIX2 and self.request.protocol != PROTOCOL

    def attach(self) -> None:
        """
        A ZeroMQ subscription for the topic arrived.
        """
        self._attachments += 1
        self.detached = None

    def detach(self, now: float) -> None:
        """
        A ZeroMQ subscription for the topic ended.
        """
        self._attachments = max(0, self._attachments - 1)
        if not self._attachments:
            self.detached = now

    def committed(self, commit: Commit) -> None:
        """
        Something was accepted of which it wants something.
        """
        self.deliver(commit.tails(self.request.dialect, self.streams))

    def deliver(self, tails: Iterable[bytes]) -> None:
        """
        Send what follows the topic in each frame, now or when it is possible.
        """
        frames = [self._prefix + tail for tail in tails]
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
        Send a snapshot first, and hold back what is delivered until it is over.

        @param deliver: Called with a callable that sends a part, given as what
            follows the topic in each frame, and returns a L{Deferred} that fires
            when the next part may come. Returns a L{Deferred} that fires when the
            snapshot is over; it is cancelled when the subscription ends first.
        """
        self._snapshot = _Frames()
        self._snapshot_done = deliver(self._deliver_part)
        self._snapshot_done.addBoth(self._snapshot_over)

    def _deliver_part(self, tails: Iterable[bytes]) -> Deferred[None]:
        assert self._snapshot is not None
        self._snapshot.extend(self._prefix + tail for tail in tails)
        self._drained = Deferred()
        drained = self._drained
        self.pump()
        return drained

    def _snapshot_over(self, result: Any) -> None:
        if isinstance(result, Failure) and not self.closed:
            self._log.failure("A snapshot ended early", result)
        self._snapshot = None
        self.pump()

    def snapshot_part(
        self, documents: Sequence[bytes]
    ) -> tuple[list[bytes], list[tuple[bytes, Exception]]]:
        """
        @return: What follows the topic in the frames for some indicators; and those of
            them that cannot be rendered, and why.
        """
        return render_each(functools.partial(render_intel, self.request.dialect), documents)

    def snapshot_end(self, full: bool, failed: Sequence[str]) -> Iterable[bytes]:
        """
        @param full: Whether the snapshot holds all that is in force.
        @param failed: The sources that could not answer.
        @return: What follows the topic in the frames that end a snapshot.
        """
        return ()

    def pump(self) -> None:
        """
        Send a bounded number of the frames that wait.
        """
        if self.detached is not None:
            return
        if self._snapshot is not None:
            self.sent += self._snapshot.send(self._send, PUMP_FRAMES)
            if not self._snapshot and self._drained is not None:
                drained, self._drained = self._drained, None
                drained.callback(None)
        else:
            self.sent += self._live.send(self._send, PUMP_FRAMES)
        if self._live if self._snapshot is None else self._snapshot:
            self._stuck(self)

    def close(self) -> None:
        """
        Let go of everything that waits.
        """
        self.closed = True
        self.detached = self.since
        self._snapshot_done.cancel()
        self._live = _Frames()


MakeFed = Callable[..., Subscription]
"""
Makes a subscription that is fed from the journal; takes what L{Subscription} does.
"""


class Subscriptions(MultiService):
    """
    The subscriptions of one bus. One whose subscriber stays silent, or away, too
    long is dropped.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, limits: Limits, make_fed: MakeFed | None = None
    ) -> None:
        """
        @param make_fed: Makes the subscriptions of those who speak tbvast/1.
        """
        super().__init__()
        self._make_fed = make_fed
        self._clock = clock
        self._limits = limits
        self._by_topic: dict[str, Subscription] = {}
        self._by_user: Counter[str] = Counter()
        self._stuck: dict[Subscription, None] = {}
        self._spreading: deque[tuple[Commit, Iterator[Subscription], Deferred[None]]] = deque()
        self._going_on: IDelayedCall | None = None
        self._retrying: IDelayedCall | None = None
        self._losses = RateLimit(clock, LOSSES_PER_MINUTE)
        self._unsaved: dict[str, bytes | None] = {}
        self.send: Send = _nowhere
        self.save: Save = _not_saved
        sweep = TimerService(SWEEP_INTERVAL, self._sweep)
        sweep.clock = clock
        sweep.setServiceParent(self)

    def __len__(self) -> int:
        return len(self._by_topic)

    def everybody(self) -> list[Subscription]:
        """
        All subscriptions.
        """
        return list(self._by_topic.values())

    def restore(self, saved: dict[str, bytes]) -> dict[str, tuple[bytes, Exception]]:
        """
        Make the subscriptions again that there were before the bus was started.

        @param saved: What L{save} was given.
        @return: Those that cannot be made, and why, by topic; they are forgotten.
        """
        bad: dict[str, tuple[bytes, Exception]] = {}
        for topic, raw in saved.items():
            try:
                known = msgspec.json.decode(raw, type=_Saved)
                self._add(topic, known.request, known.user)
            except Exception as e:
                bad[topic] = (raw, e)
                self._remember(topic, None)
        return bad

    def open(self, request: Subscribe, user: str = "") -> Subscription:
        """
        Make a subscription.

        @param user: Who asks, as the gate knows it.
        @raise ProtocolInvalid: If there are too many already, or it names too
            many topics.
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
        if request.protocol != PROTOCOL:  # who speaks it subscribes again, for what it missed
            self._remember(topic, msgspec.json.encode(_Saved(request, user)))
        self._log.info(
            "{name} subscribed to {topics} ({dialect}, {snapshot} days); {count} subscriptions.",
            name=request.name or "somebody",
            topics=", ".join(request.topics),
            dialect=request.dialect,
            snapshot=request.snapshot,
            count=len(self),
        )
        return subscription

    def _add(self, topic: str, request: Subscribe, user: str) -> Subscription:
        fed = self._make_fed if request.protocol == PROTOCOL else None
        subscription = (fed or Subscription)(
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

    def _remember(self, topic: str, saved: bytes | None) -> None:
        if not self._unsaved:
            self._saving = self._clock.callLater(SAVE_DELAY, self._save)
        self._unsaved[topic] = saved

    def _save(self) -> Deferred[None]:
        unsaved, self._unsaved = self._unsaved, {}
        return self.save(unsaved).addErrback(
            lambda failure: self._log.error(
                "Subscriptions cannot be remembered: {reason}", reason=str(failure.value)
            )
        )

    def get(self, topic: str) -> Subscription | None:
        return self._by_topic.get(topic)

    def heartbeat(self, topic: str, report: dict[str, Any]) -> bool:
        """
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
        End the subscriptions of users who have lost rights.
        """
        for subscription in self.everybody():
            if subscription.user in users:
                self.close(subscription.topic, "is no longer let in, or may do less")

    def close(self, topic: str, reason: str = "unsubscribed") -> bool:
        """
        @return: Whether there was such a subscription.
        """
        subscription = self._by_topic.pop(topic, None)
        if subscription is None:
            return False
        subscription.close()
        self._by_user -= Counter([subscription.user])
        if subscription.request.protocol != PROTOCOL:
            self._remember(topic, None)
        self._log.info(
            "{name} {reason} after {sent} messages, {dropped} of them lost; {count} subscriptions.",
            name=subscription.request.name or "somebody",
            reason=reason,
            sent=subscription.sent + subscription.dropped,
            dropped=subscription.dropped,
            count=len(self),
        )
        return True

    def attach(self, topic: bytes) -> bool:
        """
        A ZeroMQ subscription arrived.

        @return: Whether it belongs to a subscription: nobody else may listen.
        """
        subscription = self._owner(topic)
        if subscription is None:
            return False
        subscription.attach()
        # What waits is sent once the socket knows its new subscriber.
        self._retry_soon(subscription)
        return True

    def detach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription ended.
        """
        subscription = self._owner(topic)
        if subscription is None:
            return
        subscription.detach(self._clock.seconds())
        if subscription.detached is not None and subscription.request.protocol == PROTOCOL:
            # What the socket had taken may be lost; the subscriber comes back with
            # the number of what it has.
            self.close(subscription.topic, "was cut off")

    def _owner(self, topic: bytes) -> Subscription | None:
        text = topic.decode("ascii", "replace")
        return self._by_topic.get(text) or self._by_topic.get(text[:STIX2_TOPIC_LENGTH])

    def spread(self, commit: Commit) -> Deferred[None]:
        """
        Send what was accepted to everybody who wants it: those who have subscribed
        by now, after all that was spread before.

        @return: Fires when everybody has been given it, which may be turns later.
        """
        wanting = [each for each in self._by_topic.values() if each.streams & commit.streams]
        done: Deferred[None] = Deferred()
        self._spreading.append((commit, iter(wanting), done))
        if len(self._spreading) == 1:
            self._spread()
        return done

    def _spread(self) -> None:
        until = self._clock.seconds() + TURN
        while self._spreading:
            commit, wanting, done = self._spreading[0]
            for subscription in wanting:
                try:
                    if not subscription.closed:
                        subscription.committed(commit)
                except Exception:
                    self._log.failure("While delivering to a subscriber")
                if self._clock.seconds() > until:
                    self._going_on = self._clock.callLater(0, self._spread)
                    return
            self._spreading.popleft()
            done.callback(None)

    def _retry_soon(self, subscription: Subscription) -> None:
        if self._retrying is None:
            self._retrying = self._clock.callLater(RETRY_INTERVAL, self._retry)
        self._stuck[subscription] = None

    def _retry(self) -> None:
        self._retrying = None
        until = self._clock.seconds() + TURN
        stuck, self._stuck = self._stuck, {}
        for subscription in list(stuck):
            del stuck[subscription]
            subscription.pump()
            if self._clock.seconds() > until:
                break
        if stuck:  # before those which got stuck again
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
        if self._unsaved:
            self._saving.cancel()
            await self._save()

    def stopService(self) -> Deferred[None]:
        """
        Let go of what waits; the subscriptions themselves are remembered.
        """
        return Deferred.fromCoroutine(self._stop())


class _Saved(msgspec.Struct):
    request: Subscribe
    user: str


def _nowhere(frames: Sequence[bytes]) -> int:
    return 0


def _not_saved(changes: dict[str, bytes | None]) -> Deferred[None]:
    return succeed(None)
