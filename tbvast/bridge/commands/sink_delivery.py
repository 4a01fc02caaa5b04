"""
Delivers stored sightings to a sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from tbvast.errors import CommandFailed, CommandRefused
from tbvast.interfaces import ISink
from tbvast.service.flusher import Reported
from tbvast.stix.sightings import MatchType
from tbvast.storage.set_aside import reason_of


class _SightingContext(msgspec.Struct):
    x_threatbus_sighting_context: dict[str, Any]
    x_threatbus_indicator_value: str
    x_threatbus_match_type: MatchType


@attrs.define(eq=False)
class DeliverToSink:
    """
    A L{tbvast.service.flusher.Deliver} that sends the contexts of sightings to a sink.
    """

    _log = Logger()

    _sink: ISink

    async def __call__(self, documents: Sequence[bytes]) -> Reported:
        """
        Send the contexts of sightings. Never fails because of the sink.
        """
        sending = [Deferred.fromCoroutine(self._send(document)) for document in documents]
        outcomes = await gatherResults(sending, consumeErrors=True)
        return Reported(
            [outcome is not False for outcome in outcomes],
            {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, str)},
            "" if False not in outcomes else "the sink did not take all of them",
        )

    async def _send(self, document: bytes) -> bool | str:
        """
        @return: Whether the sink took the sighting, or the reason why it never will.
        """
        try:
            sighting = msgspec.json.decode(document, type=_SightingContext)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            return reason_of(e)
        try:
            await self._sink.send(
                sighting.x_threatbus_sighting_context,
                sighting.x_threatbus_indicator_value,
                sighting.x_threatbus_match_type,
            )
        except CommandFailed as e:
            refused = isinstance(e, CommandRefused)
            self._log.warn(
                "The sink did not take a sighting{outcome}: {reason}",
                outcome=", and never will" if refused else "; trying again",
                reason=str(e),
            )
            return str(e) if refused else False
        return True
