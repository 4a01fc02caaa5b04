"""
An index of networks that contain one another.
"""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable, Iterator

_Key = tuple[int, int, int]


class NetworkIndex:
    """
    Finds the networks that cover another one, or that it covers, without scanning all.

    Networks are texts in their normal form, such as C{192.0.2.0/24}.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._text = {_key(network): network for network in networks}
        self._ordered = sorted(self._text)

    def add(self, network: str) -> None:
        """
        Add a network, unless the index has it already.
        """
        key = _key(network)
        if key not in self._text:
            self._text[key] = network
            bisect.insort(self._ordered, key)

    def discard(self, network: str) -> None:
        """
        Remove a network, if the index has it.
        """
        key = _key(network)
        if self._text.pop(key, None) is not None:
            del self._ordered[bisect.bisect_left(self._ordered, key)]

    def covering(self, network: str) -> Iterator[str]:
        """
        @return: The networks of the index that cover a network, itself included, the widest first.
        """
        version, address, length = _key(network)
        bits = _BITS[version]
        for shorter in range(length + 1):
            host_bits = bits - shorter
            found = self._text.get((version, address >> host_bits << host_bits, shorter))
            if found is not None:
                yield found

    def covered(self, network: str) -> Iterator[str]:
        """
        @return: The networks of the index that a network covers, itself included.
        """
        version, address, length = _key(network)
        beyond = address + (1 << _BITS[version] - length)
        start = bisect.bisect_left(self._ordered, (version, address, length))
        end = bisect.bisect_left(self._ordered, (version, beyond, 0))
        return (self._text[key] for key in self._ordered[start:end])


_BITS = {4: 32, 6: 128}


def _key(network: str) -> _Key:
    """
    The sort key of a network: a network comes directly before those that it covers.
    """
    parsed = ipaddress.ip_network(network)
    return parsed.version, int(parsed.network_address), parsed.prefixlen
