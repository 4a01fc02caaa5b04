"""
A live plugin, and messages that nobody should send: it answers what is to be
answered, and serves everybody afterwards.

C{python -m bench.fuzz} from the top of a checkout starts a plugin, and sends it 200,000
messages: random bytes, valid messages that were damaged, messages of several frames
and such that are no ZeroMQ, on each of the three endpoints. It prints what was sent, and
what came of it; the exit status is 0 if the plugin served an old subscriber, and new
ones of both dialects, at the end. A run with the same C{--seed} sends the same.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from tbvast.settings import HostPort
from tests.functional.blocking import (
    LIMIT,
    Client,
    Peer,
    PluginProcess,
    Publisher,
    Sockets,
    a_sighting,
    an_indicator,
    frame,
)

WINDOW = 200
"""
Requests that wait for their replies at a time.
"""

ROUND = 1000
"""
Messages between looks at whether everything is well.
"""

SETTINGS = {"detached_timeout": 2.0, "heartbeat_timeout": 5.0, "queue_messages": 10_000}
"""
Of the plugin, so that subscriptions made by accident do not pile up.
"""

IDS = tuple(f"{kind}--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e" for kind in ("indicator", "sighting"))

EXTREMES = (
    b"null", b"true", b"-1", b"0", b"1e999", b"-0.0", b"99999999999999999999", b'""', b'"\\ud800"',
    b"[]", b"{}", b"[" * 2000 + b"]" * 2000, b'{"":' * 2000 + b"1" + b"}" * 2000, b'"' + b"x" * 5000
    + b'"', b"\xff", b"\0", b"",
)  # fmt: skip
"""
What stands where a value should.
"""


class Fuzz:
    """
    Makes messages that are not what they should be, from a seed.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        known, seen = an_indicator(id=IDS[0]), a_sighting(id=IDS[1], sighting_of_ref=IDS[0])
        envelope = {
            "type": "snapshotenvelope",
            "snapshot_type": 1,
            "snapshot_id": "x",
            "body": known,
        }
        self._requests = [
            json.dumps(request).encode()
            for request in (
                {"action": "subscribe", "topic": "stix2/indicator", "snapshot": 1},
                {"action": "subscribe", "topic": ["stix2/indicator", "stix2/sighting"]},
                {"action": "subscribe", "topic": "threatbus/intel", "snapshot": 0},
                {"action": "subscribe", "topic": "t", "protocol": "tbvast/1", "name": "fuzz"},
                {"action": "unsubscribe", "topic": "a" * 32},
                {"action": "heartbeat", "topic": "a" * 32, "report": {"a": [1, 2.5, "x"]}},
                {"action": "publish", "documents": [known]},
                {"action": "status"},
            )
        ]
        self._reports = [
            frame(known),
            frame(seen),
            frame({**known, "pattern": "[domain-name:value = 'a.example' OR url:value = 'b:c']"}),
            frame({**seen, "x_threatbus_indicator": known, "x_threatbus_source": "fuzz"}),
            b"threatbus/snapshotenvelope " + json.dumps(envelope).encode(),
            b'vast/sightings {"ts": "2024-01-01T00:00:00Z", "reference": "threatbus__x"}',
        ]

    def choice(self, among: Sequence[Any]) -> Any:
        return self._random.choice(among)

    def anything(self) -> bytes:
        """
        Random bytes.
        """
        size = self.choice((0, 1, 2, 10, 100, 1000, 10_000))
        return self._random.randbytes(self._random.randint(0, size))

    def request(self) -> bytes:
        """
        A damaged request.
        """
        return self._damaged(self._requests)

    def report(self) -> bytes:
        """
        A damaged frame of the sub endpoint, most often with a topic of it.
        """
        return self._damaged(self._reports)

    def subscription(self) -> bytes:
        """
        What a subscriber might send to the pub endpoint.
        """
        verb = self.choice((b"\0", b"\1", b"\1", b"\2", b""))
        letters = bytes(self.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in range(32))
        return verb + self.choice(
            (letters, b"threatbus/intel" + letters[:10], b"", self.anything())
        )

    def parts(self, make: Callable[[], bytes]) -> list[bytes]:
        """
        A message of several frames.
        """
        return [
            self.choice((b"", make(), self.anything())) for _ in range(self._random.randint(2, 12))
        ]

    def _damaged(self, among: Sequence[bytes]) -> bytes:
        message = self.choice(among)
        for _ in range(self._random.randint(1, 3)):
            message = self.choice(
                (self._flip, self._cut, self._insert, self._repeat, self._replace, self._splice)
            )(message, among)
        return bytes(message)

    def _place(self, message: bytes) -> tuple[int, int]:
        start = self._random.randint(0, len(message))
        return start, min(len(message), start + self._random.randint(0, 40))

    def _flip(self, message: bytes, among: Sequence[bytes]) -> bytes:
        damaged = bytearray(message)
        for _ in range(self._random.randint(1, 8)):
            if damaged:
                damaged[self._random.randrange(len(damaged))] = self._random.randrange(256)
        return bytes(damaged)

    def _cut(self, message: bytes, among: Sequence[bytes]) -> bytes:
        start, end = self._place(message)
        return message[:start] + self.choice((b"", message[end:]))

    def _insert(self, message: bytes, among: Sequence[bytes]) -> bytes:
        start, _ = self._place(message)
        return message[:start] + self.anything()[:100] + message[start:]

    def _repeat(self, message: bytes, among: Sequence[bytes]) -> bytes:
        start, end = self._place(message)
        return message[:end] + message[start:end] * self._random.randint(1, 50) + message[end:]

    def _splice(self, message: bytes, among: Sequence[bytes]) -> bytes:
        start, _ = self._place(message)
        other = self.choice(among)
        return message[:start] + other[self._random.randint(0, len(other)) :]

    def _replace(self, message: bytes, among: Sequence[bytes]) -> bytes:
        # The value of one field, in what is still valid JSON otherwise.
        start = message.find(b": ", self._random.randint(0, len(message)))
        if start < 0:
            return message
        ends = [end for end in (message.find(mark, start) for mark in (b", ", b"}")) if end > 0]
        end = min(ends, default=len(message))
        return message[: start + 2] + bytes(self.choice(EXTREMES)) + message[end:]


