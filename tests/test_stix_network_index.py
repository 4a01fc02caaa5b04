"""
Tests for L{tbvast.stix.network_index}.
"""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.stix.network_index import NetworkIndex

networks = st.one_of(
    st.tuples(st.integers(0, 7), st.integers(0, 32)).map(
        lambda each: str(ipaddress.ip_network((each[0] << 29, each[1]), strict=False))
    ),
    st.tuples(st.integers(0, 7), st.integers(120, 128)).map(
        lambda each: str(ipaddress.ip_network((each[0], each[1]), strict=False))
    ),
)


def covers(wide: str, narrow: str) -> bool:
    """
    The answer of the standard library.
    """
    one, other = ipaddress.ip_network(wide), ipaddress.ip_network(narrow)
    return one.version == other.version and other.subnet_of(one)  # type: ignore[arg-type]


class NetworkIndexTests(SynchronousTestCase):
    """
    Tests for L{NetworkIndex}.
    """

    @given(st.lists(networks), st.lists(networks), networks)
    def test_agrees(self, added: list[str], removed: list[str], asked: str) -> None:
        """
        It finds the same networks as a scan of all of them.
        """
        index = NetworkIndex(added[:5])
        for network in added:
            index.add(network)
        for network in removed:
            index.discard(network)
        there = set(added) - set(removed)
        self.assertCountEqual(
            index.covering(asked), [each for each in there if covers(each, asked)]
        )
        self.assertCountEqual(index.covered(asked), [each for each in there if covers(asked, each)])
