"""
Tests for L{tbvast.protocol.replay}.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import Invalid, ProtocolInvalid
from tbvast.protocol.frames import Item, stream_of
from tbvast.protocol.replay import (
    FRAME_BYTES,
    Batch,
    Mark,
    Part,
    Torn,
    chunks,
    decode_delivery,
    encode_batch,
    encode_item,
    encode_mark,
    encode_part,
)
from tbvast.protocol.topics import Stream
from tbvast.protocol.unreadable import KEPT_BYTES
from tbvast.stix.indicators import Indicator
from tbvast.stix.limits import LARGEST_INDICATOR, LARGEST_SIGHTING, SHORTEST_MESSAGE_LIMIT
from tests.doubles import a_sighting, an_indicator

TOPIC = b"a" * 32

KINDS = [b"batch", b"snapshot", b"mark"]

numbers = st.integers(0, 1 << 62)

items = st.lists(
    st.builds(
        lambda number, name: an_indicator(number, name=name),
        st.integers(0, 1 << 40),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
    | st.builds(a_sighting, st.integers(0, 1 << 20)),
    max_size=5,
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


def encoded(listed: list[Item]) -> bytes:
    return b",".join(encode_item(n, stream_of(item), item.raw) for n, item in enumerate(listed))


def decoded(tail: bytes) -> Any:
    return decode_delivery(b"", [tail])


class RoundTripTests(SynchronousTestCase):
    """
    Frames are decoded as they were encoded.
    """

    @given(numbers, numbers, items)
    def test_batch(self, after: int, until: int, listed: list[Item]) -> None:
        """
        A batch keeps its range and its items.
        """
        self.assertEqual(
            decoded(encode_batch(after, until, encoded(listed))),
            Batch(after, until, tuple(listed)) if after <= until else Torn(tuple(listed), ()),
        )

    @given(items)
    def test_part(self, listed: list[Item]) -> None:
        """
        A part of a snapshot keeps its items.
        """
        self.assertEqual(decoded(encode_part(encoded(listed))), Part(tuple(listed)))

    @given(numbers, numbers, st.booleans(), st.lists(st.text(), max_size=3))
    def test_mark(self, number: int, count: int, full: bool, failed: list[str]) -> None:
        """
        A mark keeps its fields.
        """
        mark = Mark(number, count, full, tuple(failed))
        self.assertEqual(decoded(encode_mark(mark)), mark)

    @given(items)
    def test_delivery(self, listed: list[Item]) -> None:
        """
        So do frames behind the subscription's own topic.
        """
        for tail in (
            encode_batch(1, 9, encoded(listed)),
            encode_part(encoded(listed)),
            encode_mark(Mark(1, 2, True)),
        ):
            self.assertEqual(decode_delivery(TOPIC, [TOPIC + tail]), decoded(tail))
        for item in listed:
            kind = b"indicator " if isinstance(item, Indicator) else b"sighting "
            self.assertEqual(decode_delivery(TOPIC, [TOPIC + kind + item.raw]), item)


class ChunkTests(SynchronousTestCase):
    """
    Tests for L{chunks}.
    """

    def test_none(self) -> None:
        """
        No items make no frames.
        """
        self.assertEqual(list(chunks([])), [])

    @given(st.lists(st.integers(1, FRAME_BYTES + 10), max_size=20))
    def test_bounded(self, sizes: list[int]) -> None:
        """
        Chunks hold all items, in order. They are no larger than necessary, and no two could be
        one.
        """
        given_items = [(number, b"x" * size) for number, size in enumerate(sizes, 1)]
        found = list(chunks(given_items))
        self.assertEqual(
            [item for chunk in found for item in chunk.items.split(b",")],
            [item for _, item in given_items],
        )
        count = 0
        for chunk in found:
            parts = chunk.items.split(b",")
            count += len(parts)
            self.assertEqual(chunk.until, count)
            if len(parts) > 1:
                self.assertLessEqual(len(chunk.items), FRAME_BYTES)
        for before, after in itertools.pairwise(found):
            first = after.items.split(b",")[0]
            self.assertGreater(len(before.items) + 1 + len(first), FRAME_BYTES)


class FrameSizeTests(SynchronousTestCase):
    """
    Documents of any size fit into messages of the shortest limit.
    """

    def test_largest(self) -> None:
        """
        No frame with the largest documents is longer than the limit.
        """
        topic = b"t" * 1024  # longer than any
        sizes = [1, FRAME_BYTES, LARGEST_INDICATOR, LARGEST_SIGHTING, LARGEST_SIGHTING, 1, 1]
        last = (1 << 63) - 1
        items = [
            (last - len(sizes) + n, encode_item(last, Stream.SIGHTING, b"x" * size))
            for n, size in enumerate(sizes, 1)
        ]
        frames = [
            topic + frame
            for chunk in chunks(items)
            for frame in (
                encode_batch(last, chunk.until, chunk.items),
                encode_part(chunk.items),
            )
        ]
        self.assertGreater(max(map(len, frames)), LARGEST_SIGHTING)
        self.assertLess(max(map(len, frames)), SHORTEST_MESSAGE_LIMIT - (1 << 20))


class RefusedTests(SynchronousTestCase):
    """
    Unreadable frames and items.
    """

    def test_kinds(self) -> None:
        """
        Kinds of other protocols are not decoded.
        """
        for kind in (b"", b"Batch", b"batch2"):
            self.assertRaises(ProtocolInvalid, decoded, kind + b" {}")

    def test_payloads(self) -> None:
        """
        A malformed mark is refused.
        """
        for payload in (
            b"",
            b'{"number":1}',
            b'{"number":1,"count":1,"full":1}',
            b'{"number":-1,"count":1,"full":true}',
            b'{"number":%d,"count":1,"full":true}' % (1 << 63),
        ):
            with self.subTest(payload=payload[:50]):
                self.assertRaises(ProtocolInvalid, decoded, b"mark " + payload)

    def test_nothing_readable(self) -> None:
        """
        A frame without anything that looks like an item is refused as one item.
        """
        for kind, head, payload in (
            (b"batch", b"", b'{"after":1,"until":"2","items":[],"x":1}'),
            (b"batch", b"", b'{"after":1,"until":2,"items":{"a":"bcdefgh"}}'),
            (b"batch", b"", b'{"after":2,"until":1,"items":{"a":"bcdefgh"}}'),
            (b"snapshot", b"", b"[1,2,3,4,5,6,7,8,9]"),
            (b"snapshot", b"", b"\xff" * 9),
            (b"snapshot", b'{"items":[', b'{"items":[' + b"[" * 10_000),
        ):
            with self.subTest(kind=kind, payload=payload[:50]):
                found = decoded(kind + b" " + payload)
                self.assertIsInstance(found, Torn if kind == b"batch" else Part)
                self.assertEqual(found.items, ())
                (refused,) = found.refused
                self.assertIn(refused.raw, payload)
                self.assertEqual(len(refused.raw), min(len(payload), KEPT_BYTES) - len(head))

    def test_range(self) -> None:
        """
        The items of a batch with an impossible range are decoded, without a range.
        """
        item = encode_item(1, Stream.INTEL, an_indicator().raw)
        for after, until in ((2, 1), (-1, 1), (0, 1 << 63), (1 << 70, 1 << 71)):
            found = decoded(encode_batch(after, until, item))
            self.assertEqual(found, Torn((an_indicator(),), ()))

    def test_items(self) -> None:
        """
        An unreadable item is refused alone, with the reason.
        """
        raw = b",".join(
            [
                encode_item(1, Stream.INTEL, an_indicator().raw),
                encode_item(2, Stream.INTEL, b"{}"),
                encode_item(3, Stream.SIGHTING, an_indicator().raw),
                b'[4,"weather",{}]',
                encode_item(5, Stream.SIGHTING, a_sighting().raw),
            ]
        )
        for delivery in (decoded(encode_batch(0, 5, raw)), decoded(encode_part(raw))):
            self.assertEqual(delivery.items, (an_indicator(), a_sighting()))
            self.assertEqual(len(delivery.refused), 3)
            self.assertIn("weather", delivery.refused[2].reason)
            self.assertEqual([each.number for each in delivery.refused], [2, 3, 4])
            self.assertEqual(delivery.refused[1].ids, (an_indicator().id,))

    def test_deliveries(self) -> None:
        """
        A message of another subscription, of several frames, or of an unknown type is refused.
        """
        raw = an_indicator().raw
        for message in (
            [],
            [TOPIC],
            [TOPIC + b"indicator"],
            [TOPIC + b"weather " + raw],
            [b"b" * 32 + b"indicator " + raw],
            [TOPIC[1:] + b"indicator " + raw],
            [TOPIC + b"indicator " + raw, b""],
            [TOPIC + b"indicator", raw],
            [TOPIC + b" indicator " + raw],
            [TOPIC + b"sighting " + raw],
        ):
            with self.subTest(message):
                self.assertRaises(Invalid, decode_delivery, TOPIC, message)

    @given(st.sampled_from(KINDS) | st.binary(), st.binary())
    def test_any_bytes(self, kind: bytes, payload: bytes) -> None:
        """
        No bytes raise anything but L{Invalid}.
        """
        self.decode(kind, payload)

    @given(
        st.sampled_from(KINDS),
        st.dictionaries(
            st.sampled_from(["after", "until", "items", "number", "count", "full", "failed"]),
            st.integers()
            | st.lists(
                st.tuples(
                    st.integers(), st.sampled_from(["indicator", "sighting", ""]), json_values
                ),
                max_size=3,
            )
            | json_values,
        ),
    )
    def test_any_json(self, kind: bytes, value: dict[str, Any]) -> None:
        """
        No JSON value raises anything but L{Invalid}.
        """
        self.decode(kind, json.dumps(value).encode())

    def decode(self, kind: bytes, payload: bytes) -> None:
        for message in ([TOPIC + kind + b" " + payload], [payload], [TOPIC + payload, kind]):
            try:
                decode_delivery(TOPIC, message)
            except Invalid:
                pass
