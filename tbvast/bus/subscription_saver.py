"""
Saves subscriptions and their progress, so that they outlive a restart of the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
from twisted.application.internet import TimerService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from tbvast.bus.subscription import Subscription
from tbvast.errors import JournalFailed
from tbvast.interfaces import IJournal
from tbvast.service.turns import in_turns

PROGRESS_INTERVAL, PROGRESS_AGE = 0.5, 0.4
"""
Seconds between checks of the progress of each subscription, which is then saved, and those after
which a frame has left ZeroMQ's own queue, if the kernel has room.
"""

FLUSH_INTERVAL, FLUSH_AGE = 0.02, 0.1
"""
The same when the bus stops: ZeroMQ sends the rest of its queue while it lingers.
"""


PAGE_SUBSCRIPTIONS, PAGE_BYTES = 500, 1 << 20
"""
The most subscriptions that are stored at once, and their bytes.
"""


def _copied(stored: Mapping[str, bytes]) -> dict[str, bytes]:
    return dict(stored)


def _pages(changes: dict[str, bytes | None]) -> Iterator[dict[str, bytes | None]]:
    page: dict[str, bytes | None] = {}
    size = 0
    for topic, state in changes.items():
        page[topic] = state
        size += len(state or b"")
        if len(page) >= PAGE_SUBSCRIPTIONS or size >= PAGE_BYTES:
            yield page
            page, size = {}, 0
    if page:
        yield page


@attrs.define(eq=False, slots=False)
class SubscriptionSaver(TimerService):
    """
    Compares the state of each subscription with the stored one, and stores the changes.

    @param everybody: Returns all subscriptions.
    @param stored: The stored states, by topic.
    """

    _log = Logger()

    _clock: IReactorTime
    _journal: IJournal
    _everybody: Callable[[], list[Subscription]]
    _stored: dict[str, bytes] = attrs.field(converter=_copied)

    def __attrs_post_init__(self) -> None:
        super().__init__(PROGRESS_INTERVAL, self._check)
        self.clock = self._clock
        self._changes: dict[str, bytes | None] = {}
        self._failing = False
        self._checking: Deferred[None] = succeed(None)

    async def _check(self) -> None:
        self._checking = Deferred.fromCoroutine(
            in_turns(
                self._clock,
                self._everybody(),
                self._check_one,
                "Cannot check the progress of a subscriber",
            )
        )
        try:
            await self._checking
        except CancelledError:  # the service stops
            return
        await self._save()

    def _check_one(self, subscription: Subscription) -> None:
        subscription.check_progress(PROGRESS_AGE)
        self._compare(subscription)

    def _compare(self, subscription: Subscription) -> None:
        state = subscription.saved
        if state != self._stored.get(subscription.topic):
            self._changes[subscription.topic] = state

    async def _save(self) -> None:
        changes, self._changes = self._changes, {}
        # Those that were closed are deleted.
        changes |= dict.fromkeys(self._stored.keys() - {each.topic for each in self._everybody()})
        for page in _pages(changes):
            try:
                await self._journal.save_subscriptions(page)
            except JournalFailed as e:  # it is retried, and logged once
                if not self._failing:
                    self._log.error("Cannot save subscriptions: {reason}", reason=str(e))
                self._failing = True
                return
            self._failing = False
            for topic, state in page.items():
                if state is None:
                    self._stored.pop(topic, None)
                else:
                    self._stored[topic] = state

    async def flush(self, limit: float) -> None:
        """
        Wait until the attached subscribers have received everything that was accepted.

        @param limit: The most seconds to wait.
        """
        deadline = self._clock.seconds() + limit
        quiet_since: float | None = None
        while (now := self._clock.seconds()) < deadline:
            there = [each for each in self._everybody() if each.detached is None]
            if not there:
                return
            if sum(not each.check_progress(FLUSH_AGE) for each in there):
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since >= 2 * FLUSH_AGE:
                return
            await deferLater(self._clock, FLUSH_INTERVAL)

    async def _stop(self) -> None:
        self._checking.cancel()
        await super().stopService()
        for subscription in self._everybody():
            self._compare(subscription)
        await self._save()

    def stopService(self) -> Deferred[None]:
        """
        Save the subscriptions as they are.
        """
        return Deferred.fromCoroutine(self._stop())
