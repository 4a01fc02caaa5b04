"""
What strangers can take from the known clients of a bus: memory, connections, time.

    python -m bench.strangers [--short] [--runs 3] [--before CHECKOUT] [--only LOAD]

Each row has a plugin of its own, with default settings, and known clients on 127.0.0.1: a
publisher at a steady rate, a subscriber of the old dialect and one of tbvast/1, a bridge with
its engine, one that sends a heartbeat every 20 ms, and one that connects anew for each. Then
strangers come from another address (L{bench.loads}), stay, and leave. With keys, the strangers
have none.

Another checkout, with its own C{.venv}, is measured in turn with this one. A plugin that takes
too much memory is ended, and the row says so. The exit status is 0 if with this checkout
nobody who is known loses anything, or waits as long as a Threat Bus application does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from bench.burst import longest
from bench.command import command_line
from bench.loads import HEARTBEAT, context
from bench.peers import BATCH, HERE, STAMP, TOPIC, Bus, Role, document
from bench.reopen import fill
from bench.report import figure, machine, percentile, spread, table
from devtools.services import end_process, free_ports
from tbvast.engines import binaries
from tbvast.errors import EngineMissing
from tbvast.zeromq.curve import client_options, load_key_pair, load_public_key, make_key_pair

HOST = "127.0.0.1"

BEAT = 0.02
NEWCOMER = 0.5
KEPT_ALIVE = 1.0
"""
Seconds between two heartbeats of one client, between two new clients, and between two heartbeats
of a subscriber.
"""

HEARTBEAT_LIMIT = 5.0
"""
Seconds without an answer after which a Threat Bus application subscribes again, and after which a
new client gives up.
"""

GROWTH = 1024
"""
The most MiB that strangers should cost a plugin.
"""

LOAD_LIMIT = 60.0
"""
Seconds that a load may take.
"""

ARRIVAL_LIMIT = 20.0
"""
Seconds after the last message in which it may arrive.
"""

START_LIMIT = 120.0
"""
Seconds that anything may take to start.
"""


@dataclass(frozen=True)
class Row:
    """
    @ivar load: A load of L{bench.loads}; empty if no stranger comes.
    @ivar count: How many of its requests, clients, or topics there are.
    @ivar soft: The soft limit of the plugin's descriptors; 0 for that of this process.
    @ivar hard: The hard limit.
    @ivar keys: Whether the known clients have keys.
    @ivar stored: Indicators in the journal, all of which another subscriber of tbvast/1 reads
        meanwhile.
    @ivar rate: Indicators a second that the known publisher sends.
    @ivar stay: Seconds that the strangers stay after they have done everything.
    @ivar afterwards: Seconds from their leaving until the memory is measured again.
    """

    load: str
    count: int = 0
    soft: int = 0
    hard: int = 0
    keys: bool = False
    stored: int = 0
    rate: int = 50
    stay: float = 5.0
    afterwards: float = 8.0

    @property
    def name(self) -> str:
        parts = [f"{self.count:,} {self.load}" if self.load else "nobody"]
        if self.hard or self.soft:
            parts.append(f"{self.soft:,} descriptors")
        if self.stored:
            parts.append(f"{self.stored:,} stored")
        if self.keys:
            parts.append("keys")
        return ", ".join(parts)


ROWS = (
    Row(""),
    Row("clients", 1_400, soft=1_024),
    Row("clients", 1_400, soft=1_024, keys=True),
    Row("silent", 4_374, soft=4_096, hard=4_096),
    Row("silent", 4_374, soft=4_096, hard=4_096, keys=True),
    Row("subscriptions", 10_000, rate=10, stay=25.0, afterwards=70.0),
    Row("documents", 6),
    Row("topics", 1_000_000),
    Row("pattern", 6),
    Row("patterns", 6),
    Row("", stored=300_000),
    Row("status", 300, stored=300_000),
    Row("oversized", 12),
)
SHORT_ROWS = tuple(
    replace(row, stay=2.0, afterwards=2.0)
    for row in (
        Row("clients", 300, soft=256),
        Row("silent", 600, soft=512, hard=512, keys=True),
        Row("subscriptions", 1_000),
        Row("documents", 2),
        Row("topics", 100_000),
        Row("patterns", 1),
        Row("status", 100, stored=20_000),
        Row("oversized", 3),
    )
)


class Checkout(NamedTuple):
    """
    @ivar name: Its name in tables.
    @ivar path: The source tree.
    """

    name: str
    path: Path

    def command(self, program: str) -> str:
        """
        @return: The path of a program that is installed beside its Python.
        """
        folder = Path(sys.executable).parent if self.path == HERE else self.path / ".venv" / "bin"
        return str(folder / program)

    @property
    def process(self) -> dict[str, Any]:
        """
        How its processes have to be started.
        """
        return {"cwd": self.path, "env": {**os.environ, "PYTHONPATH": str(self.path)}}


@dataclass
class Figures:
    """
    The measurements of one run of a row; times are in milliseconds, memory is in MiB.

    @ivar late: How late each message was, for each receiver.
    @ivar lost: How many messages each receiver did not get.
    @ivar again: How often each receiver had to subscribe again.
    @ivar said: What the strangers got.
    @ivar ended: Why the plugin did not survive; empty if it did.
    """

    before: float = 0.0
    most: float = 0.0
    after: float = 0.0
    turn: float = 0.0
    beat: float = 0.0
    newcomer: float = 0.0
    resumed: float = 0.0
    cpu: float = 0.0
    seconds: float = 0.0
    late: dict[str, list[float]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)
    said: str = ""
    ended: str = ""


class Keys:
    """
    Those of a bus and of its known clients; none if there is no folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.plugin: dict[str, str] = {}
        self.bridge: dict[str, str] = {}
        self.options: Mapping[int, int | bytes] = {}
        if folder is None:
            return
        bus, known = (make_key_pair(folder, name) for name in ("bus", "known"))
        clients = folder / "clients"
        clients.write_text(f"{load_public_key(str(known[0])).decode()} known\n")
        self.plugin = {"curve_key": str(bus[1]), "clients": str(clients)}
        self.bridge = {"curve_key": str(known[1]), "server_key": str(bus[0])}
        self.options = client_options(load_key_pair(str(known[1])), load_public_key(str(bus[0])))


