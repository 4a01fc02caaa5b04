"""
Requests to a bus's manage endpoint, and their replies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import attrs
import zmq
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime

from tbvast.errors import BusRefused, BusUnreachable, ProtocolInvalid, shown
from tbvast.protocol import manage
from tbvast.values import HostPort, Received
from tbvast.zeromq.sockets import DealerConnection, Factory, SocketOptions

T = TypeVar("T")

REQUEST_TIMEOUT = 5.0
"""
Seconds within which a bus has to reply; Threat Bus's applications wait as long.
"""


@attrs.define(eq=False)
class ManageClient:
    """
    Sends requests to a bus's manage endpoint, one at a time.

    @param reactor: Measures the timeouts.
    @param factory: Makes the socket.
    @param bus: The bus's manage endpoint.
    @param keys: As L{tbvast.zeromq.curve.client_options}, if the bus requires keys.
    """

    _reactor: IReactorTime
    _factory: Factory
    _bus: HostPort
    _keys: SocketOptions = attrs.field(factory=dict)
    _lock: DeferredLock = attrs.field(init=False, factory=DeferredLock)
    _connection: DealerConnection | None = attrs.field(init=False, default=None)
    _reply: Deferred[bytes] | None = attrs.field(init=False, default=None)

    def ask(self, request: bytes, timeout: float = REQUEST_TIMEOUT) -> Deferred[bytes]:
        """
        Send a request after the earlier ones are answered.

        @param request: As encoded by L{tbvast.protocol.manage}.
        @param timeout: Seconds between sending the request and its reply.
        @return: Fires with the reply. Fails with L{BusUnreachable} without a reply in time,
            or if the client is closed.
        """
        return self._lock.run(self._ask, request, timeout)

    async def request(
        self,
        action: str,
        request: bytes,
        decode: Callable[[bytes], T],
        timeout: float = REQUEST_TIMEOUT,
    ) -> T:
        """
        Send a request as L{ask} does, and decode its reply.

        @param action: The request, a verb phrase that follows "refused to".
        @raise BusRefused: If C{decode} raises L{ProtocolInvalid}; with the bus's reason, if any.
        """
        reply = await self.ask(request, timeout)
        try:
            return decode(reply)
        except ProtocolInvalid as e:
            reason = manage.refusal(reply)
            raise BusRefused(action, shown(reason) if reason else str(e)) from e

    def _ask(self, request: bytes, timeout: float) -> Deferred[bytes]:
        if self._connection is None:
            options = {zmq.MAXMSGSIZE: 64 << 20, **self._keys}
            self._connection = DealerConnection(self._factory, self._replied, options)
            self._connection.connect(f"tcp://{self._bus}")
        reply: Deferred[bytes] = Deferred(self._abandon)
        self._reply = reply
        self._connection.send_now((b"", request))

        def too_late(result: object, seconds: float) -> NoReturn:
            raise BusUnreachable(str(self._bus), seconds)

        return reply.addTimeout(timeout, self._reactor, onTimeoutCancel=too_late)

    def _replied(self, messages: list[Received]) -> None:
        if self._reply is not None:
            reply, self._reply = self._reply, None
            reply.callback(b"".join(messages[-1].frames[1:]))

    def _abandon(self, reply: Deferred[bytes]) -> None:
        # A late reply on the same socket would answer the next request.
        self._reply = None
        self.close()

    def close(self) -> None:
        """
        Close the socket and fail the pending request. The next request opens a new socket.
        """
        if self._reply is not None:
            reply, self._reply = self._reply, None
            reply.errback(BusUnreachable(str(self._bus), 0.0))
        if self._connection is not None:
            self._connection.shutdown()
            self._connection = None
