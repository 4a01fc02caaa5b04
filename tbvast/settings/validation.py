"""
Validation of the parts of a configuration file, with errors that name key, value and
expectation.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from tbvast.errors import SHOWN, SettingsInvalid
from tbvast.settings.types import ValueType, keys_of
from tbvast.telemetry.known_fields import BY_KEY, POSITIONS, SCHEMA, STEP, Mapped, Source

T = TypeVar("T", bound=msgspec.Struct)

MAX_PATH_LOOKUPS = 256
"""
The most elements that one path of a field map may stand for.
"""

_PATHS = "paths such as a.b[].c, separated by commas, each of at most 256 elements of lists"


def require_mapping(value: Any, where: str) -> dict[Any, Any]:
    """
    A mapping of the file; an empty one where there is nothing.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsInvalid(where, value, "a mapping of keys to values")
    return value


def refuse_unknown(found: Mapping[Any, Any], prefix: str, known: Collection[str]) -> None:
    """
    @raise SettingsInvalid: If a key is not known; it names the nearest that is.
    """
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise SettingsInvalid(
                prefix + key_label(name), name, f"a known key; the nearest is {prefix}{near}"
            )


def key_label(name: Any) -> str:
    """
    A key as part of a path: on one line, bounded.
    """
    return repr(str(name))[1:-1][:SHOWN]


def validate_section(value: Any, path: str, section: type[T]) -> T:
    """
    Validate one section; one that is missing or empty has only defaults.
    """
    found: dict[Any, Any] = require_mapping(value, path)
    known = keys_of(section)
    refuse_unknown(found, f"{path}.", known)
    values = {}
    for name in dict.fromkeys([*found, *_required_keys(section)]):
        try:
            values[name] = known[name].type.check(found.get(name))
        except ValueError as e:
            raise SettingsInvalid(
                f"{path}.{name}", found.get(name), known[name].type.expected
            ) from e
    return section(**values)


def _required_keys(section: type[msgspec.Struct]) -> list[str]:
    """
    The keys of a section that have no default.
    """
    return [
        field.name
        for field in msgspec.structs.fields(section)
        if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
    ]


class FieldMap(ValueType, frozen=True):
    """
    Which fields hold what, by schema.
    """

    @property
    def expected(self) -> str:
        return "a mapping of schemas to what their fields hold"

    def check(self, value: Any) -> tuple[Mapped, ...]:
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise ValueError(value)
        return tuple(_validate_source(schema, said) for schema, said in value.items())


def _validate_source(schema: Any, said: Any) -> Mapped:
    where = f"bridge.fields.{key_label(schema)}"
    if not isinstance(schema, str) or len(schema) > 200 or not SCHEMA.fullmatch(schema):
        raise SettingsInvalid(where, schema, "a schema's name, or the beginning of one and a *")
    found = require_mapping(said, where)
    refuse_unknown(found, f"{where}.", [*BY_KEY, "replace"])
    replace = found.get("replace", False)
    if type(replace) is not bool:
        raise SettingsInvalid(f"{where}.replace", replace, "yes or no")
    fields = tuple(
        field
        for key, paths in found.items()
        if key != "replace"
        for field in BY_KEY[key](*_validate_paths(f"{where}.{key}", paths))
    )
    return Mapped(Source(schema, fields), replace)


def _validate_paths(where: str, value: Any) -> list[str]:
    """
    @param value: A list of paths, or one text with commas.
    """
    paths = value.split(",") if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths:
        raise SettingsInvalid(where, value, _PATHS)
    found = []
    for each in paths:
        path = each.strip() if isinstance(each, str) else ""
        steps = [STEP.fullmatch(step) for step in path.split(".")]
        lists = [int(step[3] or POSITIONS) for step in steps if step is not None and step[2]]
        if None in steps or len(path) > 200 or math.prod(lists) > MAX_PATH_LOOKUPS:
            raise SettingsInvalid(where, each, _PATHS)
        found.append(path)
    return found
