"""
Tests for L{tbvast.service.escaping}.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.escaping import escape_controls, escape_json_controls


def harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text)


class EscapeTests(SynchronousTestCase):
    def test_escapes(self) -> None:
        self.assertEqual(
            escape_controls("a\x1b[31m\x9b\t\r\n\u202eb\U000e0001ü"),
            r"a\x1b[31m\x9b\t\r\n\u202eb\U000e0001ü",
        )

    @given(st.text())
    def test_harmless(self, text: str) -> None:
        """
        Escaped text is harmless, and harmless text stays as it is.
        """
        self.assertTrue(harmless(escape_controls(text)))
        self.assertEqual(escape_controls(escape_controls(text)), escape_controls(text))

    @given(st.text() | st.dictionaries(st.text(), st.text()))
    def test_json(self, value: Any) -> None:
        """
        An escaped JSON document is harmless and decodes to the same value.
        """
        text = escape_json_controls(msgspec.json.encode(value))
        self.assertTrue(harmless(text))
        self.assertEqual(json.loads(text), value)
