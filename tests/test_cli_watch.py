"""
Tests for L{tbvast.cli.watch}.
"""

from __future__ import annotations

import io
import json
import math
from datetime import UTC
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.cli.terminal import Screen
from tbvast.cli.watch import (
    MessagePrinter,
    Row,
    describe_event,
    make_row,
    plain_fields,
    terminal_header,
    terminal_line,
)
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.sightings import Sighting
from tests.doubles import indicator_document, indicator_id, sighting_id
from tests.test_cli_terminal import HOSTILE, MemoryTerminal
from tests.test_service_escaping import harmless


def indicator(number: int = 1, **changes: Any) -> Any:
    return decode_indicator(indicator_document(number, **changes))


def sighting(**document: Any) -> Sighting:
    raw = json.dumps(document).encode()
    return Sighting(sighting_id(1), indicator_id(1), 1_500_000, raw)


class RowTests(SynchronousTestCase):
    def test_indicator(self) -> None:
        self.assertEqual(
            make_row(indicator(7)),
            Row(1_000_000, "indicator", "ADD", "192.0.2.7", "", indicator_id(7)),
        )

    def test_values(self) -> None:
        """
        The first observables are listed; without observables, the pattern.
        """
        listed = ", ".join(f"'{n}.example'" for n in range(7))
        for pattern, value in (
            ("[url:value = 'http://a.example/'] OR [ipv4-addr:value = '192.0.2.1']",) * 2,
            (f"[domain-name:value IN ({listed})]", None),
            ("[process:name = 'x']", "[process:name = 'x']"),
        ):
            shown = make_row(indicator(pattern=pattern)).value
            if value == pattern and "OR" in pattern:
                self.assertEqual(shown, "http://a.example/, 192.0.2.1")
            elif value is None:
                self.assertTrue(shown.endswith("4.example, and 2 more"), shown)
            else:
                self.assertEqual(shown, value)

    def test_other_patterns(self) -> None:
        self.assertEqual(make_row(indicator(pattern="rule", pattern_type="yara")).value, "rule")

    def test_removal(self) -> None:
        shown = make_row(indicator(pattern=None, x_threatbus_update="REMOVE"))
        self.assertEqual((shown.action, shown.value), ("REMOVE", ""))

    def test_sighting(self) -> None:
        event = {"event_type": "dns", "src_ip": "192.0.2.1", "dest_ip": "192.0.2.2"}
        shown = make_row(
            sighting(
                x_threatbus_indicator_value="evil.example",
                x_threatbus_match_type="LIVE",
                x_threatbus_sighting_context=event,
            )
        )
        self.assertEqual(
            shown,
            Row(
                1_500_000,
                "sighting",
                "LIVE",
                "evil.example",
                "dns 192.0.2.1 → 192.0.2.2",
                indicator_id(1),
            ),
        )

    def test_together(self) -> None:
        """
        Observables that were seen together are shown together.
        """
        shown = make_row(
            sighting(
                x_threatbus_indicator_value="a.example",
                x_threatbus_indicator_values=["a.example", "192.0.2.1"],
            )
        )
        self.assertEqual(shown.value, "a.example AND 192.0.2.1")

    def test_sparse_sighting(self) -> None:
        """
        Sightings of other programs may lack our properties, or have them with other types.
        """
        for document in ({}, {"x_threatbus_sighting_context": 1, "x_threatbus_match_type": []}):
            shown = make_row(sighting(**document))
            self.assertEqual((shown.action, shown.value, shown.event), ("", "", ""))


class DescribeEventTests(SynchronousTestCase):
    def test_kinds(self) -> None:
        for event, expected in (
            ({"event_type": "flow", "src_ip": "a", "dest_ip": "b"}, "flow a → b"),
            ({"_path": "conn", "id": {"orig_h": "a", "resp_h": "b"}}, "conn a → b"),
            ({"src_endpoint": {"ip": "a"}, "dst_endpoint": {"ip": "b"}}, "a → b"),
            ({"id": 5, "src_endpoint": "x", "event_type": 3}, ""),
        ):
            self.assertEqual(describe_event(event), expected)


