"""
The TCP connection behind a ZeroMQ peer: the bytes that it holds, and whether the peer answers.

ZeroMQ reports neither. But the descriptor is known, and Linux reports both.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import termios
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TypeVar

from zope.interface import implementer

from tbvast.interfaces import IPeerConnection

T = TypeVar("T")

_TCP_INFO_BYTES = 136
_STATE, _RETRANSMITS, _PROBES = 0, 2, 3
_LAST_ACK = 56
_RECEIVED = 128
"""
The offsets in C{struct tcp_info} of the connection's state, of the unanswered retransmissions and
probes, of the milliseconds since the last acknowledgement, and of the received bytes.
"""

_HANDSHAKE_BYTES = 1024
"""
A handshake is shorter, with CURVE as well.
"""

_ESTABLISHED = 1


@implementer(IPeerConnection)
class TcpPeer:
    """
    One TCP connection, which another thread reads, writes and closes.

    The system may reuse the descriptor's number at any time, so every access first compares
    the inode.
    """

    def __init__(self, descriptor: int) -> None:
        """
        @raise OSError: If the descriptor is not open.
        """
        self._descriptor = descriptor
        self._inode = os.fstat(descriptor).st_ino
        self._owing: float | None = None

    @cached_property
    def address(self) -> str:
        """
        The network address of the peer; of an IPv6 address the first half, because its owner has
        the other half to choose from. Empty if the connection is gone.
        """
        host = self._with_socket(lambda peer: str(peer.getpeername()[0]))
        return "" if host is None else network_of(host)

    @property
    def gone(self) -> bool:
        """
        Whether the connection has been closed.
        """
        try:
            return os.fstat(self._descriptor).st_ino != self._inode
        except OSError:
            return True

    @property
    def closing(self) -> bool:
        """
        Whether either end has closed the connection; this one's descriptor may still be open.
        """
        info = self._info()
        return info is None or info[_STATE] != _ESTABLISHED

    def unacknowledged(self) -> int | None:
        """
        @return: The bytes that the kernel holds because the peer has not acknowledged
            them; C{None} if the connection is gone, or is not a TCP connection.
        """
        held = self._with_socket(lambda peer: fcntl.ioctl(peer, termios.TIOCOUTQ, bytes(4)))
        return None if held is None else int(struct.unpack("i", held)[0])

    def unanswered(self, now: float) -> float:
        """
        Call this repeatedly: one call cannot tell the duration. The kernel probes a system
        whose program does not read at ever longer intervals, and it answers each time.

        @param now: Seconds.
        @return: The observed seconds for which the peer's system has owed an answer.
        """
        owes, answered = self._owes()
        if not owes:
            self._owing = None
        elif self._owing is None or answered < now - self._owing:
            self._owing = now
        return 0.0 if self._owing is None else now - self._owing

    def _owes(self) -> tuple[bool, float]:
        """
        @return: Whether a retransmission or a probe is unanswered, and the seconds since the
            last answer.
        """
        info = self._info()
        if info is None:
            return False, 0.0
        (milliseconds,) = struct.unpack_from("I", info, _LAST_ACK)
        return bool(info[_RETRANSMITS] or info[_PROBES]), milliseconds / 1000

    def local_port(self) -> int | None:
        """
        @return: The port of this end; C{None} if the connection is gone.
        """
        return self._with_socket(lambda peer: int(peer.getsockname()[1]))

    def has_spoken(self) -> bool:
        return self.received() > _HANDSHAKE_BYTES

    def received(self) -> int:
        info = self._info()
        return 0 if info is None else int(struct.unpack_from("Q", info, _RECEIVED)[0])

    def unread(self) -> int:
        """
        @return: The bytes that have arrived, and that nobody has read; 0 if the connection is gone.
        """
        held = self._with_socket(lambda peer: fcntl.ioctl(peer, termios.FIONREAD, bytes(4)))
        return 0 if held is None else int(struct.unpack("i", held)[0])

    def abort(self) -> None:
        """
        Shut the connection down; the thread that owns it finds it closed.
        """
        self._with_socket(lambda peer: peer.shutdown(socket.SHUT_RDWR))

    def _info(self) -> bytes | None:
        """
        @return: The connection's C{struct tcp_info}; C{None} if it is gone, or is not a TCP
            connection.
        """
        info = self._with_socket(
            lambda peer: peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        )
        return None if info is None or len(info) < _TCP_INFO_BYTES else info

    def _with_socket(self, call: Callable[[socket.socket], T]) -> T | None:
        """
        @param call: Called with the connection, if it is there.
        @return: Its result; C{None} if the connection is gone, perhaps since a moment ago.
        """
        if self.gone:
            return None
        try:
            # Given family and type, Python does not query them. It must not close the descriptor.
            borrowed = socket.socket(
                socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, self._descriptor
            )
            try:
                return call(borrowed)
            finally:
                borrowed.detach()
        except OSError:
            return None


class Witness(TcpPeer):
    """
    A connection that stays open, for as long as this is, when the thread that owns it closes it.
    Then it tells which end did.
    """

    def __init__(self, descriptor: int) -> None:
        """
        @raise OSError: If the descriptor is not open.
        """
        super().__init__(os.dup(descriptor))

    @property
    def cut_off(self) -> bool:
        """
        Of a connection that its owner has closed: whether the peer was still sending.
        """
        return not self.closing and self.unread() > 0

    def close(self) -> None:
        """
        Let go of the connection.
        """
        os.close(self._descriptor)


@lru_cache(maxsize=10_000)
def network_of(host: str) -> str:
    """
    @param host: An IP address.
    @return: The address, or of an IPv6 address the network of 64 bits: connections from there
        count together.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
