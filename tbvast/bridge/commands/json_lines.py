"""
Lines of JSON, and the queue in which they wait for a pipe.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from tbvast.errors import CommandFailed, CommandRefused

WRITE_BYTES = 64 * 1024
"""
About the most bytes that are written at once: the capacity of a pipe.
"""


def encode_line(program: str, event: dict[str, Any]) -> bytes:
    """
    Encode an event as one line of JSON.

    @raise CommandRefused: If the event has no JSON form.
    """
    try:
        return msgspec.json.encode(event) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise CommandRefused(program, "an event that has no JSON form") from None


class LineQueue:
    """
    The lines that wait for a pipe, which are written in batches.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, Deferred[None]]] = deque()
        self._writing: list[tuple[bytes, Deferred[None]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._writing)

    def add(self, line: bytes) -> Deferred[None]:
        """
        Append a line.

        @return: Fires when the line is in the pipe.
        """
        taken: Deferred[None] = Deferred()
        self._waiting.append((line, taken))
        return taken

    def next_batch(self) -> bytes:
        """
        @return: The bytes to write now; empty while the previous batch is not in the pipe.
        """
        if self._writing:
            return b""
        size = 0
        while self._waiting and size < WRITE_BYTES:
            line = self._waiting.popleft()
            self._writing.append(line)
            size += len(line[0])
        return b"".join(data for data, _ in self._writing)

    def taken(self) -> None:
        """
        Note that the whole batch is in the pipe.
        """
        batch, self._writing = self._writing, []
        for _, taken in batch:
            taken.callback(None)

    def put_back(self) -> None:
        """
        Note that the batch was not written completely: its lines wait again.
        """
        self._waiting.extendleft(reversed(self._writing))
        self._writing = []

    def fail(self, program: str, reason: str) -> None:
        """
        Fail all lines.
        """
        self.put_back()
        lines, self._waiting = self._waiting, deque()
        for _, taken in lines:
            taken.errback(CommandFailed(program, reason))
