"""
The common parts of STIX documents: ids, timestamps and decoding.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import msgspec

from tbvast.errors import DocumentInvalid

T = TypeVar("T")

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""
A STIX timestamp: RFC 3339 with a time zone.
"""

NAMESPACE = uuid.UUID("2c7a2c0e-7c0b-5d0a-9f0d-3c0b6c2a7f51")
"""
The namespace of ids that are derived from content.
"""


def id_of(kind: str) -> re.Pattern[str]:
    """
    @param kind: A type of objects, as a regular expression.
    @return: The pattern of the STIX ids of this type.
    """
    digit = "[0-9a-fA-F]"
    return re.compile(rf"{kind}--{digit}{{8}}-{digit}{{4}}-{digit}{{4}}-{digit}{{4}}-{digit}{{12}}")


STIX_ID = id_of("([a-z][a-z0-9-]*)")
"""
The pattern of the STIX ids of all types; the first group is the type.
"""

UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
"""
The pattern of UUIDs of the variant that RFC 4122 defines, which excludes the nil UUID. Only these
may enter the bus; journals may hold any that L{id_of} allows.
"""

JsonValue = Any
JsonObject = dict[str, JsonValue]
"""
A JSON value, and a JSON object, decoded.
"""

ShortTime = Annotated[str, msgspec.Meta(min_length=20, max_length=27)]
"""
A timestamp with at most microseconds, if it ends with C{Z}. Its form is not checked otherwise.
"""

TIMESTAMP = "a timestamp such as 2024-05-17T12:00:00.000Z"
"""
The description of a valid timestamp in errors.
"""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""
The exceptions that a decoder raises of untrusted bytes.
"""

OptionalTime = Annotated[Time | None, msgspec.Meta(description=TIMESTAMP)]
"""
A timestamp, or none, with its description for errors.
"""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    """
    @return: A time in microseconds since the epoch.
    """
    return (time - EPOCH) // MICROSECOND


def from_microseconds(value: int) -> datetime:
    """
    The inverse of L{microseconds}. Values beyond the calendar become its first or last time.
    """
    return EPOCH + min(max(value, _FIRST), _LAST) * MICROSECOND


def timestamp(time: datetime) -> str:
    """
    @return: A time in the notation of STIX: in UTC, to the microsecond.
    """
    text = from_microseconds(microseconds(time)).isoformat(timespec="microseconds")
    return f"{text[:-6]}Z"


_FIRST = microseconds(datetime.min.replace(tzinfo=UTC))
_LAST = microseconds(datetime.max.replace(tzinfo=UTC))


def derived_id(kind: str, *parts: bytes) -> str:
    """
    @param kind: The type of the object.
    @param parts: The content that identifies the object.
    @return: A STIX id that depends only on these.
    """
    digest = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
    for part in (kind.encode(), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return f"{kind}--{uuid.UUID(bytes=digest.digest()[:16], version=5)}"


def decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """
    Decode a typed document.

    @param decoder: Of a struct whose fields have a C{Meta}: its description follows "is not".
    @raise DocumentInvalid: If C{raw} is no such document; with the first wrong field.
    """
    try:
        if not raw.isascii():
            str(raw, "utf-8")  # the decoder does not check fields that it skips
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError:
            document = msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise DocumentInvalid("document", raw, "UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise DocumentInvalid("document", raw, f"JSON ({e})") from None
    raise _wrong_field(decoder.type, document)


def _wrong_field(struct: Any, document: JsonValue) -> DocumentInvalid:
    if not isinstance(document, dict):
        return DocumentInvalid("document", document, "a JSON object")
    for field in msgspec.structs.fields(struct):
        name, (meta, *_) = field.encode_name, field.type.__metadata__
        if name not in document:
            if field.required:
                return DocumentInvalid(name, None, meta.description)
            continue
        try:
            msgspec.convert(document[name], field.type)
        except msgspec.ValidationError:
            return DocumentInvalid(name, document[name], meta.description)
    return DocumentInvalid("document", document, "such a document")


class _Typed(msgspec.Struct, gc=False):
    type: str | None = None


_typed_decoder = msgspec.json.Decoder(_Typed)


def type_of(raw: bytes | msgspec.Raw) -> str | None:
    """
    @return: The type of a STIX object; C{None} if C{raw} is none.
    """
    with suppress(*UNREADABLE):
        return _typed_decoder.decode(raw).type
    return None


def json_object(raw: bytes) -> JsonObject:
    """
    Decode a document without types.

    @raise DocumentInvalid: If C{raw} is not a readable JSON object.
    """
    try:
        return msgspec.json.decode(raw, type=JsonObject)
    except UNREADABLE as e:
        raise DocumentInvalid("document", raw, f"a JSON object ({e})") from None
