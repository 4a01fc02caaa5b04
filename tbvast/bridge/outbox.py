"""
The bridge's sightings, stored until the bus or a sink has taken them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from tbvast.bridge.store.worker import StoreWorker
from tbvast.interfaces import IBacklog
from tbvast.service.clock import Calendar
from tbvast.service.flusher import Deliver, Flusher
from tbvast.stix.sightings import Sighting
from tbvast.storage.worker_client import CallWorker
from tbvast.values import PageRequest


@implementer(IBacklog)
class StoredSightings:
    """
    The unsent sightings of the bridge's store, by their ids.
    """

    def __init__(self, ask: CallWorker, now: Calendar) -> None:
        """
        @param ask: Calls the L{StoreWorker}.
        @param now: The date at which a sighting is set aside.
        """
        self._ask = ask
        self._now = now

    async def page(self, request: PageRequest) -> list[tuple[str, bytes]]:
        return await self._ask(StoreWorker.unsent, request)

    async def one(self, key: str) -> list[tuple[str, bytes]]:
        return await self._ask(StoreWorker.unsent_among, [key])

    async def mark_sent(
        self, keys: Collection[str], request: PageRequest | None
    ) -> list[tuple[str, bytes]] | None:
        return await self._ask(StoreWorker.mark_sent, list(keys), request)

    async def set_aside(self, reasons: Mapping[str, str]) -> None:
        await self._ask(StoreWorker.set_sightings_aside, dict(reasons), self._now())


class Outbox(Flusher):
    """
    Stores sightings, and sends them.

    @ivar made: The number of sightings; a repeat is not counted.
    """

    def __init__(
        self, clock: IReactorTime, now: Calendar, ask: CallWorker, deliver: Deliver
    ) -> None:
        """
        @param clock: The clock of the retries.
        @param now: The date at which a sighting is stored or set aside.
        @param ask: Calls the L{StoreWorker}.
        @param deliver: Delivers the sightings.
        """
        super().__init__(clock, StoredSightings(ask, now), deliver)
        self.made = 0
        self._ask = ask
        self._now = now

    async def add(self, sightings: Iterable[Sighting]) -> None:
        """
        Store sightings durably, and begin to send them.
        """
        try:
            new, page = await self._ask(
                StoreWorker.remember, list(sightings), self._now(), self.first_page
            )
        except Exception:
            self.flush()  # the page may have failed after they were stored
            raise
        self.made += new
        if new:
            self.flush(page)
