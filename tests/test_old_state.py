"""
A state directory of tbvast 0.1.0, opened by the stores of the services.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.bus_cursor import StoreCursor
from tbvast.bridge.outbox import Counters, Outbox
from tbvast.bridge.store.client import IndicatorStore, SightingOutbox
from tbvast.bridge.store.values import IDENTITY, OpenedStore
from tbvast.bridge.store.worker import open_store
from tbvast.bus.journal.client import Journal
from tbvast.bus.journal.reader import JournalReader
from tbvast.bus.journal.values import Opened
from tbvast.bus.journal.worker import opened
from tbvast.protocol.topics import Stream
from tbvast.service.flusher import Reported
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.sightings import decode_sighting
from tbvast.values import Position
from tests.doubles import a_sighting, an_indicator, asking, call_now

OLD_STATE = Path(__file__).parent / "data" / "state-0.1.0"

NOW = 1.8e9
"""
Today, after the end of some of the indicators.
"""

ALL = 1 << 60


class OldStateTests(SynchronousTestCase):
    """
    The stores go on with it.
    """

    def setUp(self) -> None:
        self.contents: dict[str, Any] = json.loads((OLD_STATE / "contents.json").read_text())

    def unpack(self, name: str) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(gzip.decompress((OLD_STATE / f"{name}.gz").read_bytes()))
        return path

    def test_journal(self) -> None:
        """
        The plugin's journal has its indicators, sightings and subscriptions; what has ended ends,
        and new items are accepted after the old ones.
        """
        path, contents = self.unpack("journal.db"), self.contents
        with opened(path, "another") as served:
            reader = JournalReader(path)
            self.addCleanup(reader.close)
            ask, greeting = asking(*served.objects), cast(Opened, served.greeting)
            read = (reader, call_now)
            journal = Journal(greeting, lambda: NOW, ask, *read, *read, self.fail)
            self.assertNotEqual(journal.identity, "another")
            self.assertEqual(journal.head, contents["entries"])
            self.assertCountEqual(reader.subscriptions(), contents["topics"])
            ended = self.successResultOf(journal.expire(100))
            self.assertLessEqual(set(contents["ending"]), {each.item.id for each in ended})
            page = self.successResultOf(journal.current(0, ALL, 0.0, 100, 1 << 30))
            ids = [decode_indicator(raw).id for _, raw in page]
            self.assertCountEqual(ids, contents["in force"])
            entries = self.successResultOf(journal.entries(0, [Stream.SIGHTING], 100, ALL))
            ids = [decode_sighting(each.raw).id for each in entries]
            self.assertCountEqual(ids, contents["sightings"])
            head = journal.head
            outcomes = self.successResultOf(
                journal.append([an_indicator(1), decode_sighting(entries[0].raw), a_sighting(1)])
            )
            self.assertEqual(
                [(each.verdict, each.number) for each in outcomes],
                [("accepted", head + 1), ("repeated", 0), ("accepted", head + 2)],
            )

    def test_bridge(self) -> None:
        """
        The bridge's store has its indicators and its position; its waiting sightings are sent,
        and new indicators and sightings are accepted.
        """
        contents = self.contents
        sent: list[str] = []

        def deliver(documents: Sequence[bytes]) -> Deferred[Reported]:
            sent.extend(decode_sighting(raw).id for raw in documents)
            return succeed(Reported([True] * len(documents)))

        with open_store(self.unpack("bridge.db"), True) as served:
            greeting, ask = served.greeting, asking(*served.objects)
            assert isinstance(greeting, OpenedStore)
            self.assertEqual(greeting.position, Position("bus", 12))
            self.assertRegex(greeting.identity, IDENTITY)
            store = IndicatorStore(ask, lambda: NOW, True)
            bodies = self.successResultOf(store.bodies(contents["in force"]))
            self.assertCountEqual(bodies, contents["in force"])
            entries = self.successResultOf(Deferred.fromCoroutine(store.entries()))
            self.assertEqual({id for each in entries for id in each.ids}, set(bodies))
            self.assertEqual(self.successResultOf(store.counts())["unsent"], 2)

            outbox = Outbox(Clock(), SightingOutbox(ask, lambda: NOW), deliver, Counters())
            outbox.startService()
            self.assertCountEqual(sent, contents["sightings"])
            new = a_sighting(1)
            self.successResultOf(Deferred.fromCoroutine(outbox.add([new])))
            self.assertEqual(sent[2:], [new.id])
            self.successResultOf(outbox.stopService())

            changed: list[Any] = []
            cursor = StoreCursor(store, Position("bus", 12), changed.append)
            for change in (
                cursor.apply([an_indicator(1)], Position("bus", 13)),
                cursor.commit(),
            ):
                self.successResultOf(Deferred.fromCoroutine(change))
            self.assertEqual([len(each.write) for each in changed], [1])
            counts = self.successResultOf(store.counts())
            self.assertEqual(
                (counts["indicators"], counts["unsent"]), (len(contents["in force"]) + 1, 0)
            )
