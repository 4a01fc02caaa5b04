"""
Tests for L{tbvast.service.lines}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.lines import LineBuffer


class LineBufferTests(SynchronousTestCase):
    """
    Tests for L{LineBuffer}.
    """

    @given(st.lists(st.text("ab\n").map(str.encode)))
    def test_any_chunks(self, chunks: list[bytes]) -> None:
        """
        The lines do not depend on the chunks, and the size is that of the rest.
        """
        buffer = LineBuffer()
        lines = [line for chunk in chunks for line in buffer.add(chunk)]
        size = buffer.size
        rest = buffer.take_rest()
        self.assertEqual([*lines, rest], b"".join(chunks).split(b"\n"))
        self.assertEqual(size, len(rest))
        self.assertEqual((buffer.size, buffer.take_rest()), (0, b""))
