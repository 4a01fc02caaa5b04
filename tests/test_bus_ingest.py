"""
Tests for L{tbvast.bus.ingest}.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bus.access_control import AccessControl
from tbvast.bus.client_work import ClientWork
from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.ingest import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ITEMS,
    MAX_COMMITS_IN_FLIGHT,
    MAX_OFFERED_BYTES,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_ITEMS,
    REASONS,
    RETRY_DELAY,
    STEP_DOCUMENTS,
    Intake,
)
from tbvast.bus.journal.values import EVERYBODY, Outcome, Publisher, Verdict, upstream_publisher
from tbvast.errors import Invalid, JournalFailed
from tbvast.interfaces import ICounters, IPausable
from tbvast.protocol.frames import REPORT_TOPICS, Envelope, Item
from tbvast.protocol.manage import Published
from tbvast.protocol.topics import Dialect, Stream
from tbvast.service.turns import TURN_BUDGET_SECONDS
from tbvast.stix.admission import admit
from tbvast.values import Received
from tests.doubles import BusyClock, MemoryJournal, a_sighting, an_indicator, indicator_document
from tests.doubles_bus import MemoryCounters, MemorySub, clients_file, encode_report

ERRORS_PER_MINUTE = 5

NOW = 50.0
"""
The date, which is later than all versions.
"""


class BrokenJournal(MemoryJournal):
    """
    A journal with a defect.
    """

    def append(self, items: Any, publishers: Any = ()) -> Deferred[list[Outcome]]:
        return fail(ZeroDivisionError())


def envelope(item: Item, snapshot: str = "s") -> bytes:
    kind = b"1" if stream_name(item) == "indicator" else b"2"
    return (
        b'threatbus/snapshotenvelope {"type":"snapshotenvelope","snapshot_type":%b,'
        b'"snapshot_id":"%b","body":%b}' % (kind, snapshot.encode(), item.raw)
    )


def stream_name(item: Item) -> str:
    return item.id.partition("--")[0]


class IntakeTestCase(SynchronousTestCase):
    """
    An intake with a journal in memory.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.access = AccessControl(None)
        self.commits: list[list[bytes]] = []
        self.envelopes: list[Envelope] = []
        self.start(MemoryJournal(self.clock))

    def start(self, journal: MemoryJournal) -> None:
        self.journal = journal
        self.sub = MemorySub()
        self.counters = MemoryCounters()
        self.start_delivering(self.deliver)

    def start_delivering(self, deliver: Callable[[CommittedBatch], Deferred[None]]) -> None:
        """
        Start the intake with another delivery.
        """
        self.work = ClientWork(self.clock)
        self.intake = Intake(
            self.clock,
            self.work,
            self.journal,
            self.access,
            self.counters,
            deliver,
            self.envelopes.append,
            self.sub,
            ERRORS_PER_MINUTE,
        )

    def deliver(self, commit: CommittedBatch) -> Deferred[None]:
        self.commits.append(commit.numbered(Dialect.STIX2, frozenset(Stream))[1])
        return succeed(None)

    def publish(self, documents: Sequence[bytes], user: str = "") -> Deferred[Any]:
        return self.done(self.work.do(user, self.intake.publish(documents, user)))

    def take(self, items: Sequence[Item], publisher: Publisher) -> Deferred[Any]:
        return self.done(self.intake.take(items, publisher))

    def done(self, result: Deferred[Any]) -> Deferred[Any]:
        """
        Let the turns pass that some work takes.
        """
        for _ in range(3):
            self.clock.advance(0)
        return result

    def receive(self, *frames: bytes, user: str = "") -> None:
        self.intake.receive([Received(user, [frame]) for frame in frames])

    def delivered_items(self) -> list[bytes]:
        """
        The documents that were delivered, in order.
        """
        return [payload.partition(b" ")[2] for payloads in self.commits for payload in payloads]


