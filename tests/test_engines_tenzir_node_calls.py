"""
Tests for L{tbvast.engines.tenzir.node_calls}.
"""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.pyvast_calls import Commands
from tbvast.engines.tenzir.node_calls import Line, NodeCalls, decode_answer
from tbvast.errors import EngineCallFailed


class AnsweredCalls(NodeCalls):
    """
    Calls of a node that answers each pipeline with the pipeline itself.
    """

    def run(self, pipeline: str, timeout: float = 0.0) -> list[bytes]:
        return [pipeline.encode("utf-8", "surrogateescape")]


CALLS = AnsweredCalls(Commands("nothing", "127.0.0.1:1"), "find")


class AnswerTests(SynchronousTestCase):
    """
    The replies of a node's API.
    """

    def test_page(self) -> None:
        """
        A page has its results in order, and the token for the next one.
        """
        events = [{"data": {"line": text}} for text in ("a", "b")]
        page = CALLS.fetch(json.dumps({"events": events, "next_continuation_token": "t"}))
        self.assertEqual((page.lines, page.next_continuation_token), (["a", "b"], "t"))

    def test_failed(self) -> None:
        """
        A failed pipeline fails the call, with the node's reason if there is one.
        """
        CALLS.start(json.dumps({"id": "x"}))
        for call, reply, reason in (
            (CALLS.start, {"error": "error: no such table"}, "error: no such table"),
            (CALLS.fetch, {"error": "error: gone"}, "error: gone"),
            (CALLS.fetch, {"state": "failed"}, "it failed"),
        ):
            error = self.assertRaises(EngineCallFailed, call, json.dumps(reply))
            self.assertEqual(error.reason, reason)

    def test_malformed(self) -> None:
        """
        A malformed reply fails the call, with the beginning of the reply.
        """
        error = self.assertRaises(EngineCallFailed, decode_answer, "find", b"x" * 10_000, Line)
        self.assertTrue(error.reason.startswith("unexpected reply b'xxx"), error.reason)
        self.assertLess(len(error.reason), 400)
