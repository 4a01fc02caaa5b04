"""
Tests for the frames of L{tbvast.protocol.damaged_json}, alone and within L{tbvast.protocol.replay}.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.protocol.damaged_json import RawItem, salvage
from tbvast.protocol.replay import (
    Batch,
    Part,
    Torn,
    decode_delivery,
    encode_batch,
    encode_item,
    encode_part,
)
from tbvast.protocol.topics import Stream
from tests.doubles import indicator_document, indicator_id

DEEP = b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}"
LOOKS_LIKE_ITEMS = (
    b'{"type":"indicator","x":[[1,"indicator",{"a":1}],[2,"sighting",{}],[3,"indicator",'
    + b"[" * 2000
    + b"]" * 2000
    + b"]]}"
)

UNREADABLE = [
    DEEP,
    LOOKS_LIKE_ITEMS,
    b"{}",
    b'{"type":"indicator","id":5}',
    b'{"type":"indicator","id":"%b","n":%b}' % (indicator_id(1).encode(), b"9" * 5000),
    b'{"type":"indicator","modified":"0001-01-01T00:00:00+14:00"}',
    b'{"a":1e400}',
    b"[]",
    b"5",
    b'"a string of some length"',
]
"""
Documents that are well-formed, or nearly so, and are not taken.
"""

BROKEN = [
    b'{"type":"indicator',
    b'{"type":"indicator","name":"a"b"}',
    b'{"type":"indicator","name":"a\\"}',
    b'{"type":"indicator","x":[1,2}',
    b'{"type":"indicator","x":[1,2]]}}',
    b'{"type":"indicator" "x":1}',
    b"\xff\xfe{}\x00 and so on",
    b'{"type":"indicator"}, {"more":1}',
]
"""
Documents that are not well-formed.
"""

good = st.integers(1, 200).map(lambda n: (True, indicator_document(n, name="],[3,'a',{\"}")))
bad = st.sampled_from(UNREADABLE + BROKEN).map(lambda raw: (False, raw))


def decoded(kind: bytes, payload: bytes) -> Any:
    return decode_delivery(b"", [kind + b" " + payload])


def batch_of(documents: list[bytes]) -> bytes:
    items = [encode_item(n, Stream.INTEL, raw) for n, raw in enumerate(documents, 1)]
    return encode_batch(0, len(items), b",".join(items)).removeprefix(b"batch ")


def part_of(documents: list[bytes]) -> bytes:
    items = [encode_item(0, Stream.INTEL, raw) for raw in documents]
    return encode_part(b",".join(items)).removeprefix(b"snapshot ")


class FrameTests(SynchronousTestCase):
    """
    Frames with unreadable documents.
    """

    @given(st.lists(good | bad, max_size=8))
    def test_documents(self, documents: list[tuple[bool, bytes]]) -> None:
        """
        Every readable document is decoded once, in order, and each other one is refused alone.
        """
        raws = [raw for _, raw in documents]
        expected = [raw for readable, raw in documents if readable]
        found = decoded(b"batch", batch_of(raws))
        self.assertIsInstance(found, Batch)
        self.assertEqual((found.after, found.until), (0, len(raws)))
        self.assertEqual([item.raw for item in found.items], expected)
        self.assertEqual(
            [each.number for each in found.refused],
            [n for n, (readable, _) in enumerate(documents, 1) if not readable],
        )
        part = decoded(b"snapshot", part_of(raws))
        self.assertEqual([item.raw for item in part.items], expected)
        self.assertEqual(len(part.items) + len(part.refused), len(raws))

    @given(st.integers(1, 6), st.data())
    def test_one_byte(self, count: int, data: st.DataObject) -> None:
        """
        One damaged byte costs at most one document.
        """
        documents = [indicator_document(n) for n in range(1, count + 1)]
        for kind, payload in ((b"batch", batch_of(documents)), (b"snapshot", part_of(documents))):
            at = data.draw(st.integers(0, len(payload) - 1))
            byte = data.draw(st.integers(0, 255))
            found = decoded(kind, payload[:at] + bytes([byte]) + payload[at + 1 :])
            taken = [item.raw for item in found.items]
            whole = [raw for raw in documents if raw in taken]
            self.assertEqual([raw for raw in taken if raw in whole], whole)
            self.assertGreaterEqual(len(whole), count - 1)
            self.assertLessEqual(len(taken), count)

    @given(st.integers(0, 30), st.binary(min_size=1, max_size=30))
    def test_head(self, length: int, junk: bytes) -> None:
        """
        If the head is damaged, all items are decoded, without a range.
        """
        documents = [indicator_document(n) for n in (1, 2)]
        whole = batch_of(documents)
        start = whole.index(b"[[") + 1
        found = decoded(b"batch", junk + whole[min(length, start) : start] + whole[start:])
        if not isinstance(found, Batch):
            self.assertIsInstance(found, Torn)
            self.assertEqual([item.raw for item in found.items], documents)

    @given(st.binary(max_size=200))
    def test_any_bytes(self, raw: bytes) -> None:
        """
        No bytes raise an error, or make an item appear twice.
        """
        for head in (b"", b'{"items":['):
            _, found = salvage(head + raw)
            self.assertLessEqual(sum(len(bytes(each.raw)) for each in found), len(head + raw))
        self.assertIsInstance(decoded(b"batch", raw), Batch | Torn)
        self.assertIsInstance(decoded(b"snapshot", raw), Part)


class SalvageTests(SynchronousTestCase):
    """
    Tests for L{salvage}.
    """

    def test_within(self) -> None:
        """
        Text that looks like an item inside a document is not an item.
        """
        documents = [LOOKS_LIKE_ITEMS, DEEP, indicator_document(7)]
        bounds, found = salvage(batch_of(documents))
        self.assertEqual(bounds, (0, 3))
        self.assertEqual(
            list(found),
            [RawItem(n, "indicator", msgspec.Raw(raw)) for n, raw in enumerate(documents, 1)],
        )

    def test_numbers(self) -> None:
        """
        After a damaged item, only items of the range are searched.
        """
        for number in (0, 9):
            payload = batch_of([b'{"a": [[%d,"indicator",{}],}' % number, b"{}"])
            bounds, found = salvage(payload)
            self.assertEqual(bounds, (0, 2))
            self.assertEqual([each.type for each in found], [None, "indicator"])

    def test_work(self) -> None:
        """
        A maliciously built frame costs little processor time.
        """
        start = time.process_time()
        for some in (
            b'[1,"indicator",{"a":',
            b'[1,"indicator",{"a',
            b'[1,"indicator",{',
            b'[1,"indicator",{"a":[',
            b'[1,"indicator",{}],',
            b'[1,"indicator",{}] ',
        ):
            for head in (b"", b'{"items":['):
                list(salvage(head + some * 5_000)[1])
        self.assertLess(time.process_time() - start, 20)
