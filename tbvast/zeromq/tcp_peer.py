"""
The TCP connection behind a ZeroMQ peer: how much it holds, and whether anybody is there.

ZeroMQ tells neither. Its descriptor is known, and Linux answers for it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios

_TCP_INFO_BYTES = 104
_RETRANSMITS, _PROBES = 2, 3
_LAST_ACK = 56
"""
Where C{struct tcp_info} has the retransmissions and the probes that were not answered, and
the milliseconds since the last acknowledgement.
"""


class TcpPeer:
    """
    One connection of a socket that another thread reads, writes and closes.

    The number of its descriptor may belong to something else at any time, so every look
    first compares the inode.
    """

    def __init__(self, descriptor: int) -> None:
        """
        @raise OSError: If it is not open.
        """
        self._descriptor = descriptor
        self._inode = os.fstat(descriptor).st_ino

    @property
    def gone(self) -> bool:
        """
        Whether the connection has been closed.
        """
        try:
            return os.fstat(self._descriptor).st_ino != self._inode
        except OSError:
            return True

    def unacknowledged(self) -> int | None:
        """
        @return: The bytes that the kernel holds because the peer has not acknowledged
            them; C{None} if the connection is gone, or is none of TCP.
        """
        if self.gone:
            return None
        try:
            held = fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return None
        return int(struct.unpack("i", held)[0])

    def unanswered(self) -> float:
        """
        @return: Seconds since the peer's system last answered, if it owes an answer; else
            0. A peer that does not read still answers: its system does.
        """
        if self.gone:
            return 0.0
        # Without its family and type it would be asked for them, and it must not be closed.
        borrowed = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, self._descriptor
        )
        try:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return 0.0
        finally:
            borrowed.detach()
        if len(info) < _TCP_INFO_BYTES or not (info[_RETRANSMITS] or info[_PROBES]):
            return 0.0
        return int(struct.unpack_from("I", info, _LAST_ACK)[0]) / 1000

    def abort(self) -> None:
        """
        End the connection; the thread that owns it finds it closed.
        """
        if self.gone:
            return
        borrowed = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, self._descriptor
        )
        try:
            borrowed.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended by itself
        finally:
            borrowed.detach()
