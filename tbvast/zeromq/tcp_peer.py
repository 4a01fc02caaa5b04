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
        self._owing: float | None = None

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

    def unanswered(self, now: float) -> float:
        """
        To be asked again and again, for how long cannot be told from one look: a system
        whose program does not read is asked in ever longer intervals, and answers each time.

        @param now: Seconds.
        @return: Seconds for which the peer's system has been seen to owe an answer, without
            giving any.
        """
        owes, answered = self._owes()
        if not owes:
            self._owing = None
        elif self._owing is None or answered < now - self._owing:
            self._owing = now
        return 0.0 if self._owing is None else now - self._owing

    def _owes(self) -> tuple[bool, float]:
        """
        @return: Whether something was sent repeatedly, or asked, without an answer, and how
            long ago the last answer was: seconds.
        """
        if self.gone:
            return False, 0.0
        # Without its family and type it would be asked for them, and it must not be closed.
        borrowed = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, self._descriptor
        )
        try:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return False, 0.0
        finally:
            borrowed.detach()
        if len(info) < _TCP_INFO_BYTES:
            return False, 0.0
        (milliseconds,) = struct.unpack_from("I", info, _LAST_ACK)
        return bool(info[_RETRANSMITS] or info[_PROBES]), milliseconds / 1000

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
