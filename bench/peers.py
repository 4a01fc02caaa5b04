"""
Buses to compare with, and the programs around a bus that is measured.

A bus is a process: tbvast's plugin, the old Threat Bus host, or a few lines of pyzmq
that forward what arrives. Its subscribers and its publisher are processes, too, which
do no more than they must; they are run by C{python -m bench.peers ROLE}.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from devtools.services import end_process, free_ports, twistd
from tests.functional.components import children
from tests.functional.peers import THREATBUS, Uninstallable, installed, logging_to_console

LIMIT = 120
"""
Seconds that one step may take.
"""

TOPIC = b"stix2/indicator"

HERE = Path(__file__).parents[1]

STAMP = re.compile(rb"@(\d{20})@")
"""
When a document was sent, in its name.
"""

BATCH = re.compile(rb'batch \{"after":(\d+),"until":(\d+)')


def document(number: int, seed: str = "", sent: int = 0) -> bytes:
    """
    @param seed: Documents of another seed are other indicators.
    @param sent: Nanoseconds, to be found again by L{STAMP}.
    @return: An indicator of 420 bytes, or one more.
    """
    return (
        b'{"type": "indicator", "spec_version": "2.1", "id": "indicator--%s", '
        b'"created": "2024-01-01T00:00:00.000Z", "modified": "2024-01-01T00:00:00.000Z", '
        b'"name": "@%020d@%s", "pattern": "[ipv4-addr:value = \'10.%d.%d.%d\']", '
        b'"pattern_type": "stix", "valid_from": "2024-01-01T00:00:00Z"}'
        % (
            str(uuid.uuid5(uuid.NAMESPACE_OID, f"{seed}{number}")).encode(),
            sent,
            b"x" * 82,
            number >> 16 & 255,
            number >> 8 & 255,
            number & 255,
        )
    )


class Role:
    """
    One of the programs below, as a child process that is told and tells lines.
    """

    def __init__(self, *arguments: object, module: str = "bench.peers") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.name = str(arguments[0])
        self.pid = self._process.pid

    def tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def told(self, limit: float = LIMIT) -> str:
        """
        @return: The next line it says.
        """
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise TimeoutError(f"the {self.name} said nothing within {limit:g} s")
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError(f"the {self.name} ended")
        return line

    def said(self) -> bool:
        """
        Whether there is something to be read.
        """
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Bus:
    """
    A bus as a child process.

    @ivar name: What it is called in tables.
    @ivar pid: Its process.
    @ivar manage: The port of its manage endpoint; 0 if it has none.
    @ivar sub: The port to publish to.
    @ivar pub: The port to receive from.
    """

    def __init__(
        self, name: str, command: Sequence[str], ports: Sequence[int], **process: Any
    ) -> None:
        """
        @param process: How the process differs from one that runs in this checkout, and whose
            output nobody reads.
        """
        self.name = name
        self.manage, self.pub, self.sub = ports
        silence = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(command, **{"cwd": HERE, **silence, **process})
        self.pid = self._process.pid

    def topics(self, count: int, fed: bool, stream: str = TOPIC.decode()) -> list[str]:
        """
        Subscribe.

        @param fed: Whether as tbvast/1.
        @return: The topics of the subscriptions.
        """
        if not self.manage:
            return list(map(private, range(count)))
        request: dict[str, Any] = {"action": "subscribe", "topic": stream, "snapshot": 0}
        if fed:
            request["protocol"] = "tbvast/1"
        with zmq.Context() as context, context.socket(zmq.REQ) as manage:
            manage.linger = 0
            manage.connect(f"tcp://127.0.0.1:{self.manage}")
            topics = []
            for _ in range(count):
                manage.send_json(request)
                if not manage.poll(LIMIT * 1000):
                    raise TimeoutError(f"{self.name} does not answer")
                reply: Any = manage.recv_json()
                topics.append(str(reply["topic"]))
            return topics

    @property
    def pids(self) -> list[int]:
        """
        Its process, and those that it has started.
        """
        return [self.pid, *children(self.pid)]

    def cpu(self) -> float:
        """
        @return: Seconds of CPU that its processes have used.
        """
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in self.pids]
        fields = [stat.rpartition(")")[2].split() for stat in stats]
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def memory(self, what: str) -> float:
        """
        @param what: C{VmRSS}, or C{VmHWM} for the peak.
        @return: MiB of its processes together; what they share is counted for each.
        """
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self.pids]
        found = [int(kib) for status in statuses for kib in re.findall(rf"{what}:\s*(\d+)", status)]
        return sum(found) / 1024

    def forget_peak(self) -> None:
        """
        Have the peak of memory begin anew.
        """
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """
        End it without a chance to do anything.
        """
        self._process.kill()

    def end(self, limit: float = 30.0) -> None:
        end_process(self._process, limit)


def private(number: int) -> str:
    """
    @return: A topic as long as one of the old dialect, for buses that cannot be asked.
    """
    return f"{number:032d}"


@contextlib.contextmanager
def tbvast(turns: Path | None = None, state: Path | None = None) -> Iterator[Bus]:
    """
    The plugin, with default settings, but for as many subscriptions as the subscribers need, all
    of which are one client without a key.

    @param turns: Where its long reactor turns are written, if they are measured.
    @param state: Its state directory, if it is to be kept.
    """
    ports = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        names = [f"--{n}={p}" for n, p in zip(("manage", "pub", "sub"), ports, strict=True)]
        config = Path(folder, "tap.conf")
        config.write_text("plugin:\n  max_client_subscriptions: 10000\n")
        names += [f"--state-dir={state or folder}", f"--config={config}"]
        command = twistd("tbvast-plugin", *names)
        if turns is not None:
            command = [
                *(sys.executable, "-m", "bench.peers", "turns", str(turns)),
                *command[1:],
            ]
        bus = Bus("tbvast", command, ports)
        try:
            yield bus
        finally:
            bus.end()


@contextlib.contextmanager
def forwarder(kind: str, subscribers: int) -> Iterator[Bus]:
    """
    @param kind: One of L{FORWARDERS}.
    """
    ports = [0, *free_ports(2)]
    arguments = ["forwarder", kind, *map(str, ports[1:]), str(subscribers)]
    bus = Bus(FORWARDERS[kind], [sys.executable, "-m", "bench.peers", *arguments], ports)
    try:
        yield bus
    finally:
        bus.end()


@contextlib.contextmanager
def threatbus() -> Iterator[Bus]:
    """
    The old host, its backbone in memory.

    @raise Uninstallable: If it cannot be had.
    """
    command = installed(THREATBUS)
    ports = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        app = {"host": "127.0.0.1", **dict(zip(("manage", "pub", "sub"), ports, strict=True))}
        config = {
            "logging": logging_to_console(Path(folder), "INFO"),
            "plugins": {"apps": {"zmq": app}, "backbones": {"inmem": {}}},
        }
        path = Path(folder, "config.yaml")
        path.write_text(json.dumps(config))  # YAML, too
        bus = Bus("Threat Bus 2022.5.16", [*command, f"--config={path}"], ports)
        try:
            yield bus
        finally:
            bus.end(5)


FORWARDERS = {
    "json": "bare forwarder, json.loads",
    "blind": "bare forwarder",
    "proxy": "zmq.proxy",
}


class Load:
    """
    A bus with its subscribers and a publisher, which are all connected.
    """

    def __init__(self, bus: Bus, topics: Sequence[str], processes: int) -> None:
        """
        @param processes: Among which the subscriptions are divided.
        """
        self.bus = bus
        self._roles: list[Role] = []
        try:
            self.publisher = self._role("publisher", bus.sub)
            self.subscribers = [
                self._role("subscriber", bus.pub, *topics[n::processes]) for n in range(processes)
            ]
            for each in self._roles:
                each.told()  # connected
            self._settle()
        except BaseException:
            self.end()
            raise

    def _role(self, *arguments: object) -> Role:
        role = Role(*arguments)
        self._roles.append(role)
        return role

    def _settle(self) -> None:
        """
        Publish until every subscriber has got something, for a bus may drop what
        comes earlier.
        """
        deadline = time.monotonic() + LIMIT
        waiting = list(self.subscribers)
        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.bus.name} forwards nothing")
            self.publisher.tell("probe")
            self.publisher.told()
            time.sleep(0.1)
            for each in list(waiting):
                if each.said():
                    each.told()
                    waiting.remove(each)
        time.sleep(0.5)

    def prepare(self, count: int) -> None:
        """
        Have the publisher make a burst, and all subscribers begin to count.
        """
        self.publisher.tell(f"prepare {count}")
        self.publisher.told()
        self.expect(count)

    def expect(self, count: int, stamped: bool = False) -> None:
        """
        Have all subscribers begin to count.

        @param stamped: Whether they say how late each message was.
        """
        for each in self.subscribers:
            each.tell(f"{count} {'stamped' if stamped else ''}")
        for each in self.subscribers:
            each.told()

    def finish(self, limit: float = LIMIT) -> list[list[str]]:
        """
        @return: What each subscriber said when it had all.
        """
        return [each.told(limit).split() for each in self.subscribers]

    def end(self) -> None:
        for each in self._roles:
            each.end()


# What the child processes do


def forward(kind: str, pub_port: str, sub_port: str, subscribers: str) -> None:
    """
    Forward each message to every subscriber's own topic; C{zmq.proxy} cannot rewrite,
    and so its subscribers share one.
    """
    context = zmq.Context()
    if kind == "proxy":
        front, back = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    else:
        front, back = context.socket(zmq.SUB), context.socket(zmq.PUB)
        front.subscribe(b"stix2/")
    front.rcvhwm = back.sndhwm = 0
    front.bind(f"tcp://127.0.0.1:{sub_port}")
    back.bind(f"tcp://127.0.0.1:{pub_port}")
    if kind == "proxy":
        zmq.proxy(front, back)
    topics = [private(n).encode() + b"indicator " for n in range(int(subscribers))]
    while True:
        payload = front.recv().partition(b" ")[2]
        if kind == "json":
            json.loads(payload)
        for topic in topics:
            back.send(topic + payload)


def subscribe(port: str, *topics: str) -> None:
    """
    Say C{connected}; say C{got} with the first message; be told how many messages to
    count on each topic, say C{counting}; say when the last was there, how many there
    were, and how late each was that bears its time: microseconds.
    """
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    poller = select.epoll()
    sockets: dict[int, tuple[Any, int]] = {}
    for topic in topics:
        socket = context.socket(zmq.SUB)
        socket.rcvhwm = 0
        socket.subscribe(topic)
        socket.connect(f"tcp://127.0.0.1:{port}")
        descriptor: Any = socket.getsockopt(zmq.FD)
        sockets[descriptor] = socket, len(topic)
        poller.register(descriptor, select.EPOLLIN | select.EPOLLET)
    say("connected")
    heard: set[int] = set()
    while len(heard) < len(sockets):
        for descriptor in ready(poller, sockets):
            if drain(*sockets[descriptor])[0]:
                heard.add(descriptor)
    say("got")
    while not select.select([sys.stdin], [], [], 0)[0]:
        for descriptor in ready(poller, sockets):
            drain(*sockets[descriptor])
    stamped = (line := sys.stdin.readline().split())[1:] == ["stamped"]
    left = int(line[0]) * len(sockets)
    say("counting")
    late: list[int] = []
    while left > 0:
        for descriptor in ready(poller, sockets):
            count, delays = drain(*sockets[descriptor], stamped)
            left -= count
            late += delays
    say(" ".join(map(str, (time.monotonic_ns(), left, *late))))
    time.sleep(LIMIT)


def ready(poller: select.epoll, sockets: dict[int, tuple[Any, int]]) -> Sequence[int]:
    """
    @return: Which sockets there may be something in.
    """
    if len(sockets) == 1:
        (descriptor,) = sockets
        sockets[descriptor][0].poll(100)
        return [descriptor]
    found = [descriptor for descriptor, _ in poller.poll(0.1)]
    return found or list(sockets)  # the descriptors may fall silent


def drain(socket: Any, length: int, stamped: bool = False) -> tuple[int, list[int]]:
    """
    @return: How many items there were, and how late they were.
    """
    count = 0
    late: list[int] = []
    receive, again = socket.recv, int(zmq.NOBLOCK)
    with contextlib.suppress(zmq.Again):
        while True:
            frame = receive(again)
            if stamped:
                now = time.monotonic_ns()
                late += [(now - int(sent)) // 1000 for sent in STAMP.findall(frame)]
            if batch := BATCH.match(frame, length):
                count += int(batch[2]) - int(batch[1])
            else:
                count += 1
    return count, late


def publish(port: str) -> None:
    """
    Be told C{probe}, C{prepare COUNT}, C{burst} (say when it began), or C{pace COUNT RATE}.
    """
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.sndhwm = 0
    socket.connect(f"tcp://127.0.0.1:{port}")
    if not socket.poll(LIMIT * 1000):
        raise TimeoutError("the bus does not listen")
    say("connected")
    seed = uuid.uuid4().hex
    probes = 0
    prepared: list[bytes] = []
    for line in sys.stdin:
        verb, *numbers = line.split()
        began = time.monotonic_ns()
        if verb == "probe":
            probes += 1
            socket.send(TOPIC + b" " + document(probes, f"probe-{seed}"))
        elif verb == "prepare":
            prepared = [TOPIC + b" " + document(n, seed) for n in range(int(numbers[0]))]
        elif verb == "burst":
            for frame in prepared:
                socket.send(frame)
        elif verb == "pace":
            count, rate = map(int, numbers)
            for n in range(count):
                due = began + n * 1_000_000_000 // rate
                time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
                socket.send(TOPIC + b" " + document(n, seed, time.monotonic_ns()))
        say(str(began))


def say(line: str) -> None:
    print(line, flush=True)


def measure_turns(path: str, *arguments: str) -> None:
    """
    Run twistd, and write to a file when each reactor turn of more than a millisecond
    ended, and how long it took: nanoseconds.
    """
    from twisted.internet import reactor
    from twisted.scripts.twistd import run

    target: Any = reactor
    target._poller = _Watched(target._poller, path)
    sys.argv = ["twistd", *arguments]
    run()


class _Watched:
    """
    An epoll object that sees how long it is not asked.
    """

    def __init__(self, poller: Any, path: str) -> None:
        self._poller = poller
        self._file = Path(path).open("w", buffering=1)  # noqa: SIM115
        self._since = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, *arguments: Any) -> Any:
        now = time.monotonic_ns()
        if self._since and now - self._since > 1_000_000:
            self._file.write(f"{now} {now - self._since}\n")
        found = self._poller.poll(*arguments)
        self._since = time.monotonic_ns()
        return found


ROLES: dict[str, Any] = {
    "forwarder": forward,
    "subscriber": subscribe,
    "publisher": publish,
    "turns": measure_turns,
}

__all__ = ["Bus", "Load", "Uninstallable", "document", "forwarder", "tbvast", "threatbus"]

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
