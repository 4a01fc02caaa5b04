"""
The types of configuration values, and the declaration of keys.
"""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec

from tbvast.values import HostPort, is_host

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class ValueType(msgspec.Struct, frozen=True):
    """
    The type of a key's value: it validates the value and describes itself in errors.
    """

    @property
    def expected(self) -> str:
        """
        The accepted values in words, which follow "is not" in an error.
        """
        raise NotImplementedError

    def check(self, value: Any) -> Any:
        """
        Validate a value from the configuration file.

        @param value: The value as YAML decodes it.
        @return: The value of the field.
        @raise ValueError: If the value is not acceptable.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """
        Validate a value from the command line.

        @param text: The option's argument.
        @return: The value of the field.
        @raise ValueError: If the value is not acceptable.
        """
        return self.check(text)


class WholeNumber(ValueType, frozen=True):
    """
    A whole number within bounds.

    @ivar low: The lowest number accepted.
    @ivar high: The highest number accepted.
    @ivar unit: The unit, in the plural; may be empty.
    """

    low: int
    high: int
    unit: str = ""

    @property
    def expected(self) -> str:
        of = f" of {self.unit}" if self.unit else ""
        return f"a whole number{of} from {self.low} to {self.high}"

    def check(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(value)
        return value

    def parse(self, text: str) -> int:
        if _WHOLE.fullmatch(text) is None:
            raise ValueError(text)
        return self.check(int(text))


class Seconds(ValueType, frozen=True):
    """
    A time span within bounds.

    @ivar low: The shortest time accepted, in seconds.
    @ivar high: The longest time accepted, in seconds.
    """

    low: float
    high: float

    @property
    def expected(self) -> str:
        return f"a number of seconds from {self.low:g} to {self.high:g}"

    def check(self, value: Any) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high:
            raise ValueError(value)
        return float(value)

    def parse(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return self.check(number)


class YesNo(ValueType, frozen=True):
    """
    A switch.
    """

    @property
    def expected(self) -> str:
        return "yes or no"

    def check(self, value: Any) -> bool:
        if type(value) is not bool:
            raise ValueError(value)
        return value

    def parse(self, text: str) -> bool:
        if text not in ("yes", "no"):
            raise ValueError(text)
        return text == "yes"


class Choice(ValueType, frozen=True):
    """
    One of several words.

    @ivar words: The words accepted.
    """

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.words)}"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(value)
        return value


class Host(ValueType, frozen=True):
    """
    An IP address or a host name.

    @ivar empty: The host for which an empty value stands.
    """

    empty: str = ""

    @property
    def expected(self) -> str:
        return "an IP address or a host name"

    def check(self, value: Any) -> str:
        if value is None or value == "":
            return self.empty
        if not isinstance(value, str):
            raise ValueError(value)
        bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if not is_host(bare):
            raise ValueError(value)
        return bare


class Endpoint(ValueType, frozen=True):
    """
    C{HOST:PORT}, or a word instead.

    @ivar words: The words accepted.
    """

    words: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return " or ".join([*self.words, "HOST:PORT (an IPv6 address in square brackets)"])

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value if value in self.words else str(HostPort.parse(value))


class Command(ValueType, frozen=True):
    """
    A command with its arguments, or nothing. It is quoted as for a shell, but run
    without one.
    """

    @property
    def expected(self) -> str:
        return "a command with its arguments, every quote closed"

    def check(self, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(value)
        shlex.split(value)
        return value.strip()


class DirectoryPath(ValueType, frozen=True):
    """
    A directory's path, or nothing.
    """

    @property
    def expected(self) -> str:
        return "the path of a directory"

    def check(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(value)
        return value


class FilePath(ValueType, frozen=True):
    """
    A file's path, or nothing.
    """

    @property
    def expected(self) -> str:
        return "the path of a file"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(value)
        return value


class Key(msgspec.Struct, frozen=True):
    """
    The declaration of a key; name and default are those of the field.

    @ivar help: One or two sentences, with the unit.
    @ivar type: The type of its value.
    @ivar metavar: The placeholder of the value in the help of the command line
        option; empty if the key is not an option.
    """

    help: str
    type: ValueType
    metavar: str = ""


@functools.cache
def keys_of(section: type[msgspec.Struct]) -> Mapping[str, Key]:
    """
    The keys of a section.

    @param section: The struct that declares them, each with a L{Key} annotation.
    @return: The keys by name, in the order of the fields.
    """
    hints = get_type_hints(section, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in section.__struct_fields__}
