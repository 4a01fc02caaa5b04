"""
The plugin as a client: it takes the intel of another bus in, and passes sightings
up.

Two buses that name each other settle: what a journal has seen before is not handed
on again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from tbvast.client import BusSubscription, Wish
from tbvast.interfaces import IReplay
from tbvast.plugin.commit import Commit
from tbvast.settings import HostPort, UpstreamSettings
from tbvast.wire.frames import SIGHTING_TOPIC, Item
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


class Upstream(MultiService):
    """
    One other bus.

    Sightings are passed up from the journal, and the number of the last one is
    remembered there: what could not be passed up now is later.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        settings: UpstreamSettings,
        replay: IReplay,
        take: Callable[[list[Item]], Deferred[Any]],
    ) -> None:
        """
        @param take: Takes in what the other bus sends; the next is read when it is
            durable.
        @raise KeyUnusable: If a key file cannot be used.
        """
        super().__init__()
        self._reactor = reactor
        self._replay = replay
        self._reader = f"upstream {settings.threatbus}"
        self._passing: Deferred[None] | None = None
        self._again = False
        self._subscription = BusSubscription(
            reactor,
            factory,
            HostPort.parse(settings.threatbus),
            Wish(("stix2/indicator",), settings.snapshot, NAME, HEARTBEAT),
            take,
            ready=self.pass_up,
            keys=load_client_options(settings.curve_key, settings.server_key),
        )
        self._subscription.setServiceParent(self)

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
        if not self.running:
            return
        if self._passing is not None:
            self._again = True
            return
        self._again = False
        self._passing = Deferred.fromCoroutine(self._pass_up())
        self._passing.addErrback(
            lambda failure: self._log.failure("While passing sightings up", failure)
        ).addCallback(self._cb_passed)

    def _cb_passed(self, _: None) -> None:
        self._passing = None
        if self._again:
            self.pass_up()

    async def _pass_up(self) -> None:
        position = await self._replay.position(self._reader)
        while page := await self._replay.entries(
            position, (Stream.SIGHTING,), PAGE_ITEMS, PAGE_BYTES
        ):
            taken = position
            for entry in page:
                if not self._subscription.send(SIGHTING_TOPIC + b" " + entry.raw):
                    break
                taken = entry.number
            if taken != position:
                await self._replay.set_position(self._reader, taken)
                position = taken
            if taken != page[-1].number:
                if self.running and self._subscription.connected:
                    self._reactor.callLater(RETRY_DELAY, self.pass_up)
                return

    def stopService(self) -> Deferred[None]:
        self.running = 0
        passing = self._passing or succeed(None)
        return passing.addCallback(lambda _: MultiService.stopService(self))
