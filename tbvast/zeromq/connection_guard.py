"""
Watches the connections to the endpoints of a service, through ZeroMQ's socket monitors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import zmq
from twisted.application.internet import TimerService
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.values import Received
from tbvast.zeromq.connection_table import ConnectionTable
from tbvast.zeromq.listener_filter import ignore_addresses
from tbvast.zeromq.sockets import Connection, MonitorConnection
from tbvast.zeromq.tcp_peer import TcpPeer

HANDSHAKE_LIMIT = 10.0
"""
Seconds in which a client has to finish the handshake.
"""

SWEEP_INTERVAL = 1.0

_EVENT = struct.Struct("=Hi")


class ConnectionGuard(TimerService):
    """
    Tells a L{ConnectionTable} of the connections to endpoints, and keeps attempts from reaching a
    listener that the table holds off.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, table: ConnectionTable) -> None:
        super().__init__(SWEEP_INTERVAL, self._sweep)
        self.clock = reactor
        self._table = table
        self._listeners: list[int] = []
        self._held_off: frozenset[str] = frozenset()

    def watch(self, endpoint: str, connection: Connection) -> None:
        """
        Watch the connections to an endpoint. To be called before it is bound.

        @param endpoint: Its name.
        """

        def receive(messages: list[Received]) -> None:
            for message in messages:
                event, value = _EVENT.unpack(message.frames[0])
                self._handlers[event](self, endpoint, value)
            self._hold_off()

        MonitorConnection(connection, sum(self._handlers), receive)

    def _listening(self, endpoint: str, descriptor: int) -> None:
        self._listeners.append(descriptor)

    def _accepted(self, endpoint: str, descriptor: int) -> None:
        try:
            peer = TcpPeer(descriptor)
        except OSError:  # it is closed already
            return
        self._table.accepted(endpoint, descriptor, peer)

    def _disconnected(self, endpoint: str, descriptor: int) -> None:
        self._table.ended(endpoint, descriptor)

    def _unfinished(self, endpoint: str, value: int) -> None:
        self._table.unfinished(endpoint)

    _handlers: dict[int, Callable[[ConnectionGuard, str, int], None]] = {
        zmq.EVENT_LISTENING: _listening,
        zmq.EVENT_ACCEPTED: _accepted,
        zmq.EVENT_DISCONNECTED: _disconnected,
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _unfinished,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _unfinished,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH: _unfinished,
    }

    def _sweep(self) -> None:
        self._table.sweep()
        self._hold_off()

    def _hold_off(self) -> None:
        addresses = self._table.held_off
        if addresses == self._held_off:
            return
        self._held_off = addresses
        try:
            for listener in self._listeners:
                ignore_addresses(listener, addresses)
        except OSError as e:  # each attempt is refused instead
            self._listeners.clear()
            self._log.warn("Cannot hold off connection attempts: {reason}", reason=e.strerror)
