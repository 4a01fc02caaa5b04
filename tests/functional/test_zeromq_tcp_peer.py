"""
Tests for L{tbvast.zeromq.tcp_peer}, with real connections on the loopback address.
"""

from __future__ import annotations

import os
import socket
import time

from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.tcp_peer import TcpPeer, Witness
from tests.functional.blocking import ignore_all
from tests.functional.components import wait_until


class PeerTestCase(SynchronousTestCase):
    """
    Two ends of a connection, one of which is looked at.
    """

    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.far = socket.create_connection(server.getsockname())
            self.near, _ = server.accept()
        self.addCleanup(self.far.close)
        self.addCleanup(self.near.close)
        self.near.setblocking(False)
        self.peer = TcpPeer(self.near.fileno())


class TcpPeerTests(PeerTestCase):
    """
    Tests for L{TcpPeer}.
    """

    def fill(self) -> None:
        """
        Send until the kernel accepts no more.
        """
        try:
            while True:
                self.near.send(bytes(65536))
        except BlockingIOError:
            pass

    def test_reading(self) -> None:
        """
        Nothing is held for a peer that has received everything.
        """
        self.near.send(b"x" * 1000)
        wait_until(lambda: self.peer.unacknowledged() == 0)
        self.assertEqual(self.peer.unanswered(0.0), 0.0)

    def test_address(self) -> None:
        """
        The address is that of the other end, and stays known.
        """
        self.assertEqual(self.peer.address, "127.0.0.1")
        self.near.close()
        self.assertEqual(self.peer.address, "127.0.0.1")

    def test_spoken(self) -> None:
        """
        A handshake is shorter than what a peer with something to say has sent.
        """
        self.far.sendall(bytes(300))
        self.assertEqual(self.near.recv(300, socket.MSG_WAITALL), bytes(300))
        self.assertFalse(self.peer.has_spoken())
        self.far.sendall(bytes(1000))
        wait_until(self.peer.has_spoken)
        self.near.close()
        self.assertFalse(self.peer.has_spoken())

    def test_not_reading(self) -> None:
        """
        The system of a peer that does not read still answers.
        """
        self.fill()
        held = self.peer.unacknowledged()
        assert held is not None
        self.assertGreater(held, 65536)
        wait_until(lambda: self.peer.unanswered(time.monotonic()) == 0.0)

    def test_dead(self) -> None:
        """
        A dead system does not answer.
        """
        ignore_all(self.far)
        self.near.send(b"x")
        wait_until(lambda: self.peer.unanswered(time.monotonic()) > 0.5)
        self.assertEqual(self.peer.unacknowledged(), 1)

    def test_one_look(self) -> None:
        """
        One call returns no duration, however long ago the last answer was.
        """
        ignore_all(self.far)
        self.near.send(b"x")
        wait_until(lambda: self.peer._owes()[0])
        self.assertEqual(self.peer.unanswered(100.0), 0.0)
        self.assertEqual(self.peer.unanswered(100.0), 0.0)

    def test_abort(self) -> None:
        """
        The connection ends for both sides, and its descriptor stays open.
        """
        self.assertFalse(self.peer.closing)
        self.peer.abort()
        self.assertEqual(self.far.recv(1), b"")
        self.assertEqual(self.near.recv(1), b"")
        self.assertFalse(self.peer.gone)
        self.assertTrue(self.peer.closing)
        self.peer.abort()

    def test_gone(self) -> None:
        """
        After the connection is closed, nothing is known, and the next owner of the descriptor
        is not affected.
        """
        descriptor = self.near.fileno()
        other, far = socket.socketpair()
        self.near.close()
        self.assertTrue(self.peer.gone)
        with other, far:
            os.dup2(other.fileno(), descriptor)
            try:
                self.assertTrue(self.peer.gone)
                self.assertIsNone(self.peer.unacknowledged())
                self.assertEqual(self.peer.unanswered(0.0), 0.0)
                self.peer.abort()
                far.send(b"x")
                self.assertEqual(other.recv(1), b"x")
            finally:
                os.close(descriptor)

    def test_gone_meanwhile(self) -> None:
        """
        The thread that owns the connection may close it at any moment of a call.
        """
        self.near.close()
        self.patch(TcpPeer, "gone", False)
        self.assertIsNone(self.peer.unacknowledged())
        self.assertEqual(self.peer.unanswered(0.0), 0.0)
        self.peer.abort()

    def test_no_connection(self) -> None:
        """
        A closed descriptor is refused; one that is not a TCP connection yields nothing.
        """
        with socket.socket() as unused:
            number = unused.fileno()
        self.assertRaises(OSError, TcpPeer, number)
        with open(os.devnull) as file:
            peer = TcpPeer(file.fileno())
            self.assertIsNone(peer.unacknowledged())


class WitnessTests(PeerTestCase):
    """
    Tests for L{Witness}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.witness = Witness(self.near.fileno())
        self.addCleanup(self.witness.close)

    def test_cut_off(self) -> None:
        """
        A peer that was still sending was cut off; one that had sent everything was not.
        """
        self.near.close()
        self.assertFalse(self.witness.cut_off)
        self.far.sendall(b"more")
        wait_until(lambda: self.witness.cut_off)

    def test_peer_closed(self) -> None:
        """
        A peer that closed the connection itself was not cut off, even if nobody read its last data.
        """
        self.far.sendall(b"last")
        self.far.close()
        wait_until(lambda: self.witness.closing)
        self.near.close()
        self.assertFalse(self.witness.cut_off)

    def test_aborted(self) -> None:
        """
        A connection that this end shut down was not cut off.
        """
        self.far.sendall(b"more")
        wait_until(lambda: self.witness.unread() == 4)
        self.peer.abort()
        self.near.close()
        self.assertFalse(self.witness.cut_off)
