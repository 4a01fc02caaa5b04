"""
The frames of tbvast/1: numbered items, several in a frame, and what ends a snapshot.

After the subscription's own topic a frame says C{batch}, C{snapshot} or C{mark},
a space, and a JSON object:

    - C{batch {"after":A,"until":U,"items":[[N,TYPE,DOCUMENT],…]}}: all that the
      subscriber wants of the numbers above A, up to and with U;
    - C{snapshot {"items":[…]}}: a part of a snapshot, in the same form;
    - C{mark {"number":N,"count":C,"full":F,"failed":[…]}}: the end of a snapshot,
      which stands for all numbers up to and with N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from tbvast.errors import Invalid, ProtocolInvalid
from tbvast.intel.indicators import decode_indicator
from tbvast.intel.sightings import decode_sighting
from tbvast.wire.frames import Item
from tbvast.wire.topics import Stream

FRAME_BYTES = 64 * 1024
"""
The size of the items in one frame, beyond which another is begun.
"""

_DECODERS: dict[str, Callable[[bytes], Item]] = {
    Stream.INTEL.value.decode(): decode_indicator,
    Stream.SIGHTING.value.decode(): decode_sighting,
}


class Batch(msgspec.Struct, frozen=True):
    """
    What a subscriber wants of a range of numbers.

    @ivar after: The number that the range begins after.
    @ivar until: The number that it ends with.
    @ivar refused: What of it could not be read, and why.
    """

    after: int
    until: int
    items: tuple[Item, ...]
    refused: tuple[Invalid, ...]


class Part(msgspec.Struct, frozen=True):
    """
    A part of a snapshot.

    @ivar refused: What of it could not be read, and why.
    """

    items: tuple[Item, ...]
    refused: tuple[Invalid, ...]


class Mark(msgspec.Struct, frozen=True):
    """
    The end of a snapshot.

    @ivar number: The number of the journal that the snapshot stands for.
    @ivar count: How many items were sent.
    @ivar full: Whether it holds everything that is in force.
    @ivar failed: The names of the sources that could not answer.
    """

    number: int
    count: int
    full: bool
    failed: tuple[str, ...] = ()


Delivery = Batch | Part | Mark


_ITEM_OF_STREAM = {stream: b'[%%d,"%b",%%b]' % stream.value for stream in Stream}


def encode_item(number: int, stream: Stream, raw: bytes) -> bytes:
    """
    One item of a frame.
    """
    return _ITEM_OF_STREAM[stream] % (number, raw)


def chunks(items: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """
    Put items together for frames.

    @param items: The number of each, and the item as L{encode_item} made it.
    @return: For each frame, the number of its last item, and the items.
    """
    chunk: list[bytes] = []
    size = last = 0
    for number, item in items:
        if chunk and size + len(item) > FRAME_BYTES:
            yield last, b",".join(chunk)
            chunk, size = [], 0
        chunk.append(item)
        size += len(item) + 1
        last = number
    if chunk:
        yield last, b",".join(chunk)


def encode_batch(after: int, until: int, items: bytes) -> bytes:
    """
    @param items: As L{chunks} made them.
    """
    return b'batch {"after":%d,"until":%d,"items":[%b]}' % (after, until, items)


def encode_part(items: bytes) -> bytes:
    """
    @param items: As L{chunks} made them.
    """
    return b'snapshot {"items":[%b]}' % (items,)


def encode_mark(mark: Mark) -> bytes:
    return b"mark " + msgspec.json.encode(mark)


class _Batch(msgspec.Struct):
    after: int
    until: int
    items: list[tuple[int, str, msgspec.Raw]]


class _Part(msgspec.Struct):
    items: list[tuple[int, str, msgspec.Raw]]


_batch_decoder = msgspec.json.Decoder(_Batch)
_part_decoder = msgspec.json.Decoder(_Part)
_mark_decoder = msgspec.json.Decoder(Mark)


def decode_feed(kind: bytes, payload: bytes) -> Delivery | None:
    """
    @param kind: What stands before the space.
    @return: C{None} if C{kind} is none of tbvast/1.
    @raise ProtocolInvalid: If C{payload} is not what C{kind} says.
    """
    try:
        if kind == b"batch":
            batch = _batch_decoder.decode(payload)
            return Batch(batch.after, batch.until, *_items(batch.items))
        if kind == b"snapshot":
            return Part(*_items(_part_decoder.decode(payload).items))
        if kind == b"mark":
            return _mark_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolInvalid(kind.decode(), payload, f"what it says ({e})") from e
    return None


def _items(
    listed: Iterable[tuple[int, str, msgspec.Raw]],
) -> tuple[tuple[Item, ...], tuple[Invalid, ...]]:
    items = []
    refused: list[Invalid] = []
    for _, kind, raw in listed:
        decode = _DECODERS.get(kind)
        if decode is None:
            refused.append(ProtocolInvalid("type", kind, "a type of item"))
            continue
        try:
            items.append(decode(bytes(raw)))
        except Invalid as e:
            refused.append(e)
    return tuple(items), tuple(refused)
