"""
The manage endpoint: requests and their replies, in both dialects.

A request is one JSON object. C{subscribe}, C{unsubscribe} and C{heartbeat} are Threat
Bus's requests; C{publish} and C{status} are tbvast's own. A C{topic} is the own topic of a
subscription, and C{topics} are those that a subscriber requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from tbvast.errors import LimitExceeded, ProtocolInvalid
from tbvast.protocol.damaged_json import Work, split_array, split_request, too_many
from tbvast.protocol.topics import Dialect, dialect_of
from tbvast.stix.documents import UNREADABLE, JsonObject, JsonValue
from tbvast.values import Position

T = TypeVar("T")

PROTOCOL = "tbvast/1"
"""
The name of tbvast's extension of the protocol.
"""

NAME_LENGTH = 256
"""
The most characters of a topic, or of a subscriber's name.
"""

REPORT_BYTES = 65536
"""
The most bytes of a subscriber's report in a heartbeat.
"""

LARGEST_NUMBER = (1 << 53) - 1
"""
The largest number of a journal that a position may have: every program that reads JSON can
represent it.
"""

FIELD_BYTES = 1 << 18
"""
The most bytes of a property of a request, other than its documents.
"""

DECODED_BYTES = 1 << 22
DECODED_COMMAS = 50_000
"""
The most bytes of a request, and commas in its documents, that are given to the decoder, which
cannot be interrupted, and makes an object for each document.
"""


class Subscribe(msgspec.Struct, frozen=True):
    """
    A request to subscribe.

    @ivar topics: At least one.
    @ivar snapshot: The age of the snapshot to begin with, in days; C{0} for no snapshot.
    @ivar dialect: The dialect of the topics.
    @ivar protocol: L{PROTOCOL} if the subscriber speaks it.
    @ivar name: The subscriber's name for itself; may be empty.
    @ivar resume: The subscriber's position, if it speaks L{PROTOCOL} and was subscribed
        before.
    """

    topics: tuple[str, ...]
    snapshot: int
    dialect: Dialect
    protocol: str
    name: str
    resume: Position | None = None


class Unsubscribe(msgspec.Struct, frozen=True):
    """
    A request to end a subscription.

    @ivar dialect: The dialect of the reply.
    """

    topic: str
    dialect: Dialect


class Heartbeat(msgspec.Struct, frozen=True):
    """
    A sign of life of a subscriber.

    @ivar report: The subscriber's state in its own terms, for people to read.
    """

    topic: str
    report: JsonObject


class Publish(msgspec.Struct, frozen=True):
    """
    A request to publish items, which is answered when they are durable.

    @ivar documents: Indicators and sightings, each a JSON document.
    """

    documents: tuple[bytes, ...]


class Status(msgspec.Struct, frozen=True):
    """
    A request for the status of the bus.
    """


class Unknown(msgspec.Struct, frozen=True):
    """
    A JSON object that is not a known request.

    @ivar dialect: The dialect of the reply.
    """

    dialect: Dialect


ShortRequest = Subscribe | Unsubscribe | Heartbeat | Unknown
"""
A request that is answered at once.
"""

Request = ShortRequest | Publish | Status


class _Document(msgspec.Struct):
    """
    A request. Its properties are not decoded before their size is known.
    """

    action: msgspec.Raw = msgspec.Raw(b"null")
    topic: msgspec.Raw = msgspec.Raw(b"null")
    snapshot: msgspec.Raw = msgspec.Raw(b"0")
    protocol: msgspec.Raw = msgspec.Raw(b'""')
    name: msgspec.Raw = msgspec.Raw(b'""')
    report: msgspec.Raw = msgspec.Raw(b"null")
    documents: msgspec.Raw = msgspec.Raw(b"[]")
    resume: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Document)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.encode


def decode_request(raw: bytes, most: int) -> Work[Request]:
    """
    Decode a request. The documents of a publish request may be malformed: the bus judges
    each of them alone.

    @param most: The most documents of a publish request.
    @raise RequestUnsplittable: If it is a publish request whose documents have no
        recognisable bounds.
    @raise LimitExceeded: If it has too many documents, a property is too long, or the position
        to resume from is none that a journal can have.
    @raise ProtocolInvalid: If it is not a JSON object, or a property has the wrong type.
    """
    reason = f"only one to publish may be longer than {DECODED_BYTES} bytes"
    document: _Document | None = None
    if len(raw) <= DECODED_BYTES:
        try:
            document = _decoder.decode(raw)
        except UNREADABLE as e:
            reason = str(e)
            yield
    if document is None:
        documents = yield from split_request(raw, most)
        if documents is None:
            raise ProtocolInvalid("request", raw, f"a request ({reason})")
        return Publish(documents)
    action = _value("action", document.action)
    listed = bytes(document.documents)
    if listed[:1] != b"[":
        raise ProtocolInvalid("documents", listed, "a list of documents")
    if action == "publish":
        return Publish((yield from _split(listed, most)))
    return Status() if action == "status" else _interpret(document, action)


def _split(raw: bytes, most: int) -> Work[tuple[bytes, ...]]:
    if raw.count(b",") > DECODED_COMMAS:
        return (yield from split_array(raw, most))
    if len(raw) > FIELD_BYTES:
        yield
    found = _list_decoder.decode(raw)
    if len(found) > most:
        raise too_many(most)
    return tuple(map(bytes, found))


def _value(field: str, raw: msgspec.Raw) -> JsonValue:
    text = bytes(raw)
    if len(text) > FIELD_BYTES:
        raise LimitExceeded(field, text, f"at most {FIELD_BYTES} bytes long")
    try:
        return msgspec.json.decode(text)
    except UNREADABLE as e:
        raise ProtocolInvalid(field, text, f"JSON ({e})") from e


def _interpret(document: _Document, action: JsonValue) -> Request:
    topics = _topics(_value("topic", document.topic))
    report = _report(bytes(document.report))
    dialect = dialect_of(topics[0]) if len(topics) == 1 else Dialect.STIX2
    if not topics or not isinstance(action, str):
        return Unknown(dialect)
    if action == "subscribe":
        return Subscribe(
            topics=tuple(_text("topic", topic) for topic in topics),
            snapshot=_days(_value("snapshot", document.snapshot)),
            dialect=dialect,
            protocol=_text("protocol", _value("protocol", document.protocol)),
            name=_text("name", _value("name", document.name)),
            resume=_resume(document.resume),
        )
    if action == "unsubscribe" and len(topics) == 1:
        return Unsubscribe(topics[0], dialect)
    if action == "heartbeat" and len(topics) == 1:
        return Heartbeat(topics[0], report)
    return Unknown(dialect)


def _topics(value: JsonValue) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(topic, str) for topic in listed):
        raise ProtocolInvalid("topic", value, "a topic or a list of topics")
    return tuple(dict.fromkeys(listed))


def _days(value: JsonValue) -> int:
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ProtocolInvalid("snapshot", value, "a whole number of days")
    return value


def _report(raw: bytes) -> JsonObject:
    if len(raw) > REPORT_BYTES:
        raise ProtocolInvalid("report", raw, f"at most {REPORT_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=JsonObject | None) or {}
    except UNREADABLE as e:
        raise ProtocolInvalid("report", raw, f"a JSON object ({e})") from e


def _resume(raw: msgspec.Raw) -> Position | None:
    value = _value("resume", raw)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise LimitExceeded("resume", value, "a position of the form {plugin, number}")
    plugin, number = value.get("plugin"), value.get("number")
    if not isinstance(plugin, str) or len(plugin) > NAME_LENGTH:
        raise LimitExceeded("resume.plugin", plugin, f"a text of at most {NAME_LENGTH} characters")
    # A boolean is an integer in Python.
    if type(number) is not int or not 0 <= number <= LARGEST_NUMBER:
        raise LimitExceeded("resume.number", number, f"a whole number from 0 to {LARGEST_NUMBER}")
    return Position(plugin, number)


def _text(field: str, value: JsonValue) -> str:
    if not isinstance(value, str) or len(value) > NAME_LENGTH:
        raise ProtocolInvalid(field, value, f"a text of at most {NAME_LENGTH} characters")
    return value


SUCCESS = _encode({"status": "success"})
ERROR = _encode({"status": "error"})


def refused(reason: str) -> bytes:
    """
    @return: The reply to a request that the bus refuses.
    """
    return _encode({"status": "error", "reason": reason})


def unknown_request(dialect: Dialect) -> bytes:
    """
    @return: The reply to an unknown request.
    """
    if dialect is Dialect.VAST:
        return b"Unknown request"
    return _encode({"status": "unknown request"})


def unsubscribed(dialect: Dialect, known: bool) -> bytes:
    """
    @param known: Whether the topic is that of a subscription; only stix2 reports it.
    @return: The reply to an unsubscribe request.
    """
    if dialect is Dialect.VAST:
        return b"Success"
    return SUCCESS if known else ERROR


def subscribed(
    topic: str, host: str, pub: int, sub: int, beginning: Position | None = None
) -> bytes:
    """
    @param host: A host name of the bus that the subscriber can reach.
    @param pub: The port of the pub endpoint.
    @param sub: The port of the sub endpoint.
    @param beginning: The position after which the subscriber is sent everything, if it
        speaks L{PROTOCOL}.
    @return: The reply to a subscribe request, with the keys of both dialects.
    """
    reply: JsonObject = {
        "topic": topic,
        "pub_port": pub,
        "sub_port": sub,
        "pub_endpoint": f"{host}:{pub}",
        "sub_endpoint": f"{host}:{sub}",
        "status": "success",
    }
    if beginning is not None:
        reply |= {"protocol": PROTOCOL, **msgspec.structs.asdict(beginning)}
    return _encode(reply)


def _request(action: str, **properties: object) -> bytes:
    given = {name: value for name, value in properties.items() if value is not None}
    return _encode({"action": action, **given})


def encode_subscribe(
    topics: Sequence[str], snapshot: int, name: str, resume: Position | None = None
) -> bytes:
    """
    Encode the request of a subscriber that speaks L{PROTOCOL}; see L{Subscribe}.
    """
    return _request(
        "subscribe",
        topic=topics if len(topics) > 1 else topics[0],
        snapshot=snapshot,
        protocol=PROTOCOL,
        name=name,
        resume=resume,
    )


def encode_unsubscribe(topic: str) -> bytes:
    """
    Encode a request to end a subscription.
    """
    return _request("unsubscribe", topic=topic)


def encode_heartbeat(topic: str, report: JsonObject | None = None) -> bytes:
    """
    Encode a heartbeat.

    @param report: The subscriber's state; only for a bus that speaks L{PROTOCOL}.
    """
    return _request("heartbeat", topic=topic, report=report)


def encode_publish(documents: Sequence[bytes]) -> bytes:
    """
    Encode a request to publish items; see L{Publish}.
    """
    return b'{"action":"publish","documents":[' + b",".join(documents) + b"]}"


def encode_status() -> bytes:
    """
    Encode a request for the status of the bus.
    """
    return _request("status")


class Subscribed(msgspec.Struct, frozen=True):
    """
    A bus's reply to a subscribe request, in either dialect.

    @ivar pub_port: The port of the bus's pub endpoint.
    @ivar sub_port: The port of the bus's sub endpoint.
    @ivar protocol: L{PROTOCOL} if the bus speaks it.
    @ivar plugin: The bus's identity, if it speaks L{PROTOCOL}.
    @ivar number: The number after which the bus sends everything, if it speaks
        L{PROTOCOL}. A snapshot of earlier items comes first, unless the bus resumes from
        the subscriber's position.
    """

    topic: Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH)]
    pub_port: Annotated[int, Meta(gt=0, lt=1 << 16)]
    sub_port: Annotated[int, Meta(gt=0, lt=1 << 16)]
    status: Literal["success"] = "success"
    protocol: str = ""
    plugin: str = ""
    number: int = 0

    @property
    def position(self) -> Position | None:
        """
        The position after which the bus sends everything; C{None} if it has no numbers.
        """
        return Position(self.plugin, self.number) if self.protocol == PROTOCOL else None


class Published(msgspec.Struct, frozen=True):
    """
    A bus's reply to a publish request.

    @ivar outcomes: One word for each document, in order: C{accepted},
        C{repeated}, C{outdated}, C{unknown} or C{refused}.
    @ivar reasons: The reason for each document that was refused or is outdated, by its
        index.
    """

    outcomes: list[str]
    reasons: dict[int, str]
    status: str = "success"


def encode_published(outcomes: Sequence[str], reasons: dict[int, str]) -> bytes:
    """
    Encode the reply to a publish request; see L{Published}.
    """
    return _encode(Published(list(outcomes), reasons))


def decode_reply(raw: bytes) -> JsonObject:
    """
    Decode any reply of the stix2 dialect.

    @raise ProtocolInvalid: If it is not a JSON object.
    """
    return _decode(raw, JsonObject)


def refusal(raw: bytes) -> str | None:
    """
    @param raw: Any reply of the stix2 dialect.
    @return: The reason for a refusal, or C{""} without one; C{None} if it tells of success.
    """
    try:
        reply = decode_reply(raw)
    except ProtocolInvalid:
        return ""
    reason = reply.get("reason")
    if reply.get("status") == "success":
        return None
    return reason if isinstance(reason, str) else ""


def decode_subscribed(raw: bytes) -> Subscribed:
    """
    Decode the reply to a subscribe request.

    @raise ProtocolInvalid: If it is a refusal, not such a reply, or one with impossible
        values.
    """
    subscribed = _decode(raw, Subscribed)
    if subscribed.protocol == PROTOCOL:
        if not 0 < len(subscribed.plugin) <= NAME_LENGTH:
            raise ProtocolInvalid("plugin", subscribed.plugin, "the identity of a bus")
        if not 0 <= subscribed.number < 1 << 63:
            raise ProtocolInvalid("number", subscribed.number, "a number of a journal")
    return subscribed


def decode_published(raw: bytes) -> Published:
    """
    Decode the reply to a publish request.

    @raise ProtocolInvalid: If it is a refusal, or not such a reply.
    """
    return _decode(raw, Published)


def _decode(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE as e:
        raise ProtocolInvalid("reply", raw, f"the reply that was expected ({e})") from e
