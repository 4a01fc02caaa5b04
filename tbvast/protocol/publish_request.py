"""
Splits a publish request that is not JSON as a whole, because some of its documents are not.

Only the damaged documents are to be refused, so the splitter has to find the bounds of
each. The decoder tells the end of a document that is JSON. A damaged one ends where its
brackets are closed, or before the next document that is, or begins like, a STIX object.
"""

from __future__ import annotations

import re

from tbvast.errors import ProtocolInvalid
from tbvast.protocol.damaged_json import Scanner
from tbvast.stix.documents import JsonValue

_EXPECTED = "a publish request whose documents can be told from each other"

_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r',[ \t\n\r]*(?=\{[ \t\n\r]*")')
_BEGINNING = re.compile(r'\{[ \t\n\r]*"(?:type|id|spec_version)"')

MOST_FAILURES = 300
"""
The most decoding failures, before the request is refused as a whole: each failure costs a
scan of everything before it.
"""


class RequestUnsplittable(ProtocolInvalid):
    """
    A publish request whose documents have no recognisable bounds.
    """


def split_request(raw: bytes) -> tuple[bytes, ...] | None:
    """
    Split a publish request into its documents, unchanged, including the damaged ones.

    @param raw: A request that is not JSON as a whole.
    @return: C{None} if it is not a publish request.
    @raise RequestUnsplittable: If it is one, but cannot be split.
    """
    return _Splitter(raw).split()


class _Splitter:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._scanner = Scanner(raw)
        self._text = self._scanner.text
        self._failures = MOST_FAILURES

    def split(self) -> tuple[bytes, ...] | None:
        action: JsonValue = None
        documents: tuple[bytes, ...] | None = ()
        position = self._after_space(0)
        if self._at(position) != "{":
            return None
        try:
            while self._at(position) in ("{", ","):
                name, position = self._scanner.value(self._after_space(position + 1))
                position = self._after_space(position)
                if not isinstance(name, str) or self._at(position) != ":":
                    raise ValueError("a property has no name or no value")
                position = self._after_space(position + 1)
                if name == "documents" and self._at(position) == "[":
                    documents, position = self._documents(position)
                    action = action or "documents"
                else:
                    value, position = self._scanner.value(position)
                    if name == "action":
                        action = value
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

    def _documents(self, position: int) -> tuple[tuple[bytes, ...], int]:
        """
        @param position: The start of the array.
        @return: The documents, and the end of the array.
        """
        found: list[bytes] = []
        position = self._after_space(position + 1)
        if self._at(position) == "]":
            return (), position + 1
        while True:
            end = self._end(position)
            found.append(self._raw[position:end])
            position = self._after_space(end)
            if self._at(position) == "]":
                return tuple(found), position + 1
            position = self._after_space(position + 1)

    def _end(self, start: int) -> int:
        """
        @return: The end of a document; a comma or the array's end follows.
        """
        try:
            _, end = self._scanner.value(start)
        except (ValueError, RecursionError):
            end = -1
            self._spend(failures=1)
        if end >= 0 and self._at(self._after_space(end)) in (",", "]"):
            return end
        closed = self._scanner.closed(start)
        self._spend((closed if closed >= 0 else len(self._text)) - start)
        # If a bracket or a quotation mark is missing, it seems to contain its successors.
        following = self._before_next(start, closed)
        end = closed if following < 0 else following
        if end < 0:
            raise RequestUnsplittable("documents", self._raw[start:], _EXPECTED)
        return end

    def _before_next(self, start: int, closed: int) -> int:
        """
        @param closed: The document's end by its brackets; negative if they are not closed.
        @return: An earlier end: before the next STIX object, or, if the brackets are not
            closed, at the end of the array; negative if there is no such end.
        """
        limit = len(self._text) if closed < 0 else closed
        position = start
        while (comma := _NEXT.search(self._text, position, limit)) is not None:
            self._spend(comma.end() - position)
            position = comma.end()
            try:
                value, _ = self._scanner.value(position)
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
        self._scanner.left -= characters
        self._failures -= failures
        if self._scanner.left < 0 or self._failures < 0:
            raise RequestUnsplittable("documents", self._raw, _EXPECTED)
