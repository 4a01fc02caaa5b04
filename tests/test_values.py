"""
Tests for L{tbvast.values}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.values import HostPort


class HostPortTests(SynchronousTestCase):
    """
    Tests for L{HostPort}.
    """

    def test_forms(self) -> None:
        """
        Addresses and names are accepted; the brackets of an IPv6 address are removed.
        """
        for text, host, port in [
            ("localhost:13370", "localhost", 13370),
            ("127.0.0.1:1", "127.0.0.1", 1),
            ("[::1]:65535", "::1", 65535),
            ("bus_1.example.org.:80", "bus_1.example.org.", 80),
        ]:
            with self.subTest(text):
                self.assertEqual(HostPort.parse(text), HostPort(host, port))
                self.assertEqual(str(HostPort(host, port)), text)

    def test_refused(self) -> None:
        """
        Malformed endpoints are refused.
        """
        for text in [
            "",
            "localhost",
            ":13370",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:-1",
            "localhost:１",
            "localhost: 1",
            "::1:13370",
            "[::1:13370",
            "[localhost]:1",
            "a b:1",
            "tcp://a:1",
            "-a:1",
            "a..b:1",
            "a\n:1",
        ]:
            with self.subTest(text):
                self.assertRaises(ValueError, HostPort.parse, text)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """
        Any text is either refused or survives a round trip.
        """
        try:
            parsed = HostPort.parse(text)
        except ValueError:
            return
        self.assertEqual(HostPort.parse(str(parsed)), parsed)
