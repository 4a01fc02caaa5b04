"""
Tests for L{tbvast.bus.snapshots}.
"""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bus.snapshots import (
    ANSWER_TIME,
    CLIENT_REQUESTS_PER_MINUTE,
    PAGE_BYTES,
    PAGE_ITEMS,
    REQUESTS_PER_MINUTE,
    JournalSource,
)
from tbvast.bus.subscription import LOSSES_PER_MINUTE, Subscription
from tbvast.bus.subscriptions import RETRY_INTERVAL
from tbvast.interfaces import ISnapshotSource
from tbvast.protocol.frames import Envelope
from tests.doubles import (
    DAY,
    MemoryJournal,
    MemoryPub,
    MemorySource,
    a_sighting,
    an_indicator,
)
from tests.doubles_bus import MemoryBus, a_request


class JournalSourceTests(SynchronousTestCase):
    """
    Tests for L{JournalSource}.
    """

    def setUp(self) -> None:
        self.journal = MemoryJournal(Clock())
        self.source = JournalSource(self.journal)
        self.pages: list[list[bytes]] = []

    def read(self, since: float = 0.0) -> Deferred[int]:
        async def read() -> int:
            return await self.source.pages(since, self.send)

        return Deferred.fromCoroutine(read())

    def send(self, page: list[bytes]) -> Deferred[None]:
        self.pages.append(page)
        return succeed(None)

    def test_interface(self) -> None:
        """
        It is an L{ISnapshotSource}; so is the double.
        """
        verifyObject(ISnapshotSource, self.source)
        verifyObject(ISnapshotSource, MemorySource("memory"))

    def test_pages(self) -> None:
        """
        It sends everything that is in force, page by page, of which none is long.
        """
        items = [an_indicator(number) for number in range(PAGE_ITEMS + 1)]
        self.journal.append([*items, a_sighting()])
        self.assertEqual(self.successResultOf(self.read()), len(items))
        self.assertEqual(self.pages[0], [])
        sizes = [sum(map(len, page)) for page in self.pages]
        self.assertGreaterEqual(min(sizes[1:-1]), PAGE_BYTES)
        self.assertLess(max(sizes), PAGE_BYTES + len(items[0].raw))
        self.assertLessEqual(max(map(len, self.pages)), PAGE_ITEMS)
        self.assertEqual([raw for page in self.pages for raw in page], [i.raw for i in items])

    def test_back_pressure(self) -> None:
        """
        Nothing is read before the last page was taken.
        """
        taken: list[Deferred[None]] = []

        def send(page: list[bytes]) -> Deferred[None]:
            self.pages.append(page)
            taken.append(Deferred())
            return taken[-1]

        self.journal.append([an_indicator()])

        async def read() -> int:
            return await self.source.pages(0.0, send)

        d = Deferred.fromCoroutine(read())
        self.assertEqual(self.pages, [[]])
        taken[0].callback(None)
        self.assertEqual(len(self.pages), 2)
        self.assertNoResult(d)
        taken[1].callback(None)
        self.assertEqual(self.successResultOf(d), 1)

    def test_ends_with_the_head(self) -> None:
        """
        Items accepted after the request are not part of the snapshot.
        """
        self.journal.append([an_indicator(1)])

        def send(page: list[bytes]) -> Deferred[None]:
            self.journal.append([an_indicator(2)])
            return self.send(page)

        async def read() -> int:
            return await self.source.pages(0.0, send)

        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(read())), 1)


