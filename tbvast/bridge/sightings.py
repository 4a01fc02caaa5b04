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
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bridge.keeper import Keeper
from tbvast.bridge.nesting import Nesting
from tbvast.errors import CommandFailed, CommandRefused, Invalid, PatternUnmatchable
from tbvast.intel.indicators import STIX, Indicator, decode_indicator
from tbvast.intel.matches import Hit, Match, MatchType
from tbvast.intel.observables import Kind, Observable, unescaped
from tbvast.intel.patterns import Matchable, Term, matchable
from tbvast.intel.sightings import Sighting, make_sighting
from tbvast.interfaces import IContextTransform, ISink
from tbvast.ops.worker import Ask
from tbvast.service.clock import Calendar

PAGE = 500
"""
Sightings that are read from the store, and handed on, at a time.
"""

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

Handing = Callable[[list[bytes]], Deferred[list[bool]]]
"""
Hands on the documents of sightings; says of each whether it was taken.
"""


class SightingMaker:
    """
    Makes sightings of matches, one for each indicator and event.
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
        self._now = now
        self._ask = ask
        self._engine = engine
        self._transform = transform
        self._recent = functools.lru_cache(CACHED)(Wanted)

    async def make(self, matches: list[Match], match_type: MatchType) -> list[Sighting]:
        """
        @return: Without those of indicators that are no longer in force, or whose
            pattern the event does not fulfil: it wants more than was hit, or was
            changed since.
        """
        ids = {id for match in matches for hit in match.hits for id in hit.ids}
        bodies: dict[str, bytes] = await self._ask(Keeper.bodies, list(ids))
        wanted = {id: self._wanted(body) for id, body in bodies.items()}
        made = [
            self._make(match.event, wanted[id].indicator, values, match_type)
            for match in matches
            for id, hits in _hits_by_id(match).items()
            if id in wanted and (values := wanted[id].seen(hits))
        ]
        return await gatherResults(made, consumeErrors=True)

    def _wanted(self, body: bytes) -> Wanted:
        return (self._recent if len(body) <= LONGEST_CACHED else Wanted)(body)

    def _make(
        self,
        event: dict[str, Any],
        indicator: Indicator,
        values: Sequence[str],
        match_type: MatchType,
    ) -> Deferred[Sighting]:
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
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, now: Calendar, ask: Ask, hand_on: Handing) -> None:
        """
        @param now: The date from which a sighting is remembered.
        @param ask: Asks the L{Keeper}.
        """
        self.made = 0
        self.handed_on = 0
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
        while waiting := await self._ask(Keeper.unsent, PAGE):
            taken = await self._hand_on([body for _, body in waiting])
            done = [id for (id, _), ok in zip(waiting, taken, strict=True) if ok]
            await self._ask(Keeper.mark_sent, done)
            self.handed_on += len(done)
            if len(done) < len(waiting):
                self._retry_later()
                return

    def _retry_later(self) -> None:
        if self.running:
            self._retry = self._clock.callLater(RETRY_DELAY, self.flush)

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

    def __call__(self, documents: list[bytes]) -> Deferred[list[bool]]:
        return gatherResults(map(self._send, documents), consumeErrors=True)

    def _send(self, document: bytes) -> Deferred[bool]:
        sighting = msgspec.json.decode(document, type=_Reported)
        return self._sink.send(
            sighting.x_threatbus_sighting_context,
            sighting.x_threatbus_indicator_value,
            sighting.x_threatbus_match_type,
        ).addCallbacks(lambda _: True, self._eb_not_taken)

    def _eb_not_taken(self, failure: Failure) -> bool:
        failure.trap(CommandFailed)
        refused = failure.check(CommandRefused) is not None
        self._log.warn(
            "The sink did not take a sighting{outcome}: {reason}",
            outcome=", and never will" if refused else "; trying again",
            reason=str(failure.value),
        )
        return refused
