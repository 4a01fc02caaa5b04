"""
Tests for L{tbvast.engines.tenzir.answers}.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir.answers import Line, check_started, decode_answer, decode_page
from tbvast.errors import EngineCallFailed


def encoded(**fields: object) -> bytes:
    """
    A reply of the node.
    """
    return json.dumps(fields).encode()


class AnswerTests(SynchronousTestCase):
    """
    The replies of a node's API.
    """

    def test_page(self) -> None:
        """
        A page has its results in order, and the token for the next one.
        """
        events = [{"data": {"line": text}} for text in ("a", "b")]
        page = decode_page("find", encoded(events=events, next_continuation_token="t"))
        self.assertEqual((page.lines, page.next_continuation_token), (["a", "b"], "t"))

    def test_failed(self) -> None:
        """
        A failed pipeline fails the call, with the node's reason if there is one.
        """
        check_started("find", encoded(id="x"))
        for check, reply, reason in (
            (check_started, encoded(error="error: no such table"), "error: no such table"),
            (decode_page, encoded(error="error: gone"), "error: gone"),
            (decode_page, encoded(state="failed"), "it failed"),
        ):
            error = self.assertRaises(EngineCallFailed, check, "find", reply)
            self.assertEqual(error.reason, reason)

    def test_malformed(self) -> None:
        """
        A malformed reply fails the call, with the beginning of the reply.
        """
        error = self.assertRaises(EngineCallFailed, decode_answer, "find", b"x" * 10_000, Line)
        self.assertTrue(error.reason.startswith("unexpected reply b'xxx"), error.reason)
        self.assertLess(len(error.reason), 400)
