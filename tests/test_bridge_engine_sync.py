"""
Tests for L{tbvast.bridge.engine_sync}.
"""

from __future__ import annotations

from tbvast.bridge import engine_sync
from tbvast.bridge.engine_sync import ENTRIES_PER_CHUNK
from tbvast.bridge.node_watch import FIRST_RETRY_DELAY, State
from tbvast.errors import EngineCallFailed
from tbvast.stix.observables import Kind, Observable
from tbvast.values import Changes, Entry
from tests.doubles import an_indicator, indicator_id
from tests.engine_parts import EngineTestCase, entry, ip


class ChangeTests(EngineTestCase):
    """
    Changes while the engine runs.
    """

    def test_applied(self) -> None:
        """
        New, changed and removed entries are written at once.
        """
        self.start()
        self.apply(an_indicator(1), an_indicator(2))
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.assertEqual(set(self.engine.table), {ip(2)})

    def test_together(self) -> None:
        """
        All changes during a call are written with the next one.
        """
        self.start()
        self.engine.log.clear()
        self.client.held = {"add"}
        self.apply(an_indicator(1))
        self.apply(an_indicator(2))
        self.apply(an_indicator(3))
        self.client.release()
        self.assertEqual(self.engine.log, ["add", "add"])
        self.assertEqual(set(self.engine.table), {ip(1), ip(2), ip(3)})

    def test_gathered(self) -> None:
        """
        Changes in quick succession are written together, up to a limit.
        """
        self.start()
        self.engine.log.clear()
        short = engine_sync.DEBOUNCE_SECONDS / 2
        for number in range(1, 11):
            changes = self.store.indicators.apply(
                [an_indicator(number)], self.clock.seconds(), False
            )
            self.sync.changed(changes)
            self.clock.advance(short)
        self.assertEqual(self.engine.log, [])
        self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.log, ["add"])
        self.assertEqual(len(self.engine.table), 10)
        for number in range(round(engine_sync.MAX_DEBOUNCE_SECONDS / short) + 1):
            changes = self.store.indicators.apply([an_indicator(number, 2 + number)], 0.0, False)
            self.sync.changed(
                Changes(changes.number, (Entry(ip(number % 256), (indicator_id(number),)),))
            )
            self.clock.advance(short)
        self.assertEqual(self.engine.log, ["add", "add"])

    def many(self, first: int) -> dict[Observable, Entry]:
        """
        As many entries as the engine is given in one piece.
        """
        entries = {}
        for number in range(first, first + ENTRIES_PER_CHUNK):
            observable = Observable(Kind.DOMAIN, f"{number}.example")
            entries[observable] = Entry(observable, (indicator_id(number),))
        self.sync.changed(Changes(self.store.entries.change, tuple(entries.values())))
        return entries

    def test_given(self) -> None:
        """
        As long as the store is being changed, the engine gets the changes in one call, and handles
        them meanwhile.
        """
        self.start()
        self.engine.log.clear()
        with self.sync.changing():
            entries = self.many(0)
            entries |= self.many(ENTRIES_PER_CHUNK)
            self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
            (adding,) = self.client.added
            self.assertEqual(sum(map(len, adding.pieces)), 2 * ENTRIES_PER_CHUNK)
            entries |= self.many(2 * ENTRIES_PER_CHUNK)
            self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
            self.assertEqual(sum(map(len, adding.pieces)), 3 * ENTRIES_PER_CHUNK)
            self.assertEqual(self.engine.log, [])
        self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.log, ["add"])
        self.assertEqual(set(self.engine.table), set(entries))

    def test_given_and_removed(self) -> None:
        """
        An entry that the engine has just been given and that is no longer desired is removed
        afterwards; one that is desired again is written afterwards.
        """
        self.start()
        self.engine.log.clear()
        with self.sync.changing():
            entries = self.many(0)
            gone, *_ = entries
            self.sync.changed(Changes(self.store.entries.change, erase=(gone,)))
            self.many(ENTRIES_PER_CHUNK)
            self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
            self.assertEqual(self.engine.log, ["add", "remove"])
            self.assertNotIn(gone, self.engine.table)
            self.sync.changed(Changes(self.store.entries.change, (entries[gone],)))
        self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.log, ["add", "remove", "add"])
        self.assertIn(gone, self.engine.table)

    def test_given_full(self) -> None:
        """
        One call is not given more and more.
        """
        self.patch(engine_sync, "MAX_ENTRIES_PER_CALL", 2 * ENTRIES_PER_CHUNK)
        self.start()
        self.engine.log.clear()
        with self.sync.changing():
            for piece in range(3):
                self.many(piece * ENTRIES_PER_CHUNK)
                self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
            self.assertEqual(self.engine.log, ["add"])
        self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.log, ["add", "add"])

    def test_given_in_vain(self) -> None:
        """
        If the call fails, all that it was given is given again.
        """
        self.start()
        self.engine.failures["add"] = [EngineCallFailed("add", "no")]
        with self.sync.changing():
            entries = self.many(0)
            entries |= self.many(ENTRIES_PER_CHUNK)
            self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
        self.clock.pump([engine_sync.DEBOUNCE_SECONDS, FIRST_RETRY_DELAY])
        self.assertEqual(set(self.engine.table), set(entries))

    def test_down_while_given(self) -> None:
        """
        If the node goes while it is given something, nothing more is.
        """
        self.start()
        with self.sync.changing():
            self.many(0)
            self.endpoint.die()
        (adding,) = self.client.added
        self.assertTrue(adding.abandoned)

    def test_retried(self) -> None:
        """
        A failed call is repeated after a delay that doubles; no change is lost.
        """
        self.start()
        self.engine.failures["add"] = [EngineCallFailed("add", "no")] * 3
        self.apply(an_indicator(1))
        for delay in (0.5, 1.0, 2.0):
            self.assertEqual(self.engine.table, {})
            self.clock.advance(delay)
        self.assertEqual(set(self.engine.table), {ip(1)})

    def test_later_wins(self) -> None:
        """
        An entry that changes after a failed call is written in its latest state.
        """
        self.start()
        self.engine.failures["add"] = [EngineCallFailed("add", "no")]
        self.apply(an_indicator(1))
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.clock.advance(1)
        self.assertEqual(self.engine.table, {})

    def test_fill_retried(self) -> None:
        """
        Filling the engine is retried as a whole.
        """
        self.apply(an_indicator(1))
        self.engine.failures = {
            "contents": [EngineCallFailed("contents", "no")],
            "add": [EngineCallFailed("add", "no")],
        }
        self.start()
        self.clock.pump([0.5, 1.0])
        self.assertEqual(set(self.engine.table), {ip(1)})
        self.assertIs(self.node.state, State.READY)

    def test_stale(self) -> None:
        """
        A stale entry of the engine is removed.
        """
        self.engine.prepare()
        self.engine.add([[entry(9)]])
        self.apply(an_indicator(1))
        self.start()
        self.assertEqual(set(self.engine.table), {ip(1)})

    def test_overflow(self) -> None:
        """
        If too many changes wait in memory, the store is read again, even if the first attempt
        fails.
        """
        many = tuple(
            Entry(Observable(Kind.DOMAIN, f"{number}.example"), (indicator_id(number),))
            for number in range(engine_sync.MAX_PENDING_ENTRIES)
        )
        self.start()
        self.client.held = {"add"}
        self.apply(an_indicator(1))
        self.apply(an_indicator(2))
        self.sync.changed(Changes(self.store.entries.change, many))
        self.assertEqual(self.sync.pending, 0)
        self.engine.failures["contents"] = [EngineCallFailed("contents", "no")]
        self.engine.log.clear()
        self.client.release()
        self.clock.pump([engine_sync.DEBOUNCE_SECONDS, 0.5])
        self.assertEqual(self.engine.log, ["add", "contents", "contents", "add"])
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})

    def test_checked(self) -> None:
        """
        An engine that lost something without going away is given it again, and that is reported.
        """
        self.apply(an_indicator(1))
        self.start()
        self.engine.remove([ip(1)])
        self.clock.advance(engine_sync.CHECK_INTERVAL)
        self.assertEqual(set(self.engine.table), {ip(1)})
        self.assertEqual(
            self.node.report()["tables_changed"],
            {"count": 1, "newest": "1 entries differ from the store's"},
        )

    def test_checked_equal(self) -> None:
        """
        A comparison that finds no difference is not reported, and neither are changes that come
        during it.
        """
        self.apply(an_indicator(1))
        self.start()
        self.client.held = {"contents"}
        self.clock.advance(engine_sync.CHECK_INTERVAL)
        self.apply(an_indicator(2))
        self.client.release()
        self.clock.advance(engine_sync.DEBOUNCE_SECONDS)
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})
        self.assertNotIn("tables_changed", self.node.report())

    def test_checked_under_changes(self) -> None:
        """
        The tables are compared now and then, though changes come all the time.
        """
        self.apply(an_indicator(1))
        self.start()
        self.engine.replace(Entry(ip(1), ("indicator--other",)))
        for number in range(int(engine_sync.MAX_CHECK_INTERVAL / 300)):
            self.assertEqual(self.engine.table[ip(1)], ("indicator--other",))
            self.clock.advance(300)
            self.apply(an_indicator(2 + number))
        self.clock.advance(1)
        self.assertEqual(self.engine.table[ip(1)], (indicator_id(1),))
