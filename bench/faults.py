"""
Everything is killed, frozen, and told another time, under load; what was lost is counted.

Indicators are published by request and on sub, removed, and expire; events of mixed schemas
are imported by the engine's command, and by pipelines of the node's own; an old subscriber
listens to intel, one of tbvast/1 to sightings. Meanwhile plugin, the journal's writer,
bridge, the process of its store, the engine's node and the command that changes contexts are
killed (SIGKILL), or frozen (SIGSTOP) for up to 20 s and then killed or not, and plugin and
bridge see their clocks step by up to a day, forward and back (libfaketime; the monotonic
clock stays); now and then a service is asked to end. One that ended is started again soon,
as systemd does. At the end all of this has to hold, counted to the item:

    - what was accepted is in the journal, and the old subscriber got it;
    - what is in the journal of what was sent on sub, the old subscriber got, too;
    - what is in force is in the engine's tables once, and nothing else is;
    - each event that the node still holds, or that was reported, has one sighting for each
      indicator in force that it matches: in the journal, and at the subscriber.

An event that the node lost when it was killed, and that nobody reported, counts for nothing.
With C{--cut} the network between plugin and bridge is cut instead. The exit status is 0 if
nothing is lost, and nothing doubled.

    python bench/faults.py [--faults 200] [--seeds 1 2 3 4 5] [--cut] [--logs FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.engine import Node, flow
from devtools.services import end_process, free_ports, twistd
from tests.functional.components import children

SETTLE = 120.0
"""
Seconds without any progress that everything has to come to rest after the last fault.
"""

ASIDE = "127.0.0.2"
"""
Another address of the loopback interface, where the relay listens.
"""

STEP = 20
"""
How many indicators are published by request at a time.
"""

ON_SUB = 20
"""
How many indicators are published on the sub endpoint at a time; an event holds one in
L{SEEN} of them.
"""

SEEN = 5

PAUSE = 0.2
"""
Seconds between two times, for either.
"""

AT_ONCE = 200
"""
The most events that are imported at a time.
"""

REMOVED = 4
EXPIRING = 3
"""
How many of a step are removed again, or soon are no longer valid; no event holds these.
"""

VALID = 15.0
"""
Seconds that an indicator which expires is valid.
"""

GAP = 0.5, 4.0
"""
Seconds between faults.
"""

FREEZE = 1.0, 20.0
"""
Seconds that a process is frozen.
"""

RESTART = 0.1, 1.0
"""
Seconds after which a service that ended is started again.
"""

QUIET = 10.0
"""
Seconds that the load goes on behind the last fault: what was hit has to work again.
"""

DAY = 86400

STEPS = (60, 600, 3600, 6 * 3600, DAY)
"""
By how many seconds a clock is wrong.
"""

SHOWN = 10
"""
The most of what was lost that is named.
"""

FAKETIME = "*/faketime/libfaketime.so.1"
"""
Where Debian has it, below C{/usr/lib}.
"""

NO_FAKETIME = "no libfaketime, whose steps of the clock are a part of this: apt install libfaketime"

SETTINGS = """
plugin:
  heartbeat_timeout: 300.0
  detached_timeout: 300.0
bridge:
  heartbeat: 1.0
  snapshot: 30
  retro_match_max_events: 0
  transform_context: cat
  transform_stream: yes
