"""
Sightings: STIX documents that report the match of an indicator in an event.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tbvast.errors import DocumentInvalid
from tbvast.stix import documents
from tbvast.stix.documents import (
    EPOCH,
    STIX_ID,
    JsonObject,
    OptionalTime,
    ShortTime,
    microseconds,
    timestamp,
)
from tbvast.stix.limits import FIRST_YEAR
from tbvast.stix.sighting_size import encode_fitting

SOURCE = "tbvast-bridge"
"""
The beginning of C{x_threatbus_source}; a slash and the engine's name follow.
"""


class MatchType(enum.StrEnum):
    """
    The way in which an event was found; the value of C{x_threatbus_match_type}.
    """

    LIVE = "LIVE"
    RETRO = "RETRO"


class Sighting(msgspec.Struct, frozen=True, array_like=True, tag="sighting"):
    """
    A decoded sighting.

    @ivar id: The STIX id: C{sighting--UUID}.
    @ivar indicator: The id of the object that was seen.
    @ivar last_seen: In microseconds since the epoch; C{None} if the document has none.
    @ivar raw: The unchanged document.
    """

    id: str
    indicator: str
    last_seen: int | None
    raw: bytes


_ID = "an id of the form sighting--UUID"
_SUBJECT = "a STIX id of the form TYPE--UUID"


class _Document(msgspec.Struct):
    type: Annotated[Literal["sighting"], Meta(description="the type sighting")]
    id: Annotated[str, Meta(description=_ID)]
    sighting_of_ref: Annotated[str, Meta(description=_SUBJECT)]
    last_seen: OptionalTime = None


_decoder = msgspec.json.Decoder(_Document)


def decode_sighting(raw: bytes) -> Sighting:
    """
    Decode a sighting.

    @raise DocumentInvalid: If C{raw} is not a sighting.
    """
    document = documents.decode(_decoder, raw)
    match = STIX_ID.fullmatch(document.id)
    if match is None or match[1] != "sighting":
        raise DocumentInvalid("id", document.id, _ID)
    if STIX_ID.fullmatch(document.sighting_of_ref) is None:
        raise DocumentInvalid("sighting_of_ref", document.sighting_of_ref, _SUBJECT)
    seen = None if document.last_seen is None else microseconds(document.last_seen)
    return Sighting(document.id, document.sighting_of_ref, seen, raw)


_SOME_TIME = "2024-05-17T12:00:00Z"


class _Readable(msgspec.Struct, gc=False):
    """
    The properties that Threat Bus's applications require of a sighting.
    """

    spec_version: Literal["2.1"]
    created: ShortTime
    modified: ShortTime
    first_seen: ShortTime = _SOME_TIME
    last_seen: ShortTime = _SOME_TIME


class _Timed(msgspec.Struct, gc=False):
    created: OptionalTime = None
    modified: OptionalTime = None
    first_seen: OptionalTime = None
    last_seen: OptionalTime = None


_readable_decoder = msgspec.json.Decoder(_Readable)
_timed_decoder = msgspec.json.Decoder(_Timed)


def compatible_sighting(raw: bytes) -> bytes:
    """
    Complete a sighting so that Threat Bus's applications can read it; see
    L{tbvast.stix.indicators.compatible}. A missing C{created} or C{modified} is taken from the
    other one, else from the time of the sighting, else from the epoch.

    @param raw: A sighting that has been decoded before.
    @return: The completed document; C{raw} itself if it is complete.
    @raise DocumentInvalid: If C{raw} is not a sighting.
    """
    try:
        found = _readable_decoder.decode(raw)
        times = (found.created, found.modified, found.first_seen, found.last_seen)
        if all(time[-1] == "Z" and time[10] == "T" for time in times):
            return raw
    except documents.UNREADABLE:
        pass
    read = documents.decode(_timed_decoder, raw)
    document = documents.json_object(raw)
    seen = read.last_seen or read.first_seen or EPOCH
    document["spec_version"] = "2.1"
    document["created"] = timestamp(read.created or read.modified or seen)
    document["modified"] = timestamp(read.modified or read.created or seen)
    for name in ("first_seen", "last_seen"):
        time = getattr(read, name)
        if time is not None:
            document[name] = timestamp(time)
    return msgspec.json.encode(document)


def canonical(event: JsonObject) -> bytes:
    """
    @return: An event as bytes that do not depend on the order of its keys.
    """
    return msgspec.json.encode(event, order="sorted")


def sighting_id(indicator_id: str, event: bytes, engine: str) -> str:
    """
    @param event: The L{canonical} bytes of an event.
    @param engine: The engine's name.
    @return: The id of the sighting of an indicator in an event, the same each time.
    """
    return documents.derived_id("sighting", indicator_id.encode(), engine.encode(), event)


def make_sighting(
    *,
    indicator_id: str,
    indicator_raw: bytes | None,
    values: Sequence[str],
    match_type: MatchType,
    event: JsonObject,
    context: JsonObject,
    engine: str,
    now: datetime,
) -> Sighting:
    """
    Make the sighting of an indicator in an event.

    @param indicator_raw: The indicator's document, which is valid JSON, if it is available.
    @param values: The seen values as the indicator has them; several only if needed together.
    @param match_type: The way in which the event was found.
    @param event: The whole event, from which the sighting's id is derived.
    @param context: The sighting's context: the event itself, or its transformation.
    @param now: The time of the match; also the sighting's time if the event has none.
    @return: The sighting, perhaps cut by L{encode_fitting}.
    @raise DocumentInvalid: If it is too long even then.
    """
    seen = event_time(event) or now
    id_ = sighting_id(indicator_id, canonical(event), engine)
    document = {
        **required_properties(id_, indicator_id, now, seen),
        "x_threatbus_indicator_value": values[0],
        "x_threatbus_match_type": match_type.value,
        "x_threatbus_source": f"{SOURCE}/{engine}",
        "x_threatbus_sighting_context": context,
    }
    if len(values) > 1:
        document["x_threatbus_indicator_values"] = list(values)
    if indicator_raw is not None:
        document["x_threatbus_indicator"] = msgspec.Raw(indicator_raw)
    return Sighting(id_, indicator_id, microseconds(seen), encode_fitting(document))


def required_properties(
    id: str, indicator_id: str, created: datetime, seen: datetime
) -> JsonObject:
    """
    @param created: The time of the document.
    @param seen: The time of the event.
    @return: The beginning of the document of a sighting that was seen once.
    """
    return {
        "type": "sighting",
        "spec_version": "2.1",
        "id": id,
        "created": timestamp(created),
        "modified": timestamp(created),
        "first_seen": timestamp(seen),
        "last_seen": timestamp(seen),
        "count": 1,
        "sighting_of_ref": indicator_id,
    }


def event_time(event: JsonObject) -> datetime | None:
    """
    Read the time of an event.

    The time is in C{timestamp} (Suricata), C{ts} (Zeek) or C{time} (OCSF): as an ISO 8601 text,
    or as a number since the epoch, which is in milliseconds in C{time} and otherwise in seconds.
    A text without a time zone is in UTC.

    @return: The time in UTC; C{None} if the event has none, or one that no document may have.
    """
    for field, unit in _TIMES:
        time = _time(event.get(field), unit)
        if time is not None and time.year >= FIRST_YEAR:
            return time
    return None


_TIMES = (
    ("timestamp", timedelta(seconds=1)),
    ("ts", timedelta(seconds=1)),
    ("time", timedelta(milliseconds=1)),
)


def _time(value: object, unit: timedelta) -> datetime | None:
    with suppress(ValueError, OverflowError):
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return EPOCH + value * unit
    return None
