"""
The strangers of C{bench.strangers}: each load is a process, connects from L{ADDRESS}, and has
no key.

    python -m bench.loads LOAD COUNT MANAGE PUB SUB

It says C{ready}, begins when it reads a line, and reports the answers. It stays connected
until it reads another line, or its input ends.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import zmq

from bench.peers import say

ADDRESS = "127.0.0.2"
"""
Another address of the loopback interface than that of the known clients.
"""

SECONDS = 30.0
"""
The most that a load waits for the bus.
"""

REQUEST_BYTES = 10_485_760
"""
The default of the plugin's C{max_message_bytes}.
"""

PATTERN_CHARACTERS = 65_536
"""
The longest pattern that a plugin reads.
"""

HEARTBEAT = b'{"action":"heartbeat","topic":"none"}'


class Ports(NamedTuple):
    """
    Where the bus listens on 127.0.0.1.
    """

    manage: int
    pub: int
    sub: int


class Requests:
    """
    Requests of one client, or of many, that do not wait for each other.
    """

    def __init__(self, context: zmq.Context[Any], port: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self.socket.connect(source(port))

    def send(self, request: bytes) -> None:
        self.socket.send_multipart([b"", request])

    def replies(self, count: int, deadline: float) -> list[bytes]:
        """
        @return: Those that came in time.
        """
        got: list[bytes] = []
        while len(got) < count and (left := deadline - time.monotonic()) > 0:
            if self.socket.poll(round(left * 1000)):
                got.append(self.socket.recv_multipart()[-1])
        return got


def source(port: int) -> str:
    """
    @return: A ZeroMQ address of the bus, to which L{ADDRESS} connects.
    """
    return f"tcp://{ADDRESS}:0;127.0.0.1:{port}"


@contextlib.contextmanager
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    made.set(zmq.MAX_SOCKETS, 16_384)
    try:
        yield made
    finally:
        made.destroy(linger=0)


def until_told() -> None:
    """
    Wait for the next line, or the end of the input.
    """
    sys.stdin.readline()


def clients(count: int, ports: Ports) -> None:
    """
    Ordinary ZeroMQ clients, each of which sends a heartbeat.
    """
    deadline = time.monotonic() + SECONDS / 2
    with context() as made:
        each = [Requests(made, ports.manage) for _ in range(count)]
        for client in each:
            client.send(HEARTBEAT)
        answered = sum(bool(client.replies(1, deadline)) for client in each)
        say(f"{answered:,} of {count:,} are answered")
        until_told()


def silent(count: int, ports: Ports) -> None:
    """
    TCP connections that say nothing.
    """
    poller = select.poll()
    opened = []
    for number in range(count):
        port = ports[number % len(ports)]
        with contextlib.suppress(OSError):
            opened.append(
                socket.create_connection(("127.0.0.1", port), 1.0, source_address=(ADDRESS, 0))
            )
            poller.register(opened[-1], select.POLLRDHUP)
    deadline = time.monotonic() + SECONDS / 2
    closed: set[int] = set()
    while len(closed) < len(opened) and (left := deadline - time.monotonic()) > 0:
        found = [descriptor for descriptor, _ in poller.poll(left * 1000)]
        closed.update(found)
        for descriptor in found:
            poller.unregister(descriptor)
    say(f"{len(closed):,} of {count:,} are closed after {SECONDS / 2:g} s")
    until_told()


def subscriptions(count: int, ports: Ports) -> None:
    """
    One client with many subscriptions, none of which it listens to.
    """
    request = b'{"action":"subscribe","topic":"stix2/indicator","snapshot":0}'
    with context() as made:
        client = Requests(made, ports.manage)
        for _ in range(count):
            client.send(request)
        got = client.replies(count, time.monotonic() + SECONDS)
        say(f"{sum(b'success' in reply for reply in got):,} of {count:,} are accepted")
        until_told()


def documents(count: int, ports: Ports) -> None:
    """
    Publish requests of the default's size, with as many documents as possible: each is C{0}.
    """
    most = REQUEST_BYTES // 2 - 200_000
    request = b'{"action":"publish","documents":[' + b",".join([b"0"] * most) + b"]}"
    with context() as made:
        each = [Requests(made, ports.manage) for _ in range(count)]
        for client in each:
            client.send(request)
        deadline = time.monotonic() + SECONDS
        answered = sum(len(client.replies(1, deadline)) for client in each)
        say(f"{answered:,} of {count:,} are answered")
        until_told()


def topics(count: int, ports: Ports) -> None:
    """
    A SUB socket with many topics that are not its own.
    """
    with context() as made, made.socket(zmq.SUB) as listening:
        listening.linger = 0
        listening.sndhwm = 0
        monitor = listening.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        listening.connect(source(ports.pub))
        for number in range(count):
            listening.subscribe(b"%032d" % number)
        deadline = time.monotonic() + SECONDS / 3
        ended = 0
        while (left := deadline - time.monotonic()) > 0:
            if monitor.poll(round(left * 1000)):
                monitor.recv_multipart()
                ended += 1
        say(f"disconnected {ended:,} times" if ended else f"{count:,} are sent")
        until_told()


def pattern(count: int, ports: Ports) -> None:
    """
    Publish requests with one indicator, whose pattern is as long as a request may be.
    """
    term = "ipv4-addr:value = '192.0.2.1'"
    terms = " OR ".join([term] * ((REQUEST_BYTES - 1000) // (len(term) + 4)))
    publish(count, ports, [f"[{terms}]"])


def patterns(count: int, ports: Ports) -> None:
    """
    Publish requests with as many indicators as possible, each with a pattern as long as a pattern
    may be, which takes long to read.
    """
    path = ".c" * ((PATTERN_CHARACTERS - 20) // 2)
    publish(count, ports, [f"[a:b{path} = 'd']"] * (REQUEST_BYTES // (PATTERN_CHARACTERS + 400)))


def publish(count: int, ports: Ports, indicators: list[str]) -> None:
    """
    @param indicators: The pattern of each indicator of a request.
    """
    documents = [
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": f"indicator--{uuid.uuid4()}",
            "created": "2024-01-01T00:00:00Z",
            "modified": "2024-01-01T00:00:00Z",
            "pattern": each,
            "pattern_type": "stix",
            "valid_from": "2024-01-01T00:00:00Z",
        }
        for each in indicators
    ]
    request = json.dumps({"action": "publish", "documents": documents}).encode()
    with context() as made:
        client = Requests(made, ports.manage)
        for _ in range(count):
            client.send(request)
        got = client.replies(count, time.monotonic() + SECONDS)
        refused = sum(reply.count(b'"refused"') for reply in got)
        say(f"{len(got):,} of {count:,} are answered, {refused:,} documents refused")
        until_told()


def status(count: int, ports: Ports) -> None:
    """
    Requests for the status, all at once.
    """
    with context() as made:
        client = Requests(made, ports.manage)
        for _ in range(count):
            client.send(b'{"action":"status"}')
        got = client.replies(count, time.monotonic() + SECONDS)
        say(f"{len(got):,} of {count:,} are answered")
        until_told()


def oversized(count: int, ports: Ports) -> None:
    """
    Clients each with a request above the limit: of 1.1, 2 and 3.9 times its size in turn.
    """
    sizes = [round(REQUEST_BYTES * factor) for factor in (1.1, 2, 3.9)]
    with context() as made:
        each = [Requests(made, ports.manage) for _ in range(count)]
        for number, client in enumerate(each):
            client.send(b'{"action":"status","x":"' + b"x" * sizes[number % len(sizes)] + b'"}')
        deadline = time.monotonic() + SECONDS
        answered = sum(len(client.replies(1, deadline)) for client in each)
        say(f"{answered:,} of {count:,} are answered")
        until_told()


LOADS: dict[str, Callable[[int, Ports], None]] = {
    load.__name__: load
    for load in (
        *(clients, silent, subscriptions, documents, topics),
        *(pattern, patterns, status, oversized),
    )
}


def main(name: str, count: str, *ports: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    say("ready")
    until_told()
    LOADS[name](int(count), Ports(*map(int, ports)))


if __name__ == "__main__":
    main(*sys.argv[1:])
