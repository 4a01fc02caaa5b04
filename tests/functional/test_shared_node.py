"""
Several bridges on one node.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from devtools.services import twistd
from tbvast.engines.tenzir import pipelines
from tests.functional.blocking import BlockingProcess, PluginProcess, an_indicator
from tests.functional.components import RealNode, require_tenzir, wait_until
from tests.functional.test_live_match import SENSOR_PLUGINS, Sensor

LIMIT = 120.0
"""
Seconds that anything may take.
"""

NOTICED_SECONDS = 60.0
"""
Seconds within which a change of the tables is noticed and reported on a busy machine; some seven on
an idle one.
"""

OWN, COMMON = 10, 5
"""
The indicators that only one bridge has, and those that both have.
"""


class Site:
    """
    A bus, and a bridge with a state directory of its own, on somebody else's node.
    """

    def __init__(self, folder: Path, node: RealNode, **settings: Any) -> None:
        for name in ("bus", "bridge"):
            (folder / name).mkdir(parents=True)
        self.folder = folder
        self.bus = PluginProcess(folder / "bus")
        files = msgspec.structs.asdict(node.tls).items()
        settings |= {"heartbeat": 1.0, "snapshot": 30, "vast": node.endpoint}
        settings |= {f"vast_{name}": path for name, path in files}
        config = folder / "tap.conf"
        config.write_text(json.dumps({"bridge": settings}))
        self._command = twistd(
            "tbvast-bridge",
            f"--config={config}",
            f"--threatbus={self.bus.manage}",
            f"--state-dir={folder / 'state'}",
        )
        self.start()

    def start(self) -> None:
        """
        Start the bridge; returns when it matches.
        """
        (self.folder / "bridge" / "log").unlink(missing_ok=True)
        self.bridge = BlockingProcess(self._command, self.folder / "bridge")
        self.bridge.saw("The live match is running")

    def kill(self) -> None:
        """
        Kill the bridge.
        """
        os.kill(self.bridge.pid, signal.SIGKILL)
        wait_until(lambda: not self.bridge.alive, LIMIT)

    def stop(self) -> None:
        self.bridge.stop()
        self.bus.stop()


def address(number: int) -> str:
    return f"203.0.113.{number}"


def indicators(numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [an_indicator(f"[ipv4-addr:value = '{address(number)}']") for number in numbers]


def flow(number: int, destination: str) -> dict[str, Any]:
    """
    An event of Suricata.

    @param number: Tells it from others.
    """
    return {
        "timestamp": "2026-03-01T12:00:00.000000+0000",
        "flow_id": number,
        "event_type": "flow",
        "src_ip": "10.0.0.1",
        "dest_ip": destination,
        "flow": {"pkts_toserver": number},
    }


class NodeTestCase(SynchronousTestCase):
    """
    A test with a node, and a sensor that feeds it.
    """

    def setUp(self) -> None:
        require_tenzir(self)
        self.node = RealNode(plugins=SENSOR_PLUGINS)
        self.addCleanup(self.node.stop)
        self.sensor = Sensor(self.node.client)
        self.addCleanup(self.sensor.close)


class SharedNodeTests(NodeTestCase):
    """
    Two bridges with different indicators on one node.
    """

    def setUp(self) -> None:
        super().setUp()
        self.sites: list[Site] = []
        self.fed = 0
        for name in ("first", "second"):
            site = Site(Path(self.mktemp()).resolve() / name, self.node)
            self.addCleanup(site.stop)
            self.sites.append(site)
        # The first OWN addresses are the first bridge's, the next OWN the second's.
        common = indicators(range(2 * OWN, 2 * OWN + COMMON))
        for number, site in enumerate(self.sites):
            own = indicators(range(number * OWN, (number + 1) * OWN))
            site.bus.publish(own + common)
        for site in self.sites:
            site.bridge.saw(f"The engine took {OWN + COMMON} entries")

    def feed(self) -> None:
        """
        An event with each address arrives.
        """
        numbers = range(2 * OWN + COMMON)
        self.sensor.feed(flow(self.fed + number, address(number)) for number in numbers)
        self.fed += len(numbers)

    def sighted(self, *rounds: int) -> None:
        """
        Wait until each bus has the sightings of so many rounds, and no more.
        """
        expected = [count * (OWN + COMMON) for count in rounds]

        def sightings() -> list[int]:
            return [site.bus.sightings() for site in self.sites]

        wait_until(lambda: all(map(int.__ge__, sightings(), expected)), LIMIT)
        time.sleep(1.0)
        self.assertEqual(sightings(), expected)

    def test_own_tables(self) -> None:
        """
        Each sights exactly what it has indicators for, also after the other one has started
        again, and while that is away; and catches up when it is back.
        """
        first, second = self.sites
        self.feed()
        self.sighted(1, 1)
        first.bridge.stop()
        first.start()
        self.feed()
        self.sighted(2, 2)
        second.kill()
        self.feed()
        self.sighted(3, 2)
        second.start()
        self.sighted(3, 3)
        self.feed()
        self.sighted(4, 4)
        self.assertNotEqual(
            first.bus.bridge_report()["identity"], second.bus.bridge_report()["identity"]
        )


class ChangedTablesTests(NodeTestCase):
    """
    Somebody who has the certificate changes a bridge's tables.
    """

    def setUp(self) -> None:
        super().setUp()
        self.site = Site(Path(self.mktemp()).resolve(), self.node)
        self.addCleanup(self.site.stop)
        self.site.bus.publish(indicators(range(OWN)))
        self.site.bridge.saw(f"The engine took {OWN} entries")
        self.tables = pipelines.main_tables(self.identity())
        self.changes = self.fed = 0

    def identity(self) -> str:
        wait_until(lambda: self.site.bus.bridge_report().get("covered"), LIMIT)
        return str(self.site.bus.bridge_report()["identity"])

    def feed(self) -> None:
        """
        An event with each address arrives, and one with another address.
        """
        for number in range(OWN + 1):
            self.sensor.feed([flow(self.fed, address(number))])
            self.fed += 1

    def change(self, *texts: str) -> None:
        """
        Events arrive before and after a change of the tables, and until it is repaired; all are
        sighted once. Report and log say what has happened.
        """
        before = self.changes

        def known() -> int:
            return int(self.site.bus.bridge_report().get("tables_changed", {}).get("count", 0))

        def noticed() -> bool:
            self.feed()
            time.sleep(0.5)
            return known() > before

        # The node has counted the entries since the last write.
        covered = self.site.bus.bridge_report()["covered"]
        wait_until(lambda: self.site.bus.bridge_report()["covered"] > covered, LIMIT)
        self.feed()
        for text in texts:
            self.node.run(text)
        began = time.monotonic()
        wait_until(noticed, LIMIT)
        self.assertLess(time.monotonic() - began, NOTICED_SECONDS)
        wait_until(lambda: self.site.bus.bridge_report().get("live"), LIMIT)
        self.feed()
        expected = self.fed // (OWN + 1) * OWN
        wait_until(lambda: self.site.bus.sightings() >= expected, LIMIT)
        time.sleep(1.0)
        self.assertEqual(self.site.bus.sightings(), expected)
        self.changes = known()
        self.assertEqual(self.site.bridge.log.count("They are filled again"), self.changes)
        self.assertIn(self.tables.ip, self.site.bus.bridge_report()["tables_changed"]["newest"])

    def test_changed(self) -> None:
        """
        One entry is removed, all are, the tables are, or an entry is added.
        """
        erase = f'context_erase "{self.tables.ip}", key=k'
        self.change(f"from {{k: {address(3)}}}\n{erase}")
        all = ", ".join(f"{{k: {address(number)}}}" for number in range(OWN))
        self.change(f"from {all}\n{erase}")
        self.change(*map(pipelines.drop_table, reversed(self.tables)))
        self.change(f'from {{k: 1.1.1.1}}\ncontext_update "{self.tables.ip}", key=k, value=1')
