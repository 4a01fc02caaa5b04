"""
The frames of tbvast/1: batches of numbered items, and snapshots with a mark at the end.

A frame is the subscription's own topic, C{batch}, C{snapshot} or C{mark}, a space, and JSON:

    - C{batch {"after":A,"until":U,"items":[[N,TYPE,DOCUMENT],…]}}: all subscribed items
      with numbers above A, up to and including U;
    - C{snapshot {"items":[…]}}: a part of a snapshot, in the same form;
    - C{mark {"number":N,"count":C,"full":F,"failed":[…]}}: the end of a snapshot,
      which covers all numbers up to and including N.

An unreadable item is refused alone, even if it makes the whole frame malformed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from tbvast.errors import Invalid, ProtocolInvalid
from tbvast.protocol.damaged_json import NUMBER_END, RawItem, salvage
from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.protocol.unreadable import Unreadable, unreadable
from tbvast.stix.documents import UNREADABLE
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.sightings import decode_sighting

FRAME_BYTES = 64 * 1024
"""
The size of a frame's items, in bytes, above which the next item begins a new frame.
"""

_ITEM_DECODERS: dict[str, Callable[[bytes], Item]] = {
    Stream.INTEL.value.decode(): decode_indicator,
    Stream.SIGHTING.value.decode(): decode_sighting,
}


class Batch(msgspec.Struct, frozen=True):
    """
    All subscribed items in a range of the journal's numbers.

    @ivar after: The number that the range begins after.
    @ivar until: The number that it ends with; not lower.
    @ivar items: The readable items, in order.
    @ivar refused: The unreadable items.
    """

    after: int
    until: int
    items: tuple[Item, ...]
    refused: tuple[Unreadable, ...] = ()


class Part(msgspec.Struct, frozen=True):
    """
    A part of a snapshot, with its readable and its unreadable items.
    """

    items: tuple[Item, ...]
    refused: tuple[Unreadable, ...] = ()


class Torn(msgspec.Struct, frozen=True):
    """
    A L{Batch} whose range of numbers is unreadable.
    """

    items: tuple[Item, ...]
    refused: tuple[Unreadable, ...]


class Mark(msgspec.Struct, frozen=True):
    """
    The end of a snapshot.

    @ivar number: The number in the journal up to which the snapshot covers all items.
    @ivar count: The number of items in the snapshot.
    @ivar full: Whether the snapshot holds everything that is in force.
    @ivar failed: The names of the sources that could not answer.
    """

    number: int
    count: int
    full: bool
    failed: tuple[str, ...] = ()


Delivery = Batch | Part | Mark | Torn
"""
A decoded frame of tbvast/1.
"""

_ITEM_OF_STREAM = {stream: b'[%%d,"%b",%%b]' % stream.value for stream in Stream}


def encode_item(number: int, stream: Stream, raw: bytes) -> bytes:
    """
    Encode one item of a frame.

    @param number: Its number in the journal; any number in a snapshot.
    """
    return _ITEM_OF_STREAM[stream] % (number, raw)


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """
    The encoded items of one frame.

    @ivar until: The number that the chunk ends with.
    @ivar items: The items, separated by commas.
    """

    until: int
    items: bytes


def chunks(items: Iterable[tuple[int, bytes]]) -> Iterator[Chunk]:
    """
    Join items into chunks of about L{FRAME_BYTES}.

    @param items: The number of each, and the item as L{encode_item} encoded it.
    @return: The chunks, in order; each ends with the number of its last item.
    """
    chunk: list[bytes] = []
    size = last = 0
    for number, item in items:
        if chunk and size + len(item) > FRAME_BYTES:
            yield Chunk(last, b",".join(chunk))
            chunk, size = [], 0
        chunk.append(item)
        size += len(item) + 1
        last = number
    if chunk:
        yield Chunk(last, b",".join(chunk))


def encode_batch(after: int, until: int, items: bytes) -> bytes:
    """
    Encode a L{Batch}.

    @param items: The items of a L{Chunk}.
    """
    return b'batch {"after":%d,"until":%d,"items":[%b]}' % (after, until, items)


def encode_part(items: bytes) -> bytes:
    """
    Encode a L{Part}, of the items of a L{Chunk}.
    """
    return b'snapshot {"items":[%b]}' % (items,)


def encode_mark(mark: Mark) -> bytes:
    """
    Encode the end of a snapshot.
    """
    return b"mark " + msgspec.json.encode(mark)


class _Batch(msgspec.Struct):
    after: int
    until: int
    items: list[RawItem]


class _Part(msgspec.Struct):
    items: list[RawItem]


_batch_decoder = msgspec.json.Decoder(_Batch)
_part_decoder = msgspec.json.Decoder(_Part)
_mark_decoder = msgspec.json.Decoder(Mark)


def decode_delivery(topic: bytes, message: list[bytes]) -> Item | Delivery:
    """
    Decode a message of the pub endpoint.

    @param topic: The subscription's own topic.
    @return: An item from a bus that speaks stix2 only; a delivery of one with tbvast/1.
    @raise Invalid: If the message is not one frame of that topic, or has a wrong payload.
    """
    if len(message) != 1 or not message[0].startswith(topic):
        raise ProtocolInvalid("message", b" ".join(message), "a frame of this subscription")
    kind, _, payload = message[0][len(topic) :].partition(b" ")
    decode = _DECODERS.get(kind)
    if decode is None:
        raise ProtocolInvalid("type", kind, "a type of the pub endpoint")
    return decode(payload)


def _decode_batch(payload: bytes) -> Batch | Torn:
    try:
        batch = _batch_decoder.decode(payload)
        after, until, found = batch.after, batch.until, iter(batch.items)
        bounds = (after, until) if 0 <= after <= until < NUMBER_END else None
    except UNREADABLE:
        bounds, found = salvage(payload)
    items, refused = _decode_items(found)
    return Torn(items, refused) if bounds is None else Batch(*bounds, items, refused)


def _decode_part(payload: bytes) -> Part:
    try:
        return Part(*_decode_items(_part_decoder.decode(payload).items))
    except UNREADABLE:
        return Part(*_decode_items(salvage(payload)[1]))


def _decode_mark(payload: bytes) -> Mark:
    try:
        mark = _mark_decoder.decode(payload)
    except UNREADABLE as e:
        raise ProtocolInvalid("mark", payload, f"the end of a snapshot ({e})") from e
    if not 0 <= mark.number < NUMBER_END:
        raise ProtocolInvalid("number", mark.number, "a number of a journal")
    return mark


def _decode_items(found: Iterable[RawItem]) -> tuple[tuple[Item, ...], tuple[Unreadable, ...]]:
    items: list[Item] = []
    refused: list[Unreadable] = []
    for each in found:
        raw = bytes(each.raw)
        try:
            items.append(_decode_item(each.type, raw))
        except Exception as e:  # a bug in a decoder must not cost more than this item
            bug = f"cannot be decoded ({type(e).__name__}: {e})"
            reason = str(e) if isinstance(e, Invalid) else bug
            refused.append(unreadable(reason, raw, each.number))
    return tuple(items), tuple(refused)


def _decode_item(type: str | None, raw: bytes) -> Item:
    if type is None:
        raise ProtocolInvalid("item", raw, "an item of a frame")
    decode = _ITEM_DECODERS.get(type)
    if decode is None:
        raise ProtocolInvalid("type", type, "a type of item")
    return decode(raw)


_DECODERS: dict[bytes, Callable[[bytes], Item | Delivery]] = {
    Stream.INTEL.value: decode_indicator,
    Stream.SIGHTING.value: decode_sighting,
    b"batch": _decode_batch,
    b"snapshot": _decode_part,
    b"mark": _decode_mark,
}
