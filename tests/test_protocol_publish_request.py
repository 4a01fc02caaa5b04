"""
Tests for the publish requests of L{tbvast.protocol.damaged_json}.
"""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import LimitExceeded, ProtocolInvalid
from tbvast.protocol import manage
from tbvast.protocol.damaged_json import WINDOW, RequestUnsplittable, finished, split_request
from tbvast.protocol.manage import DECODED_COMMAS, Publish, encode_publish
from tests import documents
from tests.doubles import MOST_DOCUMENTS, decode_request

GOOD = [documents.valid(Random(number)) for number in range(3)]

DAMAGED = (
    *(b"nope", b"{", b'{"a":1', b'{"a":1,}', b"{'a':1}", b'{"name":"abc}', b"[1,2", b'{"a":[1,2}'),
    *(b"", b'{"a":tru,"l":["x"]}', GOOD[0][:-1], GOOD[0][:100], GOOD[0][:200], b"\xff", b'"x'),
    *(b'{"x":"\x00"}', b"}", b'{"type":"indicator","id":"x","a":01}', b'{"type":"indicator"'),
    b"[" * 5000 + b"]" * 5000,
)


def split(raw: bytes) -> tuple[bytes, ...] | None:
    return finished(split_request(raw, MOST_DOCUMENTS))


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
        self.assertEqual(split(raw), (b"{}", b"nope "))

    def test_others(self) -> None:
        """
        Requests other than publish requests are not split.
        """
        for raw in (b"", b"[]", b'{"action":"status"', b'{"action":"x","documents":[nope]}'):
            self.assertIsNone(split(raw))
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

    def test_long(self) -> None:
        """
        Documents that are longer than what is decoded at once, damaged or not.
        """
        for long in (
            documents.valid(Random(0))[:-1] + b',"x_long":"%b"}' % (b"x" * WINDOW),
            b'{"x":[' + b",".join([b'{"type":"indicator","id":"x"}'] * WINDOW) + b"]}",
            b"[" + b"[]," * WINDOW + b"0]",
            b"1" * (WINDOW * 3),
        ):
            for damaged in (b"nope", b'{"a":1', b'{"x":"%b' % (b"x" * WINDOW)):
                with self.subTest(long[:40], damaged=damaged[:10]):
                    given_ = [GOOD[0], damaged, GOOD[1], long, GOOD[2]]
                    self.assertEqual(decode_request(encode_publish(given_)), Publish(tuple(given_)))

    def test_far_apart(self) -> None:
        """
        The next document is found wherever its beginning is.
        """
        for spaces in range(WINDOW - 40, WINDOW + 40, 3):
            damaged = b'{"a":"' + b" " * spaces
            given_ = [damaged, GOOD[0]]
            self.assertEqual(decode_request(encode_publish(given_)), Publish(tuple(given_)))

    def test_too_many(self) -> None:
        """
        A request with too many documents is refused, whether it is well-formed or not.
        """
        for raw in (b"0", b"{}", GOOD[0]):
            for last in ([], [b"nope"]):
                request = encode_publish([raw] * (MOST_DOCUMENTS + 1) + last)
                e = self.assertRaises(LimitExceeded, decode_request, request)
                self.assertEqual(
                    str(e),
                    f"documents: 'more than {MOST_DOCUMENTS}' is not at most {MOST_DOCUMENTS}"
                    " in one request",
                )
        many = encode_publish([GOOD[0]] * MOST_DOCUMENTS)
        self.assertEqual(decode_request(many), Publish((GOOD[0],) * MOST_DOCUMENTS))

    def test_many_commas(self) -> None:
        """
        Documents with many commas are split in the same way.
        """
        raw = b'{"x":[' + b"0," * 20 + b"0]}"
        given_ = (raw,) * (DECODED_COMMAS // 20)
        work = manage.decode_request(encode_publish(given_), len(given_))
        self.assertEqual(finished(work), Publish(given_))

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
            split(b'{"action":"publish",' + raw)
        except RequestUnsplittable as e:
            self.assertNotIn("\n", str(e))
