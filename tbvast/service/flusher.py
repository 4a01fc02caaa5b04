"""
Sends waiting sightings until their receiver has accepted them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import shown
from tbvast.interfaces import IBacklog
from tbvast.service.pages import STRIKE_DELAY, Pages
from tbvast.service.rate_limit import RateLimit
from tbvast.values import PageRequest, WaitingSighting

RETRY_DELAY, STUCK_DELAY = 2.0, 30.0
"""
Seconds before sightings that were not accepted are offered again; the second if the receiver is
there but accepts no sighting at all.
"""


class Reported(msgspec.Struct, frozen=True):
    """
    The result of a delivery of sightings.

    @ivar taken: For each of them, whether it need not be sent again.
    @ivar refused: By position, why the receiver never accepts some; they count as taken.
    @ivar reason: The reason why it accepted none; empty if it did, or if it is not there.
    @ivar poisoned: Whether one of them may be the cause: the receiver is healthy otherwise.
    """

    taken: list[bool]
    refused: dict[int, str] = {}
    reason: str = ""
    poisoned: bool = False


class SightingCounters(msgspec.Struct):
    """
    The outcomes of sightings.

    @ivar delivered: The number of sightings that the receiver accepted.
    @ivar set_aside: The number of sightings that were set aside.
    """

    delivered: int = 0
    set_aside: int = 0


Page = Sequence[WaitingSighting]
"""
The sightings that are delivered together.
"""

Deliver = Callable[[Sequence[bytes]], Awaitable[Reported]]
"""
Delivers the documents of sightings to a receiver.
"""


@attrs.define(eq=False, slots=False)
class Flusher(Service):
    """
    Sends the sightings of a backlog, in order and page by page. A sighting that the
    receiver cannot accept is postponed, then set aside; the others do not wait for it.

    @param backlog: The waiting sightings.
    @param deliver: Delivers a page of them.
    @param counters: Counts them.
    """

    _log = Logger()

    _clock: IReactorTime
    _backlog: IBacklog
    _deliver: Deliver
    _counters: SightingCounters = attrs.field(factory=SightingCounters)
    _pages: Pages = attrs.field(init=False, factory=Pages)
    _flushing: Deferred[None] | None = attrs.field(init=False, default=None)
    _again: bool = attrs.field(init=False, default=False)
    _retry: IDelayedCall | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._waiting_lines = RateLimit(self._clock, per_minute=2)
        self._lines = RateLimit(self._clock, per_minute=20)

    def startService(self) -> None:
        super().startService()
        self.flush()

    def stopService(self) -> Deferred[None]:
        """
        @return: Fires when the page that is being sent has been answered.
        """
        super().stopService()
        self._again = False
        self._cancel_retry()
        return self._flushing or succeed(None)

    @property
    def first_page(self) -> PageRequest | None:
        """
        The page with which L{flush} would begin; C{None} if none would begin now.
        """
        return self._pages.next if self.running and self._flushing is None else None

    def flush(self, page: Page | None = None) -> None:
        """
        Send the waiting sightings now instead of at the next retry. Called when a sighting
        was added, or the receiver is there again.

        @param page: The L{first_page}, if it has been read.
        """
        if not self.running:
            return
        self._cancel_retry()
        if self._flushing is not None:
            self._again = True
            return
        self._again = False
        self._flushing = Deferred.fromCoroutine(self._flush(page))
        self._flushing.addBoth(self._flushed)

    def _flushed(self, failure: Failure | None) -> None:
        self._flushing = None
        if failure is not None:
            self._log.failure("Cannot send sightings", failure)
            self._retry_later()
        if self._again:
            self.flush()

    async def _flush(self, page: Page | None) -> None:
        pages = self._pages
        while self.running:
            again = pages.due(self._clock.seconds())
            if again is not None:
                waiting: Page = await self._backlog.one(again)
                if not waiting:
                    pages.forget(again)
                    continue
            else:
                waiting = await self._backlog.page(pages.next) if page is None else page
            if not waiting:
                if pages.next.without:
                    self._retry_later(STRIKE_DELAY)
                return
            reported = await self._deliver([body for _, body in waiting])
            left, page = await self._commit([key for key, _ in waiting], reported)
            if not left:
                continue
            if not reported.poisoned:
                reason = shown(reported.reason or "nobody is there")
                self._waiting_lines.warn(self._log, "Sightings wait: {reason}", reason=reason)
                self._retry_later(RETRY_DELAY)
                return
            await self._failed(left, reported.reason)
            if pages.stuck:
                self._retry_later(STUCK_DELAY)
                return

    async def _commit(
        self, keys: Sequence[str], reported: Reported
    ) -> tuple[list[str], Page | None]:
        """
        @return: The keys of its sightings that still wait. If there are none, the next page.
        """
        taken = [key for key, ok in zip(keys, reported.taken, strict=True) if ok]
        refused = {keys[n]: reason for n, reason in reported.refused.items()}
        if refused:
            await self._give_up(refused)
        left = [key for key, ok in zip(keys, reported.taken, strict=True) if not ok]
        page: Page | None = None
        if taken:
            sent = [key for key in taken if key not in refused]
            self._pages.taken(taken)
            request = self._pages.next if self.running and not left else None
            page = await self._backlog.mark_sent(sent, request)
            self._counters.delivered += len(sent)
        return left, page

    async def _failed(self, keys: Sequence[str], reason: str) -> None:
        lines, text = self._lines, "A sighting is not taken, and is offered again later: {reason}"
        if len(keys) > 1:
            lines = self._waiting_lines
            text = "Sightings wait, and are offered fewer at a time: {reason}"
        lines.warn(self._log, text, reason=shown(reason))
        given_up = self._pages.failed(keys, self._clock.seconds())
        if given_up is not None:
            await self._give_up({given_up: f"never taken: {reason}"})

    async def _give_up(self, reasons: dict[str, str]) -> None:
        self._counters.set_aside += len(reasons)
        for key, reason in reasons.items():
            text = "Set the sighting {key} aside: {reason}"
            self._lines.warn(self._log, text, key=key, reason=shown(reason))
        await self._backlog.set_aside(reasons)

    def _retry_later(self, delay: float = RETRY_DELAY) -> None:
        if self.running:
            self._cancel_retry()
            self._retry = self._clock.callLater(delay, self.flush)

    def _cancel_retry(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
