"""
Indicators: STIX documents that say what to look for.
"""

from __future__ import annotations

import enum
from collections import Counter
from datetime import datetime
from typing import Annotated, Literal, Protocol

import msgspec

from tbvast.errors import IndicatorInvalid
from tbvast.stix import documents
from tbvast.stix.documents import (
    EPOCH,
    MICROSECOND,
    Time,
    from_microseconds,
    microseconds,
    timestamp,
)
from tbvast.stix.observables import Observable, pattern_for
from tbvast.stix.pattern_conditions import surely_matchable, validate

STIX = "stix"
"""
The C{pattern_type} of the patterns that are understood here.
"""


class Operation(enum.StrEnum):
    """
    What a document does to the indicator it names.
    """

    ADD = "ADD"
    EDIT = "EDIT"
    REMOVE = "REMOVE"


class Indicator(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="indicator"):
    """
    An indicator, decoded.

    @ivar id: The STIX id: C{indicator--UUID}.
    @ivar modified: The version, in microseconds since the epoch: the document's
        C{modified}, else its C{created}, else C{0}.
    @ivar pattern: L{None} only where L{operation} is L{Operation.REMOVE}, and only
        otherwise sure to be a valid pattern (of the type STIX).
    @ivar pattern_type: Patterns of other types than L{STIX} are carried unread.
    @ivar valid_from: In microseconds since the epoch.
    @ivar valid_until: In microseconds since the epoch; L{None} for no end.
    @ivar operation: A revoked indicator is one to L{Operation.REMOVE}.
    @ivar raw: The document, byte for byte as it came.
    @ivar surely_matchable: What L{tbvast.stix.pattern_conditions.surely_matchable} says of the
        pattern, if it was asked.
    """

    id: str
    modified: int
    pattern: str | None
    pattern_type: str
    valid_from: int | None
    valid_until: int | None
    operation: Operation
    raw: bytes
    surely_matchable: bool = False


class Contents(msgspec.Struct, frozen=True):
    """
    The objects of a document that may hold many.

    @ivar indicators: The indicators' documents, in their order, not yet decoded.
    @ivar others: How many objects of other types there were, by type.
    """

    indicators: tuple[bytes, ...]
    others: dict[str, int]


class _Document(msgspec.Struct, gc=False):
    """
    What is read of an indicator's document.
    """

    type: Literal["indicator"]
    id: str
    pattern: str | None = None
    pattern_type: str = STIX
    created: Time | None = None
    modified: Time | None = None
    valid_from: Time | None = None
    valid_until: Time | None = None
    revoked: bool = False
    x_threatbus_update: Operation | None = None


_TIMESTAMP = "a timestamp such as 2024-05-17T12:00:00.000Z"

_EXPECTED = {
    "type": "the type indicator",
    "id": "an id of the form indicator--UUID",
    "pattern": "a pattern",
    "pattern_type": "the name of a pattern language",
    "created": _TIMESTAMP,
    "modified": _TIMESTAMP,
    "valid_from": _TIMESTAMP,
    "valid_until": _TIMESTAMP,
    "revoked": "true or false",
    "x_threatbus_update": "EDIT or REMOVE",
}

_decoder = msgspec.json.Decoder(_Document)

_is_id = documents.id_of("indicator").fullmatch

_ADD = Operation.ADD
_REMOVE = Operation.REMOVE
# Names of the module are found quicker than those of an enumeration.


def decode_indicator(raw: bytes) -> Indicator:
    """
    Read an indicator: a STIX 2.1 document, or a STIX 2.0 one.

    Whether the pattern can be matched is another question, which
    L{tbvast.stix.pattern_conditions.matchable} answers.

    @raise IndicatorInvalid: If C{raw} is no indicator.
    @raise PatternInvalid: If its pattern is not one.
    """
    document = documents.decode(_decoder, raw, IndicatorInvalid, _EXPECTED)
    id_ = document.id
    if _is_id(id_) is None:
        raise IndicatorInvalid("id", id_, _EXPECTED["id"])
    start, end = document.valid_from, document.valid_until
    operation = document.x_threatbus_update or _ADD
    if document.revoked:
        operation = _REMOVE
    pattern = document.pattern
    sure = False
    if operation is not _REMOVE:
        if pattern is None:
            raise IndicatorInvalid("pattern", None, _EXPECTED["pattern"])
        if document.pattern_type == STIX:
            sure = surely_matchable(pattern)
            if not sure:
                validate(pattern)
        if start is not None and end is not None and end <= start:
            raise IndicatorInvalid("valid_until", timestamp(end), "later than valid_from")
    return interpret(document, operation, sure, raw)


