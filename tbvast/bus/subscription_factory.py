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
        return self._make(request, user, new_topic(request.topics[0], request.dialect), None)

    def _make(
        self, request: Subscribe, user: str, topic: str, saved: Saved | None
    ) -> ISubscription:
        kind = ReplayedSubscription if request.protocol == PROTOCOL else QueuedSubscription
        return kind(self._parts, request, user, topic, saved)

    def restore(self, saved: Mapping[str, bytes]) -> list[ISubscription]:
        """
        Make the saved subscriptions again when the bus starts. One that cannot be read is set
        aside.

        @param saved: Their saved states, by topic.
        """
        restored = []
        for topic, raw in saved.items():
            try:
                state = msgspec.json.decode(raw, type=Saved)
                restored.append(self._make(state.request, state.user, topic, state))
            except Exception as e:
                self._parts.refuse([SetAside(Stage.SUBSCRIPTION, reason_of(e), raw)])
        return restored
