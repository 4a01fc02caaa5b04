"""
Tests for L{tbvast.bridge.bus_cursor}.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bridge.bus_cursor import MAX_INDICATORS_PER_COMMIT, StoreCursor
from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.interfaces import ICursor
from tbvast.protocol.unreadable import unreadable
from tbvast.stix.indicators import Indicator
from tbvast.values import Changes, Position
from tests.doubles import (
    SteppedThread,
    a_sighting,
    an_indicator,
    indicator_document,
    indicator_id,
    moment,
)
from tests.doubles_bridge import MemoryStore


@contextlib.contextmanager
def refusing(store: BridgeStore) -> Iterator[None]:
    """
    While inside, the store cannot keep anything.
    """
    store.connection.execute("PRAGMA query_only = ON")
    try:
        yield
    finally:
        store.connection.execute("PRAGMA query_only = OFF")


@contextlib.contextmanager
def failing(path: Path, id: str) -> Iterator[None]:
    """
    While inside, the store fails for an indicator.
    """
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(
            f"CREATE TRIGGER refusal BEFORE INSERT ON indicators WHEN new.id = '{id}'"
            " BEGIN SELECT raise(FAIL, 'not this one'); END"
        )
        yield
        other.execute("DROP TRIGGER refusal")


class CursorTests(SynchronousTestCase):
    """
    Tests for L{StoreCursor}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.thread = SteppedThread()
        self.path = Path(self.mktemp())
        memory = MemoryStore(self.clock.seconds, True, self.thread.defer, str(self.path))
        self.addCleanup(memory.close)
        self.store, self.indicators = memory.file, memory.indicators
        self.changes: list[Changes] = []
        self.cursor = self.make()

    def make(self) -> StoreCursor:
        return StoreCursor(self.indicators, self.store.indicators.position, self.changes.append)

    def apply(self, *items: Indicator, position: Position | None = None) -> None:
        applied = Deferred.fromCoroutine(self.cursor.apply(items, position))
        self.thread.perform()
        self.successResultOf(applied)
        self.successResultOf(self.settled())

    def settled(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.cursor.commit())

    def test_interface(self) -> None:
        """
        The cursor provides L{ICursor}.
        """
        verifyObject(ICursor, self.cursor)

    def test_in_thread(self) -> None:
        """
        The position is another one once the items are applied, not before.
        """
        applied = Deferred.fromCoroutine(self.cursor.apply([an_indicator(1)], Position("bus", 3)))
        self.successResultOf(applied)
        settled = self.settled()
        self.assertNoResult(settled)
        self.assertIsNone(self.cursor.position)
        self.thread.perform()
        self.successResultOf(settled)
        self.assertEqual(self.cursor.position, Position("bus", 3))
        self.assertEqual(len(self.changes[0].write), 1)

    def test_beginning(self) -> None:
        """
        It begins where the store has got to.
        """
        self.apply(position=Position("bus", 3))
        self.assertEqual(self.make().position, Position("bus", 3))

    def test_without_position(self) -> None:
        """
        Items without a position leave the position as it is.
        """
        self.apply(position=Position("bus", 3))
        self.apply(an_indicator(1))
        self.assertEqual(self.cursor.position, Position("bus", 3))

    def test_sightings(self) -> None:
        """
        Sightings are none of its business.
        """
        applied = Deferred.fromCoroutine(self.cursor.apply([a_sighting(1), an_indicator(2)], None))
        self.thread.perform()
        self.successResultOf(applied)
        self.assertEqual(self.store.counts()["indicators"], 1)

    def test_time(self) -> None:
        """
        An expired indicator is not written.
        """
        self.clock.advance(100)
        self.apply(an_indicator(1, valid_until=moment(50)))
        self.assertEqual(self.changes[0].write, ())

    def test_failed(self) -> None:
        """
        A failed commit does not move the position.
        """
        self.store.close()
        applied = Deferred.fromCoroutine(self.cursor.apply([an_indicator(1)], Position("bus", 3)))
        self.thread.perform()
        self.successResultOf(applied)
        self.failureResultOf(self.settled(), sqlite3.Error)
        self.assertIsNone(self.cursor.position)
        self.assertEqual(self.changes, [])

    def test_ahead(self) -> None:
        """
        The next items are on their way while the last ones are written, but no more.
        """
        first, second, third = (
            Deferred.fromCoroutine(self.cursor.apply([an_indicator(n)], Position("bus", n)))
            for n in (1, 2, 3)
        )
        self.assertEqual(len(self.thread.waiting), 3)
        self.successResultOf(first)
        self.assertNoResult(second)
        self.thread.perform(1)
        self.successResultOf(second)
        self.assertNoResult(third)
        self.assertEqual(self.cursor.position, Position("bus", 1))
        self.thread.perform(2)
        self.successResultOf(third)
        self.successResultOf(self.settled())
        self.assertEqual(self.cursor.position, Position("bus", 3))

    def test_failed_behind(self) -> None:
        """
        If a batch fails, the batches under way behind it are refused; later ones are accepted.
        """
        for number in (1, 2):
            applied = Deferred.fromCoroutine(
                self.cursor.apply([an_indicator(number)], Position("bus", number))
            )
        self.assertNoResult(applied)
        with refusing(self.store):
            self.thread.perform(1)
        self.failureResultOf(applied, sqlite3.Error)
        self.thread.perform()
        self.successResultOf(self.settled())
        self.assertIsNone(self.cursor.position)
        self.assertEqual(self.store.counts()["indicators"], 0)
        self.apply(an_indicator(1), an_indicator(2), position=Position("bus", 2))
        self.assertEqual(self.store.counts()["indicators"], 2)
        self.assertEqual(self.cursor.position, Position("bus", 2))

    def test_changing(self) -> None:
        """
        It is changing the store until all is written, or could not be.
        """
        changing: list[int] = []

        @contextlib.contextmanager
        def change() -> Iterator[None]:
            changing.append(1)
            try:
                yield
            finally:
                changing.pop()

        self.cursor = StoreCursor(self.indicators, None, self.changes.append, change)
        for refused in (False, True):
            self.successResultOf(Deferred.fromCoroutine(self.cursor.apply([an_indicator(1)], None)))
            settled = self.settled()
            self.assertEqual(changing, [1])
            with refusing(self.store) if refused else contextlib.nullcontext():
                self.thread.perform()
            self.assertEqual(changing, [])
            settled.addErrback(lambda failure: None)
            self.store.indicators.update_validity(self.clock.seconds(), True)

    def test_pieces(self) -> None:
        """
        Many indicators are applied in several commits, of which the last one moves the position.
        """
        many = [an_indicator(number) for number in range(2 * MAX_INDICATORS_PER_COMMIT + 1)]
        applied = Deferred.fromCoroutine(self.cursor.apply(many, Position("bus", 3)))
        self.assertEqual(len(self.thread.waiting), 3)
        self.thread.perform(1)
        self.assertNoResult(applied)
        self.thread.perform(1)
        self.successResultOf(applied)
        self.assertIsNone(self.store.indicators.position)
        self.assertEqual(len(self.changes), 2)
        self.thread.perform()
        self.successResultOf(self.settled())
        self.assertEqual(self.store.indicators.position, Position("bus", 3))
        self.assertEqual(self.store.counts()["indicators"], 2 * MAX_INDICATORS_PER_COMMIT + 1)

    def test_piece_failed(self) -> None:
        """
        If one commit fails, the following ones fail and the position stays; a retry applies all.
        """
        many = [an_indicator(number) for number in range(3 * MAX_INDICATORS_PER_COMMIT)]
        applied = Deferred.fromCoroutine(self.cursor.apply(many, Position("bus", 3)))
        self.thread.perform(1)
        with refusing(self.store):
            self.thread.perform(1)
        self.failureResultOf(applied, sqlite3.Error)
        self.thread.perform()
        self.assertIsNone(self.store.indicators.position)
        self.assertEqual(self.store.counts()["indicators"], MAX_INDICATORS_PER_COMMIT)
        self.apply(*many, position=Position("bus", 3))
        self.assertEqual(self.store.indicators.position, Position("bus", 3))
        self.assertEqual(self.store.counts()["indicators"], 3 * MAX_INDICATORS_PER_COMMIT)

    def test_item_failed(self) -> None:
        """
        An indicator that the store cannot keep is set aside alone, and the position moves.
        """
        many = [an_indicator(number) for number in range(9)]
        with failing(self.path, indicator_id(4)):
            self.apply(*many, position=Position("bus", 9))
        self.assertEqual(self.store.indicators.position, Position("bus", 9))
        counts = self.store.counts()
        self.assertEqual(counts["indicators"], 8)
        self.assertEqual(counts["set_aside"]["count"], 1)
        self.assertIn(indicator_id(4), counts["set_aside"]["newest"])
        self.assertEqual(
            {entry.ids for changes in self.changes for entry in changes.write},
            {(each.id,) for each in many if each.id != indicator_id(4)},
        )

    def test_set_aside(self) -> None:
        """
        Unreadable items are set aside, and the known indicators with their ids survive a snapshot.
        """
        self.apply(an_indicator(1), an_indicator(2), an_indicator(3))
        begun = Deferred.fromCoroutine(self.cursor.begin_snapshot())
        self.thread.perform()
        self.successResultOf(begun)
        self.apply(an_indicator(1))
        aside = Deferred.fromCoroutine(
            self.cursor.set_aside([unreadable("damaged", indicator_document(2)[:-1], 7)])
        )
        self.thread.perform()
        self.successResultOf(aside)
        ended = Deferred.fromCoroutine(self.cursor.end_snapshot(Position("bus", 9)))
        self.thread.perform()
        self.successResultOf(ended)
        self.assertEqual(
            set(self.store.indicators.bodies([indicator_id(number) for number in (1, 2, 3)])),
            {indicator_id(1), indicator_id(2)},
        )
        self.assertEqual(self.store.counts()["set_aside"]["count"], 1)

    def test_snapshot(self) -> None:
        """
        The end of a snapshot reports the indicators that are no longer in force.
        """
        Deferred.fromCoroutine(self.cursor.apply([an_indicator(1), an_indicator(2)], None))
        begun = Deferred.fromCoroutine(self.cursor.begin_snapshot())
        self.thread.perform(2)
        self.successResultOf(begun)
        Deferred.fromCoroutine(self.cursor.apply([an_indicator(2)], None))
        ended = Deferred.fromCoroutine(self.cursor.end_snapshot(Position("bus", 9)))
        self.thread.perform(2)
        self.successResultOf(ended)
        self.assertEqual(len(self.changes[-1].erase), 1)
        self.assertEqual(
            list(self.store.indicators.bodies([indicator_id(1), indicator_id(2)])),
            [indicator_id(2)],
        )
        self.assertEqual(self.cursor.position, Position("bus", 9))
