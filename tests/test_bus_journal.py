"""
Tests for L{tbvast.bus.journal.client} and its parts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bus.journal.schema import OLDEST_VERSION
from tbvast.bus.journal.values import EVERYBODY, JournalEntry, Outcome, Publisher, Verdict, runs_of
from tbvast.bus.journal.writer import JournalStore
from tbvast.errors import JournalFailed
from tbvast.interfaces import IJournal
from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.stix.documents import from_microseconds, timestamp
from tbvast.stix.indicators import Indicator, Operation, decode_indicator
from tbvast.values import Position
from tests.doubles import (
    DAY,
    MemoryJournal,
    a_sighting,
    an_indicator,
    indicator_id,
    moment,
)
from tests.doubles_bus import FileJournal, found_in

ACCEPTED, REPEATED, OUTDATED, UNKNOWN, EXPIRED, REFUSED = Verdict

NOW = 50.0
"""
The date, in seconds since the epoch: later than most versions.
"""

HOUR = 3600.0

NINETY_NINE = "9999-12-31T23:59:59Z"

ONE, OTHER = Publisher("one", False), Publisher("other", False)
MANAGER = Publisher("manager", True)

ALL = 1 << 60
"""
More than any number of a journal.
"""


def removal(number: int = 1, version: float | None = 2, **changes: Any) -> Indicator:
    """
    A withdrawal without the pattern.
    """
    fields = {"pattern": None, "x_threatbus_update": "REMOVE", **changes}
    return an_indicator(number, version, **fields)


def edit(number: int = 1, version: float | None = 1, **changes: Any) -> Indicator:
    return an_indicator(number, version, x_threatbus_update="EDIT", **changes)


class JournalContract:
    """
    The contract of every L{IJournal}; mixed into one class for each provider.
    """

    clock: Clock
    journal: Any

    # Of the test case that this is mixed into.
    assertEqual: Any
    assertIsNone: Any
    subTest: Any
    successResultOf: Any

    def append(self, *items: Item, by: Publisher = EVERYBODY) -> list[Outcome]:
        outcomes: list[Outcome] = self.successResultOf(
            self.journal.append(items, [(len(items), by)])
        )
        self.assertEqual(len(outcomes), len(items))
        # Every refusal has a reason.
        for outcome in outcomes:
            self.assertEqual(bool(outcome.reason), outcome.verdict in (OUTDATED, REFUSED))
        return outcomes

    def verdicts(self, *items: Item, by: Publisher = EVERYBODY) -> list[Verdict]:
        return [outcome.verdict for outcome in self.append(*items, by=by)]

    def current(
        self, after: int = 0, until: int = ALL, since: float = 0, limit: int = 1000
    ) -> list[tuple[int, bytes]]:
        page: list[tuple[int, bytes]] = self.successResultOf(
            self.journal.current(after, until, since, limit, 1 << 30)
        )
        return page

    def entries(
        self,
        after: int = 0,
        streams: Sequence[Stream] = tuple(Stream),
        limit: int = 1000,
        size: int = 1 << 20,
    ) -> list[JournalEntry]:
        found: list[JournalEntry] = self.successResultOf(
            self.journal.entries(after, streams, limit, size)
        )
        return found

    def saved(self) -> dict[str, bytes]:
        """
        The subscriptions that are remembered.
        """
        raise NotImplementedError

    def in_force(self) -> list[bytes]:
        return [document for _, document in self.current()]

    def test_interface(self) -> None:
        verifyObject(IJournal, self.journal)

    def test_empty(self) -> None:
        """
        A new journal holds nothing.
        """
        self.assertEqual(self.journal.head, 0)
        self.assertEqual(self.current(), [])
        self.assertEqual(
            self.successResultOf(self.journal.counts()), {"indicators": 0, "sightings": 0}
        )
        self.assertEqual(self.successResultOf(found_in(self.journal, [indicator_id(1)])), {})
        self.assertEqual(self.append(), [])

    def test_numbers(self) -> None:
        """
        Accepted items of all streams are numbered in order, and returned unchanged.
        """
        items: list[Item] = [an_indicator(1), a_sighting(1), an_indicator(2)]
        self.assertEqual(
            self.append(*items),
            [Outcome(ACCEPTED, number, item) for number, item in enumerate(items, 1)],
        )
        self.assertEqual(self.journal.head, 3)
        self.assertEqual(self.append(an_indicator(3))[0].number, 4)
        self.assertEqual(
            self.successResultOf(self.journal.counts()), {"indicators": 3, "sightings": 1}
        )

    def test_repeated(self) -> None:
        """
        A repeat changes nothing and has no number, in the same batch or later.
        """
        for item in (an_indicator(), an_indicator(2, None), a_sighting()):
            with self.subTest(item):
                before = self.journal.head
                first, again = self.append(item, item)
                self.assertEqual((first.verdict, first.number), (ACCEPTED, before + 1))
                self.assertEqual(again, Outcome(REPEATED, 0, item))
                self.assertEqual(self.append(item), [Outcome(REPEATED, 0, item)])
                self.assertEqual(self.journal.head, before + 1)

    def test_versions(self) -> None:
        """
        A later version takes the place of an earlier one, and an earlier one
        changes nothing.
        """
        self.append(an_indicator(1, 2))
        self.assertEqual(self.verdicts(an_indicator(1, 1), an_indicator(1, None)), [OUTDATED] * 2)
        later = an_indicator(1, 3)
        self.assertEqual(self.append(later), [Outcome(ACCEPTED, 2, later)])
        self.assertEqual(self.current(), [(2, later.raw)])

    def test_versions_in_one_batch(self) -> None:
        """
        Two versions in one batch are both numbered; the later one is in force,
        whatever their order.
        """
        self.assertEqual(
            self.verdicts(an_indicator(1, 1), an_indicator(1, 2), an_indicator(1, 1)),
            [ACCEPTED, ACCEPTED, OUTDATED],
        )
        self.assertEqual(
            self.verdicts(an_indicator(2, 2), an_indicator(2, 1)), [ACCEPTED, OUTDATED]
        )
        self.assertEqual(self.current(), [(2, an_indicator(1, 2).raw), (3, an_indicator(2, 2).raw)])

    def test_same_version(self) -> None:
        """
        Other contents under the same version are only taken as an edit, or where
        there are no versions.
        """
        self.append(an_indicator(1), an_indicator(2, None))
        self.assertEqual(self.verdicts(an_indicator(1, name="other")), [REPEATED])
        self.assertEqual(self.verdicts(edit(1), edit(1)), [ACCEPTED, REPEATED])
        self.assertEqual(self.verdicts(an_indicator(2, None, name="other")), [ACCEPTED])
        self.assertEqual(self.in_force(), [edit(1).raw, an_indicator(2, None, name="other").raw])

    def test_old_edit(self) -> None:
        """
        An edit of an earlier version changes nothing; one of an unknown
        indicator adds it.
        """
        self.append(an_indicator(1, 2))
        self.assertEqual(self.verdicts(edit(1, 1), edit(2, 1)), [OUTDATED, ACCEPTED])

    def test_removed(self) -> None:
        """
        A removal ends the version in force. Without a pattern, it takes that of the removed
        version, so that it can be forwarded in every dialect.
        """
        self.append(an_indicator())
        (outcome,) = self.append(removal())
        self.assertEqual((outcome.verdict, outcome.number), (ACCEPTED, 2))
        item = outcome.item
        assert isinstance(item, Indicator)
        self.assertEqual(
            (item.id, item.pattern, item.operation, item.modified),
            (indicator_id(1), an_indicator().pattern, Operation.REMOVE, 2_000_000),
        )
        decoded = decode_indicator(item.raw)
        self.assertEqual((decoded.pattern, decoded.operation), (item.pattern, item.operation))
        self.assertEqual(self.current(), [])
        self.assertEqual(self.successResultOf(self.journal.counts())["indicators"], 0)
        self.assertEqual(self.successResultOf(found_in(self.journal, [indicator_id(1)])), {})

    def test_removed_with_pattern(self) -> None:
        """
        A removal with a pattern is forwarded as it came.
        """
        self.append(an_indicator())
        item = an_indicator(1, 1, x_threatbus_update="REMOVE")
        self.assertEqual(self.append(item), [Outcome(ACCEPTED, 2, item)])
        self.assertEqual(self.current(), [])

    def test_revoked(self) -> None:
        """
        A revoked indicator is removed.
        """
        self.append(an_indicator())
        self.assertEqual(self.verdicts(an_indicator(1, 2, revoked=True)), [ACCEPTED])
        self.assertEqual(self.current(), [])

    def test_removal_repeated(self) -> None:
        """
        A removed indicator cannot be removed again.
        """
        self.append(an_indicator(), removal())
        self.assertEqual(
            self.verdicts(removal(), removal(version=None), removal(version=3)), [REPEATED] * 3
        )

    def test_removal_without_version(self) -> None:
        """
        A removal that names no version removes any, and no version up to the
        removed one comes back.
        """
        for number, item in enumerate(
            (
                removal(1, None),
                an_indicator(2, None, x_threatbus_update="REMOVE"),
            ),
            1,
        ):
            with self.subTest(item):
                self.assertEqual(
                    self.verdicts(an_indicator(number, 5), item, an_indicator(number, 5)),
                    [ACCEPTED, ACCEPTED, OUTDATED],
                )
        self.assertEqual(self.current(), [])

    def test_old_removal(self) -> None:
        """
        A removal ends any version, whatever its own date; a repeat of it does not end later
        versions.
        """
        self.append(an_indicator(1, 3))
        for old in (removal(1, 2), an_indicator(1, 1, revoked=True), removal(1, None)):
            with self.subTest(old):
                self.assertEqual(self.verdicts(old), [ACCEPTED])
                self.assertEqual(self.current(), [])
                self.clock.advance(10)
                later = an_indicator(1, self.clock.seconds())
                repeated = [REPEATED, ACCEPTED] + ([OUTDATED] if old.modified else [])
                self.assertEqual(
                    self.verdicts(old, later, *([old] if old.modified else [])), repeated
                )
                self.assertEqual(self.in_force(), [later.raw])

    def test_removal_without_version_echoed(self) -> None:
        """
        A removal that names no version is forwarded with the date of its receipt, so
        that it is known when it comes back from another bus.
        """
        self.append(an_indicator())
        self.clock.advance(5)
        (outcome,) = self.append(removal(1, None))
        assert isinstance(outcome.item, Indicator)
        self.assertEqual(decode_indicator(outcome.item.raw).modified, (NOW + 5) * 1e6)
        self.clock.advance(5)
        self.assertEqual(
            self.verdicts(an_indicator(1, NOW + 9), decode_indicator(outcome.item.raw)),
            [ACCEPTED, OUTDATED],
        )

    def test_from_the_future(self) -> None:
        """
        A version dated later than the bus's clock counts as of its receipt: a later
        correction, revocation or removal has its way; a repeat changes nothing, neither
        before nor after, and neither does a version from before.
        """
        for ahead in (moment(NOW + 600), NINETY_NINE):
            for number, end in enumerate(
                (
                    lambda n: an_indicator(n, self.clock.seconds() - 0.5, name="right"),
                    lambda n: an_indicator(n, self.clock.seconds() - 0.5, revoked=True),
                    lambda n: removal(n, self.clock.seconds() - 0.5),
                    lambda n: removal(n, None),
                    lambda n: removal(n, 3),
                ),
                self.journal.head + 1,
            ):
                with self.subTest(ahead=ahead, number=number):
                    wrong = an_indicator(number, modified=ahead)
                    old = an_indicator(number, NOW - 10)
                    self.clock.advance(1)
                    self.assertEqual(
                        self.verdicts(wrong, wrong, old), [ACCEPTED, REPEATED, OUTDATED]
                    )
                    self.clock.advance(1)
                    right = end(number)
                    self.assertEqual(self.verdicts(right, wrong), [ACCEPTED, OUTDATED])
                    self.clock.advance(1)
                    self.assertEqual(self.verdicts(wrong, old), [OUTDATED, OUTDATED])
                    found = self.successResultOf(found_in(self.journal, [wrong.id]))
                    ends = right.operation is Operation.REMOVE
                    self.assertEqual(found, {} if ends else {right.id: right.raw})

    def test_removal_from_the_future(self) -> None:
        """
        A removal that says 9999 does not keep an indicator from being published again.
        """
        self.append(an_indicator(), removal(modified=NINETY_NINE))
        self.assertEqual(self.verdicts(an_indicator(), an_indicator(1, 2)), [OUTDATED] * 2)
        self.clock.advance(10)
        again = an_indicator(1, NOW + 5)
        self.assertEqual(self.verdicts(an_indicator(), again), [OUTDATED, ACCEPTED])
        # Not even one that was itself from the future.
        self.append(an_indicator(2, modified=NINETY_NINE), removal(2, modified=NINETY_NINE))
        self.clock.advance(10)
        self.assertEqual(
            self.verdicts(an_indicator(2, modified=NINETY_NINE), an_indicator(2, NOW + 15)),
            [OUTDATED, ACCEPTED],
        )

    def test_clock_set_back(self) -> None:
        """
        When the bus's clock is set back, versions received before seem to come from the future.
        Corrections and removals of them are accepted.
        """
        self.clock.rightNow = 2 * HOUR
        self.append(an_indicator(1, 2 * HOUR - 20), an_indicator(2, 2 * HOUR - 10))
        self.append(an_indicator(1, 2 * HOUR - 10))
        self.clock.rightNow = HOUR
        self.append()
        self.clock.advance(30)
        correction = an_indicator(1, HOUR + 29)
        self.assertEqual(self.verdicts(an_indicator(1, HOUR - 1), correction), [OUTDATED, ACCEPTED])
        self.clock.advance(30)
        self.assertEqual(
            self.verdicts(
                an_indicator(1, 2 * HOUR - 20),
                an_indicator(1, 2 * HOUR - 10),
                removal(2, HOUR + 50),
            ),
            [OUTDATED, OUTDATED, ACCEPTED],
        )
        self.assertEqual(self.in_force(), [correction.raw])
        self.clock.advance(30)
        self.assertEqual(
            self.verdicts(an_indicator(2, 2 * HOUR - 10), an_indicator(2, HOUR + 80)),
            [OUTDATED, ACCEPTED],
        )

    def test_clock_set_forward(self) -> None:
        """
        When a slow clock of the bus is corrected, the dates of versions received before count.
        """
        self.append(an_indicator(1, HOUR))
        self.clock.rightNow = 2 * HOUR
        self.assertEqual(self.verdicts(an_indicator(1, HOUR - 10)), [OUTDATED])
        self.assertEqual(self.verdicts(an_indicator(1, HOUR + 10)), [ACCEPTED])

    def test_owners(self) -> None:
        """
        A publisher may change its own indicators only, unless it may manage others'. Repeats
        are never refused.
        """
        self.append(an_indicator(1, 2), an_indicator(2, 2), by=ONE)
        changes = (an_indicator(1, 3), edit(1, 2), removal(1, 3), an_indicator(1, 3, revoked=True))
        self.assertEqual(self.verdicts(*changes, by=OTHER), [REFUSED] * 4)
        self.assertEqual(
            self.verdicts(an_indicator(1, 2), an_indicator(1, 1), by=OTHER), [REPEATED, OUTDATED]
        )
        self.assertEqual(
            self.verdicts(an_indicator(1, 3), removal(2, 3), by=MANAGER), [ACCEPTED] * 2
        )
        # It stays whose it was, also when it was removed.
        later = an_indicator(1, 4), an_indicator(2, 4)
        self.assertEqual(self.verdicts(*later, by=OTHER), [REFUSED] * 2)
        self.assertEqual(self.verdicts(*later, by=ONE), [ACCEPTED] * 2)

    def test_nobodys(self) -> None:
        """
        An indicator published without keys belongs to the first client that changes it.
        """
        self.append(an_indicator(1), an_indicator(2))
        self.assertEqual(self.verdicts(an_indicator(1, 2), removal(2, 2), by=ONE), [ACCEPTED] * 2)
        self.assertEqual(
            self.verdicts(an_indicator(1, 3), an_indicator(2, 3), by=OTHER), [REFUSED, ACCEPTED]
        )

    def test_removed_by_stranger(self) -> None:
        """
        If indicators have owners, a removal cannot precede its indicator.
        """
        whole = an_indicator(1, x_threatbus_update="REMOVE", modified=NINETY_NINE)
        self.assertEqual(self.verdicts(whole, by=OTHER), [UNKNOWN])
        self.assertEqual(self.verdicts(an_indicator(1), by=ONE), [ACCEPTED])

    def test_runs(self) -> None:
        """
        The items of several publishers may be in one batch.
        """
        items = [an_indicator(1), an_indicator(2), an_indicator(1, 2), an_indicator(2, 2)]
        outcomes = self.successResultOf(
            self.journal.append(items, [(1, ONE), (2, OTHER), (1, ONE)])
        )
        self.assertEqual(
            [outcome.verdict for outcome in outcomes], [ACCEPTED, ACCEPTED, REFUSED, REFUSED]
        )

    def test_unknown_removal(self) -> None:
        """
        A removal of an unknown indicator has the verdict C{unknown}; with a pattern, it is
        forwarded, and ends earlier versions that arrive later.
        """
        self.assertEqual(self.append(removal()), [Outcome(UNKNOWN, 0, removal())])
        self.assertEqual(self.journal.head, 0)
        whole = an_indicator(1, 2, x_threatbus_update="REMOVE")
        self.assertEqual(self.verdicts(whole), [ACCEPTED])
        self.assertEqual(self.verdicts(an_indicator(1, 1), an_indicator(1, 2)), [OUTDATED] * 2)
        self.assertEqual(self.current(), [])

    def test_added_again(self) -> None:
        """
        A removed indicator comes back only with a later version.
        """
        self.append(an_indicator(1, 1), removal(1, 2))
        self.assertEqual(
            self.verdicts(an_indicator(1, 1), an_indicator(1, 2), an_indicator(1, 3)),
            [OUTDATED, OUTDATED, ACCEPTED],
        )
        self.assertEqual(self.current(), [(3, an_indicator(1, 3).raw)])

    def test_added_and_removed_in_one_batch(self) -> None:
        """
        A batch may add, remove and add again.
        """
        self.assertEqual(
            self.verdicts(an_indicator(1, 1), removal(1, 2), an_indicator(1, 3)), [ACCEPTED] * 3
        )
        self.assertEqual(self.current(), [(3, an_indicator(1, 3).raw)])
        self.assertEqual(
            self.verdicts(an_indicator(2, 1), removal(2, 2), removal(2, 2)),
            [ACCEPTED, ACCEPTED, REPEATED],
        )
        self.assertEqual(len(self.current()), 1)

    def test_sightings(self) -> None:
        """
        A sighting is kept once, whatever a repeat says.
        """
        self.assertEqual(
            self.verdicts(a_sighting(1), a_sighting(1, count=2), a_sighting(2)),
            [ACCEPTED, REPEATED, ACCEPTED],
        )
        self.assertEqual(self.verdicts(a_sighting(1)), [REPEATED])
        self.assertEqual(self.successResultOf(self.journal.counts())["sightings"], 2)
        self.assertEqual(self.current(), [])

    def test_pages(self) -> None:
        """
        Pages follow each other by number, and end at a number that was the head.
        """
        self.append(*(an_indicator(number) for number in range(1, 8)))
        until = self.journal.head
        self.append(an_indicator(8), an_indicator(2, 2))
        numbers: list[int] = []
        after = 0
        while page := self.current(after, until, limit=2):
            numbers += [number for number, _ in page]
            after = numbers[-1]
        # The second one has been superseded meanwhile, by a number after the end.
        self.assertEqual(numbers, [1, 3, 4, 5, 6, 7])
        self.assertEqual([n for n, _ in self.current(after=6)], [7, 8, 9])

    def test_since(self) -> None:
        """
        A page has the indicators received since a time; an edit counts as received when it
        arrives.
        """
        for day in range(3):
            self.clock.rightNow = day * DAY + 10
            self.append(an_indicator(day))
        self.assertEqual(len(self.current(since=0)), 3)
        self.assertEqual(len(self.current(since=DAY + 10)), 2)
        self.assertEqual(len(self.current(since=DAY + 10.5)), 1)
        self.append(an_indicator(0, 2))
        self.assertEqual(len(self.current(since=DAY + 10.5)), 2)

    def test_valid_until(self) -> None:
        """
        An expired indicator is not in force, even before its removal is recorded.
        """
        self.append(an_indicator(1, valid_until="1970-01-01T00:01:40Z"), an_indicator(2))
        self.clock.rightNow = 99.0
        self.assertEqual([n for n, _ in self.current()], [1, 2])
        self.clock.rightNow = 100.0
        self.assertEqual([n for n, _ in self.current()], [2])
        self.assertEqual(self.successResultOf(self.journal.counts())["indicators"], 1)

    def test_found(self) -> None:
        """
        Documents in force are found by their ids.
        """
        self.append(an_indicator(1), an_indicator(2), an_indicator(3), removal(2), a_sighting(1))
        ids = [indicator_id(1), indicator_id(2), a_sighting(1).id, "nonsense"]
        self.assertEqual(
            self.successResultOf(found_in(self.journal, iter(ids))),
            {indicator_id(1): an_indicator(1).raw},
        )

    def test_entries(self) -> None:
        """
        Accepted items are replayed by number, also those no longer in force; items that were
        not accepted are not.
        """
        items: list[Item] = [an_indicator(1), a_sighting(1), an_indicator(1, 2), an_indicator(2)]
        self.append(items[0], items[0], *items[1:])
        (removed,) = self.append(removal(2))
        streams = [Stream.INTEL, Stream.SIGHTING, Stream.INTEL, Stream.INTEL, Stream.INTEL]
        expected = [
            JournalEntry(number, stream, item.raw)
            for number, stream, item in zip(
                range(1, 6), streams, [*items, removed.item], strict=True
            )
        ]
        self.assertEqual(self.entries(), expected)
        self.assertEqual(self.entries(after=3), expected[3:])
        self.assertEqual(self.entries(after=5), [])
        self.assertEqual(self.entries(streams=[Stream.SIGHTING]), expected[1:2])
        self.assertEqual(self.entries(streams=[]), [])
        self.assertEqual(self.journal.floor, 0)

    def test_entries_bounded(self) -> None:
        """
        A page ends after a number of entries, or with the one that reaches a size;
        it has one entry at least.
        """
        self.append(*(an_indicator(number) for number in range(1, 6)))
        size = len(an_indicator(1).raw)
        for limit, bytes_, count in (
            (2, 1 << 20, 2),
            (9, 2 * size, 2),
            (9, size + 1, 2),
            (9, 1, 1),
        ):
            with self.subTest(limit=limit, size=bytes_):
                self.assertEqual(
                    [entry.number for entry in self.entries(2, limit=limit, size=bytes_)],
                    list(range(3, 3 + count)),
                )

    def test_none_pruned(self) -> None:
        """
        Entries that still exist do not count as pruned, whatever their stream or state.
        """
        self.append(an_indicator(1), a_sighting(1), an_indicator(1, 2))
        for after, until in ((0, 3), (1, 2), (2, 2)):
            self.assertEqual(self.successResultOf(self.journal.pruned(after, until)), 0)

    def test_positions(self) -> None:
        """
        Each reader's position is remembered.
        """
        self.assertIsNone(self.successResultOf(self.journal.position("one")))
        for position in (Position("bus", 3), Position("other", 1)):
            self.successResultOf(self.journal.set_position("one", position))
            self.assertEqual(self.successResultOf(self.journal.position("one")), position)
        self.assertIsNone(self.successResultOf(self.journal.position("two")))

    def test_subscriptions(self) -> None:
        """
        Subscriptions are remembered, changed and forgotten.
        """
        self.assertEqual(self.saved(), {})
        save = self.journal.save_subscriptions
        self.successResultOf(save({"a": b"1", "b": b"2", "c": None}))
        self.assertEqual(self.saved(), {"a": b"1", "b": b"2"})
        self.successResultOf(save({"a": None, "b": b"3", "d": b"4"}))
        self.assertEqual(self.saved(), {"b": b"3", "d": b"4"})


class MemoryJournalTests(JournalContract, SynchronousTestCase):
    """
    The double keeps the contract.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.journal = MemoryJournal(self.clock)

    def saved(self) -> dict[str, bytes]:
        return dict(self.journal.saved)

    def test_failing(self) -> None:
        """
        Nothing can be asked while the disk refuses.
        """
        self.journal.failing = True
        for d in (
            self.journal.append([an_indicator()]),
            self.journal.entries(0, Stream, 1, 1),
            self.journal.pruned(0, 1),
            self.journal.position("one"),
            self.journal.set_position("one", Position("bus", 1)),
            self.journal.save_subscriptions({"a": b"1"}),
        ):
            self.failureResultOf(d, JournalFailed)
        self.assertEqual(self.journal.head, 0)
        self.assertEqual(self.saved(), {})

    def test_held(self) -> None:
        """
        Held calls are executed when they are released.
        """
        self.journal.holding = self.journal.holding_reads = True
        appended = self.journal.append([an_indicator()])
        read = self.journal.entries(0, Stream, 1, 1)
        self.assertNoResult(appended)
        self.assertNoResult(read)
        self.journal.release()
        self.assertEqual(self.successResultOf(appended)[0].number, 1)
        self.assertEqual(self.successResultOf(read)[0].number, 1)


