"""
Lines from a stream of bytes.
"""

from __future__ import annotations


class LineBuffer:
    """
    Assembles lines from the chunks of a stream.

    @ivar size: The bytes of the incomplete line at the end.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, chunk: bytes) -> list[bytes]:
        """
        Add the next chunk of the stream.

        @return: The lines that it completes, without their ends.
        """
        *lines, tail = chunk.split(b"\n")
        if lines:
            lines[0] = self.take_rest() + lines[0]
        self._parts.append(tail)
        self.size += len(tail)
        return lines

    def take_rest(self) -> bytes:
        """
        Remove the incomplete line.

        @return: The line; empty if the stream has ended with a complete one.
        """
        rest = b"".join(self._parts)
        self._parts, self.size = [], 0
        return rest
