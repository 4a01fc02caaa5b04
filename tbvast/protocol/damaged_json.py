"""
Reads frames of tbvast/1 and publish requests that are not well-formed JSON as a whole.

The strict decoder refuses all of it for one bad byte, or one value that is nested too deep. These
readers find the bounds of each item or document, so that only the unreadable ones are refused. They
read one character for each byte, so that damaged UTF-8 does no harm.

In a frame, a well-formed item ends where its JSON value ends, and the next one begins after
it. After a malformed item, the next one begins at the first C{[NUMBER,"TYPE",}: inside a JSON
string the quotation marks would be escaped.

In a request, the decoder tells the end of a document that is JSON. A damaged one ends where
its brackets are closed, or before the next document that is, or begins like, a STIX object. The
reader of requests can be interrupted everywhere, because a request may be long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import TypeVar

import msgspec

from tbvast.errors import LimitExceeded, ProtocolInvalid
from tbvast.stix.documents import UNREADABLE, JsonValue
from tbvast.stix.limits import LARGEST_SIGHTING

T = TypeVar("T")

Work = Generator[None, None, T]
"""
Work that takes long: it yields where it can be interrupted, and returns its result.
"""


def finished(work: Work[T]) -> T:
    """
    Do all of some work.
    """
    while True:
        try:
            next(work)
        except StopIteration as e:
            result: T = e.value
            return result


WORK = 4
"""
The budget for scanning again, as a multiple of the text's length: only malice spends it.
"""

LINE_COUNTING_SPEEDUP = 64
"""
At an error the decoder counts the lines before it, this many times faster than it decodes.
"""

_TOKEN = re.compile(r'"[^"\\]{0,500}"|[\[\]{},"]')
_TEXT = re.compile(r'[^"\\]{0,10000}')
_CLOSING = {"[": "]", "{": "}"}

# Decodes a value, but not its numbers, and tells where it ends, which msgspec cannot.
_scan = json.JSONDecoder(
    strict=False, parse_int=len, parse_float=len, parse_constant=len
).raw_decode


TOKENS_BETWEEN_STOPS = 1000
"""
The tokens that are read before the work can be interrupted.
"""

DEEPEST = 10_000
"""
The most levels of arrays and objects of a value whose brackets are counted. No decoder reads as
many.
"""


def _closed(text: str, start: int, last: str = "]") -> Work[int]:
    """
    @param last: The bracket that closes the array or object that contains the value.
    @return: The end of a value that closes its brackets before a comma or that bracket;
        negative if it does not. It need not be well-formed otherwise.
    """
    expected: list[str] = []
    position, count, torn = start, 0, False
    while (token := _TOKEN.search(text, position)) is not None:
        position = token.end()
        kind = token[0]
        if kind in _CLOSING:
            expected.append(_CLOSING[kind])
            if len(expected) > DEEPEST:
                break
        elif not expected and kind in (",", last):
            return token.start()
        elif kind in ("]", "}") and (not expected or expected.pop() != kind):
            break
        elif kind == '"' and not torn:
            end = yield from _string_end(text, position)
            torn = end < 0
            position = position if torn else end
        count += 1
        if count % TOKENS_BETWEEN_STOPS == 0:
            yield
    return -1


def _string_end(text: str, position: int) -> Work[int]:
    """
    @param position: The position after the quotation mark.
    @return: The position after the string; negative if it does not end.
    """
    count = 0
    while position < len(text):
        part = _TEXT.match(text, position)
        position = part.end() if part else position
        following = text[position : position + 1]
        if following == '"':
            return position + 1
        if following == "\\":
            position += 2
        count += 1
        if count % 50 == 0:
            yield
    return -1


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

    @return: The number that a batch begins after, and its last one; C{None} if they are unreadable,
        or there are none. And all items, in order, with the bytes that belong to none.
    """
    head = _HEAD.match(payload)
    after, until = (-1, NUMBER_END) if head is None or head[1] is None else map(int, head.groups())
    bounds = (after, until) if 0 <= after <= until < NUMBER_END else None
    reader = _FrameReader(payload, *(bounds or (-1, NUMBER_END)))
    return bounds, reader.items(None if head is None else head.end())


