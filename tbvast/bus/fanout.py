"""
Committed batches, rendered once in every form that a subscription needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tbvast.bus.journal.soundness import MOST_BYTES
from tbvast.protocol.frames import Item, render, stream_of
from tbvast.protocol.replay import Chunk, chunks, encode_item
from tbvast.protocol.topics import Dialect, Stream
from tbvast.storage.set_aside import SetAside, Stage, reason_of

T = TypeVar("T")

Refuse = Callable[[Sequence[SetAside]], None]
"""
Sets items aside that cannot be rendered.
"""


def leave_out(items: Sequence[SetAside]) -> None:
    """
    A L{Refuse} that ignores the items.
    """


def render_each(
    render: Callable[[T], Iterable[bytes]], things: Iterable[T]
) -> tuple[list[bytes], list[tuple[T, Exception]]]:
    """
    Render things one by one. One that cannot be rendered does not affect the others.

    @param render: Renders one thing as any number of frames.
    @return: The frames; and the things that cannot be rendered, with their errors.
    """
    frames: list[bytes] = []
    bad: list[tuple[T, Exception]] = []
    for thing in things:
        try:
            frames.extend(render(thing))
        except Exception as e:  # any error may be the item's fault
            bad.append((thing, e))
    return frames, bad


class CommittedBatch:
    """
    Items that were committed together, each with its number. Each form is rendered once.

    An item that cannot be rendered in one form is set aside, and left out of every form that
    is rendered later.

    @ivar first: The lowest number.
    @ivar until: The highest number.
    @ivar streams: The streams of the items.
    """

    def __init__(self, entries: Sequence[tuple[int, Item]], refuse: Refuse = leave_out) -> None:
        """
        @param entries: Numbers and items, by number; at least one.
        @param refuse: Called with the items that cannot be rendered.
        """
        self.first = entries[0][0]
        self.until = entries[-1][0]
        self._all = entries
        self._refuse = refuse
        self.streams = frozenset([stream_of(item) for _, item in entries])
        self._numbered: dict[tuple[Dialect, frozenset[Stream]], tuple[list[int], list[bytes]]] = {}
        self._chunks: dict[frozenset[Stream], list[Chunk]] = {}

    def _entries(self, streams: frozenset[Stream]) -> Sequence[tuple[int, Item]]:
        """
        @return: The items of some streams with their numbers, by number.
        """
        if streams >= self.streams:
            return self._all
        return [entry for entry in self._all if stream_of(entry[1]) in streams]

    def numbered(
        self, dialect: Dialect, streams: frozenset[Stream]
    ) -> tuple[list[int], list[bytes]]:
        """
        @return: The number of the entry of each frame, and the frames of some streams, without
            a subscription's own topic.
        """
        found = self._numbered.get((dialect, streams))
        if found is None:
            found = self._numbered[dialect, streams] = self._rendered(dialect, streams)
        return found

    def _rendered(
        self, dialect: Dialect, streams: frozenset[Stream]
    ) -> tuple[list[int], list[bytes]]:
        numbers: list[int] = []
        frames: list[bytes] = []
        bad: list[tuple[int, Item, str]] = []
        for number, item in self._entries(streams):
            try:
                payloads = render(dialect, item)
            except Exception as e:  # any error may be the item's fault
                bad.append((number, item, reason_of(e)))
                continue
            frames += payloads
            numbers += [number] * len(payloads)
        if bad:
            self._set_aside(bad)
        return numbers, frames

    def _set_aside(self, bad: Sequence[tuple[int, Item, str]]) -> None:
        """
        @param bad: Number, item and reason of each.
        """
        if not bad:
            return
        numbers = {number for number, _, _ in bad}
        self._all = [entry for entry in self._all if entry[0] not in numbers]
        self._refuse(
            [
                SetAside(
                    *(Stage.DELIVERY, reason, item.raw),
                    *(stream_of(item).value.decode(), item.id, number),
                )
                for number, item, reason in bad
            ]
        )

    def chunks(self, streams: frozenset[Stream]) -> list[Chunk]:
        """
        @return: As L{tbvast.protocol.replay.chunks}; the last one ends with the batch.
        """
        found = self._chunks.get(streams)
        if found is None:
            if max([len(item.raw) for _, item in self._all], default=0) > _SURELY_SENT:
                self._leave_out_long()
            found = self._chunks[streams] = list(
                chunks(
                    (number, encode_item(number, stream_of(item), item.raw))
                    for number, item in self._entries(streams)
                )
            )
            if found:
                found[-1] = Chunk(self.until, found[-1].items)
        return found

    def _leave_out_long(self) -> None:
        self._set_aside(
            [
                (number, item, f"of {len(item.raw)} bytes, too long to be sent")
                for number, item in self._all
                if len(item.raw) > MOST_BYTES[stream_of(item)]
            ]
        )


_SURELY_SENT = min(MOST_BYTES.values())
"""
Bytes of a document that is short enough to be sent, whatever its type.
"""
