"""
The counters of a bridge.
"""

from __future__ import annotations

import msgspec

from tbvast.service.flusher import SightingCounters
from tbvast.stix.sightings import MatchType


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
