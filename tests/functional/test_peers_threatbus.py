"""
A Threat Bus host in place of the plugin.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from twisted.internet.threads import deferToThread

from devtools.services import free_ports
from tbvast.values import HostPort
from tests.functional.components import import_events, require_tenzir, wait_until
from tests.functional.peers import REPEAT, THREATBUS, PeersTestCase, RunningPeer, sighting
from tests.functional.raw import RawClient
from tests.functional.services import RunningBridge, RunningCommand
from tests.functional.test_main_job import indicator

ATTEMPTS = 20
"""
How often something is tried that takes effect only if somebody listens already.
"""


class ThreatbusTests(PeersTestCase):
    """
    The old host, with its backbone in memory.
    """

    timeout = 500
    serial = 0

    async def host(self) -> RunningPeer:
        """
        Start one.
        """
        self.manage, self.pub, self.sub = free_ports(3)
        ports = {"manage": self.manage, "pub": self.pub, "sub": self.sub}
        host = await self.peer(
            THREATBUS,
            {
                "plugins": {
                    "apps": {"zmq": {"host": "127.0.0.1", **ports}},
                    "backbones": {"inmem": {}},
                }
            },
        )
        await self.run_host(host)
        return host

    async def run_host(self, host: RunningPeer) -> None:
        """
        Start a host, and wait until it answers.
        """
        host.start()
        asking = RawClient(self.manage)
        self.addCleanup(asking.close)
        reply = await deferToThread(asking.ask, {"action": "heartbeat", "topic": "none"})
        self.assertEqual(reply, {"status": "error"})

    async def test_whole_way(self) -> None:
        """
        A bridge gets its snapshot from whoever has one, gets what is published, and
        its sightings reach the host's other clients. When the host is started again,
        it subscribes again.
        """
        require_tenzir(self)
        host = await self.host()
        source = await self.subscriber(self.manage, "stix2/indicator")
        watcher = await self.subscriber(self.manage)
        past, present, later = (indicator(f"[ipv4-addr:value = '203.0.113.{n}']") for n in range(3))
        config = self.directory() / "tap.conf"
        config.write_text("bridge:\n  snapshot: 30\n  heartbeat: 0.5\n")
        bridge = self.bridge(HostPort("127.0.0.1", self.manage), f"--config={config}")
        await bridge.start()

        request = await deferToThread(self.requested, source)
        self.assertEqual(request["snapshot"], 30 * 86400)
        envelope = {
            "type": "snapshotenvelope",
            "snapshot_type": 1,
            "snapshot_id": request["snapshot_id"],
            "body": past,
        }
        frame = b"threatbus/snapshotenvelope " + json.dumps(envelope).encode()
        await deferToThread(source.report, self.sub, frame)
        await bridge.saw("The engine took 1 entries")
        await self.sighted(bridge, watcher, past)
        await self.published(bridge, present)
        await self.sighted(bridge, watcher, present)

        host.signal("KILL")
        await host.wait()
        await bridge.saw("subscribing again")
        await self.run_host(self.ending(host.again()))
        await bridge.saw("Subscribed to", times=2)
        watcher = await self.subscriber(self.manage)
        await self.published(bridge, later)
        for known in (past, present, later):
            await self.sighted(bridge, watcher, known)
        self.assertEqual(await bridge.stop(), 0)

    async def test_publish(self) -> None:
        """
        C{tbvast publish} sends to the sub endpoint, since the host takes indicators
        nowhere else, and says that nobody answers for them.
        """
        await self.host()
        watcher = await self.subscriber(self.manage, "stix2/indicator")
        known = [indicator(f"[ipv4-addr:value = '203.0.113.{n}']") for n in range(100)]
        bundle = json.dumps({"type": "bundle", "objects": known}).encode()
        tool = self.ending(RunningCommand(self.reactor, "tbvast"))
        tool.run(
            [
                *(sys.executable, "-m", "tbvast.cli.main", "publish"),
                *(f"--threatbus=127.0.0.1:{self.manage}", "-"),
            ],
            bundle,
        )
        self.assertEqual(await tool.wait(), 0, tool.output)
        self.assertIn("100 indicators: 100 sent", tool.lines)
        self.assertIn("is a Threat Bus", tool.output)
        received = await deferToThread(lambda: [watcher.receive()[1] for _ in known])
        self.assertEqual([each["id"] for each in received], [each["id"] for each in known])

    def requested(self, client: RawClient) -> dict[str, Any]:
        """
        Wait for a request for a snapshot.
        """
        kind, document = client.receive()
        self.assertEqual(kind, "snapshotrequest")
        request: dict[str, Any] = document
        return request

    async def published(self, bridge: RunningBridge, known: dict[str, Any]) -> None:
        """
        Publish an indicator at the sub endpoint until the bridge has it: what comes
        before ZeroMQ has connected a new subscriber, the host drops.
        """
        frame = b"stix2/indicator " + json.dumps(known).encode()
        before = taken(bridge)

        def publish() -> None:
            client = RawClient(self.manage)
            try:
                client.report(self.sub, frame)
                wait_until(lambda: taken(bridge) > before, REPEAT)
            finally:
                client.close()

        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(AssertionError):
                return await deferToThread(publish)
        await deferToThread(publish)

    async def sighted(
        self, bridge: RunningBridge, watcher: RawClient, known: dict[str, Any]
    ) -> None:
        """
        Import an event, and see the sighting.
        """
        value = known["pattern"].split("'")[1]

        def happen() -> None:
            self.serial += 1
            event = {
                "timestamp": "2024-03-01T12:00:00.000000+0000",
                "flow_id": self.serial,  # another event each time
                "event_type": "flow",
                "src_ip": "10.0.0.1",
                "dest_ip": value,
                "flow": {"pkts_toserver": 1},
            }
            import_events(bridge.client, json.dumps(event) + "\n", "suricata")

        # Again, if need be: the old host drops what comes before it has connected.
        seen = await deferToThread(sighting, watcher, known, happen)
        self.assertEqual(seen["x_threatbus_indicator_value"], value)
        self.assertEqual(seen["x_threatbus_match_type"], "LIVE")
        self.assertEqual(seen["x_threatbus_sighting_context"]["dest_ip"], value)


def taken(bridge: RunningBridge) -> int:
    """
    How often the engine has been given something.
    """
    return sum("The engine took" in line for line in bridge.lines)
