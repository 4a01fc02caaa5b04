"""
Matches the events that arrive at an engine, and searches those that arrived meanwhile.

An engine dates its imports, and an administrator may set the date forward or back. Two
clocks therefore record the moment up to which everything has been matched: the date, and
the seconds since the machine's start, which nobody sets. A change of their difference
shows that the date was set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime

import attrs
import msgspec
from twisted.application.internet import TimerService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bridge.node_watch import FIRST_RETRY_DELAY, NodeWatch
from tbvast.bridge.retro_search import Deliver, RetroSearch
from tbvast.errors import EngineError, EngineInterrupted, EngineTablesChanged
from tbvast.interfaces import IIndicatorStore
from tbvast.service.clock import Calendar, awake
from tbvast.stix.sightings import MatchType
from tbvast.values import Covered, JsonObject, Match, Moment, Progress

PROGRESS_SECONDS = 5.0
"""
Seconds within which a healthy engine reports its progress again, if it can.
"""

MAX_SILENCE_SECONDS, SILENCE_CHECK_INTERVAL = 15.0, 1.0
"""
Seconds without progress after which the live match no longer counts as live, and between checks
of that.
"""

CATCH_UP_TIMEOUT = 300.0
"""
Seconds for the first search of missed events, if past events are not searched otherwise.
After a timeout the search is repeated with twice the time.
"""

OVERLAP = 10.0
"""
Seconds that are searched again: an engine may date an event and pass it to the live match
some seconds later.
"""


class _Run(msgspec.Struct):
    """
    One run of the live match.

    @ivar since: The time of its start; seconds of the reactor's clock, as for C{heard_at}.
    @ivar heard_at: The time of the last progress; C{None} if the engine cannot tell.
    @ivar lag: Seconds from an import to its match at that time.
    @ivar silent: Whether there has been no progress for too long.
    @ivar catch_up: The search of missed events.
    @ivar caught_up: Whether missed events have been searched.
    """

    since: float | None = None
    heard_at: float | None = None
    lag: float = 0.0
    silent: bool = False
    catch_up: Deferred[None] | None = None
    caught_up: bool = False


@attrs.define(eq=False, repr=False, slots=False)
class LiveMatch(TimerService):
    """
    Keeps the live match running, and records up to where everything has been matched.

    The events that arrived while the engine or the bridge was away are searched; they do not
    count as covered before that has succeeded.

    @param timeout: Seconds for the first search of missed events.
    @param boot: The identity of this start of the machine.
    @param awake: The seconds since that start.
    """

    _log = Logger()

    _node: NodeWatch
    _store: IIndicatorStore
    _search: RetroSearch
    _deliver: Deliver
    _now: Calendar
    _timeout: float = CATCH_UP_TIMEOUT
    _boot: str = ""
    _awake: Callable[[], float] = awake
    _run: _Run = attrs.field(init=False, factory=_Run)
    _covered: Covered | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        super().__init__(SILENCE_CHECK_INTERVAL, self._check_silence)
        self.clock = self._node.clock

    def report(self) -> JsonObject:
        """
        The state of the match, for the status report.
        """
        run, now = self._run, self._node.clock.seconds()
        running = run.since is not None
        found: JsonObject = {"live": running and not run.silent}
        if run.since is not None:
            found["live_for"] = round(now - run.since, 1)
        if run.heard_at is not None:
            silence = now - run.heard_at
            behind = run.lag + (silence if silence > PROGRESS_SECONDS else 0.0)
            found["behind"] = round(behind, 2)
        found["catching_up"] = running and not run.caught_up
        if self._covered is not None:
            found["covered"] = datetime.fromtimestamp(self._covered.until, UTC).isoformat()
        return found

    async def begin(self) -> None:
        """
        Begin the record at the first start of a bridge, before any search: a search covers the
        events before it, and the first live match has to cover those after it.
        """
        if await self._store.covered() is None:
            begins = Covered(self._now() - OVERLAP, self._awake(), self._boot)
            await self._store.set_covered(begins)

    async def run(self) -> None:
        """
        Match arriving events. When the match ends, start it again.
        """
        while True:
            try:
                await self._node.engine.watch(self._matched, self._progressed)
                reason = "it ended"
            except (EngineInterrupted, EngineTablesChanged, CancelledError):
                raise
            except EngineError as e:
                reason = str(e)
            except Exception as e:
                self._log.failure("Cannot store the sightings of live matches")
                reason = str(e)
            finally:
                ended, self._run = self._run, _Run()
                if ended.catch_up is not None:
                    ended.catch_up.cancel()
            self._log.error(
                "The live match stopped: {reason}; starting it again in {delay} s.",
                reason=reason,
                delay=FIRST_RETRY_DELAY,
            )
            await deferLater(self._node.clock, FIRST_RETRY_DELAY)

    def _matched(self, matches: list[Match]) -> Deferred[None] | None:
        if matches:
            return self._deliver(matches, MatchType.LIVE)
        self._run.since = self._node.clock.seconds()
        self._log.info("The live match is running.")
        return None

    def _progressed(self, progress: Progress) -> Deferred[None] | None:
        """
        Take note of the engine's progress: all earlier matches have been delivered.
        """
        run = self._run
        if run.since is None:
            return None
        if progress.heard is not None:
            run.heard_at = self._node.clock.seconds()
            run.lag = progress.behind
            if run.silent:
                run.silent = False
                self._log.info("The live match makes progress again.")
        if run.catch_up is None:
            run.catch_up = Deferred.fromCoroutine(self._catch_up(run, progress))
            run.catch_up.addErrback(self._eb_catch_up)
        if not run.caught_up or progress.covered is None:
            return None
        known = covered(progress.covered, progress.lowest, self._boot)
        return Deferred.fromCoroutine(self._store_covered(known))

    def _eb_catch_up(self, failure: Failure) -> None:
        # Of these, the first two mean that the match has ended.
        failure.trap(CancelledError, EngineInterrupted, EngineTablesChanged)
        if isinstance(failure.value, EngineTablesChanged):
            self._node.tables_changed(failure.value)

    async def _store_covered(self, known: Covered) -> None:
        try:
            await self._store.set_covered(known)
            self._covered = known
        except Exception:
            self._log.failure("Cannot store the progress of the live match")

    def _check_silence(self) -> None:
        run = self._run
        if run.heard_at is None or run.silent:
            return
        since = self._node.clock.seconds() - run.heard_at
        if since > MAX_SILENCE_SECONDS:
            run.silent = True
            self._log.warn("The live match has made no progress for {since:.0f} s.", since=since)

    async def _catch_up(self, run: _Run, progress: Progress) -> None:
        timeout = self._timeout
        while not await self._node.retry(
            "search missed events", functools.partial(self._search_missed, progress, timeout)
        ):
            timeout *= 2
            self._log.warn(
                "The search of missed events is repeated with a limit of {timeout:.0f} s.",
                timeout=timeout,
            )
            await deferLater(self._node.clock, FIRST_RETRY_DELAY)
        run.caught_up = True

    async def _search_missed(self, progress: Progress, timeout: float) -> bool:
        """
        @return: Whether the search was completed within the time limit.
        """
        known = self._covered = await self._store.covered()
        heard, since = progress.heard, None
        if known is not None and heard is not None:
            since = search_from(known, heard, self._boot)
        return await self._search.search_all(timeout, since)


def covered(moment: Moment, lowest: float, boot: str) -> Covered:
    """
    Make the record of a moment up to which everything has been matched.

    @param lowest: The least lead of the date over the other clock since that moment.
    @param boot: The identity of the machine's start.
    """
    return Covered(min(moment.imported, moment.awake + lowest), moment.awake, boot)


def search_from(known: Covered, heard: Moment, boot: str) -> float | None:
    """
    The date from which a search covers every event that was imported after a moment.

    @param heard: The import that the live match has just reported.
    @return: Seconds since the epoch; C{None} if all events have to be searched.
    """
    if boot and boot == known.boot:
        # If the date was set back since, the moment has an earlier date today.
        return min(known.until, known.awake + heard.ahead) - OVERLAP
    return None if heard.imported < known.until else known.until - OVERLAP
