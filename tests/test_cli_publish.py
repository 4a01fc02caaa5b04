"""
Tests for L{tbvast.cli.publish}.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.cli.input_files import InputContents, Submission
from tbvast.cli.publish import (
    MAX_BATCH_BYTES,
    MAX_BATCH_DOCUMENTS,
    Tally,
    make_removals,
    read_inputs,
    split_batches,
    summary_lines,
)
from tbvast.errors import SettingsInvalid
from tests.doubles import indicator_id

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class BatchesTests(SynchronousTestCase):
    @given(
        st.lists(
            st.sampled_from((1, 1000, MAX_BATCH_BYTES // 3, MAX_BATCH_BYTES, MAX_BATCH_BYTES + 1))
        )
    )
    def test_bounded(self, sizes: list[int]) -> None:
        """
        All documents are there, in order, in batches within the bounds; only a single
        document may exceed them.
        """
        submissions = [Submission(str(i), b"x" * size) for i, size in enumerate(sizes)]
        batches = list(split_batches(submissions))
        self.assertEqual([s for batch in batches for s in batch], submissions)
        for batch in batches:
            size = sum(len(s.document) for s in batch)
            self.assertTrue(0 < len(batch) <= MAX_BATCH_DOCUMENTS)
            self.assertTrue(size <= MAX_BATCH_BYTES or len(batch) == 1)

    def test_many(self) -> None:
        submissions = [Submission("", b"{}")] * (2 * MAX_BATCH_DOCUMENTS + 1)
        self.assertEqual(
            [len(p) for p in split_batches(submissions)],
            [MAX_BATCH_DOCUMENTS, MAX_BATCH_DOCUMENTS, 1],
        )


class TallyTests(SynchronousTestCase):
    def test_good(self) -> None:
        tally = Tally(("accepted", "repeated"))
        tally.count(Submission("in:1", b""), "accepted")
        tally.count(Submission("in:2", b""), "repeated")
        self.assertTrue(tally.successful)
        self.assertEqual(tally.lines, [])
        self.assertEqual(str(tally), "2 indicators: 1 accepted, 1 repeated")

    def test_bad(self) -> None:
        """
        Every unsuccessful document has a line, in words.
        """
        tally = Tally(("accepted",), {"accepted": "removed"}, ["in:1: id: None is not an id"])
        tally.count(Submission("in:2", b""), "refused", "too old")
        tally.count(Submission("in:3", b"", "indicator--3"), "unknown")
        tally.count(Submission("in:5", b""), "what a later bus says")
        tally.count(Submission("in:4", b""), "accepted")
        self.assertFalse(tally.successful)
        self.assertEqual(
            tally.lines,
            [
                "in:1: id: None is not an id",
                "in:2: refused by the bus: too old",
                "in:3: indicator--3: not known to the bus, so that there is nothing to remove",
                "in:5: what a later bus says",
            ],
        )
        self.assertEqual(
            str(tally),
            "5 indicators: 2 refused, 1 unknown, 1 what a later bus says, 1 removed",
        )

    def test_nothing(self) -> None:
        tally = Tally(("accepted",))
        tally.outcomes["not sent"] += 0
        self.assertTrue(tally.successful)
        self.assertEqual(str(tally), "0 indicators")


class SummaryTests(SynchronousTestCase):
    def test_all(self) -> None:
        tally = Tally(("accepted",))
        tally.count(Submission("in:1", b""), "accepted")
        contents = InputContents(
            ignored=Counter(relationship=2, malware=1),
            unmatchable=Counter({"EXISTS": 1, "NOT": 2}),
        )
        self.assertEqual(
            list(summary_lines(tally, contents)),
            [
                "1 indicator: 1 accepted",
                "3 other objects ignored: 1 malware, 2 relationship",
                "3 of the indicators cannot be matched by tbvast-bridge:",
                "  2 for NOT",
                "  1 for EXISTS",
            ],
        )


class RemovalsTests(SynchronousTestCase):
    def test_ids(self) -> None:
        """
        An id stands for itself, an observable for the indicator that C{publish} makes.
        """
        contents = InputContents()
        contents.read("in", b"hxxps://Evil.example/a", NOW)
        [published] = contents.submissions
        made = make_removals([indicator_id(1), "http://evil[.]example/a"], NOW)
        documents = [json.loads(s.document) for s in made]
        self.assertEqual(
            [d["id"] for d in documents],
            [indicator_id(1), json.loads(published.document)["id"]],
        )
        self.assertEqual({d["x_threatbus_update"] for d in documents}, {"REMOVE"})

    def test_neither(self) -> None:
        for name in ("", "blub", "malware--00000000-0000-4000-8000-000000000001"):
            error = self.assertRaises(SettingsInvalid, make_removals, [name], NOW)
            self.assertEqual((error.field, error.value), ("ID", name))


class ReadInputsTests(SynchronousTestCase):
    def test_unreadable(self) -> None:
        for name in (self.mktemp(), ".", "a\0b"):
            error = self.assertRaises(SettingsInvalid, read_inputs, [name], NOW)
            self.assertEqual((error.field, error.value), ("FILE", name))

    def test_many(self) -> None:
        paths = [self.mktemp(), self.mktemp()]
        for path in paths:
            with open(path, "w") as f:
                f.write("evil.example\n")
        locations = [s.location for s in read_inputs(paths, NOW).submissions]
        self.assertEqual(locations, [f"{path}:1" for path in paths])
