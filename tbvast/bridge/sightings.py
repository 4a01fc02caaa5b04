"""
From matches to sightings: made, kept, and handed on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    FirstError,
    gatherResults,
    maybeDeferred,
    succeed,
)
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bridge.keeper import Keeper
from tbvast.bridge.nesting import Nesting
from tbvast.bridge.outbox import PAGE_BYTES, STRIKE_DELAY, Pages
from tbvast.client import Reported
from tbvast.errors import CommandFailed, CommandRefused, Invalid, PatternUnmatchable, shown
from tbvast.intel.indicators import STIX, Indicator, decode_indicator
from tbvast.intel.matches import Hit, Match, MatchType
from tbvast.intel.observables import Kind, Observable, unescaped
from tbvast.intel.patterns import Matchable, Term, matchable
from tbvast.intel.sightings import Sighting, make_sighting
from tbvast.interfaces import IContextTransform, ISink
from tbvast.ops.ratelimit import RateLimit
from tbvast.ops.worker import Ask
from tbvast.service.clock import Calendar
from tbvast.storage.set_aside import MOST_BYTES, MOST_REASON, reason_of

RETRY_DELAY = 2.0
"""
Seconds before sightings that were not taken are offered again.
"""

CACHED = 1024
"""
How many indicators that were seen lately are not read again.
"""

LONGEST_CACHED = 16_384
"""
Bytes of a document beyond which it is read each time.
"""

STUCK_DELAY = 30.0
"""
Seconds before they are, if the receiver is there and takes none of them.
"""

WAITING_LINES_PER_MINUTE = 2
LINES_PER_MINUTE = 20
"""
How often a minute the log says that sightings wait, or that one is not taken.
"""

MOST_UNMADE = 100
"""
How many matches of one call are set aside at most; more are only counted.
"""

Handing = Callable[[list[bytes]], Deferred[Reported]]
"""
Hands on the documents of sightings.
"""


class SightingMaker:
    """
    Makes sightings of matches, one for each indicator and event.

    @ivar unmade: How many it could not make.
    """

    _log = Logger()

    def __init__(
        self,
        now: Calendar,
        ask: Ask,
        engine: str,
        transform: IContextTransform | None,
    ) -> None:
        """
        @param now: The date of a sighting whose event has none.
        @param ask: Asks the L{Keeper}.
        @param engine: The engine's name.
        """
        self.unmade = 0
        self._now = now
        self._ask = ask
        self._engine = engine
        self._transform = transform
        self._recent = functools.lru_cache(CACHED)(Wanted)

    async def make(self, matches: list[Match], match_type: MatchType) -> list[Sighting]:
        """
        @return: Without those of indicators that are no longer in force, or whose
            pattern the event does not fulfil: it wants more than was hit, or was
            changed since; and without those that cannot be made, which are set aside.
        @raise CancelledError: If it was cancelled: nothing is set aside for that, and the
            matches count as not dealt with.
        """
        ids = {id for match in matches for hit in match.hits for id in hit.ids}
        bodies: dict[str, bytes] = await self._ask(Keeper.bodies, list(ids))
        unmade: list[tuple[str, str, bytes]] = []
        wanted: dict[str, Wanted] = {}
        for id, body in bodies.items():
            try:
                wanted[id] = self._wanted(body)
            except Exception as e:
                unmade.append((id, reason_of(e), body))
        made = [
            maybeDeferred(self._make_one, match, wanted[id], hits, match_type).addErrback(
                _eb_unmade, id, match, unmade
            )
            for match in matches
            for id, hits in _hits_by_id(match).items()
            if id in wanted
        ]
        try:
            found = await gatherResults(made, consumeErrors=True)
        except FirstError as e:
            e.subFailure.raiseException()
        sightings = [sighting for sighting in found if sighting is not None]
        if unmade:
            self.unmade += len(unmade)
            await self._ask(Keeper.set_unmade_aside, unmade[:MOST_UNMADE], self._now())
        return sightings

    def _make_one(
        self, match: Match, wanted: Wanted, hits: list[Hit], match_type: MatchType
    ) -> Deferred[Sighting | None]:
        values = wanted.seen(hits)
        if not values:
            return succeed(None)
        return self._make(match.event, wanted.indicator, values, match_type)

    def _wanted(self, body: bytes) -> Wanted:
        return (self._recent if len(body) <= LONGEST_CACHED else Wanted)(body)

    def _make(
        self,
        event: dict[str, Any],
        indicator: Indicator,
        values: Sequence[str],
        match_type: MatchType,
    ) -> Deferred[Sighting | None]:
        def with_context(context: dict[str, Any]) -> Sighting:
            return make_sighting(
                indicator_id=indicator.id,
                indicator_raw=indicator.raw,
                values=values,
                match_type=match_type,
                event=event,
                context=context,
                engine=self._engine,
                now=datetime.fromtimestamp(self._now(), UTC),
            )

        if self._transform is None:
            return succeed(with_context(event))
        return self._transform.transform(event, values[0], match_type).addCallback(with_context)


def _eb_unmade(
    failure: Failure, id: str, match: Match, unmade: list[tuple[str, str, bytes]]
) -> None:
    if failure.check(CancelledError):  # the matches come again
        failure.raiseException()
    failure.trap(Exception)
    try:
        event = msgspec.json.encode(match.event)
    except Exception:  # that is why
        event = repr(match.event).encode("utf-8", "backslashreplace")
    error: Any = failure.value
    unmade.append((id, reason_of(error), event[:MOST_BYTES]))


def _hits_by_id(match: Match) -> dict[str, list[Hit]]:
    """
    The hits of each indicator, in their order.
    """
    found: dict[str, list[Hit]] = {}
    for hit in match.hits:
        for id in hit.ids:
            found.setdefault(id, []).append(hit)
    return found


class Wanted:
    """
    What an indicator wants to be seen.

    @ivar indicator: The indicator.
    """

    def __init__(self, body: bytes) -> None:
        """
        @param body: The indicator's document.
        """
        self.indicator = decode_indicator(body)
        self._matchable: Matchable | None = None
        self._terms: dict[Observable, Term] = {}
        if self.indicator.pattern_type != STIX:
            return
        try:
            self._matchable = matchable(self.indicator.pattern or "")
        except (Invalid, PatternUnmatchable):
            return
        for term in self._matchable.terms:
            self._terms[term.observable] = term
            if (as_logged := unescaped(term.observable)) is not None:
                self._terms.setdefault(as_logged, term)

    @functools.cached_property
    def _needed(self) -> tuple[frozenset[Observable], ...]:
        return self._matchable.needed if self._matchable is not None else ()

    @functools.cached_property
    def _nesting(self) -> Nesting:
        return Nesting(each.value for each in self._terms if each.kind is Kind.NETWORK)

    def seen(self, hits: Iterable[Hit]) -> tuple[str, ...]:
        """
        What was seen, as the indicator has it: what was hit first, or, where it wants
        several together, all of the first alternative that was hit.

        @param hits: The hits of one event for this indicator.
        @return: Nothing if the event is not what the indicator wants.
        """
        if self._matchable is None:
            return ()
        if not self._matchable.joint:
            first = next((term for hit in hits for term in self._hit(hit)), None)
            return (first.text,) if first is not None else ()
        observables = {term.observable for hit in hits for term in self._hit(hit)}
        if any(needed.isdisjoint(observables) for needed in self._needed):
            return ()  # of most events that hold one that is frequent
        return tuple(term.text for term in self._matchable.held(observables))

    def _hit(self, hit: Hit) -> Iterator[Term]:
        """
        The terms that a hit stands for: of a network, also all that cover it, for the
        engine names only the narrowest.
        """
        exact = self._terms.get(Observable(hit.kind, hit.value))
        if exact is not None:
            yield exact
        if hit.kind is Kind.NETWORK:
            covering = {Observable(hit.kind, each) for each in self._nesting.covering(hit.value)}
            for observable, term in self._terms.items():
                if term is not exact and observable in covering:
                    yield term


class Outbox(Service):
    """
    Sightings that are kept until they have been handed on.

    @ivar made: How many sightings there were; a repeat is none.
    @ivar handed_on: How many have been handed on.
    @ivar set_aside: How many were given up.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, now: Calendar, ask: Ask, hand_on: Handing) -> None:
        """
        @param now: The date from which a sighting is remembered.
        @param ask: Asks the L{Keeper}.
        """
        self.made = 0
        self.handed_on = 0
        self.set_aside = 0
        self._pages = Pages()
        self._waiting_lines = RateLimit(clock, WAITING_LINES_PER_MINUTE)
        self._lines = RateLimit(clock, LINES_PER_MINUTE)
        self._clock = clock
        self._now = now
        self._ask = ask
        self._hand_on = hand_on
        self._flushing: Deferred[None] | None = None
        self._again = False
        self._retry: IDelayedCall | None = None

    def startService(self) -> None:
        super().startService()
        self.flush()

    def stopService(self) -> Deferred[None]:
        """
        @return: Fires when what is being handed on has been.
        """
        super().stopService()
        self._again = False
        self._cancel_retry()
        return self._flushing or succeed(None)

    async def add(self, sightings: Iterable[Sighting]) -> None:
        """
        Keep sightings, durably, and begin to hand them on.
        """
        new = await self._ask(Keeper.remember, list(sightings), self._now())
        self.made += new
        if new:
            self.flush()

    def flush(self) -> None:
        """
        Hand on what waits, now: somebody may listen again.
        """
        if not self.running:
            return
        self._cancel_retry()
        if self._flushing is not None:
            self._again = True
            return
        self._again = False
        self._flushing = Deferred.fromCoroutine(self._flush())
        self._flushing.addErrback(self._eb_flush).addCallback(self._cb_flushed)

    def _eb_flush(self, failure: Failure) -> None:
        self._log.failure("While handing on sightings", failure)
        self._retry_later()

    def _cb_flushed(self, _: None) -> None:
        self._flushing = None
        if self._again:
            self.flush()

    async def _flush(self) -> None:
        pages = self._pages
        while self.running:
            again = pages.due(self._clock.seconds())
            if again is not None:
                waiting = await self._ask(Keeper.unsent_among, [again])
                if not waiting:
                    pages.forget(again)
                    continue
            else:
                waiting = await self._ask(Keeper.unsent, pages.size, PAGE_BYTES, pages.postponed)
            if not waiting:
                if pages.postponed:
                    self._retry_later(STRIKE_DELAY)
                return
            reported = await self._hand_on([body for _, body in waiting])
            left = await self._settle([id for id, _ in waiting], reported)
            if not left:
                continue
            if not reported.poisoned:
                self._say_waiting("Sightings wait: {reason}", reported.reason or "nobody is there")
                self._retry_later(RETRY_DELAY)
                return
            await self._failed(left, reported.reason)
            if pages.stuck:
                self._retry_later(STUCK_DELAY)
                return

    async def _settle(self, ids: list[str], reported: Reported) -> list[str]:
        """
        Take note of what became of a page.

        @return: The ids of those that wait on.
        """
        done = [id for id, ok in zip(ids, reported.taken, strict=True) if ok]
        refused = {ids[n]: reason for n, reason in reported.refused.items()}
        if refused:
            await self._give_up(refused)
        if done:
            sent = [id for id in done if id not in refused]
            await self._ask(Keeper.mark_sent, sent)
            self.handed_on += len(sent)
            self._pages.taken(done)
        return [id for id, ok in zip(ids, reported.taken, strict=True) if not ok]

    async def _failed(self, ids: list[str], reason: str) -> None:
        if len(ids) > 1:
            self._say_waiting("Sightings wait, and are offered fewer at a time: {reason}", reason)
        else:
            self._say("A sighting is not taken, and is offered again later: {reason}", reason)
        given_up = self._pages.failed(ids, self._clock.seconds())
        if given_up is not None:
            await self._give_up({given_up: f"never taken: {reason}"})

    async def _give_up(self, reasons: dict[str, str]) -> None:
        self.set_aside += len(reasons)
        for id, reason in reasons.items():
            self._say(f"Set the sighting {id} aside: {{reason}}", reason)
        await self._ask(
            Keeper.set_sightings_aside,
            {id: reason[:MOST_REASON] for id, reason in reasons.items()},
            self._now(),
        )

    def _say_waiting(self, text: str, reason: str) -> None:
        if self._waiting_lines.allows():
            self._log.warn(text, reason=shown(reason))

    def _say(self, text: str, reason: str) -> None:
        if self._lines.allows():
            self._log.warn(text, reason=shown(reason))

    def _retry_later(self, delay: float = RETRY_DELAY) -> None:
        if self.running:
            self._cancel_retry()
            self._retry = self._clock.callLater(delay, self.flush)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            if self._retry.active():
                self._retry.cancel()
            self._retry = None


