"""
The manage endpoint: requests and their replies, in both dialects.

A request is one JSON object. Beside Threat Bus's C{subscribe}, C{unsubscribe}
and C{heartbeat} there are C{publish} and C{status}, which only tbvast knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tbvast.errors import ProtocolInvalid
from tbvast.protocol.publish_request import split_request
from tbvast.protocol.topics import Dialect, dialect_of
from tbvast.values import Position

PROTOCOL = "tbvast/1"
"""
The name of tbvast's extension of the protocol.
"""


NAME_LENGTH = 256
"""
The most characters of a topic, or of what a subscriber calls itself.
"""

REPORT_BYTES = 65536
"""
The most bytes of what a subscriber says of itself with a heartbeat.
"""


class Subscribe(msgspec.Struct, frozen=True):
    """
    @ivar topics: At least one.
    @ivar snapshot: Days of intel wanted first; C{0} for none.
    @ivar protocol: L{PROTOCOL} if the subscriber speaks it.
    @ivar name: What the subscriber calls itself; may be empty.
    @ivar resume: Where it has got to, if it speaks L{PROTOCOL} and has been here.
    """

    topics: tuple[str, ...]
    snapshot: int
    dialect: Dialect
    protocol: str
    name: str
    resume: Position | None = None


class Unsubscribe(msgspec.Struct, frozen=True):
    """
    @ivar topic: The subscription's own topic.
    """

    topic: str
    dialect: Dialect


class Heartbeat(msgspec.Struct, frozen=True):
    """
    @ivar topic: The subscription's own topic.
    @ivar report: What the subscriber says of itself, for people to read.
    """

    topic: str
    report: dict[str, Any]


class Publish(msgspec.Struct, frozen=True):
    """
    @ivar documents: Indicators and sightings, each a JSON document.
    """

    documents: tuple[bytes, ...]


class Status(msgspec.Struct, frozen=True):
    """
    Somebody wants to know how the bus is doing.
    """


class Unknown(msgspec.Struct, frozen=True):
    """
    A JSON object that asks for nothing known.
    """

    dialect: Dialect


Request = Subscribe | Unsubscribe | Heartbeat | Publish | Status | Unknown


class _Document(msgspec.Struct):
    action: Any = None
    topic: Any = None
    snapshot: Any = 0
    protocol: Any = ""
    name: Any = ""
    report: msgspec.Raw = msgspec.Raw(b"null")
    documents: list[msgspec.Raw] = []
    resume: Position | None = None


_decoder = msgspec.json.Decoder(_Document)
_encode = msgspec.json.encode


def decode_request(raw: bytes) -> Request:
    """
    Of a publish request only the documents need not be JSON: each is judged alone.

    @raise RequestUnsplittable: If it is a publish request of which it cannot be told where
        a document ends.
    @raise ProtocolInvalid: If it is not a JSON object, or a property is not of
        its type.
    """
    try:
        document = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        documents = split_request(raw)
        if documents is None:
            raise ProtocolInvalid("request", raw, f"a request ({e})") from e
        return Publish(documents)
    return _interpret(document)


def _interpret(document: _Document) -> Request:
    action = document.action
    if action == "status":
        return Status()
    if action == "publish":
        return Publish(tuple(bytes(raw) for raw in document.documents))
    topics = _topics(document.topic)
    report = _report(bytes(document.report))
    dialect = dialect_of(topics[0]) if len(topics) == 1 else Dialect.STIX2
    if not topics or not isinstance(action, str):
        return Unknown(dialect)
    if action == "subscribe":
        return Subscribe(
            topics=tuple(_text("topic", topic) for topic in topics),
            snapshot=_days(document.snapshot),
            dialect=dialect,
            protocol=_text("protocol", document.protocol),
            name=_text("name", document.name),
            resume=document.resume,
        )
    if action == "unsubscribe" and len(topics) == 1:
        return Unsubscribe(topics[0], dialect)
    if action == "heartbeat" and len(topics) == 1:
        return Heartbeat(topics[0], report)
    return Unknown(dialect)


def _topics(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(topic, str) for topic in listed):
        raise ProtocolInvalid("topic", value, "a topic or a list of topics")
    return tuple(dict.fromkeys(listed))


def _days(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ProtocolInvalid("snapshot", value, "a whole number of days")
    return value


def _report(raw: bytes) -> dict[str, Any]:
    if len(raw) > REPORT_BYTES:
        raise ProtocolInvalid("report", raw, f"at most {REPORT_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=dict[str, Any] | None) or {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolInvalid("report", raw, f"a JSON object ({e})") from e


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > NAME_LENGTH:
        raise ProtocolInvalid(field, value, f"a text of at most {NAME_LENGTH} characters")
    return value


SUCCESS = _encode({"status": "success"})
ERROR = _encode({"status": "error"})


def refused(reason: str) -> bytes:
    """
    The reply to a request that somebody may not make.
    """
    return _encode({"status": "error", "reason": reason})


def unknown_request(dialect: Dialect) -> bytes:
    """
    The reply to what asks for nothing known.
    """
    if dialect is Dialect.VAST:
        return b"Unknown request"
    return _encode({"status": "unknown request"})


def unsubscribed(dialect: Dialect, known: bool) -> bytes:
    """
    The reply to an unsubscribe request; only stix2 tells an unknown topic.
    """
    if dialect is Dialect.VAST:
        return b"Success"
    return SUCCESS if known else ERROR


def subscribed(
    topic: str, host: str, pub: int, sub: int, beginning: Position | None = None
) -> bytes:
    """
    The reply to a subscribe request: the union of both dialects' keys.

    @param topic: The subscription's own topic.
    @param host: One that the subscriber can reach.
    @param beginning: The number after which the subscriber is sent everything, for
        one that speaks L{PROTOCOL}.
    """
    reply: dict[str, Any] = {
        "topic": topic,
        "pub_port": pub,
        "sub_port": sub,
        "pub_endpoint": f"{host}:{pub}",
        "sub_endpoint": f"{host}:{sub}",
        "status": "success",
    }
    if beginning is not None:
        reply |= {
            "protocol": PROTOCOL,
            "plugin": beginning.plugin,
            "number": beginning.number,
        }
    return _encode(reply)


def encode_subscribe(
    topics: Sequence[str], snapshot: int, name: str, resume: Position | None = None
) -> bytes:
    """
    A subscribe request, from a subscriber that speaks L{PROTOCOL}.

    @param snapshot: Days.
    @param resume: Where the subscriber has got to, if anywhere.
    """
    request: dict[str, Any] = {
        "action": "subscribe",
        "topic": list(topics) if len(topics) > 1 else topics[0],
        "snapshot": snapshot,
        "protocol": PROTOCOL,
        "name": name,
    }
    if resume is not None:
        request["resume"] = resume
    return _encode(request)


def encode_unsubscribe(topic: str) -> bytes:
    return _encode({"action": "unsubscribe", "topic": topic})


def encode_heartbeat(topic: str, report: dict[str, Any] | None = None) -> bytes:
    """
    @param report: Only for a bus that speaks L{PROTOCOL}.
    """
    request: dict[str, Any] = {"action": "heartbeat", "topic": topic}
    if report is not None:
        request["report"] = report
    return _encode(request)


def encode_publish(documents: Sequence[bytes]) -> bytes:
    """
    @param documents: Indicators and sightings, each a JSON document.
    """
    return b'{"action":"publish","documents":[' + b",".join(documents) + b"]}"


def encode_status() -> bytes:
    return _encode({"action": "status"})


class Subscribed(msgspec.Struct, frozen=True):
    """
    A bus's reply to a subscribe request, whatever its dialect.

    @ivar protocol: L{PROTOCOL} if the bus speaks it.
    @ivar plugin: The bus's identity, if it speaks L{PROTOCOL}.
    @ivar number: The number after which everything is sent, if it does; a snapshot
        of what was before comes first, unless the subscriber was there already.
    """

    topic: str
    pub_port: int
    sub_port: int
    status: str = "success"
    protocol: str = ""
    plugin: str = ""
    number: int = 0


class Published(msgspec.Struct, frozen=True):
    """
    A bus's reply to a publish request.

    @ivar outcomes: One word for each document, in order: C{accepted},
        C{repeated}, C{outdated}, C{unknown} or C{refused}.
    @ivar reasons: Why, by the position of each document that was refused or is outdated.
    """

    outcomes: list[str]
    reasons: dict[int, str]
    status: str = "success"


def encode_published(outcomes: Sequence[str], reasons: dict[int, str]) -> bytes:
    return _encode(Published(list(outcomes), reasons))


def decode_reply(raw: bytes) -> dict[str, Any]:
    """
    Any reply of the stix2 dialect.

    @raise ProtocolInvalid: If it is not a JSON object.
    """
    return _decode(raw, dict[str, Any])


def decode_subscribed(raw: bytes) -> Subscribed:
    """
    @raise ProtocolInvalid: If it is a refusal, no reply to a subscribe request, or one that
        nobody can follow.
    """
    subscribed: Subscribed = _decode(raw, Subscribed)
    if subscribed.status != "success":
        raise ProtocolInvalid("status", subscribed.status, "success")
    if not 0 < len(subscribed.topic) <= NAME_LENGTH:
        raise ProtocolInvalid("topic", subscribed.topic, "the topic of a subscription")
    for field in ("pub_port", "sub_port"):
        port = getattr(subscribed, field)
        if not 0 < port < 1 << 16:
            raise ProtocolInvalid(field, port, "a whole number from 1 to 65535")
    if subscribed.protocol == PROTOCOL:
        if not 0 < len(subscribed.plugin) <= NAME_LENGTH:
            raise ProtocolInvalid("plugin", subscribed.plugin, "the identity of a bus")
        if not 0 <= subscribed.number < 1 << 63:
            raise ProtocolInvalid("number", subscribed.number, "a number of a journal")
    return subscribed


def decode_published(raw: bytes) -> Published:
    """
    @raise ProtocolInvalid: If it is a refusal, or no reply to a publish request.
    """
    return _decode(raw, Published)


def _decode(raw: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolInvalid("reply", raw, f"the reply that was expected ({e})") from e