class Timed(Protocol):
    """
    What is read of an indicator's document, whoever reads it.
    """

    @property
    def id(self) -> str: ...
    @property
    def pattern(self) -> str | None: ...
    @property
    def pattern_type(self) -> str: ...
    @property
    def created(self) -> datetime | None: ...
    @property
    def modified(self) -> datetime | None: ...
    @property
    def valid_from(self) -> datetime | None: ...
    @property
    def valid_until(self) -> datetime | None: ...


def interpret(document: Timed, operation: Operation, sure: bool, raw: bytes) -> Indicator:
    """
    The indicator of a document that has been checked.

    @param sure: What L{surely_matchable} says of its pattern.
    """
    version = document.modified or document.created
    modified = 0 if version is None else microseconds(version)
    start, end = document.valid_from, document.valid_until
    if start is None:
        valid_from = None
    elif start == version:  # as most are
        valid_from = modified
    else:
        valid_from = microseconds(start)
    return Indicator(
        document.id,
        modified,
        document.pattern,
        document.pattern_type,
        valid_from,
        None if end is None else microseconds(end),
        operation,
        raw,
        sure,
    )


def make_indicator(
    observable: Observable, *, now: datetime, source: str, original: str | None = None
) -> bytes:
    """
    A STIX 2.1 indicator of an observable.

    Its id depends on the observable alone: published again, it is a new version of
    the same indicator.

    @param source: Where it comes from; a label of the indicator.
    @param original: The text that the observable was made of, if there is one.
    """
    time = timestamp(now)
    return msgspec.json.encode(
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": documents.derived_id(
                "indicator", observable.kind.value.encode(), observable.value.encode()
            ),
            "created": time,
            "modified": time,
            "name": observable.value,
            "indicator_types": ["unknown"],
            "labels": [source],
            "pattern": pattern_for(observable, original),
            "pattern_type": STIX,
            "valid_from": time,
        }
    )


_ShortTime = Annotated[str, msgspec.Meta(min_length=20, max_length=27)]


class _Readable(msgspec.Struct, gc=False):
    """
    What Threat Bus's applications need of an indicator's document: both versions, and
    times of microseconds at the most, which end with C{Z}.
    """

    spec_version: Literal["2.1"]
    pattern_type: str
    created: _ShortTime
    modified: _ShortTime
    valid_from: _ShortTime
    valid_until: _ShortTime = "2024-05-17T12:00:00Z"
    pattern_version: str = "2.1"


_readable_decoder = msgspec.json.Decoder(_Readable)


def is_compatible(raw: bytes) -> bool:
    """
    Whether L{compatible} leaves an indicator as it is.

    @param raw: An indicator that has been decoded before.
    """
    try:
        found = _readable_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    created, modified, start, end = (
        found.created, found.modified, found.valid_from, found.valid_until
    )  # fmt: skip
    # One after the other: quicker than a loop, for each and every indicator.
    return (
        created[-1] == modified[-1] == start[-1] == end[-1] == "Z"
        and created[10] == modified[10] == start[10] == end[10] == "T"
        and (found.pattern_version == "2.1" or found.pattern_type != STIX)
    )


