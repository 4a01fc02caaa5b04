"""
Admits documents to the bus, or refuses them.

Every document passes through here, whether it comes from the sub endpoint, a publish
request, a snapshot envelope, another bus or a file. It is admitted if every later hop can
carry it, and if the library C{stix2} accepts it: the old programs crash on a document that
C{stix2} refuses.

An incomplete document is completed with the properties that others need: its version, the
type of its pattern, C{created}, C{modified} and C{valid_from}. Its times are rewritten in
UTC, to the microsecond at most. A complete document stays unchanged, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tbvast.errors import SHOWN, DocumentInvalid, Invalid, PatternUnmatchable
from tbvast.stix import documents
from tbvast.stix.documents import (
    JsonObject,
    ShortTime,
    Time,
    from_microseconds,
    microseconds,
    timestamp,
)
from tbvast.stix.indicators import (
    STIX,
    Indicator,
    Operation,
    complete,
    decode_indicator,
    encode_indicator,
)
from tbvast.stix.limits import (
    DEEPEST_INDICATOR,
    DEEPEST_SIGHTING,
    FIRST_YEAR,
    LARGEST_INDICATOR,
    LARGEST_SIGHTING,
    LEAST_INTEGER,
    LONGEST_PATTERN,
    MOST_INTEGER,
    MOST_STEPS,
    MOST_TERMS,
    MOST_TOKENS,
    MOST_VALUES,
)
from tbvast.stix.pattern_compatibility import compatible_pattern, surely_compatible
from tbvast.stix.pattern_conditions import matchable, surely_matchable
from tbvast.stix.pattern_grammar import Comparison, parse, walk
from tbvast.stix.properties import (
    INDICATOR,
    SIGHTING,
    Check,
    check_markings,
    check_properties,
    is_custom,
)
from tbvast.stix.sightings import Sighting, compatible_sighting, decode_sighting

Item = Indicator | Sighting

_REMOVE = Operation.REMOVE
_is_indicator_id = re.compile(f"indicator--{documents.UUID}").fullmatch


def admit(raw: bytes) -> Item:
    """
    Admit a document of either type.

    @raise Invalid: If it is neither a valid indicator nor a valid sighting.
    """
    # Most do not contain the word, and a search for it is faster than decoding their type.
    may_be_sighting = b"sighting" in raw or b"\\" in raw
    if may_be_sighting and len(raw) <= LARGEST_SIGHTING and documents.type_of(raw) == "sighting":
        return admit_sighting(raw)
    return admit_indicator(raw)


def admit_indicator(raw: bytes) -> Indicator:
    """
    Admit an indicator, or the removal of one; a removal needs no pattern.

    @return: The indicator; its C{raw} is the completed document.
    @raise DocumentInvalid: If it is refused.
    @raise PatternInvalid: If its pattern has a syntax error.
    @raise ObservableInvalid: If its pattern has a malformed value, such as a malformed
        address. A valid pattern that merely cannot be matched is admitted.
    """
    if len(raw) > LARGEST_INDICATOR:
        raise DocumentInvalid("length", len(raw), f"at most {LARGEST_INDICATOR} bytes")
    plain: _Usual | None
    try:
        # This decoder skips nothing, so that no hidden part can be deep or have long numbers.
        plain = _plain_decoder.decode(raw)
    except documents.UNREADABLE:
        plain = _with_custom(raw)
    if plain is None:
        return _admit_unusual_indicator(raw)
    created, modified = _short_time(plain.created), _short_time(plain.modified)
    start = _short_time(plain.valid_from)
    end = None if plain.valid_until is UNSET else _short_time(plain.valid_until)
    if (
        not _FIRST_VERSION <= created <= modified
        or start < _FIRST_VERSION
        or (end is not None and end <= start)
        or _is_indicator_id(plain.id) is None
        or not (
            plain.external_references is UNSET or all(map(_has_details, plain.external_references))
        )
    ):
        return _admit_unusual_indicator(raw)
    operation = _REMOVE if plain.revoked else plain.x_threatbus_update
    pattern = plain.pattern
    sure = surely_matchable(pattern)
    if not sure:
        _check_pattern(pattern, operation)
    return Indicator(
        plain.id,
        modified,
        pattern,
        STIX,
        start,
        end,
        operation,
        raw,
        sure and operation is not _REMOVE,
        surely_compatible(pattern),
    )


@lru_cache(maxsize=1024)
def _short_time(text: str) -> int:
    """
    Decode a time. A document has one several times, and a source one in many documents.

    @return: Microseconds since the epoch; of a text that L{complete} would change, or that is no
        time, a number before L{FIRST_YEAR}.
    """
    if text[-1] != "Z" or text[10] != "T":
        return _NO_TIME
    try:
        return microseconds(msgspec.convert(text, Time))
    except msgspec.ValidationError:
        return _NO_TIME


_FIRST_VERSION = microseconds(datetime(FIRST_YEAR, 1, 1, tzinfo=UTC))
_NO_TIME = _FIRST_VERSION - 1

_ADD = Operation.ADD


class _Reference(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    source_name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str | None = None
    url: str | None = None
    external_id: str | None = None


def _has_details(reference: _Reference) -> bool:
    return not (reference.description is reference.url is reference.external_id is None)


class _Phase(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    kill_chain_name: str
    phase_name: str


_Texts = Annotated[list[str], msgspec.Meta(min_length=1)]
_Marking = Annotated[str, msgspec.Meta(pattern=rf"^marking-definition--{documents.UUID}\Z")]
_Identity = Annotated[str, msgspec.Meta(pattern=rf"^identity--{documents.UUID}\Z")]


class _Usual(msgspec.Struct, gc=False, kw_only=True):
    """
    The form of most indicators: a subset of the properties that L{INDICATOR} allows.
    """

    type: Literal["indicator"]
    spec_version: Literal["2.1"]
    id: str
    created: ShortTime
    modified: ShortTime
    pattern: Annotated[str, msgspec.Meta(min_length=1)]
    pattern_type: Literal["stix"]
    valid_from: ShortTime
    valid_until: ShortTime | UnsetType = UNSET
    revoked: bool = False
    name: str = ""
    description: str = ""
    indicator_types: _Texts | UnsetType = UNSET
    labels: _Texts | UnsetType = UNSET
    confidence: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    pattern_version: Literal["2.1"] = "2.1"
    x_threatbus_update: Operation = Operation.ADD
    created_by_ref: _Identity | UnsetType = UNSET
    object_marking_refs: Annotated[list[_Marking], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    external_references: Annotated[list[_Reference], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    kill_chain_phases: Annotated[list[_Phase], msgspec.Meta(min_length=1)] | UnsetType = UNSET


class _Plain(_Usual, forbid_unknown_fields=True, gc=False, kw_only=True):
    """
    A usual indicator without custom properties.
    """


_usual_decoder = msgspec.json.Decoder(_Usual)
_USUAL = frozenset(_Usual.__struct_fields__)


def _with_custom(raw: bytes) -> _Usual | None:
    """
    @return: An indicator that is usual except for custom properties; C{None} for any other.
    @raise DocumentInvalid: If some hop cannot carry it.
    """
    try:
        usual = _usual_decoder.decode(raw)
    except documents.UNREADABLE:
        return None
    document = read_bounded(raw, LARGEST_INDICATOR, DEEPEST_INDICATOR)
    others = document.keys() - _USUAL
    return usual if others.isdisjoint(INDICATOR) and all(map(is_custom, others)) else None


_plain_decoder = msgspec.json.Decoder(_Plain)


def _check_pattern(pattern: str, operation: Operation) -> None:
    if len(pattern) > LONGEST_PATTERN:
        raise DocumentInvalid("pattern", pattern, f"at most {LONGEST_PATTERN} characters long")
    delivered, expression = compatible_pattern(pattern, parse(pattern, MOST_TOKENS))
    if len(delivered) > LONGEST_PATTERN:
        raise DocumentInvalid(
            "pattern", pattern, f"at most {LONGEST_PATTERN} characters long without lists of hashes"
        )
    terms = list(walk(expression))
    if len(terms) > MOST_TERMS:
        raise DocumentInvalid(
            "pattern", pattern, f"of at most {MOST_TERMS} comparisons and qualifiers"
        )
    for term in terms:
        if isinstance(term, Comparison) and len(term.path.steps) > MOST_STEPS:
            raise DocumentInvalid(
                "pattern", pattern, f"of object paths of at most {MOST_STEPS} steps"
            )
    if operation is not _REMOVE:
        with suppress(PatternUnmatchable):
            matchable(expression)


def _admit_unusual_indicator(raw: bytes) -> Indicator:
    """
    Like L{admit_indicator}, but by the table of properties.
    """
    document = read_bounded(raw, LARGEST_INDICATOR, DEEPEST_INDICATOR)
    unchanged, document = _checked(document, INDICATOR)
    if not unchanged:
        raw = msgspec.json.encode(document)
    operation = Operation(document.get("x_threatbus_update", _ADD))
    if document.get("revoked", False):
        operation = _REMOVE
    pattern, language = document.get("pattern"), document.get("pattern_type", STIX)
    if pattern is None:
        if operation is not _REMOVE:
            raise DocumentInvalid("pattern", None, "a text that is not empty")
    elif language == STIX:
        version = document.get("pattern_version", "2.1")
        if version not in ("2.1", "2.0"):
            raise DocumentInvalid("pattern_version", version, "2.1 or 2.0")
        _check_pattern(pattern, operation)
    elif language in ("suricata", "Suricata"):
        _check_rule(pattern)
    if pattern is None:
        return decode_indicator(raw)
    item = decode_indicator(_completed(raw, complete, LARGEST_INDICATOR))
    compatible = language != STIX or surely_compatible(pattern)
    return msgspec.structs.replace(item, surely_compatible=compatible)


_SID = re.compile(r"(?<=[(;\s])sid\s*:([^;]*)")
_NUMBER = re.compile(r"\s*[0-9]{1,10}\s*")


def _check_rule(rule: str) -> None:
    """
    Check the length of a Suricata rule, and that each C{sid} in it is a number, wherever it may
    stand: suricata-threatbus uses it in a regular expression, and crashes on anything else.
    """
    if len(rule) > LONGEST_PATTERN:
        raise DocumentInvalid("pattern", rule, f"at most {LONGEST_PATTERN} characters long")
    for sid in _SID.findall(rule):
        if _NUMBER.fullmatch(sid) is None:
            raise DocumentInvalid("pattern", rule, f"a rule of Suricata: its sid is {sid!r:.40}")


def admit_sighting(raw: bytes) -> Sighting:
    """
    Admit a sighting.

    @return: The sighting; its C{raw} is the completed document.
    @raise DocumentInvalid: If it is refused.
    """
    document = read_bounded(raw, LARGEST_SIGHTING, DEEPEST_SIGHTING)
    unchanged, document = _checked(document, SIGHTING)
    if "sighting_of_ref" not in document:
        raise DocumentInvalid("sighting_of_ref", None, "a STIX id of the form TYPE--UUID")
    if not unchanged:
        raw = msgspec.json.encode(document)
    return decode_sighting(_completed(raw, compatible_sighting, LARGEST_SIGHTING))


def _checked(document: JsonObject, table: Mapping[str, Check]) -> tuple[bool, JsonObject]:
    """
    Check a document's properties, and the order of its times.

    @return: Whether the document has no standard property that is C{null} or an empty list;
        and the document without these.
    """
    for name in ("type", "id"):
        table[name](name, document.get(name))
    check_properties(table, document)
    kept = {
        name: value
        for name, value in document.items()
        if not ((value is None or value == []) and name in table)
    }
    _check_order(kept, "created", "modified", equal=True)
    _check_order(kept, "valid_from", "valid_until", equal=False)
    _check_order(kept, "first_seen", "last_seen", equal=True)
    check_markings(kept)
    return len(kept) == len(document), kept


def _check_order(document: JsonObject, first: str, second: str, equal: bool) -> None:
    if first not in document or second not in document:
        return
    # Compare the times as readers will see them: nanoseconds are rounded.
    start, end = (timestamp(msgspec.convert(document[n], Time)) for n in (first, second))
    if end < start or (end == start and not equal):
        expected = f"{'no earlier' if equal else 'later'} than {first}, {document[first]}"
        raise DocumentInvalid(second, document[second], expected)


def _completed(raw: bytes, complete: Callable[[bytes], bytes], most: int) -> bytes:
    completed = complete(raw)
    if len(completed) > most:  # rewritten numbers may be longer
        raise DocumentInvalid("length", len(completed), f"at most {most} bytes when complete")
    return completed


_LEVELS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = b"0" * 19
# All that is done with the bytes of a whole document takes a few nanoseconds for each, which
# regular expressions do not.


def read_bounded(raw: bytes, most: int, deepest: int) -> JsonObject:
    """
    Read a document that every decoder on its way can read.

    @param most: The most bytes.
    @param deepest: The most levels of arrays and objects.
    @raise DocumentInvalid: If C{raw} exceeds a limit or is no JSON object.
    """
    if len(raw) > most:
        raise DocumentInvalid("length", len(raw), f"at most {most} bytes")
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets + raw.count(b",") > MOST_VALUES:
        _check_values(raw)
    if brackets > deepest:
        _check_depth(raw, deepest)
    try:
        str(raw, "utf-8")
        document = msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise DocumentInvalid("document", raw, "UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as e:
        name, value = _first_unreadable(raw)
        raise DocumentInvalid(name, value, f"JSON that every program can read ({e})") from None
    if not isinstance(document, dict):
        raise DocumentInvalid("document", document, "a JSON object")
    if _LONG_INTEGER in raw.translate(_DIGITS):
        for name, value in document.items():
            _check_integers(name, value)
    return document


def _check_values(raw: bytes) -> None:
    plain = _without_escapes(raw)
    # A value has at most one string, and one for its name.
    if plain.count(b'"') <= 4 * (MOST_VALUES + 1):
        rest = _without_strings(plain)
        if rest.count(b",") + rest.count(b"[") + rest.count(b"{") <= MOST_VALUES:
            return
    raise DocumentInvalid("document", raw, f"JSON of at most {MOST_VALUES} values")


def _without_escapes(raw: bytes) -> bytes:
    """
    @return: The JSON without the escape sequences that have to do with the end of a string.
    """
    return raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw


def _without_strings(raw: bytes) -> bytes:
    """
    @param raw: JSON L{_without_escapes}.
    """
    return b"".join(raw.split(b'"')[::2])


def _check_depth(raw: bytes, deepest: int) -> None:
    brackets = _without_strings(_without_escapes(raw)).translate(_LEVELS, _NO_BRACKETS)
    for _ in range(deepest):  # each pass removes the innermost level
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    name, value = _too_deep(raw, deepest)
    raise DocumentInvalid(name, value, f"JSON of at most {deepest} levels")


_BRACKET = re.compile(rb'("(?:[^"\\]|\\.)*")(?=\s*:)|"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _too_deep(raw: bytes, deepest: int) -> tuple[str, bytes]:
    """
    @return: The name of the property that is too deep, and the bytes from its value on.
    """
    depth, name, start = 0, "document", 0
    for token in _BRACKET.finditer(raw):
        kind = token[0]
        if kind in (b"[", b"{"):
            depth += 1
            if depth > deepest:
                break
        elif kind in (b"]", b"}"):
            depth -= 1
        elif depth == 1 and token[1]:
            name, start = kind[1:-1].decode("utf-8", "backslashreplace"), token.end()
    return _shown(name), raw[start:].lstrip(b" \t\r\n:")


def _first_unreadable(raw: bytes) -> tuple[str, bytes]:
    """
    @return: The name and the raw value of the first property that cannot be decoded; the whole
        document if its properties cannot be told apart.
    """
    with suppress(*documents.UNREADABLE):
        for name, value in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).items():
            try:
                msgspec.json.decode(value)
            except documents.UNREADABLE:
                return _shown(name), bytes(value)
    return "document", raw


def _shown(path: str) -> str:
    """
    Escape and shorten a path with untrusted names, to show it in one line.
    """
    text = ascii(path)[1:-1]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _check_integers(path: str, value: object) -> None:
    if isinstance(value, int):
        if not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise DocumentInvalid(_shown(path), value, "a number of at most 64 bits")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_integers(f"{path}[{number}]", each)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_integers(f"{path}.{name}", each)


class _Essentials(msgspec.Struct):
    pattern: str
    pattern_type: str = STIX


def bare_removal(id: str, version: int, body: bytes = b"") -> Indicator:
    """
    Build the removal of an indicator from little more than its id. Every subscriber can
    read it.

    @param id: The indicator's STIX id.
    @param version: The version, in microseconds since the epoch.
    @param body: The indicator's document. If its pattern is readable, the removal repeats
        it; otherwise the pattern contains only the id, and matches nothing.
    @raise Invalid: If the id may not enter the bus, because old clients crash on it. It is
        damaged, or from a journal of version 0.1.0.
    """
    pattern, pattern_type = f"[indicator:id = '{id}']", STIX
    try:
        found = msgspec.json.decode(body, type=_Essentials)
        if found.pattern_type == STIX:
            parse(found.pattern)
        if found.pattern:
            pattern, pattern_type = found.pattern, found.pattern_type
    except (*documents.UNREADABLE, Invalid):
        pass
    time = timestamp(from_microseconds(max(version, _FIRST_VERSION)))
    raw = encode_indicator(
        id,
        time,
        pattern=pattern,
        pattern_type=pattern_type,
        valid_from=time,
        x_threatbus_update=Operation.REMOVE.value,
    )
    return msgspec.structs.replace(admit_indicator(raw), modified=version)