class Known(threading.Thread):
    """
    A known client, which ends when it is told to, within seconds.
    """

    def __init__(self, bus: Bus, keys: Keys) -> None:
        super().__init__(daemon=True)
        self.bus = bus
        self._keys = keys
        self._stopping = threading.Event()
        self.ready = threading.Event()

    def socket(self, made: zmq.Context[Any], kind: int, port: int, topic: str = "") -> Any:
        socket = made.socket(kind)
        socket.linger = 0
        for option, value in self._keys.options.items():
            socket.set(option, value)
        socket.sndhwm = socket.rcvhwm = 0
        if topic:
            socket.subscribe(topic)
        socket.connect(f"tcp://{HOST}:{port}")
        return socket

    def end(self) -> None:
        self._stopping.set()
        if self.ident is not None:
            self.join(2 * HEARTBEAT_LIMIT)


class Publisher(Known):
    """
    Publishes at a steady rate.

    @ivar sent: When each message was sent: nanoseconds.
    """

    def __init__(self, bus: Bus, keys: Keys, rate: int) -> None:
        super().__init__(bus, keys)
        self.sent: list[int] = []
        self._rate = rate
        self.begin = threading.Event()

    def run(self) -> None:
        seed = uuid.uuid4().hex
        with context() as made, self.socket(made, zmq.XPUB, self.bus.sub) as socket:
            socket.linger = 5000
            if not socket.poll(START_LIMIT * 1000):
                return
            probes = 0
            while not self.begin.wait(0.1):
                probes += 1
                socket.send(TOPIC + b" " + document(probes, f"probe-{seed}"))
            began = time.monotonic()
            while not self._stopping.is_set():
                time.sleep(max(0.0, began + len(self.sent) / self._rate - time.monotonic()))
                now = time.monotonic_ns()
                socket.send(TOPIC + b" " + document(len(self.sent), seed, now))
                self.sent.append(now)


