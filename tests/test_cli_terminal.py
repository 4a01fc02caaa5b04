"""
Tests for L{tbvast.cli.terminal}.
"""

from __future__ import annotations

import io
import json
import unicodedata
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.cli.terminal import Complaints, Screen, styled, visible, visible_json

HOSTILE = "\x1b[2J\x9b1m\r\n\t\u202e\u2028[red]:smile:[/red]"


class MemoryTerminal(io.StringIO):
    """
    A stream that says it is a terminal.
    """

    def isatty(self) -> bool:
        return True


def harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text)


class VisibleTests(SynchronousTestCase):
    def test_escapes(self) -> None:
        self.assertEqual(
            visible("a\x1b[31m\x9b\t\r\n\u202eb\U000e0001ü"),
            r"a\x1b[31m\x9b\t\r\n\u202eb\U000e0001ü",
        )

    @given(st.text())
    def test_harmless(self, text: str) -> None:
        """
        Nothing can act on a terminal, and what is harmless stays as it is.
        """
        self.assertTrue(harmless(visible(text)))
        self.assertEqual(visible(visible(text)), visible(text))

    @given(st.text() | st.dictionaries(st.text(), st.text()))
    def test_json(self, value: Any) -> None:
        """
        A JSON document means the same, and cannot act on a terminal.
        """
        text = visible_json(msgspec.json.encode(value))
        self.assertTrue(harmless(text))
        self.assertEqual(json.loads(text), value)


class ScreenTests(SynchronousTestCase):
    def test_pipe(self) -> None:
        """
        To a pipe go plain lines, fields with tabs between them, and JSON.
        """
        out = io.StringIO()
        screen = Screen(out, io.StringIO())
        self.assertFalse(screen.rich)
        screen.tell(f"a{HOSTILE}")
        screen.put("b\tc", "d")
        screen.put_json(b'{"e":"\x7f"}')
        self.assertEqual(out.getvalue(), f"a{visible(HOSTILE)}\nb\\tc\td\n" + '{"e":"\\u007f"}\n')

    def test_terminal(self) -> None:
        """
        What is shown on a terminal is not taken for markup.
        """
        out = MemoryTerminal()
        screen = Screen(out, io.StringIO())
        self.assertTrue(screen.rich)
        screen.show(styled(HOSTILE))
        self.assertEqual(out.getvalue().strip(), visible(HOSTILE))

    def test_complain(self) -> None:
        err = io.StringIO()
        Screen(io.StringIO(), err).complain(HOSTILE)
        self.assertEqual(err.getvalue(), f"tbvast: {visible(HOSTILE)}\n")

    def test_progress(self) -> None:
        """
        There is a bar on a terminal only.
        """
        for err, bar in ((MemoryTerminal(), True), (io.StringIO(), False)):
            with Screen(io.StringIO(), err).progress("[b]bus", 3) as advance:
                advance(3)
            self.assertEqual("3/3" in err.getvalue(), bar)
            self.assertEqual("[b]bus" in err.getvalue(), bar)


class ComplaintsTests(SynchronousTestCase):
    def test_log(self) -> None:
        """
        Warnings and worse are one line each on standard error; the rest is not
        said.
        """
        err = io.StringIO()
        complaints = Complaints(Screen(io.StringIO(), err))
        verifyObject(ILogObserver, complaints)
        log = Logger(observer=complaints)
        log.info("not said")
        log.warn("{what} is gone", what="the\nbus")
        log.failure("While testing", Failure(ValueError("x")))
        self.assertEqual(
            err.getvalue(),
            "tbvast: the\\nbus is gone\ntbvast: While testing (ValueError: x)\n",
        )
