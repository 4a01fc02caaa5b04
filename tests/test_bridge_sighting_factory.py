"""
Tests for L{tbvast.bridge.sighting_factory}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.outbox import Outbox
from tbvast.bridge.sighting_factory import (
    LONGEST_CACHED,
    SightingMaker,
    SinkHanding,
    Wanted,
)
from tbvast.bridge.store.indicators import BridgeStore
from tbvast.bridge.store.worker import Keeper
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.service.flusher import RETRY_DELAY, STUCK_DELAY, Reported
from tbvast.service.pages import PAGE, PAGE_BYTES, STRIKE_DELAY, STRIKES
from tbvast.stix.indicators import Indicator
from tbvast.stix.limits import LARGEST_SIGHTING
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.sightings import MatchType, Sighting, canonical, decode_sighting, sighting_id
from tbvast.values import Hit, Match
from tests.doubles import (
    MemorySink,
    MemoryTransform,
    a_match,
    a_sighting,
    an_indicator,
    asking,
    indicator_id,
)

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
        self.store = BridgeStore(Path(self.mktemp()))
        self.addCleanup(self.store.close)


class MakerTests(StoreTestCase):
    """
    Tests for L{SightingMaker}.
    """

    def know(self, *indicators: Indicator) -> None:
        self.store.apply(indicators, 0.0, False)

    def make(self, *matches: Match, transform: Any = None) -> list[Sighting]:
        maker = SightingMaker(self.clock.seconds, asking(Keeper(self.store)), "tenzir", transform)
        made = self.successResultOf(
            Deferred.fromCoroutine(maker.make(list(matches), MatchType.LIVE))
        )
        for sighting in made:
            self.assertEqual(decode_sighting(sighting.raw), sighting)
        return made

    def test_document(self) -> None:
        """
        A sighting says what was seen where, when and by whom.
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
        There is one for each indicator and each event.
        """
        pattern = "[ipv4-addr:value = '192.0.2.1']"
        ids = [indicator_id(1), indicator_id(2)]
        self.know(an_indicator(1, pattern=pattern), an_indicator(2, pattern=pattern))
        made = self.make(a_match(EVENT, (IP, ids)), a_match({**EVENT, "id": 2}, (IP, ids)))
        self.assertEqual([s.indicator for s in made], ids * 2)
        self.assertEqual(len({s.id for s in made}), 4)

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
        An indicator that wants several observables in one event is sighted once where
        they all are, and not where some are, be it in another event that was found at
        the same time; others do not depend on it.
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
        What was read lately is not read again, but a new version is.
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
        one = an_indicator(1, description="x" * LONGEST_CACHED)
        self.know(one)
        for _ in range(2):
            self.assertEqual(len(self.make(a_match(EVENT, (IP, [one.id])))), 1)

    def test_not_in_force(self) -> None:
        """
        What the engine found for an indicator that is gone is no sighting.
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
        self.store._db.execute("UPDATE indicators SET body = ? WHERE id = ?", (damaged, ids[1]))
        made = self.make(
            a_match({**EVENT, "id": 1}, (IP, ids)), a_match({**EVENT, "id": object()}, (IP, ids))
        )
        self.assertEqual([s.indicator for s in made], [ids[0]])
        aside = self.store.counts()["set_aside"]
        self.assertEqual(aside["count"], 2)

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
        An event that is longer than any document is sighted, under the same id as ever,
        without what is long in it, and the sighting says so.
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
        maker = SightingMaker(self.clock.seconds, asking(Keeper(self.store)), "tenzir", waiting)
        matches = [a_match({"n": n}, (IP, [one.id])) for n in range(3)]
        making = Deferred.fromCoroutine(maker.make(matches, MatchType.LIVE))
        self.assertNoResult(making)
        making.cancel()
        self.failureResultOf(making, CancelledError)
        self.assertEqual(maker.unmade, 0)

    def test_transformed(self) -> None:
        """
        The context is what the transform made of the event; the id is the event's.
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


class SeenTests(SynchronousTestCase):
    """
    Tests for L{Wanted}.
    """

    def hit(self, kind: Kind, value: str) -> Hit:
        return Hit("field", kind, value, (indicator_id(1),))

    def seen(self, pattern: str, *hits: tuple[Kind, str], **changes: Any) -> tuple[str, ...]:
        wanted = Wanted(an_indicator(1, pattern=pattern, **changes).raw)
        return wanted.seen([self.hit(*hit) for hit in hits])

    def test_as_written(self) -> None:
        """
        The value is as the indicator has it, not as the engine compares it.
        """
        pattern = "[domain-name:value = 'Evil.Example']"
        self.assertEqual(self.seen(pattern, (Kind.DOMAIN, "evil.example")), ("Evil.Example",))

    def test_covering(self) -> None:
        """
        For a network within the indicator's it is the indicator's.
        """
        pattern = "[ipv6-addr:value ISSUBSET '2001::/16' OR ipv4-addr:value ISSUBSET '10.0.0.0/8']"
        self.assertEqual(self.seen(pattern, (Kind.NETWORK, "10.1.0.0/16")), ("10.0.0.0/8",))
        self.assertEqual(self.seen(pattern, (Kind.NETWORK, "10.0.0.0/8")), ("10.0.0.0/8",))
        narrow = "[ipv4-addr:value ISSUBSET '10.0.0.0/16']"
        self.assertEqual(self.seen(narrow, (Kind.NETWORK, "10.0.0.0/8")), ())

    def test_unescaped(self) -> None:
        """
        A URL whose escapes were undone is the indicator's.
        """
        pattern = "[url:value = 'http://a.example/it%27s']"
        hit = (Kind.URL, "unescaped a.example/it's")
        self.assertEqual(self.seen(pattern, hit), ("http://a.example/it%27s",))
        self.assertEqual(self.seen(pattern, (Kind.URL, "a.example/it's")), ())

    def test_edited(self) -> None:
        """
        What was hit by an indicator that was changed meanwhile is nothing that it wants.
        """
        hits = ((Kind.IP, "203.0.113.7"), (Kind.NETWORK, "10.0.0.0/8"))
        self.assertEqual(self.seen("[ipv4-addr:value = '192.0.2.2']", *hits), ())
        self.assertEqual(self.seen("[process:name = 'x']", *hits), ())
        self.assertEqual(self.seen("{", *hits, pattern_type="yara"), ())

    def test_together(self) -> None:
        """
        What has to be seen together is named together, or is not seen.
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
            self.assertEqual(self.seen(pattern, *hits), expected)

    def test_networks_together(self) -> None:
        """
        One address can be what several terms want: itself, its network, and all that
        cover it, of which the engine names the narrowest.
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
        self.assertEqual(self.seen(pattern, address, narrow), expected)
        self.assertEqual(self.seen(pattern, address, wide), ())
        self.assertEqual(self.seen(pattern, narrow), ())


class Taker:
    """
    What sightings are handed to.

    @ivar given: The documents, each time.
    @ivar answers: What it answers, in order; then that all were taken.
    @ivar poison: Documents with which it takes no page.
    @ivar away: Whether nobody is there.
    """

    def __init__(self) -> None:
        self.given: list[list[bytes]] = []
        self.answers: list[Deferred[list[bool]]] = []
        self.poison: set[bytes] = set()
        self.refused: dict[bytes, str] = {}
        self.away = False

    def __call__(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        self.given.append(list(documents))
        if self.answers:
            return self.answers.pop(0).addCallback(Reported)
        none = [False] * len(documents)
        if self.away:
            return succeed(Reported(none))
        if self.poison.intersection(documents):
            return succeed(Reported(none, {}, "no answer", True))
        refused = {n: self.refused[raw] for n, raw in enumerate(documents) if raw in self.refused}
        return succeed(Reported([True] * len(documents), refused))


class OutboxTests(StoreTestCase):
    """
    Tests for L{Outbox}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.taker = Taker()
        self.outbox = Outbox(self.clock, self.clock.seconds, asking(Keeper(self.store)), self.taker)
        self.outbox.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if self.outbox.running:
            self.successResultOf(self.outbox.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def add(self, *sightings: Sighting) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.outbox.add(sightings)))

    def unsent(self) -> list[str]:
        return [id for id, _ in self.store.unsent(1000, 1 << 30)]

    def test_taken(self) -> None:
        """
        What was taken waits no longer.
        """
        one = a_sighting(1)
        self.add(one)
        self.assertEqual(self.taker.given, [[one.raw]])
        self.assertEqual(self.unsent(), [])
        self.assertEqual((self.outbox.made, self.outbox.delivered), (1, 1))

    def test_repeat(self) -> None:
        """
        A repeat is not handed on again.
        """
        self.add(a_sighting(1))
        self.add(a_sighting(1))
        self.assertEqual(len(self.taker.given), 1)
        self.assertEqual(self.outbox.made, 1)

    def test_kept_until_taken(self) -> None:
        """
        Until somebody has answered, a sighting is kept.
        """
        answer: Deferred[list[bool]] = Deferred()
        self.taker.answers.append(answer)
        self.add(a_sighting(1))
        self.assertEqual(self.unsent(), [a_sighting(1).id])
        answer.callback([True])
        self.assertEqual(self.unsent(), [])

    def test_tried_again(self) -> None:
        """
        What was not taken is offered again, alone, after a while.
        """
        one, two = a_sighting(1), a_sighting(2)
        self.taker.answers.append(succeed([True, False]))
        self.add(one, two)
        self.assertEqual(self.unsent(), [two.id])
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.taker.given[1:], [[two.raw]])
        self.assertEqual(self.unsent(), [])
        self.assertEqual(self.outbox.delivered, 2)

    def test_failed(self) -> None:
        """
        A failure is logged, loses nothing, and does not end the trying.
        """
        answer: Deferred[list[bool]] = Deferred()
        answer.errback(RuntimeError())
        self.taker.answers.append(answer)
        self.add(a_sighting(1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.unsent(), [a_sighting(1).id])
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.unsent(), [])

    def test_ready(self) -> None:
        """
        When somebody listens again it is offered at once, and not once more later.
        """
        self.taker.answers.append(succeed([False]))
        self.add(a_sighting(1))
        self.outbox.flush()
        self.assertEqual(self.unsent(), [])
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(len(self.taker.given), 2)

    def test_one_at_a_time(self) -> None:
        """
        What is added meanwhile follows, and nothing is offered twice at once.
        """
        answer: Deferred[list[bool]] = Deferred()
        self.taker.answers.append(answer)
        self.add(a_sighting(1))
        self.add(a_sighting(2))
        self.outbox.flush()
        self.assertEqual(len(self.taker.given), 1)
        answer.callback([True])
        self.assertEqual(self.taker.given[1:], [[a_sighting(2).raw]])

    def test_pages(self) -> None:
        """
        Many are handed on page by page.
        """
        self.add(*(a_sighting(number) for number in range(1, PAGE + 2)))
        self.assertEqual([len(given) for given in self.taker.given], [PAGE, 1])

    def test_started_again(self) -> None:
        """
        What waits is handed on when the service starts, and not while it does not run.
        """
        self.stop()
        self.add(a_sighting(1))
        self.assertEqual(self.taker.given, [])
        self.outbox.startService()
        self.assertEqual(self.taker.given, [[a_sighting(1).raw]])

    def test_stop(self) -> None:
        """
        The end waits for what is being handed on, and tries nothing afterwards.
        """
        answer: Deferred[list[bool]] = Deferred()
        self.taker.answers.append(answer)
        self.add(a_sighting(1))
        stopped = self.outbox.stopService()
        self.assertNoResult(stopped)
        answer.callback([False])
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.unsent(), [a_sighting(1).id])

    # What is not taken

    def aside(self) -> int:
        found: int = self.store.counts()["set_aside"].get("count", 0)
        return found

    def test_bytes(self) -> None:
        """
        A page holds no more bytes than it may, and a long sighting is alone.
        """
        long = [a_sighting(n, x="x" * PAGE_BYTES * 2) for n in (1, 3)]
        some = [a_sighting(n, x="x" * (PAGE_BYTES // 3)) for n in (4, 5, 6, 7)]
        self.add(long[0], a_sighting(2), long[1], *some)
        self.assertEqual(sum(map(len, self.taker.given)), 7)
        for given in self.taker.given:
            self.assertTrue(len(given) == 1 or sum(map(len, given)) <= PAGE_BYTES)
        self.assertLess(len(self.taker.given), 7)

    def test_refused(self) -> None:
        """
        What is refused is set aside, is not offered again, and is not made again.
        """
        one, two = a_sighting(1), a_sighting(2)
        self.taker.refused[one.raw] = "no sighting"
        self.add(one, two)
        self.assertEqual(self.unsent(), [])
        self.add(one)
        self.assertEqual(len(self.taker.given), 1)
        self.assertEqual((self.outbox.delivered, self.outbox.set_aside), (1, 1))
        self.assertEqual(self.aside(), 1)
        self.assertIn("no sighting", self.store.counts()["set_aside"]["newest"])

    def test_poison(self) -> None:
        """
        One for which no page is taken keeps no other one waiting, and is given up when it
        was not taken again and again while others were.
        """
        all = [a_sighting(n) for n in range(1, 200)]
        bad = all[77]
        self.taker.poison.add(bad.raw)
        self.add(*all)
        self.assertEqual(self.unsent(), [bad.id])
        self.assertEqual(self.outbox.delivered, 198)
        self.assertLess(len(self.taker.given), 30)
        for number in range(200, 200 + STRIKES - 1):
            self.assertEqual(self.aside(), 0)
            self.add(a_sighting(number))
            self.clock.advance(STRIKE_DELAY)
        self.assertEqual(self.unsent(), [])
        self.assertEqual((self.aside(), self.outbox.set_aside), (1, 1))

    def test_poison_alone(self) -> None:
        """
        While nothing else is taken, nothing is given up; it is offered again and again.
        """
        bad = [a_sighting(n) for n in range(1, 4)]
        self.taker.poison = {each.raw for each in bad}
        self.add(*bad)
        for _ in range(20):
            given = len(self.taker.given)
            self.clock.advance(STRIKE_DELAY)
            self.assertGreater(len(self.taker.given), given)
        self.assertEqual((len(self.unsent()), self.aside()), (3, 0))
        self.taker.poison = set()
        self.clock.advance(STRIKE_DELAY)
        self.assertEqual(self.unsent(), [])

    def test_nothing_taken(self) -> None:
        """
        A receiver that answers, and takes nothing at all, costs nothing but time, and is
        not asked without a pause.
        """
        all = [a_sighting(n) for n in range(1, 100)]
        self.taker.poison = {each.raw for each in all}
        self.add(*all)
        self.assertLess(len(self.taker.given), 40)
        for _ in range(50):
            given = len(self.taker.given)
            self.clock.advance(STUCK_DELAY)
            self.assertLess(len(self.taker.given) - given, 20)
        self.assertEqual((len(self.unsent()), self.aside()), (99, 0))
        self.taker.poison = set()
        self.clock.advance(STRIKE_DELAY)
        self.assertEqual(self.unsent(), [])

    def test_away(self) -> None:
        """
        A receiver that is away is offered the same pages when it is back.
        """
        self.taker.away = True
        all = [a_sighting(n) for n in range(1, 100)]
        self.add(*all)
        for _ in range(50):
            self.clock.advance(RETRY_DELAY)
        self.assertEqual({len(given) for given in self.taker.given}, {99})
        self.taker.away = False
        self.clock.advance(RETRY_DELAY)
        self.assertEqual((self.unsent(), self.aside()), ([], 0))


class SinkTests(SynchronousTestCase):
    """
    Tests for L{SinkHanding}.
    """

    def setUp(self) -> None:
        self.sink = MemorySink()
        self.hand_on = SinkHanding(self.sink)
        self.document = a_sighting(
            1,
            x_threatbus_sighting_context={"a": 1},
            x_threatbus_indicator_value="192.0.2.1",
            x_threatbus_match_type="RETRO",
        ).raw

    def test_taken(self) -> None:
        """
        The sink gets the context, the value and the type.
        """
        reported = self.successResultOf(self.hand_on([self.document]))
        self.assertEqual(reported, Reported([True]))
        self.assertEqual(self.sink.taken, [({"a": 1}, "192.0.2.1", MatchType.RETRO)])

    def test_not_taken(self) -> None:
        """
        What the sink did not take this time is not taken.
        """
        self.sink.failure = CommandFailed("sink", "it ended")
        reported = self.successResultOf(self.hand_on([self.document] * 2))
        self.assertEqual((reported.taken, reported.refused), ([False] * 2, {}))
        self.assertFalse(reported.poisoned)

    def test_refused(self) -> None:
        """
        What the sink can never take is done with.
        """
        self.sink.failure = CommandRefused("sink", "too long")
        reported = self.successResultOf(self.hand_on([self.document]))
        self.assertEqual(reported.taken, [True])
        self.assertIn("too long", reported.refused[0])

    def test_damaged(self) -> None:
        """
        A document that was damaged where it was kept is refused alone.
        """
        reported = self.successResultOf(self.hand_on([b"{", self.document]))
        self.assertEqual(reported.taken, [True, True])
        self.assertEqual(list(reported.refused), [0])
