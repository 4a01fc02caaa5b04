"""
The session with the engine: it holds what it should, and matches.
"""

from __future__ import annotations

import contextlib
import enum
import functools
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
from tbvast.bridge.store.indicators import BEGINNING, Changes, DesiredPage
from tbvast.bridge.store.worker import PIECE, Keeper
from tbvast.errors import EngineError, EngineInterrupted, EngineTimeout, EngineUnsupported
from tbvast.interfaces import IAdding, IEngineClient
from tbvast.service.clock import Calendar, awake
from tbvast.stix.observables import Kind, Observable
from tbvast.storage.worker_client import CallWorker
from tbvast.values import Covered, EngineIdentity, Entry, Match, MatchType, Progress

RETRY_FIRST = 0.5
RETRY_MOST = 30.0
"""
Seconds between attempts at something that the engine did not do: they double, up
to the most.
"""

WATCH_FIRST = 0.1
WATCH_MOST = 5.0
"""
Seconds between attempts to connect to the node.
"""

CHECK_INTERVAL = 600.0
"""
Seconds without a change after which the engine's tables are compared with the store.
"""

PULSE_LIMIT = 5.0
"""
Seconds within which an engine that can tell how far it is says so again, if all is well.
"""

DEAF = 15.0
"""
Seconds without a word of how far it is, after which the live match is not taken for live.
"""

LOOK_INTERVAL = 1.0
"""
Seconds between looks at that.
"""

CATCH_UP_TIMEOUT = 300.0
"""
Seconds for the first search of what was missed, where past events are not searched
otherwise. One that ran out of time is made again, with twice the time.
"""

GATHER = 0.02
GATHER_MOST = 2.0
"""
Seconds without another change, nor one under way, after which the engine is given no more
in one call, and the most that a call lasts: each costs as much as some ten thousand entries.
What the engine is given it holds back for a second at most, until more comes, or the end.
"""

CALM = 0.25
CALM_MOST = 10.0
"""
Seconds without a change after which past events are searched, and the most that
this waits: new indicators are written, and arriving events matched, first; and what
arrives in pieces is searched for in one pass.
"""

MOST_PENDING = 200_000
"""
How many changed entries wait in memory for an engine that is behind; beyond that
all of them are read from the store again.
"""

BATCH = 50_000
"""
About how many entries the engine is given in one call at most.
"""

SEARCH_BATCH = 100_000
"""
The most indicators that are looked for in one pass over the past events.
"""


class State(enum.StrEnum):
    """
    How the session is doing.
    """

    AWAY = "away"
    FILLING = "filling"
    READY = "ready"


class Search(msgspec.Struct, frozen=True):
    """
    How past events are searched.

    @ivar limit: The most events for each observable; C{0} for all of them.
    @ivar timeout: Seconds for one pass.
    @ivar days: Only events that arrived in the last so many days; C{0} for all.
    """

    limit: int
    timeout: float
    days: int = 0

    def since(self, now: float) -> float | None:
        """
        When the oldest of the events arrived; C{None} for any time.
        """
        return now - self.days * 86400.0 if self.days else None


class _Pass:
    """
    One pass over the past events.

    @ivar wanted: What is searched for, and has not been withdrawn.
    @ivar given_up: Whether all of it has.
    """

    def __init__(self, entries: Sequence[Entry], started: float, matched: int) -> None:
        """
        @param matched: How many matches there were before.
        """
        self.count = len(entries)
        self.wanted = {entry.observable for entry in entries}
        self.started = started
        self.matched = matched
        self.given_up = False
        self.finding: Deferred[None] = Deferred()

    def withdrawn(self, observables: Iterable[Observable]) -> None:
        """
        These are not wanted any more.
        """
        self.wanted.difference_update(observables)
        if not self.wanted and not self.given_up:
            self.given_up = True
            self.finding.cancel()


_Wanted = dict[Observable, Entry | None]
"""
What the engine should hold of some observables; nothing of those that nobody wants.
"""


def _wanted(changes: Changes) -> _Wanted:
    wanted: _Wanted = {entry.observable: entry for entry in changes.write}
    return wanted | dict.fromkeys(changes.erase)


Deliver = Callable[[list[Match], MatchType], Coroutine[Deferred[Any], Any, int]]
"""
Takes matches, and says how many sightings they were; the next ones are read when it is
done.
"""


