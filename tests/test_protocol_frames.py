"""
Tests for L{tbvast.protocol.frames}.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import DialectUnspoken, DocumentInvalid, Invalid, ProtocolInvalid
from tbvast.protocol.frames import (
    REPORT_TOPICS,
    Envelope,
    Item,
    decode_report,
    encode_snapshot_request,
    render,
    render_document,
    render_numbered,
    stream_of,
)
from tbvast.protocol.replay import decode_delivery
from tbvast.protocol.topics import Dialect, Stream
from tbvast.stix.admission import admit_indicator
from tbvast.stix.indicators import Indicator
from tbvast.stix.sightings import Sighting
from tests.doubles import a_sighting, an_indicator, indicator_document, indicator_id
from tests.doubles_bus import encode_report

P2P = b"a" * 32

INDICATOR: Item = admit_indicator(indicator_document())
SIGHTING: Item = a_sighting()

properties = [
    *("type", "id", "pattern", "pattern_type", "modified", "revoked", "sighting_of_ref"),
    *("ts", "reference", "x_threatbus_update", "x_threatbus_sighting_context"),
    *("snapshot_type", "snapshot_id", "body"),
]

payloads: list[bytes] = [
    b"",
    b" ",
    b"{}",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"type":"indicator","x":' + b"[" * 100_000,
    b'{"type":' + b"1" * 5000 + b"}",
    b"x" * (10 << 20),
    b'{"type":"indicator","id":"' + b"x" * (10 << 20) + b'"}',
]
"""
What is neither indicator nor sighting.
"""


def envelope(type_: int, body: bytes) -> bytes:
    """
    A snapshot envelope, as a subscriber sends it.
    """
    return (
        b'threatbus/snapshotenvelope {"type":"snapshotenvelope","snapshot_type":%d,'
        b'"snapshot_id":"some request","body":%s}' % (type_, body)
    )


class ReportTests(SynchronousTestCase):
    """
    Tests for L{decode_report} and L{encode_report}.
    """

    def test_decoded(self) -> None:
        """
        Payloads of each topic are decoded, and kept byte for byte.
        """
        for item in (INDICATOR, SIGHTING):
            with self.subTest(item):
                self.assertEqual(decode_report([encode_report(item)]), item)

    def test_spaces(self) -> None:
        """
        The frame is split at the first space only.
        """
        raw = json.dumps({**json.loads(indicator_document()), "name": "a b c"}).encode()
        self.assertEqual(decode_report([b"stix2/indicator " + raw]), admit_indicator(raw))

    def test_vast_sighting(self) -> None:
        """
        A VAST report becomes a sighting, the same one each time.
        """
        frame = b'vast/sightings {"ts":"2024-01-01T00:00:00Z","reference":"threatbus__%s"}' % (
            indicator_id(7).encode()
        )
        sighting = decode_report([frame])
        assert isinstance(sighting, Sighting)
        self.assertEqual(sighting.indicator, indicator_id(7))
        self.assertEqual(decode_report([frame]), sighting)

    def test_envelope(self) -> None:
        """
        A snapshot envelope holds an indicator or a sighting, according to its type.
        """
        for type_, item in enumerate((INDICATOR, SIGHTING), 1):
            with self.subTest(type_):
                self.assertEqual(
                    decode_report([envelope(type_, item.raw)]), Envelope("some request", item)
                )

    def test_bad_envelopes(self) -> None:
        """
        An envelope of an unknown type is refused, or one whose body has another type.
        """
        for type_, body in [
            (1, SIGHTING.raw),
            (2, INDICATOR.raw),
            (0, INDICATOR.raw),
            (3, SIGHTING.raw),
            *((type_, payload) for type_ in (1, 2) for payload in payloads),
        ]:
            with self.subTest(type_=type_, body=body[:40]):
                self.assertRaises(Invalid, decode_report, [envelope(type_, body)])

    def test_frames(self) -> None:
        """
        A message of no frame or several frames is not a report.
        """
        frame = encode_report(an_indicator())
        for message in ([], [frame, b""], [b"", frame], frame.split(b" ", 1)):
            with self.subTest(len(message)):
                self.assertRaises(ProtocolInvalid, decode_report, message)

    def test_topics(self) -> None:
        """
        Unknown topics are refused, even if they begin like a known one.
        """
        raw = indicator_document()
        for topic in (b"", b"stix2/indicators", b"stix2", b"threatbus/other", b"\xff"):
            with self.subTest(topic):
                e = self.assertRaises(ProtocolInvalid, decode_report, [topic + b" " + raw])
                self.assertEqual(e.field, "topic")

    def test_unspoken(self) -> None:
        """
        The topics of Threat Bus 2020.11 are refused with the remedy.
        """
        for topic in (b"threatbus/intel", b"threatbus/sighting"):
            e = self.assertRaises(DialectUnspoken, decode_report, [topic + b' {"ts": "x"}'])
            self.assertIn("Update the program", str(e))

    def test_broken(self) -> None:
        """
        A payload that does not match its topic is refused, in a message of bounded length.
        """
        for topic in REPORT_TOPICS:
            for payload in payloads:
                with self.subTest(topic=topic, payload=payload[:40]):
                    frame = topic + b" " + payload
                    e = self.assertRaises(Invalid, decode_report, [frame])
                    self.assertLess(len(str(e)), 500)

    @given(st.lists(st.binary(), max_size=3))
    def test_any(self, message: list[bytes]) -> None:
        """
        Every message is decoded or refused.
        """
        self.assert_decoded_or_refused(decode_report, message)

    @given(st.sampled_from(REPORT_TOPICS), st.binary())
    def test_any_payload(self, topic: bytes, payload: bytes) -> None:
        """
        Every payload is decoded or refused.
        """
        self.assert_decoded_or_refused(decode_report, [topic + b" " + payload])

    @given(
        st.sampled_from(REPORT_TOPICS),
        st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "id",
                    "pattern",
                    "pattern_type",
                    "modified",
                    "revoked",
                    "sighting_of_ref",
                    "ts",
                    "reference",
                    "x_threatbus_update",
                    "x_threatbus_sighting_context",
                ]
            ),
            st.sampled_from(["indicator", "sighting", indicator_id(1), "[a:b = 1]", "ADD", "stix"])
            | st.none()
            | st.integers()
            | st.text()
            | st.dictionaries(st.text(), st.integers(), max_size=2),
        ),
    )
    def test_any_object(self, topic: bytes, document: dict[str, Any]) -> None:
        """
        Every object is decoded or refused.
        """
        frame = topic + b" " + json.dumps(document).encode()
        self.assert_decoded_or_refused(decode_report, [frame])

    def assert_decoded_or_refused(
        self, decode: Callable[[list[bytes]], Any], message: list[bytes]
    ) -> None:
        try:
            decode(message)
        except Invalid as e:
            self.assertNotIn("\n", str(e))


class RenderTests(SynchronousTestCase):
    """
    Tests for L{render}, in both dialects.
    """

    def test_stix2(self) -> None:
        """
        A stix2 frame names the type, and carries the document unchanged.
        """
        for item, stream in [(INDICATOR, b"indicator "), (SIGHTING, b"sighting ")]:
            with self.subTest(stream):
                self.assertEqual(render(Dialect.STIX2, item), (stream + item.raw,))

    def test_vast_intel(self) -> None:
        """
        A vast frame carries the VAST threat intelligence format, one frame for each observable.
        """
        item = an_indicator(pattern="[ipv4-addr:value IN ('192.0.2.1', '192.0.2.2')]")
        tails = render(Dialect.VAST, item)
        self.assertEqual(
            [json.loads(tail) for tail in tails],
            [
                {
                    "ioc": ioc,
                    "type": "ip",
                    "reference": f"threatbus__{indicator_id(1)}",
                    "operation": "ADD",
                }
                for ioc in ("192.0.2.1", "192.0.2.2")
            ],
        )
        self.assertEqual({tail[:1] for tail in tails}, {b" "})

    def test_vast_sighting(self) -> None:
        """
        A sighting is encoded like the report of a VAST matcher.
        """
        (tail,) = render(Dialect.VAST, a_sighting(5))
        self.assertEqual(
            json.loads(tail),
            {"ts": "1970-01-01T00:00:05.000000Z", "reference": f"threatbus__{indicator_id(5)}"},
        )

    def test_inexpressible(self) -> None:
        """
        An item that a dialect cannot express has no frame.
        """
        pattern = f"[file:hashes.MD5 = '{'a' * 32}']"
        self.assertEqual(render(Dialect.VAST, an_indicator(pattern=pattern)), ())

    def test_unexpected_properties(self) -> None:
        """
        A sighting that an earlier version admitted, but that cannot be encoded, is refused or
        left out.
        """
        for fields in ({"modified": "yesterday", "last_seen": None}, {"created": 7}):
            with self.subTest(fields):
                sighting = a_sighting(**fields)
                self.assertEqual(render(Dialect.VAST, sighting), ())
                self.assertRaises(DocumentInvalid, render, Dialect.STIX2, sighting)
        self.assertEqual(render(Dialect.VAST, a_sighting(x_threatbus_sighting_context=5)), ())

    def test_snapshot_request(self) -> None:
        """
        A snapshot request has an id and an age in seconds.
        """
        for stream, type_ in [(Stream.INTEL, 1), (Stream.SIGHTING, 2)]:
            with self.subTest(stream):
                kind, _, payload = encode_snapshot_request("x", stream, 60).partition(b" ")
                self.assertEqual(kind, b"snapshotrequest")
                self.assertEqual(
                    json.loads(payload),
                    {
                        "type": "snapshotrequest",
                        "snapshot_type": type_,
                        "snapshot_id": "x",
                        "snapshot": 60,
                    },
                )

    def test_stream(self) -> None:
        """
        An item belongs to one stream.
        """
        for item, stream in [(INDICATOR, Stream.INTEL), (SIGHTING, Stream.SIGHTING)]:
            self.assertIs(stream_of(item), stream)

    def test_document(self) -> None:
        """
        L{render_document} encodes a document as L{render} encodes the item.
        """
        other = an_indicator(pattern="[url:value LIKE 'x']")
        items: list[Indicator | Sighting] = [a_sighting(), other, an_indicator(2)]
        for dialect in Dialect:
            for item in items:
                self.assertEqual(
                    render_document(dialect, stream_of(item), item.raw), render(dialect, item)
                )

    def test_numbered(self) -> None:
        """
        L{render_numbered} encodes each item as L{render} does, and numbers each frame.
        """
        other = an_indicator(pattern="[url:value LIKE 'x']")
        items: list[Indicator | Sighting] = [a_sighting(), other, an_indicator(2)]
        for dialect in Dialect:
            expected = [(n, tail) for n, item in enumerate(items) for tail in render(dialect, item)]
            self.assertEqual(
                render_numbered(dialect, list(enumerate(items))),
                ([n for n, _ in expected], [tail for _, tail in expected]),
            )


class DeliveryTests(SynchronousTestCase):
    """
    Tests for L{decode_delivery}.
    """

    def test_decoded(self) -> None:
        """
        A subscriber decodes the item that the bus encoded.
        """
        for item in (an_indicator(), SIGHTING):
            for tail in render(Dialect.STIX2, item):
                self.assertEqual(decode_delivery(P2P, [P2P + tail]), item)

    def test_indicators_stay_whole(self) -> None:
        """
        The type of a delivery is that of its payload.
        """
        item = decode_delivery(P2P, [P2P + b"indicator " + indicator_document()])
        self.assertIsInstance(item, Indicator)
        frame = P2P + b"sighting " + indicator_document()
        self.assertRaises(Invalid, decode_delivery, P2P, [frame])

    def test_refused(self) -> None:
        """
        Another topic, another type, and several frames are refused.
        """
        good = P2P + b"indicator " + indicator_document()
        for message in (
            [],
            [good, b""],
            [b"b" * 32 + good[32:]],
            [P2P],
            [P2P + b"snapshotrequest {}"],
            [P2P + b" " + indicator_document()],
            *([P2P + b"indicator " + payload] for payload in payloads),
            *([P2P + b"sighting " + payload] for payload in payloads),
        ):
            with self.subTest([frame[:60] for frame in message]):
                e = self.assertRaises(Invalid, decode_delivery, P2P, message)
                self.assertLess(len(str(e)), 500)

    @given(st.lists(st.binary().map(lambda tail: P2P + tail), max_size=2) | st.lists(st.binary()))
    def test_any(self, message: list[bytes]) -> None:
        """
        Every message is decoded or refused.
        """
        try:
            decode_delivery(P2P, message)
        except Invalid as e:
            self.assertNotIn("\n", str(e))
