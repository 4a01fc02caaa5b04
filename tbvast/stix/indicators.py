"""
Indicators: STIX documents with a pattern to look for.
"""

from __future__ import annotations

import enum
from collections import Counter
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tbvast.errors import DocumentInvalid
from tbvast.stix import documents
from tbvast.stix.documents import (
    EPOCH,
    MICROSECOND,
    OptionalTime,
    ShortTime,
    from_microseconds,
    microseconds,
    timestamp,
)
from tbvast.stix.observables import Observable, pattern_for
from tbvast.stix.pattern_compatibility import compatible_pattern, surely_compatible
from tbvast.stix.pattern_conditions import surely_matchable
from tbvast.stix.pattern_grammar import parse

STIX = "stix"
"""
The C{pattern_type} of the patterns that tbvast reads.
"""


class Operation(enum.StrEnum):
    """
    The effect of a document on its indicator.
    """

    ADD = "ADD"
    EDIT = "EDIT"
    REMOVE = "REMOVE"


class Indicator(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="indicator"):
    """
    A decoded indicator.

    @ivar id: The STIX id: C{indicator--UUID}.
    @ivar modified: C{modified}, else C{created}, in microseconds since the epoch; else C{0}.
    @ivar pattern: The pattern. If L{operation} is L{Operation.REMOVE} it may be C{None}, or
        invalid; otherwise a pattern of the type L{STIX} is valid.
    @ivar pattern_type: The type of the pattern; only L{STIX} is read.
    @ivar valid_from: In microseconds since the epoch; C{None} if the document has none.
    @ivar valid_until: In microseconds since the epoch; C{None} is never.
    @ivar operation: The effect of the document; L{Operation.REMOVE} if it is revoked.
    @ivar raw: The unchanged document.
    @ivar surely_matchable: Whether the pattern is known to be
        L{surely matchable<tbvast.stix.pattern_conditions.surely_matchable>}.
    @ivar surely_compatible: Whether the document is known to be L{compatible} as it is.
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
    surely_compatible: bool = False


class Contents(msgspec.Struct, frozen=True):
    """
    The objects of a document that can contain several.

    @ivar indicators: The documents of the indicators, in order, not decoded.
    @ivar others: The numbers of other objects, by type.
    """

    indicators: tuple[bytes, ...]
    others: dict[str, int]


_ID = "an id of the form indicator--UUID"
_PATTERN = "a pattern"


class IndicatorProperties(msgspec.Struct, gc=False, kw_only=True):
    """
    The properties of an indicator that are decoded.
    """

    type: Annotated[Literal["indicator"], Meta(description="the type indicator")]
    id: Annotated[str, Meta(description=_ID)]
    pattern: Annotated[str | None, Meta(description=_PATTERN)] = None
    pattern_type: Annotated[str, Meta(description="the name of a pattern language")] = STIX
    created: OptionalTime = None
    modified: OptionalTime = None
    valid_from: OptionalTime = None
    valid_until: OptionalTime = None
    revoked: Annotated[bool, Meta(description="true or false")] = False
    x_threatbus_update: Annotated[Operation | None, Meta(description="EDIT or REMOVE")] = None


_decoder = msgspec.json.Decoder(IndicatorProperties)

_is_id = documents.id_of("indicator").fullmatch

_ADD = Operation.ADD
_REMOVE = Operation.REMOVE
# Global names are faster than members of an enumeration.


def decode_indicator(raw: bytes) -> Indicator:
    """
    Decode an indicator of STIX 2.1 or 2.0.

    The pattern need not be L{matchable<tbvast.stix.pattern_conditions.matchable>}.

    @raise DocumentInvalid: If C{raw} is not an indicator.
    @raise PatternInvalid: If its pattern is invalid.
    """
    document = documents.decode(_decoder, raw)
    id_ = document.id
    if _is_id(id_) is None:
        raise DocumentInvalid("id", id_, _ID)
    start, end = document.valid_from, document.valid_until
    operation = document.x_threatbus_update or _ADD
    if document.revoked:
        operation = _REMOVE
    pattern = document.pattern
    sure = False
    if operation is not _REMOVE:
        if pattern is None:
            raise DocumentInvalid("pattern", None, _PATTERN)
        if document.pattern_type == STIX:
            sure = surely_matchable(pattern)
            if not sure:
                parse(pattern)
        if start is not None and end is not None and end <= start:
            raise DocumentInvalid("valid_until", timestamp(end), "later than valid_from")
    version = document.modified or document.created
    modified = 0 if version is None else microseconds(version)
    valid_from = None
    if start is not None:  # the version's time, in most documents
        valid_from = modified if start == version else microseconds(start)
    valid_until = None if end is None else microseconds(end)
    return Indicator(
        id_,
        modified,
        document.pattern,
        document.pattern_type,
        valid_from,
        valid_until,
        operation,
        raw,
        sure,
    )


def make_indicator(
    observable: Observable, *, now: datetime, source: str, original: str | None = None
) -> bytes:
    """
    Make a STIX 2.1 indicator of an observable.

    Its id depends only on the observable: published again, it is a new version.

    @param now: The version, and the beginning of the validity.
    @param source: The origin, which becomes a label of the indicator.
    @param original: The text of which the observable was made, if there is one.
    """
    time = timestamp(now)
    return encode_indicator(
        documents.derived_id(
            "indicator", observable.kind.value.encode(), observable.value.encode()
        ),
        time,
        name=observable.value,
        indicator_types=["unknown"],
        labels=[source],
        pattern=pattern_for(observable, original),
        pattern_type=STIX,
        valid_from=time,
    )


def encode_indicator(id: str, time: str, **properties: str | list[str]) -> bytes:
    """
    Encode an indicator.

    @param time: C{created} and C{modified}.
    """
    return msgspec.json.encode(
        {
            "type": "indicator",
            "spec_version": "2.1",
            "id": id,
            "created": time,
            "modified": time,
            **properties,
        }
    )


class _Readable(msgspec.Struct, gc=False):
    """
    The properties that Threat Bus's applications require of an indicator: both versions, and
    times with at most microseconds, which end with C{Z}.
    """

    spec_version: Literal["2.1"]
    pattern_type: str
    created: ShortTime
    modified: ShortTime
    valid_from: ShortTime
    valid_until: ShortTime = "2024-05-17T12:00:00Z"
    pattern_version: str = "2.1"
    pattern: str = ""


_readable_decoder = msgspec.json.Decoder(_Readable)


def _complete_properties(raw: bytes) -> _Readable | None:
    try:
        found = _readable_decoder.decode(raw)
    except documents.UNREADABLE:
        return None
    created, modified, start, end = (
        found.created, found.modified, found.valid_from, found.valid_until
    )  # fmt: skip
    # Faster than a loop; this runs for every indicator.
    complete = (
        created[-1] == modified[-1] == start[-1] == end[-1] == "Z"
        and created[10] == modified[10] == start[10] == end[10] == "T"
        and (found.pattern_version == "2.1" or found.pattern_type != STIX)
    )
    return found if complete else None


def compatible(raw: bytes) -> bytes:
    """
    Change an indicator so that Threat Bus's applications can read it: it is L{complete}, and
    their parser accepts its pattern; see L{tbvast.stix.pattern_compatibility}.

    @param raw: An indicator that has been decoded before.
    @return: The changed document; C{raw} itself if nothing had to be changed.
    @raise Invalid: If C{raw} is not an indicator, or has no acceptable pattern.
    """
    found = _complete_properties(raw)
    if found is not None and (found.pattern_type != STIX or surely_compatible(found.pattern)):
        return raw
    raw = raw if found is not None else _completed(raw)
    document = documents.json_object(raw)
    pattern = document.get("pattern")
    if isinstance(pattern, str) and document["pattern_type"] == STIX:
        document["pattern"], _ = compatible_pattern(pattern, parse(pattern))
    return raw if document.get("pattern") == pattern else msgspec.json.encode(document)


def complete(raw: bytes) -> bytes:
    """
    Complete an indicator. Threat Bus's applications crash on a time that is not in UTC, or has
    nanoseconds, and on a document without its version. A missing C{created} or C{modified} is
    taken from the other one, else from the epoch. A missing C{valid_from} becomes the epoch.

    @param raw: An indicator that has been decoded before.
    @return: The completed document; C{raw} itself if it is complete.
    @raise Invalid: If C{raw} is not an indicator.
    """
    return raw if _complete_properties(raw) is not None else _completed(raw)


def _completed(raw: bytes) -> bytes:
    document = documents.json_object(raw)
    read = documents.decode(_decoder, raw)
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
    Replace the operation in an indicator's document.

    @param raw: A document that L{decode_indicator} accepts.
    @return: The changed document.
    @raise DocumentInvalid: If C{raw} is not a JSON object.
    """
    document = documents.json_object(raw)
    document.pop("x_threatbus_update", None)
    if operation is not Operation.ADD:
        document["x_threatbus_update"] = operation.value
    return msgspec.json.encode(document)


