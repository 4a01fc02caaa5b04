"""
Tests for L{tbvast.cli.input_files}.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.cli.input_files import InputContents
from tbvast.stix.indicators import decode_indicator, make_indicator
from tbvast.stix.observables import guess
from tests.doubles import indicator_document, indicator_id

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def contents_of(raw: bytes | str) -> InputContents:
    contents = InputContents()
    contents.read("in", raw.encode() if isinstance(raw, str) else raw, NOW)
    return contents


def patterns(contents: InputContents) -> list[str | None]:
    return [decode_indicator(s.document).pattern for s in contents.submissions]


class LinesTests(SynchronousTestCase):
    """
    Lines of observables.
    """

    def test_lines(self) -> None:
        """
        Every line is an observable, but for blank ones and comments.
        """
        contents = contents_of("# C2\n\n 192.0.2.1 \r\nhxxp://evil[.]example/a#b\n  # end\n")
        self.assertEqual(contents.refused, [])
        self.assertEqual(
            patterns(contents),
            ["[ipv4-addr:value = '192.0.2.1']", "[url:value = 'http://evil.example/a#b']"],
        )
        self.assertEqual([s.location for s in contents.submissions], ["in:3", "in:4"])

    def test_document(self) -> None:
        """
        An observable becomes the indicator that C{make_indicator} makes.
        """
        [submission] = contents_of("evil[.]example").submissions
        expected = make_indicator(guess("evil.example"), now=NOW, source="tbvast")
        self.assertEqual(json.loads(submission.document), json.loads(expected))

    def test_bad_line(self) -> None:
        """
        A bad line is named; the others are read.
        """
        contents = contents_of("192.0.2.1\n192.0.2.999\nevil.example\n")
        self.assertEqual(len(contents.submissions), 2)
        [line] = contents.refused
        self.assertTrue(line.startswith("in:2: "), line)
        self.assertIn("'192.0.2.999'", line)

    def test_not_utf8(self) -> None:
        contents = contents_of(b"192.0.2.1\n\xff\xfe\n")
        self.assertEqual(len(contents.submissions), 1)
        self.assertEqual(contents.refused, [r"in:2: observable: b'\xff\xfe' is not UTF-8"])

    def test_byte_order_mark(self) -> None:
        self.assertEqual(len(contents_of(b"\xef\xbb\xbf192.0.2.1\n").submissions), 1)

    def test_objects(self) -> None:
        """
        Lines may be STIX objects, and observables between them.
        """
        raw = b"\n".join([indicator_document(1), b"192.0.2.9", b'{"type":"malware"}', b"{broken"])
        contents = contents_of(raw)
        self.assertEqual([s.location for s in contents.submissions], ["in:1", "in:2"])
        self.assertEqual(contents.submissions[0].document, indicator_document(1))
        self.assertEqual(contents.ignored, {"malware": 1})
        self.assertTrue(contents.refused[0].startswith("in:4: document: "))

    def test_address_in_brackets(self) -> None:
        """
        A defanged or bracketed address is a line, not a JSON list.
        """
        contents = contents_of("[.]\n192[.]0[.]2[.]1\n")
        self.assertEqual(patterns(contents), ["[ipv4-addr:value = '192.0.2.1']"])

    def test_nothing(self) -> None:
        for raw in (b"", b"\n\n", b"# nothing\n"):
            self.assertEqual(contents_of(raw), InputContents())

    @given(st.binary(max_size=200))
    def test_anything(self, raw: bytes) -> None:
        """
        Any input gives valid indicators, or is refused.
        """
        for submission in contents_of(raw).submissions:
            decode_indicator(submission.document)

    @given(st.lists(st.sampled_from(["192.0.2.1", "x", "", "#", "a.b", "{}", "[]"]), max_size=9))
    def test_every_line(self, lines: list[str]) -> None:
        """
        Every line is taken, refused, ignored, blank or a comment.
        """
        contents = contents_of("\n".join(["#", *lines]))
        counted = len(contents.submissions) + len(contents.refused) + contents.ignored.total()
        self.assertEqual(counted, sum(line not in ("", "#") for line in lines))


class DocumentTests(SynchronousTestCase):
    """
    STIX documents.
    """

    def bundle(self, *objects: bytes, indent: int | None = None) -> bytes:
        document: dict[str, Any] = {"type": "bundle", "objects": [json.loads(o) for o in objects]}
        return json.dumps(document, indent=indent).encode()

    def test_object(self) -> None:
        [submission] = contents_of(indicator_document(1)).submissions
        self.assertEqual(submission.document, indicator_document(1))
        self.assertEqual(submission.location, "in:1: indicator 1")

    def test_list(self) -> None:
        raw = b"\n[ " + indicator_document(1) + b",\n" + indicator_document(2) + b"]"
        locations = [s.location for s in contents_of(raw).submissions]
        self.assertEqual(locations, ["in:2: indicator 1", "in:3: indicator 2"])

    def test_bundle_with_bad_ones(self) -> None:
        """
        Of a bundle of 1,000 with 3 bad ones, 997 are read; each bad one is named with its
        line and the problem.
        """
        objects = [indicator_document(n) for n in range(1000)]
        objects[5] = indicator_document(5, pattern="[ipv4-addr:value = ")
        objects[500] = indicator_document(500, id="indicator--nonsense")
        objects[999] = indicator_document(999, valid_until="tomorrow")
        raw = self.bundle(*objects, indent=2)
        contents = contents_of(raw)
        self.assertEqual(len(contents.submissions), 997)
        lines = raw.decode().splitlines()
        for refused, number, word in zip(
            contents.refused,
            (6, 501, 1000),
            ("pattern: '[ipv4-addr:value = '", "id: 'indicator--nonsense'", "'tomorrow'"),
            strict=True,
        ):
            name, line, rest = refused.split(":", 2)
            self.assertEqual((name, lines[int(line) - 1].strip()), ("in", "{"))
            self.assertTrue(rest.startswith(f" indicator {number}: "), rest)
            self.assertIn(word, rest)

    def test_ignored(self) -> None:
        """
        Objects of other types are counted by type.
        """
        raw = self.bundle(b'{"type":"malware"}', indicator_document(1), b'{"type":"malware"}', b"7")
        contents = contents_of(raw)
        self.assertEqual(contents.ignored, {"malware": 2, "not a STIX object": 1})
        self.assertEqual(len(contents.submissions), 1)

    def test_no_json(self) -> None:
        for raw in ("{", "[{]", '{"type": 1}', '{"a": "b"}', "{\n}"):
            contents = contents_of(raw)
            self.assertEqual((contents.submissions, len(contents.refused)), ([], 1), raw)
            self.assertTrue(contents.refused[0].startswith("in: "), contents.refused)

    def test_deep(self) -> None:
        self.assertEqual(len(contents_of(b"[{" * 100_000).refused), 1)

    def test_too_long(self) -> None:
        """
        A document that is too long for any bus is refused.
        """
        contents = contents_of(indicator_document(1, name="x" * (11 << 20)))
        self.assertEqual(contents.submissions, [])
        self.assertIn("is not at most", contents.refused[0])

    def test_unmatchable(self) -> None:
        """
        Indicators that no engine can match are published, and counted by reason.
        """
        raw = self.bundle(
            indicator_document(1),
            indicator_document(2, pattern="[process:name = 'a']"),
            indicator_document(4, pattern="rule x {}", pattern_type="yara"),
            indicator_document(5, pattern=None, x_threatbus_update="REMOVE"),
        )
        contents = contents_of(raw)
        self.assertEqual(len(contents.submissions), 4)
        self.assertEqual(
            contents.unmatchable,
            {
                "object path process:name": 1,
                "pattern type yara": 1,
            },
        )

    def test_admission(self) -> None:
        """
        Documents that the bus would refuse are refused; those that it would complete are
        completed.
        """
        contents = contents_of(
            self.bundle(
                indicator_document(1, pattern="[ipv4-addr:value = '1.2.3.999']"),
                indicator_document(2, confidence="high"),
                indicator_document(3, spec_version=None),
            )
        )
        self.assertEqual(len(contents.refused), 2)
        self.assertIn("ip: '1.2.3.999' is not", contents.refused[0])
        self.assertIn("confidence: 'high' is not a whole number", contents.refused[1])
        (submission,) = contents.submissions
        self.assertEqual(
            msgspec.json.decode(submission.document),
            msgspec.json.decode(indicator_document(3)),
        )

    def test_add(self) -> None:
        """
        Contents add up.
        """
        contents = contents_of(indicator_document(1))
        contents.read("in", b"x\n", NOW)
        contents.read("in", b'{"type":"malware"}', NOW)
        self.assertEqual([s.location for s in contents.submissions], ["in:1: indicator 1"])
        self.assertEqual(len(contents.refused), 1)
        self.assertEqual(contents.ignored, {"malware": 1})
        self.assertIn(indicator_id(1).encode(), contents.submissions[0].document)
