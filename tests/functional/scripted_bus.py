"""
A bus on real sockets that a test scripts, and the test case that runs one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from twisted.internet import reactor as real_reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from tbvast.protocol import manage
from tbvast.protocol.frames import SIGHTING_TOPIC
from tbvast.values import HostPort, Position, Received
from tbvast.zeromq.sockets import (
    Connection,
    Factory,
    RouterConnection,
    SubConnection,
    XPubConnection,
)
from tests.doubles import until

reactor: Any = real_reactor


def port_of(connection: Connection) -> int:
    address: bytes = connection.socket.get(zmq.LAST_ENDPOINT)
    return int(address.rstrip(b"\0").rpartition(b":")[2])


class ScriptedBus:
    """
    A bus that records requests and replies as the test says.

    @ivar requests: The requests, in order.
    @ivar silent: Whether it does not reply.
    @ivar deaf_to: An action to which it does not reply.
    @ivar knows: Whether it knows the subscriptions that heartbeats name.
    @ivar plugin: Its identity; empty for a Threat Bus host.
    @ivar number: The number of its journal's last item.
    @ivar refusal: Its reply to every request, if not empty.
    @ivar heard: The topics of the subscriptions on its pub endpoint.
    @ivar reports: The reports that arrived on its sub endpoint.
    @ivar silenced: The routing frames of the requests to which it did not reply.
    """

    def __init__(self, factory: Factory) -> None:
        self.requests: list[dict[str, Any]] = []
        self.silent = False
        self.deaf_to = ""
        self.knows = True
        self.plugin = "bus"
        self.number = 0
        self.refusal = b""
        self.heard: list[bytes] = []
        self.reports: list[bytes] = []
        self.silenced: list[list[bytes]] = []
        self._router = RouterConnection(factory, self._asked)
        self._pub = XPubConnection(factory, self._subscribed)
        self._sub = SubConnection(factory, self._reported)
        for connection in (self._router, self._pub, self._sub):
            connection.bind("tcp://127.0.0.1:*")
        self.address = HostPort("127.0.0.1", port_of(self._router))
        self.sub_port = port_of(self._sub)
        self._topics = 0

    @property
    def topic(self) -> str:
        """
        The topic of the last subscription.
        """
        return f"topic{self._topics:04}/"

    def listen(self) -> None:
        """
        Begin to listen to reports.
        """
        self._sub.subscribe(SIGHTING_TOPIC)

    def listen_no_more(self) -> None:
        """
        Stop listening to reports.
        """
        self._sub.socket.set(zmq.UNSUBSCRIBE, SIGHTING_TOPIC)

    def leave(self) -> None:
        """
        Close the sub endpoint.
        """
        self._sub.shutdown()

    def actions(self) -> list[str]:
        return [request["action"] for request in self.requests]

    def asked(self, action: str) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["action"] == action]

    def send(self, *frames: bytes) -> None:
        """
        Send to the last subscription.
        """
        for frame in frames:
            self._pub.send_now([self.topic.encode() + frame])

    def reply_late(self, reply: bytes) -> None:
        """
        Reply to the requests that are unanswered.
        """
        for envelope in self.silenced:
            self._router.send_now([*envelope, reply])

    def _asked(self, messages: list[Received]) -> None:
        for message in messages:
            *envelope, raw = message.frames
            request = msgspec.json.decode(raw)
            self.requests.append(request)
            if self.silent or request["action"] == self.deaf_to:
                self.silenced.append(envelope)
            else:
                self._router.send_now([*envelope, self._answer(request)])

    def _answer(self, request: dict[str, Any]) -> bytes:
        if self.refusal:
            return self.refusal
        if request["action"] == "subscribe":
            self._topics += 1
            beginning = Position(self.plugin, self.number) if self.plugin else None
            resume = request.get("resume")
            if beginning and resume and resume["plugin"] == self.plugin:
                beginning = Position(self.plugin, resume["number"])
            return manage.subscribed(
                self.topic, "127.0.0.1", port_of(self._pub), self.sub_port, beginning
            )
        if request["action"] == "publish":
            return manage.encode_published(["accepted"] * len(request["documents"]), {})
        return manage.SUCCESS if self.knows else manage.ERROR

    def _subscribed(self, messages: list[Received]) -> None:
        self.heard.extend(m.frames[0][1:] for m in messages if m.frames[0][:1] == b"\1")

    def _reported(self, messages: list[Received]) -> None:
        self.reports.extend(message.frames[0] for message in messages)


class ClientTestCase(TestCase):
    """
    A test with a bus, and a clock for the client.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = Factory(reactor, linger=0)
        self.addCleanup(self.factory.shutdown)
        self.bus = ScriptedBus(self.factory)

    async def until(self, condition: Callable[[], Any]) -> None:
        await until(reactor, condition)
