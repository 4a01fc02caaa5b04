"""
Tests for the publish requests of L{tbvast.protocol.damaged_json}.
"""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import ProtocolInvalid
from tbvast.protocol.damaged_json import RequestUnsplittable, split_request
from tbvast.protocol.manage import Publish, decode_request, encode_publish
from tests import documents

GOOD = [documents.valid(Random(number)) for number in range(3)]

DAMAGED = (
    *(b"nope", b"{", b'{"a":1', b'{"a":1,}', b"{'a':1}", b'{"name":"abc}', b"[1,2", b'{"a":[1,2}'),
    *(b"", b'{"a":tru,"l":["x"]}', GOOD[0][:-1], GOOD[0][:100], GOOD[0][:200], b"\xff", b'"x'),
    *(b'{"x":"\x00"}', b"}", b'{"type":"indicator","id":"x","a":01}', b'{"type":"indicator"'),
    b"[" * 5000 + b"]" * 5000,
)


class SplitTests(SynchronousTestCase):
    """
    Tests for L{split_request}.
    """

    def test_one_damaged(self) -> None:
        """
        One damaged document, anywhere in the request, is separated from the others.
        """
        for damaged in DAMAGED:
            for position in range(len(GOOD) + 1):
                with self.subTest(damaged[:40], position=position):
                    given_ = [*GOOD[:position], damaged, *GOOD[position:]]
                    self.assertEqual(decode_request(encode_publish(given_)), Publish(tuple(given_)))

    def test_order_of_keys(self) -> None:
        raw = b' {"documents" : [ {} , nope ] , "x" : [1] , "action" : "publish" } '
        self.assertEqual(split_request(raw), (b"{}", b"nope "))

    def test_others(self) -> None:
        """
        Requests other than publish requests are not split.
        """
        for raw in (b"", b"[]", b'{"action":"status"', b'{"action":"x","documents":[nope]}'):
            self.assertIsNone(split_request(raw))
        self.assertRaises(ProtocolInvalid, decode_request, b'{"action":"publish","documents":7}')

    def test_unsplittable(self) -> None:
        """
        A request that is damaged elsewhere, or too often, is refused as a whole.
        """
        for raw in (
            b'{"action":"publish","documents":[{"a":1},{"b":',
            b'{"action":"publish","documents":[{}],"x":nope}',
            encode_publish([b'{"a":tru}'] * 1000),
        ):
            with self.subTest(raw[:60]):
                self.assertRaises(RequestUnsplittable, decode_request, raw)

    @given(st.lists(st.sampled_from([*GOOD, *DAMAGED]) | st.binary(max_size=20), max_size=6))
    def test_any(self, given_: list[bytes]) -> None:
        """
        Any request is split, or refused.
        """
        try:
            decode_request(encode_publish(given_))
        except ProtocolInvalid as e:
            self.assertNotIn("\n", str(e))

    @given(st.binary())
    def test_any_bytes(self, raw: bytes) -> None:
        try:
            split_request(b'{"action":"publish",' + raw)
        except RequestUnsplittable as e:
            self.assertNotIn("\n", str(e))
