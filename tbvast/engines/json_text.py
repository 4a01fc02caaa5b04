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
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return msgspec.json.decode(text, type=kind)
