"""
The bridge's store is damaged, lost, or of an earlier version: the bus fills it again.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

from devtools.services import RunningBridge, RunningPlugin, until
from tbvast.bridge.service import STORE_NAME
from tbvast.protocol.manage import encode_publish, encode_status
from tbvast.storage.sqlite import PAGE_BYTES
from tests.functional.blocking import an_indicator
from tests.functional.components import require_tenzir
from tests.functional.services import ServicesTestCase

OLD_STATE = Path(__file__).parents[1] / "data" / "state-0.1.0"
COUNT = 20


class StoreTests(ServicesTestCase):
    """
    A bridge whose store is looked at.
    """

    timeout = 120

    async def prepare(self) -> None:
        """
        Start a plugin that has indicators.
        """
        require_tenzir(self)
        self.state = self.directory()
        self.store = self.state / STORE_NAME
        self.bus = self.plugin()
        await self.bus.start()
        documents = [
            json.dumps(an_indicator(f"[ipv4-addr:value = '198.51.100.{n}']")).encode()
            for n in range(COUNT)
        ]
        reply = await self.bus.ask(encode_publish(documents))
        self.assertEqual(reply["outcomes"], ["accepted"] * COUNT)

    def old_store(self) -> dict[str, Any]:
        """
        Put the store of 0.1.0 in place, with two sightings that have not been sent.

        @return: The other content of the store.
        """
        self.store.write_bytes(gzip.decompress((OLD_STATE / "bridge.db.gz").read_bytes()))
        contents: dict[str, Any] = json.loads((OLD_STATE / "contents.json").read_text())
        return contents

    async def until(self, bus: RunningPlugin, **expected: int) -> None:
        """
        Wait until the bus's journal, and the report of its bridge, hold so much.
        """

        async def as_expected() -> bool:
            status = await bus.ask(encode_status())
            found = dict(status["journal"])
            for each in status["subscriptions"]:
                store = each.get("report", {}).get("store", {})
                found["stored"], found["unsent"] = store.get("indicators"), store.get("unsent")
            return expected.items() <= found.items()

        await until(self.reactor, as_expected, 40.0)

    def running(self) -> RunningBridge:
        return self.bridge(self.bus.manage, "--snapshot=30", live=False, state=self.state)

    async def test_earlier_version(self) -> None:
        """
        A store of 0.1.0 is gone on with: its sightings are sent, and the bus fills it.
        """
        await self.prepare()
        self.old_store()
        bridge = self.running()
        await bridge.start()
        await self.until(self.bus, sightings=2, stored=COUNT)

    async def test_both_earlier(self) -> None:
        """
        A plugin and a bridge go on with their states of 0.1.0: the bridge resumes where it was,
        its sightings are acknowledged, and a new indicator reaches it.
        """
        require_tenzir(self)
        self.state, bus_state = self.directory(), self.directory()
        self.store = self.state / STORE_NAME
        contents = self.old_store()
        journal = bus_state / "journal.db"
        journal.write_bytes(gzip.decompress((OLD_STATE / "journal.db.gz").read_bytes()))
        self.bus = self.plugin(state=bus_state)
        await self.bus.start()
        with contextlib.closing(sqlite3.connect(journal)) as database:
            (identity,) = database.execute(
                "SELECT value FROM meta WHERE key = 'identity'"
            ).fetchone()
        # The store was made without a bus.
        with contextlib.closing(sqlite3.connect(self.store)) as database, database:
            database.execute("UPDATE position SET plugin = ?", (identity,))
        bridge = self.running()
        await bridge.start()
        self.assertIn("from number 12 on", await bridge.saw("Subscribed to"))
        known = len(contents["in force"])
        await self.until(self.bus, indicators=known, sightings=2, stored=known, unsent=0)
        document = json.dumps(an_indicator("[ipv4-addr:value = '198.51.100.7']")).encode()
        reply = await self.bus.ask(encode_publish([document]))
        self.assertEqual(reply["outcomes"], ["accepted"])
        await self.until(self.bus, indicators=known + 1, stored=known + 1)

    async def test_damaged(self) -> None:
        """
        Of one that is damaged, the sightings are carried over, and the bus fills a new one.
        """
        await self.prepare()
        self.old_store()
        with sqlite3.connect(self.store) as database:
            (root,) = database.execute(
                "SELECT rootpage FROM sqlite_schema WHERE name = 'indicators'"
            ).fetchone()
        database.close()
        with self.store.open("r+b") as file:
            file.seek((root - 1) * PAGE_BYTES)
            file.write(b"\xff" * PAGE_BYTES)
        bridge = self.running()
        started = bridge.start()
        line = await bridge.saw("is damaged")
        self.assertIn("2 sightings were carried over", line)
        await started
        await self.until(self.bus, sightings=2, stored=COUNT)

    async def test_garbage(self) -> None:
        """
        One that is no store at all is moved aside, and the bus fills a new one.
        """
        await self.prepare()
        self.store.write_bytes(b"x" * 10_000)
        bridge = self.running()
        await bridge.start()
        await self.until(self.bus, stored=COUNT)
        (aside,) = self.state.glob(f"{STORE_NAME}-damaged-*")
        self.assertEqual(aside.read_bytes(), b"x" * 10_000)

    async def test_removed(self) -> None:
        """
        If the store is removed while the bridge runs, the bridge ends with that reason; after a
        restart its content is complete.
        """
        await self.prepare()
        bridge = self.running()
        await bridge.start()
        await self.until(self.bus, stored=COUNT)
        self.store.unlink()
        self.assertEqual(await bridge.wait(), 1)
        (line,) = [line for line in bridge.lines if "cannot go on" in line]
        self.assertIn(f"{self.store} was removed while it was in use", line)
        again = self.ending(bridge.again())
        await again.start()
        line = await again.saw("Subscribed to")
        self.assertIn(f"from number {COUNT} on", line)
        await self.until(self.bus, stored=COUNT)
