"""
Makes subscriptions, each of the class that its protocol needs.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tbvast.bus.queued_subscription import QueuedSubscription, Saved
from tbvast.bus.replayed_subscription import ReplayedSubscription
from tbvast.bus.subscription import BusParts
from tbvast.interfaces import ISubscription
from tbvast.protocol.manage import PROTOCOL, Subscribe
from tbvast.protocol.topics import new_topic
from tbvast.storage.set_aside import SetAside, Stage, reason_of


class SubscriptionFactory:
    """
    Makes the subscriptions of one bus.
    """

    def __init__(self, parts: BusParts) -> None:
        """
        @param parts: The parts of the bus that its subscriptions use.
        """
        self._parts = parts

    def make(self, request: Subscribe, user: str = "") -> ISubscription:
        """
        Make a new subscription.

        @param user: The user who asks, as the access control knows it.
        """
        topic = new_topic(request.topics[0], request.dialect)
        if request.protocol == PROTOCOL:
            return ReplayedSubscription(self._parts, request, user, topic)
        return QueuedSubscription(self._parts, request, user, topic)

    def restore(self, saved: Mapping[str, bytes]) -> list[ISubscription]:
        """
        Make the saved subscriptions again when the bus starts; all are of old dialects. One that
        cannot be read is set aside.

        @param saved: Their saved states, by topic.
        """
        restored: list[ISubscription] = []
        for topic, raw in saved.items():
            try:
                state = msgspec.json.decode(raw, type=Saved)
                restored.append(
                    QueuedSubscription(self._parts, state.request, state.user, topic, state)
                )
            except Exception as e:
                self._parts.refuse([SetAside(Stage.SUBSCRIPTION, reason_of(e), raw)])
        return restored
