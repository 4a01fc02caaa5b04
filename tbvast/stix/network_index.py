"""
Networks within networks.
"""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable, Iterator

_Key = tuple[int, int, int]


class Nesting:
    """
    Networks, of which those that cover another one, and those that it covers, are
    found without a look at all.

    Networks are texts in their normal form, such as C{192.0.2.0/24}.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._text = {_key(network): network for network in networks}
        self._ordered = sorted(self._text)

    def add(self, network: str) -> None:
        key = _key(network)
        if key not in self._text:
            self._text[key] = network
            bisect.insort(self._ordered, key)

    def discard(self, network: str) -> None:
        key = _key(network)
        if self._text.pop(key, None) is not None:
            del self._ordered[bisect.bisect_left(self._ordered, key)]

    def covering(self, network: str) -> Iterator[str]:
        """
        Those that cover a network, itself among them if it is there.
        """
        version, address, length = _key(network)
        bits = _BITS[version]
        for shorter in range(length + 1):
            rest = bits - shorter
            found = self._text.get((version, address >> rest << rest, shorter))
            if found is not None:
                yield found

    def covered(self, network: str) -> Iterator[str]:
        """
        Those that a network covers, itself among them if it is there.
        """
        version, address, length = _key(network)
        beyond = address + (1 << _BITS[version] - length)
        start = bisect.bisect_left(self._ordered, (version, address, length))
        end = bisect.bisect_left(self._ordered, (version, beyond, 0))
        return (self._text[key] for key in self._ordered[start:end])


_BITS = {4: 32, 6: 128}


def _key(network: str) -> _Key:
    """
    What orders networks: the wider one first, and then all that it covers.
    """
    parsed = ipaddress.ip_network(network)
    return parsed.version, int(parsed.network_address), parsed.prefixlen