class JournalTests(JournalContract, SynchronousTestCase):
    """
    Tests for L{Journal}, and for the file below it.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.path = Path(self.mktemp())
        self.open()

    def open(self, identity: str = "first") -> None:
        self.file = FileJournal(self.path, self.clock, identity)
        self.addCleanup(self.file.close)
        self.journal = self.file.journal

    def saved(self) -> dict[str, bytes]:
        return self.file.reader.subscriptions()

    def reopen(self) -> None:
        self.file.close()
        self.open("second")

    def test_reopened(self) -> None:
        """
        All is as it was, also the identity.
        """
        self.append(an_indicator(1), an_indicator(2), removal(2), a_sighting(1))
        before = self.current()
        self.reopen()
        self.assertEqual(self.journal.identity, "first")
        self.assertEqual(self.journal.head, 4)
        self.assertEqual(self.current(), before)
        self.assertEqual(
            self.verdicts(an_indicator(1), an_indicator(2), a_sighting(1)),
            [REPEATED, OUTDATED, REPEATED],
        )
        self.assertEqual(self.append(an_indicator(3))[0].number, 5)

    def test_rest_reopened(self) -> None:
        """
        Accepted items, positions and subscriptions survive a restart.
        """
        self.append(an_indicator(1), a_sighting(1))
        before = self.entries()
        self.successResultOf(self.journal.set_position("one", Position("bus", 3)))
        self.successResultOf(self.journal.save_subscriptions({"a": b"1"}))
        self.reopen()
        self.assertEqual(self.entries(), before)
        self.assertEqual(self.successResultOf(self.journal.position("one")), Position("bus", 3))
        self.assertEqual(self.saved(), {"a": b"1"})

    def test_numbers_never_come_again(self) -> None:
        """
        A number that was given is not given again, even if its entry is deleted.
        """
        self.append(an_indicator(1), an_indicator(2))
        other = sqlite3.connect(self.path)
        with other:
            other.execute("DELETE FROM entries")
        other.close()
        self.reopen()
        self.assertEqual(self.append(an_indicator(3))[0].number, 3)

    def test_durable(self) -> None:
        """
        Accepted items are in the file, which has been synchronised with the disk.
        """
        self.append(an_indicator())
        other = sqlite3.connect(self.path)
        self.addCleanup(other.close)
        self.assertEqual(
            other.execute("SELECT body FROM entries").fetchall(), [(an_indicator().raw,)]
        )
        self.assertEqual(other.execute("PRAGMA journal_mode").fetchall(), [("wal",)])

    def test_without_owners(self) -> None:
        """
        A file of tbvast 0.1.0, without owners and effective dates, is migrated: versions from
        the future can be corrected, and published again after a removal.
        """
        self.append(an_indicator(1, modified=NINETY_NINE), an_indicator(2), an_indicator(3))
        self.append(removal(3, modified=NINETY_NINE))
        self.file.close()
        other = sqlite3.connect(self.path)
        other.executescript(
            "ALTER TABLE entries DROP COLUMN owner; ALTER TABLE entries DROP COLUMN decided;"
            "DROP TABLE set_aside; ALTER TABLE entries DROP COLUMN crc;"
            "PRAGMA user_version = 3"
        )
        other.close()
        self.open()
        self.clock.advance(10)
        self.assertEqual(
            self.verdicts(
                an_indicator(1, modified=NINETY_NINE),
                an_indicator(1, NOW + 5),
                an_indicator(1, modified=NINETY_NINE),
                removal(2),
                an_indicator(3),
                an_indicator(3, NOW + 5),
                by=ONE,
            ),
            [REPEATED, ACCEPTED, OUTDATED, ACCEPTED, OUTDATED, ACCEPTED],
        )

    def test_clock_set_back_while_stopped(self) -> None:
        """
        The clock may be set back between two runs, and its steps are remembered.
        """
        self.clock.rightNow = 2 * HOUR
        self.append(an_indicator(1, 2 * HOUR), an_indicator(2, 2 * HOUR))
        self.file.close()
        self.clock.rightNow = HOUR
        self.open()
        self.append(an_indicator(3))
        self.clock.advance(10)
        self.assertEqual(self.verdicts(an_indicator(1, HOUR + 5)), [ACCEPTED])
        self.reopen()
        self.assertEqual(self.verdicts(an_indicator(2, HOUR + 5)), [ACCEPTED])

    def test_decided(self) -> None:
        """
        The remembered versions of an indicator that changes often are bounded, and dropped when
        they no longer matter.
        """
        for number in range(50):
            self.clock.advance(1)
            self.append(an_indicator(1, modified=f"2099-01-01T00:00:{number:02}Z"))
        self.append(removal(1, None), an_indicator(2, NOW))
        self.clock.rightNow += 2 * DAY
        self.append(an_indicator(2, self.clock.seconds()))
        with sqlite3.connect(self.path) as other:
            rows = other.execute("SELECT decided FROM entries WHERE state != 0 ORDER BY id")
            lengths = [len(decided) for (decided,) in rows]
        other.close()
        self.assertEqual(lengths[1:], [0])
        self.assertLess(lengths[0], 20 * 20)

    def test_other_version(self) -> None:
        """
        A file that a later tbvast wrote, or one before the first release, is left alone.
        """
        self.file.close()
        for version in (OLDEST_VERSION - 1, 99):
            other = sqlite3.connect(self.path)
            other.execute(f"PRAGMA user_version = {version}")
            other.close()
            e = self.assertRaises(JournalFailed, JournalStore, self.path, "x")
            self.assertIn(f"version {version}", str(e))
            self.assertIn(str(self.path), str(e))

    def test_damaged(self) -> None:
        """
        A file that is no journal is refused in one line.
        """
        for content in (b"x" * 10_000, b"SQLite format 3\0" + b"x" * 10_000):
            with self.subTest(content[:16]):
                path = Path(self.mktemp())
                path.write_bytes(content)
                e = self.assertRaises(JournalFailed, JournalStore, path, "x")
                self.assertIn(str(path), str(e))
                self.assertNotIn("\n", str(e))

    def test_half_made(self) -> None:
        """
        A file that was made, but not given its identity any more, is given one.
        """
        other = sqlite3.connect(self.path)
        with other:
            other.execute("DELETE FROM meta")
        other.close()
        self.reopen()
        self.assertEqual(self.journal.identity, "second")

    def test_no_directory(self) -> None:
        """
        A file that cannot be made is refused.
        """
        self.assertRaises(JournalFailed, JournalStore, self.path / "deeper", "x")

    def test_disk_error(self) -> None:
        """
        A commit that fails halfway leaves nothing behind, and its items can be appended when
        the disk works again.
        """
        self.append(an_indicator(1))
        before = self.current()
        self.refuse(indicator_id(3))
        batch = [an_indicator(1, 2), an_indicator(2), an_indicator(3)]
        self.failureResultOf(self.journal.append(batch), JournalFailed)
        self.assertEqual(self.journal.head, 1)
        self.assertEqual(self.current(), before)
        self.accept()
        self.assertEqual([outcome.number for outcome in self.append(*batch)], [2, 3, 4])

    def test_failure_unknown(self) -> None:
        """
        After a failure, later calls fail too until the caller knows of it, so that nothing
        overtakes a retry.
        """
        calls: list[tuple[Deferred[Any], Any]] = []

        def later(f: Any, *args: Any) -> Deferred[Any]:
            calls.append((Deferred(), lambda: f(*args)))
            return calls[-1][0]

        self.file.close()
        self.file = FileJournal(self.path, self.clock, call=later)
        self.addCleanup(self.file.close)
        journal = self.file.journal
        first, second = (journal.append([an_indicator(number)]) for number in (1, 2))
        self.refuse(indicator_id(1))
        failures = [self.assertRaises(JournalFailed, call) for _, call in calls]
        for (d, _), failure in zip(calls, failures, strict=True):
            d.errback(Failure(failure))
        self.failureResultOf(first, JournalFailed)
        self.failureResultOf(second, JournalFailed)
        self.accept()
        for number in (1, 2):
            d = journal.append([an_indicator(number)])
            calls[-1][0].callback(calls[-1][1]())
            self.assertEqual([outcome.number for outcome in self.successResultOf(d)], [number])

    def test_floor_read(self) -> None:
        """
        A reader of entries that were pruned meanwhile learns from the floor of a possible gap.
        """
        self.append(*(a_sighting(number) for number in range(3)))
        self.file.store.prune(0.0, 1, 2)
        self.assertEqual(self.journal.floor, 0)
        self.assertEqual([entry.number for entry in self.entries()], [3])
        self.assertEqual(self.journal.floor, 2)

    def test_pruned(self) -> None:
        """
        Pruned entries can be counted.
        """
        self.append(a_sighting(1), an_indicator(1), *(a_sighting(n) for n in range(2, 5)))
        self.file.store.prune(0.0, 1, 2)
        for after, until, count in ((0, 3, 2), (1, 3, 1), (1, 2, 0), (3, 5, 0)):
            with self.subTest(after=after, until=until):
                self.assertEqual(self.successResultOf(self.journal.pruned(after, until)), count)

    def test_read_error(self) -> None:
        """
        Reading an unreadable file fails.
        """
        other = sqlite3.connect(self.path)
        other.execute("ALTER TABLE entries RENAME TO elsewhere")
        other.close()
        for d in (
            self.journal.current(0, ALL, 0, 1, 1 << 30),
            self.journal.counts(),
            self.journal.append([an_indicator()]),
        ):
            self.failureResultOf(d, JournalFailed)

    def refuse(self, id: str) -> None:
        """
        Have the disk refuse whatever has an id.
        """
        with sqlite3.connect(self.path) as other:
            other.execute(
                "CREATE TRIGGER refusal BEFORE INSERT ON entries"
                f" WHEN new.id = '{id}' BEGIN SELECT raise(FAIL, 'disk I/O error'); END"
            )
        other.close()

    def accept(self) -> None:
        with sqlite3.connect(self.path) as other:
            other.execute("DROP TRIGGER refusal")
        other.close()


class Act(NamedTuple):
    """
    Something that happens to a bus: its clock moves on, or is set, and somebody sends an
    indicator, or its removal.

    @ivar passes: Seconds that pass.
    @ivar step: Seconds by which the clock is set forward, or back.
    @ivar dated: What the sender's clock is ahead of the bus's; C{None} for a version of
        before, one of the epoch, or none at all.
    @ivar again: Which of the last things sent it is instead, if there was one.
    """

    who: Publisher
    number: int
    operation: Operation
    passes: int
    step: float
    dated: float | None
    version: float | None
    name: str
    again: int | None


acts = st.builds(
    Act,
    st.sampled_from([EVERYBODY, ONE, ONE, OTHER, MANAGER]),
    st.integers(1, 2),
    st.sampled_from([Operation.ADD, Operation.ADD, Operation.EDIT, Operation.REMOVE]),
    st.integers(1, 40),
    st.sampled_from([0.0] * 8 + [HOUR, -HOUR, -3 * HOUR]),
    st.none() | st.sampled_from([0.0, -0.5, 1.0, -10.0, 600.0, -600.0, 2 * HOUR, 60 * 365 * DAY]),
    st.none() | st.integers(1, 3),
    st.sampled_from(["", "other"]),
    st.none() | st.integers(0, 4),
)


class Told(NamedTuple):
    """
    What a plain model of a bus remembers of an indicator.

    @ivar raw: The version that is in force, if one is.
    @ivar version: That of the last publication or removal that counted.
    @ivar since: As of when it counts while C{version} is not yet over.
    @ivar counted: Everything that ever counted.
    """

    raw: bytes | None
    owner: str
    version: int
    since: int
    counted: frozenset[tuple[bool, int]]


class ModelBus:
    """
    A short model of a bus that receives a sequence of acts: the last permitted act that is
    neither a repeat nor outdated decides.
    """

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self._date = 0

    def look_at_clock(self, now: int) -> None:
        if now < self._date:
            self.told = {
                id: told._replace(since=min(told.since, now)) for id, told in self.told.items()
            }
        self._date = now

    def tell(self, item: Indicator, who: Publisher) -> None:
        now, told = self._date, self.told.get(item.id)
        removal = item.operation is Operation.REMOVE
        if told is None:
            if not (removal and (who.name or item.pattern is None)):
                counted = frozenset([(removal, item.modified)])
                raw = None if removal else item.raw
                self.told[item.id] = Told(raw, who.name, item.modified, now, counted)
            return
        if not self._counts(item, told) or not (who.manages or told.owner in ("", who.name)):
            return
        version = item.modified
        if removal:
            version = max(version or now, told.version)
        self.told[item.id] = Told(
            None if removal else item.raw,
            told.owner if removal else told.owner or who.name,
            version,
            now,
            told.counted | {(removal, item.modified or (now if removal else 0))},
        )

    def _counts(self, item: Indicator, told: Told) -> bool:
        now = self._date
        if item.operation is Operation.REMOVE:
            repeated = item.modified and (True, item.modified) in told.counted
            return told.raw is not None and not repeated
        if told.raw is not None and item.modified == told.version:
            edits = item.operation is Operation.EDIT or not item.modified
            return edits and item.raw != told.raw
        if (False, item.modified) in told.counted:
            return False
        known = told.version if told.version <= now else min(told.since, now)
        return item.modified > min(known, now) or item.modified > now


class AgreementTests(SynchronousTestCase):
    """
    The file, the double and a plain model agree on everything.
    """

    @settings(max_examples=60, deadline=None)
    @given(st.lists(acts, max_size=25))
    def test_agreement(self, acts: Sequence[Act]) -> None:
        """
        Whatever is published and removed, by whom, and however it is dated; while the
        bus's own clock is set forward and back.
        """
        clock = Clock()
        clock.rightNow = 20 * DAY
        file = FileJournal(Path(self.mktemp()), clock)
        try:
            memory, model = MemoryJournal(clock), ModelBus()
            sent: list[Indicator] = []
            for act in acts:
                clock.rightNow += act.passes
                if act.step:
                    clock.rightNow += act.step
                    for journal in (file.journal, memory):
                        self.successResultOf(journal.append([]))
                    model.look_at_clock(int(clock.seconds() * 1e6))
                    clock.rightNow += act.passes
                model.look_at_clock(int(clock.seconds() * 1e6))
                again = act.again is not None and act.again < len(sent)
                item = sent[-1 - (act.again or 0)] if again else self.item(act, clock.seconds())
                sent.append(item)
                before = model.told.get(item.id)
                model.tell(item, act.who)
                self.check(act, again, before, model.told.get(item.id))
                outcomes = [
                    self.successResultOf(journal.append([item], [(1, act.who)]))
                    for journal in (file.journal, memory)
                ]
                self.assertEqual(*map(unexplained, outcomes))
            expected = {id: told.raw for id, told in model.told.items() if told.raw is not None}
            for journal in (file.journal, memory):
                found = self.successResultOf(found_in(journal, map(indicator_id, (1, 2))))
                self.assertEqual(found, expected)
            self.assertEqual(
                self.successResultOf(file.journal.current(0, ALL, 0, 1000, 1 << 30)),
                self.successResultOf(memory.current(0, ALL, 0, 1000, 1 << 30)),
            )
            self.assertEqual(
                self.successResultOf(file.journal.entries(0, list(Stream), ALL, ALL)),
                self.successResultOf(memory.entries(0, list(Stream), ALL, ALL)),
            )
        finally:
            file.close()

    def item(self, act: Act, now: float) -> Indicator:
        version = act.version if act.dated is None else now + act.dated
        fields: dict[str, Any] = {"name": act.name or None}
        if version is not None and version > 20 * DAY:
            fields["modified"] = timestamp(from_microseconds(int(version * 1e6)))
            version = None
        if act.operation is not Operation.ADD:
            fields["x_threatbus_update"] = act.operation.value
            if act.operation is Operation.REMOVE and not act.name:
                fields["pattern"] = None
        return an_indicator(act.number, version, **fields)

    def check(self, act: Act, again: bool, before: Told | None, after: Told | None) -> None:
        """
        Invariants that hold independently of the model.
        """
        if before is None or after is None:
            return
        allowed = act.who.manages or before.owner in ("", act.who.name)
        if not allowed:
            self.assertEqual(after, before)
        elif again:
            return
        elif act.dated == -0.5 and act.operation is Operation.REMOVE:
            self.assertIsNone(after.raw)
        elif act.dated == -0.5 and act.passes > 1:
            # A right clock has its way, whatever wrong ones said before.
            self.assertIsNotNone(after.raw)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(acts, max_size=20), st.integers(1, 6))
    @example(
        [
            Act(EVERYBODY, 1, operation, 1, 0.0, dated, None, "a", None)
            for operation, dated in (
                (Operation.ADD, None),
                (Operation.REMOVE, 1.0),
                (Operation.ADD, 600.0),
                (Operation.ADD, 1.0),  # a version of its own, though a removal had its date
            )
        ],
        1,
    )
    def test_batches(self, acts: Sequence[Act], size: int) -> None:
        """
        Acts of one moment have the same outcomes however they are cut into batches.
        """
        clock = Clock()
        clock.rightNow = 20 * DAY
        items = [self.item(act, clock.seconds()) for act in acts]
        publishers = [act.who for act in acts]
        found = []
        for count in (1, size, len(items) or 1):
            file = FileJournal(Path(self.mktemp()), clock)
            memory = MemoryJournal(clock)
            for journal in (file.journal, memory):
                outcomes: list[Outcome] = []
                for start in range(0, len(items), count):
                    runs = runs_of(publishers[start : start + count])
                    done: Deferred[Any] = journal.append(items[start : start + count], runs)
                    outcomes += self.successResultOf(done)
                found.append(unexplained(outcomes))
            file.close()
        for other in found[1:]:
            self.assertEqual(other, found[0])


def unexplained(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """
    Outcomes, with their reasons reduced to whether there is one.
    """
    return [msgspec.structs.replace(each, reason="why" if each.reason else "") for each in outcomes]
