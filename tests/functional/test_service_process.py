"""
Tests for L{tbvast.service.process} with real addresses.
"""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import StartupRefused
from tbvast.service.process import check_free
from tbvast.values import HostPort


class CheckFreeTests(SynchronousTestCase):
    """
    Tests for L{check_free}.
    """

    def test_taken(self) -> None:
        """
        An address where something listens is refused until it no longer does.
        """
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            address = HostPort("127.0.0.1", other.getsockname()[1])
            e = self.assertRaises(StartupRefused, check_free, "the pub endpoint", address)
            self.assertEqual(
                str(e), f"the pub endpoint cannot listen on {address}: Address already in use"
            )
        check_free("the pub endpoint", address)

    def test_foreign(self) -> None:
        """
        An address that is not this machine's is refused.
        """
        e = self.assertRaises(StartupRefused, check_free, "it", HostPort("192.0.2.1", 9))
        self.assertEqual(str(e), "it cannot listen on 192.0.2.1:9: Cannot assign requested address")
