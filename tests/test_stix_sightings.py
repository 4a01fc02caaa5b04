"""
Tests for L{tbvast.stix.sightings} and L{tbvast.protocol.vast_dialect}.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import DocumentInvalid
from tbvast.protocol.vast_dialect import (
    decode_vast_sighting,
    encode_vast_intel,
    encode_vast_sighting,
)
from tbvast.stix.documents import microseconds
from tbvast.stix.indicators import Indicator, decode_indicator, removal
from tbvast.stix.sightings import (
    MatchType,
    Sighting,
    canonical,
    decode_sighting,
    event_time,
    make_sighting,
    sighting_id,
)

NOW = datetime(2024, 5, 17, 12, 30, tzinfo=UTC)
SEEN = datetime(2011, 8, 14, 7, 38, 53, 914038, tzinfo=UTC)
ID = "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"
SIGHTING = "sighting--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"
EVENT = {
    "timestamp": "2011-08-14T09:38:53.914038+0200",
    "event_type": "dns",
    "dns": {"rrname": "evil.example", "answers": [{"rdata": "192.0.2.1"}]},
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


def indicator(pattern: str, **more: Any) -> Indicator:
    """
    An indicator with a pattern.
    """
    fields = {"type": "indicator", "id": ID, "pattern": pattern, **more}
    return decode_indicator(msgspec.json.encode(fields))


def sighting(event: dict[str, Any] = EVENT, **more: Any) -> Sighting:
    """
    The sighting of an indicator in an event.
    """
    arguments: dict[str, Any] = {
        "indicator_id": ID,
        "indicator_raw": indicator("[domain-name:value = 'evil.example']").raw,
        "values": ["evil.example"],
        "match_type": MatchType.RETRO,
        "event": event,
        "context": event,
        "engine": "tenzir",
        "now": NOW,
    }
    return make_sighting(**{**arguments, **more})


class MakeSightingTests(SynchronousTestCase):
    """
    Tests for L{make_sighting}.
    """

    def test_made(self) -> None:
        """
        A sighting tells the indicator, the time and the event.
        """
        made = sighting()
        self.assertEqual(
            msgspec.json.decode(made.raw),
            {
                "type": "sighting",
                "spec_version": "2.1",
                "id": made.id,
                "created": "2024-05-17T12:30:00.000000Z",
                "modified": "2024-05-17T12:30:00.000000Z",
                "first_seen": "2011-08-14T07:38:53.914038Z",
                "last_seen": "2011-08-14T07:38:53.914038Z",
                "count": 1,
                "sighting_of_ref": ID,
                "x_threatbus_indicator": {
                    "type": "indicator",
                    "id": ID,
                    "pattern": "[domain-name:value = 'evil.example']",
                },
                "x_threatbus_indicator_value": "evil.example",
                "x_threatbus_match_type": "RETRO",
                "x_threatbus_source": "tbvast-bridge/tenzir",
                "x_threatbus_sighting_context": EVENT,
            },
        )
        self.assertEqual(decode_sighting(made.raw), made)

    def test_context(self) -> None:
        """
        The context may be a transformation of the event; the id depends on the event.
        """
        made = sighting(context={"a": 1})
        self.assertEqual(made.id, sighting().id)
        self.assertEqual(msgspec.json.decode(made.raw)["x_threatbus_sighting_context"], {"a": 1})

    def test_together(self) -> None:
        """
        Of several values that were seen together, all are named; the id is the event's.
        """
        made = sighting(values=["evil.example", "192.0.2.1"])
        self.assertEqual(made.id, sighting().id)
        said = msgspec.json.decode(made.raw)
        self.assertEqual(said["x_threatbus_indicator_value"], "evil.example")
        self.assertEqual(said["x_threatbus_indicator_values"], ["evil.example", "192.0.2.1"])

    def test_without_indicator(self) -> None:
        """
        The indicator's document may be missing.
        """
        self.assertNotIn(
            "x_threatbus_indicator", msgspec.json.decode(sighting(indicator_raw=None).raw)
        )

    def test_without_time(self) -> None:
        """
        An event that does not say when it happened, happened when it was found.
        """
        self.assertEqual(sighting({"a": 1}).last_seen, microseconds(NOW))

    def test_same_id(self) -> None:
        """
        The id depends on the indicator, the event and the engine, and on nothing else.
        """
        later = datetime(2030, 1, 1, tzinfo=UTC)
        again = sighting(
            dict(reversed(EVENT.items())), now=later, match_type=MatchType.LIVE, indicator_raw=None
        )
        self.assertEqual(again.id, sighting().id)
        self.assertEqual(sighting().id, sighting_id(ID, canonical(EVENT), "tenzir"))
        self.assertNotEqual(sighting(engine="vast").id, sighting().id)
        self.assertNotEqual(sighting({**EVENT, "a": 1}).id, sighting().id)
        other = "indicator--00000000-17d4-4cbf-938f-98ee46b3cd3f"
        self.assertNotEqual(sighting(indicator_id=other).id, sighting().id)

    @given(st.dictionaries(st.sampled_from(["ts", "time", "timestamp", "a"]), json_values))
    def test_any_event(self, event: dict[str, Any]) -> None:
        """
        Every event makes a sighting that can be read again, also in the old format.
        """
        made = sighting(event)
        self.assertEqual(decode_sighting(made.raw), made)
        reported = decode_vast_sighting(encode_vast_sighting(made))
        self.assertEqual((reported.indicator, reported.last_seen), (ID, made.last_seen))


class EventTimeTests(SynchronousTestCase):
    """
    Tests for L{event_time}.
    """

    def test_forms(self) -> None:
        """
        The spellings of Suricata, Zeek, OCSF and the engine.
        """
        for event in (
            {"timestamp": "2011-08-14T07:38:53.914038+0000"},
            {"timestamp": "2011-08-14T09:38:53.914038+0200", "ts": 5},
            {"ts": "2011-08-14T07:38:53.914038Z"},
            {"ts": "2011-08-14T07:38:53.914038"},
            {"ts": 1313307533.914038},
            {"time": "2011-08-14T07:38:53.914038Z"},
            {"timestamp": {"a": 1}, "ts": True, "time": 1313307533914.038},
        ):
            self.assertEqual(event_time(event), SEEN)
        whole = SEEN.replace(microsecond=914000)
        self.assertEqual(event_time({"time": 1313307533914}), whole)

    def test_none(self) -> None:
        """
        An event may not say, or say nonsense.
        """
        for event in (
            {},
            {"ts": None},
            {"ts": "yesterday"},
            {"ts": 1e300},
            {"ts": float("nan")},
            {"ts": 10**40},
            {"timestamp": "0001-01-01T00:00:00+14:00"},
        ):
            self.assertIsNone(event_time(event))


class DecodeSightingTests(SynchronousTestCase):
    """
    Tests for L{decode_sighting}.
    """

    def test_decoded(self) -> None:
        """
        A sighting need not say when.
        """
        raw = msgspec.json.encode({"type": "sighting", "id": SIGHTING, "sighting_of_ref": ID})
        self.assertEqual(decode_sighting(raw), Sighting(SIGHTING, ID, None, raw))

    def test_refused(self) -> None:
        """
        The first field that is wrong is named.
        """
        good = {"type": "sighting", "id": SIGHTING, "sighting_of_ref": ID}
        for changes, field, expected in (
            ({"type": "indicator"}, "type", "the type sighting"),
            ({"id": ID}, "id", "sighting--UUID"),
            ({"id": None}, "id", "sighting--UUID"),
            ({"sighting_of_ref": "x"}, "sighting_of_ref", "TYPE--UUID"),
            ({"last_seen": "now"}, "last_seen", "a timestamp"),
        ):
            raw = msgspec.json.encode({**good, **changes})
            error = self.assertRaises(DocumentInvalid, decode_sighting, raw)
            self.assertEqual(error.field, field)
            self.assertIn(expected, str(error))

    @given(st.binary() | json_values.map(msgspec.json.encode))
    def test_total(self, raw: bytes) -> None:
        """
        No bytes raise anything but a refusal.
        """
        self.assertRaises(DocumentInvalid, decode_sighting, raw)
        self.assertRaises(DocumentInvalid, decode_vast_sighting, raw)

    @given(
        st.dictionaries(
            st.sampled_from(["type", "id", "sighting_of_ref", "last_seen", "ts", "reference"]),
            json_values
            | st.sampled_from(
                [f"threatbus__{ID}", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]
            ),
        )
    )
    def test_total_fields(self, changes: dict[str, Any]) -> None:
        """
        Neither do the values of its fields.
        """
        good = {"type": "sighting", "id": SIGHTING, "sighting_of_ref": ID}
        raw = msgspec.json.encode({**good, **changes})
        try:
            encode_vast_sighting(decode_sighting(raw))
        except DocumentInvalid as e:
            str(e).encode("utf-8")
        try:
            decode_sighting(decode_vast_sighting(raw).raw)
        except DocumentInvalid as e:
            str(e).encode("utf-8")


class VASTFormatTests(SynchronousTestCase):
    """
    Tests for L{encode_vast_intel} and the old format of sightings.
    """

    def assertEncoded(self, found: Indicator, *expected: tuple[str, str, str]) -> None:
        """
        An indicator is expressed by certain values, types and operations.
        """
        self.assertEqual(
            [msgspec.json.decode(raw) for raw in encode_vast_intel(found)],
            [
                {
                    "ioc": value,
                    "type": type_,
                    "reference": f"threatbus__{ID}",
                    "operation": operation,
                }
                for value, type_, operation in expected
            ],
        )

    def test_exact(self) -> None:
        """
        The document is the one that the old clients know.
        """
        self.assertEqual(
            encode_vast_intel(indicator("[ipv4-addr:value = '192.0.2.1']")),
            [
                b'{"ioc":"192.0.2.1","type":"ip","reference":"threatbus__' + ID.encode() + b'",'
                b'"operation":"ADD"}'
            ],
        )

    def test_expressible(self) -> None:
        """
        Addresses, domains and URLs can be expressed; each alternative is a document.
        """
        self.assertEncoded(
            indicator(
                "[ipv6-addr:value = '2001:DB8::1' OR domain-name:value = 'Evil.example'"
                f" OR url:value = 'https://Evil.example/x' OR file:hashes.MD5 = '{'d' * 32}'"
                " OR ipv4-addr:value = '192.0.2.0/24' OR domain-name:value = '192.0.2.1']",
                x_threatbus_update="EDIT",
            ),
            ("2001:db8::1", "ipv6", "EDIT"),
            ("evil.example", "domain", "EDIT"),
            ("https://Evil.example/x", "url", "EDIT"),
            ("192.0.2.1", "ip", "EDIT"),
        )
        self.assertEncoded(
            indicator("[ipv4-addr:value = '192.0.2.1']", revoked=True),
            ("192.0.2.1", "ip", "REMOVE"),
        )

    def test_inexpressible(self) -> None:
        """
        Observables that the format cannot express are left out.
        """
        for each in (
            indicator("[file:name = 'x']"),
            indicator("[ipv4-addr:value = '192.0.2.1' AND domain-name:value = 'evil.example']"),
            indicator("[ipv4-addr:value = '192.0.2.999']"),
            indicator("alert ip any", pattern_type="snort"),
            indicator("[", revoked=True),
            decode_indicator(removal(ID, NOW)),
        ):
            self.assertEncoded(each)

    def test_sighting(self) -> None:
        """
        A matcher's report becomes a sighting with the rest of it as the context.
        """
        raw = msgspec.json.encode(
            {
                "ts": "2011-08-14T07:38:53.914038Z",
                "reference": f"threatbus__{ID}",
                "uid": "CyHxNh2gX1",
            }
        )
        found = decode_vast_sighting(raw)
        self.assertEqual(found.indicator, ID)
        self.assertEqual(found.last_seen, microseconds(SEEN))
        self.assertEqual(decode_sighting(found.raw), found)
        self.assertEqual(
            msgspec.json.decode(found.raw)["x_threatbus_sighting_context"], {"uid": "CyHxNh2gX1"}
        )
        self.assertEqual(decode_vast_sighting(raw + b" "), found)
        self.assertEqual(msgspec.json.decode(encode_vast_sighting(found)), msgspec.json.decode(raw))

    def test_sighting_refused(self) -> None:
        """
        A report needs a time and a reference of ours.
        """
        for report, field in (
            ({"ts": "2011-08-14T07:38:53Z", "reference": "other__5"}, "reference"),
            ({"ts": "2011-08-14T07:38:53Z", "reference": ID}, "reference"),
            ({"ts": "2011-08-14T07:38:53Z", "reference": "threatbus__5"}, "reference"),
            ({"ts": "2011-08-14T07:38:53Z"}, "reference"),
            ({"ts": "x", "reference": f"threatbus__{ID}"}, "ts"),
            ({"reference": f"threatbus__{ID}"}, "ts"),
        ):
            raw = msgspec.json.encode(report)
            error = self.assertRaises(DocumentInvalid, decode_vast_sighting, raw)
            self.assertEqual(error.field, field)
