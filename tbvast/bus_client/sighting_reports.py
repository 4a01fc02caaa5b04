"""
Reports sightings to a bus, for as long as one subscription to it lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


class SightingReports:
    """
    Reports sightings: to a bus that speaks tbvast/1 by a request, which it acknowledges when
    they are durable; to a Threat Bus host on its sub endpoint, without acknowledgement.

    @ivar answered: The time when the bus last answered another request.
    """

    def __init__(
        self,
        clock: IReactorTime,
        factory: Factory,
        bus: HostPort,
        subscribed: manage.Subscribed,
        ready: Callable[[], None] | None,
        keys: SocketOptions,
    ) -> None:
        """
        @param clock: Measures the timeouts.
        @param factory: Makes the sockets.
        @param bus: The bus's manage endpoint.
        @param subscribed: The reply of the bus to the request to subscribe.
        @param ready: Called when the bus begins to listen to reports. Without it, nothing
            connects to the sub endpoint.
        @param keys: As for L{ManageClient}.
        """
        self.answered = clock.seconds()
        self._clock = clock
        self._acknowledges = subscribed.position is not None
        self._manage = ManageClient(clock, factory, bus, keys)
        self._publisher: ReportPublisher | None = None
        if ready is not None:
            endpoint = HostPort(bus.host, subscribed.sub_port)
            self._publisher = ReportPublisher(factory, f"tcp://{endpoint}", ready, keys)

    def report(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        """
        Report sightings.

        @param documents: Each a JSON document.
        @return: Fires with the outcome; never fails.
        """
        if not self._acknowledges:
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
