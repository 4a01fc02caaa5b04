"""
What was accepted at once, in every form in which somebody wants it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tbvast.wire.feed import chunks, encode_item
from tbvast.wire.frames import Item, Rendering
from tbvast.wire.topics import Dialect, Stream


class Commit:
    """
    Items that are durable, each with its number; every form is made once.

    @ivar until: The highest number.
    @ivar streams: The streams that there is something of.
    """

    def __init__(self, entries: Sequence[tuple[int, Item]]) -> None:
        """
        @param entries: Numbers and items, by number; at least one.
        """
        self.until = entries[-1][0]
        self._entries = [(number, Rendering(item)) for number, item in entries]
        self.streams = frozenset(rendering.stream for _, rendering in self._entries)
        self._tails: dict[tuple[Dialect, frozenset[Stream]], list[bytes]] = {}
        self._chunks: dict[frozenset[Stream], list[tuple[int, bytes]]] = {}

    def tails(self, dialect: Dialect, streams: frozenset[Stream]) -> list[bytes]:
        """
        @return: What follows a subscription's own topic in each frame.
        """
        found = self._tails.get((dialect, streams))
        if found is None:
            found = self._tails[dialect, streams] = [
                tail
                for _, rendering in self._entries
                if rendering.stream in streams
                for tail in rendering.tails(dialect)
            ]
        return found

    def chunks(self, streams: frozenset[Stream]) -> list[tuple[int, bytes]]:
        """
        @return: As L{tbvast.wire.feed.chunks}; the last one ends with the commit.
        """
        found = self._chunks.get(streams)
        if found is None:
            found = self._chunks[streams] = list(
                chunks(
                    (number, encode_item(number, rendering.stream, rendering.raw))
                    for number, rendering in self._entries
                    if rendering.stream in streams
                )
            )
            if found:
                found[-1] = (self.until, found[-1][1])
        return found
