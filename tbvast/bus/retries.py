"""
Retries the subscriptions whose subscribers had full queues.
"""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from tbvast.interfaces import ISubscription
from tbvast.service.turns import Turn

RETRY_INTERVAL = 0.001
"""
Seconds before frames are offered again to a peer whose queue was full.
"""


class Retries(Service):
    """
    The subscriptions whose frames wait only for room in ZeroMQ's queue.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._stuck: dict[ISubscription, None] = {}
        self._call: IDelayedCall | None = None

    def add(self, subscription: ISubscription) -> None:
        """
        Call L{ISubscription.pump} soon.
        """
        self._stuck[subscription] = None
        if self._call is None:
            self._call = self._clock.callLater(RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        self._call = None
        turn = Turn(self._clock)
        stuck, self._stuck = self._stuck, {}
        for subscription in list(stuck):
            del stuck[subscription]
            try:
                subscription.pump()
            except Exception:
                self._log.failure("Cannot send waiting frames to a subscriber")
            if turn.over:
                break
        if stuck:  # before those that got stuck again
            self._stuck = stuck | self._stuck
            self._cancel()
            self._call = self._clock.callLater(0, self._retry)

    def _cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def stopService(self) -> None:
        super().stopService()
        self._stuck.clear()
        self._cancel()
