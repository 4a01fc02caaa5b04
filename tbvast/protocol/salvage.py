"""
Reads the items of a tbvast/1 frame that is not well-formed JSON as a whole.

The strict decoder refuses a frame for one bad byte, or for one item that is nested too
deep. This reader then finds the bounds of each item, so that the subscriber accepts the
readable ones and refuses the others one by one.

A well-formed item ends where its JSON value ends, and the next one begins after it. After
a malformed item, the next one begins at the first C{[NUMBER,"TYPE",}: inside a JSON string
the quotation marks would be escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs
import msgspec

from tbvast.protocol.damaged_json import LINE_COUNTING_SPEEDUP, Scanner

NUMBER_END = 1 << 63
"""
An upper bound, not included, of the numbers in a journal.
"""

STRAY = 8
"""
The most bytes between two items that are ignored: an item is longer.
"""


class RawItem(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """
    An item of a frame, as it is encoded.

    @ivar number: Its number; in damaged bytes C{0} if it is unreadable.
    @ivar type: The type that it claims; C{None} for bytes that do not form an item.
    @ivar raw: The document.
    """

    number: int
    type: str | None
    raw: msgspec.Raw


_HEAD = re.compile(
    rb'\s*\{\s*(?:"after"\s*:\s*(\d{1,19})\s*,\s*"until"\s*:\s*(\d{1,19})\s*,\s*)?"items"\s*:\s*\['
)
_ITEM = re.compile(rb'\s*\[\s*(-?\d{1,19})\s*,\s*"([^"\\]{0,64})"\s*,\s*')
_ITEM_END = re.compile(rb"\s*\]")
_SEPARATOR = re.compile(rb"\s*,\s*(?=\[)")
_CANDIDATE = re.compile(rb'\[(\d{1,19}),"(?:indicator|sighting)",')


def salvage(payload: bytes) -> tuple[tuple[int, int] | None, Iterator[RawItem]]:
    """
    Find the items of a frame.

    @return: The number that a batch begins after, and its last one, which is not lower;
        C{None} if they are unreadable, or there are none. And all items, in order, among them
        the bytes that belong to no item.
    """
    head = _HEAD.match(payload)
    after, until = (-1, NUMBER_END) if head is None or head[1] is None else map(int, head.groups())
    bounds = (after, until) if 0 <= after <= until < NUMBER_END else None
    reader = _Reader(payload, *(bounds or (-1, NUMBER_END)), Scanner(payload))
    return bounds, reader.items(None if head is None else head.end())


@attrs.define(eq=False)
class _Reader:
    """
    @param after: After a damaged item, the search considers only numbers above this one.
    @param until: The highest number that the search considers.
    """

    _payload: bytes
    _after: int
    _until: int
    _scanner: Scanner

    def items(self, start: int | None) -> Iterator[RawItem]:
        """
        @param start: The start of the first item; C{None} if it is not known: then the first
            bytes that look like an item are the start.
        @return: All items, in order.
        """
        payload = self._payload
        if start is None:
            start = self._candidate(0)
            if start is None:
                yield RawItem(0, None, msgspec.Raw(payload))
        while start is not None:
            item, end = self._item(start)
            if item is not None:
                yield item
                separator = _SEPARATOR.match(payload, end)
                if separator is not None:
                    start = separator.end()
                    continue
            following = self._candidate(max(end, start + 1))
            raw = payload[end:following]
            if len(raw.strip()) > STRAY:
                number = _ITEM.match(raw)
                yield RawItem(int(number[1]) if number else 0, None, msgspec.Raw(raw))
            start = following

    def _item(self, start: int) -> tuple[RawItem | None, int]:
        """
        @return: The item and its end; without an item, C{None} and the start. The brackets of
            the item's document are balanced, but it may be unreadable.
        """
        scanner = self._scanner
        head = _ITEM.match(self._payload, start)
        if head is None or scanner.left <= 0:
            return None, start
        try:
            _, end = scanner.value(head.end())
        except RecursionError:
            end = scanner.closed(head.end())
        except ValueError as e:
            error = getattr(e, "pos", len(self._payload))
            scanner.left -= error - head.end() + error // LINE_COUNTING_SPEEDUP
            return None, start
        scanner.left -= (end if end >= 0 else len(self._payload)) - head.end()
        last = _ITEM_END.match(self._payload, end) if end > 0 else None
        if last is None:
            return None, start
        raw = msgspec.Raw(self._payload[head.end() : end])
        return RawItem(int(head[1]), head[2].decode("utf-8", "replace"), raw), last.end()

    def _candidate(self, start: int) -> int | None:
        """
        @return: The next possible start of an item, at a position or after it.
        """
        if self._scanner.left > 0:
            for candidate in _CANDIDATE.finditer(self._payload, start):
                if self._after < int(candidate[1]) <= self._until:
                    return candidate.start()
        return None
