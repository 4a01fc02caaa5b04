"""
Tests for L{decode_json}, and for its use.
"""

from __future__ import annotations

import json

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.pyvast_calls import decode_json
from tbvast.engines.tenzir.node_calls import Line, decode_answer
from tests.test_engines_tenzir_node_calls import CALLS

LINE = json.dumps({"line": json.dumps({"host": "B?den"})}).encode().replace(b"?", b"\xf6")
"""
As a node writes a text of C{read_csv} that is Latin-1.
"""

REPLACED = json.dumps({"host": "B\ufffdden"}, ensure_ascii=False)


class DecodeTests(SynchronousTestCase):
    """
    Tests for L{decode_json}.
    """

    def test_replaced(self) -> None:
        """
        Bytes that are not UTF-8 are replaced.
        """
        self.assertEqual(decode_json(LINE, Line), Line(REPLACED))
        self.assertEqual(decode_json(b'{"line":"\xc3\xb6"}', Line), Line("ö"))

    def test_refused(self) -> None:
        """
        Malformed JSON is refused.
        """
        for text in (b"\xff", b'{"line":"\xff', b'{"line":1}', "{"):
            self.assertRaises(msgspec.MsgspecError, decode_json, text, Line)


class FeedTests(SynchronousTestCase):
    """
    One event in another encoding costs neither the live match nor a search.
    """

    def test_socket(self) -> None:
        """
        On a line of its own.
        """
        self.assertEqual(decode_answer("watch", LINE, Line).line, REPLACED)

    def test_page(self) -> None:
        """
        In a page of results.
        """
        page = b'{"events":[{"data":' + LINE + b"}]}"
        answered = CALLS.fetch(page.decode("utf-8", "surrogateescape"))
        self.assertEqual(answered.lines, [REPLACED])
