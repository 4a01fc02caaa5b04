"""
A bus that says whatever a test makes it say: plain pyzmq, in a thread of its own.

    bus = HostileBus()
    bus.answers["subscribe"] = lambda request: b"nonsense"
    bus.wait_for(lambda: bus.topic)
    bus.send(b'batch {"after":0,"until":1,"items":[]}')
    bus.close()

Without anything else it answers as a well-behaved bus of tbvast/1 with an empty journal.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

LIMIT = 60.0
"""
Seconds that anything may take.
"""

Answer = Callable[[dict[str, Any]], bytes | None]
"""
The reply to a request; C{None} for none at all.
"""


class HostileBus:
    """
    The three endpoints, on free ports of the loopback address.

    Its attributes may be read, and set, from any thread.

    @ivar plugin: The identity that it gives itself; empty for a Threat Bus host.
    @ivar number: The number that it says a new subscription begins after.
    @ivar resumes: Whether a subscriber that resumes from this bus goes on where it was.
    @ivar answers: What replies to an action, instead of the proper reply.
    @ivar requests: What was asked, in order; only the last L{KEPT}.
    @ivar published: The documents of all publish requests that were answered properly.
    @ivar topic: The topic of the newest subscription; empty while there is none.
    @ivar subscriptions: How many subscriptions there have been.
    @ivar listening: The topics that subscribers have asked the pub endpoint for.
    @ivar reports: What has arrived on the sub endpoint.
    """

    KEPT = 10_000

    def __init__(self, plugin: str = "hostile", number: int = 0) -> None:
        self.plugin = plugin
        self.number = number
        self.resumes = True
        self.answers: dict[str, Answer] = {}
        self.requests: deque[dict[str, Any]] = deque(maxlen=self.KEPT)
        self.published: list[dict[str, Any]] = []
        self.topic = ""
        self.subscriptions = 0
        self.listening: list[bytes] = []
        self.reports: deque[bytes] = deque(maxlen=self.KEPT)
        self._context = zmq.Context()
        self._context.linger = 0
        self._router = self._bound(zmq.ROUTER)
        self._pub = self._bound(zmq.XPUB)
        self._sub = self._bound(zmq.SUB)
        self._sub.subscribe(b"")
        self.manage_port, self.pub_port, self.sub_port = (
            int(socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").rpartition(b":")[2])
            for socket in (self._router, self._pub, self._sub)
        )
        self._outgoing: deque[Sequence[bytes]] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _bound(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        socket.bind("tcp://127.0.0.1:*")
        return socket

    def send(self, *tails: bytes) -> None:
        """
        Send frames to the newest subscription, in order.

        @param tails: What follows its topic in each of them.
        """
        self.send_raw(*([self.topic.encode() + tail] for tail in tails))

    def send_raw(self, *messages: Sequence[bytes]) -> None:
        """
        Send messages on the pub endpoint, in order.

        @param messages: The frames of each.
        """
        self._outgoing.extend(messages)

    def wait_for(self, condition: Callable[[], Any], limit: float = LIMIT) -> None:
        """
        Wait, in another thread than the reactor's.

        @raise AssertionError: If the condition does not come true in time.
        """
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not so after {limit:g} s")
            time.sleep(0.01)

    def attached(self, times: int = 1) -> bool:
        """
        Whether the newest of so many subscriptions can be sent to.
        """
        return self.subscriptions >= times and self.topic.encode() in self.listening

    def asked(self, action: str) -> list[dict[str, Any]]:
        """
        The requests for an action.
        """
        return [request for request in list(self.requests) if request.get("action") == action]

    def close(self) -> None:
        self._ending.set()
        self._thread.join(LIMIT)
        self._context.destroy(linger=0)

    # In the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._router, self._pub, self._sub):
            poller.register(socket, zmq.POLLIN)
        while not self._ending.is_set():
            while self._outgoing:
                self._pub.send_multipart(self._outgoing.popleft())
            for socket, _ in poller.poll(5):
                with contextlib.suppress(zmq.Again):
                    while True:
                        self._received(socket, socket.recv_multipart(zmq.NOBLOCK))

    def _received(self, socket: Any, message: list[bytes]) -> None:
        if socket is self._sub:
            self.reports.append(b"".join(message))
        elif socket is self._pub:
            if message[0][:1] == b"\1":
                self.listening.append(message[0][1:])
            elif message[0][1:] in self.listening:
                self.listening.remove(message[0][1:])
        else:
            reply = self._asked(message[-1])
            if reply is not None:
                self._router.send_multipart([*message[:-1], reply])

    def _asked(self, raw: bytes) -> bytes | None:
        request = json.loads(raw)
        self.requests.append(request)
        answer = self.answers.get(request["action"], self.answer)
        return answer(request)

    def answer(self, request: dict[str, Any]) -> bytes | None:
        """
        The proper reply to a request.
        """
        action = request["action"]
        reply: dict[str, Any] = {"status": "success"}
        if action == "subscribe":
            self.subscriptions += 1
            self.topic = f"hostile{self.subscriptions:08}/"
            reply |= {
                "topic": self.topic,
                "pub_port": self.pub_port,
                "sub_port": self.sub_port,
                "pub_endpoint": f"127.0.0.1:{self.pub_port}",
                "sub_endpoint": f"127.0.0.1:{self.sub_port}",
            }
            if self.plugin:
                resume = request.get("resume") or {}
                known = self.resumes and resume.get("plugin") == self.plugin
                reply |= {
                    "protocol": "tbvast/1",
                    "plugin": self.plugin,
                    "number": resume["number"] if known else self.number,
                }
        elif action == "publish":
            self.published += request["documents"]
            reply |= {"outcomes": ["accepted"] * len(request["documents"]), "reasons": {}}
        return json.dumps(reply).encode()
