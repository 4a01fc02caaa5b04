"""
Watches the connections to the endpoints of a service, through ZeroMQ's socket monitors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

import zmq
from twisted.application.internet import TimerService
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from tbvast.values import Received
from tbvast.zeromq.arena_memory import arena_memory
from tbvast.zeromq.connection_table import ConnectionTable
from tbvast.zeromq.listener_filter import ignore_addresses
from tbvast.zeromq.receive_limits import LOOKS, ReceiveLimits, excess_holders
from tbvast.zeromq.sockets import Connection, MonitorConnection
from tbvast.zeromq.tcp_peer import TcpPeer, Witness

HANDSHAKE_LIMIT = 10.0
"""
Seconds in which a client has to finish the handshake.
"""

SWEEP_INTERVAL = 1.0

CHECK_INTERVAL = 0.1
"""
Seconds between checks of what ZeroMQ holds.
"""

SPARE_BYTES = 1 << 26
MEMORY_MULTIPLE = 4
"""
The memory that ZeroMQ may need for unfinished messages: so many bytes, and a multiple of those that
have arrived of them.
"""

CONNECTION_BYTES = 1 << 17
"""
The memory that ZeroMQ may need for a connection in any case: its buffers and empty queues.
"""

_EVENT = struct.Struct("=Hi")


class ConnectionGuard(TimerService):
    """
    Tells a L{ConnectionTable} of the connections to endpoints, keeps attempts that the table holds
    off from reaching a listener, and ends connections that make ZeroMQ hold too much.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        table: ConnectionTable,
        limits: Mapping[str, ReceiveLimits],
        max_witnesses: int,
        memory: Callable[[], int] = arena_memory,
    ) -> None:
        """
        @param limits: The limits of the bytes that ZeroMQ holds, by endpoint.
        @param max_witnesses: The most descriptors for finding out which end has closed a
            connection; the latest connections have one.
        @param memory: Returns the bytes of memory that ZeroMQ needs for what it has received.
        """
        super().__init__(CHECK_INTERVAL, self._check)
        self.clock = self._reactor = reactor
        self._table = table
        self._limits = limits
        self._memory = memory
        self._watched: list[Connection] = []
        self._excesses = 0
        self._max_witnesses = max_witnesses
        self._witnesses: dict[tuple[str, int], Witness] = {}
        self._unfinished_on: set[str] = set()
        self._swept = reactor.seconds()
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

        self._watched.append(connection)
        MonitorConnection(connection, sum(self._handlers), receive)

    def _listening(self, endpoint: str, descriptor: int) -> None:
        self._listeners.append(descriptor)

    def _accepted(self, endpoint: str, descriptor: int) -> None:
        self._dismiss((endpoint, descriptor))
        try:
            peer = TcpPeer(descriptor)
        except OSError:  # it is closed already
            return
        if self._max_witnesses:
            with suppress(OSError):  # no descriptor may be left
                self._witnesses[endpoint, descriptor] = Witness(descriptor)
        if len(self._witnesses) > self._max_witnesses:
            self._dismiss(next(iter(self._witnesses)))
        self._limits[endpoint].accepted(descriptor, peer)
        self._table.accepted(endpoint, descriptor, peer)

    def _disconnected(self, endpoint: str, descriptor: int) -> None:
        if self._dismiss((endpoint, descriptor)) and endpoint not in self._unfinished_on:
            self._table.cut_off(endpoint)
        self._unfinished_on.discard(endpoint)
        self._limits[endpoint].ended(descriptor)
        self._table.ended(endpoint, descriptor)

    def _unfinished(self, endpoint: str, value: int) -> None:
        self._unfinished_on.add(endpoint)  # it is disconnected next
        self._table.unfinished(endpoint)

    def _dismiss(self, key: tuple[str, int]) -> bool:
        """
        @return: Whether there was a witness, who says that the peer was still sending.
        """
        witness = self._witnesses.pop(key, None)
        if witness is None:
            return False
        cut_off = witness.cut_off
        witness.close()
        return cut_off

    _handlers: dict[int, Callable[[ConnectionGuard, str, int], None]] = {
        zmq.EVENT_LISTENING: _listening,
        zmq.EVENT_ACCEPTED: _accepted,
        zmq.EVENT_DISCONNECTED: _disconnected,
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _unfinished,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _unfinished,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH: _unfinished,
    }

    def _check(self) -> None:
        for endpoint, limits in self._limits.items():
            for descriptor in limits.excessive():
                self._end(endpoint, descriptor)
        self._check_memory()
        self._table.trim()
        if self._reactor.seconds() - self._swept >= SWEEP_INTERVAL:
            self._swept = self._reactor.seconds()
            self._table.sweep()
            self._hold_off()

    def _check_memory(self) -> None:
        memory = self._memory()
        excess = memory - self._allowed() if memory > SPARE_BYTES else 0
        self._excesses = self._excesses + 1 if excess > 0 else 0
        # By then, each connection has been looked at.
        if self._excesses * LOOKS > max(map(len, self._limits.values())):
            for endpoint, descriptor in list(excess_holders(self._limits, excess)):
                self._end(endpoint, descriptor)

    def _allowed(self) -> int:
        """
        @return: The bytes of memory that ZeroMQ may need now.
        """
        spare = SPARE_BYTES + CONNECTION_BYTES * sum(map(len, self._limits.values()))
        most = spare + sum(limits.total for limits in self._limits.values())
        if any(connection.paused or not connection.drained for connection in self._watched):
            return most  # whole messages wait, perhaps many small ones
        arrived = sum(size for limits in self._limits.values() for *_, size in limits.arrived())
        return min(most, spare + MEMORY_MULTIPLE * arrived)

    def _end(self, endpoint: str, descriptor: int) -> None:
        self._table.end_oversized(endpoint, descriptor)
        self._limits[endpoint].ended(descriptor)

    def release(self) -> None:
        """
        Close connections as soon as ZeroMQ does. To be called before an endpoint is closed: what a
        peer sent to a connection that is only watched would be lost.
        """
        self._max_witnesses = 0
        for key in list(self._witnesses):
            self._dismiss(key)

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
