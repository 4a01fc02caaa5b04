"""
Tests for L{tbvast.engines.line_buffer}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines import line_buffer
from tbvast.engines.line_buffer import LineBuffer
from tbvast.errors import EngineCallFailed


class LineBufferTests(SynchronousTestCase):
    """
    Tests for L{LineBuffer}.
    """

    @given(st.lists(st.text("ab\n").map(str.encode)))
    def test_any_chunks(self, chunks: list[bytes]) -> None:
        """
        The lines do not depend on the chunks.
        """
        buffer = LineBuffer("x")
        lines = [line for chunk in chunks for line in buffer.add(chunk)]
        self.assertEqual([*lines, buffer.rest()], b"".join(chunks).split(b"\n"))

    def test_long_line(self) -> None:
        """
        A line that is too long fails the call.
        """
        self.patch(line_buffer, "MAX_LINE_BYTES", 5)
        buffer = LineBuffer("x")
        self.assertEqual(buffer.add(b"abc\nabc"), [b"abc"])
        self.assertEqual(buffer.add(b"ab\na"), [b"abcab"])
        self.assertRaises(EngineCallFailed, buffer.add, b"bcdef")
