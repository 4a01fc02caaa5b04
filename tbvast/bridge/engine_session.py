"""
The session with the engine: keeps its tables current, and runs its matches and searches.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.application.internet import ClientService, TimerService, backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    TimeoutError,
    gatherResults,
)
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bridge.coverage import OVERLAP, covered, search_from
from tbvast.errors import EngineError, EngineInterrupted, EngineTimeout, EngineUnsupported
from tbvast.interfaces import IAdding, IEngineClient, IIndicatorStore
from tbvast.service.clock import Calendar, awake
from tbvast.service.retry_policy import doubling
from tbvast.stix.observables import Observable
from tbvast.stix.sightings import MatchType
from tbvast.values import Changes, Covered, EngineIdentity, Entry, Match, Progress

FIRST_RETRY_DELAY = 0.5
MAX_RETRY_DELAY = 30.0
"""
Seconds between attempts of a call that failed. The delay doubles up to the maximum.
"""

FIRST_RECONNECT_DELAY = 0.1
MAX_RECONNECT_DELAY = 5.0
"""
Seconds between attempts to connect to the node.
"""

CHECK_INTERVAL = 600.0
"""
Seconds without a change after which the engine's tables are compared with the store.
"""

PROGRESS_SECONDS = 5.0
"""
Seconds within which a healthy engine reports its progress again, if it can.
"""

MAX_SILENCE_SECONDS = 15.0
"""
Seconds without progress after which the live match no longer counts as live.
"""

SILENCE_CHECK_INTERVAL = 1.0
"""
Seconds between checks of that.
"""

CATCH_UP_TIMEOUT = 300.0
"""
Seconds for the first search of missed events, if past events are not searched otherwise.
After a timeout the search is repeated with twice the time.
"""

DEBOUNCE_SECONDS = 0.02
MAX_DEBOUNCE_SECONDS = 2.0
"""
Seconds without a change, and without one in progress, after which a call of the engine ends,
and the most that a call waits for further changes. Each call costs as much as some ten
thousand entries. The engine buffers entries for up to a second, until more come or the call
ends.
"""

QUIET_SECONDS = 0.25
MAX_QUIET_WAIT_SECONDS = 10.0
"""
Seconds without a change after which past events are searched, and the most that the search
waits. New indicators are written and arriving events matched first, and indicators that
arrive in several batches are searched for in one pass.
"""

MAX_PENDING_ENTRIES = 200_000
"""
The most changed entries that wait in memory for an engine that is behind. With more, the
whole table is compared with the store instead.
"""

MAX_ENTRIES_PER_CALL = 50_000
"""
About the most entries that the engine is given in one call.
"""

ENTRIES_PER_CHUNK = 5000
"""
The entries that a call is given at once. As soon as so many wait, they are sent without
waiting for more changes.
"""

MAX_INDICATORS_PER_SEARCH = 100_000
"""
The most indicators that one search of past events covers.
"""


class State(enum.StrEnum):
    """
    The state of the session: no node, filling the engine's tables, or tables filled.
    """

    AWAY = "away"
    FILLING = "filling"
    READY = "ready"


class Search(msgspec.Struct, frozen=True):
    """
    The limits of searches of past events.

    @ivar limit: The most events per observable; C{0} for no limit.
    @ivar timeout: Seconds for one search.
    @ivar days: The age in days of the oldest events to search; C{0} for no limit.
    """

    limit: int
    timeout: float
    days: int = 0

    def since(self, now: float) -> float | None:
        """
        @param now: The date, in seconds since the epoch.
        @return: The earliest arrival of an event to search; C{None} for no limit.
        """
        return now - self.days * 86400.0 if self.days else None


class _RetroSearch:
    """
    A running search of past events.

    @ivar remaining: The observables that have not been withdrawn.
    @ivar given_up: Whether all have been withdrawn.
    """

    def __init__(self, entries: Sequence[Entry], started: float, matched: int) -> None:
        """
        @param entries: The entries to search for.
        @param started: The time of the start, in seconds of the reactor's clock.
        @param matched: The number of earlier sightings of past events.
        """
        self.count = len(entries)
        self.remaining = {entry.observable for entry in entries}
        self.started = started
        self.matched = matched
        self.given_up = False
        self.finding: Deferred[None] = Deferred()

    def withdraw(self, observables: Iterable[Observable]) -> None:
        """
        Cancel the search once no indicator has any of its observables.

        @param observables: Observables that no indicator has any more.
        """
        self.remaining.difference_update(observables)
        if not self.remaining and not self.given_up:
            self.given_up = True
            self.finding.cancel()


DesiredEntries = dict[Observable, Entry | None]
"""
The entries that the engine should hold, by observable; C{None} for an entry to remove.
"""


def _desired(changes: Changes) -> DesiredEntries:
    entries: DesiredEntries = {entry.observable: entry for entry in changes.write}
    return entries | dict.fromkeys(changes.erase)


Deliver = Callable[[list[Match], MatchType], Coroutine[Deferred[Any], Any, int]]
"""
Stores the sightings of matches, and returns their number. The next matches are read when it
is done.
"""


class EngineSession(MultiService):
    """
    Keeps an engine's tables equal to the store, and runs the live match and the searches.

    An idle TCP connection to the node shows when the node ends. From then on until the node
    is back and its tables are filled again, no call is made.

    @ivar state: The state of the session.
    @ivar live: Whether arriving events are being matched.
    @ivar identity: The engine's name and version; C{None} until the first connection.
    @ivar matched: The number of sightings, by the type of the match.
    @ivar searches: The number of searches of past events.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        now: Calendar,
        endpoint: IStreamClientEndpoint,
        engine: IEngineClient,
        store: IIndicatorStore,
        deliver: Deliver,
        live: bool,
        search: Search | None,
        unsupported: Callable[[EngineUnsupported], None],
        boot: str = "",
        awake: Callable[[], float] = awake,
    ) -> None:
        """
        @param clock: The clock of all delays.
        @param now: The date, in seconds since the epoch.
        @param endpoint: The endpoint of the node, for the idle connection.
        @param engine: The engine.
        @param store: Has the indicators.
        @param deliver: Takes the matches.
        @param live: Whether to match arriving events.
        @param search: The limits of searches of past events; C{None} for no searches.
        @param unsupported: Called if the engine is not supported.
        @param boot: The identity of this start of the machine.
        @param awake: The seconds since that start.
        """
        super().__init__()
        self.state = State.AWAY
        self.live = False
        self.identity: EngineIdentity | None = None
        self.matched = dict.fromkeys(MatchType, 0)
        self.searches = 0
        self._clock = clock
        self._now = now
        self._engine = engine
        self._store = store
        self._deliver = deliver
        self._want_live = live
        self._caught_up = False
        self._live_since: float | None = None
        self._heard_at: float | None = None
        self._progress_seen = False
        self._silent = False
        self._lag = 0.0
        self._covered: Covered | None = None
        self._catch_up_task: Deferred[None] | None = None
        self._boot = boot
        self._awake = awake
        self._search_lock = DeferredLock()
        self._search = search
        self._unsupported = unsupported
        self._pending: DesiredEntries = {}
        self._pending_since = 0.0
        self._pending_change = 0
        self._needs_reconcile = False
        self._applied = 0
        self._changes_in_progress = 0
        self._changed_at = -QUIET_SECONDS
        self._running_search: _RetroSearch | None = None
        self._waiters: list[Deferred[None]] = []
        self._tasks: list[Deferred[None]] = []
        factory = Factory.forProtocol(functools.partial(_NodeWatch, self._node_up, self._node_down))
        factory.noisy = False
        look = TimerService(SILENCE_CHECK_INTERVAL, self._check_silence)
        look.clock = clock
        look.setServiceParent(self)
        watch = ClientService(
            endpoint,
            factory,
            retryPolicy=backoffPolicy(
                FIRST_RECONNECT_DELAY, MAX_RECONNECT_DELAY, jitter=lambda: 0.0
            ),
            clock=clock,
        )
        watch.setServiceParent(self)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """
        A change of the store, which ends with a call of L{changed}.
        """
        self._changes_in_progress += 1
        try:
            yield
        finally:
            self._changes_in_progress -= 1

    def changed(self, changes: Changes) -> None:
        """
        Apply changes to the engine as soon as possible.

        @param changes: The changes.
        """
        if changes.write or changes.erase:
            self._changed_at = self._clock.seconds()
            if not self._pending:
                self._pending_since = self._changed_at
        self._pending |= _desired(changes)
        self._pending_change = max(self._pending_change, changes.number)
        if self._running_search is not None:
            self._running_search.withdraw(changes.erase)
        if self.state is State.AWAY or len(self._pending) > MAX_PENDING_ENTRIES:
            # The engine's tables are compared with the store first.
            self._pending.clear()
            self._needs_reconcile = True
        self._notify()

    def report(self) -> dict[str, Any]:
        """
        @return: The state of the session for the status report.
        """
        identity = self.identity
        return {
            "state": self.state,
            "name": identity.name if identity else "",
            "version": identity.version if identity else "",
            "endpoint": identity.endpoint if identity else "",
            **self._report_live(),
            "pending": len(self._pending),
            "matched": {type.lower(): count for type, count in self.matched.items()},
            "searches": self.searches,
            **(
                {"searching": self._search_progress(self._running_search)}
                if self._running_search
                else {}
            ),
        }

    def _report_live(self) -> dict[str, Any]:
        now = self._clock.seconds()
        found: dict[str, Any] = {"live": self.live and not self._silent}
        if self._live_since is not None:
            found["live_for"] = round(now - self._live_since, 1)
        if (behind := self._match_delay()) is not None:
            found["behind"] = round(behind, 2)
        if self._want_live:
            found["catching_up"] = self.live and not self._caught_up
        if self._covered is not None:
            found["covered"] = datetime.fromtimestamp(self._covered.until, UTC).isoformat()
        return found

    def _match_delay(self) -> float | None:
        """
        @return: Seconds from an import to its match; C{None} if unknown.
        """
        if self._heard_at is None:
            return None
        since = self._clock.seconds() - self._heard_at
        return self._lag if since <= PROGRESS_SECONDS else self._lag + since

    def _search_progress(self, running: _RetroSearch) -> dict[str, Any]:
        return {
            "observables": running.count,
            "seconds": round(self._clock.seconds() - running.started, 1),
            "found": self.matched[MatchType.RETRO] - running.matched,
        }

    # The node starts and ends

    def _node_up(self) -> None:
        if not self.running:
            return
        self._engine.resume()
        self._start(self._serve())

    def _node_down(self) -> None:
        if self.state is not State.AWAY:
            self._log.warn("The engine has gone; waiting for it.")
        self._end_tasks()

    def _end_tasks(self) -> Deferred[None]:
        self.state = State.AWAY
        self._reset_live_match()
        self._engine.interrupt()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return gatherResults(tasks).addCallback(lambda _: None)

    def stopService(self) -> Deferred[None]:
        """
        Interrupt the engine's calls.

        @return: Fires when all calls have ended.
        """
        self.running = 0
        stopped = self._end_tasks()
        return stopped.addCallback(lambda _: MultiService.stopService(self))

    def _start(self, coroutine: Any) -> Deferred[None]:
        task: Deferred[None] = Deferred.fromCoroutine(coroutine)
        self._tasks.append(task)
        return task.addErrback(self._eb_task).addCallback(lambda _: self._ended(task))

    def _ended(self, task: Deferred[None]) -> None:
        if task in self._tasks:
            self._tasks.remove(task)

    def _eb_task(self, failure: Failure) -> None:
        if not failure.check(CancelledError, EngineInterrupted):
            self._log.failure("The session with the engine failed", failure)

    def _notify(self) -> None:
        wake, self._waiters = self._waiters, []
        for waiting in wake:
            waiting.callback(None)

    def _next_change(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiting)
        return waiting

    # The calls of the engine

    async def _serve(self) -> None:
        self.state = State.FILLING
        try:
            self.identity = await self._retry("identify the engine", self._engine.identify)
        except EngineUnsupported as e:
            self._unsupported(e)
            return
        await self._retry("prepare the engine", self._engine.prepare)
        await self._retry("fill the engine", self._reconcile)
        if self._want_live:
            self._start(self._watch())
        if self._search is not None:
            self._start(self._search_past_events(self._search))
        while True:
            while self._has_backlog:
                await self._retry("update the engine", self._apply)
            try:
                await self._next_change().addTimeout(CHECK_INTERVAL, self._clock)
            except TimeoutError:
                await self._retry("check the engine", self._reconcile)

    @property
    def _has_backlog(self) -> bool:
        """
        Whether changes wait for the engine.
        """
        return bool(self._pending) or self._needs_reconcile or self._applied < self._pending_change

    async def _debounce(self, most: float) -> bool:
        """
        Wait for further changes.

        @param most: The time at which the wait ends, at the latest.
        @return: Whether more changes may come before that time.
        """
        while len(self._pending) < ENTRIES_PER_CHUNK:
            now = self._clock.seconds()
            quiet = (now if self._changes_in_progress else self._changed_at) + DEBOUNCE_SECONDS
            left = min(quiet, most) - now
            if left <= 0:
                return False
            await deferLater(self._clock, left)
        return self._clock.seconds() < most

    async def _wait_until_quiet(self) -> None:
        """
        Wait until no change has come for L{QUIET_SECONDS}, with a limit.
        """
        most = self._clock.seconds() + MAX_QUIET_WAIT_SECONDS
        while self._clock.seconds() < most and (
            self._has_backlog
            or self._changes_in_progress
            or self._clock.seconds() < self._changed_at + QUIET_SECONDS
        ):
            await deferLater(self._clock, QUIET_SECONDS)

    async def _retry(self, task: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """
        Repeat a call until it succeeds.

        @param task: The description of the call, for the log.
        """
        for delay in map(doubling(FIRST_RETRY_DELAY, MAX_RETRY_DELAY), itertools.count()):
            try:
                return await call()
            except (EngineInterrupted, EngineUnsupported):
                raise
            except EngineError as e:
                self._log.error(
                    "Cannot {task}: {reason}; trying again in {delay} s.",
                    task=task,
                    reason=str(e),
                    delay=delay,
                )
            except CancelledError:
                raise
            except Exception:
                self._log.failure("Could not {task}; trying again.", task=task)
            await deferLater(self._clock, delay)

    async def _reconcile(self) -> None:
        """
        Compare the engine's tables with the store, and correct them.
        """
        started = self._clock.seconds()
        self._pending.clear()
        self._needs_reconcile = False
        held = await self._engine.contents()
        desired: DesiredEntries = {}
        for changes in await self._store.reconcile(held):
            desired |= _desired(changes)
        await self._write(desired)
        self._applied = max(self._applied, changes.number)
        self.state = State.READY
        written = sum(entry is not None for entry in desired.values())
        self._log.info(
            "{name} {version} at {endpoint} is ready: {held} entries were there,"
            " {written} written, {erased} erased, in {elapsed:.3f} s.",
            name=self.identity.name if self.identity else "The engine",
            version=self.identity.version if self.identity else "",
            endpoint=self.identity.endpoint if self.identity else "",
            held=len(held),
            written=written,
            erased=len(desired) - written,
            elapsed=self._clock.seconds() - started,
        )
        self._notify()

    async def _apply(self) -> None:
        if self._needs_reconcile:
            try:
                await self._reconcile()
            except BaseException:
                self._needs_reconcile = True
                raise
            return
        update = _EngineUpdate(self._clock, self._engine)
        most = self._pending_since + MAX_DEBOUNCE_SECONDS
        more = True
        try:
            while more:
                more = await self._debounce(most)
                pending, self._pending = self._pending, {}
                change = self._pending_change
                update.write(pending)
                more = more and not update.full
            await update.finish()
        except BaseException:
            self._pending = update.abandon() | self._pending
            raise
        self._applied = max(self._applied, change)
        self._notify()

    async def _write(self, desired: DesiredEntries) -> None:
        update = _EngineUpdate(self._clock, self._engine)
        try:
            update.write(desired)
            await update.finish()
        except BaseException:
            update.abandon()
            raise

    async def _watch(self) -> None:
        while True:
            try:
                await self._engine.watch(self._deliver_live, self._progressed)
                reason = "it ended"
            except (EngineInterrupted, CancelledError):
                raise
            except EngineError as e:
                reason = str(e)
            except Exception as e:
                self._log.failure("Cannot store the sightings of live matches")
                reason = str(e)
            self._reset_live_match()
            self._log.error(
                "The live match stopped: {reason}; starting it again in {delay} s.",
                reason=reason,
                delay=FIRST_RETRY_DELAY,
            )
            await deferLater(self._clock, FIRST_RETRY_DELAY)

    def _reset_live_match(self) -> None:
        self.live = False
        self._caught_up = False
        self._live_since = None
        self._heard_at = None
        self._progress_seen = False
        self._silent = False
        catching, self._catch_up_task = self._catch_up_task, None
        if catching is not None:
            catching.cancel()

    def _deliver_live(self, matches: list[Match]) -> Deferred[None] | None:
        if not matches:
            self.live = True
            self._live_since = self._clock.seconds()
            self._log.info("The live match is running.")
            return None
        return self._deliver_matches(matches, MatchType.LIVE)

    def _progressed(self, progress: Progress) -> Deferred[None] | None:
        """
        Take note of the engine's progress: all earlier matches have been delivered.
        """
        if not self.live:
            return None
        if progress.heard is not None:
            self._heard_at = self._clock.seconds()
            self._lag = progress.behind
            if self._silent:
                self._silent = False
                self._log.info("The live match makes progress again.")
        if not self._progress_seen:
            self._progress_seen = True
            self._catch_up_task = self._start(self._catch_up(progress))
        if not self._caught_up or progress.covered is None:
            return None
        return self._store_covered(covered(progress.covered, progress.lowest, self._boot))

    def _store_covered(self, known: Covered) -> Deferred[None]:
        def cover(result: None) -> None:
            self._covered = known

        return (
            self._store.set_covered(known)
            .addCallback(cover)
            .addErrback(
                lambda failure: self._log.failure(
                    "Cannot store the progress of the live match", failure
                )
            )
        )

    def _check_silence(self) -> None:
        if self._heard_at is None or self._silent:
            return
        since = self._clock.seconds() - self._heard_at
        if since > MAX_SILENCE_SECONDS:
            self._silent = True
            self._log.warn("The live match has made no progress for {since:.0f} s.", since=since)

    def _deliver_matches(self, matches: list[Match], type: MatchType) -> Deferred[None]:
        def count(sightings: int) -> None:
            self.matched[type] += sightings

        return Deferred.fromCoroutine(self._deliver(matches, type)).addCallback(count)

    async def _catch_up(self, progress: Progress) -> None:
        """
        Search the events that arrived while the engine or the bridge was away. They do not
        count as covered before the search has succeeded.
        """
        timeout = self._search.timeout if self._search else CATCH_UP_TIMEOUT
        while not await self._retry(
            "search missed events", functools.partial(self._find_missed, progress, timeout)
        ):
            timeout *= 2
            self._log.warn(
                "The search of missed events is repeated with a limit of {timeout:.0f} s.",
                timeout=timeout,
            )
            await deferLater(self._clock, FIRST_RETRY_DELAY)
        self._caught_up = True
        self._catch_up_task = None

    async def _find_missed(self, progress: Progress, timeout: float) -> bool:
        """
        @return: Whether the search was completed within the time limit.
        """
        known = await self._store.covered()
        heard = progress.heard
        if known is None:
            # The first live match: coverage begins now.
            begins = Covered(self._now() - OVERLAP, self._awake(), self._boot)
            if heard is not None:
                begins = covered(heard, heard.ahead, self._boot)
            await self._store_covered(begins)
            return True
        self._covered = known
        since = None if heard is None else search_from(known, heard, self._boot)
        return await self._search_for(await self._store.entries(), 0, timeout, since)

    async def _search_past_events(self, search: Search) -> None:
        while True:
            await self._wait_until_quiet()
            until = self._applied
            searched = await self._retry(
                "search past events", functools.partial(self._search_batch, search, until)
            )
            if not searched and until >= self._applied:
                await self._next_change()

    async def _search_batch(self, search: Search, until: int) -> bool:
        """
        Search past events for the next new indicators.

        @return: Whether there were any.
        """
        found = await self._store.unsearched(until, MAX_INDICATORS_PER_SEARCH)
        if found.ids:
            since = search.since(self._now())
            await self._search_for(found.entries, search.limit, search.timeout, since)
            await self._store.mark_searched(found.ids, until)
        return bool(found.ids)

    async def _search_for(
        self, entries: list[Entry], limit: int, timeout: float, since: float | None
    ) -> bool:
        """
        @return: Whether the search was completed within the time limit.
        """
        if not entries:
            return True
        await self._search_lock.acquire()
        try:
            return await self._run_search(entries, limit, timeout, since)
        finally:
            self._search_lock.release()

    async def _run_search(
        self, entries: list[Entry], limit: int, timeout: float, since: float | None
    ) -> bool:
        running = _RetroSearch(entries, self._clock.seconds(), self.matched[MatchType.RETRO])
        outcome = "found"
        self._running_search = running
        try:
            running.finding = self._engine.find(
                entries,
                limit,
                timeout,
                lambda matches: (
                    self._deliver_matches(matches, MatchType.RETRO) if matches else None
                ),
                since,
            )
            await running.finding
        except EngineTimeout:
            outcome = "ran out of time, having found"
        except CancelledError:
            if not running.given_up:
                raise
            outcome = "was cancelled, as its indicators have ended, having found"
        finally:
            self._running_search = None
        self.searches += 1
        self._log.info(
            "A search of past events for {count} observables {outcome} {found} sightings"
            " in {elapsed:.3f} s.",
            count=running.count,
            outcome=outcome,
            found=self.matched[MatchType.RETRO] - running.matched,
            elapsed=self._clock.seconds() - running.started,
        )
        return outcome == "found"


class _EngineUpdate:
    """
    Writes changes to the engine, with one call that adds entries and one that removes some.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, engine: IEngineClient) -> None:
        """
        @param clock: The clock that measures the update.
        @param engine: The engine.
        """
        self._clock = clock
        self._engine = engine
        self._started = clock.seconds()
        self._entries: DesiredEntries = {}
        self._added = 0
        self._adding: IAdding | None = None
        self._removed: list[Observable] = []

    @property
    def full(self) -> bool:
        """
        Whether further changes need another update: this one is large, or removes entries,
        which a further change could add again.
        """
        return len(self._entries) >= MAX_ENTRIES_PER_CALL or bool(self._removed)

    def write(self, entries: DesiredEntries) -> None:
        """
        Add changes to the calls.

        @param entries: The changes, none of an observable that an earlier change removes.
        """
        self._entries |= entries
        add = [entry for entry in entries.values() if entry is not None]
        self._removed = [observable for observable, entry in entries.items() if entry is None]
        for start in range(0, len(add), ENTRIES_PER_CHUNK):
            if self._adding is None:
                self._adding = self._engine.adding()
            self._adding.add(add[start : start + ENTRIES_PER_CHUNK])
        self._added += len(add)

    async def finish(self) -> None:
        """
        Wait until the engine has made all changes.

        @raise EngineError: If it failed; see L{IAdding.end}.
        """
        if self._adding is not None:
            await self._adding.end()
        for start in range(0, len(self._removed), MAX_ENTRIES_PER_CALL):
            await self._engine.remove(self._removed[start : start + MAX_ENTRIES_PER_CALL])
        if self._entries:
            self._log.info(
                "The engine took {added} entries and removed {removed} in {elapsed:.3f} s.",
                added=self._added,
                removed=len(self._removed),
                elapsed=self._clock.seconds() - self._started,
            )

    def abandon(self) -> DesiredEntries:
        """
        Abandon the calls.

        @return: The changes, which may or may not have been made.
        """
        if self._adding is not None:
            self._adding.abandon()
        return self._entries


class _NodeWatch(Protocol):
    """
    An idle connection to the node, which is lost when the node ends.
    """

    def __init__(self, up: Callable[[], None], down: Callable[[], None]) -> None:
        """
        @param up: Called when the connection is made.
        @param down: Called when it is lost.
        """
        self._up = up
        self._down = down

    def connectionMade(self) -> None:
        self._up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._down()