class Heartbeats(Known):
    """
    Sends a heartbeat every L{BEAT}, over one connection.

    @ivar longest: The longest time without an answer: seconds.
    """

    longest = 0.0

    def run(self) -> None:
        with context() as made, self.socket(made, zmq.DEALER, self.bus.manage) as asking:
            while not self._stopping.is_set():
                began = time.monotonic()
                asking.send_multipart([b"", HEARTBEAT])
                answered = False
                while not (answered or self._stopping.is_set()) and self.bus.alive:
                    answered = bool(asking.poll(100))
                    self.longest = max(self.longest, time.monotonic() - began)
                if not answered:
                    return
                asking.recv_multipart()
                self.ready.set()
                time.sleep(BEAT)


class Newcomers(Known):
    """
    Sends one heartbeat over each of many connections, one after the other.

    @ivar longest: The longest time until an answer: seconds; not less than the time in which none
        came.
    """

    longest = 0.0

    def run(self) -> None:
        with context() as made:
            while not self._stopping.wait(NEWCOMER) and self.bus.alive:
                began = time.monotonic()
                with self.socket(made, zmq.DEALER, self.bus.manage) as asking:
                    asking.send_multipart([b"", HEARTBEAT])
                    asking.poll(round(HEARTBEAT_LIMIT * 1000))
                self.longest = max(self.longest, time.monotonic() - began)
                self.ready.set()


class Subscriber(Known):
    """
    An application of the old dialect, or of tbvast/1. It subscribes again if a heartbeat is not
    answered well, and in tbvast/1 if it has missed something.

    @ivar at: When each message came, by the time at which it was sent: nanoseconds.
    @ivar subscribed: How often it has subscribed.
    @ivar number: The number of the journal up to which it has everything.
    @ivar reached: When it had the last entry that it was to resume to; 0 if it does not have it.
    """

    def __init__(self, bus: Bus, keys: Keys, fed: bool, until: int = 0) -> None:
        """
        @param fed: Whether it speaks tbvast/1.
        @param until: The number up to which it resumes from the first entry; 0 if it does not.
        """
        super().__init__(bus, keys)
        self._fed, self._until = fed, until
        self.reached = 0.0
        self.at: dict[int, int] = {}
        self.subscribed = 0
        self.number = -1
        self._plugin = ""

    def run(self) -> None:
        while not self._stopping.is_set() and self.bus.alive:
            with context() as made:
                self._session(made)
            self._stopping.wait(0.1)

    def _request(self) -> dict[str, Any]:
        request: dict[str, Any] = {"action": "subscribe", "topic": TOPIC.decode(), "snapshot": 0}
        if self._fed:
            request["protocol"] = "tbvast/1"
            if self._plugin:
                request["resume"] = {"plugin": self._plugin, "number": self.number}
        return request

    def _session(self, made: zmq.Context[Any]) -> None:
        manage = self.socket(made, zmq.REQ, self.bus.manage)
        manage.send_json(self._request())
        if not manage.poll(round(HEARTBEAT_LIMIT * 1000)):
            return
        reply = manage.recv_json()
        if reply.get("status") != "success":
            return
        topic = reply["topic"]
        if self._until and not self._plugin:
            self._plugin, self.number = reply["plugin"], 0
            manage.send_json({"action": "unsubscribe", "topic": topic})
            manage.poll(round(HEARTBEAT_LIMIT * 1000))
            return
        self.subscribed += 1
        if self._fed:
            self._plugin, self.number = reply["plugin"], reply["number"]
        sub = self.socket(made, zmq.SUB, self.bus.pub, topic)
        poller = zmq.Poller()
        for each in (manage, sub):
            poller.register(each, zmq.POLLIN)
        asked = time.monotonic()
        waiting = False
        while not self._stopping.is_set():
            ready = dict(poller.poll(100))
            if sub in ready and not self._read(sub, topic.encode()):
                return
            if manage in ready:
                if manage.recv_json().get("status") != "success":
                    return
                waiting = False
            now = time.monotonic()
            if waiting and now - asked > HEARTBEAT_LIMIT:
                return
            if not waiting and now - asked > KEPT_ALIVE:
                manage.send_json({"action": "heartbeat", "topic": topic})
                asked, waiting = now, True

    def _read(self, sub: Any, topic: bytes) -> bool:
        """
        @return: Whether nothing is missing.
        """
        with contextlib.suppress(zmq.Again):
            while not self._stopping.is_set():
                frame = sub.recv(zmq.NOBLOCK)
                now = time.monotonic_ns()
                self.ready.set()
                if self._fed and (batch := BATCH.match(frame, len(topic))):
                    if int(batch[1]) != self.number:
                        return False
                    self.number = int(batch[2])
                    if self._until and not self.reached and self.number >= self._until:
                        self.reached = time.monotonic()
                for sent in map(int, STAMP.findall(frame)):
                    self.at.setdefault(sent, now)
        return True


