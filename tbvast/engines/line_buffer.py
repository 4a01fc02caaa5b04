"""
Lines from a stream of bytes.
"""

from __future__ import annotations

from tbvast.errors import EngineCallFailed

READ_BYTES = 1 << 18
"""
The most bytes to read from a stream at once.
"""

MAX_LINE_BYTES = 1 << 26
"""
The most bytes of a line; no event is that long.
"""


class LineBuffer:
    """
    Assembles lines from the chunks of a stream.
    """

    def __init__(self, call: str) -> None:
        """
        @param call: The name of the engine call in errors.
        """
        self._call = call
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> list[bytes]:
        """
        Add the next chunk of the stream.

        @return: The lines that it completes, without their ends.
        @raise EngineCallFailed: If a line is longer than L{MAX_LINE_BYTES}.
        """
        *lines, tail = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._parts, lines[0]])
            self._parts, self._size = [], 0
        self._parts.append(tail)
        self._size += len(tail)
        if self._size > MAX_LINE_BYTES:
            raise EngineCallFailed(self._call, f"a line is longer than {MAX_LINE_BYTES} bytes")
        return lines

    def rest(self) -> bytes:
        """
        @return: The incomplete line at the end of the stream.
        """
        return b"".join(self._parts)
