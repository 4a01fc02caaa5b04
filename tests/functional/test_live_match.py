"""
The live match in a real node: whole whatever is fed in, and known to be.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from devtools.services import free_ports, twistd
from tbvast.engines.tenzir import engine as tenzir_engine
from tbvast.engines.tenzir import feeds, markers, pipelines
from tbvast.engines.tenzir.engine import TenzirEngine
from tbvast.errors import EngineCallFailed
from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry, Match, Progress
from tests.doubles_engine import ADDRESS, HOST, event, unheeded
from tests.functional.blocking import BlockingProcess, PluginProcess
from tests.functional.components import RealNode, require_tenzir, run, wait_until

LIMIT = 120.0
"""
Seconds that anything may take.
"""

ADDRESS_VALUE = "203.0.113.66"
NAME = "bad.example"
PATTERNS = (f"[ipv4-addr:value = '{ADDRESS_VALUE}']", f"[domain-name:value = '{NAME}']")

FROZEN_SECONDS = 2.0
"""
Seconds after the storage of the events, in which the live match finds them while nobody reads.
"""


def indicator(number: int, pattern: str) -> dict[str, Any]:
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--00000000-0000-4000-8000-{number:012x}",
        "created": "2024-01-01T00:00:00.000Z",
        "modified": "2024-01-01T00:00:00.000Z",
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": "2024-01-01T00:00:00Z",
    }


def eve(number: int, kind: str, hit: bool = True) -> dict[str, Any]:
    """
    A Suricata event; with C{hit}, one that holds one of the indicators' values.
    """
    name = NAME if hit and kind != "flow" else "good.example"
    more: dict[str, dict[str, Any]] = {
        "flow": {"flow": {"pkts_toserver": number}},
        "dns": {
            "dns": {
                "type": "answer",
                "rrname": name,
                "answers": [{"rdata": f"10.0.0.{n}"} for n in range(number % 4)],
            }
        },
        "http": {"http": {"hostname": name, "url": f"/{number}"}},
        "tls": {"tls": {"sni": name, "version": "TLS 1.3"}},
        "alert": {"alert": {"signature_id": number}, "http": {"hostname": name, "url": "/"}},
        "stats": {"stats": {"uptime": number}},
    }
    return {
        "timestamp": "2026-03-01T12:00:00.000000+0000",
        "flow_id": number,
        "event_type": kind,
        "src_ip": "10.0.0.1",
        "dest_ip": ADDRESS_VALUE if hit and kind == "flow" else "10.0.0.2",
        **more[kind],
    }


SENSOR_PLUGINS = ("accept_unix_socket", "read_suricata", "read_csv")
"""
The plugins that the pipelines of sensors need.
"""


class Sensor:
    """
    Feeds events into a node through a pipeline that runs in it, as a sensor does.
    """

    def __init__(
        self, client: Path, read: str = "read_suricata _batch_timeout=10ms", then: str = ""
    ) -> None:
        """
        @param client: The configuration file of the node's clients.
        @param read: Reads what is fed.
        @param then: Is done with it before it is imported.
        """
        self._folder = tempfile.TemporaryDirectory()  # its path is short enough
        path = Path(self._folder.name) / "eve.sock"
        pipeline = f'accept_unix_socket "{path}" {{ {read} }}\n{then}\nimport\n'
        run(client, pipelines.start_pipeline(pipeline, f"sensor-{id(self)}", 3600.0), "")
        wait_until(path.exists, LIMIT)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))

    def feed(self, events: Iterable[dict[str, Any]]) -> None:
        self.write(b"".join(json.dumps(each).encode() + b"\n" for each in events))

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        self._socket.close()
        self._folder.cleanup()


def stored(client: Path) -> int:
    """
    How many events of a sensor a node has.
    """
    counted = run(
        client,
        'export\nwhere @name.starts_with("suricata.")\nsummarize count=count()\nwrite_ndjson',
        "",
    )
    return int(json.loads(counted)["count"]) if counted.strip() else 0


class BridgeTestCase(SynchronousTestCase):
    """
    A test with a bus and a bridge, as processes, and a node.
    """

    embedded = False
    deep = ""

    def setUp(self) -> None:
        require_tenzir(self)
        self.folder = Path(self.mktemp()).resolve() / self.deep
        for name in ("bus", "bridge"):
            (self.folder / name).mkdir(parents=True)
        if self.embedded:
            self.client = self.folder / "state" / "client" / "client.yaml"
            engine = {"vast_listen": f"127.0.0.1:{free_ports(1)[0]}"}
        else:
            self.node = RealNode(plugins=SENSOR_PLUGINS)
            self.addCleanup(self.node.stop)
            self.client = self.node.client
            files = msgspec.structs.asdict(self.node.tls).items()
            engine = {f"vast_{name}": path for name, path in files}
            engine["vast"] = self.node.endpoint
        self.bus = PluginProcess(self.folder / "bus")
        self.addCleanup(self.bus.stop)
        config = self.folder / "tap.conf"
        settings = {"heartbeat": 1.0, "snapshot": 30, "retro_match": False, **engine}
        config.write_text(json.dumps({"bridge": settings | {"vast_plugins": SENSOR_PLUGINS}}))
        self.command = twistd(
            "tbvast-bridge",
            f"--config={config}",
            f"--threatbus={self.bus.manage}",
            f"--state-dir={self.folder / 'state'}",
        )
        self.bridge = BlockingProcess(self.command, self.folder / "bridge")
        self.addCleanup(lambda: self.bridge.stop())
        self.bridge.saw("The live match is running")
        self.bus.publish([indicator(n, pattern) for n, pattern in enumerate(PATTERNS, 1)])
        self.bridge.saw("The engine took 2 entries")
        self.sensor = Sensor(self.client)
        self.addCleanup(self.sensor.close)

    def sighted(self, count: int) -> None:
        """
        Wait until there are so many sightings, and no more.
        """
        wait_until(lambda: self.bus.sightings() >= count, LIMIT)
        time.sleep(1.0)
        self.assertEqual(self.bus.sightings(), count)

    def covered(self) -> None:
        """
        Wait until it is known up to where everything is covered.
        """
        wait_until(lambda: self.bus.bridge_report().get("covered"), LIMIT)
        self.assertFalse(self.bus.bridge_report()["catching_up"])

    def signal(self, signal: int) -> None:
        os.kill(self.bridge.pid, signal)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        wait_until(lambda: not self.bridge.alive, LIMIT)

    def start_again(self) -> None:
        (self.folder / "bridge" / "log").unlink()
        self.bridge = BlockingProcess(self.command, self.folder / "bridge")


class EmbeddedTests(BridgeTestCase):
    """
    A node that the bridge has started.
    """

    embedded = True

    def test_mixed(self) -> None:
        """
        A batch of several schemas is matched, and so is what comes after it.
        """
        kinds = ("flow", "dns", "stats", "http", "alert", "tls")
        self.sensor.feed(eve(n, kinds[n % 6]) for n in range(60))
        self.sighted(50)
        for number in range(60, 64):
            self.sensor.feed([eve(number, "flow")])
            time.sleep(0.3)
        self.sighted(54)
        report = self.bus.bridge_report()
        self.assertTrue(report["live"])
        self.assertLess(report["behind"], 30)
        self.assertNotIn("cannot reach", self.bridge.log)


class DeepTests(EmbeddedTests):
    """
    The path of the state directory is longer than one of a socket may be.
    """

    deep = "a-directory-with-a-long-name/" * 5


class OtherNodeTests(BridgeTestCase):
    """
    A node that outlives the bridge.
    """

    def test_small_batches(self) -> None:
        """
        A stream of mixed events in small batches, of which one in a hundred is a hit,
        is matched as a whole.
        """
        kinds = ("flow", "dns", "http", "tls", "alert")
        events = [eve(n, kinds[n % 5], n % 100 == n // 100 % 5) for n in range(5_000)]
        for start in range(0, len(events), 50):
            self.sensor.feed(events[start : start + 50])
            time.sleep(0.02)
        self.sighted(50)

    def test_other_encoding(self) -> None:
        """
        An event with a text that is not UTF-8 is sighted like those around it.
        """
        csv = Sensor(self.client, "read_csv", '@name = "suricata.flow"')
        self.addCleanup(csv.close)
        csv.write(b"event_type,flow_id,src_ip,dest_ip,note\n")
        csv.write(b"flow,1,10.0.0.1,%b,B\xf6den\n" % ADDRESS_VALUE.encode())
        self.sighted(1)
        self.sensor.feed([eve(2, "flow")])
        self.sighted(2)
        self.assertTrue(self.bus.bridge_report()["live"])

    def test_frozen_and_killed(self) -> None:
        """
        What matches while the bridge is frozen is sighted, though it is killed then.
        """
        self.covered()
        self.signal(signal.SIGSTOP)
        kinds = ("flow", "dns", "http", "tls", "alert")
        self.sensor.feed(eve(n, kinds[n % 5]) for n in range(500))
        wait_until(lambda: stored(self.client) == 500, LIMIT)
        time.sleep(FROZEN_SECONDS)
        self.kill()
        self.start_again()
        self.sighted(500)

    def test_flooded_and_killed(self) -> None:
        """
        More than can be sighted at once is sighted all the same, though the bridge is
        killed in the middle of it, and again while it catches up; also what comes while
        it is down.
        """
        self.covered()
        kinds = ("flow", "dns", "http", "tls", "alert")
        self.sensor.feed(eve(n, kinds[n % 5]) for n in range(5_000))
        wait_until(lambda: self.bus.sightings() > 0, LIMIT)
        self.kill()
        self.sensor.feed(eve(n, "tls") for n in range(5_000, 5_100))
        self.start_again()
        self.bridge.saw("The live match is running")
        self.kill()
        self.start_again()
        self.sighted(5_100)

    def test_node_killed(self) -> None:
        """
        What the node has stored, and nobody has matched when the node is killed, is
        sighted when it is back; and so is what comes then.
        """
        self.covered()
        self.signal(signal.SIGSTOP)
        lines = [json.dumps(eve(n, "tls")) for n in range(200)]
        self.node.feed("\n".join(lines), "suricata")
        self.node.kill()
        self.signal(signal.SIGCONT)
        self.node.start()
        self.sighted(200)
        self.node.feed("\n".join(json.dumps(eve(n, "tls")) for n in range(200, 210)), "suricata")
        self.sighted(210)


class EngineTests(SynchronousTestCase):
    """
    The engine alone, on a node.
    """

    def setUp(self) -> None:
        self.binary = require_tenzir(self)
        self.node = RealNode(plugins=SENSOR_PLUGINS)
        self.addCleanup(self.node.stop)
        self.patch(feeds, "CONNECT_SECONDS", LIMIT)  # no test falls back unless it wants to

    def engine(self, **options: Any) -> TenzirEngine:
        state = Path(self.mktemp())
        engine = TenzirEngine(
            self.node.endpoint, self.binary, state, "abc", tls=self.node.tls, **options
        )
        engine.prepare()
        return engine

    @contextmanager
    def watching(self, engine: TenzirEngine, progress: Any = unheeded) -> Iterator[Any]:
        watch: Any = engine.watch(progress)
        with closing(watch):
            self.assertEqual(next(watch), [])
            yield watch

    def test_served(self) -> None:
        """
        Where the node cannot reach a socket, what it finds is fetched through its
        endpoint, mixed schemas and all, and it is known how far it is.
        """
        engine = self.engine(local=False)
        engine.add([[HOST, ADDRESS]])
        told: list[Progress] = []
        found: list[Match] = []
        sensor = Sensor(self.node.client)
        self.addCleanup(sensor.close)
        with self.watching(engine, told.append) as watch:
            kinds = ("flow", "dns", "stats", "http", "alert", "tls")
            for number in range(12):
                each = eve(number, kinds[number % 6])
                sensor.feed([{**each, "dest_ip": "203.0.113.7"}])
            while len(found) < 12:
                found += next(watch)
        self.assertEqual(sorted(match.event["flow_id"] for match in found), [*range(12)])
        self.assertTrue(told)

    def test_falls_back(self) -> None:
        """
        A node that does not connect to the socket is asked through its endpoint.
        """
        engine = self.engine()
        self.patch(feeds, "CONNECT_SECONDS", 1.0)
        self.patch(
            pipelines, "markers_from_socket", lambda path: pipelines.markers_from_topic("nobody")
        )
        engine.add([[ADDRESS]])
        with self.watching(engine) as watch:
            self.node.feed(json.dumps(event(1)), "suricata")
            self.assertEqual(len(next(watch)), 1)

    def test_first_markers_too_early(self) -> None:
        """
        If the first markers arrive before the match listens, which depends on the machine, the
        next ones do; the match does not fall back.
        """
        send, sent = feeds.SocketFeed.send, []

        def late(feed: feeds.SocketFeed, markers: markers.Round) -> None:
            sent.append(markers)
            if len(sent) > 1:
                send(feed, markers)

        self.patch(feeds.SocketFeed, "send", late)
        self.patch(feeds.ServedFeed, "opened", None)
        engine = self.engine()
        engine.add([[ADDRESS]])
        with self.watching(engine) as watch:
            self.node.feed(json.dumps(event(1)), "suricata")
            self.assertEqual(len(next(watch)), 1)

    def test_no_marker(self) -> None:
        """
        A match whose markers do not come out is given up within seconds.
        """
        self.patch(tenzir_engine, "SILENCE_SECONDS", 3.0)
        self.patch(markers, "PULSE_SECONDS", 0.1)
        engine = self.engine()
        with self.watching(engine) as watch:
            (name,) = (each.name for each in (engine._live_directories).iterdir())
            run(self.node.client, pipelines.end_pipeline(f"tbvast-markers-{name}"), "")
            e = self.assertRaises(EngineCallFailed, next, watch)
        self.assertRegex(str(e), "marker")

    def test_no_report(self) -> None:
        """
        A match that the node does not tell about its tables any more is given up.
        """
        self.patch(tenzir_engine, "REPORT_SILENCE_SECONDS", 3.0)
        self.patch(pipelines, "REPORT_SECONDS", 3600.0)
        with self.watching(self.engine()) as watch:
            e = self.assertRaises(EngineCallFailed, next, watch)
        self.assertRegex(str(e), "tables")

    def test_ended_without_sockets(self) -> None:
        """
        A match without sockets that has ended in the node, or whose import of markers has, is given
        up within seconds.
        """
        engine = self.engine(local=False)
        for kind in ("live", "markers"):
            with self.watching(engine) as watch:
                (name,) = (each.name for each in (engine._live_directories).iterdir())
                run(self.node.client, pipelines.end_pipeline(f"tbvast-{kind}-{name}"), "")
                e = self.assertRaises(EngineCallFailed, next, watch)
            self.assertRegex(str(e), "ended in the node|failed")

    def test_ended_in_node(self) -> None:
        """
        A match that has ended in the node is given up at once.
        """
        engine = self.engine()
        with self.watching(engine) as watch:
            (name,) = (each.name for each in (engine._live_directories).iterdir())
            run(self.node.client, pipelines.end_pipeline(f"tbvast-live-{name}"), "")
            self.assertRaises(EngineCallFailed, next, watch)

    def test_markers_behind_events(self) -> None:
        """
        Under load, whatever is said to be covered has come out before that was said.
        """
        self.patch(markers, "PULSE_SECONDS", 0.05)
        engine = self.engine()
        engine.add([[Entry(Observable(Kind.DOMAIN, NAME), ("indicator--1",))]])
        said: list[tuple[float, int]] = []
        found: list[Match] = []

        def progress(news: Progress) -> None:
            if news.covered is not None:
                said.append((news.covered.imported, len(found)))

        sensor = Sensor(self.node.client)
        self.addCleanup(sensor.close)
        count, rounds = 6_000, 5
        kinds = ("dns", "tls", "alert")
        with self.watching(engine, progress) as watch:
            for round in range(rounds):
                sensor.feed(
                    eve(n, kinds[n % 3], n % 10 == 0)
                    for n in range(round * count, (round + 1) * count)
                )
                expected = (round + 1) * count // 10
                while len(found) < expected:
                    found += next(watch)
            while len({each for each, _ in said}) < 3:
                sensor.feed([eve(1, "tls")])
                found += next(watch)
        for moment, before in dict(reversed(said)).items():
            text = run(
                self.node.client,
                f"export\nwhere @import_time < from_epoch({moment:.6f}s)\n"
                f'where dns?.rrname? == "{NAME}" or tls?.sni? == "{NAME}"'
                f' or http?.hostname? == "{NAME}"\n'
                "summarize count=count()\nwrite_ndjson",
                "",
            )
            self.assertLessEqual(json.loads(text)["count"] if text.strip() else 0, before)
