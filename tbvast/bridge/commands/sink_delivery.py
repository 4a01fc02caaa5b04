"""
Delivers stored sightings to a sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import CommandFailed, CommandRefused
from tbvast.interfaces import ISink
from tbvast.service.flusher import Reported
from tbvast.stix.sightings import MatchType
from tbvast.storage.set_aside import reason_of


class _SightingContext(msgspec.Struct):
    x_threatbus_sighting_context: dict[str, Any]
    x_threatbus_indicator_value: str
    x_threatbus_match_type: MatchType


class DeliverToSink:
    """
    A L{tbvast.service.flusher.Deliver} that sends the contexts of sightings to a sink.
    """

    _log = Logger()

    def __init__(self, sink: ISink) -> None:
        """
        @param sink: The sink.
        """
        self._sink = sink

    def __call__(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        """
        Send the contexts of sightings.

        @param documents: The sightings.
        @return: Fires with the outcome; never fails because of the sink.
        """
        return gatherResults(map(self._send, documents), consumeErrors=True).addCallback(_reported)

    def _send(self, document: bytes) -> Deferred[bool | str]:
        try:
            sighting = msgspec.json.decode(document, type=_SightingContext)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            return succeed(reason_of(e))
        return self._sink.send(
            sighting.x_threatbus_sighting_context,
            sighting.x_threatbus_indicator_value,
            sighting.x_threatbus_match_type,
        ).addCallbacks(lambda _: True, self._eb_send)

    def _eb_send(self, failure: Failure) -> bool | str:
        failure.trap(CommandFailed)
        refused = failure.check(CommandRefused) is not None
        self._log.warn(
            "The sink did not take a sighting{outcome}: {reason}",
            outcome=", and never will" if refused else "; trying again",
            reason=str(failure.value),
        )
        return str(failure.value) if refused else False


def _reported(outcomes: list[bool | str]) -> Reported:
    """
    Summarize the outcomes of a page.

    @param outcomes: For each sighting, whether the sink took it, or the reason why it never
        will.
    """
    return Reported(
        [outcome is not False for outcome in outcomes],
        {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, str)},
        "" if False not in outcomes else "the sink did not take all of them",
    )
