"""
Tests for L{tbvast.engines.tenzir.table_guard}.
"""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir.pipelines import main_tables
from tbvast.engines.tenzir.table_guard import TableGuard
from tbvast.errors import EngineTablesChanged
from tbvast.stix.observables import Kind, Observable

TABLES = main_tables("0a")


def domains(numbers: range) -> list[Observable]:
    return [Observable(Kind.DOMAIN, f"{number}.example") for number in numbers]


class TableGuardTests(SynchronousTestCase):
    """
    L{TableGuard} notices the changes of others, and none of its own.
    """

    def setUp(self) -> None:
        self.now = 100.0
        self.guard = TableGuard(TABLES, lambda: self.now)
        self.report = dict.fromkeys(TABLES, 10)
        self.guard.counted(self.report)

    def check(self, text: int, since: float = math.inf) -> None:
        self.guard.check({**self.report, TABLES.text: text}, since)

    def refused(self, text: int, since: float = math.inf) -> str:
        """
        @return: The reason why a number of entries is not expected.
        """
        e = self.assertRaises(EngineTablesChanged, self.check, text, since)
        self.assertTrue(self.guard.spoiled)
        return e.reason

    def write(self, added: range = range(0), removed: range = range(0)) -> None:
        with self.guard.writing():
            self.guard.adding(domains(added))
            self.guard.removing(domains(removed))

    def test_unchanged(self) -> None:
        """
        The expected numbers are fine, whatever other tables there are.
        """
        self.guard.check({**self.report, "other": 7}, math.inf)
        self.assertFalse(self.guard.spoiled)

    def test_removed(self) -> None:
        """
        A table that is not there was removed.
        """
        del self.report[TABLES.net]
        e = self.assertRaises(EngineTablesChanged, self.guard.check, self.report, math.inf)
        self.assertEqual(e.reason, "tbvast_0a_net was removed")

    def test_changed(self) -> None:
        """
        One entry less, or more, is noticed.
        """
        self.assertEqual(self.refused(9), "tbvast_0a_str has 9 entries instead of 10")
        self.refused(11)
        self.refused(0)

    def test_own_changes(self) -> None:
        """
        Entries that the bridge writes or removes may be new or not; others are noticed.
        """
        self.write(range(3), range(10, 12))
        for count in range(8, 14):
            self.check(count, since=0.0)
        self.assertEqual(self.refused(7), "tbvast_0a_str has 7 entries instead of 8 to 13")
        self.refused(14)

    def test_exact_again(self) -> None:
        """
        As soon as the node has counted the entries after the write, the number is exact.
        """
        self.write(range(3))
        self.now = 101.0
        self.check(13, since=101.0)
        self.refused(12)

    def test_counted_before(self) -> None:
        """
        A report from before the end of a write leaves the number open.
        """
        self.write(range(3))
        self.check(10, since=100.0)
        with self.guard.writing():
            self.check(10)
        self.check(13, since=99.0)

    def test_counted_again(self) -> None:
        """
        If the bridge counts the entries, a report from before may still have the earlier number.
        """
        self.write(range(3))
        self.guard.counted({TABLES.text: 13})
        self.check(10, since=100.0)
        self.check(13, since=101.0)
        self.refused(10)

    def test_unknown(self) -> None:
        """
        Numbers that were never read are taken from the first report.
        """
        guard = TableGuard(TABLES, lambda: self.now)
        guard.adding(domains(range(1)))
        guard.check(self.report, 0.0)
        self.assertRaises(
            EngineTablesChanged, guard.check, {**self.report, TABLES.text: 9}, math.inf
        )

    def test_renewed(self) -> None:
        """
        Tables that were made anew have other numbers.
        """
        self.refused(0)
        self.guard.renewed()
        self.assertFalse(self.guard.spoiled)
        self.check(0)

    @given(
        st.sets(st.integers(0, 20)), st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 20))))
    )
    def test_own_only(self, held: set[int], writes: list[tuple[bool, set[int]]]) -> None:
        """
        Whatever the bridge writes, in whatever order reports come, no report is refused.
        """
        guard = TableGuard(TABLES, lambda: float(now))
        held, now = set(held), 0
        guard.counted({TABLES.ip: 0, TABLES.net: 0, TABLES.text: len(held)})
        for now, (add, numbers) in enumerate(writes, 1):
            report = {TABLES.ip: 0, TABLES.net: 0, TABLES.text: len(held)}
            observables = [Observable(Kind.DOMAIN, f"{number}.example") for number in numbers]
            with guard.writing():
                (guard.adding if add else guard.removing)(observables)
                guard.check(report, float(now))
            held = held | numbers if add else held - numbers
            guard.check(report, float(now))
            if now % 2:
                guard.check({**report, TABLES.text: len(held)}, now + 0.5)
