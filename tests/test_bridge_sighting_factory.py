"""
Tests for L{tbvast.bridge.sighting_factory}.
"""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.outbox import Counters
from tbvast.bridge.sighting_factory import (
    MAX_CACHED_BYTES,
    IndicatorMatcher,
    SightingFactory,
)
from tbvast.stix.indicators import Indicator
from tbvast.stix.limits import LARGEST_SIGHTING
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.sightings import MatchType, Sighting, canonical, decode_sighting, sighting_id
from tbvast.values import Hit, Match
from tests.doubles import (
    MemoryTransform,
    a_match,
    an_indicator,
    indicator_id,
)
from tests.doubles_bridge import MemoryStore

IP = Observable(Kind.IP, "192.0.2.1")
DOMAIN = Observable(Kind.DOMAIN, "evil.example")
EVENT = {"timestamp": "2026-01-02T03:04:05Z", "src_ip": "192.0.2.1"}


def fields(sighting: Sighting) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(sighting.raw)
    return found


class StoreTestCase(SynchronousTestCase):
    """
    A test with a clock and a store.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = MemoryStore(self.clock.seconds, False)
        self.addCleanup(self.memory.close)
        self.store = self.memory.file
        self.counters = Counters()


class SightingFactoryTests(StoreTestCase):
    """
    Tests for L{SightingFactory}.
    """

    def know(self, *indicators: Indicator) -> None:
        self.store.indicators.apply(indicators, 0.0, False)

    def maker(self, transform: Any) -> SightingFactory:
        indicators = self.memory.indicators
        return SightingFactory(self.clock.seconds, indicators, "tenzir", transform, self.counters)

    def make(self, *matches: Match, transform: Any = None) -> list[Sighting]:
        maker = self.maker(transform)
        made = self.successResultOf(
            Deferred.fromCoroutine(maker.make(list(matches), MatchType.LIVE))
        )
        for sighting in made:
            self.assertEqual(decode_sighting(sighting.raw), sighting)
        return made

    def test_document(self) -> None:
        """
        A sighting has the value, the place, the time and the engine of the match.
        """
        one = an_indicator(1)
        self.know(one)
        (sighting,) = self.make(a_match(EVENT, (IP, [one.id])))
        said = fields(sighting)
        self.assertEqual(said["sighting_of_ref"], one.id)
        self.assertEqual(said["x_threatbus_indicator_value"], "192.0.2.1")
        self.assertEqual(said["x_threatbus_match_type"], "LIVE")
        self.assertEqual(said["x_threatbus_sighting_context"], EVENT)
        self.assertTrue(said["last_seen"].startswith("2026-01-02T03:04:05"))

    def test_once(self) -> None:
        """
        However many fields of an event hold an indicator, there is one sighting.
        """
        pattern = "[ipv4-addr:value = '192.0.2.1' OR domain-name:value = 'evil.example']"
        one = an_indicator(1, pattern=pattern)
        self.know(one)
        made = self.make(a_match(EVENT, (DOMAIN, [one.id]), (IP, [one.id]), (IP, [one.id])))
        self.assertEqual([fields(s)["x_threatbus_indicator_value"] for s in made], ["evil.example"])

    def test_each(self) -> None:
        """
        There is one for each indicator and each event; they are counted.
        """
        pattern = "[ipv4-addr:value = '192.0.2.1']"
        ids = [indicator_id(1), indicator_id(2)]
        self.know(an_indicator(1, pattern=pattern), an_indicator(2, pattern=pattern))
        made = self.make(a_match(EVENT, (IP, ids)), a_match({**EVENT, "id": 2}, (IP, ids)))
        self.assertEqual([s.indicator for s in made], ids * 2)
        self.assertEqual(len({s.id for s in made}), 4)
        self.assertEqual(self.counters.matched, {MatchType.LIVE: 4, MatchType.RETRO: 0})

    def test_same_id(self) -> None:
        """
        Seen again, be it live or in the past, a sighting has the same id.
        """
        self.know(an_indicator(1))
        match = a_match(EVENT, (IP, [indicator_id(1)]))
        (first,) = self.make(match)
        self.clock.advance(100)
        (again,) = self.make(match)
        self.assertEqual(first.id, again.id)

    def test_together(self) -> None:
        """
        An indicator that needs several observables in one event is sighted once in an event with
        all of them, and not in one with some, even if the others are in another event of the same
        batch. Other indicators are not affected.
        """
        domain, ip = "domain-name:value = 'evil.example'", "ipv4-addr:value = '192.0.2.1'"
        one = an_indicator(1, pattern=f"[{domain} AND {ip}]")
        two = an_indicator(2, pattern=f"[{domain}]")
        self.know(one, two)
        made = self.make(
            a_match({**EVENT, "id": 1}, (IP, [one.id])),
            a_match({**EVENT, "id": 2}, (DOMAIN, [one.id, two.id])),
            a_match({**EVENT, "id": 3}, (IP, [one.id]), (DOMAIN, [one.id, two.id])),
        )
        self.assertEqual(
            [
                (
                    s.indicator,
                    fields(s)["x_threatbus_sighting_context"]["id"],
                    fields(s).get("x_threatbus_indicator_values"),
                )
                for s in made
            ],
            [(two.id, 2, None), (one.id, 3, ["evil.example", "192.0.2.1"]), (two.id, 3, None)],
        )

    def test_read_once(self) -> None:
        """
        A recently parsed indicator is not parsed again, unless it has a new version.
        """
        self.know(an_indicator(1))
        match = a_match(EVENT, (IP, [indicator_id(1)]))
        self.assertEqual(len(self.make(match)), 1)
        self.know(an_indicator(1, 2, pattern="[ipv4-addr:value = '192.0.2.2']"))
        self.assertEqual(self.make(match), [])

    def test_long_document(self) -> None:
        """
        A document that is too long to be kept at hand is read each time.
        """
        one = an_indicator(1, description="x" * MAX_CACHED_BYTES)
        self.know(one)
        for _ in range(2):
            self.assertEqual(len(self.make(a_match(EVENT, (IP, [one.id])))), 1)

    def test_not_in_force(self) -> None:
        """
        A match of an indicator that has ended makes no sighting.
        """
        pattern = "[ipv4-addr:value = '192.0.2.1']"
        self.know(an_indicator(1), an_indicator(2, pattern=pattern))
        self.know(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        made = self.make(a_match(EVENT, (IP, [indicator_id(1), indicator_id(2)])))
        self.assertEqual([s.indicator for s in made], [indicator_id(2)])

    def test_unmade(self) -> None:
        """
        A match that no sighting can be made of is set aside alone.
        """
        ids = [indicator_id(1), indicator_id(2)]
        pattern = "[ipv4-addr:value = '192.0.2.1']"
        self.know(an_indicator(1, pattern=pattern), an_indicator(2, pattern=pattern))
        damaged = bytearray(an_indicator(2, pattern=pattern).raw[:-1])
        self.store.connection.execute(
            "UPDATE indicators SET body = ? WHERE id = ?", (damaged, ids[1])
        )
        made = self.make(
            a_match({**EVENT, "id": 1}, (IP, ids)), a_match({**EVENT, "id": object()}, (IP, ids))
        )
        self.assertEqual([s.indicator for s in made], [ids[0]])
        aside = self.store.counts()["set_aside"]
        self.assertEqual((aside["count"], self.counters.set_aside), (2, 2))

    def test_transform_fails(self) -> None:
        """
        So it is if the transform fails for one of them.
        """

        class Failing(MemoryTransform):
            def transform(self, event: dict[str, Any], *args: Any) -> Deferred[dict[str, Any]]:
                if event["id"] == 1:
                    raise ValueError("no")
                return fail(KeyError("no")) if event["id"] == 2 else succeed(event)

        self.know(an_indicator(1))
        matches = [a_match({**EVENT, "id": n}, (IP, [indicator_id(1)])) for n in (1, 2, 3)]
        self.assertEqual(len(self.make(*matches, transform=Failing())), 1)
        self.assertEqual(self.store.counts()["set_aside"]["count"], 2)

    def test_long_event(self) -> None:
        """
        An event that is longer than any document is sighted under the usual id, without its long
        parts, and the sighting says so.
        """
        self.know(an_indicator(1))
        event = {**EVENT, "payload": "x" * 12_000_000, "short": "y", "flow": {"id": 7}}
        (sighting,) = self.make(a_match(event, (IP, [indicator_id(1)])))
        self.assertLess(len(sighting.raw), LARGEST_SIGHTING)
        said = fields(sighting)
        context = said["x_threatbus_sighting_context"]
        self.assertEqual((context["short"], context["flow"]), ("y", {"id": 7}))
        self.assertEqual(context["payload"], "x" * 1024)
        self.assertEqual(said["x_tbvast_context_left_out"], 12_000_000 - 1024)
        self.assertEqual(sighting.id, sighting_id(indicator_id(1), canonical(event), "tenzir"))

    def test_cancelled(self) -> None:
        """
        A call that is cancelled, as when the engine goes, fails: it makes nothing, and
        sets nothing aside, for its matches come again.
        """

        class Waiting:
            def transform(self, event: dict[str, Any], *args: Any) -> Deferred[dict[str, Any]]:
                return Deferred()

        one = an_indicator(1)
        self.know(one)
        waiting: Any = Waiting()
        maker = self.maker(waiting)
        matches = [a_match({"n": n}, (IP, [one.id])) for n in range(3)]
        making = Deferred.fromCoroutine(maker.make(matches, MatchType.LIVE))
        self.assertNoResult(making)
        making.cancel()
        self.failureResultOf(making, CancelledError)
        self.assertEqual(self.counters, Counters())

    def test_transformed(self) -> None:
        """
        The context is the transformed event; the id depends on the original event.
        """
        self.know(an_indicator(1))
        match = a_match(EVENT, (IP, [indicator_id(1)]))
        (plain,) = self.make(match)
        (changed,) = self.make(match, transform=MemoryTransform())
        self.assertEqual(changed.id, plain.id)
        self.assertEqual(
            fields(changed)["x_threatbus_sighting_context"],
            {"changed": EVENT, "value": "192.0.2.1", "match_type": "LIVE"},
        )


class MatcherTests(SynchronousTestCase):
    """
    Tests for L{IndicatorMatcher}.
    """

    def hit(self, kind: Kind, value: str) -> Hit:
        return Hit("field", kind, value, (indicator_id(1),))

    def match(self, pattern: str, *hits: tuple[Kind, str], **changes: Any) -> tuple[str, ...]:
        wanted = IndicatorMatcher(an_indicator(1, pattern=pattern, **changes).raw)
        return wanted.match([self.hit(*hit) for hit in hits])

    def test_as_written(self) -> None:
        """
        The value is as the indicator has it, not as the engine compares it.
        """
        pattern = "[domain-name:value = 'Evil.Example']"
        self.assertEqual(self.match(pattern, (Kind.DOMAIN, "evil.example")), ("Evil.Example",))

    def test_covering(self) -> None:
        """
        For a network within the indicator's it is the indicator's.
        """
        pattern = "[ipv6-addr:value ISSUBSET '2001::/16' OR ipv4-addr:value ISSUBSET '10.0.0.0/8']"
        self.assertEqual(self.match(pattern, (Kind.NETWORK, "10.1.0.0/16")), ("10.0.0.0/8",))
        self.assertEqual(self.match(pattern, (Kind.NETWORK, "10.0.0.0/8")), ("10.0.0.0/8",))
        narrow = "[ipv4-addr:value ISSUBSET '10.0.0.0/16']"
        self.assertEqual(self.match(narrow, (Kind.NETWORK, "10.0.0.0/8")), ())

    def test_unescaped(self) -> None:
        """
        A URL whose escapes were undone is the indicator's.
        """
        pattern = "[url:value = 'http://a.example/it%27s']"
        hit = (Kind.URL, "unescaped a.example/it's")
        self.assertEqual(self.match(pattern, hit), ("http://a.example/it%27s",))
        self.assertEqual(self.match(pattern, (Kind.URL, "a.example/it's")), ())

    def test_edited(self) -> None:
        """
        A hit of an earlier version of the indicator does not match.
        """
        hits = ((Kind.IP, "203.0.113.7"), (Kind.NETWORK, "10.0.0.0/8"))
        self.assertEqual(self.match("[ipv4-addr:value = '192.0.2.2']", *hits), ())
        self.assertEqual(self.match("[process:name = 'x']", *hits), ())
        self.assertEqual(self.match("{", *hits, pattern_type="yara"), ())

    def test_together(self) -> None:
        """
        Values that have to occur together are named together, or do not match.
        """
        pattern = (
            "[domain-name:value = 'Evil.example' AND ipv4-addr:value = '192.0.2.1']"
            " OR [ipv4-addr:value = '192.0.2.2' AND domain-name:value = 'evil.example']"
        )
        domain, one, two = (
            (Kind.DOMAIN, "evil.example"),
            (Kind.IP, "192.0.2.1"),
            (Kind.IP, "192.0.2.2"),
        )
        for hits, expected in (
            ([one, domain], ("Evil.example", "192.0.2.1")),
            ([domain, two, two], ("192.0.2.2", "evil.example")),
            ([two, one, domain], ("Evil.example", "192.0.2.1")),
            ([domain, domain], ()),
            ([one, two], ()),
        ):
            self.assertEqual(self.match(pattern, *hits), expected)

    def test_networks_together(self) -> None:
        """
        One address can satisfy several terms: itself and the networks that contain it, of which the
        engine names the narrowest.
        """
        pattern = (
            "[ipv4-addr:value = '10.1.2.3' AND ipv4-addr:value = '10.1.0.0/16'"
            " AND ipv4-addr:value = '10.0.0.0/8']"
        )
        address, narrow, wide = (
            (Kind.IP, "10.1.2.3"),
            (Kind.NETWORK, "10.1.2.0/24"),
            (Kind.NETWORK, "10.0.0.0/8"),
        )
        expected = ("10.1.2.3", "10.1.0.0/16", "10.0.0.0/8")
        self.assertEqual(self.match(pattern, address, narrow), expected)
        self.assertEqual(self.match(pattern, address, wide), ())
        self.assertEqual(self.match(pattern, narrow), ())
