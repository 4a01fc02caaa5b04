"""
The main job, end to end: real plugin, real bridge, real engine.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from devtools.services import RunningBridge, RunningPlugin, until
from tbvast.protocol.manage import encode_publish
from tbvast.stix.documents import timestamp
from tests.functional.components import (
    alive,
    children,
    import_events,
    require_tenzir,
    wait_until,
)
from tests.functional.raw import RawClient
from tests.functional.services import ServicesTestCase

SHA256 = "2e4c462b3424afcc04f43429d5f001e4ef9a28143bfeefb9af2254b4df3a7c1a"

PATTERNS = {
    "ip": "[ipv4-addr:value = '203.0.113.66']",
    "domain": "[domain-name:value = 'bad.example']",
    "url": "[url:value = 'http://www.example.net/malware.exe?x=1']",
    "hash": f"[file:hashes.'SHA-256' = '{SHA256}']",
}

SENTINEL = "[ipv4-addr:value = '203.0.113.99']"


def indicator(pattern: str, **more: Any) -> dict[str, Any]:
    """
    A document for a pattern; the same one each time.
    """
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid5(uuid.NAMESPACE_URL, pattern)}",
        "created": "2024-01-01T00:00:00.000Z",
        "modified": "2024-01-01T00:00:00.000Z",
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": "2024-01-01T00:00:00Z",
        **more,
    }


def suricata(serial: int, ip: str, name: str, host: str, url: str, sha256: str) -> list[str]:
    """
    Four Suricata events, as EVE JSON.

    @param serial: Tells these events from others.
    """
    common = {
        "timestamp": f"2024-03-01T12:00:{serial % 60:02d}.000000+0000",
        "flow_id": serial,
        "src_ip": "10.0.0.1",
        "src_port": 4711,
        "dest_ip": "198.51.100.1",
        "dest_port": 80,
        "proto": "TCP",
    }
    http = {"hostname": host, "url": url, "http_method": "GET"}
    events = [
        common | {"event_type": "flow", "dest_ip": ip, "flow": {"pkts_toserver": 1}},
        common | {"event_type": "dns", "dns": {"type": "query", "rrname": name, "rrtype": "A"}},
        common | {"event_type": "http", "http": http},
        common | {"event_type": "fileinfo", "fileinfo": {"filename": "/x", "sha256": sha256}},
    ]
    return [json.dumps(event) + "\n" for event in events]


def zeek(serial: int, ip: str, name: str, host: str, url: str, sha256: str) -> list[str]:
    """
    The same as Zeek writes it, in JSON.
    """
    common = {
        "ts": f"2024-03-01T12:00:{serial % 60:02d}.000000Z",
        "uid": f"C{serial}",
        "id.orig_h": "10.0.0.1",
        "id.orig_p": 4711,
        "id.resp_h": "198.51.100.1",
        "id.resp_p": 80,
    }
    events = [
        common | {"_path": "conn", "id.resp_h": ip, "proto": "tcp"},
        common | {"_path": "dns", "query": name, "qtype_name": "A", "proto": "udp"},
        common | {"_path": "http", "host": host, "uri": url, "method": "GET"},
        {
            "_path": "files",
            "ts": common["ts"],
            "fuid": f"F{serial}",
            "source": "HTTP",
            "sha256": sha256,
        },
    ]
    return [json.dumps(event) + "\n" for event in events]


BAD = ("203.0.113.66", "Bad.Example", "www.example.net", "/malware.exe?x=1", SHA256)
GOOD = ("203.0.113.67", "good.example", "www.example.net", "/malware.exe?x=2", SHA256[::-1])
LAST = ("203.0.113.99", "last.example", "last.example", "/", "0" * 64)


class MainJobTests(ServicesTestCase):
    """
    Indicators are published, events imported, and sightings received.
    """

    timeout = 180

    def setUp(self) -> None:
        require_tenzir(self)
        self.serial = 0

    async def start(self) -> None:
        """
        Start bus and bridge.
        """
        self.bus: RunningPlugin = self.plugin()
        self.engine_side: RunningBridge = self.bridge(self.bus.manage, "--retro-match=yes")
        await self.started(self.bus, self.engine_side)

    def client(self) -> RawClient:
        """
        @return: One that gets sightings.
        """
        client = RawClient(self.bus.manage.port)
        self.addCleanup(client.close)
        return client

    def feed(self, *values: tuple[str, str, str, str, str]) -> Deferred[None]:
        """
        Import events that hold each set of values, in both forms.
        """
        eve: list[str] = []
        logs: list[str] = []
        for each in values:
            self.serial += 1
            eve += suricata(self.serial, *each)
            logs += zeek(self.serial, *each)
        # One log after the other, as Zeek writes them: the engine refuses a mixture.
        logs.sort(key=lambda line: str(json.loads(line)["_path"]))

        def feed() -> None:
            import_events(self.engine_side.client, "".join(eve), "suricata")
            import_events(self.engine_side.client, "".join(logs), "zeek-json")

        return deferToThread(feed)

    async def publish(self, *documents: dict[str, Any]) -> list[str]:
        """
        @return: The outcomes.
        """
        reply = await self.bus.ask(encode_publish([json.dumps(d).encode() for d in documents]))
        outcomes: list[str] = reply["outcomes"]
        return outcomes

    async def sightings(self, client: RawClient, count: int) -> Counter[tuple[str, str, str]]:
        """
        @return: Value, match type and schema of the next sightings.
        """
        found: Counter[tuple[str, str, str]] = Counter()
        for _ in range(count):
            kind, sighting = await deferToThread(client.receive)
            self.assertEqual(kind, "sighting")
            self.check(sighting)
            found[
                sighting["x_threatbus_indicator"]["pattern"],
                sighting["x_threatbus_match_type"],
                "zeek" if "ts" in sighting["x_threatbus_sighting_context"] else "suricata",
            ] += 1
        return found

    def check(self, sighting: dict[str, Any]) -> None:
        """
        Whatever was seen, a sighting says where and when.
        """
        known = sighting["x_threatbus_indicator"]
        self.assertEqual(sighting["type"], "sighting")
        self.assertEqual(sighting["sighting_of_ref"], known["id"])
        self.assertIn(sighting["x_threatbus_indicator_value"], known["pattern"])
        event = sighting["x_threatbus_sighting_context"]
        self.assertTrue(
            sighting["last_seen"].startswith(event.get("timestamp", event.get("ts"))[:19])
        )

    def expected(self, match_type: str, *patterns: str) -> Counter[tuple[str, str, str]]:
        return Counter(
            (pattern, match_type, source) for pattern in patterns for source in ("suricata", "zeek")
        )

    async def test_whole_way(self) -> None:
        """
        Each event that holds an indicator's value is sighted once, be it of the
        past or of the present; others are not, nor is a removed indicator. A
        restart of the plugin in between changes nothing. At the end nothing runs.
        """
        await self.start()
        client = self.client()
        await deferToThread(client.subscribe, "stix2/sighting")
        patterns = list(PATTERNS.values())

        await self.feed(BAD, GOOD)
        outcomes = await self.publish(*map(indicator, patterns))
        self.assertEqual(outcomes, ["accepted"] * 4)
        found = await self.sightings(client, 8)
        self.assertEqual(found, self.expected("RETRO", *patterns))

        await self.publish(indicator(SENTINEL))
        await self.engine_side.saw("The engine took 1 entries")
        await self.feed(GOOD, BAD, LAST)
        found = await self.sightings(client, 10)
        self.assertEqual(found, self.expected("LIVE", *patterns, SENTINEL))

        await self.publish(indicator(PATTERNS["ip"], x_threatbus_update="REMOVE"))
        await self.engine_side.saw("removed 1 in")
        await self.feed(BAD, LAST)
        found = await self.sightings(client, 8)
        self.assertEqual(found, self.expected("LIVE", *(patterns[1:]), SENTINEL))

        await self.bus.stop()
        self.bus = self.ending(self.bus.again())
        await self.bus.start()
        await self.engine_side.saw("Subscribed to", times=2)
        client = self.client()
        await deferToThread(client.subscribe, "stix2/sighting")
        await self.publish(indicator("[domain-name:value = 'good.example']"))
        await self.engine_side.saw("The engine took 1 entries", times=2)
        await self.sightings(client, 4)  # the events of the past: two feeds of both forms
        await self.feed(LAST)
        found = await self.sightings(client, 2)
        self.assertEqual(found, self.expected("LIVE", SENTINEL))

        processes = descendants(self.engine_side.pid) + descendants(self.bus.pid)
        self.assertTrue(processes)
        self.assertEqual(await self.engine_side.stop(), 0)
        self.assertEqual(await self.bus.stop(), 0)
        self.assertEqual([pid for pid in processes if alive(pid)], [])

    async def test_not_yet(self) -> None:
        """
        What is not valid yet is not seen; once it is, it is, in the past too. What
        cannot be matched is listed, with the reason.
        """
        await self.start()
        client = self.client()
        await deferToThread(client.subscribe, "stix2/sighting")
        pattern = PATTERNS["ip"]
        later = indicator(pattern, valid_from="2100-01-01T00:00:00Z")
        never = indicator("[process:name = 'x']")
        await self.publish(later, never, indicator(SENTINEL))
        await self.engine_side.saw("The engine took 1 entries")
        await self.feed(BAD, LAST)
        found = await self.sightings(client, 2)
        self.assertEqual(found, self.expected("LIVE", SENTINEL))
        store = await self.reported("not_yet")
        self.assertEqual((store["indicators"], store["not_yet"]), (2, 1))
        self.assertEqual(store["unmatched_ids"], {never["id"]: ["object path process:name"]})

        soon = timestamp(datetime.now(UTC) + timedelta(seconds=1))
        await self.publish({**later, "valid_from": soon, "modified": soon})
        found = await self.sightings(client, 2)
        self.assertEqual(found, self.expected("RETRO", pattern))
        await self.feed(BAD)
        found = await self.sightings(client, 2)
        self.assertEqual(found, self.expected("LIVE", pattern))

    async def reported(self, key: str) -> dict[str, Any]:
        """
        @return: What the bridge says of its store, once C{key} of that is something.
        """

        async def found() -> dict[str, Any]:
            status = await self.bus.ask(b'{"action":"status"}')
            for each in status["subscriptions"]:
                store: dict[str, Any] = (each.get("report") or {}).get("store") or {}
                if store.get(key):
                    return store
            return {}

        return await until(self.reactor, found, 120.0)

    async def test_killed(self) -> None:
        """
        Not even a bridge that is killed leaves its engine running.
        """
        await self.start()
        processes = descendants(self.engine_side.pid)
        self.assertTrue(processes)
        self.engine_side.signal("KILL")
        await self.engine_side.wait()
        await deferToThread(wait_until_gone, processes)

    async def test_store_worker_killed(self) -> None:
        """
        A bridge whose store is not kept any more ends, with status 1 and the reason in its
        log, and so do its processes; started again, it goes on.
        """
        await self.start()
        processes = descendants(self.engine_side.pid)
        (worker,) = [pid for pid in processes if "tbvast.bridge.store.worker" in command_line(pid)]
        os.kill(worker, signal.SIGKILL)
        await self.engine_side.saw("cannot go on: the store's worker ended with signal 9")
        self.assertEqual(await self.engine_side.wait(), 1)
        await deferToThread(wait_until_gone, processes)
        self.engine_side = self.ending(self.engine_side.again())
        await self.engine_side.start()

    async def test_interrupted(self) -> None:
        """
        Ctrl-C ends both in order, with exit status 0.
        """
        await self.start()
        for service in (self.engine_side, self.bus):
            service.signal("INT")
            self.assertEqual(await service.wait(), 0)


def descendants(pid: int) -> list[int]:
    """
    The processes that a process, and those it started, have started.
    """
    found = children(pid)
    return found + [each for child in found for each in descendants(child)]


def command_line(pid: int) -> list[str]:
    """
    What a process was started with.
    """
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(alive, pids)))
