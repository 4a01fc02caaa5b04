"""
The frames of the pub and sub endpoints: C{TOPIC SPACE PAYLOAD}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NoReturn

import msgspec

from tbvast.errors import DialectUnspoken, DocumentInvalid, ProtocolInvalid
from tbvast.protocol.topics import Dialect, Stream
from tbvast.protocol.vast_dialect import (
    admit_vast_sighting,
    encode_vast_intel,
    encode_vast_sighting,
)
from tbvast.stix.admission import admit, admit_indicator, admit_sighting
from tbvast.stix.documents import UNREADABLE
from tbvast.stix.indicators import Indicator, compatible, decode_indicator
from tbvast.stix.limits import LARGEST_SIGHTING
from tbvast.stix.sightings import Sighting, compatible_sighting, decode_sighting

Item = Indicator | Sighting
"""
An item that the bus carries.
"""

INDICATOR_TOPIC = b"stix2/indicator"
SIGHTING_TOPIC = b"stix2/sighting"
VAST_SIGHTING_TOPIC = b"vast/sightings"
ENVELOPE_TOPIC = b"threatbus/snapshotenvelope"


LONGEST_ENVELOPE = LARGEST_SIGHTING + 4096
"""
The most bytes of an answer to a snapshot request.
"""


class Envelope(msgspec.Struct, frozen=True):
    """
    One item of an application's answer to a snapshot request.

    @ivar snapshot: The request's id.
    """

    snapshot: str
    item: Item


class _Envelope(msgspec.Struct):
    type: Literal["snapshotenvelope"]
    snapshot_type: int
    snapshot_id: str
    body: msgspec.Raw


_envelope_decoder = msgspec.json.Decoder(_Envelope)


def decode_envelope(payload: bytes) -> Envelope:
    """
    Decode one item of an answer to a snapshot request.

    @raise Invalid: If the payload is not an envelope, or its body does not match its type.
    """
    if len(payload) > LONGEST_ENVELOPE:
        raise ProtocolInvalid("envelope", payload, f"at most {LONGEST_ENVELOPE} bytes long")
    try:
        envelope = _envelope_decoder.decode(payload)
    except UNREADABLE as e:
        raise ProtocolInvalid("envelope", payload, f"a snapshot envelope ({e})") from e
    decode = _SNAPSHOT_BODIES.get(envelope.snapshot_type)
    if decode is None:
        raise ProtocolInvalid("snapshot_type", envelope.snapshot_type, "1 or 2")
    return Envelope(envelope.snapshot_id, decode(bytes(envelope.body)))


def encode_snapshot_request(snapshot: str, stream: Stream, seconds: int) -> bytes:
    """
    Encode a snapshot request, as it follows a subscription's own topic in a frame.

    @param snapshot: The request's id, which the answers repeat.
    @param seconds: The age of the oldest requested item, in seconds.
    """
    return b"snapshotrequest " + msgspec.json.encode(
        {
            "type": "snapshotrequest",
            "snapshot_type": _SNAPSHOT_TYPES[stream],
            "snapshot_id": snapshot,
            "snapshot": seconds,
        }
    )


def _admit_in_force(raw: bytes) -> Indicator:
    indicator = admit_indicator(raw)
    if indicator.pattern is None:
        raise DocumentInvalid("pattern", None, "a pattern, in an answer to a snapshot request")
    return indicator


_SNAPSHOT_TYPES = {Stream.INTEL: 1, Stream.SIGHTING: 2}
_SNAPSHOT_BODIES: dict[int, Callable[[bytes], Item]] = {1: _admit_in_force, 2: admit_sighting}


def decode_report(message: list[bytes]) -> Item | Envelope:
    """
    Decode and admit a message of the sub endpoint.

    @raise Invalid: If the message is not one frame, its topic is not in L{REPORT_TOPICS},
        or its payload does not match the topic.
    """
    if len(message) != 1:
        raise ProtocolInvalid("message", len(message), "a message of one frame")
    topic, _, payload = message[0].partition(b" ")
    decode = _REPORTS.get(topic)
    if decode is None:
        raise ProtocolInvalid("topic", topic, "a topic of the sub endpoint")
    return decode(payload)


INTEL_TOPICS_2020_11 = (b"threatbus/intel", b"threatbus/sighting")
"""
The topics on which programs of Threat Bus 2020.11 report C{Intel} and C{Sighting} objects.
"""


def unspoken(payload: bytes) -> DialectUnspoken:
    """
    The error of a message in the dialect of Threat Bus 2020.11.
    """
    return DialectUnspoken(
        "dialect",
        payload,
        "one that is spoken: it is that of Threat Bus 2020.11. Update the program to a version"
        " that sends STIX 2.1, such as 2022.5.16",
    )


def admit_document(raw: bytes) -> Item:
    """
    Admit a document of a publish request.

    @raise Invalid: As L{tbvast.stix.admission.admit}; also if it is an object of Threat Bus
        2020.11.
    """
    try:
        return admit(raw)
    except DocumentInvalid:
        if b'"intel_type"' in raw:
            raise unspoken(raw) from None
        raise


def _refuse_2020_11(payload: bytes) -> NoReturn:
    raise unspoken(payload)


_REPORTS: dict[bytes, Callable[[bytes], Item | Envelope]] = {
    INDICATOR_TOPIC: admit_indicator,
    SIGHTING_TOPIC: admit_sighting,
    VAST_SIGHTING_TOPIC: admit_vast_sighting,
    ENVELOPE_TOPIC: decode_envelope,
    **dict.fromkeys(INTEL_TOPICS_2020_11, _refuse_2020_11),
}

REPORT_TOPICS = tuple(_REPORTS)
"""
The topics that the sub endpoint receives.
"""


def stream_of(item: Item) -> Stream:
    """
    @return: The stream that an item belongs to.
    """
    return _INTEL if isinstance(item, Indicator) else _SIGHTING


def render(dialect: Dialect, item: Item) -> tuple[bytes, ...]:
    """
    Encode an item, as L{render_document} does.
    """
    if dialect is _VAST and isinstance(item, Indicator):
        return _vast_intel(item)
    return render_document(dialect, stream_of(item), item.raw)


def _vast_intel(indicator: Indicator) -> tuple[bytes, ...]:
    return tuple(b" " + payload for payload in encode_vast_intel(indicator))


def render_document(dialect: Dialect, stream: Stream, raw: bytes) -> tuple[bytes, ...]:
    """
    Encode an item for a subscriber.

    @param raw: The item's document, which is known to be valid.
    @return: Its frames, without a subscription's topic; none if the dialect cannot express it.
    """
    if dialect is _STIX2:
        if stream is _INTEL:
            return (_INTEL_HEAD + compatible(raw),)
        return (_SIGHTING_HEAD + compatible_sighting(raw),)
    if stream is _INTEL:
        return _vast_intel(decode_indicator(raw))
    sighting = decode_sighting(raw)
    try:
        return (b" " + encode_vast_sighting(sighting),)
    except DocumentInvalid:  # an earlier version admitted it
        return ()


def render_numbered(
    dialect: Dialect, items: Sequence[tuple[int, Item]]
) -> tuple[list[int], list[bytes]]:
    """
    Encode many items, as L{render} does.

    @param items: Items with their numbers in the journal.
    @return: The number of each frame's item, and the frames.
    """
    if dialect is _STIX2:  # one frame for each item, in a quarter of the time
        return [n for n, _ in items], [
            _INTEL_HEAD + (item.raw if item.surely_compatible else compatible(item.raw))
            if isinstance(item, Indicator)
            else _SIGHTING_HEAD + compatible_sighting(item.raw)
            for _, item in items
        ]
    numbers: list[int] = []
    frames: list[bytes] = []
    for number, item in items:
        payloads = render(dialect, item)
        frames += payloads
        numbers += [number] * len(payloads)
    return numbers, frames


_INTEL = Stream.INTEL
_SIGHTING = Stream.SIGHTING
_STIX2 = Dialect.STIX2
_VAST = Dialect.VAST
# Module names are faster to look up than members of an enumeration.

_INTEL_HEAD = _INTEL.value + b" "
_SIGHTING_HEAD = _SIGHTING.value + b" "
