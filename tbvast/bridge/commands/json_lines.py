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
About how many bytes are given to a running sink at a time: what a pipe holds.
"""


def encode_line(program: str, event: dict[str, Any]) -> bytes:
    """
    @return: The event as one line of JSON.
    @raise CommandRefused: If it is none.
    """
    try:
        return msgspec.json.encode(event) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise CommandRefused(program, "an event that has no JSON form") from None


class LineQueue:
    """
    Lines on their way into a pipe, a batch at a time.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, Deferred[None]]] = deque()
        self._writing: list[tuple[bytes, Deferred[None]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._writing)

    def add(self, line: bytes) -> Deferred[None]:
        """
        @return: Fires when the line is in the pipe.
        """
        taken: Deferred[None] = Deferred()
        self._waiting.append((line, taken))
        return taken

    def next_batch(self) -> bytes:
        """
        @return: What is to be written now; nothing as long as the batch before
            is not in the pipe.
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
        The batch is in the pipe.
        """
        batch, self._writing = self._writing, []
        for _, taken in batch:
            taken.callback(None)

    def put_back(self) -> None:
        """
        The batch did not get into the pipe, or not all of it.
        """
        self._waiting.extendleft(reversed(self._writing))
        self._writing = []

    def fail(self, program: str, reason: str) -> None:
        """
        Nothing of all this will be taken.
        """
        self.put_back()
        lines, self._waiting = self._waiting, deque()
        for _, taken in lines:
            taken.errback(CommandFailed(program, reason))
