"""
Tests for L{tbvast.storage.set_aside}.
"""

from __future__ import annotations

import sqlite3

from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import DocumentInvalid
from tbvast.protocol.unreadable import KEPT_BYTES, REASON_LENGTH
from tbvast.storage.set_aside import (
    MOST_ITEMS,
    SET_ASIDE_TABLE,
    SetAside,
    SetAsideReport,
    Stage,
    described,
    id_in,
    reason_of,
    report,
    store_set_aside,
)
from tests.doubles import an_indicator, indicator_id


class TableTests(SynchronousTestCase):
    """
    The table.
    """

    def setUp(self) -> None:
        self.connection = sqlite3.connect(":memory:")
        self.addCleanup(self.connection.close)
        self.connection.execute(SET_ASIDE_TABLE)

    def test_kept(self) -> None:
        """
        All fields of an item are stored, and the newest item is reported.
        """
        self.assertEqual(report(self.connection), SetAsideReport())
        store_set_aside(
            self.connection,
            [
                SetAside(Stage.INTAKE, "why", b"1"),
                SetAside(Stage.EXPIRY, "because", b"2", "indicator", indicator_id(1), 7),
            ],
            99,
        )
        self.assertEqual(
            report(self.connection), SetAsideReport(2, f"expiry: {indicator_id(1)}: because")
        )
        self.assertEqual(
            self.connection.execute("SELECT * FROM set_aside").fetchall(),
            [
                (1, 0, "", "", "intake", "why", 99, 1, b"1"),
                (2, 7, "indicator", indicator_id(1), "expiry", "because", 99, 1, b"2"),
            ],
        )

    def test_bounded(self) -> None:
        """
        It holds the newest ones only, and the beginning of long ones; all are counted.
        """
        for _ in range(3):
            store_set_aside(
                self.connection, [SetAside(Stage.APPEND, "x", b"x")] * (MOST_ITEMS // 2), 0
            )
        long = SetAside(Stage.APPEND, "y" * 10_000, b"y" * (KEPT_BYTES + 1))
        store_set_aside(self.connection, [long], 0)
        (count, size, kept, reason) = self.connection.execute(
            "SELECT count(*), max(size), max(length(body)), max(length(reason)) FROM set_aside"
        ).fetchone()
        self.assertEqual((count, size, kept, reason), (1000, KEPT_BYTES + 1, KEPT_BYTES, 500))
        self.assertEqual(report(self.connection).count, MOST_ITEMS // 2 * 3 + 1)

    def test_not_unicode(self) -> None:
        """
        A text that no file can take is kept as far as it is one.
        """
        store_set_aside(self.connection, [SetAside(Stage.APPEND, "a\ud800", b"", "", "b\ud800")], 0)
        self.assertEqual(report(self.connection).newest, "append: b?: a?")


class FunctionTests(SynchronousTestCase):
    """
    Tests for the functions.
    """

    def test_reason(self) -> None:
        """
        A reason is one line, and not without end.
        """
        self.assertEqual(reason_of(ValueError("a\n  b")), "a b")
        self.assertEqual(reason_of(RecursionError()), "RecursionError")
        self.assertEqual(len(reason_of(ValueError("x" * 10_000))), REASON_LENGTH)
        self.assertIn("id", reason_of(DocumentInvalid("id", "x", "an id")))

    def test_id(self) -> None:
        """
        The id of a damaged document is found, if there is one.
        """
        raw = an_indicator(1).raw
        self.assertEqual(id_in(raw[:-1] + b"\xff"), indicator_id(1))
        self.assertEqual(id_in(b'{"id":"x"}'), "")

    def test_described(self) -> None:
        """
        A line of a log says which one it is, and why.
        """
        self.assertEqual(
            described(SetAside(Stage.REPLAY, "why", b"x", "indicator", "some-id", 3)),
            "some-id, number 3 (replay): why",
        )
        self.assertEqual(described(SetAside(Stage.INTAKE, "why", b"x")), "b'x' (intake): why")