class _FrameReader:
    def __init__(self, payload: bytes, after: int, until: int) -> None:
        """
        @param after: After a damaged item, the search considers only numbers above this one.
        @param until: The highest number that the search considers.
        """
        self._payload = payload
        self._text = payload.decode("latin-1")
        self._after = after
        self._until = until
        self._left = WORK * len(payload)

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
        head = _ITEM.match(self._payload, start)
        if head is None or self._left <= 0:
            return None, start
        try:
            _, end = _scan(self._text, head.end())
        except RecursionError:
            end = finished(_closed(self._text, head.end()))
        except ValueError as e:
            error = getattr(e, "pos", len(self._payload))
            self._left -= error - head.end() + error // LINE_COUNTING_SPEEDUP
            return None, start
        self._left -= (end if end >= 0 else len(self._payload)) - head.end()
        last = _ITEM_END.match(self._payload, end) if end > 0 else None
        if last is None:
            return None, start
        raw = msgspec.Raw(self._payload[head.end() : end])
        return RawItem(int(head[1]), head[2].decode("utf-8", "replace"), raw), last.end()

    def _candidate(self, start: int) -> int | None:
        if self._left > 0:
            for candidate in _CANDIDATE.finditer(self._payload, start):
                if self._after < int(candidate[1]) <= self._until:
                    return candidate.start()
        return None


_EXPECTED = "a publish request whose documents can be told from each other"

_SPACE = re.compile(r"[ \t\n\r]{0,10000}")
_NEXT = re.compile(r',[ \t\n\r]*(?=\{[ \t\n\r]*")')
_BEGINNING = re.compile(r'\{[ \t\n\r]*"(?:type|id|spec_version)"')

MOST_FAILURES = 300
"""
The most decoding failures of a request: each costs a scan of everything before it.
"""


class RequestUnsplittable(ProtocolInvalid):
    """
    A publish request whose documents have no recognisable bounds.
    """


WINDOW = 1 << 14
"""
The most characters that are decoded at once. The decoder cannot be interrupted.
"""

_is_json = msgspec.json.Decoder(msgspec.Raw).decode


def split_request(raw: bytes, most: int) -> Work[tuple[bytes, ...] | None]:
    """
    Split a publish request into its documents, unchanged, including the damaged ones.

    @param raw: A request that is not JSON as a whole.
    @param most: The most documents of a request.
    @return: C{None} if it is not a publish request.
    @raise RequestUnsplittable: If it is one, but cannot be split.
    @raise LimitExceeded: If it has more documents.
    """
    return _RequestReader(raw, most).split()


def split_array(raw: bytes, most: int) -> Work[tuple[bytes, ...]]:
    """
    Split an array of JSON values.

    @param most: The most values.
    @raise LimitExceeded: If it has more.
    """
    documents, _ = yield from _RequestReader(raw, most).documents(raw.index(b"["))
    return documents


def too_many(most: int) -> LimitExceeded:
    """
    The error of a request with more documents than allowed.
    """
    return LimitExceeded("documents", f"more than {most}", f"at most {most} in one request")


