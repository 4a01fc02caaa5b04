"""
Reports sightings to a bus, for as long as one subscription to it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from tbvast.bus_client.manage_client import ManageClient
from tbvast.bus_client.report_publisher import ReportPublisher
from tbvast.errors import BusUnreachable, ProtocolInvalid
from tbvast.protocol import manage
from tbvast.protocol.frames import SIGHTING_TOPIC
from tbvast.service.flusher import Reported
from tbvast.values import HostPort
from tbvast.zeromq.sockets import Factory, SocketOptions

REPORT_TIMEOUT = 30.0
"""
Seconds within which a bus has to acknowledge reports, which it makes durable first.
"""


@attrs.define(eq=False, slots=False)
class SightingReports:
    """
    Reports sightings: to a bus that speaks tbvast/1 by a request, which it acknowledges when
    they are durable; to a Threat Bus host on its sub endpoint, without acknowledgement.

    @param clock: Measures the timeouts.
    @param factory: Makes the sockets.
    @param bus: The bus's manage endpoint.
    @param subscribed: The reply of the bus to the request to subscribe.
    @param ready: Called when the bus begins to listen; C{None} for no sub connection.
    @param keys: As for L{ManageClient}.
    @ivar answered: The time when the bus last answered another request.
    """

    _clock: IReactorTime
    _factory: Factory
    _bus: HostPort
    _subscribed: manage.Subscribed
    _ready: Callable[[], None] | None
    _keys: SocketOptions

    def __attrs_post_init__(self) -> None:
        self.answered = self._clock.seconds()
        self._manage = ManageClient(self._clock, self._factory, self._bus, self._keys)
        self._publisher: ReportPublisher | None = None
        if self._ready is not None:
            endpoint = f"tcp://{HostPort(self._bus.host, self._subscribed.sub_port)}"
            self._publisher = ReportPublisher(self._factory, endpoint, self._ready, self._keys)

    def report(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        """
        Report sightings.

        @param documents: Each a JSON document.
        @return: Fires with the outcome; never fails.
        """
        if self._subscribed.position is None:
            publisher = self._publisher
            frames = [SIGHTING_TOPIC + b" " + raw for raw in documents]
            return succeed(Reported([publisher is not None and publisher.send(f) for f in frames]))
        return Deferred.fromCoroutine(self._request(documents))

    async def _request(self, documents: Sequence[bytes]) -> Reported:
        began = self._clock.seconds()
        count = len(documents)
        none = [False] * count
        try:
            reply = await self._manage.ask(manage.encode_publish(documents), REPORT_TIMEOUT)
            published = manage.decode_published(reply)
        except BusUnreachable as e:
            answers = self.answered > began
            return Reported(none, {}, str(e) if answers else "", answers)
        except ProtocolInvalid as e:
            reason = manage.refusal(reply)
            # A refusal with a reason is due to the bus's own state; one without, to the request.
            return Reported(none, {}, reason or str(e), not reason)
        if len(published.outcomes) != count:
            reason = f"{len(published.outcomes)} outcomes for {count} sightings"
            return Reported(none, {}, reason, True)
        refused = {n: why for n, why in published.reasons.items() if 0 <= n < count}
        return Reported([True] * count, refused)

    def close(self) -> None:
        """
        Close the sockets. The pending reports fail, whatever the bus has answered.
        """
        self.answered = -math.inf
        self._manage.close()
        if self._publisher is not None:
            self._publisher.close()
