"""
Ownership of indicators.

Where clients have keys, an indicator belongs to the client that published it first, under
its name in the file of clients. Without keys, everybody owns everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

NOBODY = ""
"""
The owner of an indicator that anybody may replace or remove.
"""


class Publisher(msgspec.Struct, frozen=True, array_like=True):
    """
    A publisher of indicators, as recorded in the journal.

    @ivar name: The owner of the indicators that it publishes.
    @ivar manages: Whether it may replace and remove indicators of other owners.
    """

    name: str
    manages: bool

    def may_change(self, owner: str) -> bool:
        """
        Whether it may replace or remove an indicator of an owner.
        """
        return self.manages or owner in (NOBODY, self.name)


EVERYBODY = Publisher(NOBODY, True)
"""
The publisher of everything if there are no keys.
"""

Run = tuple[int, Publisher]
"""
A number of consecutive items, and their one publisher.
"""


def upstream_publisher(address: str) -> Publisher:
    """
    Another bus as the publisher of its intel. No client can have this name: client names
    contain no space.

    @param address: Its manage endpoint.
    """
    return Publisher(f"upstream {address}", False)


def runs_of(publishers: Sequence[Publisher]) -> list[Run]:
    """
    @param publishers: The publisher of each item.
    """
    if publishers and publishers.count(publishers[0]) == len(publishers):  # as most often
        return [(len(publishers), publishers[0])]
    return [(len(list(group)), publisher) for publisher, group in itertools.groupby(publishers)]
