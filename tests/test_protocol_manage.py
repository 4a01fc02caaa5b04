"""
Tests for L{tbvast.protocol.manage}.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import ProtocolInvalid
from tbvast.protocol import manage
from tbvast.protocol.manage import (
    PROTOCOL,
    Heartbeat,
    Publish,
    Status,
    Subscribe,
    Unknown,
    Unsubscribe,
    decode_published,
    decode_reply,
    decode_subscribed,
)
from tbvast.protocol.topics import Dialect
from tbvast.values import Position
from tests.doubles import decode_request

P2P = "a" * 32

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children),
    max_leaves=8,
)

requests = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["subscribe", "unsubscribe", "heartbeat", "publish", "status"])
        | json_values,
        "topic": st.text() | st.lists(st.text(), max_size=3) | json_values,
        "snapshot": st.integers() | json_values,
        "protocol": json_values,
        "name": json_values,
        "report": st.dictionaries(st.text(), json_values) | json_values,
        "documents": st.lists(json_values, max_size=3) | json_values,
    },
)

reply_keys = ["topic", "pub_port", "sub_port", "status", "outcomes", "reasons"]

broken: list[bytes] = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"subscribe",
    b"{",
    b'{"action":"subscribe","topic":"t"} x',
    b'{"action":"subscribe","topic":"\xff"}',
    b'{"action":"subscribe","topic":"\\ud800"}',
    b"[]",
    b"[" * 100_000,
    b'{"topic":' * 100_000,
    b'{"action":"publish","documents":' + b"[" * 100_000,
    b'{"action":"subscribe","topic":"t","snapshot":' + b"1" * 5000 + b"}",
    b"x" * (10 << 20),
    b'{"action":"' + b"x" * (10 << 20),
]
"""
What is no request, and what the decoders have to get over.
"""


def request(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


class RequestTests(SynchronousTestCase):
    """
    Tests for L{decode_request}.
    """

    def test_subscribe(self) -> None:
        """
        A topic or several, and an optional number of days.
        """
        cases: list[tuple[dict[str, Any], Subscribe]] = [
            (
                {"topic": "stix2/indicator", "snapshot": 30},
                Subscribe(("stix2/indicator",), 30, Dialect.STIX2, "", ""),
            ),
            (
                {"topic": "threatbus/intel"},
                Subscribe(("threatbus/intel",), 0, Dialect.VAST, "", ""),
            ),
            (
                {"topic": ["a", "b", "a"], "snapshot": None, "protocol": PROTOCOL, "name": "me"},
                Subscribe(("a", "b"), 0, Dialect.STIX2, PROTOCOL, "me"),
            ),
            (
                {"topic": ["threatbus/intel"], "snapshot": "7"},
                Subscribe(("threatbus/intel",), 7, Dialect.VAST, "", ""),
            ),
            (
                {"topic": ["threatbus/intel", "threatbus/sighting"], "snapshot": 2.0},
                Subscribe(("threatbus/intel", "threatbus/sighting"), 2, Dialect.STIX2, "", ""),
            ),
            (
                {"topic": "anything", "unheard": {"of": []}},
                Subscribe(("anything",), 0, Dialect.STIX2, "", ""),
            ),
        ]
        for fields, expected in cases:
            with self.subTest(fields):
                decoded = decode_request(request(action="subscribe", **fields))
                self.assertEqual(decoded, expected)

    def test_unsubscribe(self) -> None:
        """
        The subscription's own topic determines the dialect.
        """
        for topic, dialect in [(P2P, Dialect.STIX2), ("threatbus/intelabc", Dialect.VAST)]:
            with self.subTest(topic):
                self.assertEqual(
                    decode_request(request(action="unsubscribe", topic=topic)),
                    Unsubscribe(topic, dialect),
                )

    def test_heartbeat(self) -> None:
        """
        A heartbeat may carry a report.
        """
        cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({}, {}),
            ({"report": None}, {}),
            ({"report": {"a": 1}}, {"a": 1}),
        ]
        for fields, report in cases:
            with self.subTest(fields):
                self.assertEqual(
                    decode_request(request(action="heartbeat", topic=P2P, **fields)),
                    Heartbeat(P2P, report),
                )

    def test_publish(self) -> None:
        """
        Documents are decoded byte for byte, whatever they hold.
        """
        raw = b'{"action":"publish","documents":[{ "a" : 1.0 },null,"x"]}'
        self.assertEqual(decode_request(raw), Publish((b'{ "a" : 1.0 }', b"null", b'"x"')))
        self.assertEqual(decode_request(request(action="publish")), Publish(()))

    def test_status(self) -> None:
        """
        The status is requested.
        """
        self.assertEqual(decode_request(request(action="status")), Status())

    def test_unknown(self) -> None:
        """
        Another action, or no topic, is an unknown request; the topic determines the dialect of
        the reply.
        """
        cases: list[tuple[dict[str, Any], Dialect]] = [
            ({}, Dialect.STIX2),
            ({"action": "subscribe"}, Dialect.STIX2),
            ({"action": "subscribe", "topic": ""}, Dialect.STIX2),
            ({"action": "subscribe", "topic": []}, Dialect.STIX2),
            ({"action": "heartbeat", "topic": None}, Dialect.STIX2),
            ({"action": "jump", "topic": "stix2/indicator"}, Dialect.STIX2),
            ({"action": "jump", "topic": "threatbus/intel"}, Dialect.VAST),
            ({"topic": "threatbus/intel"}, Dialect.VAST),
            ({"action": 7, "topic": "threatbus/intel"}, Dialect.VAST),
            ({"action": "unsubscribe", "topic": [P2P, "b" * 32]}, Dialect.STIX2),
            ({"action": "heartbeat", "topic": [P2P, "b" * 32]}, Dialect.STIX2),
        ]
        for fields, dialect in cases:
            with self.subTest(fields):
                self.assertEqual(decode_request(request(**fields)), Unknown(dialect))

    def test_wrong_types(self) -> None:
        """
        A property of a wrong type is named.
        """
        cases: list[tuple[str, dict[str, Any]]] = [
            ("snapshot", {"snapshot": "a week"}),
            ("snapshot", {"snapshot": 1.5}),
            ("snapshot", {"snapshot": -1}),
            ("snapshot", {"snapshot": True}),
            ("snapshot", {"snapshot": [1]}),
            ("snapshot", {"snapshot": "1" * 5000}),
            ("snapshot", {"snapshot": "\u0663"}),
            ("topic", {"topic": 7}),
            ("topic", {"topic": {"a": 1}}),
            ("topic", {"topic": ["a", 7]}),
            ("topic", {"topic": [["a"]]}),
            ("protocol", {"protocol": 1}),
            ("name", {"name": ["me"]}),
            ("report", {"report": [1]}),
            ("report", {"report": {"a": "x" * 65536}}),
            ("topic", {"topic": "t" * 257}),
            ("name", {"name": "n" * 257}),
            ("documents", {"documents": {"a": 1}}),
        ]
        for field, fields in cases:
            with self.subTest(fields):
                raw = request(action="subscribe", **{"topic": "t", **fields})
                e = self.assertRaises(ProtocolInvalid, decode_request, raw)
                self.assertEqual(e.field, field)

    def test_broken(self) -> None:
        """
        A request that is not a JSON object is refused, in a message of bounded length.
        """
        for raw in broken:
            with self.subTest(raw[:40]):
                e = self.assertRaises(ProtocolInvalid, decode_request, raw)
                self.assertLess(len(str(e)), 500)

    @given(st.binary() | requests.map(lambda fields: json.dumps(fields).encode()))
    def test_any(self, raw: bytes) -> None:
        """
        Every request is decoded or refused.
        """
        self.assert_decoded_or_refused(decode_request, raw)

    def assert_decoded_or_refused(self, decode: Callable[[bytes], Any], raw: bytes) -> None:
        try:
            decode(raw)
        except ProtocolInvalid as e:
            self.assertNotIn("\n", str(e))


class ReplyTests(SynchronousTestCase):
    """
    Every reply of the manage endpoint, as the subscriber reads it.
    """

    def test_subscribed(self) -> None:
        """
        The reply has the keys of both dialects, and those of the extension only for its
        speakers.
        """
        plain = {
            "topic": P2P,
            "pub_port": 13371,
            "sub_port": 13372,
            "pub_endpoint": "bus.example:13371",
            "sub_endpoint": "bus.example:13372",
            "status": "success",
        }
        reply = manage.subscribed(P2P, "bus.example", 13371, 13372, None)
        self.assertEqual(json.loads(reply), plain)
        beginning = Position("some plugin", 17)
        reply = manage.subscribed(P2P, "bus.example", 13371, 13372, beginning)
        self.assertEqual(
            json.loads(reply),
            {**plain, "protocol": PROTOCOL, "plugin": "some plugin", "number": 17},
        )
        self.assertEqual(
            decode_subscribed(reply),
            manage.Subscribed(P2P, 13371, 13372, "success", PROTOCOL, "some plugin", 17),
        )

    def test_unsubscribed(self) -> None:
        """
        Only stix2 reports an unknown topic.
        """
        for dialect, known, reply in [
            (Dialect.STIX2, True, b'{"status":"success"}'),
            (Dialect.STIX2, False, b'{"status":"error"}'),
            (Dialect.VAST, True, b"Success"),
            (Dialect.VAST, False, b"Success"),
        ]:
            with self.subTest(dialect=dialect, known=known):
                self.assertEqual(manage.unsubscribed(dialect, known), reply)

    def test_unknown(self) -> None:
        """
        Each dialect has its own reply to an unknown request.
        """
        self.assertEqual(manage.unknown_request(Dialect.STIX2), b'{"status":"unknown request"}')
        self.assertEqual(manage.unknown_request(Dialect.VAST), b"Unknown request")

    def test_constants(self) -> None:
        """
        The replies to heartbeats and to malformed requests.
        """
        self.assertEqual(json.loads(manage.SUCCESS), {"status": "success"})
        self.assertEqual(json.loads(manage.ERROR), {"status": "error"})

    def test_published(self) -> None:
        """
        Outcomes and reasons are decoded as they were encoded.
        """
        raw = manage.encode_published(["accepted", "refused"], {1: "no pattern"})
        published = decode_published(raw)
        self.assertEqual(published.outcomes, ["accepted", "refused"])
        self.assertEqual(published.reasons, {1: "no pattern"})
        self.assertEqual(json.loads(raw)["status"], "success")

    def test_old_hosts(self) -> None:
        """
        A Threat Bus host's reply has no trace of the extension.
        """
        raw = request(topic=P2P, pub_port=1, sub_port=2, status="success")
        self.assertEqual(decode_subscribed(raw), manage.Subscribed(P2P, 1, 2))

    def test_refusals(self) -> None:
        """
        A refusal is no subscription and no outcome of publishing.
        """
        for raw in (manage.ERROR, b"Unknown request", b"Success", b'"x"', b"[1]"):
            for decode in (decode_subscribed, decode_published):
                with self.subTest(raw=raw, decode=decode.__name__):
                    self.assertRaises(ProtocolInvalid, decode, raw)

    def test_broken(self) -> None:
        """
        A reply that is not a JSON object is refused.
        """
        for raw in broken:
            for decode in (decode_reply, decode_subscribed, decode_published):
                with self.subTest(raw=raw[:40], decode=decode.__name__):
                    e = self.assertRaises(ProtocolInvalid, decode, raw)
                    self.assertLess(len(str(e)), 500)

    @given(
        st.binary()
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("topic", "pub_port", "sub_port", "status", "outcomes", "reasons"), json_values
            ),
        ).map(lambda fields: json.dumps(fields).encode())
    )
    def test_any(self, raw: bytes) -> None:
        """
        Every reply is decoded or refused.
        """
        for decode in (decode_reply, decode_subscribed, decode_published):
            try:
                decode(raw)
            except ProtocolInvalid as e:
                self.assertNotIn("\n", str(e))


class AskingTests(SynchronousTestCase):
    """
    The bus decodes the requests that a subscriber encodes.
    """

    def test_subscribe(self) -> None:
        """
        A single topic is encoded as a text, because a Threat Bus host expects that.
        """
        raw = manage.encode_subscribe(["stix2/indicator"], 30, "me")
        self.assertEqual(json.loads(raw)["topic"], "stix2/indicator")
        self.assertEqual(
            decode_request(raw), Subscribe(("stix2/indicator",), 30, Dialect.STIX2, PROTOCOL, "me")
        )
        both = manage.encode_subscribe(["stix2/indicator", "stix2/sighting"], 0, "me")
        self.assertEqual(
            decode_request(both),
            Subscribe(("stix2/indicator", "stix2/sighting"), 0, Dialect.STIX2, PROTOCOL, "me"),
        )

    def test_others(self) -> None:
        """
        The other requests are decoded as they were encoded.
        """
        for raw, expected in [
            (manage.encode_unsubscribe(P2P), Unsubscribe(P2P, Dialect.STIX2)),
            (manage.encode_heartbeat(P2P), Heartbeat(P2P, {})),
            (manage.encode_heartbeat(P2P, {"a": 1}), Heartbeat(P2P, {"a": 1})),
            (manage.encode_publish([b'{"a": 1}', b"2"]), Publish((b'{"a": 1}', b"2"))),
            (manage.encode_publish([]), Publish(())),
            (manage.encode_status(), Status()),
        ]:
            with self.subTest(raw):
                self.assertEqual(decode_request(raw), expected)

    def test_plain_heartbeat(self) -> None:
        """
        A heartbeat without a report is that of any Threat Bus application.
        """
        self.assertEqual(
            json.loads(manage.encode_heartbeat(P2P)), {"action": "heartbeat", "topic": P2P}
        )


class SubscribedTests(SynchronousTestCase):
    """
    Replies to a subscribe request with impossible values.
    """

    def test_refused(self) -> None:
        """
        Impossible values are refused, except for the extension's keys from a Threat Bus host.
        """
        reply = {"topic": "x", "pub_port": 1, "sub_port": 65535, "plugin": "", "number": -1}
        numbered = {"protocol": PROTOCOL, "plugin": "p", "number": 1}
        self.assertEqual(decode_subscribed(json.dumps(reply).encode()).topic, "x")
        decode_subscribed(json.dumps({**reply, **numbered}).encode())
        for change in (
            {"pub_port": -1},
            {"pub_port": 0},
            {"sub_port": 1 << 16},
            {"sub_port": 1 << 40},
            {"topic": ""},
            {"topic": "x" * 10_000},
            {"topic": "\ud800"},
            {"status": "error"},
            {**numbered, "number": -1},
            {**numbered, "number": 1 << 63},
            {**numbered, "number": 1 << 70},
            {**numbered, "plugin": ""},
            {**numbered, "plugin": "x" * 10_000},
        ):
            with self.subTest(change=str(change)[:50]):
                raw = json.dumps({**reply, **change}).encode()
                self.assertRaises(ProtocolInvalid, decode_subscribed, raw)
