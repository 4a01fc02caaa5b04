"""
Tests for L{tbvast.cli.terminal}.
"""

from __future__ import annotations

import io

from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.cli.terminal import (
    Screen,
    TerminalLogObserver,
    escaped_text,
)
from tbvast.service.escaping import escape_controls

HOSTILE = "\x1b[2J\x9b1m\r\n\t\u202e\u2028[red]:smile:[/red]"


class MemoryTerminal(io.StringIO):
    """
    A stream that claims to be a terminal.
    """

    def isatty(self) -> bool:
        return True


class ScreenTests(SynchronousTestCase):
    def test_pipe(self) -> None:
        """
        A pipe receives plain lines, tab-separated fields, and JSON.
        """
        out = io.StringIO()
        screen = Screen(out, io.StringIO())
        self.assertFalse(screen.is_terminal)
        screen.write_line(f"a{HOSTILE}")
        screen.write_line("b\tc", "d")
        screen.write_json(b'{"e":"\x7f"}')
        self.assertEqual(
            out.getvalue(), f"a{escape_controls(HOSTILE)}\nb\\tc\td\n" + '{"e":"\\u007f"}\n'
        )

    def test_terminal(self) -> None:
        """
        Text on a terminal is not interpreted as markup.
        """
        out = MemoryTerminal()
        screen = Screen(out, io.StringIO())
        self.assertTrue(screen.is_terminal)
        screen.render(escaped_text(HOSTILE))
        self.assertEqual(out.getvalue().strip(), escape_controls(HOSTILE))

    def test_error(self) -> None:
        err = io.StringIO()
        Screen(io.StringIO(), err).write_error(HOSTILE)
        self.assertEqual(err.getvalue(), f"tbvast: {escape_controls(HOSTILE)}\n")

    def test_progress(self) -> None:
        """
        Only a terminal gets a progress bar.
        """
        terminal, file = MemoryTerminal(), io.StringIO()
        for err in (terminal, file):
            with Screen(io.StringIO(), err).progress("[b]bus", 3) as advance:
                advance(3)
        self.assertIn("3/3", terminal.getvalue())
        self.assertIn("[b]bus", terminal.getvalue())
        self.assertEqual(file.getvalue(), "")


class LogObserverTests(SynchronousTestCase):
    def test_log(self) -> None:
        """
        Warnings and errors are one line each on standard error; lower levels are
        left out.
        """
        err = io.StringIO()
        observer = TerminalLogObserver(Screen(io.StringIO(), err))
        verifyObject(ILogObserver, observer)
        log = Logger(observer=observer)
        log.info("left out")
        log.warn("{what} is gone", what="the\nbus")
        log.failure("While testing", Failure(ValueError("x")))
        self.assertEqual(
            err.getvalue(),
            "tbvast: the\\nbus is gone\ntbvast: While testing (ValueError: x)\n",
        )
