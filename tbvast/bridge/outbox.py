"""
The bridge's sightings, stored until the bus or a sink has taken them.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from tbvast.bridge.counters import Counters
from tbvast.interfaces import ISightingOutbox
from tbvast.service.flusher import Deliver, Flusher
from tbvast.stix.sightings import Sighting


class Outbox(Flusher):
    """
    Stores sightings, and sends them.
    """

    def __init__(
        self,
        clock: IReactorTime,
        stored: ISightingOutbox,
        deliver: Deliver,
        counters: Counters,
    ) -> None:
        """
        @param clock: The clock of the retries.
        @param stored: The stored sightings.
        @param deliver: Delivers the sightings.
        @param counters: Counts the sightings.
        """
        super().__init__(clock, stored, deliver, counters)
        self._bridge_counters = counters
        self._stored = stored

    async def add(self, sightings: Sequence[Sighting]) -> None:
        """
        Store sightings durably, and begin to send them.
        """
        try:
            new, page = await self._stored.remember(sightings, self.first_page)
        except Exception:
            self.flush()  # the page may have failed after they were stored
            raise
        self._bridge_counters.made += new
        if new:
            self.flush(page)
