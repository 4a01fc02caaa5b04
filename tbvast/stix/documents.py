"""
What indicators and sightings have in common as STIX documents.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from tbvast.errors import Invalid

T = TypeVar("T")

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""
A STIX timestamp: RFC 3339 with a time zone.
"""

NAMESPACE = uuid.UUID("2c7a2c0e-7c0b-5d0a-9f0d-3c0b6c2a7f51")
"""
The namespace of the ids that are derived from content.
"""


def id_of(kind: str) -> re.Pattern[str]:
    """
    What the STIX ids of one type of objects look like.

    @param kind: The type, as a regular expression.
    """
    digit = "[0-9a-fA-F]"
    return re.compile(rf"{kind}--{digit}{{8}}-{digit}{{4}}-{digit}{{4}}-{digit}{{4}}-{digit}{{12}}")


STIX_ID = id_of("([a-z][a-z0-9-]*)")
"""
The ids of all types; the type is the first group.
"""

UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
"""
A UUID of the variant that RFC 4122 defines, which the nil UUID is not of: the only one that
may enter the bus; L{id_of} is what journals may hold.
"""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    """
    Microseconds since the epoch.
    """
    return (time - EPOCH) // MICROSECOND


def from_microseconds(value: int) -> datetime:
    """
    The reverse of L{microseconds}; what the calendar does not hold becomes its end.
    """
    return EPOCH + min(max(value, _FIRST), _LAST) * MICROSECOND


def timestamp(time: datetime) -> str:
    """
    A time as STIX writes it: UTC, to the microsecond.
    """
    text = from_microseconds(microseconds(time)).isoformat(timespec="microseconds")
    return f"{text[:-6]}Z"


_FIRST = microseconds(datetime.min.replace(tzinfo=UTC))
_LAST = microseconds(datetime.max.replace(tzinfo=UTC))


def derived_id(kind: str, *parts: bytes) -> str:
    """
    A STIX id that depends on nothing but its parts.

    @param kind: The object's type.
    """
    digest = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
    for part in (kind.encode(), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return f"{kind}--{uuid.UUID(bytes=digest.digest()[:16], version=5)}"


def decode(
    decoder: msgspec.json.Decoder[T],
    raw: bytes,
    refusal: type[Invalid],
    expected: Mapping[str, str],
) -> T:
    """
    A typed document.

    @param refusal: What to raise.
    @param expected: For each field of C{T} what its value has to be, in words.
    @raise Invalid: A C{refusal}, if C{raw} is no such document; it names the first
        field that is wrong, in the order of C{expected}.
    """
    try:
        if not raw.isascii():
            str(raw, "utf-8")  # what is skipped while decoding is not looked at
        return decoder.decode(raw)
    except msgspec.ValidationError:
        _explain(decoder, raw, refusal, expected)
    except UnicodeDecodeError:
        raise refusal("document", raw, "UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise refusal("document", raw, f"JSON ({e})") from None


def _explain(
    decoder: msgspec.json.Decoder[Any],
    raw: bytes,
    refusal: type[Invalid],
    expected: Mapping[str, str],
) -> NoReturn:
    """
    Find out which field of a document is wrong.
    """
    try:
        document: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as e:
        raise refusal("document", raw, f"JSON ({e})") from None
    if not isinstance(document, dict):
        raise refusal("document", document, "a JSON object")
    type_: Any = decoder.type
    for field in msgspec.structs.fields(type_):
        name = field.encode_name
        if name not in document:
            if field.required:
                raise refusal(name, None, expected[name])
            continue
        try:
            msgspec.convert(document[name], field.type)
        except msgspec.ValidationError:
            raise refusal(name, document[name], expected[name]) from None
    raise refusal("document", document, "such a document")


def json_object(raw: bytes, refusal: type[Invalid]) -> dict[str, Any]:
    """
    A document as it is.

    @raise Invalid: A C{refusal}, if C{raw} is no JSON object that can be read whole.
    """
    try:
        found: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise refusal("document", raw, f"a JSON object ({e})") from None
    return found
