"""
Tests for L{tbvast.bridge.node_watch}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from twisted.logger import LogLevel, capturedLogs, formatEvent

from tbvast.bridge.engine_sync import CHECK_INTERVAL
from tbvast.bridge.node_watch import (
    FIRST_RETRY_DELAY,
    MAX_RECONNECT_DELAY,
    MAX_RETRY_DELAY,
    STEADY_SECONDS,
    TABLE,
    State,
    Task,
)
from tbvast.errors import EngineCallFailed, EngineTablesChanged, EngineUnsupported
from tbvast.stix.sightings import MatchType
from tbvast.values import Entry
from tests.doubles import an_indicator, indicator_id
from tests.engine_parts import EngineTestCase, ip, seen


class NodeTests(EngineTestCase):
    """
    The node's coming and going.
    """

    live = True

    def test_up(self) -> None:
        """
        Once the node runs, the session identifies, prepares, fills and watches it.
        """
        self.apply(an_indicator(1))
        self.start()
        self.assertEqual(
            self.engine.log, ["identify", "prepare", "contents", "add", "watch", "find"]
        )
        self.assertEqual(self.engine.table, {ip(1): (indicator_id(1),)})
        self.assertIs(self.node.state, State.READY)
        self.assertTrue(self.match.report()["live"])
        self.assertEqual(self.node.report()["name"], "tenzir")

    def test_away(self) -> None:
        """
        While there is no node, nothing is asked of it, and no change waits in memory.
        """
        self.endpoint.up = False
        self.start()
        self.apply(an_indicator(1))
        self.clock.advance(1)
        self.assertEqual(self.engine.log, [])
        self.assertEqual(self.sync.pending, 0)
        self.assertIs(self.node.state, State.AWAY)

    def test_down(self) -> None:
        """
        When the node goes, its calls are interrupted and nothing more is asked.
        """
        self.start()
        self.endpoint.die()
        self.assertTrue(self.engine.interrupted)
        self.assertEqual(self.engine.watching, 0)
        self.engine.log.clear()
        self.apply(an_indicator(1))
        self.clock.pump([1.0] * 20)
        self.assertEqual(self.engine.log, [])
        self.assertFalse(self.match.report()["live"])

    def test_back(self) -> None:
        """
        When the node comes back it is given everything again, and matches.
        """
        self.apply(an_indicator(1))
        self.start()
        self.endpoint.die()
        self.engine.lose()
        self.apply(an_indicator(2))
        self.come_back()
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})
        self.assertTrue(self.match.report()["live"])
        self.assertEqual(self.engine.watching, 1)

    def test_down_while_asked(self) -> None:
        """
        The node may go in the middle of a call.
        """
        self.client.held = {"contents"}
        self.start()
        self.endpoint.die()
        self.client.held = ()
        self.apply(an_indicator(1))
        self.come_back()
        self.assertEqual(set(self.engine.table), {ip(1)})

    def test_tables_changed(self) -> None:
        """
        Tables that somebody else has changed or removed are filled again at once, and everything
        goes on. Report and log say so.
        """
        self.apply(an_indicator(1))
        for change in (self.client.remove_tables, self.empty):
            if not self.node.running:
                self.start()
            with capturedLogs() as logs:
                change()
            self.assertEqual(self.engine.table, {ip(1): (indicator_id(1),)})
            self.assertIs(self.node.state, State.READY)
            self.assertTrue(self.match.report()["live"])
            self.assertEqual(self.engine.watching, 1)
            (warning,) = (each for each in logs if each["log_level"] is LogLevel.warn)
            self.assertEqual(
                formatEvent(warning),
                "somebody else has changed the engine's tables: tbvast_ip has other entries."
                " They are filled again.",
            )
            self.clock.advance(STEADY_SECONDS)
        self.assertEqual(
            self.node.report()["tables_changed"],
            {"count": 2, "newest": "tbvast_ip has other entries"},
        )

    def empty(self) -> None:
        """
        Somebody else empties the tables.
        """
        self.client.empty_tables()
        self.client.tell_change()

    def test_tables_changed_again(self) -> None:
        """
        If the tables are changed again and again, each repair waits longer; the log has a few
        warnings a minute.
        """
        self.start()
        with capturedLogs() as logs:
            for attempt in range(10):
                self.client.remove_tables()
                if attempt:
                    self.assertIs(self.node.state, State.FILLING)
                    self.clock.advance(min(FIRST_RETRY_DELAY * 2 ** (attempt - 1), MAX_RETRY_DELAY))
                self.assertIs(self.node.state, State.READY)
        warnings = [each for each in logs if each["log_level"] is LogLevel.warn]
        self.assertLess(len(warnings), 10)
        self.assertEqual(self.node.report()["tables_changed"]["count"], 10)

    def test_stop_before_repair(self) -> None:
        """
        Stopped before a repair it leaves nothing behind.
        """
        self.start()
        self.client.remove_tables()
        self.client.remove_tables()
        self.assertIs(self.node.state, State.FILLING)
        self.stop()

    def test_changed_while_filled(self) -> None:
        """
        If somebody else removes the tables while they are filled, they are made again.
        """
        self.apply(an_indicator(1))
        self.engine.failures["add"] = [EngineTablesChanged("tbvast_ip was removed")]
        self.start()
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertEqual(self.engine.log.count("prepare"), 2)
        self.assertEqual(self.engine.table, {ip(1): (indicator_id(1),)})
        self.assertIs(self.node.state, State.READY)

    def test_missed_meanwhile(self) -> None:
        """
        Events that arrive between a change and its repair are matched afterwards, once.
        """
        self.apply(an_indicator(1))
        self.start()
        self.client.empty_tables()
        self.client.arrive(seen(1))
        self.assertEqual(self.delivered, [])
        self.client.tell_change()
        self.client.arrive(seen(1, flow=2))
        self.assertEqual([type for _, type in self.delivered], [MatchType.RETRO, MatchType.LIVE])

    def test_missed_since_comparison(self) -> None:
        """
        If only a comparison notices a change, all events since the one before are searched.
        """
        self.apply(an_indicator(1))
        self.start()
        self.clock.advance(CHECK_INTERVAL)
        known = self.store.covered()
        self.engine.replace(Entry(ip(1), ("indicator--other",)))
        for _ in range(3):
            self.client.mark()
        self.assertNotEqual(self.store.covered(), known)
        self.engine.searches.clear()
        self.client.held = {"watch"}
        self.clock.advance(CHECK_INTERVAL)
        self.assertEqual(self.store.covered(), known)
        self.client.release()
        self.assertEqual(len(self.engine.searches), 1)

    def test_unsupported(self) -> None:
        """
        An engine that cannot be driven is told, and not asked for anything more.
        """
        error = EngineUnsupported("tenzir 1.0", "tenzir 6.20 or newer")
        self.engine.failures["identify"] = [error]
        self.start()
        self.assertEqual(self.unsupported, [error])
        self.assertEqual(self.engine.log, ["identify"])

    def test_stop(self) -> None:
        """
        Stopped in the middle of a call it leaves nothing behind.
        """
        self.client.held = {"prepare"}
        self.start()
        self.stop()
        self.assertTrue(self.engine.interrupted)

    def test_stop_while_waiting(self) -> None:
        """
        Stopped before another attempt it leaves nothing behind.
        """
        self.engine.failures["prepare"] = [EngineCallFailed("prepare", "no")]
        self.start()
        self.stop()

    def test_down_while_unsupported(self) -> None:
        """
        When an unsupported node goes and another one comes, that is asked.
        """
        self.engine.failures["identify"] = [EngineUnsupported("tenzir 1.0", "tenzir 6.20")]
        self.start()
        self.assertIs(self.node.state, State.FILLING)
        self.endpoint.die()
        self.assertIs(self.node.state, State.AWAY)
        self.come_back()
        self.assertIs(self.node.state, State.READY)

    def test_stopped(self) -> None:
        """
        Once stopped, a node is not asked any more.
        """
        self.start()
        self.stop()
        self.assertIs(self.node.state, State.STOPPED)
        self.engine.log.clear()
        self.clock.advance(MAX_RECONNECT_DELAY)
        self.assertEqual(self.engine.log, [])

    def test_documented(self) -> None:
        """
        The documentation shows the table.
        """
        text = Path(__file__).parents[1].joinpath("docs", "architecture.md").read_text()
        self.assertIn(TABLE, text)


class TablesNotWatchedTests(EngineTestCase):
    """
    Without a live match, whoever needs the tables notices that they were removed.
    """

    search = True

    def test_writer(self) -> None:
        """
        The next change notices it.
        """
        self.apply(an_indicator(1))
        self.start()
        self.engine.remove_tables()
        self.apply(an_indicator(2))
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})
        self.assertEqual(self.node.report()["tables_changed"]["count"], 1)

    def test_search(self) -> None:
        """
        A search of past events notices it, and is repeated.
        """
        self.engine.arrive(seen(1))
        self.engine.failures["find"] = [EngineTablesChanged("tbvast_r0_ip was removed")]
        self.apply(an_indicator(1))
        self.start()
        self.clock.pump([1.0] * 3)
        self.assertEqual(len(self.delivered), 1)
        self.assertEqual(self.node.report()["tables_changed"]["count"], 1)


class CatchUpTests(EngineTestCase):
    """
    A search of missed events notices changed tables, too.
    """

    live = True

    def test_repeated(self) -> None:
        """
        The tables are filled again, and the search is repeated.
        """
        self.apply(an_indicator(1))
        self.engine.failures["find"] = [EngineTablesChanged("tbvast_r0_ip was removed")]
        self.start()
        self.assertEqual(self.node.report()["tables_changed"]["count"], 1)
        self.assertFalse(self.match.report()["catching_up"])
        self.assertEqual(len(self.engine.searches), 2)


class DefectTests(EngineTestCase):
    """
    A part with a defect.
    """

    def tasks(self) -> Iterator[Task]:
        yield self.broken()
        yield from super().tasks()

    async def broken(self) -> None:
        raise RuntimeError("a defect")

    def test_reported(self) -> None:
        """
        It is reported, and the other parts go on.
        """
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.apply(an_indicator(1))
        self.assertEqual(set(self.engine.table), {ip(1)})
