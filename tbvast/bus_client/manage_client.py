"""
Requests to a bus's manage endpoint, and their replies.
"""

from __future__ import annotations

from typing import Any

import zmq
from twisted.internet.defer import Deferred, DeferredLock

from tbvast.errors import BusUnreachable
from tbvast.settings import HostPort
from tbvast.zeromq.sockets import DealerConnection, Factory, SocketOptions

REQUEST_TIMEOUT = 5.0
"""
Seconds that a bus is given to answer, as Threat Bus's applications do.
"""

LONGEST_REPLY = 64 << 20
"""
The most bytes of a bus's reply.
"""


class ManageClient:
    """
    Asks a bus's manage endpoint, one question at a time.
    """

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        bus: HostPort,
        keys: SocketOptions | None = None,
    ) -> None:
        """
        @param keys: L{tbvast.zeromq.curve.client_options}, if the bus wants any.
        """
        self._reactor = reactor
        self._factory = factory
        self._bus = bus
        self._keys = keys
        self._turn = DeferredLock()
        self._connection: DealerConnection | None = None
        self._waiting: Deferred[bytes] | None = None

    def ask(self, request: bytes, timeout: float = REQUEST_TIMEOUT) -> Deferred[bytes]:
        """
        @param timeout: Seconds that the bus has, once it is this question's turn.
        @return: Fires with the reply, or fails with L{BusUnreachable}.
        """
        return self._turn.run(self._ask, request, timeout)

    def _ask(self, request: bytes, timeout: float) -> Deferred[bytes]:
        if self._connection is None:
            options = {zmq.MAXMSGSIZE: LONGEST_REPLY, **(self._keys or {})}
            self._connection = DealerConnection(self._factory, self._answered, options)
            self._connection.connect(f"tcp://{self._bus}")
        waiting: Deferred[bytes] = Deferred(self._abandon)
        self._waiting = waiting
        self._connection.send_now((b"", request))

        def too_late(result: Any, seconds: float) -> Any:
            raise BusUnreachable(str(self._bus), seconds)

        return waiting.addTimeout(timeout, self._reactor, onTimeoutCancel=too_late)

    def _answered(self, messages: list[list[bytes]]) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(b"".join(messages[-1][1:]))

    def _abandon(self, waiting: Deferred[bytes]) -> None:
        # A late answer must not be taken for that to the next question.
        self._waiting = None
        self.close()

    def close(self) -> None:
        """
        Let go of the socket, and of the answer to the question that was asked; the
        next question makes a new one.
        """
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(BusUnreachable(str(self._bus), 0.0))
        if self._connection is not None:
            self._connection.shutdown()
            self._connection = None
