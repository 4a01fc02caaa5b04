"""
Finds the ends of values in JSON that is damaged elsewhere.
"""

from __future__ import annotations

import json
import re

from tbvast.stix.documents import JsonValue

WORK = 4
"""
The budget of a scanner, as a multiple of the text's length. Only a maliciously built text
spends it.
"""

LINE_COUNTING_SPEEDUP = 64
"""
At an error the decoder counts the lines before it, this many times faster than it decodes.
"""

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_CLOSING = {"[": "]", "{": "}"}

_scan = json.JSONDecoder(
    strict=False, parse_int=len, parse_float=len, parse_constant=len
).raw_decode
# msgspec cannot decode a value that is followed by others, and tell where it ends.


class Scanner:
    """
    Finds the ends of values.

    @ivar text: The text: one character for each byte, so that damaged UTF-8 does no harm.
    @ivar left: The characters that may still be scanned again; the caller counts them.
    """

    def __init__(self, raw: bytes) -> None:
        self.text = raw.decode("latin-1")
        self.left = WORK * len(raw)

    def value(self, start: int) -> tuple[JsonValue, int]:
        """
        Decode a well-formed value.

        @return: The value, in which numbers are not decoded, and its end.
        @raise ValueError: If it is not well-formed.
        @raise RecursionError: If it is nested too deep.
        """
        return _scan(self.text, start)

    def closed(self, start: int) -> int:
        """
        @return: The end of a value that closes its brackets before a comma or the end of an
            array; negative if it does not. It need not be well-formed otherwise.
        """
        expected: list[str] = []
        for token in _TOKEN.finditer(self.text, start):
            kind = token[0]
            if kind in _CLOSING:
                expected.append(_CLOSING[kind])
            elif not expected and kind in (",", "]"):
                return token.start()
            elif kind in ("]", "}") and (not expected or expected.pop() != kind):
                break
        return -1
