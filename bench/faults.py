"""
Kills everything, at random, under load, and counts what was lost.

A bounded load of indicators, removals and matching events runs while plugin, bridge
and engine are killed with SIGKILL, by process id, or (--cut) while the network between
plugin and bridge is cut. At the end every indicator accepted must be in the engine
once, every removal gone, and every expected sighting in the journal and at a sighting
subscriber once. Prints a table; the exit status is 0 if nothing was lost or doubled.

    python bench/faults.py [--kills 30] [--seeds 1 2 3] [--cut]
"""

from __future__ import annotations

import argparse
import contextlib
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
from pathlib import Path
from typing import Any

import zmq

from tbvast.bridge.engines import binaries
from tbvast.bridge.engines.tenzir import CLIENT_SETTINGS, TenzirEngine
from tbvast.demo.services import free_ports, twistd
from tbvast.errors import EngineError
from tbvast.intel.observables import Kind

SETTLE = 180.0
"""
Seconds that everything has to come to rest after the last fault.
"""

ASIDE = "127.0.0.2"
"""
Another address of the loopback interface, where the relay listens.
"""

STEP = 20
"""
How many indicators are published, and events imported, at a time.
"""

REMOVED = 0.2
"""
The part of the indicators that is removed again.
"""


class Service:
    """
    One of the services as a child process, started again whenever it was killed.
    """

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self._folder = folder
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        log = (self._folder / f"{self.name}.log").open("ab")
        self._process = subprocess.Popen(
            twistd(self.name, *self._arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def ensure(self) -> None:
        """
        Start it again if it has ended.
        """
        if self._process.poll() is not None:
            self.start()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


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


def indicator(number: int, **more: Any) -> dict[str, Any]:
    """
    An indicator of an address of its own.
    """
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid5(uuid.NAMESPACE_OID, str(number))}",
        "created": "2024-01-01T00:00:00Z",
        "modified": "2024-01-01T00:00:00Z",
        "pattern": f"[ipv4-addr:value = '{address(number)}']",
        "pattern_type": "stix",
        "valid_from": "2024-01-01T00:00:00Z",
        **more,
    }


def address(number: int) -> str:
    return f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}"


