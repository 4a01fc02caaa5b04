"""
A subscriber that knows nothing but pyzmq, a host and ports.
"""

from __future__ import annotations

import json
import time
from typing import Any

import zmq

LIMIT = 60.0
"""
Seconds that an answer, or a message, may take.
"""


class RawClient:
    """
    Blocking sockets, for use from one thread at a time.

    @ivar topic: The topic of its subscription.
    """

    def __init__(self, manage: int, host: str = "127.0.0.1") -> None:
        """
        @param manage: The port of the manage endpoint.
        """
        self._context = zmq.Context()
        self._context.linger = 0
        self._host = host
        self._manage = self._context.socket(zmq.REQ)
        self._manage.connect(f"tcp://{host}:{manage}")
        self._sub = self._context.socket(zmq.SUB)
        self._pub = self._context.socket(zmq.XPUB)
        self.topic = ""

    def ask(self, request: Any) -> Any:
        """
        @param request: Bytes, or what can be written as JSON.
        """
        self._manage.send(request if isinstance(request, bytes) else json.dumps(request).encode())
        if not self._manage.poll(int(LIMIT * 1000)):
            raise AssertionError(f"no answer to {request!r}")
        return json.loads(self._manage.recv())

    def subscribe(self, topic: Any, snapshot: int = 0) -> None:
        """
        Subscribe, and connect to the pub endpoint.
        """
        reply = self.ask({"action": "subscribe", "topic": topic, "snapshot": snapshot})
        self.topic = reply["topic"]
        self._sub.subscribe(self.topic)
        self._sub.connect(f"tcp://{self._host}:{reply['pub_port']}")

    def receive(self, limit: float = LIMIT) -> tuple[str, Any]:
        """
        @return: The type of the next message, and the message.
        """
        if not self._sub.poll(int(limit * 1000)):
            raise AssertionError(f"nothing received within {limit} s")
        head, _, payload = self._sub.recv().partition(b" ")
        return head.decode().removeprefix(self.topic), json.loads(payload)

    def receive_until(self, last: str, limit: float = LIMIT) -> list[Any]:
        """
        @param last: What the last message to wait for holds, as JSON.
        @return: All messages up to that one.
        """
        deadline = time.monotonic() + limit
        messages: list[Any] = []
        while not messages or last not in json.dumps(messages[-1]):
            messages.append(self.receive(max(0.0, deadline - time.monotonic()))[1])
        return messages

    def report(self, port: int, *frames: bytes) -> None:
        """
        Send to a sub endpoint, once it listens.
        """
        self._pub.connect(f"tcp://{self._host}:{port}")
        if not self._pub.poll(int(LIMIT * 1000)):
            raise AssertionError("the sub endpoint does not listen")
        for frame in frames:
            self._pub.send(frame)

    def close(self) -> None:
        self._context.destroy(linger=1000)
