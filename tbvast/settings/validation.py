"""
Validation of mappings, sections and field maps.

Errors name the key's path, the value found and the values accepted.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import Annotated, Any, TypeVar

import msgspec

from tbvast.errors import SHOWN, SettingsInvalid
from tbvast.settings.types import Parser, convert, types_of
from tbvast.telemetry.known_fields import (
    NOTATIONS,
    POSITIONS,
    SCHEMA,
    STEP,
    Source,
    SourceMapping,
    fields,
)

YamlMapping = dict[Any, Any]
"""
A mapping as YAML decodes it; its keys need not be texts.
"""

T = TypeVar("T", bound=msgspec.Struct)

_EXPECTED_PATHS = (
    "paths such as a.b[].c, separated by commas, each of at most 256 elements of lists"
)


def require_mapping(value: object, where: str) -> YamlMapping:
    """
    Validate a mapping.

    @param value: The value as YAML decodes it.
    @param where: The path of its key.
    @return: The mapping; an empty one for an empty value.
    @raise SettingsInvalid: If the value is not a mapping.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsInvalid(where, value, "a mapping of keys to values")
    return value


def refuse_unknown(found: YamlMapping, prefix: str, known: Collection[str]) -> None:
    """
    Refuse unknown keys.

    @param found: The mapping whose keys are checked.
    @param prefix: The path of the mapping, which precedes a key in errors.
    @param known: The names of the known keys; at least one.
    @raise SettingsInvalid: If a key is unknown; the error names the most similar known key.
    """
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise SettingsInvalid(
                prefix + key_label(name), name, f"a known key; the nearest is {prefix}{near}"
            )


def key_label(name: object) -> str:
    """
    A key as part of a path in an error: escaped to one line and bounded in length.
    """
    return repr(str(name))[1:-1][:SHOWN]


def validate_section(value: object, path: str, section: type[T]) -> T:
    """
    Validate one section of the file.

    @param value: The value as YAML decodes it; an empty one means all defaults.
    @param path: The path of the section, for errors.
    @param section: The struct that declares its keys.
    @raise SettingsInvalid: If a key is unknown, missing, or has an unacceptable value.
    """
    found = require_mapping(value, path)
    known = types_of(section)
    refuse_unknown(found, f"{path}.", known)
    required = [field.name for field in msgspec.structs.fields(section) if field.required]
    return section(
        **{
            name: convert(found.get(name), known[name], f"{path}.{name}")
            for name in dict.fromkeys([*found, *required])
        }
    )


def _validate_source(schema: object, keys: object) -> SourceMapping:
    where = f"bridge.fields.{key_label(schema)}"
    if not isinstance(schema, str) or len(schema) > 200 or not SCHEMA.fullmatch(schema):
        raise SettingsInvalid(where, schema, "a schema's name, or the beginning of one and a *")
    found = require_mapping(keys, where)
    refuse_unknown(found, f"{where}.", [*NOTATIONS, "replace"])
    replace = found.get("replace", False)
    if type(replace) is not bool:
        raise SettingsInvalid(f"{where}.replace", replace, "yes or no")
    mapped = tuple(
        field
        for key, paths in found.items()
        if key != "replace"
        for field in fields(key, *_validate_paths(f"{where}.{key}", paths))
    )
    return SourceMapping(Source(schema, mapped), replace)


def _validate_paths(where: str, value: object) -> list[str]:
    paths = value.split(",") if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths:
        raise SettingsInvalid(where, value, _EXPECTED_PATHS)
    found = []
    for each in paths:
        path = each.strip() if isinstance(each, str) else ""
        steps = [STEP.fullmatch(step) for step in path.split(".")]
        lists = [int(step[3] or POSITIONS) for step in steps if step is not None and step[2]]
        if None in steps or len(path) > 200 or math.prod(lists) > 256:
            raise SettingsInvalid(where, each, _EXPECTED_PATHS)
        found.append(path)
    return found


FieldMap = Annotated[
    tuple[SourceMapping, ...],
    Parser(
        "a mapping of schemas to their fields",
        lambda found: tuple(_validate_source(*each) for each in (found or {}).items()),
        YamlMapping | None,
    ),
]
"""
The fields of events that hold observables, by schema and kind.
"""
