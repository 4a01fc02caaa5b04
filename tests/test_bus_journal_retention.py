"""
Tests for L{tbvast.bus.journal.retention}, and for the expiry and pruning of a journal.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from tbvast.bus.journal.retention import (
    EXPIRY_INTERVAL,
    MAX_BATCH_ENTRIES,
    PRUNE_INTERVAL,
    Retention,
)
from tbvast.bus.journal.values import Outcome, Verdict
from tbvast.errors import JournalFailed
from tbvast.interfaces import IRetention
from tbvast.protocol.topics import Stream
from tbvast.stix.indicators import Indicator, Operation, decode_indicator
from tests.doubles import DAY, a_sighting, an_indicator, indicator_id, moment
from tests.doubles_bus import FileJournalTestCase

PLENTY = 1 << 40


class RetentionTestCase(FileJournalTestCase):
    """
    A journal in a file.
    """

    def in_force(self) -> list[int]:
        page = self.successResultOf(self.journal.current(0, PLENTY, 0, PLENTY, 1 << 30))
        return [number for number, _ in page]

    def numbers(self) -> list[int]:
        """
        The numbers of the remaining entries.
        """
        entries = self.successResultOf(self.journal.entries(0, list(Stream), 10_000, PLENTY))
        return [entry.number for entry in entries]


class ExpireTests(RetentionTestCase):
    """
    Expired indicators.
    """

    def expire(self, limit: int = 1000) -> list[Outcome]:
        outcomes: list[Outcome] = self.successResultOf(self.journal.expire(limit))
        return outcomes

    def test_interface(self) -> None:
        """
        A journal is an L{IRetention}.
        """
        verifyObject(IRetention, self.journal)

    def test_expired(self) -> None:
        """
        An indicator that expires is removed once, under a new number.
        """
        self.append(
            an_indicator(1, valid_until=moment(100)),
            an_indicator(2, valid_until=moment(200)),
            an_indicator(3),
        )
        self.clock.advance(99)
        self.assertEqual(self.expire(), [])
        self.clock.advance(1)
        (outcome,) = self.expire()
        self.assertEqual((outcome.verdict, outcome.number), (Verdict.EXPIRED, 4))
        item = outcome.item
        assert isinstance(item, Indicator)
        self.assertEqual(
            (item.id, item.operation, item.pattern),
            (indicator_id(1), Operation.REMOVE, an_indicator(1).pattern),
        )
        self.assertEqual(decode_indicator(item.raw).operation, Operation.REMOVE)
        self.assertEqual((self.expire(), self.journal.head, self.in_force()), ([], 4, [2, 3]))
        self.assertEqual(self.numbers(), [1, 2, 3, 4])

    def test_limit(self) -> None:
        """
        A bounded number expires at a time, in order of C{valid_until}.
        """
        self.append(*(an_indicator(n, valid_until=moment(100 - n)) for n in range(5)))
        self.clock.advance(200)
        self.assertEqual(
            [outcome.item.id for limit in (2, 9) for outcome in self.expire(limit)],
            [indicator_id(number) for number in (4, 3, 2, 1, 0)],
        )

    def test_extended(self) -> None:
        """
        One that was removed does not expire; one that was extended not before its
        new time.
        """
        self.append(
            an_indicator(1, valid_until=moment(100)), an_indicator(2, valid_until=moment(100))
        )
        self.append(
            an_indicator(1, 2, x_threatbus_update="REMOVE"),
            an_indicator(2, 2, valid_until=moment(300)),
        )
        self.clock.advance(200)
        self.assertEqual(self.expire(), [])
        self.clock.advance(100)
        self.assertEqual([outcome.item.id for outcome in self.expire()], [indicator_id(2)])

    def test_comes_back(self) -> None:
        """
        The version that expired does not come back; a later one does.
        """
        item = an_indicator(1, valid_until=moment(100))
        self.append(item)
        self.clock.advance(100)
        self.expire()
        self.assertEqual(self.append(item)[0].verdict, Verdict.OUTDATED)
        self.assertEqual(self.append(an_indicator(1, 2))[0].verdict, Verdict.ACCEPTED)
        self.assertEqual(self.in_force(), [3])

    def test_clock_was_ahead(self) -> None:
        """
        An indicator that expired only because the bus's clock was ahead comes back when it is
        published again, unless it was removed since.
        """
        items = [an_indicator(number, valid_until=moment(100)) for number in (1, 2)]
        self.append(*items)
        self.clock.rightNow = 3700.0
        self.assertEqual(len(self.expire()), 2)
        self.assertEqual([o.verdict for o in self.append(*items)], [Verdict.OUTDATED] * 2)
        removal = an_indicator(2, 2, x_threatbus_update="REMOVE")
        self.assertEqual(self.append(removal)[0].verdict, Verdict.ACCEPTED)
        self.clock.rightNow = 50.0
        self.assertEqual(self.expire(), [])
        self.assertEqual(
            [o.verdict for o in self.append(*items)], [Verdict.ACCEPTED, Verdict.OUTDATED]
        )
        self.clock.rightNow = 100.0
        self.assertEqual([o.item.id for o in self.expire()], [indicator_id(1)])


class ForgetTests(RetentionTestCase):
    """
    Entries that are no longer needed.
    """

    def prune(self, age: float = DAY, size: int = PLENTY, limit: int = 1000) -> int:
        count: int = self.successResultOf(self.journal.prune(age, size, limit))
        return count

    def test_age(self) -> None:
        """
        Old entries that are not in force are pruned, up to the floor.
        """
        self.append(an_indicator(1), a_sighting(1), an_indicator(1, 2), an_indicator(2))
        self.append(an_indicator(2, 2, x_threatbus_update="REMOVE"))
        self.clock.advance(DAY)
        self.append(a_sighting(2))
        self.assertEqual((self.prune(), self.journal.floor), (0, 0))
        self.clock.advance(1)
        self.assertEqual((self.prune(), self.journal.floor), (4, 5))
        self.assertEqual((self.numbers(), self.in_force()), ([3, 6], [3]))
        self.assertEqual((self.prune(), self.journal.floor), (0, 5))

    def test_size(self) -> None:
        """
        Above a size, the oldest entries are pruned sooner, a limited number at a time; entries
        in force stay.
        """
        self.append(an_indicator(1), *(a_sighting(number) for number in range(5)))
        self.assertEqual((self.prune(size=1, limit=2), self.numbers()), (2, [1, 4, 5, 6]))
        self.assertEqual(self.journal.floor, 3)
        self.assertEqual((self.prune(size=1), self.numbers()), (3, [1]))
        self.assertEqual((self.journal.floor, self.journal.head), (6, 6))

    def test_reopened(self) -> None:
        """
        The floor is durable, and numbers continue.
        """
        self.append(*(a_sighting(number) for number in range(12)))
        self.prune(size=1)
        self.file.close()
        self.open()
        self.assertEqual((self.journal.floor, self.journal.head), (12, 12))
        self.assertEqual(self.append(a_sighting(99))[0].number, 13)

    def test_smaller(self) -> None:
        """
        Pruning makes the file smaller.
        """
        self.append(*(a_sighting(number, note="x" * 1000) for number in range(500)))
        self.assertEqual(self.prune(size=1), 500)
        self.file.close()
        self.assertLess(self.path.stat().st_size, 200_000)
        self.open()


class RetentionTests(RetentionTestCase):
    """
    Tests for L{Retention}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.handed_on: list[Outcome] = []
        self.retention = Retention(self.clock, self.journal, self.fan_out, DAY, PLENTY)
        self.retention.startService()

    def tearDown(self) -> None:
        self.successResultOf(self.retention.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def fan_out(self, outcomes: Sequence[Outcome]) -> Deferred[None]:
        self.handed_on.extend(outcomes)
        return succeed(None)

    def test_expired(self) -> None:
        """
        Expired indicators are delivered within about a second, however many there are.
        """
        self.append(
            *(an_indicator(n, valid_until=moment(50)) for n in range(MAX_BATCH_ENTRIES + 1))
        )
        self.clock.pump([EXPIRY_INTERVAL] * 49)
        self.assertEqual(self.handed_on, [])
        self.clock.advance(EXPIRY_INTERVAL)
        self.assertEqual(len(self.handed_on), MAX_BATCH_ENTRIES + 1)

    def test_forgotten(self) -> None:
        """
        Old entries are pruned at intervals.
        """
        self.append(a_sighting())
        self.clock.advance(DAY)
        self.assertEqual(self.numbers(), [1])
        self.clock.advance(PRUNE_INTERVAL)
        self.assertEqual((self.numbers(), self.journal.floor), ([], 1))

    def test_journal_fails(self) -> None:
        """
        A journal that refuses is asked again, and the log says why.
        """
        self.append(an_indicator(valid_until=moment(10)))
        self.file.close()
        with capturedLogs() as events:
            self.clock.advance(PRUNE_INTERVAL)
        formats = {event["log_format"] for event in events if "reason" in event}
        self.assertEqual(
            formats, {"Cannot expire indicators: {reason}", "Cannot prune the journal: {reason}"}
        )
        self.flushLoggedErrors(JournalFailed)
        self.open()
        retention = Retention(self.clock, self.journal, self.fan_out, DAY, PLENTY)
        retention.startService()
        self.assertEqual(len(self.handed_on), 1)
        self.successResultOf(retention.stopService())

    def test_defect(self) -> None:
        """
        A journal with a defect is asked again, too.
        """
        self.append(an_indicator(valid_until=moment(10)))
        expire = self.journal.expire
        self.patch(self.journal, "expire", lambda limit: fail(ZeroDivisionError()))
        self.patch(self.journal, "prune", lambda *limits: fail(ZeroDivisionError()))
        self.clock.pump([EXPIRY_INTERVAL] * int(PRUNE_INTERVAL))
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.patch(self.journal, "expire", expire)
        self.clock.advance(EXPIRY_INTERVAL)
        self.assertEqual(len(self.handed_on), 1)