class _Reported(msgspec.Struct):
    x_threatbus_sighting_context: dict[str, Any]
    x_threatbus_indicator_value: str
    x_threatbus_match_type: MatchType


class SinkHanding:
    """
    The contexts of sightings go to a sink, instead of the bus.
    """

    _log = Logger()

    def __init__(self, sink: ISink) -> None:
        self._sink = sink

    def __call__(self, documents: list[bytes]) -> Deferred[Reported]:
        return gatherResults(map(self._send, documents), consumeErrors=True).addCallback(_reported)

    def _send(self, document: bytes) -> Deferred[bool | str]:
        try:
            sighting = msgspec.json.decode(document, type=_Reported)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            return succeed(reason_of(e))
        return self._sink.send(
            sighting.x_threatbus_sighting_context,
            sighting.x_threatbus_indicator_value,
            sighting.x_threatbus_match_type,
        ).addCallbacks(lambda _: True, self._eb_not_taken)

    def _eb_not_taken(self, failure: Failure) -> bool | str:
        failure.trap(CommandFailed)
        refused = failure.check(CommandRefused) is not None
        self._log.warn(
            "The sink did not take a sighting{outcome}: {reason}",
            outcome=", and never will" if refused else "; trying again",
            reason=str(failure.value),
        )
        return str(failure.value) if refused else False


def _reported(outcomes: list[bool | str]) -> Reported:
    """
    @param outcomes: Of each sighting whether it was taken, or why it never will be.
    """
    return Reported(
        [outcome is not False for outcome in outcomes],
        {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, str)},
        "" if False not in outcomes else "the sink did not take all of them",
    )
