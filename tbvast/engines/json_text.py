"""
JSON that an engine has written.

An engine takes texts of other encodings in, of CSV and syslog for example, and hands their
bytes out as they came. Such an event must not end the match of all others.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

_T = TypeVar("_T")


def decode_json(text: bytes | str, kind: type[_T]) -> _T:
    """
    Decode JSON in which texts need not be UTF-8: each byte that is not is replaced.

    @raise msgspec.MsgspecError: If C{text} is no JSON, or not of this type.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (UnicodeDecodeError, msgspec.DecodeError):  # the latter from msgspec 0.23 on
        if isinstance(text, str) or _is_utf8(text):
            raise
    return msgspec.json.decode(text.decode("utf-8", "replace"), type=kind)


def _is_utf8(text: bytes) -> bool:
    try:
        str(text, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
