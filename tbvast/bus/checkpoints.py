"""
How far a subscriber has certainly received what it was sent, although it acknowledges nothing.
"""

from __future__ import annotations

import msgspec

from tbvast.zeromq.sockets import PEER_MESSAGES

HELD_MESSAGES = 2 * PEER_MESSAGES
"""
The most frames that ZeroMQ holds for one peer: its queue, and the batch that it is
writing, which has several thousand bytes.
"""

HELD_BYTES = 4 * 2**20
"""
The most bytes that the kernel holds for one peer, if the connection cannot be inspected:
the default limit of Linux for a send buffer.
"""

ENCODER_BYTES = 16 * 1024
"""
More than ZeroMQ passes to the kernel at once, unless a single frame is longer.
"""

CHECKPOINTS = 16
"""
The most checkpoints of one subscription that are not acknowledged yet.
"""


class Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """
    The progress of a subscription at some time.

    @ivar at: The time; seconds.
    @ivar number: The number up to which ZeroMQ had accepted everything.
    @ivar frames: The number of frames accepted since the subscription was made.
    @ivar size: Their size.
    """

    at: float
    number: int
    frames: int
    size: int


class Checkpoints:
    """
    The checkpoints of one subscription that its subscriber's system has not acknowledged yet.
    """

    def __init__(self) -> None:
        self._all: list[Checkpoint] = []

    def __len__(self) -> int:
        return len(self._all)

    def clear(self) -> None:
        """
        Drop all: frames that ZeroMQ had accepted are lost.
        """
        self._all.clear()

    def add(self, now: Checkpoint) -> None:
        """
        Add the present progress.
        """
        last = self._all[-1] if self._all else None
        if last is not None and (last.number, last.frames) == (now.number, now.frames):
            return
        if len(self._all) >= CHECKPOINTS:
            del self._all[1::2]
        self._all.append(now)

    def acknowledged(self, now: Checkpoint, held: int | None, age: float) -> Checkpoint | None:
        """
        Find the last checkpoint that the system has acknowledged, and drop those up to it.

        @param now: The present progress.
        @param held: The bytes that the kernel holds for the subscriber; C{None} if unknown.
        @param age: Seconds after which a frame is in the kernel if that has room.
        @return: C{None} if no other one was acknowledged.
        """
        most, written = HELD_BYTES, -1
        if held is not None:
            most = held + ENCODER_BYTES
            # The kernel has room, so ZeroMQ has written what it was given some time ago,
            # and the kernel holds the last of that.
            if held <= ENCODER_BYTES:
                aged = [each.size for each in self._all if now.at - each.at >= age]
                written = max(aged, default=-1) - held
        found = None
        for each in self._all:
            behind, size = now.frames - each.frames, now.size - each.size
            if each.size <= written or (behind >= HELD_MESSAGES and size >= most):
                found = each
        if found is not None:
            del self._all[: self._all.index(found) + 1]
        return found