class Bridge:
    """
    A bridge with its engine, and what its store has.

    @ivar at: When each message was in the store, by the time at which it was sent: nanoseconds.
    """

    def __init__(self, checkout: Checkout, bus: Bus, keys: Keys, folder: Path) -> None:
        self.at: dict[int, int] = {}
        self._log = folder / "bridge.log"
        self._store = folder / "bridge" / "bridge.db"
        settings = {
            "threatbus": f"{HOST}:{bus.manage}",
            "state_dir": str(self._store.parent),
            "vast_listen": f"{HOST}:{free_ports(1)[0]}",
            "retro_match": False,
            **keys.bridge,
        }
        config = folder / "bridge.conf"
        config.write_text(json.dumps({"bridge": settings}))  # YAML, too
        command = [checkout.command("twistd"), "--nodaemon", "--pidfile=", "tbvast-bridge"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--config={config}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **checkout.process,
            )
        self._stopping = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def said(self, text: str) -> int:
        """
        How often its log has a text.
        """
        return self._log.read_text(errors="replace").count(text)

    @property
    def ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the bridge ended: {self._log.read_text()[-500:]}")
        return bool(self.subscribed and self.said("is ready: "))

    @property
    def subscribed(self) -> int:
        return self.said("Subscribed to")

    def _read(self) -> None:
        last = 0
        while not self._stopping.wait(0.05):
            with contextlib.suppress(sqlite3.Error):
                store = sqlite3.connect(f"file:{self._store}?mode=ro", uri=True)
                with contextlib.closing(store):
                    rows = store.execute(
                        "SELECT number, body FROM indicators WHERE number > ?", (last,)
                    ).fetchall()
                now = time.monotonic_ns()
                for number, body in rows:
                    last = max(last, number)
                    for sent in map(int, STAMP.findall(body)):
                        self.at.setdefault(sent, now)

    def end(self) -> None:
        self._stopping.set()
        self._reading.join()
        end_process(self._process, 30.0)


