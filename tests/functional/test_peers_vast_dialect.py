"""
A client of the vast dialect, as there were in 2020; plain pyzmq, since they are no
longer to be had.
"""

from __future__ import annotations

import json
from typing import Any

import zmq
from twisted.internet.threads import deferToThread

from tbvast.protocol.manage import encode_status
from tests.functional.peers import PeersTestCase, publish, sighting
from tests.functional.raw import LIMIT
from tests.functional.test_main_job import indicator


class VastClient:
    """
    It has no heartbeat, and never subscribes again: its sockets are connected again
    by ZeroMQ, and then listen to what they listened to. Blocks.
    """

    def __init__(self, manage: int) -> None:
        """
        @param manage: The port of the manage endpoint.
        """
        self._context = zmq.Context()
        self._address = f"tcp://127.0.0.1:{manage}"
        self._sub = self._context.socket(zmq.SUB)
        self._pub = self._context.socket(zmq.PUB)
        self.topic = ""

    def _ask(self, request: dict[str, Any]) -> bytes:
        with self._context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.connect(self._address)
            socket.send_json(request)
            if not socket.poll(int(LIMIT * 1000)):
                raise AssertionError(f"no answer to {request}")
            return socket.recv()

    def subscribe(self) -> None:
        """
        Subscribe to intel, with a snapshot, and connect to both endpoints.
        """
        wish = {"action": "subscribe", "topic": "threatbus/intel", "snapshot": 30}
        reply = json.loads(self._ask(wish))
        self.topic = reply["topic"]
        self._sub.connect(f"tcp://{reply['pub_endpoint']}")
        self._sub.subscribe(self.topic)
        self._pub.connect(f"tcp://{reply['sub_endpoint']}")

    def unsubscribe(self) -> bytes:
        """
        @return: The reply.
        """
        return self._ask({"action": "unsubscribe", "topic": self.topic})

    def receive(self) -> dict[str, str]:
        """
        @return: The next document.
        """
        if not self._sub.poll(int(LIMIT * 1000)):
            raise AssertionError(f"nothing received within {LIMIT} s")
        topic, payload = self._sub.recv().decode().split(" ", 1)
        if topic != self.topic:
            raise AssertionError(f"received on {topic}, which is not {self.topic}")
        document: dict[str, str] = json.loads(payload)
        return document

    def report(self, document: dict[str, Any]) -> None:
        """
        Report a match.
        """
        self._pub.send_string(f"vast/sightings {json.dumps(document)}")

    def close(self) -> None:
        self._context.destroy(linger=1000)


class VastDialectTests(PeersTestCase):
    """
    The dialect that only the oldest clients speak.
    """

    timeout = 120

    async def test_whole_way(self) -> None:
        """
        It gets the snapshot, and what is published later that its format has words
        for; its sightings arrive. So it goes on when the plugin is restarted, even
        if it was killed, until the client unsubscribes.
        """
        bus = self.plugin()
        await bus.start()
        known = [indicator(f"[ipv4-addr:value = '203.0.113.{n}']") for n in range(4)]
        domain = indicator("[domain-name:value = 'bad.example']")
        url = indicator("[url:value = 'http://bad.example/?x=1']")
        ipv6 = indicator("[ipv6-addr:value = '2001:db8::1']")
        client = VastClient(bus.manage.port)
        self.addCleanup(client.close)

        await publish(bus, known[0])
        await deferToThread(client.subscribe)
        await self.received(client, known[0], "ip", "203.0.113.0")
        await publish(bus, indicator("[file:hashes.MD5 = 'd41d8cd98f00b204e9800998ecf8427e']"))
        await publish(bus, domain)
        await self.received(client, domain, "domain", "bad.example")
        await publish(bus, url)
        await self.received(client, url, "url", "http://bad.example/?x=1")
        await publish(bus, ipv6)
        await self.received(client, ipv6, "ipv6", "2001:db8::1")
        await publish(bus, known[0] | {"x_threatbus_update": "REMOVE"})
        await self.received(client, known[0], "ip", "203.0.113.0", "REMOVE")
        await self.sighted(bus.manage.port, client, domain)

        for number, signal in ((1, "TERM"), (2, "KILL")):
            bus.signal(signal)
            await bus.wait()
            await publish(bus := await self.restarted(bus), known[number])
            again = signal == "KILL"  # what was sent last may come again
            await self.received(client, known[number], "ip", f"203.0.113.{number}", again=again)
            await self.sighted(bus.manage.port, client, known[number])

        self.assertEqual(await deferToThread(client.unsubscribe), b"Success")
        await bus.saw("unsubscribed after")
        await bus.stop()
        bus = await self.restarted(bus)
        report = await bus.ask(encode_status())
        self.assertEqual(report["subscriptions"], [])

    async def received(
        self,
        client: VastClient,
        known: dict[str, Any],
        kind: str,
        ioc: str,
        operation: str = "ADD",
        again: bool = False,
    ) -> None:
        """
        See that the next that comes is an indicator, in VAST's format.

        @param again: Whether others may come again before.
        """
        document = await deferToThread(client.receive)
        while again and document["ioc"] != ioc:
            document = await deferToThread(client.receive)
        self.assertEqual(
            document,
            {
                "ioc": ioc,
                "type": kind,
                "reference": f"threatbus__{known['id']}",
                "operation": operation,
            },
        )

    async def sighted(self, manage: int, client: VastClient, known: dict[str, Any]) -> None:
        """
        Report a match, and see the sighting.
        """
        match = {
            "ts": "2024-03-01T12:00:00.000000",
            "reference": f"threatbus__{known['id']}",
            "dest_ip": "203.0.113.1",
        }
        watcher = await self.subscriber(manage)
        seen = await deferToThread(sighting, watcher, known, lambda: client.report(match))
        self.assertEqual(seen["x_threatbus_sighting_context"], {"dest_ip": "203.0.113.1"})
        self.assertEqual(seen["last_seen"], "2024-03-01T12:00:00.000000Z")
        await deferToThread(watcher.ask, {"action": "unsubscribe", "topic": watcher.topic})
