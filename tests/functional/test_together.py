"""
Indicators that want several observables in one event, all the way to the sighting.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.threads import deferToThread

from tbvast.protocol.manage import encode_publish
from tests.functional.components import import_events, require_tenzir
from tests.functional.raw import RawClient
from tests.functional.services import ServicesTestCase
from tests.functional.test_main_job import SENTINEL, indicator

NAME, ADDRESS, AGENT = "bad.example", "203.0.113.66", "Evil/1.0"

LOOKED_UP = f"[domain-name:value = '{NAME}' AND ipv4-addr:value = '{ADDRESS}']"
REQUESTED = (
    f"[domain-name:value = '{NAME}' AND (url:value = 'http://{NAME}/x?y=1' OR"
    f" network-traffic:extensions.'http-request-ext'.request_header.'User-Agent' = '{AGENT}')]"
)
NEARBY = f"[domain-name:value = '{NAME}' AND ipv4-addr:value ISSUBSET '203.0.0.0/16']"
MD5 = "d41d8cd98f00b204e9800998ecf8427e"
DROPPED = f"[file:name = 'x.exe' AND file:hashes.MD5 = '{MD5.upper()}']"
NARROWER = "[ipv4-addr:value ISSUBSET '203.0.113.64/30']"
FIRST = "[ipv4-addr:value = '203.0.113.98']"

Seen = tuple[str, int, tuple[str, ...]]
"""
A pattern, the number of an event, and the values that were seen.
"""


def suricata(number: int, kind: str, **more: Any) -> str:
    """
    A Suricata event, as EVE JSON.
    """
    common = {
        "timestamp": f"2024-03-01T12:{number // 60:02d}:{number % 60:02d}.000000+0000",
        "flow_id": number,
        "event_type": kind,
        "src_ip": "10.0.0.1",
        "src_port": 4711,
        "dest_ip": "198.51.100.1",
        "dest_port": 80,
        "proto": "TCP",
    }
    return json.dumps(common | more) + "\n"


def looked_up(number: int, name: str, *addresses: str) -> str:
    """
    A DNS answer.
    """
    answers = [{"rrname": name, "rrtype": "A", "rdata": address} for address in addresses]
    dns = {"type": "answer", "rrname": name, "rrtype": "A", "answers": answers}
    return suricata(number, "dns", dns=dns)


def requested(number: int, host: str, path: str, agent: str) -> str:
    """
    An HTTP request.
    """
    http = {"hostname": host, "url": path, "http_user_agent": agent, "http_method": "GET"}
    return suricata(number, "http", http=http)


def transferred(number: int, name: str, md5: str) -> str:
    """
    A file that was seen.
    """
    return suricata(number, "fileinfo", fileinfo={"filename": name, "md5": md5})


def logged(number: int, name: str, *addresses: str) -> str:
    """
    A DNS answer, as Zeek logs it in JSON.
    """
    event = {
        "_path": "dns",
        "ts": f"2024-03-01T12:00:{number % 60:02d}.000000Z",
        "uid": f"C{number}",
        "id.orig_h": "10.0.0.1",
        "id.orig_p": 4711,
        "id.resp_h": "198.51.100.1",
        "id.resp_p": 53,
        "proto": "udp",
        "query": name,
        "answers": list(addresses),
    }
    return json.dumps(event) + "\n"


def events(first: int) -> tuple[str, str]:
    """
    Telemetry in which each observable is seen alone, many times, and some together.

    @param first: The number of the first event.
    @return: Suricata's and Zeek's; L{EXPECTED} counts them from the first.
    """
    alone = [
        each
        for number in range(first + 20, first + 30)
        for each in (
            looked_up(number, NAME, "198.51.100.66"),
            looked_up(number + 10, "good.example", "198.51.100.7", ADDRESS),
            requested(number + 20, "good.example", "/x?y=1", AGENT),
            transferred(number + 30, "/tmp/x.exe", MD5[::-1]),
            transferred(number + 40, "/tmp/y.exe", MD5),
        )
    ]
    together = [
        looked_up(first + 1, "Bad.Example", "198.51.100.7", ADDRESS),
        requested(first + 2, NAME, "/x?y=1", "Good/1.0"),
        requested(first + 3, NAME, "/x?y=2", AGENT),
        requested(first + 4, NAME, "/x?y=2", "Good/1.0"),
        looked_up(first + 5, NAME, "203.0.99.1"),
        transferred(first + 9, "/tmp/x.exe", MD5),
    ]
    zeek = [
        logged(first + 6, NAME, "198.51.100.7"),
        logged(first + 7, "good.example", ADDRESS),
        logged(first + 8, NAME, "198.51.100.7", ADDRESS),
    ]
    return "".join(alone + together + alone), "".join(zeek)


EXPECTED = {
    (LOOKED_UP, 1, (NAME, ADDRESS)),
    (LOOKED_UP, 8, (NAME, ADDRESS)),
    (REQUESTED, 2, (NAME, f"http://{NAME}/x?y=1")),
    (REQUESTED, 3, (NAME, AGENT)),
    (DROPPED, 9, ("x.exe", MD5.upper())),
    (NEARBY, 1, (NAME, "203.0.0.0/16")),
    (NEARBY, 5, (NAME, "203.0.0.0/16")),
    (NEARBY, 8, (NAME, "203.0.0.0/16")),
}


class TogetherTests(ServicesTestCase):
    """
    Indicators are published, events imported, and sightings received.
    """

    timeout = 180

    def feed(self, *texts: str) -> Any:
        """
        Import events of Suricata, and then of Zeek.
        """

        def feed() -> None:
            for text, format in zip(texts, ("suricata", "zeek-json"), strict=False):
                import_events(self.engine_side.client, text, format)

        return deferToThread(feed)

    async def publish(self, *patterns: str) -> None:
        await self.bus.ask(encode_publish([json.dumps(indicator(p)).encode() for p in patterns]))

    async def sightings(
        self, first: int, match_type: str
    ) -> list[tuple[str, int, tuple[str, ...]]]:
        """
        @param first: The number of the first event.
        @return: Pattern, event and values of all sightings up to the sentinel's, but for
            C{NARROWER}.
        """
        documents = await deferToThread(self.client.receive_until, "203.0.113.99")
        found = []
        for sighting in documents:
            pattern = sighting["x_threatbus_indicator"]["pattern"]
            event = sighting["x_threatbus_sighting_context"]
            self.assertEqual(sighting["x_threatbus_match_type"], match_type)
            if pattern in (LOOKED_UP, REQUESTED, NEARBY, DROPPED):
                number = int(event.get("flow_id", event.get("uid", "C").strip("C")))
                values = sighting["x_threatbus_indicator_values"]
                self.assertEqual(sighting["x_threatbus_indicator_value"], values[0])
                found.append((pattern, number - first, tuple(values)))
        return found

    async def test_live_and_retro(self) -> None:
        """
        What is wanted together is sighted once in each event that holds all of it, with
        all of it, however often each part is seen alone; nothing is where it is not.
        """
        require_tenzir(self)
        self.bus = self.plugin()
        self.engine_side = self.bridge(
            self.bus.manage, "--retro-match=yes", "--retro-match-max-events=3"
        )
        await self.started(self.bus, self.engine_side)
        self.client = RawClient(self.bus.manage.port)
        self.addCleanup(self.client.close)
        await deferToThread(self.client.subscribe, "stix2/sighting")

        # What the live match has seen before is not its own when indicators come.
        await self.publish(FIRST)
        await self.engine_side.saw("The engine took 1 entries")
        await self.engine_side.saw("A search of past events")
        await self.feed(*events(100))
        await self.feed(suricata(190, "flow", dest_ip="203.0.113.99"))
        await self.feed(suricata(191, "flow", dest_ip="203.0.113.98"))
        await deferToThread(self.client.receive_until, "203.0.113.98")
        await self.publish(LOOKED_UP, REQUESTED, NEARBY, DROPPED, NARROWER)
        await self.engine_side.saw("A search of past events for 8 observables found")
        await self.publish(SENTINEL)
        self.assertEqual(sorted(await self.sightings(100, "RETRO")), sorted(EXPECTED))

        await self.engine_side.saw("The engine took 1 entries", times=2)
        await self.feed(*events(200))
        await self.feed(suricata(290, "flow", dest_ip="203.0.113.99"))
        self.assertEqual(sorted(await self.sightings(200, "LIVE")), sorted(EXPECTED))
