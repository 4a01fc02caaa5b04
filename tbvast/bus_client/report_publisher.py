"""
Reports to a bus's sub endpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from tbvast.zeromq.sockets import Factory, SocketOptions, XPubConnection, read_subscription

MOST_BUS_TOPICS = 1000
"""
The most topics that a bus can listen to.
"""


class ReportPublisher:
    """
    Sends reports to a bus's sub endpoint, once the bus listens.

    A PUB socket drops what nobody listens to, so nothing is sent before the
    bus's own ZeroMQ subscription has been seen.
    """

    def __init__(
        self,
        factory: Factory,
        address: str,
        ready: Callable[[], None],
        keys: SocketOptions | None = None,
    ) -> None:
        """
        @param address: E.g. C{tcp://localhost:13372}.
        @param ready: Called whenever the bus has begun to listen to a topic.
        @param keys: As for L{ManageClient}.
        """
        self._ready = ready
        self._topics: set[bytes] = set()
        # Without a connection nothing is queued: what cannot be sent has to be known.
        options = {**(keys or {}), zmq.IMMEDIATE: 1}
        self._connection = XPubConnection(factory, self._heard, options)
        self._connection.connect(address)

    def _heard(self, messages: list[list[bytes]]) -> None:
        begun = False
        for message in messages:
            change = read_subscription(message[0])
            if change is None:
                continue
            if not change.begins:
                self._topics.discard(change.topic)
            elif len(self._topics) < MOST_BUS_TOPICS:
                self._topics.add(change.topic)
                begun = True
        if begun:
            self._ready()

    def send(self, frame: bytes) -> bool:
        """
        @return: Whether the frame is on its way; it is not while the bus does
            not listen, or its queue is full.
        """
        return any(map(frame.startswith, self._topics)) and self._connection.send_now((frame,))

    def close(self) -> None:
        self._connection.shutdown()
