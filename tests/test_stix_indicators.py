"""
Tests for L{tbvast.stix.indicators}.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import DocumentInvalid, PatternInvalid
from tbvast.stix.documents import from_microseconds, microseconds
from tbvast.stix.indicators import (
    Operation,
    compatible,
    decode_indicator,
    make_indicator,
    removal,
    split_bundle,
    with_operation,
)
from tbvast.stix.observables import Kind, Observable, guess
from tbvast.stix.pattern_conditions import matchable

STIX = FilePath(__file__).sibling("data").child("stix")
TIMES = ("created", "modified", "valid_from", "valid_until")
READABLE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z\Z")
NOW = datetime(2024, 5, 17, 12, 30, 0, 250000, tzinfo=UTC)
ID = "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"


def document(**changes: Any) -> bytes:
    """
    An indicator's document; C{None} leaves a field out.
    """
    fields = {
        "type": "indicator",
        "spec_version": "2.1",
        "id": ID,
        "created": "2016-04-06T20:03:48.000Z",
        "modified": "2017-01-27T13:49:53.935Z",
        "name": "Poison Ivy",
        "pattern": "[domain-name:value = 'evil.example']",
        "pattern_type": "stix",
        "valid_from": "2016-04-06T20:03:48.123456Z",
    }
    fields.update(changes)
    return msgspec.json.encode({key: value for key, value in fields.items() if value is not None})


MAY = "2024-05-17T00:00:00.000000Z"
EPOCH = "1970-01-01T00:00:00.000000Z"

fields = st.sampled_from(
    [
        *("type", "id", "created", "modified", "pattern", "pattern_type", "other"),
        *("valid_from", "valid_until", "revoked", "x_threatbus_update"),
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        [
            "indicator",
            ID,
            "2016-04-06T20:03:48Z",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "REMOVE",
        ]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


class DecodeIndicatorTests(SynchronousTestCase):
    """
    Tests for L{decode_indicator}.
    """

    def assertRefused(self, raw: bytes, field: str, expected: str) -> None:
        """
        C{raw} is refused with a bounded line that names a field and its valid values.
        """
        error = self.assertRaises(DocumentInvalid, decode_indicator, raw)
        self.assertEqual(error.field, field)
        self.assertIn(expected, error.expected)
        self.assertNotIn("\n", str(error))
        self.assertLess(len(str(error)), 500)

    def test_decoded(self) -> None:
        """
        The indicator has the required properties, and the document itself.
        """
        raw = document(valid_until="2030-01-01T00:00:00Z", x_other={"a": [1]})
        indicator = decode_indicator(raw)
        self.assertEqual(indicator.id, ID)
        self.assertEqual(
            from_microseconds(indicator.modified).isoformat()[:23], "2017-01-27T13:49:53.935"
        )
        self.assertEqual(indicator.pattern, "[domain-name:value = 'evil.example']")
        self.assertEqual(indicator.pattern_type, "stix")
        self.assertEqual(indicator.valid_from, 1459973028123456)
        self.assertEqual(indicator.valid_until, microseconds(datetime(2030, 1, 1, tzinfo=UTC)))
        self.assertIs(indicator.operation, Operation.ADD)
        self.assertIs(indicator.raw, raw)

    def test_version(self) -> None:
        """
        Without C{modified}, C{created} is the version, and without that there is none.
        """
        created = decode_indicator(document(modified=None)).modified
        self.assertEqual(created, 1459973028000000)
        self.assertEqual(decode_indicator(document(modified=None, created=None)).modified, 0)

    def test_offset(self) -> None:
        """
        A time in another zone is the same time.
        """
        indicator = decode_indicator(document(modified="2017-01-27T15:49:53.935+02:00"))
        self.assertEqual(indicator.modified, decode_indicator(document()).modified)

    def test_surely_matchable(self) -> None:
        """
        It is known of an indicator that is in force whether its pattern is one of the
        frequent ones; whether it is matched at all is not asked of a withdrawal.
        """
        for changes, sure in (
            ({}, True),
            ({"pattern": "[domain-name:value = '192.0.2.256']"}, False),
            ({"pattern_type": "snort"}, False),
            ({"revoked": True}, False),
        ):
            self.assertIs(decode_indicator(document(**changes)).surely_matchable, sure)

    def test_stix_2_0(self) -> None:
        """
        Before STIX 2.1 there were no pattern types.
        """
        indicator = decode_indicator(document(pattern_type=None, spec_version=None))
        self.assertEqual(indicator.pattern_type, "stix")

    def test_other_pattern_type(self) -> None:
        """
        Patterns in other languages are carried unread.
        """
        indicator = decode_indicator(document(pattern="alert ip any", pattern_type="snort"))
        self.assertEqual((indicator.pattern, indicator.pattern_type), ("alert ip any", "snort"))

    def test_operations(self) -> None:
        """
        C{x_threatbus_update} and C{revoked} determine the operation.
        """
        for changes, operation in (
            ({"x_threatbus_update": "EDIT"}, Operation.EDIT),
            ({"x_threatbus_update": "REMOVE"}, Operation.REMOVE),
            ({"revoked": True}, Operation.REMOVE),
            ({"revoked": False}, Operation.ADD),
            ({"revoked": True, "x_threatbus_update": "EDIT"}, Operation.REMOVE),
        ):
            self.assertIs(decode_indicator(document(**changes)).operation, operation)

    def test_withdrawal(self) -> None:
        """
        A withdrawal needs no pattern, nor a good one.
        """
        raw = document(x_threatbus_update="REMOVE", pattern=None)
        self.assertIsNone(decode_indicator(raw).pattern)
        raw = document(revoked=True, pattern="[", valid_until="2000-01-01T00:00:00Z")
        self.assertEqual(decode_indicator(raw).pattern, "[")

    def test_broken_pattern(self) -> None:
        """
        A broken pattern is refused where it breaks.
        """
        raw = document(pattern="[domain-name:value = evil.example]")
        error = self.assertRaises(PatternInvalid, decode_indicator, raw)
        self.assertEqual(error.position, 21)

    def test_broken_fields(self) -> None:
        """
        The first field that is wrong is named.
        """
        timestamp = "a timestamp such as"
        for changes, field, expected in (
            ({"type": "malware", "id": 5}, "type", "the type indicator"),
            ({"type": None}, "type", "the type indicator"),
            ({"id": None}, "id", "indicator--UUID"),
            ({"id": 5}, "id", "indicator--UUID"),
            ({"id": "indicator--5"}, "id", "indicator--UUID"),
            ({"id": f"{ID}\n"}, "id", "indicator--UUID"),
            ({"id": ID.replace("indicator", "malware")}, "id", "indicator--UUID"),
            ({"pattern": None}, "pattern", "a pattern"),
            ({"pattern": ["x"] * 1000}, "pattern", "a pattern"),
            ({"created": "yesterday"}, "created", timestamp),
            ({"modified": "2017-01-27T13:49:53"}, "modified", timestamp),
            ({"valid_from": 1459973028}, "valid_from", timestamp),
            ({"valid_until": "2017-02-30T00:00:00Z"}, "valid_until", timestamp),
            ({"valid_until": "2000-01-01T00:00:00Z"}, "valid_until", "later than valid_from"),
            ({"revoked": "yes"}, "revoked", "true or false"),
            ({"x_threatbus_update": "KEEP"}, "x_threatbus_update", "EDIT or REMOVE"),
        ):
            self.assertRefused(document(**changes), field, expected)

    def test_broken_documents(self) -> None:
        """
        Anything but a complete JSON object is refused.
        """
        for raw in (
            b"",
            b"indicator",
            document()[:-1],
            b"\xef\xbb\xbf" + document(),
            document(name="Poison Ivy").replace(b"Ivy", b"\\ud800"),
            b'{"type":"indicator","x":' + b"[" * 100_000,
            b"[" * 100_000,
        ):
            self.assertRefused(raw, "document", "JSON")
        self.assertRefused(document().replace(b"Ivy", b"\xff"), "document", "UTF-8")
        for raw in (b"[]", b"5", b"null"):
            self.assertRefused(raw, "document", "a JSON object")

    def test_published(self) -> None:
        """
        Every published indicator is accepted.
        """
        counts = {
            bundle.basename(): len(
                [decode_indicator(raw) for raw in split_bundle(bundle.getContent()).indicators]
            )
            for bundle in STIX.children()
        }
        self.assertEqual(
            counts,
            {
                "amnesty-cytrox.json": 343,
                "amnesty-novispy.json": 18,
                "apt1.json": 12,
                "poisonivy.json": 25,
            },
        )

    @given(st.binary() | st.text().map(str.encode) | values.map(msgspec.json.encode))
    def test_total(self, raw: bytes) -> None:
        """
        No bytes raise anything but a refusal.
        """
        try:
            decode_indicator(raw)
            split_bundle(raw)
        except (DocumentInvalid, PatternInvalid) as e:
            str(e).encode("utf-8")

    @given(st.dictionaries(fields, values))
    def test_total_fields(self, changes: dict[str, Any]) -> None:
        """
        Neither do the values of its fields.
        """
        raw = document(**changes)
        try:
            indicator = decode_indicator(raw)
        except (DocumentInvalid, PatternInvalid) as e:
            str(e).encode("utf-8")
        else:
            self.assertEqual(indicator.raw, raw)

    @given(st.integers(0, 500), st.binary(max_size=3), st.integers(0, 3))
    def test_total_damaged(self, at: int, put: bytes, gone: int) -> None:
        """
        Nor does damage to a good document.
        """
        raw = document()
        try:
            decode_indicator(raw[:at] + put + raw[at + gone :])
        except (DocumentInvalid, PatternInvalid) as e:
            str(e).encode("utf-8")


class MakeIndicatorTests(SynchronousTestCase):
    """
    Tests for L{make_indicator}, L{with_operation} and L{removal}.
    """

    def test_made(self) -> None:
        """
        The made indicator can be decoded, and matches its observable.
        """
        for text in ("192.0.2.1", "2001:db8::/32", "https://evil.example/'x", "a@evil.example"):
            observable = guess(text)
            raw = make_indicator(observable, now=NOW, source="a list", original=text)
            indicator = decode_indicator(raw)
            self.assertEqual(matchable(indicator.pattern or "").observables, (observable,))
            self.assertEqual(indicator.modified, microseconds(NOW))
            self.assertEqual(indicator.valid_from, microseconds(NOW))
            self.assertEqual(msgspec.json.decode(raw)["labels"], ["a list"])

    def test_same_id(self) -> None:
        """
        The id depends on the kind and the value, and on nothing else.
        """

        def made(kind: Kind, value: str, **more: Any) -> str:
            given = {"now": NOW, "source": "a", **more}
            return decode_indicator(make_indicator(Observable(kind, value), **given)).id

        one = made(Kind.URL, "evil.example/")
        later = datetime(2030, 1, 1, tzinfo=UTC)
        self.assertEqual(made(Kind.URL, "evil.example/", now=later, source="b"), one)
        self.assertEqual(made(Kind.URL, "evil.example/", original="https://evil.example/"), one)
        self.assertNotEqual(made(Kind.URL, "evil.example/x"), one)
        self.assertNotEqual(made(Kind.DOMAIN, "a"), made(Kind.EMAIL, "a"))

    def test_with_operation(self) -> None:
        """
        An operation can be put in, changed and taken out; the rest stays.
        """
        raw = document(x_other=[1, {"a": 1.5}])
        removing = with_operation(raw, Operation.REMOVE)
        self.assertIs(decode_indicator(removing).operation, Operation.REMOVE)
        editing = with_operation(removing, Operation.EDIT)
        self.assertIs(decode_indicator(editing).operation, Operation.EDIT)
        self.assertEqual(
            msgspec.json.decode(with_operation(editing, Operation.ADD)), msgspec.json.decode(raw)
        )
        self.assertRaises(DocumentInvalid, with_operation, b"[]", Operation.EDIT)
        self.assertRaises(DocumentInvalid, with_operation, b"{", Operation.EDIT)

    def test_removal(self) -> None:
        """
        A withdrawal can be made of an id alone.
        """
        indicator = decode_indicator(removal(ID, NOW))
        self.assertEqual(
            (indicator.id, indicator.operation, indicator.modified),
            (ID, Operation.REMOVE, microseconds(NOW)),
        )


class SplitBundleTests(SynchronousTestCase):
    """
    Tests for L{split_bundle}.
    """

    def test_bundle(self) -> None:
        """
        A bundle's indicators come as they are; other objects are counted by type.
        """
        found = split_bundle(STIX.child("apt1.json").getContent())
        self.assertEqual(len(found.indicators), 12)
        self.assertEqual(found.others["relationship"], 30)
        self.assertEqual(sum(found.others.values()), 64)

    def test_forms(self) -> None:
        """
        A single object and a list of objects will do as well.
        """
        raw = document()
        for text in (raw, b" [%s ]" % raw, b'{"type":"bundle","objects":[ %s ]}' % raw):
            found = split_bundle(text)
            self.assertEqual((found.indicators, found.others), ((raw,), {}))
        self.assertEqual(split_bundle(b'{"type":"malware"}').others, {"malware": 1})
        self.assertEqual(split_bundle(b'{"type":"bundle"}').indicators, ())

    def test_broken_indicator(self) -> None:
        """
        A broken indicator is found when it is decoded: the others do not suffer.
        """
        found = split_bundle(b'[{"type":"indicator","id":5},%s,5,{},null]' % document())
        self.assertEqual(len(found.indicators), 2)
        self.assertEqual(found.others, {"not a STIX object": 3})

    def test_refused(self) -> None:
        """
        A document without objects is refused.
        """
        for raw in (b"", b"5", b"{}", b'{"type":5}', b"[1", b'{"type":"bundle","objects":{}}'):
            self.assertRaises(DocumentInvalid, split_bundle, raw)


times = st.builds(
    "2024-05-17{}12:00:0{}{}{}".format,
    st.sampled_from("TTTt "),
    st.integers(0, 9),
    st.just("") | st.integers(1, 12).map(lambda digits: f".{'1234567890'[:digits]}"),
    st.sampled_from(["Z", "Z", "z", "+00:00", "-00:00", "+02:00", "-11:30"]),
)


class CompatibleTests(SynchronousTestCase):
    """
    Tests for L{compatible}.
    """

    def test_as_it_is(self) -> None:
        """
        Documents that Threat Bus's applications can read stay unchanged.
        """
        raw = document(spec_version="2.1", pattern_type="stix")
        self.assertIs(compatible(raw), raw)

    def test_unusual(self) -> None:
        """
        Times become UTC, in microseconds at the most; versions are said.
        """
        unusual = msgspec.json.decode(document())
        unusual.pop("spec_version", None)
        unusual.pop("pattern_type", None)
        unusual["created"] = "2024-01-01T02:00:00+02:00"
        unusual["modified"] = "2024-01-01T00:00:00.123456789Z"
        unusual["name"] = "stays"
        changed = msgspec.json.decode(compatible(msgspec.json.encode(unusual)))
        self.assertEqual(changed["created"], "2024-01-01T00:00:00.000000Z")
        self.assertEqual(changed["modified"], "2024-01-01T00:00:00.123457Z")
        self.assertEqual((changed["spec_version"], changed["pattern_type"]), ("2.1", "stix"))
        self.assertEqual(changed["name"], "stays")

    def test_missing(self) -> None:
        """
        A missing version is taken from the other one, else from the epoch; without a beginning
        the validity begins with the epoch. The result is deterministic.
        """
        for times_given, created, modified, valid_from in (
            ({"created": MAY}, MAY, MAY, EPOCH),
            ({"modified": MAY}, MAY, MAY, EPOCH),
            ({"valid_from": MAY}, EPOCH, EPOCH, MAY),
            ({"created": MAY, "valid_until": EPOCH}, MAY, MAY, "1969-12-31T23:59:59.999999Z"),
            ({}, EPOCH, EPOCH, EPOCH),
        ):
            raw = document(**{**dict.fromkeys(TIMES), **times_given})
            found = msgspec.json.decode(compatible(raw))
            self.assertEqual(
                (found["created"], found["modified"], found["valid_from"]),
                (created, modified, valid_from),
            )
            self.assertEqual(
                decode_indicator(raw).modified, decode_indicator(compatible(raw)).modified
            )

    def test_null(self) -> None:
        """
        A time that is C{null} says nothing, before and after.
        """
        raw = document()[:-1] + b',"valid_until":null}'
        self.assertEqual(msgspec.json.decode(compatible(raw))["valid_until"], None)

    @given(
        st.fixed_dictionaries(
            {name: st.none() | times for name in TIMES}
            | {
                "spec_version": st.sampled_from(["2.1", None]),
                "pattern_type": st.sampled_from(["stix", None]),
                "name": times,
                "x_other": st.fixed_dictionaries({"spec_version": times}),
            }
        )
    )
    def test_always_readable(self, changes: dict[str, Any]) -> None:
        """
        Every decoded document becomes readable without a change of its meaning; readable ones
        stay unchanged.
        """
        raw = document(**changes)
        try:
            indicator = decode_indicator(raw)
        except DocumentInvalid as e:  # not every text above is a time of RFC 3339
            self.assertIn(e.field, TIMES)
            return
        changed = compatible(raw)
        before, after = msgspec.json.decode(raw), msgspec.json.decode(changed)
        for name in TIMES:
            if name in after:
                self.assertRegex(after[name], READABLE)
        needed = {"spec_version", "pattern_type", "created", "modified", "valid_from"}
        self.assertLessEqual(needed, set(after))
        again = decode_indicator(changed)
        self.assertEqual(
            (again.modified, again.valid_until), (indicator.modified, indicator.valid_until)
        )
        if indicator.valid_from is not None:
            self.assertEqual(again.valid_from, indicator.valid_from)
        self.assertEqual((after["name"], after["x_other"]), (before["name"], before["x_other"]))
        self.assertIs(compatible(changed), changed)
        if needed <= set(before) and all(
            READABLE.match(before[name]) for name in TIMES if name in before
        ):
            self.assertIs(changed, raw)