class Run:
    """
    One run with one seed.
    """

    def __init__(self, folder: Path, seed: int, cut: bool) -> None:
        self.random = random.Random(seed)
        self._folder = folder
        self._context = zmq.Context()
        self._context.linger = 0
        manage, pub, sub, self._engine_port = free_ports(4)
        self._manage = manage
        self._state = folder / "plugin"
        self.relay = Relay([manage, pub, sub]) if cut else None
        bus = ASIDE if cut else "127.0.0.1"
        ports = [f"--manage={manage}", f"--pub={pub}", f"--sub={sub}"]
        self.plugin = Service(folder, "tbvast-plugin", f"--state-dir={self._state}", *ports)
        self._config = folder / "tap.conf"
        self._config.write_text(
            "bridge:\n  heartbeat: 1.0\n  snapshot: 30\n  retro_match_max_events: 0\n"
        )
        self.bridge = Service(
            folder,
            "tbvast-bridge",
            f"--config={self._config}",
            f"--threatbus={bus}:{manage}",
            f"--state-dir={folder / 'bridge'}",
            f"--vast-listen=127.0.0.1:{self._engine_port}",
        )
        self.accepted: dict[str, int] = {}
        self.removed: set[str] = set()
        self.expected: set[tuple[str, int]] = set()
        self.sent = 0
        self.stopping = threading.Event()
        self.seen: Counter[str] = Counter()
        (folder / "client.yaml").write_text(CLIENT_SETTINGS)

    # The load

    def ask(self, request: dict[str, Any], limit: float = 5.0) -> Any:
        """
        @return: The reply; C{None} if there is none in time.
        """
        with self._context.socket(zmq.REQ) as socket:
            socket.connect(f"tcp://127.0.0.1:{self._manage}")
            socket.send_json(request)
            return socket.recv_json() if socket.poll(round(limit * 1000)) else None

    def publish(self, documents: list[dict[str, Any]]) -> None:
        """
        Publish until all were accepted.
        """
        self.sent += len(documents)
        while True:
            reply = self.ask({"action": "publish", "documents": documents})
            if reply and set(reply.get("outcomes", ["refused"])) <= {"accepted", "repeated"}:
                return
            time.sleep(0.2)

    def happen(self, numbers: range) -> None:
        """
        Import an event for each indicator, until the engine has them.
        """
        events = "".join(
            json.dumps(
                {
                    "timestamp": "2024-03-01T12:00:00.000000+0000",
                    "flow_id": number,
                    "event_type": "flow",
                    "src_ip": "10.0.0.1",
                    "dest_ip": address(number),
                    "flow": {"pkts_toserver": 1},
                }
            )
            + "\n"
            for number in numbers
        )
        command = [
            binaries.client(),
            f"--endpoint=127.0.0.1:{self._engine_port}",
            f"--config={self._folder / 'client.yaml'}",
            "--connection-timeout=5s",
            "--console-verbosity=error",
            "from_stdin { read_suricata } | import",
        ]
        while True:
            try:
                done = subprocess.run(
                    command, input=events.encode(), capture_output=True, timeout=30
                )
                if done.returncode == 0:
                    return
            except subprocess.TimeoutExpired:
                continue
            time.sleep(0.2)

    def load(self) -> None:
        """
        Publish, remove, and have events happen, until told to stop.
        """
        before: list[dict[str, Any]] = []
        start = 0
        while not self.stopping.is_set():
            numbers = range(start, start + STEP)
            if start // STEP % 2:  # every other time the events come first
                self.happen(numbers)
            documents = [indicator(number) for number in numbers]
            self.publish(documents)
            self.accepted |= {d["id"]: n for d, n in zip(documents, numbers, strict=True)}
            if not start // STEP % 2:
                self.happen(numbers)
            self.expected |= {(d["id"], n) for d, n in zip(documents, numbers, strict=True)}
            self.remove(before)
            before = documents[: round(STEP * REMOVED)]
            start += STEP

    def remove(self, documents: list[dict[str, Any]]) -> None:
        """
        Remove indicators whose events have been sighted; of another one it would be
        chance whether its event still is.
        """
        found = {entry.split(" ")[0] for entry in self.journal()}
        gone = [document for document in documents if document["id"] in found]
        if gone:
            self.publish([{**document, "x_threatbus_update": "REMOVE"} for document in gone])
            self.removed |= {document["id"] for document in gone}

    def listen(self) -> None:
        """
        Subscribe to sightings, again whenever the plugin has forgotten.
        """
        position = None
        while not self.stopped.is_set():
            wish: dict[str, Any] = {
                "action": "subscribe",
                "topic": "stix2/sighting",
                "protocol": "tbvast/1",
                "name": "bench",
            }
            if position is not None:
                wish["resume"] = position
            reply = self.ask(wish)
            if not reply or reply.get("status") != "success":
                time.sleep(0.2)
                continue
            if position is None:
                position = {"plugin": reply["plugin"], "number": reply["number"]}
            self._receive(reply, position)

    def _receive(self, reply: dict[str, Any], position: dict[str, Any]) -> None:
        topic = reply["topic"]
        with self._context.socket(zmq.SUB) as socket:
            socket.subscribe(topic)
            socket.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
            while not self.stopped.is_set():
                if not socket.poll(1000):
                    beat = self.ask({"action": "heartbeat", "topic": topic}, 2.0)
                    if not beat or beat["status"] != "success":
                        return
                    continue
                head, _, payload = socket.recv().partition(b" ")
                batch = json.loads(payload)
                if head.decode() != topic + "batch" or batch["after"] != position["number"]:
                    return
                for _, _, sighting in batch["items"]:
                    self.seen[key(sighting)] += 1
                position["number"] = batch["until"]

    # The faults

    def engine_pid(self) -> int | None:
        """
        The embedded engine's process.
        """
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rpartition(")")[2].split()[1]) != self.bridge.pid:
                    continue
                line = (stat.parent / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if line.startswith(b"tenzir-node"):
                return int(stat.parent.name)
        return None

    def fault(self) -> str:
        """
        Do one harm.
        """
        if self.relay is not None:
            self.relay.cut(10.0)
            return "cut"
        victim = self.random.choice(("tbvast-plugin", "tbvast-bridge", "engine"))
        if victim == "engine":
            pid = self.engine_pid()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        else:
            service = self.plugin if victim == "tbvast-plugin" else self.bridge
            service.kill()
            service.start()
        return victim

    def run(self, faults: int) -> dict[str, int]:
        self.stopped = threading.Event()
        threads = [threading.Thread(target=f, daemon=True) for f in (self.load, self.listen)]
        self._until(lambda: self.ask({"action": "status"}, 1.0) is not None)
        for thread in threads:
            thread.start()
        harms: Counter[str] = Counter()
        for _ in range(faults):
            time.sleep(self.random.uniform(1.0, 8.0))
            harms[self.fault()] += 1
            self.plugin.ensure()
            self.bridge.ensure()
        self.stopping.set()
        threads[0].join(SETTLE)
        wanted = {f"{id} {serial}" for id, serial in self.expected}
        self._until(lambda: wanted <= set(self.seen) and self._in_engine() == self._wanted())
        found = self.journal()
        in_engine = self._in_engine()
        self.stopped.set()
        threads[1].join(10)
        self.bridge.stop()
        self.plugin.stop()
        self._context.term()
        print(f"    faults: {dict(harms)}")
        return {
            "sent": self.sent,
            "accepted": len(self.accepted),
            "removed": len(self.removed),
            "in engine": sum(in_engine.values()),
            "wanted there": len(self._wanted()),
            "sightings expected": len(wanted),
            "in journal": len(wanted & set(found)),
            "at subscriber": len(wanted & set(self.seen)),
            "lost": len(wanted - set(found))
            + len(wanted - set(self.seen))
            + len(set(self._wanted()) - set(in_engine)),
            "doubled": sum(n - 1 for n in found.values())
            + sum(n - 1 for n in self.seen.values())
            + sum((in_engine - Counter(self._wanted())).values()),
        }

    def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + SETTLE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.5)

    # What came of it

    def _wanted(self) -> Counter[str]:
        return Counter(
            address(number) for id, number in self.accepted.items() if id not in self.removed
        )

    def _in_engine(self) -> Counter[str]:
        engine = TenzirEngine(
            f"127.0.0.1:{self._engine_port}", binaries.client(), self._folder / "reader"
        )
        try:
            return Counter(
                entry.observable.value
                for entry in engine.contents()
                if entry.observable.kind is Kind.IP
            )
        except EngineError:
            return Counter()

    def journal(self) -> Counter[str]:
        """
        The sightings in the plugin's journal.
        """
        with sqlite3.connect(f"file:{self._state / 'journal.db'}?mode=ro", uri=True) as db:
            return Counter(
                key(json.loads(body))
                for (body,) in db.execute("SELECT body FROM entries WHERE stream = 2")
            )


def key(sighting: dict[str, Any]) -> str:
    """
    What tells one sighting from another: the indicator and the event.
    """
    event = sighting["x_threatbus_sighting_context"]
    return f"{sighting['sighting_of_ref']} {event['flow_id']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="faults in each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cut", action="store_true", help="cut the network instead, 10 s each")
    options = parser.parse_args()
    bad = 0
    for seed in options.seeds:
        print(f"seed {seed}, {options.kills} faults", flush=True)
        with tempfile.TemporaryDirectory(prefix="tbvast-faults-") as folder:
            result = Run(Path(folder), seed, options.cut).run(options.kills)
            if result["lost"] or result["doubled"]:
                bad += 1
                for log in Path(folder).glob("*.log"):
                    print(f"--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
        for name, value in result.items():
            print(f"    {name:20} {value:8}")
        sys.stdout.flush()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
