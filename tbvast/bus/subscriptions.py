"""
The subscriptions of a bus, by their own topics.
"""

from __future__ import annotations

from collections.abc import Collection

from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.errors import ProtocolInvalid
from tbvast.interfaces import ISubscription
from tbvast.protocol.topics import STIX2_TOPIC_LENGTH
from tbvast.settings.schema import PluginSettings

SWEEP_INTERVAL = 1.0
"""
Seconds between checks for subscriptions that have timed out.
"""


class Subscriptions(MultiService):
    """
    The subscriptions of one bus. One whose subscriber is silent, or away, for too long is
    closed.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, settings: PluginSettings) -> None:
        """
        @param settings: The limits.
        """
        super().__init__()
        self._settings = settings
        self._by_topic: dict[str, ISubscription] = {}
        sweep = TimerService(SWEEP_INTERVAL, self._sweep)
        sweep.clock = clock
        sweep.setServiceParent(self)

    def __len__(self) -> int:
        return len(self._by_topic)

    def everybody(self) -> list[ISubscription]:
        """
        @return: All subscriptions.
        """
        return list(self._by_topic.values())

    def open(self, subscription: ISubscription) -> None:
        """
        Add a new subscription.

        @raise ProtocolInvalid: If there are too many subscriptions, or it names too many
            topics.
        """
        request, user, settings = subscription.request, subscription.user, self._settings
        if len(self) >= settings.max_subscriptions:
            raise ProtocolInvalid(
                "subscriptions", len(self), f"less than the limit, {settings.max_subscriptions}"
            )
        if len(request.topics) > settings.max_topics:
            raise ProtocolInvalid(
                "topic", len(request.topics), f"at most {settings.max_topics} topics"
            )
        count = sum(each.user == user for each in self._by_topic.values()) if user else 0
        if count >= settings.max_client_subscriptions:
            raise ProtocolInvalid(
                "subscriptions",
                count,
                f"less than the limit for one client, {settings.max_client_subscriptions}",
            )
        self.add(subscription)
        self._log.info(
            "{name} subscribed to {topics} ({dialect}, {snapshot} days); {count} subscriptions.",
            name=subscription.name,
            topics=", ".join(request.topics),
            dialect=request.dialect,
            snapshot=request.snapshot,
            count=len(self),
        )

    def add(self, subscription: ISubscription) -> None:
        """
        Add a restored subscription.
        """
        self._by_topic[subscription.topic] = subscription

    def heartbeat(self, topic: str, report: dict[str, object]) -> bool:
        """
        Note that a subscriber is alive.

        @param report: Its report about itself.
        @return: Whether there is such a subscription.
        """
        subscription = self._by_topic.get(topic)
        if subscription is not None:
            subscription.heartbeat(report)
        return subscription is not None

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
        described = subscription.describe()
        subscription.close()
        self._log.info(
            "{who} {reason} after {sent} messages; {dropped} lost, {queued} waiting and up to"
            " {behind} in the journal not sent; {count} subscriptions.",
            **described,
            who=subscription.name,
            reason=reason,
            count=len(self),
        )
        return True

    def attach(self, topic: bytes) -> bool:
        """
        A ZeroMQ subscription arrived.

        @return: Whether it belongs to a subscription; other peers may not listen.
        """
        subscription = self._owner(topic)
        if subscription is not None:
            subscription.attach(topic)
        return subscription is not None

    def detach(self, topic: bytes) -> None:
        """
        A ZeroMQ subscription ended.
        """
        subscription = self._owner(topic)
        if subscription is not None:
            subscription.detach(topic)

    def _owner(self, topic: bytes) -> ISubscription | None:
        text = topic.decode("ascii", "replace")
        return self._by_topic.get(text) or self._by_topic.get(text[:STIX2_TOPIC_LENGTH])

    def _sweep(self) -> None:
        for subscription in self.everybody():
            if reason := subscription.overdue:
                self.close(subscription.topic, reason)

    def stopService(self) -> Deferred[None]:
        """
        Drop all waiting frames.
        """
        for subscription in self.everybody():
            subscription.close()
        return super().stopService()