class DoublesTests(SynchronousTestCase):
    """
    The doubles keep the contracts.
    """

    def test_interfaces(self) -> None:
        """
        The doubles of the counters and of the sub endpoint implement their interfaces.
        """
        verifyObject(ICounters, MemoryCounters())
        verifyObject(IPausable, MemorySub())


class ReceiveTests(IntakeTestCase):
    """
    Messages on the sub endpoint.
    """

    def test_order(self) -> None:
        """
        New items are delivered once, in the order of their arrival.
        """
        items: list[Item] = [an_indicator(1), a_sighting(1), an_indicator(2)]
        self.receive(*map(encode_report, [*items, items[0], items[1]]))
        self.assertEqual(self.delivered_items(), [item.raw for item in items])
        self.assertEqual(
            self.counters.counts,
            {
                ("indicator", "accepted"): 2,
                ("sighting", "accepted"): 1,
                ("indicator", "repeated"): 1,
                ("sighting", "repeated"): 1,
            },
        )

    def test_nothing_before_durable(self) -> None:
        """
        Nothing is delivered before it is durable. Items that arrive meanwhile are committed
        together.
        """
        self.journal.holding = True
        self.receive(encode_report(an_indicator(1)))
        for number in range(2, 12):
            self.receive(encode_report(an_indicator(number)))
        self.assertEqual((self.commits, self.journal.batches), ([], [1]))
        self.journal.holding = False
        self.journal.release()
        self.clock.advance(0)
        self.assertEqual(self.journal.batches, [1, 10])
        self.assertEqual([len(commit) for commit in self.commits], [1, 10])
        self.assertEqual(self.delivered_items(), [an_indicator(n).raw for n in range(1, 12)])

    def test_bounded_commit(self) -> None:
        """
        A batch has a bounded number of items, and the reactor has a turn between two
        deliveries. Meanwhile a bounded number of next batches is committed.
        """
        count = MAX_COMMITS_IN_FLIGHT + 2
        self.receive(
            *(encode_report(a_sighting(number)) for number in range(count * MAX_BATCH_ITEMS))
        )
        self.assertEqual(self.journal.batches, [MAX_BATCH_ITEMS] * (1 + MAX_COMMITS_IN_FLIGHT))
        self.assertEqual([len(commit) for commit in self.commits], [MAX_BATCH_ITEMS])
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual([len(commit) for commit in self.commits], [MAX_BATCH_ITEMS] * count)
        self.assertEqual(
            self.delivered_items(),
            [a_sighting(number).raw for number in range(count * MAX_BATCH_ITEMS)],
        )

    def test_ahead(self) -> None:
        """
        The journal gets the next batch during a commit only if it is full, so that slowly
        arriving items are committed together.
        """
        self.journal.holding = True
        count = MAX_BATCH_ITEMS + 1
        for start in range(0, 5 * MAX_BATCH_ITEMS, MAX_BATCH_ITEMS):
            self.receive(*(encode_report(a_sighting(start + n)) for n in range(MAX_BATCH_ITEMS)))
        self.assertEqual(self.journal.batches, [MAX_BATCH_ITEMS] * MAX_COMMITS_IN_FLIGHT)
        self.journal.batches.clear()
        self.setUp()
        self.journal.holding = True
        self.receive(encode_report(a_sighting(0)))
        self.receive(*(encode_report(a_sighting(n)) for n in range(1, MAX_BATCH_ITEMS)))
        self.assertEqual(self.journal.batches, [1])
        self.receive(*(encode_report(a_sighting(n)) for n in range(MAX_BATCH_ITEMS, count)))
        self.assertEqual(self.journal.batches, [1, MAX_BATCH_ITEMS])
        self.journal.release()
        self.clock.advance(0)
        self.assertEqual(self.delivered_items(), [a_sighting(n).raw for n in range(count)])

    def test_from_elsewhere(self) -> None:
        """
        Items that the journal accepted from another source are delivered in its order, too.
        """
        deliveries: list[tuple[int, Deferred[None]]] = []

        def deliver(commit: CommittedBatch) -> Deferred[None]:
            deliveries.append((commit.until, Deferred()))
            return deliveries[-1][1]

        self.start_delivering(deliver)
        for number in range(1, 3):
            self.receive(encode_report(an_indicator(number)))
        done = self.intake.fan_out([Outcome(Verdict.EXPIRED, 3, an_indicator(1))])
        for count in range(1, 4):
            self.assertNoResult(done)
            self.assertEqual([until for until, _ in deliveries], list(range(1, count + 1)))
            deliveries[-1][1].callback(None)
            self.clock.advance(0)
        self.successResultOf(done)

    def test_refused(self) -> None:
        """
        Invalid messages are counted, and logged a limited number of times a minute; valid ones
        are taken in.
        """
        broken = [
            b"",
            b"weather {}",
            b"stix2/indicator",
            b"stix2/indicator {",
            b"stix2/sighting []",
            b"stix2/indicator " + a_sighting().raw,
            b"stix2/indicator " + indicator_document(pattern="[ipv4-addr:value = '192.0.2.999']"),
            b"threatbus/snapshotenvelope {}",
            b"vast/sightings 7",
        ]
        with capturedLogs() as events:
            self.receive(*broken, encode_report(an_indicator()))
            self.intake.receive([Received("", [b"stix2/indicator", an_indicator(2).raw])])
        self.assertEqual(self.counters.counts["message", "refused"], len(broken) + 1)
        self.assertEqual(self.delivered_items(), [an_indicator().raw])
        self.assertEqual(len([e for e in events if "reason" in e]), ERRORS_PER_MINUTE)
        self.clock.advance(60)
        with capturedLogs() as events:
            self.receive(b"")
        self.assertEqual(len(events), 1)

    @given(st.lists(st.binary() | st.sampled_from(REPORT_TOPICS), max_size=3), st.binary())
    def test_any_bytes(self, frames: list[bytes], payload: bytes) -> None:
        """
        No message stops the intake.
        """
        self.setUp()
        self.intake.receive([Received("", frames)])
        self.receive(*(topic + b" " + payload for topic in REPORT_TOPICS))
        self.receive(encode_report(an_indicator()))
        self.assertEqual(self.delivered_items()[-1:], [an_indicator().raw])

    def test_unmatchable(self) -> None:
        """
        An indicator that tbvast cannot match is accepted, because subscribers may use it.
        """
        item = an_indicator(pattern="[file:name = 'a' AND file:size > 3]")
        self.receive(encode_report(item))
        self.assertEqual(self.delivered_items(), [item.raw])

    def test_envelopes(self) -> None:
        """
        Answers to snapshot requests go to the askers, not to the journal.
        """
        items = admit(an_indicator(1).raw), admit(a_sighting(1).raw)
        self.receive(*map(envelope, items, "ab"))
        self.assertEqual(self.envelopes, list(map(Envelope, "ab", items)))
        self.assertEqual((self.commits, self.journal.batches), ([], []))

    def test_full(self) -> None:
        """
        While too much waits, the endpoint is not read; it is again when half of it
        is durable.
        """
        self.journal.holding = True
        count = MAX_QUEUED_ITEMS + MAX_COMMITS_IN_FLIGHT * MAX_BATCH_ITEMS
        messages = [Received("", [encode_report(a_sighting(n))]) for n in range(count)]
        self.intake.receive(messages[: MAX_QUEUED_ITEMS - 1])
        self.assertEqual(self.sub.changes, [])
        self.intake.receive(messages[MAX_QUEUED_ITEMS - 1 :])
        self.assertEqual(self.sub.changes, [True])
        self.journal.holding = False
        self.journal.release()
        self.assertEqual(self.sub.changes, [True])
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual(len(self.delivered_items()), count)
        self.assertEqual(self.sub.changes, [True, False])