"""
"""
The subscriptions have to outlive whatever is done; and every event counts.
"""


def faketime() -> str | None:
    """
    Where libfaketime is, if it is installed.
    """
    return next(map(str, Path("/usr/lib").glob(FAKETIME)), None)


class Clock:
    """
    The date that a service and its children see.

    @ivar offset: By how many seconds it is wrong.
    """

    def __init__(self, path: Path, library: str | None) -> None:
        self._path = path
        self._library = library
        self.set(0)

    def set(self, offset: int) -> None:
        self.offset = offset
        new = self._path.with_suffix(".new")
        new.write_text(f"{offset:+d}\n")
        new.replace(self._path)

    @property
    def environment(self) -> dict[str, str]:
        """
        What a process needs to see it.
        """
        if self._library is None:
            return {}
        return {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


class Service:
    """
    One of the services as a child process, started again whenever it has ended.

    @ivar starts: How often it was started.
    """

    def __init__(
        self, folder: Path, name: str, library: str | None, chance: random.Random, *arguments: str
    ) -> None:
        self.name = name
        self.clock = Clock(folder / f"{name}.clock", library)
        self.starts = 0
        self.log = folder / f"{name}.log"
        self._chance = chance
        self._arguments = arguments
        self._due: float | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                twistd(self.name, *self._arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.clock.environment},
            )
        self.starts += 1
        self._due = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ensure(self) -> None:
        """
        Start it again if it ended a moment ago.
        """
        if self._process.poll() is None:
            return
        now = time.monotonic()
        if self._due is None:
            self._due = now + self._chance.uniform(*RESTART)
        if now >= self._due:
            self.start()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        end_process(self._process, 30.0)


class Relay:
    """
    Forwards TCP connections until it is cut; then nothing passes, and at the end of
    the cut all connections are reset.
    """

    def __init__(self, ports: list[int]) -> None:
        """
        @param ports: Where to listen, on L{ASIDE}, and where to forward to, on
            127.0.0.1.
        """
        self.passing = threading.Event()
        self.passing.set()
        self._open: list[Any] = []
        for port in ports:
            server = socket.create_server((ASIDE, port))
            threading.Thread(target=self._serve, args=(server, port), daemon=True).start()

    def _serve(self, server: Any, there: int) -> None:
        while True:
            client, _ = server.accept()
            try:
                other = socket.create_connection(("127.0.0.1", there))
            except OSError:
                client.close()
                continue
            self._open += [client, other]
            for one, two in ((client, other), (other, client)):
                threading.Thread(target=self._forward, args=(one, two), daemon=True).start()

    def _forward(self, one: Any, two: Any) -> None:
        try:
            while data := one.recv(65536):
                self.passing.wait()
                two.sendall(data)
        except OSError:
            pass
        for each in (one, two):
            each.close()

    def cut(self, seconds: float) -> None:
        self.passing.clear()
        time.sleep(seconds)
        for each in self._open:
            with contextlib.suppress(OSError):  # closed by the other end
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()
        self.passing.set()


def date(seconds: float) -> str:
    """
    A time as a document has it.
    """
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def indicator(number: int, **more: Any) -> dict[str, Any]:
    """
    An indicator of an address of its own.
    """
    now = date(time.time())
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.UUID(int=uuid.uuid5(uuid.NAMESPACE_OID, str(number)).int)}",
        "created": now,
        "modified": now,
        "pattern": f"[ipv4-addr:value = '{address(number)}']",
        "pattern_type": "stix",
        "valid_from": "2024-01-01T00:00:00Z",
        **more,
    }


def address(number: int) -> str:
    return f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"


def mixed(number: int, address: str) -> list[dict[str, Any]]:
    """
    An event that holds an address, with others of other schemas around it.

    @param number: Its own C{flow_id}.
    """
    head = {"timestamp": "2024-03-01T12:00:00.000000+0000", "src_ip": "10.255.255.2"}
    http = {"hostname": "x.example", "url": "/", "http_method": "GET", "length": number}
    return [
        {**head, "event_type": "dns", "dest_ip": "10.255.255.3", "dns": {"rrname": "y.example"}},
        {**head, "event_type": "http", "dest_ip": address, "flow_id": number, "http": http},
        {**head, "event_type": "tls", "dest_ip": "10.255.255.4", "tls": {"sni": "z.example"}},
    ]


def key(sighting: dict[str, Any]) -> str:
    """
    What tells one sighting from another: the indicator and the event.
    """
    event = sighting["x_threatbus_sighting_context"]
    return f"{sighting['sighting_of_ref']} {event['flow_id']}"


def version(document: dict[str, Any]) -> str:
    """
    What tells one version of an indicator from another.
    """
    operation = document.get("x_threatbus_update", "ADD")
    return f"{document['id']} {document['modified']} {operation}"


class Journal:
    """
    What is in a plugin's journal, read from its file.

    @ivar versions: Of the indicators.
    @ivar sightings: How often each is in it.
    """

    def __init__(self, path: Path) -> None:
        self.versions: set[str] = set()
        self.sightings: Counter[str] = Counter()
        self._path = path
        self._at = 0
        self._lock = threading.Lock()

    def read(self) -> None:
        """
        Read what is new.
        """
        with self._lock, contextlib.suppress(sqlite3.Error):
            db = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
            try:
                rows = db.execute(
                    "SELECT number, body FROM entries WHERE number > ? ORDER BY number", [self._at]
                ).fetchall()
            finally:
                db.close()
            for number, body in rows:
                document = json.loads(body)
                if document["type"] == "sighting":
                    self.sightings[key(document)] += 1
                else:
                    self.versions.add(version(document))
                self._at = number


class OldSubscriber(threading.Thread):
    """
    An unmodified Threat Bus application: it subscribes once, sends heartbeats, and has
    nothing to tell it that something went missing.

    @ivar got: How often each version arrived.
    @ivar ended: How often it was told that its subscription is none.
    """

    def __init__(self, bus: Bus, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self.got: Counter[str] = Counter()
        self.ended = 0
        self.subscribed = threading.Event()
        self._bus = bus
        self._stopped = stopped

    def run(self) -> None:
        while not self._stopped.is_set():
            reply = self._bus.ask({"action": "subscribe", "topic": "stix2/indicator"})
            if reply and reply.get("status") == "success":
                self._receive(reply)
                self.ended += not self._stopped.is_set()

    def _receive(self, reply: dict[str, Any]) -> None:
        topic, beat = reply["topic"], time.monotonic()
        with self._bus.context.socket(zmq.SUB) as receiving:
            receiving.set(zmq.RCVHWM, 0)
            receiving.subscribe(topic)
            receiving.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
            self.subscribed.set()
            while not self._stopped.is_set():
                if receiving.poll(500):
                    kind, _, payload = receiving.recv()[len(topic) :].partition(b" ")
                    if kind == b"indicator":
                        self.got[version(json.loads(payload))] += 1
                if time.monotonic() - beat > 5.0:
                    beat = time.monotonic()
                    answer = self._bus.ask({"action": "heartbeat", "topic": topic}, 2.0)
                    if answer is not None and answer["status"] != "success":
                        return


class SightingSubscriber(threading.Thread):
    """
    A client of tbvast/1 for sightings, which resumes where it was.

    @ivar got: How often each arrived.
    """

    def __init__(self, bus: Bus, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self.got: Counter[str] = Counter()
        self.subscribed = threading.Event()
        self._bus = bus
        self._stopped = stopped
        self._position: dict[str, Any] | None = None

    def run(self) -> None:
        while not self._stopped.is_set():
            wish: dict[str, Any] = {
                "action": "subscribe",
                "topic": "stix2/sighting",
                "protocol": "tbvast/1",
                "name": "bench",
            }
            if self._position is not None:
                wish["resume"] = self._position
            reply = self._bus.ask(wish)
            if not reply or reply.get("status") != "success":
                time.sleep(0.2)
                continue
            if self._position is None:
                self._position = {"plugin": reply["plugin"], "number": reply["number"]}
            self.subscribed.set()
            self._receive(reply, self._position)

    def _receive(self, reply: dict[str, Any], position: dict[str, Any]) -> None:
        topic = reply["topic"]
        with self._bus.context.socket(zmq.SUB) as receiving:
            receiving.subscribe(topic)
            receiving.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
            while not self._stopped.is_set():
                if not receiving.poll(1000):
                    beat = self._bus.ask({"action": "heartbeat", "topic": topic}, 2.0)
                    if not beat or beat["status"] != "success":
                        return
                    continue
                head, _, payload = receiving.recv().partition(b" ")
                batch = json.loads(payload)
                if head.decode() != topic + "batch" or batch["after"] != position["number"]:
                    return
                for _, _, sighting in batch["items"]:
                    self.got[key(sighting)] += 1
                position["number"] = batch["until"]


class Bus:
    """
    The plugin, as its clients know it.

    @ivar context: Whose sockets its clients use.
    """

    def __init__(self, manage: int) -> None:
        self.context = zmq.Context()
        self.context.linger = 0
        self._manage = manage

    def ask(self, request: dict[str, Any], limit: float = 5.0) -> Any:
        """
        @return: The reply; C{None} if there is none in time.
        """
        with self.context.socket(zmq.REQ) as asking:
            asking.connect(f"tcp://127.0.0.1:{self._manage}")
            asking.send_json(request)
            return asking.recv_json() if asking.poll(round(limit * 1000)) else None


def _outcomes(documents: list[dict[str, Any]], reply: dict[str, Any]) -> Iterator[str]:
    """
    What became of documents that may have been published before, when the reply was lost;
    some of those were valid for a short time only.
    """
    outcomes = reply.get("outcomes", ["refused"])
    for place, (document, outcome) in enumerate(zip(documents, outcomes, strict=False)):
        reason = reply.get("reasons", {}).get(str(place), "")
        ended = "valid_until" in document and "no longer valid" in reason
        yield "repeated" if outcome == "outdated" and ended else outcome


class Load:
    """
    What is published, removed and imported, until told to stop.

    @ivar accepted: The numbers of the indicators that were accepted, by id.
    @ivar sent: Those that were sent on sub, where nobody says what became of them.
    @ivar versions: What was accepted.
    @ivar removed: The ids of those that were, or may be, removed, or expire.
    @ivar events: The numbers of the events, with those of the indicators that they match.
    """

    def __init__(self, bus: Bus, sub: int, node: Node, folder: Path, journal: Journal) -> None:
        self.accepted: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.versions: set[str] = set()
        self.removed: set[str] = set()
        self.events: dict[int, int] = {}
        self.failed_imports = 0
        self._bus = bus
        self._sub = sub
        self._node = node
        self._folder = folder
        self._journal = journal
        self._stopping = threading.Event()
        self._numbers = 0
        self._flows = 0
        self._lock = threading.Lock()
        self._matched: list[int] = []
        self._threads = [
            threading.Thread(target=each, daemon=True)
            for each in (self._publish, self._publish_on_sub, self._happen)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(SETTLE)
            if thread.is_alive():
                raise AssertionError("the load does not end: something is not accepted any more")

    def _next(self, count: int) -> range:
        with self._lock:
            self._numbers += count
            return range(self._numbers - count, self._numbers)

    def _insist(self, documents: list[dict[str, Any]]) -> None:
        """
        Publish until all were accepted.
        """
        good = {"accepted", "repeated"}
        while not self._stopping.is_set() or documents:
            reply = self._bus.ask({"action": "publish", "documents": documents})
            if reply and set(_outcomes(documents, reply)) <= good:
                self.versions |= {version(document) for document in documents}
                return
            if reply and "outcomes" in reply:
                print(f"    not accepted: {reply['outcomes']} {reply.get('reasons')}", flush=True)
            time.sleep(0.2)

    def _publish(self) -> None:
        before: list[dict[str, Any]] = []
        while not self._stopping.is_set():
            numbers = self._next(STEP)
            early, late = numbers[: STEP // 2], numbers[STEP // 2 : STEP - REMOVED - EXPIRING]
            self._matched += early  # these happen before anybody knows that they matter
            documents = [indicator(number) for number in numbers]
            for document in documents[-EXPIRING:]:
                document["valid_until"] = date(time.time() + VALID)
                self.removed.add(document["id"])
            self._insist(documents)
            self.accepted |= {d["id"]: n for d, n in zip(documents, numbers, strict=True)}
            self._matched += late
            self._remove(before)
            before = documents[-REMOVED - EXPIRING : -EXPIRING]
            time.sleep(PAUSE)

    def _remove(self, documents: list[dict[str, Any]]) -> None:
        if documents:
            self.removed |= {document["id"] for document in documents}
            more = {"x_threatbus_update": "REMOVE"}
            now = date(time.time())
            self._insist([{**document, "modified": now, **more} for document in documents])

    def _publish_on_sub(self) -> None:
        heard = False
        with self._bus.context.socket(zmq.XPUB) as publishing:
            publishing.set(zmq.IMMEDIATE, 1)
            publishing.connect(f"tcp://127.0.0.1:{self._sub}")
            while not self._stopping.is_set():
                while publishing.poll(0):
                    heard = publishing.recv()[:1] == b"\1"
                if not heard:
                    time.sleep(0.1)
                    continue
                for number in self._next(ON_SUB):
                    document = indicator(number)
                    self.sent[document["id"]] = number
                    publishing.send(b"stix2/indicator " + json.dumps(document).encode())
                    if number % SEEN == 0:
                        self._matched.append(number)
                time.sleep(PAUSE)

    def _happen(self) -> None:
        """
        Have events happen, by turns in both ways.
        """
        turn = 0
        while not self._stopping.is_set():
            numbers = self._matched[:AT_ONCE]
            del self._matched[: len(numbers)]
            if not numbers:
                time.sleep(0.1)
                continue
            turn += 1
            flows = {self._flow(): number for number in numbers}
            self.events |= flows
            if not (self._by_client if turn % 2 else self._in_node)(flows):
                self.failed_imports += 1
                self._matched += numbers  # again, by other events: those may be there
                time.sleep(0.5)

    def _flow(self) -> int:
        self._flows += 1
        return self._flows

    def _by_client(self, flows: dict[int, int]) -> bool:
        return self._node.import_events([flow(n, address(i)) for n, i in flows.items()], 30.0)

    def _in_node(self, flows: dict[int, int]) -> bool:
        path = self._folder / "eve.json"
        path.write_text(
            "".join(
                json.dumps(event) + "\n"
                for number, each in flows.items()
                for event in mixed(number, address(each))
            )
        )
        pipeline = f'pipeline_run {{ from_file "{path}" {{ read_suricata }} | import }}'
        return self._node.run(pipeline, limit=30.0) is not None


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Run:
    """
    One run with one seed.
    """

    def __init__(self, folder: Path, seed: int, cut: bool) -> None:
        self._random = random.Random(seed)
        manage, pub, sub, engine = free_ports(4)
        self.relay = Relay([manage, pub, sub]) if cut else None
        host = ASIDE if cut else "127.0.0.1"
        config = folder / "tap.conf"
        config.write_text(SETTINGS)
        library = None if cut else faketime()
        state = folder / "plugin"
        self.plugin = Service(
            folder, "tbvast-plugin", library, self._random, f"--config={config}",
            f"--state-dir={state}", f"--manage={manage}", f"--pub={pub}", f"--sub={sub}",
        )  # fmt: skip
        self.bridge = Service(
            folder, "tbvast-bridge", library, self._random, f"--config={config}",
            f"--threatbus={host}:{manage}", f"--state-dir={folder / 'bridge'}",
            f"--vast-listen=127.0.0.1:{engine}",
        )  # fmt: skip
        self.services = [self.plugin, self.bridge]
        self.faults: Counter[str] = Counter()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._frozen: set[int] = set()
        self._node = Node(folder / "bridge" / "client" / "client.yaml")
        self._bus = Bus(manage)
        self.journal = Journal(state / "journal.db")
        self._stopped = threading.Event()
        self.intel = OldSubscriber(self._bus, self._stopped)
        self.sightings = SightingSubscriber(self._bus, self._stopped)
        self.load = Load(self._bus, sub, self._node, folder, self.journal)

    # The faults

    def _victim(self, name: str) -> int | None:
        """
        The process of a name, if there is one at the moment.
        """
        if name in ("plugin", "bridge"):
            return (self.plugin if name == "plugin" else self.bridge).pid
        parent, word = {
            "writer": (self.plugin, "tbvast.bus.journal.worker"),
            "store": (self.bridge, "tbvast.bridge.store.worker"),
            "node": (self.bridge, "tenzir-node "),
            "transform": (self.bridge, "cat "),
        }[name]
        lines = {pid: command_line(pid) for pid in children(parent.pid)}
        if name in ("writer", "store"):  # a service's only Python child, whatever it is called
            found = [pid for pid, each in lines.items() if " -m tbvast." in each or word in each]
        else:
            found = [pid for pid, each in lines.items() if each.startswith(word)]
        return found[0] if found else None

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _thaw(self, name: str, pid: int, kill: bool) -> None:
        self._frozen.discard(pid)
        if command_line(pid):
            self._signal(pid, signal.SIGKILL if kill else signal.SIGCONT)

    def fault(self) -> bool:
        """
        Do one harm.

        @return: Whether there was something to do it to.
        """
        if self.relay is not None:
            self.relay.cut(10.0)
            self.faults["cut"] += 1
            return True
        way = self._random.random()
        if way < 0.15:
            self._step()
            return True
        name = self._random.choice(("plugin", "writer", "bridge", "store", "node", "transform"))
        if way < 0.22:
            name = self._random.choice(("plugin", "bridge"))
        pid = self._victim(name)
        if pid is None or pid in self._frozen:
            return False
        if way < 0.22:
            self._signal(pid, signal.SIGTERM)
            self.faults[f"{name} asked to end"] += 1
        elif way < 0.45:
            self._signal(pid, signal.SIGSTOP)
            self._frozen.add(pid)
            at = time.monotonic() + self._random.uniform(*FREEZE)
            kill = self._random.random() < 0.5
            heapq.heappush(self._later, (at, pid, lambda: self._thaw(name, pid, kill)))
            self.faults[f"{name} frozen" + (" and killed" if kill else "")] += 1
        else:
            self._signal(pid, signal.SIGKILL)
            self.faults[f"{name} killed"] += 1
        return True

    def _step(self) -> None:
        services = self._random.choice(([self.plugin], [self.bridge], self.services))
        offset = self._random.choice((0, *STEPS, *(-step for step in STEPS)))
        for service in services:
            service.clock.set(offset)
        self.faults["clock steps"] += 1

    def _tend(self, seconds: float) -> None:
        """
        Start again what has ended, and thaw what was frozen, for some time.
        """
        until = time.monotonic() + seconds
        while True:
            while self._later and self._later[0][0] <= time.monotonic():
                heapq.heappop(self._later)[2]()
            for service in self.services:
                service.ensure()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def run(self, faults: int) -> list[str]:
        """
        @return: What is wrong.
        """
        self.intel.start()
        self.sightings.start()
        for each in (self.intel, self.sightings):
            if not each.subscribed.wait(60.0):
                raise AssertionError("the plugin does not start")
        self.load.start()
        done, tries = 0, 0
        while done < faults:
            tries += 1
            self._tend(self._random.uniform(*GAP))
            done += self.fault()
            if tries % 40 == 0:
                print(f"    {done} faults, {len(self.load.accepted):,} accepted", flush=True)
        while self._later:
            self._tend(0.5)
        self._tend(QUIET)
        for service in self.services:
            service.clock.set(0)
        ending = threading.Thread(target=self.load.stop)
        ending.start()
        while ending.is_alive():
            self._tend(0.2)
        try:
            return self._settle()
        finally:
            self._stopped.set()
            for service in reversed(self.services):
                service.stop()
            for thread in (self.intel, self.sightings):
                thread.join(20.0)
            self._bus.context.destroy(linger=0)

    # What came of it

    def _settle(self) -> list[str]:
        best, moved = sys.maxsize, time.monotonic()
        expired = time.monotonic() + VALID + 5.0
        while True:
            self._tend(1.0)
            open_ = self.missing()
            count = sum(len(each) for each in open_.values())
            if count < best:
                best, moved = count, time.monotonic()
            if not count and time.monotonic() > expired:
                break
            if time.monotonic() - moved > SETTLE:
                break
        self._tend(3.0)  # what comes twice may come later
        self.lost = self.missing()
        self.doubled = self._doubled()
        problems = [
            f"{len(each):,} {name}: {', '.join(sorted(each)[:SHOWN])}"
            for name, each in (*self.lost.items(), *self.doubled.items())
            if each
        ]
        if self.intel.ended:
            problems.append(f"the old subscription was ended {self.intel.ended} times")
        return problems

    def _in_force(self) -> dict[str, str]:
        """
        The addresses that have to be in the engine, by id.
        """
        known = dict(self.load.accepted)
        for id, number in self.load.sent.items():
            if id in self._journaled:
                known[id] = number
        return {id: address(n) for id, n in known.items() if id not in self.load.removed}

    def expected(self, stored: Iterable[int]) -> set[str]:
        """
        The sightings that have to be there.

        @param stored: The events that the node still holds.
        """
        ids = {number: id for id, number in (*self.load.accepted.items(), *self.load.sent.items())}
        in_force = self._in_force()
        there = set(stored)
        return {
            f"{ids[each]} {number}"
            for number, each in list(self.load.events.items())
            if number in there and ids.get(each) in in_force
        }

    def missing(self) -> dict[str, list[str]]:
        """
        What is lost so far, by where it is not.
        """
        self.journal.read()
        journal, load = self.journal, self.load
        self._journaled = {each.partition(" ")[0] for each in journal.versions}
        sent = {each for each in journal.versions if each.partition(" ")[0] in load.sent}
        due = load.versions | sent
        held, stored = self._node.held(), self._node.stored("flow_id")
        if held is None or stored is None:
            return {"the engine does not answer": ["?"]}
        self._held = held
        in_force = self._in_force()
        in_engine = {id for id, _ in held}
        reported = set(journal.sightings)
        self._expected = self.expected(stored) | {
            each for each in reported if each.partition(" ")[0] in in_force
        }
        self._lost_in_node = len(set(load.events) - stored)
        return {
            "accepted, and not in the journal": list(load.versions - journal.versions),
            "not at the old subscriber": list(due - set(self.intel.got)),
            "in force, and not in the engine": [id for id in in_force if id not in in_engine],
            "not in force, and in the engine": [id for id in in_engine if id not in in_force],
            "not sighted": list(self._expected - reported),
            "sighted, and not at the subscriber": list(reported - set(self.sightings.got)),
        }

    def _doubled(self) -> dict[str, list[str]]:
        def twice(counts: Counter[Any]) -> list[str]:
            return [str(each) for each, count in counts.items() if count > 1]

        return {
            "doubled in the journal": twice(self.journal.sightings),
            "doubled at the subscriber": twice(self.sightings.got),
            "doubled in the engine": twice(self._held),
        }

    def table(self) -> list[tuple[str, Any]]:
        """
        What happened, and what came of it.
        """
        load = self.load
        again = self.intel.got.total() - len(self.intel.got)
        return [
            *sorted(self.faults.items()),
            ("starts", f"{self.plugin.starts} of the plugin, {self.bridge.starts} of the bridge"),
            ("accepted by request", len(load.versions)),
            ("sent on sub", f"{len(load.sent):,}, {len(self._journaled & set(load.sent)):,} taken"),
            ("removed, or expired", len(load.removed)),
            ("in force", len(self._in_force())),
            ("events", f"{len(load.events):,}, {self._lost_in_node:,} not with the node any more"),
            ("imports that failed", load.failed_imports),
            ("sightings expected", len(self._expected)),
            ("old subscriber", f"{len(self.intel.got):,} versions, {again:,} more than once"),
            ("lost", sum(map(len, self.lost.values()))),
            ("doubled", sum(map(len, self.doubled.values()))),
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n\n")[0])
    parser.add_argument("--faults", type=int, default=200, help="how many in each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--cut", action="store_true", help="cut the network instead, 10 s each")
    parser.add_argument("--logs", type=Path, help="where to keep the logs of the services")
    options = parser.parse_args(arguments)
    if not options.cut and faketime() is None:
        print(NO_FAKETIME, file=sys.stderr)
        return 2
    bad = 0
    for seed in options.seeds:
        print(f"seed {seed}, {options.faults} faults", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="tbvast-faults-") as folder:
            run = Run(Path(folder), seed, options.cut)
            problems = run.run(options.faults)
            for service in run.services:
                if options.logs:
                    options.logs.mkdir(parents=True, exist_ok=True)
                    kept = options.logs / f"{seed}-{service.name}.log"
                    kept.write_bytes(service.log.read_bytes())
        for name, value in [*run.table(), ("seconds", round(time.monotonic() - began))]:
            print(f"    {name:24} {value if isinstance(value, str) else f'{value:,}'}")
        for problem in problems:
            print(f"    {problem}")
        sys.stdout.flush()
        bad += bool(problems)
    print("nothing is lost, and nothing doubled" if not bad else f"{bad} of the runs failed")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