def compatible(raw: bytes) -> bytes:
    """
    An indicator as Threat Bus's applications can read it: they end when they meet a
    time that is not in UTC, or in nanoseconds, or a document that does not say its
    version. What is missing of C{created} and C{modified} is taken from the other one, else
    from the epoch, where validity without a beginning begins.

    @param raw: An indicator that has been decoded before.
    @return: C{raw} itself, if they can read it.
    @raise Invalid: If C{raw} is no indicator.
    """
    return raw if is_compatible(raw) else _made_compatible(raw)


def _made_compatible(raw: bytes) -> bytes:
    document = documents.json_object(raw, IndicatorInvalid)
    read = documents.decode(_decoder, raw, IndicatorInvalid, _EXPECTED)
    document["spec_version"] = "2.1"
    document["pattern_type"] = read.pattern_type
    if read.pattern_type == STIX and document.get("pattern_version") is not None:
        document["pattern_version"] = "2.1"
    created, modified = read.created or read.modified, read.modified or read.created
    start, end = read.valid_from or EPOCH, read.valid_until
    if end is not None and read.valid_from is None and end <= start:
        start = end - MICROSECOND
    for name, time in (
        ("created", created or EPOCH),
        ("modified", modified or EPOCH),
        ("valid_from", start),
        ("valid_until", end),
    ):
        if time is not None:
            document[name] = timestamp(time)
    return msgspec.json.encode(document)


def with_operation(raw: bytes, operation: Operation) -> bytes:
    """
    An indicator's document with another operation in it.

    @param raw: A document that L{decode_indicator} reads.
    @raise IndicatorInvalid: If C{raw} is no JSON object.
    """
    document = documents.json_object(raw, IndicatorInvalid)
    document.pop("x_threatbus_update", None)
    if operation is not Operation.ADD:
        document["x_threatbus_update"] = operation.value
    return msgspec.json.encode(document)


def with_version(raw: bytes, version: int) -> bytes:
    """
    An indicator's document with another C{modified}, and a C{created} that is no later.

    @param raw: A document that L{decode_indicator} reads.
    @param version: In microseconds since the epoch.
    @raise IndicatorInvalid: If C{raw} is no indicator.
    """
    document = documents.json_object(raw, IndicatorInvalid)
    created = documents.decode(_decoder, raw, IndicatorInvalid, _EXPECTED).created
    document["modified"] = timestamp(from_microseconds(version))
    if created is not None and microseconds(created) > version:
        document["created"] = document["modified"]
    return msgspec.json.encode(document)


def removal(id: str, now: datetime) -> bytes:
    """
    A document that withdraws an indicator of which only the id is known.
    """
    time = timestamp(now)
    return msgspec.json.encode(
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": id,
            "created": time,
            "modified": time,
            "x_threatbus_update": Operation.REMOVE.value,
        }
    )


class _Bundle(msgspec.Struct):
    type: str | None = None
    objects: list[msgspec.Raw] = []


class _Typed(msgspec.Struct):
    type: str


_bundle_decoder = msgspec.json.Decoder(_Bundle)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_typed_decoder = msgspec.json.Decoder(_Typed)


def split_bundle(raw: bytes) -> Contents:
    """
    The objects of a STIX bundle, of a list of objects, or a single object.

    @raise IndicatorInvalid: If C{raw} is none of these.
    """
    expected = "a STIX bundle, a STIX object, or a list of such objects"
    try:
        if raw.lstrip()[:1] == b"[":
            objects = _list_decoder.decode(raw)
        else:
            bundle = _bundle_decoder.decode(raw)
            if bundle.type is None:
                raise IndicatorInvalid("type", None, expected)
            objects = bundle.objects if bundle.type == "bundle" else [msgspec.Raw(raw)]
    except msgspec.ValidationError as e:
        raise IndicatorInvalid("document", raw, f"{expected} ({e})") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise IndicatorInvalid("document", raw, f"JSON ({e})") from None
    indicators: list[bytes] = []
    others: Counter[str] = Counter()
    for item in objects:
        try:
            type_ = _typed_decoder.decode(item).type
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            type_ = "not a STIX object"
        if type_ == "indicator":
            indicators.append(bytes(item))
        else:
            others[type_] += 1
    return Contents(tuple(indicators), dict(others))
