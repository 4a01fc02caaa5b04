"""
Tests for L{tbvast.bridge.store.bridge_store}.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.schema import OLDEST_SCHEMA, OLDEST_VERSION
from tbvast.bridge.store.values import IDENTITY
from tbvast.errors import StartupRefused
from tbvast.storage.digest_index import digest
from tbvast.storage.sqlite import connect, migrate
from tbvast.values import Covered, PageRequest
from tests.doubles import a_sighting, indicator_document, indicator_id


class CoveredTests(SynchronousTestCase):
    """
    Up to where arriving events have been matched.
    """

    def test_kept(self) -> None:
        """
        It is not known at first; then the last one is, also after a restart.
        """
        path = Path(self.mktemp())
        with contextlib.closing(BridgeStore(path)) as store:
            self.assertIsNone(store.covered())
            store.set_covered(Covered(2e9, 3.5, "a boot"))
            store.set_covered(Covered(1e9, 4.5, "a boot"))
        with contextlib.closing(BridgeStore(path)) as store:
            self.assertEqual(store.covered(), Covered(1e9, 4.5, "a boot"))

    def test_migrated(self) -> None:
        """
        Of a moment that an earlier version stored, only the date is known.
        """
        path = Path(self.mktemp())
        with contextlib.closing(connect(path)) as database:
            migrate(database, [OLDEST_SCHEMA], OLDEST_VERSION)
            database.execute("INSERT INTO covered VALUES (1, 1e9)")
        with contextlib.closing(BridgeStore(path)) as store:
            self.assertEqual(store.covered(), Covered(1e9, 0.0, ""))


class FileTests(SynchronousTestCase):
    """
    Files that cannot be used.
    """

    def test_other_version(self) -> None:
        """
        A file of a later tbvast, or of one before the first release, is refused, by a message
        that names its version.
        """
        path = Path(self.mktemp())
        BridgeStore(path).close()
        for version in (OLDEST_VERSION - 1, 99):
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute(f"PRAGMA user_version = {version}")
            error = self.assertRaises(StartupRefused, BridgeStore, path)
            self.assertIn(f"version {version}", str(error))
            self.assertIn(str(path), str(error))

    def test_damaged(self) -> None:
        """
        A file that is no database is refused, in one line, and left as it is.
        """
        path = Path(self.mktemp())
        path.write_bytes(b"this is no database\n" * 100)
        error = self.assertRaises(StartupRefused, BridgeStore, path)
        self.assertIn(str(path), str(error))
        self.assertNotIn("\n", str(error))
        self.assertTrue(path.read_bytes().startswith(b"this is no database"))

    def test_no_directory(self) -> None:
        """
        Where there is no directory, there is no store.
        """
        self.assertRaises(StartupRefused, BridgeStore, Path(self.mktemp()) / "bridge.sqlite")


class EarlierVersionTests(SynchronousTestCase):
    """
    A store that 0.1.0 has written.
    """

    def test_opens(self) -> None:
        """
        Its indicators and sightings are usable; a sighting that is longer than allowed today is
        sent without its long part.
        """
        path = Path(self.mktemp())
        with contextlib.closing(connect(path)) as database:
            migrate(database, [OLDEST_SCHEMA], OLDEST_VERSION)
            row = {
                "number": 1,
                "id": indicator_id(1),
                "digest": digest(indicator_id(1)),
                "modified": 1_000_000,
                "valid_from": 0,
                "valid_until": 1 << 62,
                "state": 1,
                "change": 1,
                "searched": 1,
                "generation": 0,
                "wanted": '[["ip","192.0.2.1"]]',
                "unmatched": "[]",
                "body": indicator_document(1),
            }
            database.execute(
                f"INSERT INTO indicators ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                list(row.values()),
            )
            long = a_sighting(2, x_threatbus_sighting_context={"a": "x" * 12_000_000, "b": 1})
            for sighting in (a_sighting(1), long):
                database.execute(
                    "INSERT INTO sightings VALUES (?, 0, ?)", (sighting.id, sighting.raw)
                )
        opened = BridgeStore(path)
        self.addCleanup(opened.close)
        opened.indicators.rebuild_observables(True)
        self.assertEqual([entry.ids for entry in opened.entries.all()], [(indicator_id(1),)])
        sent = dict(opened.outbox.page(PageRequest(10, 1 << 30)))
        self.assertEqual(sent[a_sighting(1).id], a_sighting(1).raw)
        context = msgspec.json.decode(sent[long.id])["x_threatbus_sighting_context"]
        self.assertEqual((len(context["a"]), context["b"]), (1024, 1))
        opened.outbox.set_aside({long.id: "why"}, 0.0)
        (waiting,) = opened.outbox.page(PageRequest(10, 1000))
        self.assertEqual(waiting.key, a_sighting(1).id)
        self.assertEqual(opened.counts()["set_aside"]["count"], 1)


class IdentityTests(SynchronousTestCase):
    """
    The identity of a store.
    """

    def identity(self, path: Path) -> str:
        with contextlib.closing(BridgeStore(path)) as store:
            return store.identity

    def test_stays(self) -> None:
        """
        Each store has an identity of its own, which stays.
        """
        paths = [Path(self.mktemp()) for _ in range(2)]
        first, second = map(self.identity, paths)
        self.assertRegex(first, IDENTITY)
        self.assertNotEqual(first, second)
        self.assertEqual([self.identity(path) for path in paths], [first, second])
