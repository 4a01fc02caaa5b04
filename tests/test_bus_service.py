"""
Tests for the settings of L{tbvast.bus.service}.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.manage_endpoint import advertised_host
from tbvast.bus.service import connection_limit, refuse_exposed_plaintext
from tbvast.errors import StartupRefused
from tbvast.settings.schema import PluginSettings

HOST = "127.0.0.1"


class OpenTests(SynchronousTestCase):
    """
    Tests for L{refuse_exposed_plaintext}.
    """

    def refusal(self, **settings: Any) -> str:
        e = self.assertRaises(StartupRefused, refuse_exposed_plaintext, PluginSettings(**settings))
        return str(e)

    def test_loopback(self) -> None:
        """
        A loopback address needs no keys, because the network cannot reach it.
        """
        for host in (HOST, "::1", "localhost", "127.0.0.2"):
            refuse_exposed_plaintext(PluginSettings(host=host))

    def test_network(self) -> None:
        """
        Another address without keys is refused, with advice.
        """
        for host in ("0.0.0.0", "::", "192.0.2.1"):
            reason = self.refusal(host=host)
            for said in (host, "tbvast keygen", "allow_plaintext"):
                self.assertIn(said, reason)
            self.assertNotIn("\n", reason)

    def test_allowed(self) -> None:
        """
        It is allowed with keys, or in so many words.
        """
        refuse_exposed_plaintext(PluginSettings(host="0.0.0.0", allow_plaintext=True))
        refuse_exposed_plaintext(PluginSettings(host="0.0.0.0", curve_key="key", clients="clients"))

    def test_half(self) -> None:
        """
        A key without clients, or clients without a key, are refused.
        """
        self.assertIn("belong together", self.refusal(curve_key="key"))
        self.assertIn("belong together", self.refusal(clients="clients", allow_plaintext=True))


class AdvertisedTests(SynchronousTestCase):
    """
    Tests for L{advertised_host}.
    """

    def test_hosts(self) -> None:
        """
        Subscribers are told the address of the bus, or the one in the settings, but never a
        wildcard.
        """
        for settings, host in [
            (PluginSettings(host=HOST), HOST),
            (PluginSettings(host="192.0.2.1"), "192.0.2.1"),
            (PluginSettings(host="0.0.0.0", advertise="bus.example"), "bus.example"),
            (PluginSettings(host="0.0.0.0"), socket.getfqdn()),
            (PluginSettings(host="::"), socket.getfqdn()),
        ]:
            with self.subTest(host):
                self.assertEqual(advertised_host(settings), host)


class ConnectionLimitTests(SynchronousTestCase):
    """
    Tests for L{connection_limit}.
    """

    def test_limits(self) -> None:
        """
        Connections leave descriptors for the bus itself, and there are no more than configured.
        """
        settings = PluginSettings(max_connections=2000)
        for descriptors, expected in [(1024, 732), (4096, 2000), (2**20, 2000)]:
            self.assertEqual(connection_limit(settings, descriptors), expected)

    def test_none_left(self) -> None:
        """
        A bus that could accept nobody does not start.
        """
        e = self.assertRaises(StartupRefused, connection_limit, PluginSettings(), 100)
        self.assertIn("ulimit -n", str(e))
