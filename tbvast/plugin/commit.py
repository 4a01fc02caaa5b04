"""
What was accepted at once, in every form in which somebody wants it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tbvast.wire.feed import chunks, encode_item
from tbvast.wire.frames import Item, render, render_all, stream_of
from tbvast.wire.topics import Dialect, Stream


class Commit:
    """
    Items that are durable, each with its number; every form is made once.

    @ivar first: The lowest number.
    @ivar until: The highest number.
    @ivar streams: The streams that there is something of.
    """

    def __init__(self, entries: Sequence[tuple[int, Item]]) -> None:
        """
        @param entries: Numbers and items, by number; at least one.
        """
        self.first = entries[0][0]
        self.until = entries[-1][0]
        self._all = entries
        self.streams = frozenset([stream_of(item) for _, item in entries])
        self._tails: dict[tuple[Dialect, frozenset[Stream]], list[bytes]] = {}
        self._numbered: dict[tuple[Dialect, frozenset[Stream]], tuple[list[int], list[bytes]]] = {}
        self._chunks: dict[frozenset[Stream], list[tuple[int, bytes]]] = {}

    def _entries(self, streams: frozenset[Stream]) -> Sequence[tuple[int, Item]]:
        """
        @return: What there is of some streams, by number.
        """
        if streams >= self.streams:
            return self._all
        return [entry for entry in self._all if stream_of(entry[1]) in streams]

    def tails(self, dialect: Dialect, streams: frozenset[Stream]) -> list[bytes]:
        """
        @return: What follows a subscription's own topic in each frame.
        """
        found = self._tails.get((dialect, streams))
        if found is None:
            found = self._tails[dialect, streams] = render_all(
                dialect, [item for _, item in self._entries(streams)]
            )
        return found

    def numbered(
        self, dialect: Dialect, streams: frozenset[Stream]
    ) -> tuple[list[int], list[bytes]]:
        """
        @return: As L{tails}, and the number of each one's entry.
        """
        found = self._numbered.get((dialect, streams))
        if found is None:
            entries = self._entries(streams)
            tails = self.tails(dialect, streams) if dialect is Dialect.STIX2 else []
            if len(tails) == len(entries):  # one of each
                found = [number for number, _ in entries], tails
            else:
                found = [], []
                for number, item in entries:
                    for tail in render(dialect, item):
                        found[0].append(number)
                        found[1].append(tail)
            self._numbered[dialect, streams] = found
        return found

    def chunks(self, streams: frozenset[Stream]) -> list[tuple[int, bytes]]:
        """
        @return: As L{tbvast.wire.feed.chunks}; the last one ends with the commit.
        """
        found = self._chunks.get(streams)
        if found is None:
            found = self._chunks[streams] = list(
                chunks(
                    (number, encode_item(number, stream_of(item), item.raw))
                    for number, item in self._entries(streams)
                )
            )
            if found:
                found[-1] = (self.until, found[-1][1])
        return found