class Watch(threading.Thread):
    """
    Ends a plugin that takes too much memory.

    @ivar reason: Why it ended, if it did.
    """

    reason = ""

    def __init__(self, bus: Bus, most: int) -> None:
        """
        @param most: MiB.
        """
        super().__init__(daemon=True)
        self._bus, self._most = bus, most
        self._stopping = threading.Event()
        self.seen = 0.0

    def run(self) -> None:
        while not self._stopping.wait(0.25) and not self.reason:
            if not self._bus.alive:
                self.reason = "it ended"
                return
            with contextlib.suppress(OSError):  # a child has ended
                self.seen = max(self.seen, self._bus.memory("VmHWM"))
            if self.seen > self._most:
                self.reason = f"ended at {self._most:,} MiB"
                self._bus.kill()

    def end(self) -> None:
        self._stopping.set()
        self.join()


@contextlib.contextmanager
def plugin(checkout: Checkout, row: Row, keys: Keys, folder: Path, turns: Path) -> Iterator[Bus]:
    """
    A plugin of a checkout, with default settings.

    @param turns: Where its long reactor turns are written.
    """
    ports = free_ports(3)
    settings = {
        **dict(zip(("manage", "pub", "sub"), ports, strict=True)),
        "state_dir": str(folder / "state"),
        **keys.plugin,
    }
    config = folder / "plugin.conf"
    config.write_text(json.dumps({"plugin": settings}))  # YAML, too
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limited = 'ulimit -S -n "$0"; ulimit -H -n "$1"; shift; exec "$@"'
    command = ["sh", "-c", limited, str(row.soft or soft), str(row.hard or hard)]
    command += [checkout.command("python"), "-m", "bench.peers", "turns", str(turns)]
    command += ["--nodaemon", "--pidfile=", f"--logfile={folder / 'plugin.log'}"]
    command += ["tbvast-plugin", f"--config={config}"]
    bus = Bus(checkout.name, command, ports, **checkout.process)
    try:
        yield bus
    finally:
        bus.end(15.0)


def until(condition: Callable[[], object], limit: float) -> bool:
    """
    Wait for a condition.

    @param limit: The most seconds.
    @return: Whether it became true in time.
    """
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Run:
    """
    One run of a row.

    @ivar times: When the strangers came, and when they had left: nanoseconds.
    """

    def __init__(self, checkout: Checkout, row: Row, bus: Bus, keys: Keys, folder: Path) -> None:
        self._row, self._bus = row, bus
        self.figures = Figures()
        self.times = (0, 0)
        self._publisher = Publisher(bus, keys, row.rate)
        self._beats = Heartbeats(bus, keys)
        self._newcomers = Newcomers(bus, keys)
        self._subscribers = {
            "old": Subscriber(bus, keys, fed=False),
            "tbvast/1": Subscriber(bus, keys, fed=True),
        }
        self._resuming = Subscriber(bus, keys, fed=True, until=row.stored) if row.stored else None
        self._bridge = Bridge(checkout, bus, keys, folder) if has_engine() else None

    @property
    def _known(self) -> list[Known]:
        return [self._publisher, self._beats, self._newcomers, *self._subscribers.values()]

    def measure(self, most: int) -> None:
        """
        @param most: MiB that the plugin may take.
        """
        for each in self._known:
            each.start()
        try:
            if not until(self._ready, START_LIMIT):
                raise TimeoutError(f"not everybody is ready within {START_LIMIT:g} s")
            watch = Watch(self._bus, most)
            self.figures.before = self._bus.memory("VmRSS")
            self._bus.forget_peak()
            watch.start()
            self._beats.longest = self._newcomers.longest = 0.0
            self._publisher.begin.set()
            time.sleep(1.0)
            try:
                self._attack(watch)
            finally:
                watch.end()
                self.figures.ended = watch.reason
                self.figures.most = watch.seen
        finally:
            for each in self._known:
                each.end()
            if self._resuming is not None:
                self._resuming.end()
            if self._bridge is not None:
                self._bridge.end()
        self._count()

    def _attack(self, watch: Watch) -> None:
        figures, row = self.figures, self._row
        began, used = time.monotonic(), self._bus.cpu()
        if self._resuming is not None:
            self._resuming.start()
        if row.load:
            ports = self._bus.manage, self._bus.pub, self._bus.sub
            load = Role(row.load, row.count, *ports, module="bench.loads")
            try:
                load.told()
                load.tell("go")
                until(lambda: load.said() or watch.reason, LOAD_LIMIT)
                figures.said = load.told(1.0) if load.said() else "nothing"
                until(lambda: watch.reason, row.stay)
            finally:
                load.end()
        else:
            until(lambda: watch.reason, row.stay)
        if self._resuming is not None:
            resuming = self._resuming
            until(lambda: watch.reason or resuming.reached, LOAD_LIMIT)
            figures.resumed = (resuming.reached or time.monotonic()) - began
        if not watch.reason:
            figures.seconds = time.monotonic() - began
            figures.cpu = self._bus.cpu() - used
        until(lambda: watch.reason, row.afterwards)
        self.times = round(began * 1e9), time.monotonic_ns()
        self._publisher.end()
        until(lambda: watch.reason or self._complete(), ARRIVAL_LIMIT)
        if not watch.reason:
            figures.after = self._bus.memory("VmRSS")

    def _ready(self) -> bool:
        clients = all(each.ready.is_set() for each in self._known[1:])
        return clients and (self._bridge is None or self._bridge.ready)

    def _receivers(self) -> dict[str, Subscriber | Bridge]:
        bridge = {} if self._bridge is None else {"bridge": self._bridge}
        return {**self._subscribers, **bridge}

    def _complete(self) -> bool:
        sent = set(self._publisher.sent)
        return all(sent <= each.at.keys() for each in self._receivers().values())

    def _count(self) -> None:
        figures = self.figures
        figures.beat = self._beats.longest * 1000
        figures.newcomer = self._newcomers.longest * 1000
        for name, receiver in self._receivers().items():
            at = dict(receiver.at)
            sent = self._publisher.sent
            figures.late[name] = [(at[each] - each) / 1e6 for each in sent if each in at]
            figures.lost[name] = sum(each not in at for each in sent)
            figures.again[name] = receiver.subscribed - 1