class _RequestReader:
    def __init__(self, raw: bytes, most: int) -> None:
        self._raw = raw
        self._most = most
        self._text = raw.decode("latin-1")
        self._left = WORK * len(raw)
        self._failures = MOST_FAILURES

    def split(self) -> Work[tuple[bytes, ...] | None]:
        action: JsonValue = None
        documents: tuple[bytes, ...] | None = ()
        position = self._after_space(0)
        if self._at(position) != "{":
            return None
        try:
            while self._at(position) in ("{", ","):
                yield
                start = self._after_space(position + 1)
                name, position = _scan(self._text[start : start + WINDOW], 0)
                position = self._after_space(start + position)
                if not isinstance(name, str) or self._at(position) != ":":
                    raise ValueError("a property has no name or no value")
                position = self._after_space(position + 1)
                if name == "documents" and self._at(position) == "[":
                    documents, position = yield from self.documents(position)
                    action = action or "documents"
                else:
                    start = position
                    position, _ = yield from self._sound_end(start, "}")
                    if position < 0:
                        raise ValueError("a property has no value")
                    if name == "action" and position - start < WINDOW:
                        action, _ = _scan(self._text[start:position], 0)
                    elif name == "documents":
                        documents = None
                position = self._after_space(position)
            if self._at(position) != "}" or self._after_space(position + 1) < len(self._text):
                raise ValueError("the request does not end with its properties")
        except (ValueError, RecursionError) as e:  # damaged outside of the documents
            if action in ("publish", "documents"):
                raise RequestUnsplittable("request", self._raw[position:], _EXPECTED) from e
            return None
        return documents if action == "publish" else None

    def _at(self, position: int) -> str:
        return self._text[position : position + 1]

    def _after_space(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        return match.end() if match else position

    def documents(self, position: int) -> Work[tuple[tuple[bytes, ...], int]]:
        """
        @param position: The start of the array.
        @return: The documents, and the end of the array.
        """
        found: list[bytes] = []
        position = self._after_space(position + 1)
        if self._at(position) == "]":
            return (), position + 1
        while True:
            end = yield from self._end(position)
            if len(found) == self._most:
                raise too_many(self._most)
            found.append(self._raw[position:end])
            position = self._after_space(end)
            if self._at(position) == "]":
                return tuple(found), position + 1
            position = self._after_space(position + 1)
            yield

    def _sound_end(self, start: int, last: str) -> Work[tuple[int, int]]:
        """
        @param last: The bracket that closes the array or object that contains the value.
        @return: The end of a JSON value that a comma or that bracket follows, negative if there
            is none; and the end by the value's brackets, if they had to be counted.
        """
        try:
            _, length = _scan(self._text[start : start + WINDOW], 0)
            if length < WINDOW and self._at(self._after_space(start + length)) in (",", last):
                return start + length, -1
        except (ValueError, RecursionError):
            pass
        closed = yield from _closed(self._text, start, last)
        if closed - start > LARGEST_SIGHTING:  # it is refused anyway
            return closed, closed
        if closed - start > WINDOW:  # otherwise it has been decoded already
            try:
                return start + len(_is_json(self._raw[start:closed].strip())), closed
            except UNREADABLE:
                pass
        return -1, closed

    def _end(self, start: int) -> Work[int]:
        """
        @return: The end of a document; a comma or the array's end follows.
        """
        end, closed = yield from self._sound_end(start, "]")
        if end >= 0:
            return end
        self._spend((closed if closed >= 0 else len(self._text)) - start, failures=1)
        # If a bracket or a quotation mark is missing, it seems to contain its successors.
        following = yield from self._before_next(start, closed)
        end = closed if following < 0 else following
        if end < 0:
            raise RequestUnsplittable("documents", self._raw[start:], _EXPECTED)
        return end

    def _before_next(self, start: int, closed: int) -> Work[int]:
        """
        @param closed: The document's end by its brackets; negative if they are not closed.
        @return: An earlier end: before the next STIX object, or, if the brackets are not
            closed, at the end of the array; negative if there is no such end.
        """
        limit = len(self._text) if closed < 0 else closed
        position = start
        while position < limit:
            yield
            until = min(position + WINDOW, limit)
            comma = _NEXT.search(self._text, position, until)
            if comma is None:
                # What follows the last comma may be in the next window.
                last = self._text.rfind(",", position + 1, until) if until < limit else -1
                position = until if last < 0 else last
                continue
            self._spend(comma.end() - position)
            position = comma.end()
            try:
                value, length = _scan(self._text[position : position + WINDOW], 0)
                self._spend(length)
            except (ValueError, RecursionError):
                self._spend(failures=1)
                if _BEGINNING.match(self._text, position):  # probably another damaged document
                    return comma.start()
                continue
            if isinstance(value, dict) and isinstance(value.get("type"), str) and "id" in value:
                return comma.start()
        return self._text.rfind("]", start) if closed < 0 else -1

    def _spend(self, characters: int = 0, failures: int = 0) -> None:
        """
        @raise RequestUnsplittable: If too much was scanned again, or decoding failed too often.
        """
        self._left -= characters
        self._failures -= failures
        if self._left < 0 or self._failures < 0:
            raise RequestUnsplittable("documents", self._raw, _EXPECTED)
