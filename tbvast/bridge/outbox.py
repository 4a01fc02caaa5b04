"""
The bridge's sightings, stored until the bus or a sink has taken them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tbvast.interfaces import ISightingOutbox
from tbvast.service.flusher import Flusher, SightingCounters
from tbvast.stix.sightings import MatchType, Sighting


class Counters(SightingCounters):
    """
    The counters of the bridge's status report, since the start of the bridge.

    @ivar made: The number of sightings; a repeat is not counted.
    @ivar matched: The number of sightings with repeats, by the type of the match.
    @ivar searches: The number of searches of past events.
    """

    made: int = 0
    matched: dict[MatchType, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(MatchType, 0)
    )
    searches: int = 0


class Outbox(Flusher):
    """
    Stores sightings, and sends them.
    """

    _backlog: ISightingOutbox
    _counters: Counters

    async def add(self, sightings: Sequence[Sighting]) -> None:
        """
        Store sightings durably, and begin to send them.
        """
        try:
            new, page = await self._backlog.remember(sightings, self.first_page)
        except Exception:
            self.flush()  # the page may have failed after they were stored
            raise
        self._counters.made += new
        if new:
            self.flush(page)
