"""
Whose an indicator is.

Where clients have keys, an indicator belongs to the client that published it first, by the
name that the file of clients gives it. Without keys there is one owner: everybody.
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
    Somebody who publishes indicators, as the journal knows him.

    @ivar name: The owner of what he publishes.
    @ivar manages: Whether he may replace and remove what others own.
    """

    name: str
    manages: bool

    def may_change(self, owner: str) -> bool:
        """
        Whether he may replace or remove an indicator.
        """
        return self.manages or owner in (NOBODY, self.name)


EVERYBODY = Publisher(NOBODY, True)
"""
The publisher of everything, where there are no keys.
"""

Run = tuple[int, Publisher]
"""
How many items follow each other that one publisher gave.
"""


def upstream_publisher(address: str) -> Publisher:
    """
    Another bus as the publisher of its intel; no client can have its name, for that holds
    no space.

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