def with_version(raw: bytes, version: int) -> bytes:
    """
    Replace C{modified} in an indicator's document, and C{created} if it would be later.

    @param raw: A document that L{decode_indicator} accepts.
    @param version: In microseconds since the epoch.
    @return: The changed document.
    @raise DocumentInvalid: If C{raw} is not an indicator.
    """
    document = documents.json_object(raw)
    created = documents.decode(_decoder, raw).created
    document["modified"] = timestamp(from_microseconds(version))
    if created is not None and microseconds(created) > version:
        document["created"] = document["modified"]
    return msgspec.json.encode(document)


def removal(id: str, now: datetime) -> bytes:
    """
    @return: A document that removes an indicator of which only the id is known.
    """
    return encode_indicator(id, timestamp(now), x_threatbus_update=Operation.REMOVE.value)


class _Bundle(msgspec.Struct):
    type: str | None = None
    objects: list[msgspec.Raw] = []


_bundle_decoder = msgspec.json.Decoder(_Bundle)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def split_bundle(raw: bytes) -> Contents:
    """
    Split a STIX bundle, a list of objects, or a single object.

    @raise DocumentInvalid: If C{raw} is none of these.
    """
    expected = "a STIX bundle, a STIX object, or a list of such objects"
    try:
        if raw.lstrip()[:1] == b"[":
            objects = _list_decoder.decode(raw)
        else:
            bundle = _bundle_decoder.decode(raw)
            if bundle.type is None:
                raise DocumentInvalid("type", None, expected)
            objects = bundle.objects if bundle.type == "bundle" else [msgspec.Raw(raw)]
    except msgspec.ValidationError as e:
        raise DocumentInvalid("document", raw, f"{expected} ({e})") from None
    except documents.UNREADABLE as e:
        raise DocumentInvalid("document", raw, f"JSON ({e})") from None
    indicators: list[bytes] = []
    others: Counter[str] = Counter()
    for item in objects:
        type_ = documents.type_of(item)
        if type_ == "indicator":
            indicators.append(bytes(item))
        else:
            others["not a STIX object" if type_ is None else type_] += 1
    return Contents(tuple(indicators), dict(others))
