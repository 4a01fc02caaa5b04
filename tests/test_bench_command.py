"""
The command line that all benches share.
"""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import TestCase

from bench.command import command_line

DOC = """
Measures something.

    python -m bench.something
"""


class CommandLineTests(TestCase):
    """
    Sizes have two defaults, and can be given.
    """

    def test_full(self) -> None:
        """
        Without anything, everything is as large as it should be.
        """
        options = command_line(DOC, [], {"only": "a peer"}, runs=(3, 1), messages=(900, 9))
        self.assertEqual((options.runs, options.messages, options.only), (3, 900, ""))

    def test_short(self) -> None:
        """
        In short everything is small, but for what is given.
        """
        options = command_line(DOC, ["--short", "--runs=2"], runs=(3, 1), messages=(900, 9))
        self.assertEqual((options.runs, options.messages), (2, 9))

    def test_word(self) -> None:
        """
        A word is taken as it is.
        """
        self.assertEqual(command_line(DOC, ["--only=json"], {"only": "a peer"}).only, "json")

    def test_not_positive(self) -> None:
        """
        What cannot be measured is refused, in a line that names it.
        """
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertRaises(SystemExit, command_line, DOC, ["--runs=0"], runs=(3, 1))
        self.assertIn("--runs: 0 is not a positive number", said.getvalue())

    def test_help(self) -> None:
        """
        The help says what the bench is, and the defaults.
        """
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.assertRaises(SystemExit, command_line, DOC, ["--help"], messages=(9000, 9))
        self.assertIn("Measures something.", said.getvalue())
        self.assertIn("default: 9,000, or 9 if short", said.getvalue())
