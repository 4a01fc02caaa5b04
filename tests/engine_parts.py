"""
A test case with the parts of a bridge that ask an engine, all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.engine_sync import DEBOUNCE_SECONDS, EngineSync
from tbvast.bridge.live_match import LiveMatch
from tbvast.bridge.node_watch import MAX_RECONNECT_DELAY, NodeWatch, Task
from tbvast.bridge.outbox import Counters
from tbvast.bridge.retro_search import RetroSearch
from tbvast.errors import EngineUnsupported
from tbvast.stix.indicators import Indicator
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.sightings import MatchType
from tbvast.values import Changes, Entry, Match
from tests.doubles import MemoryNode, indicator_id
from tests.doubles_bridge import MemoryStore
from tests.doubles_engine import MemoryEngine, MemoryEngineClient


def ip(number: int) -> Observable:
    """
    The observable of L{tests.doubles.an_indicator}.
    """
    return Observable(Kind.IP, f"192.0.2.{number}")


def entry(number: int) -> Entry:
    """
    The entry of L{tests.doubles.an_indicator}.
    """
    return Entry(ip(number), (indicator_id(number),))


def seen(number: int, **fields: Any) -> dict[str, Any]:
    """
    An event that holds the observable of L{tests.doubles.an_indicator}.
    """
    return {"address": f"192.0.2.{number}", **fields}


class EngineTestCase(SynchronousTestCase):
    """
    A test with the parts of the bridge that ask the engine, a store, and a node and its engine
    in memory.

    @cvar live: Whether arriving events are matched.
    @cvar search: Whether past events are searched for new indicators.
    @cvar days: The age in days of the oldest of them.
    @ivar delivered: The matches that were delivered.
    @ivar unsupported: The errors of unsupported engines.
    @ivar failure: The error with which the delivery fails.
    """

    live = False
    search = False
    days = 0

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = MemoryNode()
        self.engine = MemoryEngine()
        self.engine.hears = True
        self.client = MemoryEngineClient(self.engine)
        memory = MemoryStore(self.clock.seconds, self.search)
        self.addCleanup(memory.close)
        self.store = memory.file
        self.counters = Counters()
        self.delivered: list[tuple[Match, MatchType]] = []
        self.unsupported: list[EngineUnsupported] = []
        self.failure: Exception | None = None
        self.node = NodeWatch(
            self.clock,
            self.endpoint,
            self.client,
            self.fill,
            self.tasks,
            self.unsupported.append,
        )
        self.sync = EngineSync(self.node, memory.indicators)
        self.retro = RetroSearch(
            self.node,
            memory.indicators,
            self.sync,
            self.deliver,
            self.counters,
            self.clock.seconds,
            10,
            30.0,
            self.days,
        )
        self.match = LiveMatch(
            self.node,
            memory.indicators,
            self.retro,
            self.deliver,
            self.clock.seconds,
            boot="this boot",
            awake=lambda: self.engine.awake,
        )
        self.addCleanup(self.stop)

    async def fill(self) -> None:
        """
        What has to succeed before the node is ready.
        """
        if self.live:
            await self.match.begin()
        await self.sync.reconcile()

    def tasks(self) -> Iterator[Task]:
        """
        What runs while the node is ready.
        """
        yield self.sync.maintain()
        if self.live:
            yield self.match.run()
        if self.search:
            yield self.retro.run()

    def deliver(self, matches: list[Match], type: MatchType) -> Deferred[None]:
        if self.failure is not None:
            return fail(self.failure)
        self.delivered.extend((match, type) for match in matches)
        self.counters.matched[type] += len(matches)
        return succeed(None)

    def start(self) -> None:
        self.match.startService()
        self.node.startService()
        self.clock.advance(0)

    def stop(self) -> None:
        if self.node.running:
            self.successResultOf(self.node.stopService())
            self.successResultOf(maybeDeferred(self.match.stopService))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.endpoint.connected)
        self.assertEqual(self.engine.watching, 0)

    def store_changes(self, *indicators: Indicator) -> Changes:
        """
        Indicators arrive, and nobody waits for what comes of it.
        """
        changes = self.store.indicators.apply(indicators, self.clock.seconds(), self.search)
        self.sync.changed(changes)
        self.retro.withdraw(changes.erase)
        return changes

    def apply(self, *indicators: Indicator) -> Changes:
        """
        Indicators arrive.
        """
        changes = self.store_changes(*indicators)
        self.clock.advance(DEBOUNCE_SECONDS)
        return changes

    def come_back(self) -> None:
        """
        The node is there again.
        """
        self.endpoint.up = True
        self.clock.advance(MAX_RECONNECT_DELAY)

    def searched(self) -> bool:
        """
        Whether past events have been searched for all indicators.
        """
        return not self.store.counts()["unsearched"]