class Asking:
    """
    Sends requests, and counts their replies.

    @ivar replies: How many came.
    """

    def __init__(self, host: HostPort) -> None:
        self.sent = 0
        self.replies = 0
        self._sockets = Sockets()
        self._dealer = self._sockets.socket(zmq.DEALER, host.port, host.host)

    def send(self, *frames: bytes) -> None:
        """
        Send a request as a REQ socket does.
        """
        self._dealer.send_multipart([b"", *frames])
        self.sent += 1
        if self.sent - self.replies >= WINDOW:
            self.receive(WINDOW // 2)

    def receive(self, waiting: int = 0) -> None:
        """
        @param waiting: The most replies that may still be missing.
        @raise AssertionError: If others do not come.
        """
        while self.sent - self.replies > waiting:
            if not self._dealer.poll(round(LIMIT * 1000)):
                raise AssertionError(f"{self.sent - self.replies} requests were not answered")
            delimiter, _ = self._dealer.recv_multipart()
            assert delimiter == b""
            self.replies += 1

    def close(self) -> None:
        self._sockets.close()


class Sending:
    """
    Sends to an endpoint, with a new connection whenever the old one has ended.

    @ivar connections: How many there were.
    """

    def __init__(self, host: str, port: int, kind: bytes) -> None:
        self.connections = 0
        self._connect = lambda: Peer(host, port, kind)
        self._peer: Peer | None = None

    def send(self, *frames: bytes) -> None:
        """
        Send a message.
        """
        while self._peer is None or not self._peer.send(*frames):
            self.close()
            self._peer = self._connect()
            self.connections += 1

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


class Run:
    """
    One run against one plugin.

    @ivar sent: Messages by endpoint and kind.
    """

    def __init__(self, host: HostPort, seed: int) -> None:
        """
        @param host: The manage endpoint.
        """
        self.sent: Counter[tuple[str, str]] = Counter()
        self.host = host
        self.fuzz = Fuzz(seed)
        self.living = Client(host)
        self.living.join(["stix2/indicator", "stix2/sighting"])
        self.asking = Asking(host)
        self.reporting = Sending(host.host, self.living.sub, b"PUB")
        self.listening = Sending(host.host, self.living.pub, b"SUB")
        self._ways: list[tuple[str, str, Callable[[], None]]] = [
            ("manage", "random bytes", lambda: self.asking.send(self.fuzz.anything())),
            ("manage", "damaged", lambda: self.asking.send(self.fuzz.request())),
            ("manage", "damaged", lambda: self.asking.send(self.fuzz.request())),
            (
                "manage",
                "several frames",
                lambda: self.asking.send(*self.fuzz.parts(self.fuzz.request)),
            ),
            ("sub", "random bytes", lambda: self.reporting.send(self.fuzz.anything())),
            ("sub", "damaged", lambda: self.reporting.send(self.fuzz.report())),
            ("sub", "damaged", lambda: self.reporting.send(self.fuzz.report())),
            (
                "sub",
                "several frames",
                lambda: self.reporting.send(*self.fuzz.parts(self.fuzz.report)),
            ),
            ("pub", "random bytes", lambda: self.listening.send(self.fuzz.anything()[:2000])),
            ("pub", "subscriptions", lambda: self.listening.send(self.fuzz.subscription()[:2000])),
            (
                "pub",
                "several frames",
                lambda: self.listening.send(
                    *(part[:2000] for part in self.fuzz.parts(self.fuzz.subscription))
                ),
            ),
        ]

    def send(self, messages: int, deadline: float) -> None:
        """
        @param deadline: When to end before all are sent, as C{time.monotonic()} says.
        """
        for number in range(messages):
            if number % ROUND == 0:
                if time.monotonic() > deadline:
                    break
                self._look()
            endpoint, kind, send = self.fuzz.choice(self._ways)
            send()
            self.sent[endpoint, kind] += 1
        self.asking.receive()

    def _look(self) -> None:
        """
        The old subscriber is still there; and somebody calls who speaks no ZeroMQ.
        """
        self.listening.close()  # with all its subscriptions
        while self.living.waiting(0):
            self.living.receive()
        if self.living.heartbeat() != "success":
            raise AssertionError("a subscription has ended")
        for endpoint, port in (
            ("manage", self.host.port),
            ("sub", self.living.sub),
            ("pub", self.living.pub),
        ):
            with socket.create_connection((self.host.host, port), LIMIT) as stranger:
                stranger.sendall(self.fuzz.anything())
            self.sent[endpoint, "no ZeroMQ"] += 1

    def served(self) -> None:
        """
        See that everybody is served.

        @raise AssertionError: If somebody is not.
        """
        last = an_indicator()
        self.reporting.send(frame(last))  # behind all that was sent there
        self.living.ids_until(last["id"])
        clients = [Client(self.host) for _ in range(2)]
        for client, topic in zip(clients, ("stix2/indicator", "threatbus/intel"), strict=True):
            client.join(topic)
        publisher = Publisher(self.host.host, self.living.sub)
        document = an_indicator()
        publisher.publish(document)
        for client in (self.living, *clients):
            _, payload = client.receive()
            if document["id"] not in payload:
                raise AssertionError(f"{payload!r} is not what was published last")
            if client.heartbeat() != "success":
                raise AssertionError("a subscription has ended")
        publisher.close()
        for client in (self.living, *clients):
            client.unsubscribe()
            client.close()

    def close(self) -> None:
        self.asking.close()
        self.reporting.close()
        self.listening.close()
        self.living.close()


def table(run: Run, status: dict[str, Any], lines: Sequence[tuple[str, str]]) -> str:
    """
    What was sent, and what came of it.

    @param lines: More of it.
    """
    rows = [
        f"{endpoint:8}{kind:16}{count:>9,}" for (endpoint, kind), count in sorted(run.sent.items())
    ]
    rows.append(f"{'all':24}{run.sent.total():>9,}")
    rows.append("")
    rows.append(f"{'requests answered':24}{run.asking.replies:>9,} of {run.asking.sent:,}")
    for stream, counts in sorted(status["received"].items()):
        for verdict, count in sorted(counts.items()):
            rows.append(f"{f'{stream} {verdict}':24}{count:>9,}")
    rows += [f"{name:24}{value:>9}" for name, value in lines]
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> int:
    """
    @return: The exit status.
    """
    parser = argparse.ArgumentParser("bench.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that it may take")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plugin = PluginProcess(Path(folder), **SETTINGS)
        try:
            return attack(plugin, options.messages, options.seed, options.limit)
        finally:
            plugin.stop()


def attack(plugin: PluginProcess, messages: int, seed: int, limit: float) -> int:
    """
    @param limit: Seconds.
    @return: The exit status.
    """
    began = time.monotonic()
    run = Run(plugin.manage, seed)
    before = plugin.rss()
    failure = ""
    try:
        run.send(messages, began + limit)
        seconds = time.monotonic() - began
        run.served()
        status = plugin.status()
    except (AssertionError, OSError) as e:
        failure = str(e)
        if plugin.alive:
            failure += "; it still runs"
        print(f"failed after {run.sent.total():,} messages: {failure}\n{plugin.log[-2000:]}")
        return 1
    finally:
        run.close()
    print(
        table(
            run,
            status,
            [
                ("seconds", f"{seconds:,.1f}"),
                ("messages per second", f"{run.sent.total() / seconds:,.0f}"),
                ("memory before, MiB", f"{before / 2**20:,.1f}"),
                ("memory after, MiB", f"{plugin.rss() / 2**20:,.1f}"),
                ("tracebacks in the log", str(plugin.log.count("Traceback"))),
            ],
        )
    )
    print("everybody is served")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