class SnapshotsTests(SynchronousTestCase):
    """
    Tests for L{Snapshots}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100 * DAY)
        self.pub = MemoryPub()
        self.start(MemorySource("memory", [an_indicator(1).raw], [an_indicator(2).raw]))

    def start(self, *sources: MemorySource) -> None:
        self.bus = MemoryBus(
            self.clock,
            MemoryJournal(self.clock),
            self.pub,
            None,
            sources,
        )
        self.subscriptions = self.bus.subscriptions
        self.snapshots = self.bus.snapshots

    def open(self, *topics: str, **changes: Any) -> Subscription:
        subscription = self.bus.open(a_request(*topics, **changes))
        self.subscriptions.attach(subscription.topic.encode())
        self.clock.advance(RETRY_INTERVAL)
        return subscription

    def got(self, subscription: Subscription) -> list[bytes]:
        return self.pub.to(subscription.topic)

    def asked(self, subscription: Subscription) -> list[dict[str, Any]]:
        """
        The snapshot requests that a subscriber got.
        """
        return [
            json.loads(tail.partition(b" ")[2])
            for tail in self.got(subscription)
            if tail.startswith(b"snapshotrequest ")
        ]

    def answer(self, request: dict[str, Any], item: Any) -> None:
        self.snapshots.answered(Envelope(request["snapshot_id"], item))

    def test_sources(self) -> None:
        """
        Every source is asked, in turn, for that many days.
        """
        first, second = (
            MemorySource(name, [an_indicator(number).raw]) for number, name in enumerate("ab")
        )
        self.start(first, second)
        subscription = self.open()
        now = self.clock.seconds()
        self.snapshots.deliver(subscription, 7)
        self.assertEqual((first.asked, second.asked), ([now - 7 * DAY], [now - 7 * DAY]))
        self.assertEqual(
            self.got(subscription), [b"indicator " + an_indicator(n).raw for n in range(2)]
        )

    def test_everything(self) -> None:
        """
        A full snapshot has everything in force, and other subscribers are not asked.
        """
        source = MemorySource("memory")
        self.start(source)
        other, subscription = self.open(), self.open()
        self.snapshots.deliver(subscription, None)
        self.assertEqual((source.asked, self.got(other)), ([0.0], []))

    def test_vast(self) -> None:
        """
        Each dialect gets its own frames.
        """
        subscription = self.open("threatbus/intel")
        self.snapshots.deliver(subscription, 7)
        self.assertEqual(
            [json.loads(tail)["ioc"] for tail in self.got(subscription)],
            ["192.0.2.1", "192.0.2.2"],
        )

    def test_source_fails(self) -> None:
        """
        A source that fails is logged; its earlier pages, and the other sources, are delivered.
        """
        self.start(
            MemorySource("bad", [an_indicator(1).raw], failure=ZeroDivisionError()),
            MemorySource("good", [an_indicator(2).raw]),
        )
        subscription = self.open()
        with capturedLogs() as events:
            self.snapshots.deliver(subscription, 7)
        self.assertEqual(len(self.got(subscription)), 2)
        self.assertEqual([e["source"] for e in events if "source" in e], ["bad"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_source_late(self) -> None:
        """
        A source that does not answer in its time is named in the log; the others are
        asked then.
        """
        late = MemorySource("late")
        late.time_limit, late.hanging = 5.0, True
        self.start(late, MemorySource("good", [an_indicator(2).raw]))
        subscription = self.open()
        with capturedLogs() as events:
            self.snapshots.deliver(subscription, 7)
            self.assertEqual(self.got(subscription), [])
            self.clock.advance(5.0)
        self.assertEqual(len(self.got(subscription)), 1)
        self.assertEqual([e["source"] for e in events if "source" in e], ["late"])
        self.assertEqual(len(self.flushLoggedErrors(TimeoutError)), 1)

    def test_closed(self) -> None:
        """
        A source is read no further when its subscriber is gone.
        """
        subscription = self.bus.open(a_request())
        self.snapshots.deliver(subscription, 7)
        self.subscriptions.close(subscription.topic)
        self.assertEqual((self.pub.frames, self.flushLoggedErrors()), ([], []))

    def test_others_asked(self) -> None:
        """
        Every other subscriber that may understand the request is asked, once for each stream.
        """
        other = self.open("stix2/sighting")
        vast = self.open("threatbus/intel")
        tbvast = self.open(protocol="tbvast/1")
        subscription = self.open("stix2/indicator", "stix2/sighting")
        self.snapshots.deliver(subscription, 2)
        self.assertEqual(
            sorted((r["type"], r["snapshot_type"], r["snapshot"]) for r in self.asked(other)),
            [("snapshotrequest", 1, 2 * DAY), ("snapshotrequest", 2, 2 * DAY)],
        )
        for one in (vast, tbvast):
            self.assertEqual(self.got(one), [])
        self.assertEqual(self.asked(subscription), [])

    def test_answered(self) -> None:
        """
        Answers go only to the asker, in its dialect.
        """
        other = self.open("stix2/sighting")
        subscription = self.open("threatbus/intel")
        self.snapshots.deliver(subscription, 2)
        (request,) = self.asked(other)
        before = len(self.pub.frames)
        self.answer(request, an_indicator(9))
        self.answer(request, an_indicator(10))
        self.assertEqual(len(self.pub.frames), before + 2)
        self.assertEqual(
            [json.loads(tail)["ioc"] for tail in self.got(subscription)[2:]],
            ["192.0.2.9", "192.0.2.10"],
        )

    def test_answered_before_attached(self) -> None:
        """
        An answer waits for the asker's connection, and follows the snapshot.
        """
        other = self.open("stix2/sighting")
        subscription = self.bus.open(a_request())
        self.snapshots.deliver(subscription, 2)
        self.answer(self.asked(other)[0], an_indicator(9))
        self.assertEqual(self.got(subscription), [])
        self.subscriptions.attach(subscription.topic.encode())
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(
            self.got(subscription), [b"indicator " + an_indicator(n).raw for n in (1, 2, 9)]
        )

    def test_unwanted_answers(self) -> None:
        """
        An answer to an unknown request, a late answer, and an answer to a closed subscription
        are dropped.
        """
        other = self.open("stix2/sighting")
        subscription = self.open()
        self.snapshots.deliver(subscription, 2)
        gone = self.open()
        self.snapshots.deliver(gone, 3)
        late, left = self.asked(other)
        self.subscriptions.close(gone.topic)
        before = len(self.pub.frames)
        self.answer({"snapshot_id": "unknown"}, an_indicator(9))
        self.answer(left, an_indicator(9))
        self.clock.advance(ANSWER_TIME)
        self.answer(late, an_indicator(9))
        self.assertEqual(len(self.pub.frames), before)

    def test_asked_once(self) -> None:
        """
        Subscriptions that want the same at the same time share one request, and all get the
        answers.
        """
        other = self.open("stix2/sighting")
        askers = [self.open() for _ in range(5)]
        for asker in askers:
            self.snapshots.deliver(asker, 2)
        (request,) = self.asked(other)
        self.answer(request, an_indicator(9))
        for asker in askers:
            self.assertEqual(self.got(asker)[-1], b"indicator " + an_indicator(9).raw)

    def test_newcomers_asked(self) -> None:
        """
        A subscriber that came after the first request is asked, too.
        """
        self.snapshots.deliver(self.open(), 2)
        newcomer = self.open("stix2/sighting")
        subscription = self.open()
        self.snapshots.deliver(subscription, 2)
        (request,) = self.asked(newcomer)
        self.answer(request, an_indicator(9))
        self.assertEqual(self.got(subscription)[-1], b"indicator " + an_indicator(9).raw)

    def test_answered_already(self) -> None:
        """
        A subscription that comes after the first answer gets a new request.
        """
        other = self.open("stix2/sighting")
        self.snapshots.deliver(self.open(), 2)
        self.answer(self.asked(other)[0], an_indicator(9))
        self.snapshots.deliver(self.open(), 2)
        self.assertEqual(len({r["snapshot_id"] for r in self.asked(other)}), 2)

    def test_too_many(self) -> None:
        """
        Others are asked for some snapshots of one client a minute; beyond that a subscription gets
        those of the sources, and the answers to a request for the same.
        """
        other = self.open("stix2/sighting")
        cycles = [self.bus.open(a_request(), "one") for _ in range(100)]
        with capturedLogs() as events:
            for days, subscription in enumerate(cycles, 1):
                self.snapshots.deliver(subscription, days)
        asked = self.asked(other)
        self.assertEqual(len(asked), CLIENT_REQUESTS_PER_MINUTE)
        self.assertEqual(
            sum("Asked nobody" in event["log_format"] for event in events), LOSSES_PER_MINUTE
        )
        self.snapshots.deliver(self.open(), 200)
        self.assertEqual(len(self.asked(other)), CLIENT_REQUESTS_PER_MINUTE + 1)
        last = self.bus.open(a_request(), "one")
        self.snapshots.deliver(last, 5)
        self.answer(asked[4], an_indicator(9))
        self.subscriptions.attach(last.topic.encode())
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.got(last), [b"indicator " + an_indicator(n).raw for n in (1, 2, 9)])
        self.clock.advance(60)
        self.snapshots.deliver(cycles[0], 300)
        self.assertEqual(len(self.asked(other)), CLIENT_REQUESTS_PER_MINUTE + 2)

    def test_ended_askers(self) -> None:
        """
        Subscriptions that ask for the same, again and again, and end, are not kept.
        """
        last = self.open()
        seen: list[weakref.ref[Subscription]] = []
        for _ in range(500):
            subscription = self.bus.open(a_request(), "one")
            self.snapshots.deliver(subscription, 2)
            seen.append(weakref.ref(subscription))
            self.subscriptions.close(last.topic)
            last = subscription
        del subscription
        self.clock.advance(1)
        gc.collect()
        self.assertLess(sum(each() is not None for each in seen), 30)

    def test_too_many_in_all(self) -> None:
        """
        So are those of all clients.
        """
        other = self.open("stix2/sighting")
        for number in range(2 * REQUESTS_PER_MINUTE):
            self.snapshots.deliver(self.bus.open(a_request(), str(number)), number)
        self.assertEqual(len(self.asked(other)), REQUESTS_PER_MINUTE)

    def test_sightings_only(self) -> None:
        """
        A subscription without the intel stream gets nothing from the sources.
        """
        subscription = self.open("stix2/sighting")
        self.snapshots.deliver(subscription, 7)
        self.assertEqual(self.got(subscription), [])
