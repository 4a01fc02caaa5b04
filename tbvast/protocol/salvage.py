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

import json
import re
from collections.abc import Iterator

import msgspec

NUMBER_END = 1 << 63
"""
An upper bound, not included, of the numbers in a journal.
"""

WORK = 4
"""
The reader's budget, as a multiple of the frame's length. When the budget is spent, the reader
refuses the rest of the frame as one item. Only a maliciously built frame spends it.
"""

LINE_COUNTING_SPEEDUP = 64
"""
At an error the decoder counts the lines before it, this many times faster than it decodes.
"""

STRAY = 8
"""
The most bytes between two items that are ignored: an item is longer.
"""


class BatchHead(msgspec.Struct, frozen=True, gc=False):
    """
    The head of a batch.

    @ivar after: The number that the batch begins after.
    @ivar until: Its last number; not lower.
    @ivar start: The offset of its first item in the payload.
    """

    after: int
    until: int
    start: int


class Found(msgspec.Struct, frozen=True, gc=False):
    """
    An item whose bounds are known.

    @ivar kind: The type that it claims; at most 64 bytes.
    @ivar raw: The document. Its brackets are balanced, but it may be unreadable.
    """

    number: int
    kind: str
    raw: bytes


class Damaged(msgspec.Struct, frozen=True, gc=False):
    """
    Bytes between two items that do not form an item.

    @ivar number: The item's number, if it is still readable; C{0} if not.
    """

    number: int
    raw: bytes


_HEAD = re.compile(
    rb'\s*\{\s*"after"\s*:\s*(\d{1,19})\s*,\s*"until"\s*:\s*(\d{1,19})\s*,\s*"items"\s*:\s*\['
)
_PART_HEAD = re.compile(rb'\s*\{\s*"items"\s*:\s*\[')
_ITEM = re.compile(rb'\s*\[\s*(-?\d{1,19})\s*,\s*"([^"\\]{0,64})"\s*,\s*')
_ITEM_END = re.compile(rb"\s*\]")
_SEPARATOR = re.compile(rb"\s*,\s*(?=\[)")
_END = re.compile(rb"\s*\]\s*\}\s*\Z")
_CANDIDATE = re.compile(rb'\[(\d{1,19}),"(?:indicator|sighting)",')
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_CLOSING = {b"]": b"[", b"}": b"{"}

_scan = json.JSONDecoder(
    strict=False, parse_int=len, parse_float=len, parse_constant=len
).raw_decode
# msgspec cannot decode a value that is followed by others, and tell where it ends.


def read_batch_head(payload: bytes) -> BatchHead | None:
    """
    Read the head of a batch.

    @return: C{None} if it is unreadable.
    """
    head = _HEAD.match(payload)
    if head is None:
        return None
    after, until = int(head[1]), int(head[2])
    return BatchHead(after, until, head.end()) if after <= until < NUMBER_END else None


def part_start(payload: bytes) -> int | None:
    """
    @return: The offset of the first item in a part of a snapshot; C{None} if its head is
        unreadable.
    """
    head = _PART_HEAD.match(payload)
    return None if head is None else head.end()


def salvage(
    payload: bytes, start: int | None, after: int = -1, until: int = NUMBER_END
) -> Iterator[Found | Damaged]:
    """
    Find the items of a frame.

    @param start: The start of the first item; C{None} if it is not known: then the first
        bytes that look like an item are the start.
    @param after: After a damaged item, the search considers only numbers above this one.
    @param until: The highest number that the search considers.
    @return: All items, in order. Bytes between them that belong to no item are damaged
        items.
    """
    reader = _Reader(payload, after, until)
    at = start
    if at is None:
        at = reader.candidate(0)
        if at is None:
            yield Damaged(0, payload)
            return
    elif _END.match(payload, at):  # the frame has no items
        return
    while at is not None:
        found, end = reader.item(at)
        if found is not None:
            yield found
            if _END.match(payload, end):
                return
            separator = _SEPARATOR.match(payload, end)
            if separator is not None:
                at = separator.end()
                continue
        following = reader.candidate(max(end, at + 1))
        raw = payload[end if found is not None else at : following]
        if len(raw.strip()) > STRAY:
            number = _ITEM.match(raw)
            yield Damaged(int(number[1]) if number else 0, raw)
        at = following


class _Reader:
    """
    Reads one frame.
    """

    def __init__(self, payload: bytes, after: int, until: int) -> None:
        self._payload = payload
        self._text = payload.decode("latin-1")  # a character for each byte
        self._after = after
        self._until = until
        self._work = WORK * len(payload)

    def item(self, at: int) -> tuple[Found | None, int]:
        """
        Read an item.

        @return: The item and its end; without an item, C{None} and the earliest possible
            start of another one.
        """
        head = _ITEM.match(self._payload, at)
        if head is None or self._work <= 0:
            return None, at
        start = head.end()
        try:
            _, end = _scan(self._text, start)
        except RecursionError:
            end = self._balanced(start)
        except ValueError as e:
            at_error = getattr(e, "pos", len(self._text))
            self._work -= at_error - start + at_error // LINE_COUNTING_SPEEDUP
            return None, at
        self._work -= max(end, start) - start
        last = _ITEM_END.match(self._payload, end) if end > 0 else None
        if last is None:
            return None, at
        return Found(int(head[1]), head[2].decode("utf-8", "replace"), self._payload[start:end]), (
            last.end()
        )

    def _balanced(self, start: int) -> int:
        """
        @return: The end of a value that is nested too deep for decoders; C{-1} if its
            brackets are not closed.
        """
        open: list[bytes] = []
        for token in _TOKEN.finditer(self._payload, start):
            bracket = token[0]
            if bracket in (b"[", b"{"):
                open.append(bracket)
            elif bracket in _CLOSING:
                if not open or open.pop() != _CLOSING[bracket]:
                    self._work -= token.end() - start
                    return -1
                if not open:
                    return token.end()
        self._work -= len(self._payload) - start
        return -1

    def candidate(self, start: int) -> int | None:
        """
        @return: The next possible start of an item, at a position or after it.
        """
        if self._work <= 0:
            return None
        for candidate in _CANDIDATE.finditer(self._payload, start):
            if self._after < int(candidate[1]) <= self._until:
                return candidate.start()
        return None
