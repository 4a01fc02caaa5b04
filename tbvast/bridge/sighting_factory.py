"""
Makes sightings of matches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import attrs
import msgspec
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults

from tbvast.bridge.outbox import Counters
from tbvast.errors import Invalid, PatternUnmatchable
from tbvast.interfaces import IContextTransform, IIndicatorStore
from tbvast.protocol.unreadable import KEPT_BYTES
from tbvast.service.clock import Calendar
from tbvast.stix.indicators import STIX, decode_indicator
from tbvast.stix.network_index import NetworkIndex
from tbvast.stix.observables import Kind, Observable, unescaped
from tbvast.stix.pattern_conditions import Matchable, Term, matchable
from tbvast.stix.sightings import MatchType, Sighting, make_sighting
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.values import Hit, JsonObject, Match

MAX_CACHED, MAX_CACHED_BYTES = 1024, 16_384
"""
The most parsed indicators in the cache, and the most bytes of the document of each.
"""

MAX_SET_ASIDE = 100
"""
The most matches of one call that are set aside; further ones are only counted.
"""


@attrs.define(eq=False)
class SightingFactory:
    """
    Makes sightings of matches, one for each indicator and event.

    @param now: The date of a sighting whose event has none.
    @param engine: The engine's name.
    @param transform: Changes the context of each sighting; C{None} for no change.
    """

    _now: Calendar
    _store: IIndicatorStore
    _engine: str
    _transform: IContextTransform | None
    _counters: Counters
    _recent: Callable[[bytes], IndicatorMatcher] = attrs.field(
        init=False, factory=lambda: functools.lru_cache(MAX_CACHED)(IndicatorMatcher)
    )

    async def make(self, matches: list[Match], match_type: MatchType) -> list[Sighting]:
        """
        Make the sightings of matches.

        There is none for an indicator that is no longer in force or whose pattern the event does
        not match, perhaps because it has changed. Sightings that cannot be made are set aside.

        @raise CancelledError: If the call is cancelled; nothing is set aside then.
        """
        ids = {id for match in matches for hit in match.hits for id in hit.ids}
        bodies = await self._store.bodies(ids)
        failed: list[SetAside] = []
        matchers: dict[str, IndicatorMatcher] = {}
        for id, body in bodies.items():
            try:
                cached = len(body) <= MAX_CACHED_BYTES
                matchers[id] = self._recent(body) if cached else IndicatorMatcher(body)
            except Exception as e:
                failed.append(SetAside(Stage.MATCH, reason_of(e), body, "event", id))
        making = [
            self._make_one(match, matchers[id], hits, match_type, failed)
            for match in matches
            for id, hits in _hits_by_id(match).items()
            if id in matchers
        ]
        if self._transform is None:
            made = [await each for each in making]
        else:
            try:
                made = await gatherResults(map(Deferred.fromCoroutine, making), consumeErrors=True)
            except FirstError as e:
                e.subFailure.raiseException()
        sightings = [sighting for sighting in made if sighting is not None]
        self._counters.matched[match_type] += len(sightings)
        if failed:
            self._counters.set_aside += len(failed)
            await self._store.set_aside(failed[:MAX_SET_ASIDE])
        return sightings

    async def _make_one(
        self,
        match: Match,
        matcher: IndicatorMatcher,
        hits: list[Hit],
        match_type: MatchType,
        failed: list[SetAside],
    ) -> Sighting | None:
        indicator, event = matcher.indicator, match.event
        try:
            values = matcher.match(hits)
            if not values:
                return None
            context = event
            if self._transform is not None:
                context = await self._transform.transform(event, values[0], match_type)
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
        except CancelledError:  # the engine delivers the matches again
            raise
        except Exception as e:
            body = _encode(event)[:KEPT_BYTES]
            failed.append(SetAside(Stage.MATCH, reason_of(e), body, "event", indicator.id))
            return None


def _encode(event: JsonObject) -> bytes:
    try:
        return msgspec.json.encode(event)
    except Exception:  # that is why no sighting could be made
        return repr(event).encode("utf-8", "backslashreplace")


def _hits_by_id(match: Match) -> dict[str, list[Hit]]:
    found: dict[str, list[Hit]] = {}
    for hit in match.hits:
        for id in hit.ids:
            found.setdefault(id, []).append(hit)
    return found


class IndicatorMatcher:
    """
    Decides whether the hits of an event match an indicator, given by its document.
    """

    def __init__(self, body: bytes) -> None:
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
    def _nesting(self) -> NetworkIndex:
        return NetworkIndex(each.value for each in self._terms if each.kind is Kind.NETWORK)

    def match(self, hits: Iterable[Hit]) -> tuple[str, ...]:
        """
        Match the hits of an event.

        @return: The matched values as the indicator has them: the first hit, or, of a
            pattern that needs several observables in one event, all values of the first
            alternative that was hit. Empty if the event does not match.
        """
        if self._matchable is None:
            return ()
        if not self._matchable.joint:
            first = next((term for hit in hits for term in self._hit(hit)), None)
            return (first.text,) if first is not None else ()
        observables = {term.observable for hit in hits for term in self._hit(hit)}
        if any(needed.isdisjoint(observables) for needed in self._needed):
            return ()  # most events with one frequent observable
        return tuple(term.text for term in self._matchable.held(observables))

    def _hit(self, hit: Hit) -> Iterator[Term]:
        """
        @return: The terms that a hit satisfies. The engine names only the narrowest network,
            so the networks that cover it are added.
        """
        exact = self._terms.get(Observable(hit.kind, hit.value))
        if exact is not None:
            yield exact
        if hit.kind is Kind.NETWORK:
            covering = {Observable(hit.kind, each) for each in self._nesting.covering(hit.value)}
            for observable, term in self._terms.items():
                if term is not exact and observable in covering:
                    yield term
