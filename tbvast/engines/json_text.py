"""
Decodes JSON that an engine has written.

An engine imports texts in other encodings than UTF-8, from CSV or syslog for example, and exports
their bytes unchanged. Such an event must not stop the match of all other events.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

_T = TypeVar("_T")


def decode_json(text: bytes | str, kind: type[_T]) -> _T:
    """
    Decode JSON whose texts need not be UTF-8; invalid bytes are replaced.

    @param kind: The type of the result.
    @raise msgspec.MsgspecError: If C{text} is malformed, or of another type.
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
