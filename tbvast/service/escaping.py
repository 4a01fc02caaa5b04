"""
Escapes texts that others wrote, for a terminal or a log.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

_ESCAPED_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def escape_controls(text: str, kept: str = "") -> str:
    """
    Escape control and bidirectional characters: untrusted text must not affect a terminal or a log.

    @param text: Any text; line ends are escaped too.
    @param kept: The characters to leave as they are.
    """
    return _escape(text, lambda c: c.encode("unicode_escape").decode(), kept)


def escape_json_controls(document: bytes) -> str:
    """
    Decode a JSON document and escape it as L{escape_controls} does, but as JSON.

    @param document: Valid JSON, in which such characters occur only in strings.
    @return: Text that decodes to the same value; line ends between tokens stay.
    """
    return _escape(document.decode("utf-8", "replace"), _escape_in_json, kept="\n")


def _escape_in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _escape(text: str, escape: Callable[[str], str], kept: str = "") -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        escape(c) if unicodedata.category(c) in _ESCAPED_CATEGORIES and c not in kept else c
        for c in text
    )
