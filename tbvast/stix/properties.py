"""
The properties that STIX 2.1 defines for indicators and sightings, as tables of checks.

A check gets a property's path and its decoded value, and raises L{DocumentInvalid} if the standard
does not allow it. Some checks enforce rules of the library C{stix2} as well, because the old
programs would crash without them; each of these says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import UTC, datetime

import msgspec

from tbvast.errors import DocumentInvalid
from tbvast.stix import documents
from tbvast.stix.documents import UUID, JsonObject, JsonValue, Time
from tbvast.stix.limits import FIRST_YEAR, LONGEST_MARKED_LIST, MOST_SELECTORS

Check = Callable[[str, JsonValue], None]

_CUSTOM = re.compile("[a-z][a-z0-9_]{2,249}")

_ID = re.compile(rf"([a-z][a-z0-9]*(?:-[a-z0-9]+)*)--{UUID}")

_HASHES = {
    "MD5": re.compile("[0-9a-fA-F]{32}"),
    "SHA-1": re.compile("[0-9a-fA-F]{40}"),
    "SHA-256": re.compile("[0-9a-fA-F]{64}"),
    "SHA-512": re.compile("[0-9a-fA-F]{128}"),
    "SHA3-256": re.compile("[0-9a-fA-F]{64}"),
    "SHA3-512": re.compile("[0-9a-fA-F]{128}"),
    "SSDEEP": re.compile("[a-zA-Z0-9/+:.]{1,128}"),
    "TLSH": re.compile("[0-9a-fA-F]{70}"),
}

_RESERVED = frozenset(("self", "allow_custom", "interoperability", "custom_properties"))
"""
Names that the library C{stix2} reserves.
"""

_NO_SUBJECTS = frozenset(
    (
        *("relationship", "sighting", "marking-definition", "bundle", "language-content"),
        *("extension-definition", "artifact", "autonomous-system", "directory", "domain-name"),
        *("email-addr", "email-message", "file", "ipv4-addr", "ipv6-addr", "mac-addr", "mutex"),
        *("network-traffic", "process", "software", "url", "user-account"),
        *("windows-registry-key", "x509-certificate"),
    )
)
"""
The types of objects that cannot be sighted, because they are not domain objects.
"""

_EXTENSION_TYPES = (
    *("new-sdo", "new-sco", "new-sro", "property-extension", "toplevel-property-extension"),
)


def require(accepts: Callable[[JsonValue], object], expected: str) -> Check:
    """
    @param accepts: Whether a value is valid.
    @param expected: The valid values in words, for the error.
    @return: A check for these values.
    """

    def check(path: str, value: JsonValue) -> None:
        if not accepts(value):
            raise DocumentInvalid(path, value, expected)

    return check


text = require(lambda value: isinstance(value, str), "a text")
_name = require(lambda value: isinstance(value, str) and value, "a text that is not empty")
flag = require(lambda value: isinstance(value, bool), "true or false")
an_object = require(lambda value: isinstance(value, dict), "an object")
_some_object = require(lambda value: value != {}, "an object that is not empty")


def _is_time(value: JsonValue) -> bool:
    try:
        found: datetime = msgspec.convert(value, Time)
        return isinstance(value, str) and found.astimezone(UTC).year >= FIRST_YEAR
    except (msgspec.ValidationError, OverflowError):
        return False


time = require(_is_time, f"{documents.TIMESTAMP}, of the years 1000 to 9999")


def whole_number(least: int, most: int) -> Check:
    """
    @return: A check for an integer in a range.
    """
    return require(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
    )


def one_of(*values: str) -> Check:
    """
    @return: A check for one of some texts.
    """
    return require(lambda value: value in values, " or ".join(values))


def _matching(form: str, expected: str) -> Check:
    matches = re.compile(form).fullmatch
    return require(lambda value: isinstance(value, str) and matches(value), expected)


def id_of(*kinds: str) -> Check:
    """
    @return: A check for the id of an object of one of some types.
    """
    expected = " or ".join(f"{kind}--UUID" for kind in kinds)
    return _matching(
        f"(?:{'|'.join(kinds)})--{UUID}",
        f"an id of the form {expected}, with a UUID of RFC 4122",
    )


def _is_subject(value: JsonValue) -> bool:
    """
    Whether a value is the id of a domain object, or of a type that is not standard.
    """
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    return match is not None and match[1] not in _NO_SUBJECTS and 3 <= len(match[1]) <= 250


subject = require(
    _is_subject, "the id of a STIX domain object: TYPE--UUID, with a UUID of RFC 4122"
)
language = _matching("[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*", "a language tag such as en or de-CH")
_selector = _matching(
    r"id|[a-z0-9_-]{3,250}(?:\.(?:\[[0-9]+\]|[a-z0-9_-]{1,250}))*",
    "a selector such as description or labels.[0]",
)


def items(check: Check) -> Check:
    """
    @return: A check for a list whose items all pass a check.
    """

    def check_all(path: str, value: JsonValue) -> None:
        if not isinstance(value, list):
            raise DocumentInvalid(path, value, "a list")
        for number, each in enumerate(value):
            check(f"{path}[{number}]", each)

    return check_all


def record(table: Mapping[str, Check], *needed: tuple[str, ...]) -> Check:
    """
    @param table: The checks of the object's properties.
    @param needed: Sets of properties; the object must have at least one property of each.
    @return: A check for an object.
    """

    def check(path: str, value: JsonValue) -> None:
        an_object(path, value)
        check_properties(table, value, f"{path}.")
        for names in needed:
            if not any(_is_present(value.get(name)) for name in names):
                raise DocumentInvalid(
                    f"{path}.{names[0]}", None, f"there, as {' or '.join(names)} must be"
                )

    return check


def check_properties(table: Mapping[str, Check], document: JsonObject, path: str = "") -> None:
    """
    Check each property of an object. As in C{stix2}, C{null} and an empty list are missing.

    @param table: The checks, by name of the property.
    @param path: The prefix of paths in errors.
    @raise DocumentInvalid: If a property is wrong.
    """
    for name, value in document.items():
        check = table.get(name)
        if check is None:
            if not is_custom(name):
                raise DocumentInvalid(path.rstrip(".") or "document", name, _NAMES)
        elif _is_present(value):
            check(path + name, value)


def is_custom(name: str) -> bool:
    """
    Whether a name is allowed for a custom property.
    """
    return name not in _RESERVED and _CUSTOM.fullmatch(name) is not None


_NAMES = (
    "a property of the standard, or a custom one: 3 to 250 of a-z, 0-9 and _, a letter first, and"
    f" none of {', '.join(sorted(_RESERVED))}"
)


def _is_present(value: JsonValue) -> bool:
    return value is not None and value != []


def _hashes(path: str, value: JsonValue) -> None:
    an_object(path, value)
    _some_object(path, value)
    for name, digest in value.items():
        form = _HASHES.get(name)
        if form is None:
            raise DocumentInvalid(path, name, f"one of {', '.join(_HASHES)}")
        if not isinstance(digest, str) or form.fullmatch(digest) is None:
            raise DocumentInvalid(f"{path}.{name}", digest, f"a hash of the kind {name}")


_EXTENSION = id_of("extension-definition")


def _extensions(path: str, value: JsonValue) -> None:
    an_object(path, value)
    _some_object(path, value)
    for name, extension in value.items():
        _EXTENSION(path, name)
        an_object(f"{path}.{name}", extension)
        kind = extension.get("extension_type")
        if kind is not None and kind not in _EXTENSION_TYPES:
            raise DocumentInvalid(
                f"{path}.{name}.extension_type", kind, f"one of {', '.join(_EXTENSION_TYPES)}"
            )


_MARKING_REF = id_of("marking-definition")

_granular_marking = record(
    {"lang": language, "marking_ref": _MARKING_REF, "selectors": items(_selector)},
    ("selectors",),
    ("marking_ref", "lang"),
)


def _granular_markings(path: str, value: JsonValue) -> None:
    items(_granular_marking)(path, value)
    for number, marking in enumerate(value):
        if _is_present(marking.get("lang")) and _is_present(marking.get("marking_ref")):
            raise DocumentInvalid(
                f"{path}[{number}].lang", marking["lang"], "alone: there is marking_ref"
            )


COMMON: dict[str, Check] = {
    "spec_version": one_of("2.1", "2.0"),
    "created_by_ref": id_of("identity"),
    "created": time,
    "modified": time,
    "description": text,
    "revoked": flag,
    "labels": items(text),
    "confidence": whole_number(0, 100),
    "lang": language,
    "external_references": items(
        record(
            {
                "source_name": _name,
                "description": text,
                "url": text,
                "hashes": _hashes,
                "external_id": text,
            },
            ("source_name",),
            ("description", "url", "external_id"),
        )
    ),
    "object_marking_refs": items(_MARKING_REF),
    "granular_markings": _granular_markings,
    "extensions": _extensions,
}

INDICATOR: dict[str, Check] = COMMON | {
    "type": _matching("indicator", "the type indicator"),
    "id": id_of("indicator"),
    "name": text,
    "indicator_types": items(text),
    "pattern": _name,
    "pattern_type": _name,
    "pattern_version": text,
    "valid_from": time,
    "valid_until": time,
    "kill_chain_phases": items(
        record({"kill_chain_name": text, "phase_name": text}, ("kill_chain_name",), ("phase_name",))
    ),
    "x_threatbus_update": one_of("ADD", "EDIT", "REMOVE"),
}

SIGHTING: dict[str, Check] = COMMON | {
    "type": _matching("sighting", "the type sighting"),
    "id": id_of("sighting"),
    "first_seen": time,
    "last_seen": time,
    "count": whole_number(0, 999_999_999),
    "sighting_of_ref": subject,
    "observed_data_refs": items(id_of("observed-data")),
    "where_sighted_refs": items(id_of("identity", "location")),
    "summary": flag,
    "x_threatbus_sighting_context": an_object,
}


def check_markings(document: JsonObject) -> None:
    """
    Check that each selector of the granular markings selects something. The library
    C{stix2} fails on a selector of nothing, of an empty value, of a part of one of the
    standard's own objects, or of the second of two equal items.

    @param document: A document whose properties have been checked.
    @raise DocumentInvalid: If a selector selects nothing, or a limit is exceeded.
    """
    markings = document.get("granular_markings")
    if not markings:
        return
    selectors = [
        (f"granular_markings[{i}].selectors[{j}]", selector)
        for i, marking in enumerate(markings)
        for j, selector in enumerate(marking["selectors"])
    ]
    if len(selectors) > MOST_SELECTORS:
        raise DocumentInvalid(
            "granular_markings", len(selectors), f"at most {MOST_SELECTORS} selectors"
        )
    for path, listed in _lists(document, ""):
        if len(listed) > LONGEST_MARKED_LIST:
            raise DocumentInvalid(
                path, len(listed), f"at most {LONGEST_MARKED_LIST} items, with granular markings"
            )
    for path, selector in selectors:
        if not _selected(document, selector):
            raise DocumentInvalid(path, selector, "a selector of something that is there")


def _lists(value: JsonValue, path: str) -> Iterator[tuple[str, list[JsonValue]]]:
    if isinstance(value, list):
        yield path, value
        for each in value:
            yield from _lists(each, path)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _lists(each, path or name)


def _selected(document: JsonObject, selector: str) -> bool:
    first, *steps = selector.split(".")
    value = document.get(first)
    opaque = first in _OBJECTS
    nested = False  # stix2 does not look into an array directly in another, either
    for step in steps:
        if isinstance(value, dict) and not opaque:
            value, nested = value.get(step), False
        elif isinstance(value, list) and not nested and (found := _INDEX.fullmatch(step)):
            number = int(found[1])
            if number >= len(value) or value.index(value[number]) != number:
                return False
            value = value[number]
            nested = isinstance(value, list)
        else:
            return False
    return bool(value)


_INDEX = re.compile(r"\[(0|[1-9][0-9]{0,3})\]")

_OBJECTS: Container[str] = frozenset(
    ("external_references", "kill_chain_phases", "granular_markings")
)
"""
Properties whose values are objects that the standard defines, which C{stix2} does not look into.
"""