def has_engine() -> bool:
    """
    Whether there can be a bridge.
    """
    try:
        binaries.find_node()
    except EngineMissing:
        return False
    return True


class Bench:
    """
    Measures rows with checkouts in turn.

    @ivar found: The figures of each row and checkout, one for each run.
    """

    def __init__(self, checkouts: Sequence[Checkout], folder: Path, most: int) -> None:
        """
        @param most: MiB that a plugin may take.
        """
        self._checkouts = checkouts
        self._folder = folder
        self._most = most
        self.found: dict[tuple[Row, Checkout], list[Figures]] = {}

    def measure(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for checkout in self._checkouts:
                began = time.monotonic()
                figures = self._run(checkout, row)
                self.found.setdefault((row, checkout), []).append(figures)
                seconds = time.monotonic() - began
                print(f"{row.name}, {checkout.name}: {seconds:.0f} s", file=sys.stderr, flush=True)

    def _run(self, checkout: Checkout, row: Row) -> Figures:
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._folder) as name:
            folder = Path(name)
            keys = Keys(folder / "keys" if row.keys else None)
            if row.stored:
                shutil.copytree(self._filled(checkout, row.stored), folder / "state")
            turns = folder / "turns"
            with plugin(checkout, row, keys, folder, turns) as bus:
                run = Run(checkout, row, bus, keys, folder)
                try:
                    run.measure(self._most)
                except (OSError, RuntimeError) as e:
                    run.figures.ended = f"could not be measured: {e}"
            run.figures.turn = longest(turns, *run.times) if turns.exists() else 0.0
            return run.figures

    def _filled(self, checkout: Checkout, stored: int) -> Path:
        """
        The state directory of a plugin with some indicators.
        """
        folder = self._folder / f"{checkout.name}-{stored}".replace("/", "-")
        if not folder.exists():
            folder.mkdir()
            with plugin(checkout, Row(""), Keys(None), folder, folder / "turns") as bus:
                fill(bus, stored)
        return folder / "state"


