"""
Command lines: read from the configuration, and filled in for each event.

The words of a command are fixed when the configuration is read. A value of an event becomes
part of one word and never passes through a shell.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence

import msgspec

from tbvast.errors import CommandRefused, SettingsInvalid
from tbvast.stix.sightings import MatchType

_PLACEHOLDER = re.compile(r"%ioc|%matchtype")
_INTERPRETER = re.compile(r"(ba|da|z|k|a|fi|c|tc)?sh|(python|perl|ruby|node|php)[0-9.]*")
_CODE_OPTION = re.compile(r"-[A-Za-z]*[ce]")


class Command(msgspec.Struct, frozen=True):
    """
    A program and its arguments, which may contain C{%ioc} and C{%matchtype}.

    @ivar program: The program, as configured.
    @ivar executable: Its absolute path.
    @ivar arguments: The arguments, with their placeholders.
    """

    program: str
    executable: str
    arguments: tuple[str, ...]

    def argv(self, value: str, match_type: MatchType) -> list[bytes]:
        """
        Fill in the placeholders.

        A value is refused that the program would read as an option: it starts with a dash, and its
        placeholder begins the argument without a C{--} before it. C{--ioc=%ioc} takes any.

        @return: The program and its arguments.
        @raise CommandRefused: If the value cannot be an argument.
        """
        values = {"%ioc": value, "%matchtype": match_type.value}
        words = [os.fsencode(self.program)]
        operands = False
        for argument in self.arguments:
            word = _PLACEHOLDER.sub(lambda found: values[found.group()], argument)
            if "\0" in word:
                raise CommandRefused(self.program, "a value with a NUL character")
            if word.startswith("-") and not argument.startswith("-") and not operands:
                raise CommandRefused(self.program, "a value that would be read as an option")
            operands = operands or argument == "--"
            try:
                words.append(os.fsencode(word) if word == argument else word.encode())
            except UnicodeEncodeError:
                raise CommandRefused(self.program, "a value that is no Unicode text") from None
        return words


def parse_command(text: str, field: str = "command", stream: bool = False) -> Command:
    """
    Parse a configured command: words, quoted as in a shell.

    @param field: The name of the setting, for the error message.
    @param stream: Whether one running command gets many events.
    @raise SettingsInvalid: If the text cannot be split into words, the program does not exist, the
        value of a placeholder would be run as code, or the command of a stream has placeholders.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        raise SettingsInvalid(field, text, "a command with balanced quotes") from None
    if not words:
        raise SettingsInvalid(field, text, "a command: a program and its arguments")
    if any("\0" in word for word in words):
        raise SettingsInvalid(field, text, "a command without NUL characters")
    program, *arguments = words
    if _PLACEHOLDER.search(program):
        raise SettingsInvalid(field, program, "a program: %ioc and %matchtype go into arguments")
    executable = shutil.which(program)
    if executable is None:
        raise SettingsInvalid(field, program, "a program that can be found and run")
    for position, word in enumerate(words[2:], 2):
        if _PLACEHOLDER.search(word) and _is_code(words[:position]):
            raise SettingsInvalid(
                field,
                word,
                "safe: the value would be read as code; give it as an argument of its own,"
                " e.g. sh -c 'tool \"$1\"' sh %ioc",
            )
    if stream and any(map(_PLACEHOLDER.search, arguments)):
        raise SettingsInvalid(
            field,
            text,
            "a command without %ioc and %matchtype, which a stream has no single value for",
        )
    return Command(program, os.path.abspath(executable), tuple(arguments))


def _is_code(before: Sequence[str]) -> bool:
    return bool(_CODE_OPTION.fullmatch(before[-1])) and any(
        _INTERPRETER.fullmatch(os.path.basename(word)) for word in before[:-1]
    )