class TurnTests(IntakeTestCase):
    """
    Work that takes long is done in many turns.
    """

    def test_in_pieces(self) -> None:
        """
        A long list of documents is decoded over several turns, in order, and documents
        published meanwhile follow it.
        """
        self.clock = BusyClock(TURN_BUDGET_SECONDS / 4)
        self.start(MemoryJournal(self.clock))
        count = 20 * STEP_DOCUMENTS
        documents = [indicator_document(number) for number in range(count)]
        first = self.publish(documents)
        second = self.publish([indicator_document(count)])
        self.assertNoResult(first)
        turns = 0
        while not second.called:
            before = len(self.delivered_items())
            self.clock.advance(0)
            turns += 1
            self.assertLessEqual(len(self.delivered_items()) - before, 10 * STEP_DOCUMENTS)
        self.assertGreater(turns, 3)
        self.assertEqual(len(self.successResultOf(first).outcomes), count)
        self.assertEqual(self.delivered_items(), [*documents, indicator_document(count)])

    def test_fair(self) -> None:
        """
        A short request does not wait for the long ones of another client.
        """
        self.clock = BusyClock(TURN_BUDGET_SECONDS / 4)
        self.start(MemoryJournal(self.clock))
        documents = [indicator_document(number) for number in range(20 * STEP_DOCUMENTS)]
        long = [self.publish(documents, "one") for _ in range(3)]
        short = self.publish([indicator_document(5000)], "two")
        turns = 0
        while not short.called:
            self.clock.advance(0)
            turns += 1
        self.assertLess(turns, 10)
        self.assertNoResult(long[0])
        for _ in range(200):
            self.clock.advance(0)
        for each in long:
            self.assertEqual(len(self.successResultOf(each).outcomes), len(documents))

    def test_shares(self) -> None:
        """
        A flood on the sub endpoint takes half of each batch from requests, not more.
        """
        self.journal.holding = True
        self.receive(encode_report(an_indicator(0)))
        self.receive(*[encode_report(an_indicator(n)) for n in range(1, MAX_QUEUED_ITEMS)])
        published = [indicator_document(n) for n in range(50_000, 50_000 + MAX_BATCH_ITEMS // 2)]
        answer = self.publish(published)
        for _ in range(20):
            self.clock.advance(0)
        self.journal.release()
        for _ in range(3):
            self.clock.advance(0)
            self.journal.release()
        outcomes = self.successResultOf(answer).outcomes
        self.assertEqual(outcomes, ["accepted"] * len(published))
        self.assertLess(self.delivered_items().index(published[-1]), MAX_QUEUED_ITEMS / 2)

    def test_bytes(self) -> None:
        """
        No batch has many bytes, and neither do the items that wait.
        """
        self.journal.holding = True
        size = MAX_BATCH_BYTES // 8
        documents = [indicator_document(n, description="x" * size) for n in range(60)]
        answer = self.publish(documents)
        for _ in range(200):
            self.clock.advance(0)
        self.assertLess(self.intake._offered.size, MAX_OFFERED_BYTES + 2 * size)
        self.assertNoResult(answer)
        while not answer.called:
            self.journal.release()
            self.clock.advance(0)
        self.assertEqual(len(self.successResultOf(answer).outcomes), 60)
        self.assertLessEqual(max(self.journal.batches), 8)

    def test_sub_bytes(self) -> None:
        """
        Nor do those from the sub endpoint: it is not read then.
        """
        self.journal.holding = True
        frame = encode_report(an_indicator(1, description="x" * 900_000))
        count = 0
        while not self.sub.changes:
            self.receive(frame)
            count += 1
        self.assertLess(abs(count * 900_000 - MAX_QUEUED_BYTES), 8 * MAX_BATCH_BYTES)
        while len(self.sub.changes) < 2:
            self.journal.release()
            self.clock.advance(0)
        self.assertEqual(self.sub.changes, [True, False])

    def test_stopped_between(self) -> None:
        """
        Offered items that are not yet decoded are taken in before the end.
        """
        self.clock = BusyClock(TURN_BUDGET_SECONDS / 4)
        self.start(MemoryJournal(self.clock))
        published = self.publish([indicator_document(n) for n in range(20 * STEP_DOCUMENTS)])
        finished = self.intake.finish()
        for _ in range(100):
            self.clock.advance(0)
        self.successResultOf(finished)
        self.successResultOf(published)

    def test_slow_delivery(self) -> None:
        """
        The next commit waits until all have been given the one before.
        """
        deliveries: list[Deferred[None]] = []

        def deliver(commit: CommittedBatch) -> Deferred[None]:
            deliveries.append(Deferred())
            return deliveries[-1]

        self.start_delivering(deliver)
        self.receive(encode_report(an_indicator(1)))
        self.receive(encode_report(an_indicator(2)))
        self.clock.advance(1)
        self.assertEqual(len(deliveries), 1)
        deliveries[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(len(deliveries), 2)


class SetAsideTests(IntakeTestCase):
    """
    Items that the journal cannot store.
    """

    def test_said(self) -> None:
        """
        The log counts such items, and does not report an ownership conflict.
        """
        item = an_indicator(1)
        self.journal.append = lambda items, publishers=(): succeed(  # type: ignore[method-assign]
            [Outcome(Verdict.REFUSED, 0, item)]
        )
        with capturedLogs() as events:
            self.receive(encode_report(item))
        self.assertEqual([event.get("count") for event in events], [1])
        self.assertEqual(self.counters.counts["indicator", "refused"], 1)


INTEL_2020_11 = (
    b'{"ts": "2020-11-26 12:00:00", "id": "42", "data": {"indicator": ["192.0.2.1"],'
    b' "intel_type": 1, "source": "MISP"}, "operation": "ADD"}'
)
SIGHTING_2020_11 = b'{"ts": "2020-11-26 12:00:00", "intel": "42", "context": {"source": "VAST"}}'


class UnspokenTests(IntakeTestCase):
    """
    Messages of Threat Bus 2020.11.
    """

    def test_messages(self) -> None:
        """
        They are counted apart, and the log has the remedy.
        """
        with capturedLogs() as events:
            self.receive(
                b"threatbus/intel " + INTEL_2020_11, b"threatbus/sighting " + SIGHTING_2020_11
            )
        self.assertEqual(self.counters.counts["message", "dialect not spoken"], 2)
        self.assertEqual(self.counters.counts["message", "refused"], 0)
        for event in events:
            self.assertIn("Threat Bus 2020.11. Update the program", event["reason"])

    def test_document(self) -> None:
        """
        A request is told so, too.
        """
        reply = self.successResultOf(self.publish([INTEL_2020_11]))
        self.assertIn("Threat Bus 2020.11. Update the program", reply.reasons[0])


class PublishTests(IntakeTestCase):
    """
    Publish requests.
    """

    def test_outcomes(self) -> None:
        """
        Each document has its outcome or the reason of its refusal, in order.
        """
        self.successResultOf(self.publish([an_indicator(1, 5).raw]))
        self.clock.advance(0)
        reply = self.successResultOf(
            self.publish(
                [
                    an_indicator(1, 5).raw,
                    b"{}",
                    an_indicator(1, 4).raw,
                    an_indicator(2).raw,
                    an_indicator(3, pattern=None, x_threatbus_update="REMOVE").raw,
                    a_sighting(1).raw,
                    indicator_document(4, pattern="[ipv4-addr:value = 'nowhere']"),
                ]
            )
        )
        self.assertEqual(
            reply.outcomes,
            ["repeated", "refused", "outdated", "accepted", "unknown", "accepted", "refused"],
        )
        self.assertEqual(list(reply.reasons), [1, 2, 6])
        self.assertIn("nowhere", reply.reasons[6])
        self.assertEqual(self.counters.counts["message", "refused"], 2)

    def test_first_reasons(self) -> None:
        """
        The first reasons are kept, whether the intake or, later, the journal refuses a document.
        """
        self.successResultOf(self.publish([an_indicator(n, 5).raw for n in range(3 * REASONS)]))
        documents = [an_indicator(n, 4).raw if n % 2 else b"0" for n in range(3 * REASONS)]
        self.journal.holding = True
        answer = self.publish(documents)
        for _ in range(1000):
            self.clock.advance(0)
        self.assertNoResult(answer)
        self.journal.holding = False
        self.journal.release()
        reply = self.successResultOf(self.done(answer))
        self.assertEqual(reply.outcomes, ["refused", "outdated"] * (3 * REASONS // 2))
        self.assertEqual(list(reply.reasons), list(range(REASONS)))

    def test_nothing_held(self) -> None:
        """
        Nothing is held of refused documents while others wait: neither they nor their errors.
        """
        documents = [
            b"0",
            b'"',
            b"{}",
            b'{"type":"indicator"}',
            b"[" * 1000,
            b"\xff",
            INTEL_2020_11,
        ]
        documents.append(indicator_document(1, pattern="[ipv4-addr:value = 'nowhere']"))
        documents.append(indicator_document(1, pattern="["))
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.successResultOf(self.publish(documents))
        self.assertEqual([each for each in gc.get_objects() if isinstance(each, Invalid)], [])

    def test_nothing(self) -> None:
        """
        Nothing has no outcomes.
        """
        self.assertEqual(self.successResultOf(self.publish([])), Published([], {}))

    def test_not_answered_before_durable(self) -> None:
        """
        A publisher is answered only after its items are durable and delivered.
        """
        self.journal.holding = True
        d = self.publish([an_indicator().raw])
        self.assertNoResult(d)
        self.journal.release()
        self.assertEqual(self.successResultOf(d).outcomes, ["accepted"])
        self.assertEqual(self.delivered_items(), [an_indicator().raw])

    def test_taken(self) -> None:
        """
        Items from another bus are taken in the same way.
        """
        reply = self.successResultOf(self.take([an_indicator()], EVERYBODY))
        self.assertEqual(reply.outcomes, ["accepted"])
        self.assertEqual(self.journal.head, 1)

    def test_delivery_fails(self) -> None:
        """
        Publishers are answered, and the next items taken in, even if a delivery fails.
        """

        def deliver(commit: CommittedBatch) -> Deferred[None]:
            raise ZeroDivisionError

        self.start_delivering(deliver)
        for number in range(2):
            reply = self.successResultOf(self.publish([an_indicator(number).raw]))
            self.assertEqual(reply.outcomes, ["accepted"])
            self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)


class FailingTests(IntakeTestCase):
    """
    A journal that cannot keep anything.
    """

    def test_retried(self) -> None:
        """
        While the journal fails, received items wait, nothing more is read, and nothing is
        delivered.
        """
        self.journal.failing = True
        with capturedLogs() as events:
            self.receive(encode_report(an_indicator(1)))
            self.receive(encode_report(an_indicator(2)))
            for _ in range(3):
                self.clock.advance(RETRY_DELAY)
        self.assertEqual((self.commits, self.sub.changes), ([], [True]))
        self.assertEqual(self.journal.batches, [1, 2, 2, 2])
        self.assertEqual({event["reason"] for event in events}, {"the disk refuses"})
        self.journal.failing = False
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.sub.changes, [True, False])
        self.clock.advance(0)
        self.assertEqual(self.delivered_items(), [an_indicator(1).raw, an_indicator(2).raw])

    def test_in_order(self) -> None:
        """
        If two concurrent commits fail, the first is retried first, and both before items that
        arrived later. Nothing is read until the journal works.
        """
        count = 2 * MAX_BATCH_ITEMS + 1
        self.journal.holding = True
        self.receive(*(encode_report(a_sighting(number)) for number in range(count)))
        self.assertEqual(self.journal.batches, [MAX_BATCH_ITEMS] * 2)
        self.journal.failing = True
        self.journal.release()
        self.receive(encode_report(a_sighting(count)))
        self.assertEqual((self.journal.batches, self.sub.changes), ([MAX_BATCH_ITEMS] * 2, [True]))
        self.journal.failing = self.journal.holding = False
        self.clock.advance(RETRY_DELAY)
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual(self.delivered_items(), [a_sighting(n).raw for n in range(count + 1)])
        self.assertEqual(self.sub.changes, [True, False])

    def test_still_under_way(self) -> None:
        """
        A failed batch is retried only after the batches behind it have failed as well.
        """
        self.journal.holding = True
        self.receive(*(encode_report(a_sighting(number)) for number in range(2 * MAX_BATCH_ITEMS)))
        first, second = self.journal.held
        first[0].errback(JournalFailed("the disk refuses"))
        self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.journal.batches, [MAX_BATCH_ITEMS] * 2)
        second[0].errback(JournalFailed("the disk refuses"))
        self.journal.held.clear()
        self.journal.holding = False
        self.clock.advance(RETRY_DELAY)
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual(
            self.delivered_items(), [a_sighting(n).raw for n in range(2 * MAX_BATCH_ITEMS)]
        )

    def test_told(self) -> None:
        """
        A publish request fails with the journal. The publisher keeps its items, which are not
        retried.
        """
        self.journal.failing = True
        d = self.publish([an_indicator(1).raw])
        self.failureResultOf(d, JournalFailed)
        self.journal.failing = False
        self.clock.advance(RETRY_DELAY)
        self.clock.advance(0)
        self.assertEqual((self.commits, self.sub.changes), ([], [True, False]))
        self.successResultOf(self.publish([an_indicator(1).raw]))
        self.assertEqual(len(self.commits), 1)

    def test_long_publish_fails(self) -> None:
        """
        If the journal fails while a long publish request is decoded, the publisher keeps all of
        its documents: none of them is kept later.
        """
        self.clock = BusyClock(TURN_BUDGET_SECONDS / 4)
        self.start(MemoryJournal(self.clock))
        self.journal.failing = True
        documents = [indicator_document(number) for number in range(20 * STEP_DOCUMENTS)]
        self.failureResultOf(self.publish(documents), JournalFailed)
        self.journal.failing = False
        for _ in range(200):
            self.clock.advance(RETRY_DELAY)
        self.assertEqual(self.journal.head, 0)
        reply = self.successResultOf(self.publish(documents[:1]))
        self.assertEqual(reply.outcomes, ["accepted"])

    def test_defect(self) -> None:
        """
        An unexpected error of the journal blocks neither publishers nor later items.
        """
        self.start(BrokenJournal(self.clock))
        for _ in range(2):
            self.failureResultOf(self.publish([an_indicator().raw]), ZeroDivisionError)
            self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_defect_while_paused(self) -> None:
        """
        It does not keep the endpoint from being read, either.
        """
        self.start(BrokenJournal(self.clock))
        self.intake.receive(
            [Received("", [encode_report(a_sighting(n))]) for n in range(MAX_QUEUED_ITEMS)]
        )
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual(self.sub.changes, [True, False])
        self.flushLoggedErrors(ZeroDivisionError)


class FinishTests(IntakeTestCase):
    """
    The end of an intake.
    """

    def test_idle(self) -> None:
        """
        With nothing waiting, it is finished at once.
        """
        self.receive(encode_report(an_indicator()))
        self.successResultOf(self.intake.finish())
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waiting(self) -> None:
        """
        Items that were taken in are committed and delivered first.
        """
        self.journal.holding = True
        self.receive(encode_report(an_indicator(1)))
        self.receive(encode_report(an_indicator(2)))
        finished = self.intake.finish()
        self.journal.holding = False
        self.journal.release()
        self.assertNoResult(finished)
        self.clock.advance(0)
        self.clock.advance(0)
        self.successResultOf(finished)
        self.assertEqual(len(self.delivered_items()), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class PermissionTests(IntakeTestCase):
    """
    The permissions to publish.
    """

    def setUp(self) -> None:
        super().setUp()
        path = Path(self.mktemp())
        self.keys = clients_file(
            path,
            intel="publish-intel",
            other="publish-intel",
            manager="publish-intel,manage-intel",
            sightings="publish-sightings,subscribe-intel",
            listener="subscribe-intel,subscribe-sightings",
        )
        self.access = AccessControl(path)
        self.start(MemoryJournal(self.clock))

    def test_dropped(self) -> None:
        """
        A message without the permission is dropped, counted, and logged with the client's name.
        """
        frames = [
            encode_report(an_indicator(1)),
            encode_report(a_sighting(1)),
            envelope(an_indicator(2)),
        ]
        with capturedLogs() as events:
            self.receive(*frames, user=self.keys["sightings"])
        self.assertEqual(self.delivered_items(), [a_sighting(1).raw])
        self.assertEqual(self.envelopes, [])
        self.assertEqual(self.counters.counts["message", "forbidden"], 2)
        self.assertEqual([event["client"] for event in events], ["sightings"] * 2)
        self.clock.advance(0)
        self.receive(*frames, user=self.keys["intel"])
        self.assertEqual(self.delivered_items()[1:], [an_indicator(1).raw])
        self.assertEqual(len(self.envelopes), 1)
        for user in (self.keys["listener"], "", "nobody"):
            self.receive(*frames, user=user)
        self.assertEqual(self.counters.counts["message", "forbidden"], 3 + 3 * 3)

    def test_refused(self) -> None:
        """
        By request it is refused with a reason, and the rest is taken.
        """
        reply = self.successResultOf(
            self.publish([an_indicator().raw, a_sighting().raw], self.keys["intel"])
        )
        self.assertEqual(reply.outcomes, ["accepted", "refused"])
        self.assertEqual(reply.reasons, {1: "type: 'sighting' is not yours to publish"})

    def test_upstream(self) -> None:
        """
        Another bus that this one has subscribed to is no client.
        """
        publisher = upstream_publisher("up.example:13370")
        reply = self.successResultOf(self.take([an_indicator()], publisher))
        self.assertEqual(reply.outcomes, ["accepted"])
        self.clock.advance(0)
        # Neither may change an indicator of the other.
        edit = an_indicator(1, 2).raw
        reply = self.successResultOf(self.publish([edit], self.keys["intel"]))
        self.assertEqual(reply.outcomes, ["refused"])
        self.assertIn("upstream up.example:13370", reply.reasons[0])
        self.clock.advance(0)
        self.successResultOf(self.publish([an_indicator(2).raw], self.keys["intel"]))
        self.clock.advance(0)
        reply = self.successResultOf(self.take([an_indicator(2, 2)], publisher))
        self.assertEqual(reply.outcomes, ["refused"])

    def test_owner(self) -> None:
        """
        A change of another client's indicator is refused: with the reason for a request, with a
        log line and a count for a message. A client that may manage others' indicators may
        change it.
        """
        self.receive(encode_report(an_indicator(1)), user=self.keys["intel"])
        self.clock.advance(0)
        removal = an_indicator(1, 2, pattern=None, x_threatbus_update="REMOVE")
        with capturedLogs() as events:
            self.receive(encode_report(removal), user=self.keys["other"])
        self.assertEqual(self.counters.counts["indicator", "refused"], 1)
        (event,) = events  # nothing was set aside
        self.assertEqual((event["publisher"], event["id"]), ("other", removal.id))
        self.assertIn("it belongs to intel", event["reason"])
        self.clock.advance(0)
        for user, verdict in (("other", "refused"), ("manager", "accepted")):
            reply = self.successResultOf(self.publish([removal.raw], self.keys[user]))
            self.assertEqual((user, reply.outcomes), (user, [verdict]))
            self.clock.advance(0)
        self.assertEqual(len(self.delivered_items()), 2)