class EngineSession(MultiService):
    """
    Keeps an engine's tables as the store says, and has it match.

    One idle TCP connection to the node tells when it goes away; from then on
    until it is back, and has been given everything again, nothing is asked of it.

    @ivar state: How it is doing.
    @ivar live: Whether arriving events are being matched.
    @ivar identity: Who the engine is; C{None} until it was asked.
    @ivar matched: How many sightings the matches were, by type.
    @ivar searches: How many passes over the past events there were.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        now: Calendar,
        endpoint: IStreamClientEndpoint,
        engine: IEngineClient,
        ask: CallWorker,
        deliver: Deliver,
        live: bool,
        search: Search | None,
        unsupported: Callable[[EngineUnsupported], None],
        boot: str = "",
        awake: Callable[[], float] = awake,
    ) -> None:
        """
        @param now: The date.
        @param endpoint: The node's, to watch.
        @param ask: Asks the L{Keeper}.
        @param live: Whether to match arriving events.
        @param search: How to search past events; C{None} for not at all.
        @param unsupported: Called if the engine is not one that can be driven.
        @param boot: What tells this start of the machine from others.
        @param awake: The seconds since then.
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
        self._ask = ask
        self._deliver = deliver
        self._want_live = live
        self._complete = False
        self._began: float | None = None
        self._heard: float | None = None
        self._told = False
        self._deaf = False
        self._lag = 0.0
        self._covered: Covered | None = None
        self._catching: Deferred[None] | None = None
        self._boot = boot
        self._awake = awake
        self._finding = DeferredLock()
        self._search = search
        self._unsupported = unsupported
        self._pending: _Wanted = {}
        self._pending_since = 0.0
        self._pending_change = 0
        self._overflow = False
        self._applied = 0
        self._changing = 0
        self._changed_at = -CALM
        self._pass: _Pass | None = None
        self._wake: list[Deferred[None]] = []
        self._tasks: list[Deferred[None]] = []
        factory = Factory.forProtocol(functools.partial(_NodeWatch, self._node_up, self._node_down))
        factory.noisy = False
        look = TimerService(LOOK_INTERVAL, self._look)
        look.clock = clock
        look.setServiceParent(self)
        watch = ClientService(
            endpoint,
            factory,
            retryPolicy=backoffPolicy(WATCH_FIRST, WATCH_MOST, jitter=lambda: 0.0),
            clock=clock,
        )
        watch.setServiceParent(self)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """
        While inside, the store is being changed; L{changed} is called with the outcome.
        """
        self._changing += 1
        try:
            yield
        finally:
            self._changing -= 1

    def changed(self, changes: Changes) -> None:
        """
        Tell the engine, as soon as it can be told.
        """
        if changes.write or changes.erase:
            self._changed_at = self._clock.seconds()
            if not self._pending:
                self._pending_since = self._changed_at
        self._pending |= _wanted(changes)
        self._pending_change = max(self._pending_change, changes.number)
        if self._pass is not None:
            self._pass.withdrawn(changes.erase)
        if self.state is State.AWAY or len(self._pending) > MOST_PENDING:
            # What the store holds is compared with the engine before anything else.
            self._pending.clear()
            self._overflow = True
        self._notify()

    def report(self) -> dict[str, Any]:
        """
        How it is doing, for people.
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
            **({"searching": self._search_progress(self._pass)} if self._pass else {}),
        }

    def _report_live(self) -> dict[str, Any]:
        now = self._clock.seconds()
        found: dict[str, Any] = {"live": self.live and not self._deaf}
        if self._began is not None:
            found["live_for"] = round(now - self._began, 1)
        if (behind := self._behind_by()) is not None:
            found["behind"] = round(behind, 2)
        if self._want_live:
            found["catching_up"] = self.live and not self._complete
        if self._covered is not None:
            found["covered"] = datetime.fromtimestamp(self._covered.until, UTC).isoformat()
        return found

    def _behind_by(self) -> float | None:
        """
        Seconds from an import to its match; C{None} if nobody knows.
        """
        if self._heard is None:
            return None
        since = self._clock.seconds() - self._heard
        return self._lag if since <= PULSE_LIMIT else self._lag + since

    def _search_progress(self, running: _Pass) -> dict[str, Any]:
        return {
            "observables": running.count,
            "seconds": round(self._clock.seconds() - running.started, 1),
            "found": self.matched[MatchType.RETRO] - running.matched,
        }

    # The node's coming and going

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
        self._not_live()
        self._engine.interrupt()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        return gatherResults(tasks).addCallback(lambda _: None)

    def stopService(self) -> Deferred[None]:
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
        wake, self._wake = self._wake, []
        for waiting in wake:
            waiting.callback(None)

    def _changes(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(self._wake.remove)
        self._wake.append(waiting)
        return waiting

    # What is asked of the engine

    async def _serve(self) -> None:
        self.state = State.FILLING
        try:
            self.identity = await self._insist("identify the engine", self._engine.identify)
        except EngineUnsupported as e:
            self._unsupported(e)
            return
        await self._insist("prepare the engine", self._engine.prepare)
        await self._insist("fill the engine", self._reconcile)
        if self._want_live:
            self._start(self._watch())
        if self._search is not None:
            self._start(self._search_past(self._search))
        while True:
            while self._behind:
                await self._insist("update the engine", self._apply)
            try:
                await self._changes().addTimeout(CHECK_INTERVAL, self._clock)
            except TimeoutError:
                await self._insist("check the engine", self._reconcile)

    @property
    def _behind(self) -> bool:
        """
        Whether the engine has to be told of something.
        """
        return bool(self._pending) or self._overflow or self._applied < self._pending_change

    async def _gathered(self, most: float) -> bool:
        """
        Wait for what is about to change too.

        @param most: Until when, at most.
        @return: Whether more may come before that.
        """
        while len(self._pending) < PIECE:
            now = self._clock.seconds()
            quiet = (now if self._changing else self._changed_at) + GATHER
            left = min(quiet, most) - now
            if left <= 0:
                return False
            await deferLater(self._clock, left)
        return self._clock.seconds() < most

    async def _calm(self) -> None:
        """
        Wait until nothing changes, but not for ever.
        """
        most = self._clock.seconds() + CALM_MOST
        while self._clock.seconds() < most and (
            self._behind or self._changing or self._clock.seconds() < self._changed_at + CALM
        ):
            await deferLater(self._clock, CALM)

    async def _insist(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """
        Do something until the engine does it.
        """
        delay = RETRY_FIRST
        while True:
            try:
                return await call()
            except (EngineInterrupted, EngineUnsupported):
                raise
            except EngineError as e:
                self._log.error(
                    "Cannot {what}: {reason}; trying again in {delay} s.",
                    what=what,
                    reason=str(e),
                    delay=delay,
                )
            except CancelledError:
                raise
            except Exception:
                self._log.failure("Could not {what}; trying again.", what=what)
            await deferLater(self._clock, delay)
            delay = min(delay * 2, RETRY_MOST)

    async def _reconcile(self) -> None:
        """
        Make the engine hold what it should, and nothing else.
        """
        started = self._clock.seconds()
        self._pending.clear()
        self._overflow = False
        held = await self._engine.contents()
        for start in range(0, max(len(held), 1), PIECE):
            await self._ask(Keeper.compare, held[start : start + PIECE], start)
        wanted: _Wanted = {}
        for changes in await self._ask(Keeper.reconcile):
            wanted |= _wanted(changes)
        await self._write(wanted)
        self._applied = max(self._applied, changes.number)
        self.state = State.READY
        written = sum(entry is not None for entry in wanted.values())
        self._log.info(
            "{name} {version} at {endpoint} is ready: {held} entries were there,"
            " {written} written, {erased} erased, in {elapsed:.3f} s.",
            name=self.identity.name if self.identity else "The engine",
            version=self.identity.version if self.identity else "",
            endpoint=self.identity.endpoint if self.identity else "",
            held=len(held),
            written=written,
            erased=len(wanted) - written,
            elapsed=self._clock.seconds() - started,
        )
        self._notify()

    async def _apply(self) -> None:
        if self._overflow:
            try:
                await self._reconcile()
            except BaseException:
                self._overflow = True
                raise
            return
        writing = _Writing(self._clock, self._engine)
        most = self._pending_since + GATHER_MOST
        more = True
        try:
            while more:
                more = await self._gathered(most)
                pending, self._pending = self._pending, {}
                change = self._pending_change
                writing.write(pending)
                more = more and not writing.full
            await writing.end()
        except BaseException:
            self._pending = writing.abandoned() | self._pending
            raise
        self._applied = max(self._applied, change)
        self._notify()

    async def _write(self, wanted: _Wanted) -> None:
        writing = _Writing(self._clock, self._engine)
        try:
            writing.write(wanted)
            await writing.end()
        except BaseException:
            writing.abandoned()
            raise

    async def _watch(self) -> None:
        while True:
            try:
                await self._engine.watch(self._matched_live, self._progressed)
                reason = "it ended"
            except (EngineInterrupted, CancelledError):
                raise
            except EngineError as e:
                reason = str(e)
            except Exception as e:
                self._log.failure("What was matched could not be kept")
                reason = str(e)
            self._not_live()
            self._log.error(
                "The live match stopped: {reason}; starting it again in {delay} s.",
                reason=reason,
                delay=RETRY_FIRST,
            )
            await deferLater(self._clock, RETRY_FIRST)

    def _not_live(self) -> None:
        self.live = False
        self._complete = False
        self._began = None
        self._heard = None
        self._told = False
        self._deaf = False
        catching, self._catching = self._catching, None
        if catching is not None:
            catching.cancel()

    def _matched_live(self, matches: list[Match]) -> Deferred[None] | None:
        if not matches:
            self.live = True
            self._began = self._clock.seconds()
            self._log.info("The live match is running.")
            return None
        return self._matched(matches, MatchType.LIVE)

    def _progressed(self, progress: Progress) -> Deferred[None] | None:
        """
        All matches before have been delivered.
        """
        if not self.live:
            return None
        if progress.heard is not None:
            self._heard = self._clock.seconds()
            self._lag = progress.behind
            if self._deaf:
                self._deaf = False
                self._log.info("The live match hears again.")
        if not self._told:
            self._told = True
            self._catching = self._start(self._catch_up(progress))
        if not self._complete or progress.covered is None:
            return None
        return self._cover(covered(progress.covered, progress.lowest, self._boot))

    def _cover(self, known: Covered) -> Deferred[None]:
        def cover(result: None) -> None:
            self._covered = known

        return (
            self._ask(Keeper.set_covered, known)
            .addCallback(cover)
            .addErrback(
                lambda failure: self._log.failure("While remembering what was matched", failure)
            )
        )

    def _look(self) -> None:
        if self._heard is None or self._deaf:
            return
        since = self._clock.seconds() - self._heard
        if since > DEAF:
            self._deaf = True
            self._log.warn(
                "The live match has not shown for {since:.0f} s that it hears.", since=since
            )

    def _matched(self, matches: list[Match], type: MatchType) -> Deferred[None]:
        def count(sightings: int) -> None:
            self.matched[type] += sightings

        return Deferred.fromCoroutine(self._deliver(matches, type)).addCallback(count)

    async def _catch_up(self, progress: Progress) -> None:
        """
        Search the events that arrived while nothing was matched: the engine, or the
        bridge, was away. Until all of it was searched, it counts as not covered.
        """
        timeout = self._search.timeout if self._search else CATCH_UP_TIMEOUT
        while not await self._insist(
            "search what was missed", functools.partial(self._find_missed, progress, timeout)
        ):
            timeout *= 2
            self._log.warn(
                "The search of what was missed is made again, with {timeout:.0f} s of time.",
                timeout=timeout,
            )
            await deferLater(self._clock, RETRY_FIRST)
        self._complete = True
        self._catching = None

    async def _find_missed(self, progress: Progress, timeout: float) -> bool:
        """
        @return: Whether there was time for all of it.
        """
        known: Covered | None = await self._ask(Keeper.covered)
        heard = progress.heard
        if known is None:
            # Nothing was ever matched: what arrives from now on is to be.
            begins = Covered(self._now() - OVERLAP, self._awake(), self._boot)
            if heard is not None:
                begins = covered(heard, heard.ahead, self._boot)
            await self._cover(begins)
            return True
        self._covered = known
        since = None if heard is None else search_from(known, heard, self._boot)
        desired = _Desired()
        while desired.last is not None:
            desired.add(await self._ask(Keeper.entries, desired.last))
        return await self._find(desired.entries, 0, timeout, since)

    async def _search_past(self, search: Search) -> None:
        while True:
            await self._calm()
            until = self._applied
            searched = await self._insist(
                "search past events", functools.partial(self._search_batch, search, until)
            )
            if not searched and until >= self._applied:
                await self._changes()

    async def _search_batch(self, search: Search, until: int) -> bool:
        """
        @return: Whether there was anything to search for.
        """
        desired = _Desired()
        while desired.last is not None and (left := SEARCH_BATCH - len(desired.ids)) > 0:
            desired.add(await self._ask(Keeper.unsearched, until, left, desired.last))
        ids = desired.ids
        if ids:
            since = search.since(self._now())
            await self._find(desired.of_ids(), search.limit, search.timeout, since)
            for start in range(0, len(ids), PIECE):
                await self._ask(Keeper.mark_searched, ids[start : start + PIECE], until)
        return bool(ids)

    async def _find(
        self, entries: list[Entry], limit: int, timeout: float, since: float | None
    ) -> bool:
        """
        @return: Whether there was time for all of it.
        """
        if not entries:
            return True
        await self._finding.acquire()
        try:
            return await self._found(entries, limit, timeout, since)
        finally:
            self._finding.release()

    async def _found(
        self, entries: list[Entry], limit: int, timeout: float, since: float | None
    ) -> bool:
        running = _Pass(entries, self._clock.seconds(), self.matched[MatchType.RETRO])
        outcome = "found"
        self._pass = running
        try:
            running.finding = self._engine.find(
                entries,
                limit,
                timeout,
                lambda matches: self._matched(matches, MatchType.RETRO) if matches else None,
                since,
            )
            await running.finding
        except EngineTimeout:
            outcome = "ran out of time, having found"
        except CancelledError:
            if not running.given_up:
                raise
            outcome = "was given up, as nobody wants them any more, having found"
        finally:
            self._pass = None
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


class _Desired:
    """
    The entries to search for, gathered page by page: the store has other calls to answer
    in between, among them those of the live match.

    @ivar last: Where the last page ended; C{None} if there are no more.
    @ivar ids: The indicators.
    """

    def __init__(self) -> None:
        self.last: tuple[int, int] | None = BEGINNING
        self.ids: list[str] = []
        self._entries: dict[Observable, Entry] = {}

    def add(self, page: DesiredPage) -> None:
        self.last = page.last
        self.ids += page.ids
        for entry in page.entries:
            known = self._entries.get(entry.observable)
            if known is not None:
                ids = tuple(sorted({*known.ids, *entry.ids}))
                entry = Entry(entry.observable, ids, known.joint or entry.joint)
            self._entries[entry.observable] = entry

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def of_ids(self) -> list[Entry]:
        """
        The entries, without the indicators that are not among L{ids}.
        """
        ids = frozenset(self.ids)
        return [
            entry
            if entry.observable.kind is not Kind.NETWORK or ids.issuperset(entry.ids)
            else Entry(entry.observable, tuple(filter(ids.__contains__, entry.ids)), entry.joint)
            for entry in self._entries.values()
        ]


class _Writing:
    """
    Changes on their way to the engine, in one call that adds and one that removes.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, engine: IEngineClient) -> None:
        self._clock = clock
        self._engine = engine
        self._started = clock.seconds()
        self._wanted: _Wanted = {}
        self._added = 0
        self._adding: IAdding | None = None
        self._removed: list[Observable] = []

    @property
    def full(self) -> bool:
        """
        Whether what follows had better be written by another one: what is to be removed
        could be added again.
        """
        return len(self._wanted) >= BATCH or bool(self._removed)

    def write(self, wanted: _Wanted) -> None:
        """
        @param wanted: Nothing that was to be removed before.
        """
        self._wanted |= wanted
        add = [entry for entry in wanted.values() if entry is not None]
        self._removed = [observable for observable, entry in wanted.items() if entry is None]
        for start in range(0, len(add), PIECE):
            if self._adding is None:
                self._adding = self._engine.adding()
            self._adding.add(add[start : start + PIECE])
        self._added += len(add)

    async def end(self) -> None:
        """
        Wait until all of it has been done.
        """
        if self._adding is not None:
            await self._adding.end()
        for start in range(0, len(self._removed), BATCH):
            await self._engine.remove(self._removed[start : start + BATCH])
        if self._wanted:
            self._log.info(
                "The engine took {added} entries and let go of {removed} in {elapsed:.3f} s.",
                added=self._added,
                removed=len(self._removed),
                elapsed=self._clock.seconds() - self._started,
            )

    def abandoned(self) -> _Wanted:
        """
        Give up.

        @return: What would have been written.
        """
        if self._adding is not None:
            self._adding.abandon()
        return self._wanted


class _NodeWatch(Protocol):
    """
    An idle connection to the node, which ends when the node does.
    """

    def __init__(self, up: Callable[[], None], down: Callable[[], None]) -> None:
        self._up = up
        self._down = down

    def connectionMade(self) -> None:
        self._up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._down()
