"""
Reports to a bus's sub endpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import zmq

from tbvast.values import Received
from tbvast.zeromq.sockets import Factory, SocketOptions, XPubConnection, read_subscription


@attrs.define(eq=False, slots=False)
class ReportPublisher:
    """
    Publishes reports on a bus's sub endpoint while the bus listens.

    ZeroMQ drops messages without a subscriber. A report is therefore not sent before the
    bus's own ZeroMQ subscription has arrived.

    @param factory: Makes the socket.
    @param address: The sub endpoint, e.g. C{tcp://localhost:13372}.
    @param ready: Called whenever the bus begins to listen to a topic.
    @param keys: As for L{tbvast.bus_client.manage_client.ManageClient}.
    """

    _factory: Factory
    _address: str
    _ready: Callable[[], None]
    _keys: SocketOptions = attrs.field(factory=dict)
    _topics: set[bytes] = attrs.field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        # Without a connection, ZeroMQ must refuse a report rather than queue it.
        options = {**self._keys, zmq.IMMEDIATE: 1}
        self._connection = XPubConnection(self._factory, self._heard, options)
        self._connection.connect(self._address)

    def _heard(self, messages: list[Received]) -> None:
        begun = False
        for message in messages:
            change = read_subscription(message.frames[0])
            if change is None:
                continue
            if not change.begins:
                self._topics.discard(change.topic)
            elif len(self._topics) < 1000:  # the bus may subscribe to any number of topics
                self._topics.add(change.topic)
                begun = True
        if begun:
            self._ready()

    def send(self, frame: bytes) -> bool:
        """
        Send a report without waiting.

        @param frame: The topic of the report, a space, and the document.
        @return: Whether ZeroMQ accepted it: the bus listens, and the queue is not full.
        """
        return any(map(frame.startswith, self._topics)) and self._connection.send_now((frame,))

    def close(self) -> None:
        self._connection.shutdown()
