"""
The types of configuration values, and the declaration of keys.

C{msgspec.convert} validates the annotated types; a L{Parser} adds rules that msgspec lacks.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

from tbvast.errors import SettingsInvalid
from tbvast.values import HostPort, is_host

LOOPBACK = "127.0.0.1"

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DOCUMENTED = re.compile(r"@ivar (\w+): (.*?)(?=\n *@ivar|\s*\Z)", re.DOTALL)


class Key(NamedTuple):
    """
    A key of the configuration file.

    @ivar help: One or two sentences, with the unit.
    @ivar metavar: The placeholder in the help of the option; empty if there is no option.
    """

    help: str
    metavar: str


class Option(str):
    """
    The last annotation of a field with a command line option: the placeholder of its value.
    """


class Parser(msgspec.Struct, frozen=True):
    """
    The first annotation of a type for which the constraints of msgspec do not suffice.

    @ivar expected: The accepted values in words, which follow "is not" in an error.
    @ivar parse: Makes the value of the field; raises C{ValueError} if it is not acceptable.
    @ivar accepts: The type to which msgspec converts the argument of C{parse}.
    """

    expected: str
    parse: Callable[[Any], Any]
    accepts: Any = str


def _host(text: str | None) -> str:
    if not text:
        return ""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not is_host(bare):
        raise ValueError(text)
    return bare


def _command(text: str | None) -> str:
    command = text or ""
    if "\0" in command:
        raise ValueError(text)
    shlex.split(command)
    return command.strip()


def _file(text: str) -> str:
    if not text.isprintable():
        raise ValueError(text)
    return text


_HOST = "an IP address or a host name"
_PATH = Annotated[str, Meta(pattern=r"\A[^\0]+\Z")]
_ENDPOINT = "HOST:PORT (an IPv6 address in square brackets)"

YesNo = Annotated[bool, Parser("yes or no", bool, bool)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Days = Annotated[int, Meta(ge=0, le=36_500, extra={"unit": "days"})]
Seconds = Annotated[float, Meta(ge=0.1, le=86400, extra={"unit": "seconds"})]
Host = Annotated[str, Parser(_HOST, _host, str | None)]
ListenHost = Annotated[str, Parser(_HOST, lambda text: _host(text) or LOOPBACK, str | None)]
Endpoint = Annotated[str, Parser(_ENDPOINT, lambda text: str(HostPort.parse(text)))]
AutoEndpoint = Annotated[
    str,
    Parser(
        f"auto or {_ENDPOINT}", lambda text: text if text == "auto" else str(HostPort.parse(text))
    ),
]
Command = Annotated[
    str, Parser("a command with its arguments, every quote closed", _command, str | None)
]
FilePath = Annotated[str, Parser("the path of a file", _file)]
PluginNames = Annotated[
    tuple[str, ...],
    Parser(
        "a list of names of the engine's plugins",
        tuple,
        list[Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_:.-]{0,63}\Z")]],
    ),
]
DirectoryPath = Annotated[
    str | None, Parser("the path of a directory", lambda path: path, _PATH | None)
]


@functools.cache
def types_of(section: type[msgspec.Struct]) -> Mapping[str, Any]:
    """
    @return: The annotated types of a section's keys, by name, in the order of the fields.
    """
    return get_type_hints(section, include_extras=True)


def keys_of(section: type[msgspec.Struct]) -> Mapping[str, Key]:
    """
    @return: The keys of a section by name, in the order of the fields.
    """
    helps = dict(_DOCUMENTED.findall(section.__doc__ or ""))
    keys = {}
    for name, hint in types_of(section).items():
        metavar = hint.__metadata__[-1]
        text = " ".join(helps.get(name, "").split())
        keys[name] = Key(text, metavar if isinstance(metavar, Option) else "")
    return keys


def convert(value: Any, hint: Any, label: str, *, is_text: bool = False) -> Any:
    """
    Validate a value.

    @param value: The value as YAML decodes it.
    @param hint: The annotated type of the key.
    @param label: The path of the key, or the name of the option, for errors.
    @param is_text: Whether the value is the argument of a command line option instead.
    @return: The value of the field.
    @raise SettingsInvalid: If the value is not acceptable.
    """
    rule = hint.__metadata__[0]
    try:
        decoded = _decode_text(value, hint.__origin__) if is_text else value
        if isinstance(rule, Parser):
            return rule.parse(msgspec.convert(decoded, rule.accepts))
        return msgspec.convert(decoded, hint)
    except (ValueError, msgspec.ValidationError) as e:
        raise SettingsInvalid(label, value, _expected(hint)) from e


def _decode_text(text: str, kind: Any) -> Any:
    if kind is bool:
        return {"yes": True, "no": False}.get(text)
    if kind is float:
        return float(text)
    return int(text) if kind is int and _WHOLE.fullmatch(text) else text


def _expected(hint: Any) -> str:
    rule, kind = hint.__metadata__[0], hint.__origin__
    if isinstance(rule, Parser):
        return rule.expected
    if isinstance(rule, Meta):
        number = "a whole number" if kind is int else "a number"
        unit = f" of {rule.extra['unit']}" if rule.extra else ""
        return f"{number}{unit} from {rule.ge} to {rule.le}"
    return f"one of {', '.join(get_args(kind))}"
