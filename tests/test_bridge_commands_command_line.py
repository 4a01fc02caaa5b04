"""
Tests for L{tbvast.bridge.commands.command_line}.
"""

from __future__ import annotations

import os
import shlex
import stat

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.commands.command_line import Command, parse_command
from tbvast.errors import CommandRefused, SettingsInvalid
from tbvast.stix.sightings import MatchType

LIVE = MatchType.LIVE
TEMPLATE = Command("tool", "/bin/tool", ("--ioc=%ioc", "%matchtype"))


class ParseCommandTests(SynchronousTestCase):
    """
    Tests for L{parse_command}.
    """

    def refused(self, text: str) -> str:
        error = self.assertRaises(SettingsInvalid, parse_command, text, "sink")
        self.assertEqual(error.field, "sink")
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_words(self) -> None:
        """
        A command is split as a shell would, and its program is found.
        """
        command = parse_command("cat --prefix 'MY PREFIX' --ioc %ioc")
        self.assertEqual(command.program, "cat")
        self.assertTrue(os.path.isabs(command.executable))
        self.assertEqual(command.arguments, ("--prefix", "MY PREFIX", "--ioc", "%ioc"))

    def test_relative(self) -> None:
        """
        The path of a program stays right when the directory changes.
        """
        directory = self.mktemp()
        os.mkdir(directory)
        path = os.path.join(directory, "tool")
        with open(path, "w") as f:
            f.write("#!/bin/sh\n")
        os.chmod(path, stat.S_IRWXU)
        relative = os.path.relpath(path)
        self.assertEqual(parse_command(shlex.quote(relative)).executable, os.path.abspath(path))

    def test_unbalanced(self) -> None:
        self.assertEqual(
            self.refused("cat 'x"), 'sink: "cat \'x" is not a command with balanced quotes'
        )

    def test_empty(self) -> None:
        for text in ("", " ", "''"):
            self.refused(text)

    def test_no_program(self) -> None:
        """
        A program that does not exist is named.
        """
        self.assertIn("'no-such-program-here'", self.refused("no-such-program-here -x"))

    def test_program_from_event(self) -> None:
        """
        An event never chooses the program.
        """
        self.refused("%ioc")

    def test_code(self) -> None:
        """
        A placeholder inside a program text is refused: its value would be code.
        """
        for text in (
            "sh -c 'echo %ioc'",
            "/bin/bash -lc 'echo %ioc'",
            "env sh -c 'echo %matchtype'",
            "python3 -c 'print(\"%ioc\")'",
        ):
            self.assertIn("would be read as code", self.refused(text))

    def test_stream(self) -> None:
        """
        A stream has no single value for a placeholder.
        """
        text = "cat --ioc=%ioc"
        error = self.assertRaises(SettingsInvalid, parse_command, text, "sink", stream=True)
        self.assertIn("--ioc=%ioc", str(error))
        parse_command("cat -u", "sink", stream=True)

    def test_argument_of_code(self) -> None:
        """
        A placeholder that becomes an argument of a program text is fine.
        """
        parse_command("sh -c 'echo \"$1\"' sh %ioc")
        parse_command("grep -e %ioc")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """
        Whatever the text, there is a command or a readable refusal.
        """
        try:
            parse_command(text)
        except SettingsInvalid as e:
            self.assertTrue(str(e).startswith("command: "))


class ArgvTests(SynchronousTestCase):
    """
    Tests for L{Command.argv}.
    """

    def test_inside(self) -> None:
        """
        A placeholder is replaced within its word, and values are not searched
        for placeholders again.
        """
        command = Command("tool", "/bin/tool", ("a%iocb%ioc", "%matchtype", "x"))
        self.assertEqual(
            command.argv("%matchtype; $(id)\n'\"", MatchType.RETRO),
            [b"tool", b"a%matchtype; $(id)\n'\"b%matchtype; $(id)\n'\"", b"RETRO", b"x"],
        )

    def test_nul(self) -> None:
        self.assertRaises(CommandRefused, TEMPLATE.argv, "a\0b", LIVE)

    def test_surrogate(self) -> None:
        self.assertRaises(CommandRefused, TEMPLATE.argv, "\ud800", LIVE)

    def test_option(self) -> None:
        """
        A value does not become an option, but may start with a dash where it
        cannot be taken for one.
        """
        bare = Command("tool", "/bin/tool", ("--ioc", "%ioc"))
        self.assertRaises(CommandRefused, bare.argv, "-rf", LIVE)
        joined = Command("tool", "/bin/tool", ("--ioc=%ioc",))
        self.assertEqual(joined.argv("-rf", LIVE)[1:], [b"--ioc=-rf"])
        operand = Command("tool", "/bin/tool", ("--", "%ioc"))
        self.assertEqual(operand.argv("-rf", LIVE)[1:], [b"--", b"-rf"])

    @given(st.text(), st.sampled_from(MatchType))
    def test_count(self, value: str, match_type: MatchType) -> None:
        """
        No value makes another word, or none.
        """
        command = Command("tool", "/bin/tool", ("%ioc", "x=%ioc", "%matchtype"))
        try:
            argv = command.argv(value, match_type)
        except CommandRefused:
            self.assertTrue(value.startswith("-") or "\0" in value)
        else:
            encoded = value.encode()
            self.assertEqual(argv, [b"tool", encoded, b"x=" + encoded, match_type.value.encode()])
