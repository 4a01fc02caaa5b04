"""
C{vast-threatbus} as the client of a plugin.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.functional import peer_vast
from tests.functional.components import wait_until
from tests.functional.peers import VAST_THREATBUS, PeersTestCase, publish, sighting, write_command
from tests.functional.raw import RawClient
from tests.functional.test_main_job import indicator


class StandIn:
    """
    The node of the stand-in for C{vast}, and its command.

    @ivar command: The path of the command.
    @ivar node: The folder that is the node.
    """

    def __init__(self, folder: Path) -> None:
        self.node = folder / "node"
        self.node.mkdir()
        for name in ("calls", "events", "matches"):
            (self.node / name).touch()
        self.command = folder / "vast"
        words = shlex.join([sys.executable, peer_vast.__file__])
        write_command(self.command, f'exec {words} "$@"')

    def calls(self, *words: str) -> list[list[str]]:
        """
        @return: The commands so far that begin with some words.
        """
        calls = map(json.loads, (self.node / "calls").read_text().splitlines())
        return [call for call in calls if call[: len(words)] == [*words]]

    def add(self, name: str, document: Any) -> None:
        """
        Add a line to a file of the node, in one write.
        """
        with (self.node / name).open("a") as file:
            file.write(json.dumps(document) + "\n")


class VastThreatbusTests(PeersTestCase):
    """
    The old bridge, which neither knows nor notices what bus it has.
    """

    timeout = 400

    async def test_whole_way(self) -> None:
        """
        It gets the snapshot, then what is published and withdrawn, and its
        sightings arrive, of past events and of present ones. So it goes on after
        restarts of the plugin, be they short or long.
        """
        folder = self.directory()
        vast = StandIn(folder)
        bus = self.plugin()
        bridge = await self.peer(
            VAST_THREATBUS,
            {
                "threatbus": str(bus.manage),
                "vast": str(vast.node),
                "vast_binary": str(vast.command),
                "snapshot": 30,
                "live_match": True,
                "matcher_name": "intel",
                "retro_match": True,
                "metrics": {"interval": 0, "filename": str(folder / "metrics")},
            },
        )
        await bus.start()
        addresses = [indicator(f"[ipv4-addr:value = '203.0.113.{n}']") for n in range(4)]
        past = {"timestamp": "2024-03-01T12:00:00Z", "dest_ip": "203.0.113.0"}
        vast.add("events", past)

        await publish(bus, addresses[0])
        client = await self.subscriber(bus.manage.port)
        bridge.start()
        await deferToThread(self.wait_for, vast, 1)
        self.assertEqual(
            vast.calls("matcher", "add"),
            [["matcher", "add", "intel", "203.0.113.0", f"threatbus__{addresses[0]['id']}"]],
        )
        seen = await deferToThread(sighting, client, addresses[0])
        self.assertEqual(seen["x_threatbus_match_type"], "RETRO")
        self.assertEqual(seen["x_threatbus_sighting_context"], past)

        await publish(bus, addresses[1])
        await deferToThread(self.wait_for, vast, 2)
        await self.sighted(vast, client, addresses[1])

        await publish(bus, addresses[0] | {"x_threatbus_update": "REMOVE"})
        removed = ["matcher", "remove", "intel", "203.0.113.0"]
        await deferToThread(wait_until, lambda: vast.calls("matcher", "remove") == [removed])

        # A short restart goes unnoticed: the subscription outlives it.
        await bus.stop()
        await publish(bus := await self.restarted(bus), addresses[2])
        await deferToThread(self.wait_for, vast, 3)
        client = await self.subscriber(bus.manage.port)
        await self.sighted(vast, client, addresses[2])

        # After a long one it subscribes again, and gets the snapshot again.
        await bus.stop()
        await bridge.saw("Subscription with Threat Bus host became invalid")
        await publish(bus := await self.restarted(bus), addresses[3])
        await bridge.saw("Unsubscription successful")
        await deferToThread(self.wait_for, vast, 6)
        added = [call[3] for call in vast.calls("matcher", "add")]
        self.assertEqual(set(added[3:]), {f"203.0.113.{n}" for n in (1, 2, 3)})
        client = await self.subscriber(bus.manage.port)
        await deferToThread(wait_until, lambda: len(vast.calls("matcher", "attach")) == 2)
        await self.sighted(vast, client, addresses[3])

        await bridge.stop()
        await bus.saw("unsubscribed after", times=2)

    def wait_for(self, vast: StandIn, count: int) -> None:
        """
        Wait until the matcher has been given some number of values.
        """
        wait_until(lambda: len(vast.calls("matcher", "add")) >= count)

    async def sighted(self, vast: StandIn, client: RawClient, known: dict[str, Any]) -> None:
        """
        Have the matcher match, and see the sighting.
        """
        value = known["pattern"].split("'")[1]
        event = {"timestamp": "2024-03-01T12:00:01Z", "dest_ip": value}
        match = {"value": value, "context": f'"threatbus__{known["id"]}"'}
        line = {"indicator": match, "type": "suricata.flow", "event": event}
        seen = await deferToThread(sighting, client, known, lambda: vast.add("matches", line))
        self.assertEqual(seen["x_threatbus_indicator_value"], value)
        self.assertEqual(seen["x_threatbus_match_type"], "LIVE")
        self.assertEqual(seen["x_threatbus_sighting_context"], event)
