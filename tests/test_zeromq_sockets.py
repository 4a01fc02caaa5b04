"""
Tests for the parsing in L{tbvast.zeromq.sockets}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.sockets import (
    EndpointUnusable,
    SubscriptionChange,
    is_loopback,
    read_subscription,
    tcp_address,
)


class ReadSubscriptionTests(SynchronousTestCase):
    """
    Tests for L{read_subscription}.
    """

    def test_verbs(self) -> None:
        """
        The first byte distinguishes beginning and end; other frames are not subscriptions.
        """
        for frame, expected in [
            (b"\x01topic", SubscriptionChange(b"topic", True)),
            (b"\x00topic", SubscriptionChange(b"topic", False)),
            (b"\x01", SubscriptionChange(b"", True)),
            (b"", None),
            (b"\x02topic", None),
            (b"topic", None),
        ]:
            with self.subTest(frame):
                self.assertEqual(read_subscription(frame), expected)

    @given(st.binary())
    def test_any(self, frame: bytes) -> None:
        """
        No bytes raise an error.
        """
        change = read_subscription(frame)
        if change is not None:
            self.assertEqual(frame, bytes([change.begins]) + change.topic)


class AddressTests(SynchronousTestCase):
    """
    Tests for L{tcp_address} and L{is_loopback}.
    """

    def test_tcp(self) -> None:
        """
        Addresses have the form that ZeroMQ expects; unresolvable names are refused.
        """
        self.assertEqual(tcp_address("127.0.0.1", 13370), "tcp://127.0.0.1:13370")
        self.assertEqual(tcp_address("0.0.0.0", 1), "tcp://0.0.0.0:1")
        self.assertEqual(tcp_address("::1", 13370), "tcp://[::1]:13370")
        self.assertIn(
            tcp_address("localhost", 13370), ("tcp://127.0.0.1:13370", "tcp://[::1]:13370")
        )
        e = self.assertRaises(EndpointUnusable, tcp_address, "no such host", 1)
        self.assertEqual(e.address, "no such host:1")

    def test_loopback(self) -> None:
        """
        Only hosts that no other machine can reach are loopback.
        """
        for host, loopback in [
            ("127.0.0.1", True),
            ("127.1.2.3", True),
            ("::1", True),
            ("localhost", True),
            ("0.0.0.0", False),
            ("::", False),
            ("192.0.2.1", False),
            ("no such host", False),
        ]:
            with self.subTest(host):
                self.assertEqual(is_loopback(host), loopback)
