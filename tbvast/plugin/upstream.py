"""
The plugin as a client: it takes the intel of another bus in, and passes sightings
up.

Two buses that name each other settle: what a journal has seen before is not handed
on again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.client import BusSubscription, Wish
from tbvast.interfaces import ICursor, IJournal, IReplay
from tbvast.plugin.commit import Commit
from tbvast.protocol.unreadable import Unreadable
from tbvast.settings import HostPort, UpstreamSettings
from tbvast.wire.frames import SIGHTING_TOPIC, Item
from tbvast.wire.manage import Position
from tbvast.wire.topics import Stream
from tbvast.zeromq.connections import Factory
from tbvast.zeromq.curve import load_client_options

NAME = "tbvast-plugin"
HEARTBEAT = 5.0

PAGE_ITEMS = 500
PAGE_BYTES = 1 << 20
"""
Sightings that are read from the journal, and passed up, at a time.
"""

RETRY_DELAY = 2.0
"""
Seconds before sightings that the other bus could not take are offered again.
"""

Take = Callable[[Sequence[Item]], Deferred[Any]]
"""
Takes in what another bus sends; fires when it is durable.
"""


@implementer(ICursor)
class IntelCursor:
    """
    Takes another bus's intel in, and remembers in the journal how far it got.

    What another bus no longer has is kept: others may have sent it too.
    """

    def __init__(self, replay: IReplay, reader: str, take: Take) -> None:
        self.position: Position | None = None
        self._replay = replay
        self._reader = reader
        self._take = take

    async def recall(self) -> None:
        """
        Find out how far it got before.
        """
        self.position = await self._replay.position(self._reader)

    async def apply(
        self, items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> None:
        await self._take(items)
        if position is not None:
            await self._replay.set_position(self._reader, position)
            self.position = position

    async def set_aside(self, items: Sequence[Unreadable]) -> None:
        """
        They are in the log, and in the other bus's journal.
        """

    async def settle(self) -> None:
        pass

    async def begin_snapshot(self) -> None:
        pass

    async def end_snapshot(self, position: Position) -> None:
        await self.apply((), position)


class Upstream(Service):
    """
    One other bus.

    Sightings are passed up from the journal, and the number of the last one is
    remembered there: what could not be passed up now is later. A bus that speaks
    tbvast/1 says when they are durable; another one is sent each of them once.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        settings: UpstreamSettings,
        journal: IJournal,
        replay: IReplay,
        take: Take,
        subscribe: Callable[..., BusSubscription] = BusSubscription,
    ) -> None:
        """
        @param replay: The same journal.
        @param subscribe: Makes the subscription to the other bus.
        @raise KeyUnusable: If a key file cannot be used.
        """
        self._reactor = reactor
        self._journal = journal
        self._replay = replay
        self._reader = f"sightings {settings.threatbus}"
        self._passing: Deferred[None] | None = None
        self._again = False
        self._retry: IDelayedCall | None = None
        self._cursor = IntelCursor(replay, f"intel {settings.threatbus}", take)
        self._subscription = subscribe(
            reactor,
            factory,
            HostPort.parse(settings.threatbus),
            Wish(("stix2/indicator",), settings.snapshot, NAME, HEARTBEAT),
            self._cursor,
            ready=self.pass_up,
            keys=load_client_options(settings.curve_key, settings.server_key),
        )

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._begin()).addErrback(
            lambda failure: self._log.failure("An upstream bus is not asked", failure)
        )

    async def _begin(self) -> None:
        await self._cursor.recall()
        if self.running:
            self._subscription.startService()

    def spread(self, commit: Commit) -> None:
        """
        Something was accepted.
        """
        if Stream.SIGHTING in commit.streams:
            self.pass_up()

    def pass_up(self) -> None:
        """
        Pass up the sightings that have not been.
        """
        self._forget_retry()
        if not self.running:
            return
        if self._passing is not None:
            self._again = True
            return
        self._again = False
        self._passing = Deferred.fromCoroutine(self._pass_up())
        self._passing.addErrback(self._eb_passing).addCallback(self._cb_passed)

    def _eb_passing(self, failure: Failure) -> None:
        self._log.failure("While passing sightings up", failure)
        self._retry_later()

    def _cb_passed(self, _: None) -> None:
        self._passing = None
        if self._again:
            self.pass_up()

    def _retry_later(self) -> None:
        if self.running and self._subscription.connected:
            self._retry = self._reactor.callLater(RETRY_DELAY, self.pass_up)

    def _forget_retry(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None

    async def _pass_up(self) -> None:
        before = await self._replay.position(self._reader)
        position = before.number if before else 0
        while page := await self._replay.entries(
            position, (Stream.SIGHTING,), PAGE_ITEMS, PAGE_BYTES
        ):
            taken = await self._offer([entry.raw for entry in page])
            if taken:
                position = page[taken - 1].number
                await self._replay.set_position(
                    self._reader, Position(self._journal.identity, position)
                )
            if taken < len(page):
                self._retry_later()
                return

    async def _offer(self, documents: Sequence[bytes]) -> int:
        """
        @return: How many of them, from the first on, the other bus took.
        """
        if self._subscription.plugin:
            taken = await self._subscription.hand_in(documents)
            return taken.index(False) if False in taken else len(taken)
        for count, raw in enumerate(documents):
            if not self._subscription.send(SIGHTING_TOPIC + b" " + raw):
                return count
        return len(documents)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._forget_retry()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._subscription.running:
            await self._subscription.stopService()
        if self._passing is not None:  # what was asked of the other bus has failed now
            await self._passing
