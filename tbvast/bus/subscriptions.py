"""
The subscriptions of a bus, by their own topics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import msgspec
from twisted.application.internet import TimerService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from tbvast.bus.client_budget import ClientBudget
from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.queued_subscription import QueuedSubscription, Saved
from tbvast.bus.replayed_subscription import ReplayedSubscription
from tbvast.bus.subscription import (
    CLIENT_LINES_PER_MINUTE,
    LINES_PER_MINUTE,
    LOSSES_PER_MINUTE,
    NO_REPORT,
    STALLED,
    BusParts,
    QueueBudget,
    Subscription,
)
from tbvast.errors import LimitExceeded
from tbvast.protocol.manage import PROTOCOL, Subscribe
from tbvast.protocol.topics import STIX2_TOPIC_LENGTH, new_topic
from tbvast.service.rate_limit import ClientRateLimit, RateLimit
from tbvast.service.turns import in_turns
from tbvast.settings.schema import PluginSettings
from tbvast.storage.set_aside import SetAside, Stage, reason_of

RETRY_INTERVAL = 0.001
"""
Seconds before frames are offered again to a peer whose queue was full.
"""

CLIENT_REPORT_BYTES = 1 << 20
TOTAL_REPORT_BYTES = 1 << 24
"""
The most bytes of the reports of one client's subscribers, and of all, which are in every status.
"""

SWEEP_INTERVAL = 1.0
"""
Seconds between checks for subscriptions that have timed out.
"""


class Subscriptions(TimerService):
    """
    The subscriptions of one bus. One whose subscriber is silent, or away, for too long is
    closed.

    @ivar budget: The memory for the frames that wait for all of them.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, settings: PluginSettings) -> None:
        """
        @param settings: The limits.
        """
        super().__init__(SWEEP_INTERVAL, self._sweep)
        self.clock = self._clock = clock
        self._settings = settings
        self._by_topic: dict[str, Subscription] = {}
        self._counts = ClientBudget(settings.max_client_subscriptions, settings.max_subscriptions)
        self._reports = ClientBudget(CLIENT_REPORT_BYTES, TOTAL_REPORT_BYTES)
        self._delivering: Deferred[None] = succeed(None)
        self._sweeping: Deferred[None] = succeed(None)
        self.budget = QueueBudget(settings.queue_total_bytes, self._relieve_soon)
        self._relieving: IDelayedCall | None = None
        self._losses = RateLimit(clock, LOSSES_PER_MINUTE)
        self._lines = ClientRateLimit(clock, CLIENT_LINES_PER_MINUTE, LINES_PER_MINUTE)
        self._stuck: dict[float, dict[Subscription, None]] = {RETRY_INTERVAL: {}, STALLED: {}}
        self._retrying: dict[float, Deferred[None]] = {}

    def __len__(self) -> int:
        return len(self._by_topic)

    def everybody(self) -> list[Subscription]:
        """
        @return: All subscriptions.
        """
        return list(self._by_topic.values())

    def open(self, subscription: Subscription) -> None:
        """
        Add a new subscription.

        @raise LimitExceeded: If there are too many subscriptions, or it names too many
            topics.
        """
        request, user, settings = subscription.request, subscription.user, self._settings
        if len(self) >= settings.max_subscriptions:
            raise LimitExceeded(
                "subscriptions", len(self), f"less than the limit, {settings.max_subscriptions}"
            )
        self.check_topics(request)
        count = self._counts.of(user)
        if count >= settings.max_client_subscriptions:
            raise LimitExceeded(
                "subscriptions",
                count,
                f"less than the limit for one client, {settings.max_client_subscriptions}",
            )
        self._add(subscription)
        self._lines.info(
            user,
            self._log,
            "{name} subscribed to {topics} ({dialect}, {snapshot} days); {count} subscriptions.",
            name=subscription.name,
            topics=", ".join(subscription.shown_topics),
            dialect=request.dialect,
            snapshot=request.snapshot,
            count=len(self),
        )

    def check_topics(self, request: Subscribe) -> None:
        """
        @raise LimitExceeded: If a request names too many topics.
        """
        most = self._settings.max_topics
        if len(request.topics) > most:
            raise LimitExceeded("topic", len(request.topics), f"at most {most} topics")

    def restore(self, parts: BusParts, saved: Mapping[str, bytes]) -> None:
        """
        Make the saved subscriptions again when the bus starts; all are of old dialects. One that
        cannot be read is set aside.

        @param saved: Their saved states, by topic.
        """
        for topic, raw in saved.items():
            try:
                state = msgspec.json.decode(raw, type=Saved)
                restored = QueuedSubscription(parts, state.request, state.user, topic, state)
            except Exception as e:
                parts.refuse([SetAside(Stage.SUBSCRIPTION, reason_of(e), raw)])
            else:
                self._add(restored)

    def _add(self, subscription: Subscription) -> None:
        self._by_topic[subscription.topic] = subscription
        self._counts.change(subscription.user, 1)
        self._reports.change(subscription.user, _report_size(subscription))

    def heartbeat(self, topic: str, report: Mapping[str, object]) -> bool:
        """
        Note that a subscriber is alive.

        @param report: Its report about itself. It is dropped if the reports are too long together.
        @return: Whether there is such a subscription.
        """
        subscription = self._by_topic.get(topic)
        if subscription is None:
            return False
        user, encoded = subscription.user, msgspec.Raw(msgspec.json.encode(report))
        self._reports.change(user, -_report_size(subscription))
        if self._reports.room(user) < len(bytes(encoded)):
            text = "Dropped a report of {name}: the reports are too long together."
            self._losses.warn(self._log, text, name=subscription.name)
            encoded = NO_REPORT
        subscription.heartbeat(encoded)
        self._reports.change(user, _report_size(subscription))
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
        self._counts.change(subscription.user, -1)
        self._reports.change(subscription.user, -_report_size(subscription))
        described = subscription.describe()
        subscription.close()
        self._lines.info(
            subscription.user,
            self._log,
            "{who} {reason} after {sent} messages; {dropped} lost, {queued} waiting and up to"
            " {behind} in the journal not sent; {count} subscriptions.",
            **described,
            who=subscription.name,
            reason=reason,
            count=len(self),
        )
        return True

    def attach(self, topic: bytes, key: str = "") -> bool:
        """
        A ZeroMQ subscription arrived.

        @param key: The key of the peer; empty if there are no keys.
        @return: Whether it belongs to a subscription of that peer; others may not listen.
        """
        subscription = self._owner(topic)
        if subscription is None or (key and subscription.user != key):
            return False
        subscription.attach(topic)
        return True

    def is_of(self, topic: str, key: str) -> bool:
        """
        @param key: A client's key; empty if there are no keys.
        @return: Whether there is such a subscription, and it is that client's.
        """
        subscription = self._by_topic.get(topic)
        return subscription is not None and (not key or subscription.user == key)

    def detach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription ended.
        """
        subscription = self._owner(topic)
        if subscription is not None:
            subscription.detach(topic)

    def _owner(self, topic: bytes) -> Subscription | None:
        text = topic.decode("ascii", "replace")
        return self._by_topic.get(text) or self._by_topic.get(text[:STIX2_TOPIC_LENGTH])

    async def deliver(self, batch: CommittedBatch) -> None:
        """
        Deliver a batch to all current subscriptions, perhaps in many turns. The next one may be
        delivered when this is done.
        """
        self._delivering = Deferred.fromCoroutine(self._deliver(batch))
        try:
            await self._delivering
        except CancelledError:  # the service stops
            pass

    async def _deliver(self, batch: CommittedBatch) -> None:
        forms = [each.form for each in self._by_topic.values()]
        await batch.prepare(self._clock, filter(None, forms))
        await in_turns(
            self._clock,
            self.everybody(),
            lambda subscription: subscription.committed(batch),
            "Cannot deliver to a subscriber",
        )

    def retry(self, subscription: Subscription) -> None:
        """
        Call L{Subscription.pump} soon, when there may be room in ZeroMQ's queue.
        """
        interval = STALLED if subscription.stalled else RETRY_INTERVAL
        self._stuck[interval][subscription] = None
        if interval not in self._retrying:
            self._retrying[interval] = Deferred.fromCoroutine(self._pump_stuck(interval))

    async def _pump_stuck(self, interval: float) -> None:
        try:
            while self._stuck[interval]:
                await deferLater(self._clock, interval)
                stuck, self._stuck[interval] = self._stuck[interval], {}
                await in_turns(
                    self._clock,
                    stuck,
                    lambda subscription: subscription.pump(),
                    "Cannot send waiting frames to a subscriber",
                )
        except CancelledError:  # the service stops
            pass
        del self._retrying[interval]

    def _relieve_soon(self) -> None:
        """
        Make room, but not in the middle of a delivery.
        """
        if self._relieving is None:
            self._relieving = self._clock.callLater(0, self._relieve)

    def _relieve(self) -> None:
        """
        Have the queues of those with most given up: first those of the client that has most in
        all, and of its subscriptions the one with most.
        """
        self._relieving = None
        waiting = {each: each.held for each in self._by_topic.values() if each.held}
        clients: Counter[str] = Counter()
        for subscription, size in waiting.items():
            clients[subscription.user] += size
        count = 0
        for subscription in sorted(
            waiting, key=lambda each: (clients[each.user], waiting[each]), reverse=True
        ):
            if self.budget.excess <= 0:
                break
            subscription.give_up_queue()
            count += 1
        self._losses.warn(
            self._log,
            "Too much waits for subscribers: {count} queues are read from the journal later.",
            count=count,
        )

    async def _sweep(self) -> None:
        self._sweeping = Deferred.fromCoroutine(
            in_turns(
                self._clock,
                self.everybody(),
                self._close_overdue,
                "Cannot close a subscription",
            )
        )
        try:
            await self._sweeping
        except CancelledError:  # the service stops
            pass

    def _close_overdue(self, subscription: Subscription) -> None:
        if reason := subscription.overdue:
            self.close(subscription.topic, reason)

    def stopService(self) -> Deferred[None]:
        """
        Drop all waiting frames, and deliver nothing more. Subscribers get the rest from the
        journal.
        """
        for subscription in self.everybody():
            subscription.close()
        self._delivering.cancel()
        self._sweeping.cancel()
        for retrying in list(self._retrying.values()):
            retrying.cancel()
        if self._relieving is not None:
            self._relieving.cancel()
        return super().stopService()


def _report_size(subscription: Subscription) -> int:
    return len(bytes(subscription.report))


def make_subscription(parts: BusParts, request: Subscribe, user: str = "") -> Subscription:
    """
    Make a new subscription, of the class that its protocol needs.

    @param user: The user who asks, as the access control knows it.
    """
    topic = new_topic(request.topics[0], request.dialect)
    if request.protocol == PROTOCOL:
        return ReplayedSubscription(parts, request, user, topic)
    return QueuedSubscription(parts, request, user, topic)
