"""
Tests for L{tbvast.cli.status}.
"""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.cli.status import format_duration, format_value, plain_lines, tables
from tbvast.cli.terminal import Screen
from tests.doubles import indicator_id
from tests.test_cli_terminal import HOSTILE, MemoryTerminal

STATUS: dict[str, Any] = {
    "status": "success",
    "protocol": "tbvast/1",
    "version": "0.1.0",
    "uptime": 7200.5,
    "journal": {"head": 12345, "indicators": 1234, "sightings": 6},
    "received": {
        "indicator": {"accepted": 1300, "outdated": 2},
        "message": {"refused": 4, "forbidden": 5},
    },
    "rates": {"indicator": 1.25, "sighting": 0.0},
    "subscriptions": [
        {
            "name": "tbvast-bridge",
            "topics": ["stix2/indicator"],
            "dialect": "stix2",
            "attached": True,
            "age": 61.0,
            "silent": 1.0,
            "queued": 0,
            "sent": 1300,
            "dropped": 0,
            "report": {
                "engine": {
                    "state": "ready",
                    "name": "tenzir",
                    "version": "6.20.0",
                    "endpoint": "127.0.0.1:5158",
                    "live": True,
                    "pending": 0,
                    "matched": {"live": 3, "retro": 8},
                    "searches": 2,
                },
                "store": {
                    "indicators": 1234,
                    "unsearched": 0,
                    "unmatched": {"EXISTS": 2},
                    "unsent": 0,
                },
                "sightings": {"made": 11, "handed_on": 10},
            },
        },
        {"name": "", "topics": [], "dialect": "vast", "attached": False, "report": {}},
    ],
}


def drawn(status: Any) -> str:
    out = MemoryTerminal()
    screen = Screen(out, io.StringIO())
    for table in tables(status, "localhost:13370"):
        screen.render(table)
    return out.getvalue()


class TablesTests(SynchronousTestCase):
    def test_all(self) -> None:
        """
        The tables show bus, subscriptions and engines.
        """
        text = drawn(STATUS)
        for words in (
            "localhost:13370",
            "1,234",
            "2.0 h",
            "outdated since the start",
            "forbidden",
            "1.25",
        ):
            self.assertIn(words, text)
        for words in ("2 subscriptions", "tbvast-bridge", "intel", "1 s"):
            self.assertIn(words, text)
        for words in ("tenzir", "6.20.0", "127.0.0.1:5158", "ready", "3 live, 8 retro", "2 EXISTS"):
            self.assertIn(words, text)

    def test_set_aside(self) -> None:
        """
        The tables show the number of items set aside, and the reason of the newest.
        """
        self.assertNotIn("set aside, of either", drawn(STATUS))
        aside = {"count": 3, "newest": "expiry: some-id: it is damaged"}
        text = drawn({**STATUS, "set_aside": aside})
        for words in ("3 set aside", "set aside, of either", "expiry: some-id: it is damaged"):
            self.assertIn(words, text)
        hostile = {"count": HOSTILE, "newest": HOSTILE}
        self.assertNotIn("\x1b[2J", drawn({**STATUS, "set_aside": hostile}))

    def test_unmatched(self) -> None:
        """
        The tables list the indicators that a bridge does not match, with the reasons, and
        its search in progress.
        """
        store = {"unmatched": {"NOT": 7}, "unmatched_ids": {indicator_id(5): ["NOT", "EXISTS"]}}
        searching = {"observables": 10, "seconds": 2.5, "found": 3}
        report = {"engine": {"name": "tenzir", "searching": searching}, "store": store}
        text = drawn({**STATUS, "subscriptions": [{"name": "one", "report": report}]})
        for words in ("Not matched by one", "NOT; EXISTS", "10 observables, 2.5 seconds, 3 found"):
            self.assertIn(words, text)
        self.assertIn(indicator_id(5), text.replace("\n", ""))

    def test_quiet(self) -> None:
        """
        A bus without subscriptions has no table of them.
        """
        self.assertNotIn("subscriptions", drawn({**STATUS, "subscriptions": []}))

    def test_hostile(self) -> None:
        """
        A subscriber's report cannot act on the terminal, nor break the table.
        """
        report = {"engine": {"name": HOSTILE, "matched": [HOSTILE], "live": {HOSTILE: 1}}}
        text = drawn({**STATUS, "subscriptions": [{"name": HOSTILE, "report": report}]})
        self.assertNotIn("\x1b[2J", text)
        self.assertNotIn("\u202e", text)
        self.assertIn("[red]", text.replace("\n", ""))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(sorted(STATUS) + sorted(STATUS["subscriptions"][0])),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=10,
        )
    )
    def test_anything(self, status: Any) -> None:
        """
        Any reply of a bus can be shown.
        """
        drawn(status)
        list(plain_lines(status))


class PlainLinesTests(SynchronousTestCase):
    def test_paths(self) -> None:
        """
        A plain line has the path of a value, and the value.
        """
        self.assertEqual(
            list(plain_lines({"a": {"b": 1, "c": None}, "d": [True, {"e": "x"}], "f": 0.5})),
            [("a.b", "1"), ("a.c", "null"), ("d.0", "true"), ("d.1.e", "x"), ("f", "0.5")],
        )


class FormatTests(SynchronousTestCase):
    def test_shown(self) -> None:
        for value, expected in (
            (None, "-"),
            (True, "yes"),
            (1234567, "1,234,567"),
            (0.256, "0.26"),
            ({"a": 1, "b": 2}, "1 a, 2 b"),
            ({}, "-"),
            ("", "-"),
        ):
            self.assertEqual(format_value(value), expected)

    def test_age(self) -> None:
        for seconds, expected in (
            (0.5, "0 s"),
            (90, "1.5 min"),
            (5400, "1.5 h"),
            (129600, "1.5 d"),
            (None, "-"),
            (True, "-"),
        ):
            self.assertEqual(format_duration(seconds), expected)
