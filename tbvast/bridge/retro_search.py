"""
Searches the past events of an engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import attrs
import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from tbvast.bridge.engine_sync import EngineSync
from tbvast.bridge.node_watch import NodeWatch
from tbvast.bridge.outbox import Counters
from tbvast.errors import EngineTimeout
from tbvast.interfaces import IIndicatorStore
from tbvast.service.clock import Calendar
from tbvast.stix.observables import Observable
from tbvast.stix.sightings import MatchType
from tbvast.values import Entry, JsonObject, Match

MAX_INDICATORS_PER_SEARCH = 100_000
"""
The most indicators that one search of past events covers.
"""

Deliver = Callable[[list[Match], MatchType], Deferred[None]]
"""
Stores the sightings of matches. The next matches are read when it is done.
"""


class _Search(msgspec.Struct):
    """
    A running search of past events.

    @ivar finding: The result of the call of the engine.
    @ivar count: The number of observables.
    @ivar remaining: The observables that have not been withdrawn.
    @ivar started: The time of the start, in seconds of the reactor's clock.
    @ivar matched: The number of earlier sightings of past events.
    """

    finding: Deferred[None]
    count: int
    remaining: set[Observable]
    started: float
    matched: int


@attrs.define(eq=False)
class RetroSearch:
    """
    Searches past events, once for each new indicator, or for all indicators.

    New indicators are written and arriving events matched first, and indicators that arrive in
    several batches are searched for in one pass. There is one search at a time.

    @param limit: The most events per observable of new indicators; C{0} for no limit.
    @param timeout: Seconds for one search for new indicators.
    @param days: The age in days of the oldest events to search for new indicators; C{0} for
        no limit.
    """

    _log = Logger()

    _node: NodeWatch
    _store: IIndicatorStore
    _sync: EngineSync
    _deliver: Deliver
    _counters: Counters
    _now: Calendar
    _limit: int
    _timeout: float
    _days: int
    _lock: DeferredLock = attrs.field(init=False, factory=DeferredLock)
    _running: _Search | None = attrs.field(init=False, default=None)

    def report(self) -> JsonObject:
        """
        The progress of the running search, for the status report.
        """
        running = self._running
        if running is None:
            return {}
        progress = self._progress(running)
        return {"searching": {**progress, "seconds": round(progress["seconds"], 1)}}

    def _progress(self, running: _Search) -> JsonObject:
        return {
            "observables": running.count,
            "seconds": self._node.clock.seconds() - running.started,
            "found": self._counters.matched[MatchType.RETRO] - running.matched,
        }

    def withdraw(self, observables: Iterable[Observable]) -> None:
        """
        Cancel the running search once no indicator has any of its observables any more.
        """
        running = self._running
        if running is not None and running.remaining:
            running.remaining.difference_update(observables)
            if not running.remaining:
                running.finding.cancel()

    async def run(self) -> None:
        """
        Search for new indicators, as soon as the engine's tables contain them.
        """
        while True:
            await self._sync.quiet()
            until = self._sync.applied
            searched = await self._node.retry(
                "search past events", functools.partial(self._search_batch, until)
            )
            if not searched and until >= self._sync.applied:
                await self._sync.next_change()

    async def _search_batch(self, until: int) -> bool:
        """
        @return: Whether there were new indicators to search for.
        """
        found = await self._store.unsearched(until, MAX_INDICATORS_PER_SEARCH)
        if found.ids:
            since = self._now() - self._days * 86400.0 if self._days else None
            await self._search(found.entries, self._limit, self._timeout, since)
            await self._store.mark_searched(found.ids, until)
        return bool(found.ids)

    async def search_all(self, timeout: float, since: float | None) -> bool:
        """
        Search past events for all indicators.

        @param timeout: Seconds for the search.
        @param since: The earliest import time of the events; seconds since the epoch.
        @return: Whether the search was completed within the time limit.
        @raise EngineError: If it failed.
        """
        return await self._search(await self._store.entries(), 0, timeout, since)

    async def _search(
        self, entries: list[Entry], limit: int, timeout: float, since: float | None
    ) -> bool:
        if not entries:
            return True
        outcome = "found"
        async with self._lock:
            self._running = running = _Search(
                self._node.engine.find(entries, limit, timeout, self._deliver_found, since),
                len(entries),
                {entry.observable for entry in entries},
                self._node.clock.seconds(),
                self._counters.matched[MatchType.RETRO],
            )
            try:
                await running.finding
            except EngineTimeout:
                outcome = "ran out of time, having found"
            except CancelledError:
                if running.remaining:
                    raise
                outcome = "was cancelled, as its indicators have ended, having found"
            finally:
                self._running = None
        self._counters.searches += 1
        self._log.info(
            "A search of past events for {observables} observables {outcome} {found} sightings"
            " in {seconds:.3f} s.",
            outcome=outcome,
            **self._progress(running),
        )
        return outcome == "found"

    def _deliver_found(self, matches: list[Match]) -> Deferred[None] | None:
        return self._deliver(matches, MatchType.RETRO) if matches else None
