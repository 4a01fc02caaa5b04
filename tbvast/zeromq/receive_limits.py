"""
The bytes that ZeroMQ has received and not handed over yet, with many peers at once.

ZeroMQ limits the length of a frame, and the number of whole messages. It limits neither the frames
of a message, nor what it has of unfinished messages. It needs 64 bytes for each frame, and a frame
arrives in two.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import attrs
from twisted.internet.interfaces import IReactorTime

from tbvast.interfaces import IPeerConnection

OVERHEAD_BYTES = 1 << 16
"""
The bytes by which a connection is certainly not over a limit: those of handshake and framing.
"""

FRAME_BYTES = 2
CURVE_BYTES = 33
"""
The bytes by which a frame is longer on its way, at least, and those that CURVE adds.
"""

OVERHEAD_RATE = 100
"""
The bytes of ZeroMQ's heartbeats in a second, at most.
"""


GROWTH = 32
"""
The most bytes of memory that ZeroMQ needs for a byte of an unfinished message.
"""

LOOKS = 500
"""
The most connections that are looked at in one turn.
"""


@attrs.define(eq=False)
class _Receiving:
    """
    @ivar handed_over: The received bytes that are not waiting any more.
    @ivar since: When that was found out.
    @ivar heard: Whether a message has been handed over since.
    @ivar waiting: The bytes that ZeroMQ held when it was looked at, at most.
    @ivar arrived: The bytes that had arrived by then, and were not handed over; those of handshake
        and framing are among them.
    """

    connection: IPeerConnection
    handed_over: int
    since: float
    heard: bool = False
    waiting: int = 0
    arrived: int = 0

    def look(self, now: float) -> None:
        """
        Find out how many bytes ZeroMQ holds.
        """
        received = self.connection.received()
        waiting = received - self.handed_over - round(OVERHEAD_RATE * (now - self.since))
        self.arrived = max(0, waiting)
        self.waiting = waiting if waiting >= OVERHEAD_BYTES else 0
        if self.heard and not self.waiting:
            self.handed_over, self.since, self.heard = received, now, False


@attrs.define(eq=False)
class ReceiveLimits:
    """
    Finds the connections for which ZeroMQ holds too many bytes.

    @param most: The most bytes for one connection.
    @param total: The most bytes for all together.
    @ivar total: The most bytes for all together.
    """

    _clock: IReactorTime
    _most: int
    total: int
    _receiving: OrderedDict[int, _Receiving] = attrs.field(init=False, factory=OrderedDict)
    """
    The connections; the one that was looked at last is the last.
    """

    def __len__(self) -> int:
        return len(self._receiving)

    def accepted(self, descriptor: int, connection: IPeerConnection) -> None:
        """
        A connection was accepted.
        """
        self._receiving[descriptor] = _Receiving(connection, 0, self._clock.seconds())

    def ended(self, descriptor: int) -> None:
        """
        A connection was closed.
        """
        self._receiving.pop(descriptor, None)

    def handed_over(self, descriptor: int, size: int) -> None:
        """
        ZeroMQ has handed over a message.

        @param size: Its bytes.
        """
        receiving = self._receiving.get(descriptor)
        if receiving is not None:
            receiving.handed_over += size
            receiving.waiting = max(0, receiving.waiting - size)
            receiving.arrived = max(0, receiving.arrived - size)
            receiving.heard = True

    def caught_up(self, descriptor: int) -> None:
        """
        A message of a connection has been handed over that was the last one, or among the last.
        This is enough where each message of one connection cannot be counted.
        """
        receiving = self._receiving.get(descriptor)
        if receiving is not None:
            receiving.handed_over = receiving.connection.received()
            receiving.since, receiving.waiting = self._clock.seconds(), 0
            receiving.arrived = 0

    def excessive(self) -> list[int]:
        """
        Look at the next connections.

        @return: The descriptors of the connections that have to end: those over their limit, and
            of the others those with the most bytes, until the rest is within the limit of all.
        """
        now = self._clock.seconds()
        for descriptor in list(itertools.islice(self._receiving, LOOKS)):
            self._receiving.move_to_end(descriptor)
            self._receiving[descriptor].look(now)
        waiting = {
            descriptor: receiving.waiting
            for descriptor, receiving in self._receiving.items()
            if receiving.waiting
        }
        total, ending = sum(waiting.values()), []
        for descriptor in sorted(waiting, key=lambda each: waiting[each], reverse=True):
            if waiting[descriptor] <= self._most and total <= self.total:
                break
            ending.append(descriptor)
            total -= waiting[descriptor]
        return ending

    def arrived(self) -> Iterator[tuple[str, int, int]]:
        """
        @return: For each connection its address, its descriptor, and the bytes that have arrived
            and were not handed over when it was looked at.
        """
        for descriptor, receiving in self._receiving.items():
            yield receiving.connection.address, descriptor, receiving.arrived


def excess_holders(limits: Mapping[str, ReceiveLimits], excess: int) -> Iterator[tuple[str, int]]:
    """
    Find the connections whose unfinished messages may have taken too much memory.

    @param limits: The limits by endpoint.
    @param excess: The bytes by which it is too much.
    @return: The endpoints and descriptors of the connections with the most bytes, of the addresses
        with the most, that may have as much as that.
    """
    crowds: dict[str, list[tuple[int, str, int]]] = {}
    for endpoint, each in limits.items():
        for address, descriptor, arrived in each.arrived():
            crowds.setdefault(address, []).append((arrived, endpoint, descriptor))
    for crowd in sorted(crowds.values(), key=lambda c: sum(each[0] for each in c), reverse=True):
        for arrived, endpoint, descriptor in sorted(crowd, reverse=True):
            if excess <= 0 or not arrived:
                break
            excess -= GROWTH * arrived
            yield endpoint, descriptor
