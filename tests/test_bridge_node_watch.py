"""
Tests for L{tbvast.bridge.node_watch}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tbvast.bridge.node_watch import MAX_RECONNECT_DELAY, TABLE, State, Task
from tbvast.errors import EngineCallFailed, EngineUnsupported
from tests.doubles import an_indicator, indicator_id
from tests.engine_parts import EngineTestCase, ip


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