PLUGIN = (
    *("strangers", "tbvast", "MiB before", "most", "after", "longest turn ms"),
    *("heartbeat ms", "newcomer ms", "CPU s of s", "what the strangers got"),
)
KNOWN = (
    *("strangers", "tbvast", "old p50 / p99 ms", "tbvast/1 p50 / p99 ms"),
    *("bridge p50 / p99 ms", "lost", "subscribed again", "s to resume"),
)
"""
The columns of both tables.
"""


def of_plugin(row: Row, checkout: Checkout, runs: Sequence[Figures]) -> list[str]:
    """
    A row of the first table.
    """
    names = ("before", "most", "after", "turn", "beat", "newcomer", "cpu", "seconds")
    measured = [run for run in runs if run.before]
    figures = {
        name: spread([value for run in measured if (value := getattr(run, name)) or not run.ended])
        for name in names
    }
    said = dict.fromkeys(filter(None, (run.ended or run.said for run in runs)))
    return [
        *(row.name, checkout.name, *(figures[name] for name in names[:6])),
        *(f"{figures['cpu']} of {figures['seconds']}", "; ".join(said)),
    ]


def of_known(row: Row, checkout: Checkout, runs: Sequence[Figures]) -> list[str]:
    """
    A row of the second table.
    """

    def late(name: str) -> str:
        found = [run.late[name] for run in runs if run.late.get(name)]
        percentiles = (spread([percentile(each, p) for each in found]) for p in (50, 99))
        return " / ".join(percentiles) if found else "-"

    return [
        *(row.name, checkout.name, *map(late, ("old", "tbvast/1", "bridge"))),
        f"{sum(sum(run.lost.values()) for run in runs):,}",
        f"{sum(sum(run.again.values()) for run in runs):,}",
        spread([run.resumed for run in runs]) if row.stored else "",
    ]


def problems(row: Row, runs: Sequence[Figures]) -> Iterator[str]:
    """
    What should not be so.
    """
    for run in runs:
        if run.ended:
            yield f"{row.name}: the plugin {run.ended}"
            continue
        for name, lost in run.lost.items():
            if lost:
                yield f"{row.name}: {name} lost {lost:,} messages"
        for name in ("beat", "newcomer"):
            if (waited := getattr(run, name)) > HEARTBEAT_LIMIT * 1000:
                yield f"{row.name}: a {name} had no answer for {figure(waited)} ms"
        if run.most - run.before > GROWTH:
            yield f"{row.name}: the plugin took {figure(run.most - run.before)} MiB more"


def main(arguments: Sequence[str] | None = None) -> int:
    words = {"before": "another checkout, with its own .venv", "only": "the name of one load"}
    options = command_line(__doc__, arguments, words, runs=(3, 1), memory=(8_192, 4_096))
    checkouts = [Checkout("now", HERE)]
    if options.before:
        checkouts.insert(0, Checkout("before", Path(options.before).resolve()))
    rows = [
        row for row in (SHORT_ROWS if options.short else ROWS) if options.only in ("", row.load)
    ]
    if not rows:
        raise SystemExit(f"--only: {options.only!r} is not a load")
    print(f"Strangers, {options.runs} runs. {machine()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        bench = Bench(checkouts, Path(folder), options.memory)
        for _ in range(options.runs):
            bench.measure(rows)
    found = bench.found
    for head, cells in ((PLUGIN, of_plugin), (KNOWN, of_known)):
        print(table(head, [cells(*key, runs) for key, runs in found.items()]), end="\n\n")
    wrong = [each for row in rows for each in problems(row, found[row, checkouts[-1]])]
    print("\n".join(wrong or ["Nobody is starved, and nothing is lost."]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
