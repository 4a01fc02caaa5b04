"""
From matches to sightings: made, kept, and handed on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    FirstError,
    gatherResults,
    maybeDeferred,
    succeed,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.bridge.store.worker import Keeper
from tbvast.errors import CommandFailed, CommandRefused, Invalid, PatternUnmatchable
from tbvast.interfaces import IContextTransform, ISink
from tbvast.service.clock import Calendar
from tbvast.service.flusher import Reported
from tbvast.stix.indicators import STIX, Indicator, decode_indicator
from tbvast.stix.network_index import Nesting
from tbvast.stix.observables import Kind, Observable, unescaped
from tbvast.stix.pattern_conditions import Matchable, Term, matchable
from tbvast.stix.sightings import Sighting, make_sighting
from tbvast.storage.set_aside import MOST_BYTES, reason_of
from tbvast.storage.worker_client import CallWorker
from tbvast.values import Hit, Match, MatchType

CACHED = 1024
"""
How many indicators that were seen lately are not read again.
"""

LONGEST_CACHED = 16_384
"""
Bytes of a document beyond which it is read each time.
"""

MOST_UNMADE = 100
"""
How many matches of one call are set aside at most; more are only counted.
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
        ask: CallWorker,
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

    def __call__(self, documents: Sequence[bytes]) -> Deferred[Reported]:
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
