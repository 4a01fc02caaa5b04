"""
Tests for L{tbvast.bridge.store.worker} as a process.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.indicators import IndicatorTable
from tbvast.bridge.store.outbox_table import OutboxTable
from tbvast.bridge.store.values import OpenedStore
from tbvast.bridge.store.worker import NO, NOWHERE
from tbvast.errors import StoreFailed
from tbvast.storage.sqlite import PAGE_BYTES
from tbvast.storage.worker_client import Worker
from tbvast.values import Covered, PageRequest, Position
from tests.doubles import a_sighting, an_indicator


class ProcessTests(TestCase):
    """
    The process.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.lost: list[str] = []

    def worker(self) -> Worker:
        arguments = [str(self.path), NO]
        return Worker(
            *(reactor, "the store", "tbvast.bridge.store.worker", arguments),
            StoreFailed,
            self.lost.append,
        )

    async def test_position(self) -> None:
        """
        It says how far the bus's journal has been applied.
        """
        applied = Position("bus", 7)
        for position in (None, applied):
            worker = self.worker()
            self.assertEqual(worker.start(OpenedStore).position, position)
            await worker.ask(
                IndicatorTable.apply_batch, [an_indicator(1)], 0.0, True, applied, False, 1
            )
            counts = await worker.ask(BridgeStore.counts)
            self.assertEqual((counts["indicators"], counts["unsearched"]), (1, 1))
            await worker.stop()
        self.assertEqual(self.lost, [])

    async def test_disk(self) -> None:
        """
        A call that the disk refuses fails with the reason.
        """
        worker = self.worker()
        worker.start(OpenedStore)
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute("ALTER TABLE indicators RENAME TO elsewhere")
        e = await self.assertFailure(
            worker.ask(IndicatorTable.apply_batch, [an_indicator(1)], 0.0, True, None, False, 1),
            StoreFailed,
        )
        self.assertIn("indicators", str(e))
        await worker.stop()

    def test_unusable(self) -> None:
        """
        A file that cannot be used is refused.
        """
        self.path.mkdir()
        e = self.assertRaises(StoreFailed, self.worker().start, OpenedStore)
        self.assertIn(str(self.path), str(e))

    async def test_garbage(self) -> None:
        """
        A file that is no store is moved aside and replaced by a new store.
        """
        self.path.write_bytes(b"x" * 10_000)
        worker = self.worker()
        opened: OpenedStore = worker.start(OpenedStore)
        self.assertEqual(opened.position, NOWHERE)
        await worker.ask(
            IndicatorTable.apply_batch, [an_indicator(1)], 0.0, True, Position("bus", 7), False, 1
        )
        await worker.stop()
        (aside,) = self.path.parent.glob(f"{self.path.name}-damaged-*")
        self.assertEqual(aside.read_bytes(), b"x" * 10_000)
        self.assertIn(str(aside), opened.renewed)
        worker = self.worker()
        self.assertEqual(worker.start(OpenedStore).position, Position("bus", 7))
        await worker.stop()

    async def test_carried_over(self) -> None:
        """
        A new store has the sightings that can still be read of the one that is damaged.
        """
        store = BridgeStore(self.path)
        store.indicators.apply(
            [an_indicator(n, 1, note="x" * 500) for n in range(2000)], 0.0, False
        )
        store.outbox.remember([a_sighting(number) for number in range(3)], 5.0)
        store.outbox.mark_sent([a_sighting(0).id])
        store.set_covered(Covered(7.0, 3.0, "boot"))
        identity = store.identity
        (root,) = store.connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'indicators'"
        ).fetchone()
        store.close()
        with self.path.open("r+b") as file:
            file.seek((root - 1) * PAGE_BYTES)
            file.write(b"\xff" * PAGE_BYTES)
        worker = self.worker()
        opened: OpenedStore = worker.start(OpenedStore)
        self.assertEqual(opened.position, NOWHERE)
        self.assertEqual(opened.identity, identity)
        self.assertIn("2 sightings were carried over", opened.renewed)
        unsent = await worker.ask(OutboxTable.page, PageRequest(10, 1 << 20))
        self.assertEqual({id for id, _ in unsent}, {a_sighting(1).id, a_sighting(2).id})
        repeated = await worker.ask(OutboxTable.remember, [a_sighting(0)], 6.0, None)
        self.assertEqual(repeated, (0, None))
        self.assertEqual(await worker.ask(BridgeStore.covered), Covered(7.0, 3.0, "boot"))
        await worker.stop()
        self.assertEqual(self.lost, [])

    async def test_removed(self) -> None:
        """
        If the file is removed while in use, everything committed is written again, and the process
        ends with that reason.
        """
        worker = self.worker()
        worker.start(OpenedStore)
        await worker.ask(
            IndicatorTable.apply_batch, [an_indicator(1)], 0.0, True, Position("bus", 7), False, 1
        )
        self.path.unlink()
        e = await self.assertFailure(
            worker.ask(IndicatorTable.update_validity, 1.0, True), StoreFailed
        )
        await worker.stop()
        self.assertEqual(self.lost, [str(e)])
        self.assertIn("was removed while it was in use", str(e))
        worker = self.worker()
        self.assertEqual(worker.start(OpenedStore).position, Position("bus", 7))
        counts = await worker.ask(BridgeStore.counts)
        self.assertEqual(counts["indicators"], 1)
        await worker.stop()
