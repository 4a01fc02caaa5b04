"""
Tests for L{tbvast.stix.admission} and L{tbvast.stix.properties}.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import stix2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bus.journal.writer import JournalStore
from tbvast.engines.tenzir import rows
from tbvast.errors import Invalid, ObservableInvalid, PatternInvalid
from tbvast.protocol.frames import (
    Item,
    decode_envelope,
    decode_report,
    render,
    stream_of,
)
from tbvast.protocol.manage import Publish, encode_publish
from tbvast.protocol.replay import Batch, decode_delivery, encode_batch, encode_item
from tbvast.protocol.topics import Dialect
from tbvast.protocol.vast_dialect import (
    admit_vast_sighting,
    decode_vast_sighting,
    encode_vast_intel,
    encode_vast_sighting,
)
from tbvast.stix import admission
from tbvast.stix.admission import admit, admit_indicator, admit_sighting
from tbvast.stix.documents import microseconds
from tbvast.stix.indicators import (
    Indicator,
    Operation,
    compatible,
    complete,
    decode_indicator,
    split_bundle,
    with_operation,
)
from tbvast.stix.limits import (
    DEEPEST_INDICATOR,
    DEEPEST_SIGHTING,
    LARGEST_INDICATOR,
    LARGEST_SIGHTING,
    LONGEST_PATTERN,
    MOST_STEPS,
    MOST_TERMS,
    MOST_TOKENS,
    MOST_VALUES,
)
from tbvast.stix.properties import INDICATOR, SIGHTING
from tbvast.stix.sightings import (
    MatchType,
    Sighting,
    compatible_sighting,
    decode_sighting,
    event_time,
    make_sighting,
)
from tbvast.storage.worker_server import encode_request
from tbvast.values import Entry
from tests import documents
from tests.doubles import a_sighting, an_indicator, decode_request, indicator_document
from tests.doubles_bus import encode_report

MARKING = documents.MARKING

NOW = datetime(2024, 5, 17, 12, 30, tzinfo=UTC)

many = settings(deadline=None, suppress_health_check=list(HealthCheck))


def json_of(**fields: Any) -> bytes:
    """
    A whole indicator's document, with some fields; C{None} leaves one out.
    """
    return indicator_document(**fields)


def sighting_of(**fields: Any) -> bytes:
    """
    A whole sighting's document, likewise.
    """
    return a_sighting(**fields).raw


def old_form(item: Item) -> str:
    """
    An item as subscribers of the old dialect get it.
    """
    (tail,) = render(Dialect.STIX2, item)
    return tail.partition(b" ")[2].decode()


def has_custom(document: dict[str, Any]) -> bool:
    """
    Whether the library C{stix2} would say that a document has something in it that the
    standard does not know.
    """
    extensions = document.get("extensions") or {}
    if any(
        extension.get("extension_type") == "toplevel-property-extension"
        for extension in extensions.values()
    ):
        return True  # it says no, but then it does not matter
    table = INDICATOR if document["type"] == "indicator" else SIGHTING
    names = {name for name in table if not name.startswith("x_")}
    listed = [
        *((each, {"source_name", "description", "url", "hashes", "external_id"})
          for each in document.get("external_references") or ()),
        *((each, {"kill_chain_name", "phase_name"})
          for each in document.get("kill_chain_phases") or ()),
        *((each, {"marking_ref", "lang", "selectors"})
          for each in document.get("granular_markings") or ()),
    ]  # fmt: skip
    known = {"malware", "indicator", "campaign", "tool", "identity", "attack-pattern"}
    subject = str(document.get("sighting_of_ref", "indicator--")).partition("--")[0]
    return (
        not set(document) <= names
        or any(not set(each) <= allowed for each, allowed in listed)
        or subject not in known
    )


def as_decoded(item: Item) -> Item:
    """
    @return: An item without the knowledge that only its admission has.
    """
    if isinstance(item, Indicator):
        return msgspec.structs.replace(item, surely_compatible=False)
    return item


class WholeWayTests(SynchronousTestCase):
    """
    Every hop can carry an admitted document.
    """

    @many
    @given(st.randoms(use_true_random=False), st.data())
    def test_every_hop(self, random: Random, data: st.DataObject) -> None:
        """
        Whatever is admitted goes through every encoder and decoder, up to the old
        clients'.
        """
        raw = documents.document(random)
        try:
            item = admit(raw)
        except Invalid as e:
            self.assertNotIn("\n", str(e))
            self.assertLess(len(str(e)), 700)
            return
        again = admit(item.raw)
        self.assertEqual(again, item)
        self.assertIs(again.raw, item.raw)  # it was whole
        self.carry(item)
        if isinstance(item, Indicator):
            self.carry_indicator(item)
        else:
            self.carry_sighting(item)

    def carry(self, item: Item) -> None:
        self.assertEqual(decode_report([encode_report(item)]), item)
        request = decode_request(encode_publish([item.raw, item.raw]))
        self.assertEqual(request, Publish((item.raw, item.raw)))
        frame = encode_batch(0, 1, encode_item(1, stream_of(item), item.raw))
        self.assertEqual(decode_delivery(b"", [frame]), Batch(0, 1, (as_decoded(item),), ()))
        request_bytes = encode_request(JournalStore.append, ([item], 5.0))
        _, (items, _) = msgspec.msgpack.decode(
            request_bytes, type=tuple[str, tuple[list[Item], float]]
        )
        self.assertEqual(items, [item])
        path = Path(self.mktemp())
        store = JournalStore(path, "x")
        try:
            first = item if getattr(item, "pattern", "") is not None else None
            if first is not None:
                (outcome,) = store.append([first, an_indicator(7)], 5.0)[:1]
                self.assertEqual(outcome.verdict, "accepted")
                for ended in store.expire(2.6e11, 10):
                    assert ended.item is not None
                    decode_indicator(ended.item.raw)
                store.prune(9e9, 1, 10)
        finally:
            store.close()

    def carry_indicator(self, item: Indicator) -> None:
        self.assertEqual(decode_indicator(item.raw), as_decoded(item))
        if item.surely_compatible:
            self.assertIs(compatible(item.raw), item.raw)
        for operation in Operation:
            changed = with_operation(item.raw, operation)
            if item.pattern is not None:
                self.parse(old_form(decode_indicator(changed)))
        if item.pattern is None:
            return
        self.assertIs(complete(item.raw), item.raw)
        self.parse(old_form(item))
        render(Dialect.VAST, item)
        encode_vast_intel(item)
        envelope = b'{"type":"snapshotenvelope","snapshot_type":1,"snapshot_id":"s","body":%b}'
        self.assertEqual(decode_envelope(envelope % item.raw).item, item)
        made = make_sighting(
            indicator_id=item.id,
            indicator_raw=item.raw,
            values=["x"],
            match_type=MatchType.LIVE,
            event={"ts": 5},
            context={"ts": 5},
            engine="tenzir",
            now=NOW,
        )
        self.assertEqual(admit_sighting(made.raw), made)
        self.carry_sighting(made)
        store = BridgeStore(Path(":memory:"))
        try:
            store.indicators.apply([item, an_indicator(7)], 5.0, True)
            observables = [each.observable for each in store.entries.all()]
            lines = rows.encode_entries(Entry(each, (item.id,)) for each in observables)
            self.assertEqual(len(lines.splitlines()), len(observables))
        finally:
            store.close()

    def carry_sighting(self, item: Sighting) -> None:
        self.assertEqual(decode_sighting(item.raw), item)
        self.assertIs(compatible_sighting(item.raw), item.raw)
        self.parse(old_form(item))
        report = encode_vast_sighting(item)
        self.assertEqual(decode_vast_sighting(report).indicator, item.indicator)
        render(Dialect.VAST, item)

    def parse(self, text: str) -> None:
        """
        Read a document as the old programs do; and as stricter ones would.
        """
        parsed = stix2.parse(text, allow_custom=True)
        stix2.parse(parsed.serialize(), allow_custom=True)
        if not has_custom(json.loads(text)):
            stix2.parse(text)


def is_loose_uuid(text: str) -> bool:
    """
    Whether C{uuid.UUID} takes a text that is not the standard form of a UUID.
    """
    try:
        return str(UUID(text)) != text.lower()
    except ValueError:
        return False


STRICTER: dict[str, Callable[[dict[str, Any], Invalid], bool]] = {
    "a limit": lambda document, e: any(
        words in e.expected for words in ("at most", "levels", "every program can read")
    ),
    "a type that is no indicator or sighting": lambda document, e: e.field == "type",
    "no id, for which stix2 makes one": lambda document, e: e.field == "id" and e.value is None,
    "an empty id, likewise": lambda document, e: e.field == "id" and not e.value,
    "a UUID in braces, as a URN, or with hyphens elsewhere": lambda document, e: (
        e.field.endswith(("id", "_ref")) and is_loose_uuid(str(e.value).partition("--")[2])
    ),
    "a version of the standard that does not exist": lambda document, e: (
        e.field in ("spec_version", "pattern_version")
    ),
    "a name that stix2 does not look at": lambda document, e: "custom one" in e.expected,
    "a value of another type, which stix2 takes for one": lambda document, e: any(
        words in e.expected
        for words in ("text", "list", "true or false", "whole number", "object", "tag", "ADD")
    ),
    "a year before 1000, or a text that is no time in UTC": lambda document, e: (
        "timestamp" in e.expected
    ),
    "modified before created": lambda document, e: "no earlier than" in e.expected,
    "an end before the beginning, of what stix2 takes for STIX 2.0": lambda document, e: (
        "later than" in e.expected
    ),
    "a pattern that cannot be meant": lambda document, e: isinstance(e, ObservableInvalid),
    "a type of extension that the standard does not know": lambda document, e: (
        "extension_type" in e.field
    ),
    "an extension that has no definition": lambda document, e: e.field == "extensions",
    "what is no domain object is sighted": lambda document, e: e.field == "sighting_of_ref",
    "a pattern of STIX 2.0, which is read as one of 2.1": lambda document, e: (
        isinstance(e, PatternInvalid) and document.get("spec_version") != "2.1"
    ),
    "a selector of what has been left out": lambda document, e: "selector" in e.expected,
    "a rule of Suricata without a number": lambda document, e: "Suricata" in e.expected,
    "language and marking of a granular marking": lambda document, e: "alone" in e.expected,
    "a mark that stix2 does not look at in STIX 2.0": lambda document, e: (
        document.get("spec_version") != "2.1"
    ),
}
"""
The reasons to refuse a document that C{stix2} accepts.
"""

LAXER = {
    "spec_version": "it is 2.1",
    "pattern_type": "it is stix",
    "created": "it is modified, else the epoch; any time zone, any precision",
    "modified": "it is created, else the epoch; any time zone, any precision",
    "valid_from": "the epoch: as of ever; any time zone, any precision",
    "valid_until": "any time zone, any precision",
    "first_seen": "any time zone, any precision",
    "last_seen": "any time zone, any precision",
    "pattern_version": "what 2.0 says is read as 2.1",
    "pattern": "hashes may have colons, or be in a list",
}
"""
The properties that may be missing, or unreadable for C{stix2}, and their completion.
"""


class VerdictTests(SynchronousTestCase):
    """
    Our verdict and that of the library C{stix2}.
    """

    @many
    @given(st.randoms(use_true_random=False))
    def test_verdict(self, random: Random) -> None:
        """
        They are the same, but for intended differences.
        """
        raw = documents.document(random)
        try:
            text = raw.decode()
            stix2.parse(text, allow_custom=True)
            theirs = ""
        except Exception as e:  # it raises anything
            theirs = repr(e)
        try:
            item = admit(raw)
        except Invalid as e:
            if not theirs:
                document = json.loads(raw)
                reasons = [name for name, applies in STRICTER.items() if applies(document, e)]
                self.assertTrue(reasons, f"only we refuse it: {e!r}: {raw[:2000]!r}")
            return
        if theirs and getattr(item, "pattern", "") is not None:
            # Then it is completed, and only in the properties of the laxer rules.
            before, after = json.loads(raw), json.loads(old_form(item))
            self.assertNotEqual(before, after, theirs)
            changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
            dropped = {name for name in before if before[name] in (None, [])}
            self.assertLessEqual(changed - dropped, set(LAXER), theirs)

    @many
    @given(st.randoms(use_true_random=False))
    def test_valid(self, random: Random) -> None:
        """
        Everything that the standard allows is admitted.
        """
        admit(documents.valid(random))

    @many
    @given(st.randoms(use_true_random=False))
    def test_plain(self, random: Random) -> None:
        """
        The quick way of plain indicators is only a quick way.
        """
        raw = documents.encoded(documents.valid_indicator(random))
        if random.random() < 0.8:
            raw = documents.document(random)
        try:
            found: Indicator | Invalid = admit_indicator(raw)
        except Invalid as e:
            found = e
        try:
            thorough: Indicator | Invalid = admission._admit_unusual_indicator(raw)
        except Invalid as e:
            thorough = e
        if isinstance(found, Invalid) or isinstance(thorough, Invalid):
            self.assertEqual(str(found), str(thorough))
        else:
            self.assertEqual(found, thorough)


class TotalTests(SynchronousTestCase):
    """
    Receivers read documents that others have admitted, or have not.
    """

    @many
    @given(st.randoms(use_true_random=False) | st.binary())
    def test_decoders(self, given_: Any) -> None:
        """
        Any bytes give a value or an L{Invalid}, and nothing else; so does the encoding of the
        value.
        """
        raw = given_ if isinstance(given_, bytes) else documents.document(given_)
        found: list[Any] = []
        for function in (
            *(decode_indicator, decode_sighting, decode_vast_sighting, split_bundle),
            *(
                compatible,
                complete,
                compatible_sighting,
                admit,
                admit_vast_sighting,
                decode_envelope,
            ),
            lambda raw: with_operation(raw, Operation.REMOVE),
            lambda raw: decode_delivery(b"", [encode_batch(0, 1, encode_item(1, STREAM, raw))]),
            lambda raw: decode_request(encode_publish([raw])),
        ):
            try:
                found.append(function(raw))
            except Invalid as e:
                self.assertNotIn("\n", str(e))
        for item in found:
            try:
                if isinstance(item, Indicator):
                    encode_vast_intel(item)
                    render(Dialect.STIX2, item)
                elif isinstance(item, Sighting):
                    encode_vast_sighting(item)
                    render(Dialect.STIX2, item)
            except Invalid as e:
                self.assertNotIn("\n", str(e))

    def test_shown(self) -> None:
        """
        A refusal can be written, whatever was refused.
        """
        deep: list[Any] = []
        for _ in range(200_000):  # Python 3.13 can show 5,000
            deep = [deep]
        for value in (deep, 10**5000):
            self.assertIn("a value of the type", str(Invalid("x", value, "y")))

    @given(st.integers() | st.floats() | st.text() | st.none() | st.booleans() | st.just(10**5000))
    def test_event_time(self, value: Any) -> None:
        """
        An event's time is one, or nothing.
        """
        for name in ("timestamp", "ts", "time"):
            found = event_time({name: value})
            if found is not None:
                microseconds(found)


STREAM = stream_of(an_indicator())


class IndicatorTests(SynchronousTestCase):
    """
    Tests for L{admit_indicator}.
    """

    def refuse(self, field: str, expected: str, **fields: Any) -> Invalid:
        error = self.assertRaises(Invalid, admit, json_of(**fields))
        self.assertEqual((error.field, expected in str(error)), (field, True), str(error))
        return error

    def test_untouched(self) -> None:
        """
        One that is whole stays byte for byte.
        """
        for raw in (
            json_of(),
            b" " + json_of(x_custom={"a": [1.50]}).replace(b",", b" ,"),
            json_of(labels=["a"], confidence=5, lang="en", revoked=True),
            json_of(pattern="alert", pattern_type="snort", pattern_version="2.9"),
        ):
            self.assertIs(admit_indicator(raw).raw, raw)

    def test_whole(self) -> None:
        """
        Missing properties are completed, deterministically.
        """
        bare = {"type": "indicator", "id": documents.an_id(), "pattern": "[url:value = 'a.b/c']"}
        item = admit(msgspec.json.encode({**bare, "labels": [], "name": None}))
        epoch = "1970-01-01T00:00:00.000000Z"
        self.assertEqual(
            msgspec.json.decode(item.raw),
            {**bare, "spec_version": "2.1", "pattern_type": "stix"}
            | dict.fromkeys(("created", "modified", "valid_from"), epoch),
        )
        self.assertEqual(admit(msgspec.json.encode(bare)).raw, admit(msgspec.json.encode(bare)).raw)

    def test_removal(self) -> None:
        """
        A removal needs no pattern; with one, it is like every other document.
        """
        bare = {"type": "indicator", "id": documents.an_id(), "modified": "2024-01-01T00:00:00Z"}
        for more in ({"x_threatbus_update": "REMOVE"}, {"revoked": True}):
            raw = msgspec.json.encode({**bare, **more})
            item = admit_indicator(raw)
            self.assertEqual((item.operation, item.pattern, item.raw), ("REMOVE", None, raw))
            self.assertRaises(Invalid, admit, msgspec.json.encode({**bare, **more, "pattern": "["}))
        self.assertRaises(Invalid, admit, msgspec.json.encode(bare))
        envelope = b'{"type":"snapshotenvelope","snapshot_type":1,"snapshot_id":"s","body":%b}'
        error = self.assertRaises(Invalid, decode_envelope, envelope % raw)
        self.assertEqual(error.field, "pattern")

    def test_limits(self) -> None:
        """
        Documents that some hop cannot carry are refused; the error names the property.
        """
        for literal, expected in (
            ("9" * 5000, "JSON that every program can read"),
            ("18446744073709551616", "a number of at most 64 bits"),
            ("-9223372036854775809", "a number of at most 64 bits"),
            ("1e400", "JSON that every program can read"),
            ("[" * 976 + "]" * 976, f"at most {DEEPEST_INDICATOR} levels"),
            ("[" * DEEPEST_INDICATOR + "]" * DEEPEST_INDICATOR, "levels"),
        ):
            with self.subTest(literal[:40]):
                self.refuse("x_far", expected, x_far=msgspec.Raw(literal.encode()))
        for good in (
            "[" * (DEEPEST_INDICATOR - 1) + "]" * (DEEPEST_INDICATOR - 1),
            '{"a":"' + "[" * 900 + '"}',
            *(
                "18446744073709551615",
                "-9223372036854775808",
                "1e308",
                "1e-400",
                '"' + "9" * 50 + '"',
            ),
        ):
            with self.subTest(good[:40]):
                admit(json_of(x_far=msgspec.Raw(good.encode())))
        self.refuse("length", f"at most {LARGEST_INDICATOR} bytes", name="x" * LARGEST_INDICATOR)
        error = self.assertRaises(Invalid, admit, b'{"type":"indicator","\xff":1}')
        self.assertIn("UTF-8", str(error))
        self.assertRaises(Invalid, admit, json_of(x_far=msgspec.Raw(b'"\\ud800"')))

    def test_values(self) -> None:
        """
        A document with too many values is refused; commas and brackets in strings are none.
        """
        many: Any
        for many in ([[]] * MOST_VALUES, {f"x{n}": 0 for n in range(MOST_VALUES)}, [{}] * 20_000):
            error = self.assertRaises(Invalid, admit, json_of(x_many=many))
            self.assertEqual(error.expected, f"JSON of at most {MOST_VALUES} values")
        for text in (",[{" * 100_000, '",[\\"' * 50_000, "\\" * 50_000 + ",[" * 50_000):
            self.assertIsInstance(admit(json_of(x_text=text)), Indicator)
        self.assertIsInstance(admit(json_of(x_many=[0] * (MOST_VALUES - 50))), Indicator)

    def test_tokens(self) -> None:
        """
        So is a pattern with too many tokens, as early as that is known.
        """
        addresses = ", ".join(["'192.0.2.1'"] * (MOST_TOKENS // 2))
        error = self.assertRaises(
            PatternInvalid, admit, json_of(pattern=f"[ipv4-addr:value IN ({addresses})]")
        )
        self.assertIn(f"at most {MOST_TOKENS} tokens", str(error))
        fewer = ", ".join(["'192.0.2.1'"] * (MOST_TOKENS // 2 - 10))
        self.assertIsInstance(admit(json_of(pattern=f"[ipv4-addr:value IN ({fewer})]")), Indicator)

    def test_longer_when_whole(self) -> None:
        """
        One that is too long once it is whole is too long.
        """
        numbers = b"[" + b"1e15," * (MOST_VALUES // 2) + b"1]"
        filler = "x" * (LARGEST_INDICATOR - len(numbers) - 1000)
        document = json_of(spec_version=None, x_far=msgspec.Raw(numbers), x_filler=filler)
        self.assertLess(len(document), LARGEST_INDICATOR)
        error = self.assertRaises(Invalid, admit, document)
        self.assertEqual(error.field, "length")

    def test_patterns(self) -> None:
        """
        A pattern that the parser of the old programs could not take is refused; one that
        is just within the limits is taken by it.
        """
        for make, most in (
            (lambda n: "[" + " OR ".join(f"a:b = '{i}'" for i in range(n)) + "]", MOST_TERMS),
            (lambda n: " FOLLOWEDBY ".join(f"[a:b = '{i}']" for i in range(n)), MOST_TERMS),
            (
                lambda n: "([a:b = 1])" + " REPEATS 5 TIMES" * (n - 1),
                MOST_TERMS,
            ),
            (lambda n: "[a:b" + ".c" * (n - 1) + " = 1]", MOST_STEPS),
            (lambda n: "[a:b" + ".c" * (n - 1) + " = 1] OR [d:e = 2]", MOST_STEPS),
            (
                lambda n: "[" + "(" * 32 + "a:b = 1" + (" OR a:b = 1" * (n // 32) + ")") * 32 + "]",
                MOST_TERMS - 16,
            ),
        ):
            good = make(most)
            with self.subTest(good[:60]):
                stix2.parse(old_form(admit(json_of(pattern=good))), allow_custom=True)
                self.refuse("pattern", "of at most", pattern=make(most + 33))
        for pattern, expected in (
            (
                "(([a:b = 1] OR [c:d = 1]) AND [e:f = 1]) REPEATS 2 TIMES",
                "begins with [ or ([",
            ),
            ("[file:hashes.MD5 = 'x' OR url:value = 'a.b/c']", "file:hashes.MD5 with whole hashes"),
            ("[file:hashes.MD5 LIKE 'ab%']", "with whole hashes"),
            (f"[file:hashes.MD5 NOT IN ('{'a' * 32}')]", "with whole hashes"),
            ("[EXISTS a:b OR file:hashes[1] = 'x']", "hashes have names"),
            ("[NOT EXISTS a:b]", "without NOT EXISTS"),
            ("[a:b[-1] = 1]", "list positions from 0 on"),
        ):
            self.refuse("pattern", expected, pattern=pattern)
        self.refuse("pattern", "characters", pattern=f"[a:b = '{'x' * LONGEST_PATTERN}']")
        admit(json_of(pattern="x" * LONGEST_PATTERN * 2, pattern_type="yara"))

    def test_rules(self) -> None:
        """
        The number of a rule of Suricata is one.
        """
        for rule in ('alert dns any any -> any any (msg:"sid:(;"; sid: 5; rev:1;)', "no rule"):
            admit(json_of(pattern=rule, pattern_type="suricata"))
        for sid in ("(", "x", "5+", "", "5)+("):
            self.refuse("pattern", "sid", pattern=f"alert (a; sid:{sid};)", pattern_type="suricata")

    def test_properties(self) -> None:
        """
        A refusal names the property, the value, and the expected values.
        """
        for fields, message in (
            ({"confidence": "high"}, "confidence: 'high' is not a whole number from 0 to 100"),
            ({"created_by_ref": "me"}, "created_by_ref: 'me' is not an id of the form identity--"),
            ({"object_marking_refs": [MARKING, "x"]}, "object_marking_refs[1]: 'x' is not"),
            (
                {"external_references": [{"url": "x"}]},
                "external_references[0].source_name: None is not there",
            ),
            (
                {"external_references": [{"source_name": "x", "url": "x", "hashes": {"MD5": "x"}}]},
                "external_references[0].hashes.MD5: 'x' is not a hash of the kind MD5",
            ),
            ({"kill_chain_phases": [{"phase_name": "x"}]}, "kill_chain_phases[0].kill_chain_name"),
            (
                {"granular_markings": [{"marking_ref": MARKING, "selectors": ["nothing"]}]},
                "granular_markings[0].selectors[0]: 'nothing' is not",
            ),
            ({"X": 1}, "document: 'X' is not a property of the standard, or a custom one"),
            ({"self": 1}, "document: 'self' is not"),
            (
                {"created": "0001-01-01T00:00:00+14:00"},
                "created: '0001-01-01T00:00:00+14:00' is not",
            ),
            ({"created": "2024-01-01T00:00:00Z"}, "modified: '1970-01-01T00:00:01.000000Z' is not"),
            ({"valid_until": "1969-01-01T00:00:00Z"}, "valid_until: '1969-01-01T00:00:00Z' is not"),
            ({"id": "indicator--00000000-0000-0000-0000-000000000000"}, "id: 'indicator--0000"),
            ({"spec_version": "2.2"}, "spec_version: '2.2' is not 2.1 or 2.0"),
            ({"pattern_version": "3"}, "pattern_version: '3' is not 2.1 or 2.0"),
            ({"pattern": "[ipv4-addr:value = '1.2.3.999']"}, "ip: '1.2.3.999' is not"),
            ({"lang": "not one"}, "lang: 'not one' is not a language tag"),
            ({"revoked": 1}, "revoked: 1 is not true or false"),
            ({"extensions": {"x": {}}}, "extensions: 'x' is not an id of the form extension-"),
        ):
            with self.subTest(fields):
                error = self.assertRaises(Invalid, admit, json_of(**fields))
                self.assertTrue(str(error).startswith(message), str(error))


class SightingTests(SynchronousTestCase):
    """
    Tests for L{admit_sighting} and L{admit_vast_sighting}.
    """

    def test_whole(self) -> None:
        """
        A complete sighting stays unchanged; an incomplete one is completed.
        """
        raw = sighting_of()
        self.assertIs(admit_sighting(raw).raw, raw)
        made = admit_sighting(
            sighting_of(
                spec_version=None,
                created=None,
                modified=None,
                last_seen="2024-05-17T12:00:00+02:00",
            )
        )
        self.assertEqual(
            {**msgspec.json.decode(made.raw), "id": 0, "sighting_of_ref": 0},
            {
                **{"type": "sighting", "spec_version": "2.1", "id": 0, "sighting_of_ref": 0},
                **dict.fromkeys(
                    ("created", "modified", "last_seen"), "2024-05-17T10:00:00.000000Z"
                ),
            },
        )

    def test_refused(self) -> None:
        for fields, message in (
            ({"count": -1}, "count: -1 is not a whole number from 0 to 999999999"),
            ({"first_seen": "2024-01-01T00:00:00Z"}, "last_seen: '1970-01-01T00:00:01.000000Z'"),
            ({"where_sighted_refs": [MARKING]}, "where_sighted_refs[0]: 'marking-definition--"),
            ({"observed_data_refs": ["x"]}, "observed_data_refs[0]: 'x' is not"),
            ({"x_threatbus_sighting_context": 5}, "x_threatbus_sighting_context: 5 is not an obj"),
            ({"summary": "yes"}, "summary: 'yes' is not true or false"),
        ):
            with self.subTest(fields):
                error = self.assertRaises(Invalid, admit, sighting_of(**fields))
                self.assertTrue(str(error).startswith(message), str(error))
        for ref in ("x--y--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e", MARKING):
            raw = (
                sighting_of()
                .replace(b'"indicator--', b'"x--')
                .replace(
                    msgspec.json.decode(sighting_of())["sighting_of_ref"].encode(), ref.encode()
                )
            )
            self.assertRaises(Invalid, admit, raw)

    def test_vast(self) -> None:
        """
        The same rules apply to the report of a VAST matcher.
        """
        good = b'{"ts":5,"reference":"threatbus__%b","a":%b}'
        id_ = documents.an_id().encode()
        self.assertEqual(admit_vast_sighting(good % (id_, b"[1]")).indicator, id_.decode())
        for raw in (
            *(good % (id_, b"9" * 5000), good % (id_, b"1e400"), good % (id_, b"9" * 30)),
            good % (id_, b"[" * DEEPEST_SIGHTING + b"]" * DEEPEST_SIGHTING),
            good % (id_, b'"' + b"x" * LARGEST_SIGHTING + b'"'),
            good % (b"indicator--00000000-0000-0000-0000-000000000000", b"1"),
        ):
            self.assertRaises(Invalid, admit_vast_sighting, raw)
