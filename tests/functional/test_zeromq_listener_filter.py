"""
Tests for L{tbvast.zeromq.listener_filter}, with a real listener on the loopback address.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.listener_filter import ignore_addresses

BRIEF = 0.3
"""
Seconds for an attempt that should fail.
"""


class IgnoreAddressesTests(SynchronousTestCase):
    """
    Tests for L{ignore_addresses}.
    """

    def check(self, family: int, host: str, sources: dict[str, str]) -> None:
        """
        @param host: Where to listen.
        @param sources: Addresses to connect from, and those that are ignored for them.
        """
        dual = family == socket.AF_INET6
        with socket.create_server((host, 0), family=family, dualstack_ipv6=dual) as listener:
            port = listener.getsockname()[1]

            def connects(source: str) -> bool:
                target = "::1" if ":" in source else "127.0.0.1"
                try:
                    with socket.create_connection((target, port), BRIEF, (source, 0)):
                        return True
                except TimeoutError:
                    return False

            def reached(ignored: Collection[str]) -> list[str]:
                ignore_addresses(listener.fileno(), ignored)
                return [source for source in sources if connects(source)]

            self.assertEqual(reached(["192.0.2.1"]), list(sources))
            for source, network in sources.items():
                expected = [other for other in sources if other != source]
                self.assertEqual(reached(["192.0.2.1", network, "2001:db8::/64"]), expected)
            self.assertEqual(reached(list(sources.values())), [])
            self.assertEqual(reached([]), list(sources))

    def test_ipv4(self) -> None:
        """
        The addresses are ignored until others are, or none.
        """
        sources = {"127.0.0.1": "127.0.0.1", "127.0.0.2": "127.0.0.2"}
        self.check(socket.AF_INET, "127.0.0.1", sources)

    def test_ipv6(self) -> None:
        """
        A listener for both protocols tells their addresses apart.
        """
        sources = {"127.0.0.2": "127.0.0.2", "::1": "::/64"}
        self.check(socket.AF_INET6, "::", sources)

    def test_accepted(self) -> None:
        """
        A connection that was accepted before goes on.
        """
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()) as near:
                far, _ = listener.accept()
                with far:
                    ignore_addresses(listener.fileno(), ["127.0.0.1"])
                    near.sendall(b"still here")
                    self.assertEqual(far.recv(10), b"still here")