class LineTests(SynchronousTestCase):
    def test_plain(self) -> None:
        self.assertEqual(
            plain_fields(Row(1_500_000, "sighting", "LIVE", "v", "e", "i")),
            ("1970-01-01T00:00:01.500000Z", "sighting", "LIVE", "v", "e", "i"),
        )
        self.assertEqual(plain_fields(Row(0, "indicator", "ADD", "v", "", "i"))[0], "")

    def test_aligned(self) -> None:
        shown = terminal_line(
            Row(1_500_000, "sighting", "LIVE", "v" * 50, "e", "i"), 100, UTC
        ).plain
        self.assertEqual(shown, f"1970-01-01 00:00:01 sighting  LIVE    {'v' * 29}… e")
        self.assertEqual(terminal_header(100).plain.index("value"), shown.index("v"))

    @given(st.text(), st.text(), st.integers(40, 200))
    def test_safe(self, value: str, event: str, width: int) -> None:
        """
        The line of any message fits the terminal, and is harmless.
        """
        shown = terminal_line(Row(0, "sighting", "LIVE", value, event, "i"), width, UTC).plain
        self.assertTrue(harmless(shown))
        self.assertTrue(len(shown) < width)


class MessagePrinterTests(SynchronousTestCase):
    def printer(self, out: io.StringIO, as_json: bool = False, count: int = 0) -> MessagePrinter:
        return MessagePrinter(Screen(out, io.StringIO()), as_json, count or math.inf)

    def test_plain(self) -> None:
        out = io.StringIO()
        self.printer(out).receive([indicator(1, name=HOSTILE), indicator(2)])
        lines = out.getvalue().splitlines()
        self.assertEqual([text.split("\t")[3] for text in lines], ["192.0.2.1", "192.0.2.2"])

    def test_json(self) -> None:
        """
        A document is printed on one line.
        """
        out = io.StringIO()
        document = json.dumps(json.loads(indicator_document(1, name=HOSTILE)), indent=4)
        self.printer(out, as_json=True).receive([decode_indicator(document.encode())])
        [text] = out.getvalue().splitlines()
        self.assertEqual(json.loads(text), json.loads(document))
        self.assertTrue(harmless(text))

    def test_terminal(self) -> None:
        """
        On a terminal there is one header above the lines.
        """
        out = MemoryTerminal()
        printer = self.printer(out)
        printer.receive([indicator(1)])
        printer.receive([indicator(2)])
        first, *rest = out.getvalue().splitlines()
        self.assertIn("value", first)
        self.assertEqual(len(rest), 2)

    def test_count(self) -> None:
        """
        It is done after the maximum number; the rest is not printed.
        """
        out = io.StringIO()
        printer = self.printer(out, count=3)
        printer.receive([indicator(1), indicator(2)])
        self.assertNoResult(printer.done)
        printer.receive([indicator(3), indicator(4)])
        printer.receive([indicator(5)])
        self.assertIsNone(self.successResultOf(printer.done))
        self.assertEqual(len(out.getvalue().splitlines()), 3)

    def test_repeats(self) -> None:
        """
        A message that a restarted bus repeats is not printed again; another version, or
        a removal, is.
        """
        out = io.StringIO()
        printer = self.printer(out, count=4)
        printer.receive([indicator(1), sighting(), indicator(1)])
        printer.receive([sighting(), indicator(1)])
        self.assertEqual(len(out.getvalue().splitlines()), 2)
        printer.receive([indicator(1, version=2), indicator(1, x_threatbus_update="REMOVE")])
        self.assertEqual(len(out.getvalue().splitlines()), 4)
        self.assertIsNone(self.successResultOf(printer.done))

    def test_broken_pipe(self) -> None:
        """
        It fails when the reader of standard output has gone.
        """

        class Broken(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        printer = self.printer(Broken())
        printer.receive([indicator(1)])
        printer.receive([indicator(2)])
        self.failureResultOf(printer.done, BrokenPipeError)
