"""
Documents that a bus may be given: indicators and sightings, valid ones and others.

All of it is drawn from a L{random.Random}, which is hypothesis's C{randoms()} in the
tests and a seeded one where many are needed:

    - L{valid}: one that the standard allows;
    - L{wrong}: a valid one, of which one to three properties were made wrong;
    - L{extreme}: a valid one, with something in it that JSON allows, or nearly allows,
      and few programs can carry;
    - L{document}: any of these.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from random import Random
from typing import Any

Document = dict[str, Any]

IDENTITY = "identity--f431f809-377b-45e0-aa1c-6a4751cae5ff"
MARKING = "marking-definition--613f2e26-407d-48c7-9eca-b8e91df99dc9"
EXTENSION = "extension-definition--04aee3d7-1a8a-4b1b-9f0c-5d7e2b3c4a5f"


class Literally(str):
    """
    Stands for the JSON text that it is, where a value should be.
    """


def document(random: Random) -> bytes:
    """
    Any document: a valid one, a wrong one, or an extreme one.
    """
    return random.choice((valid, wrong, wrong, wrong, extreme))(random)


def valid(random: Random) -> bytes:
    """
    An indicator or a sighting that the standard allows.
    """
    return encoded(_valid(random))


def wrong(random: Random) -> bytes:
    """
    A valid document, of which one to three properties were made wrong.
    """
    made = _valid(random)
    for _ in range(random.randint(1, 3)):
        _spoil(random, made)
    return encoded(made)


def extreme(random: Random) -> bytes:
    """
    A valid document, with one thing in it that few programs can carry.
    """
    made = _valid(random)
    name = random.choice(("x_extreme", "x_extreme", *made))
    made[name] = Literally(random.choice(EXTREMES)(random))
    raw = encoded(made)
    if random.random() < 0.1:
        cut = random.randrange(len(raw))
        raw = raw[:cut] + random.choice((b"", b"\xff", b"\0", b"}", b"]", b'"')) + raw[cut:]
    return raw


def encoded(made: Document) -> bytes:
    """
    A document as JSON; a L{Literally} in it is written as it is.
    """
    literals: list[bytes] = []

    def held(value: Any) -> Any:
        if isinstance(value, Literally):
            literals.append(value.encode("utf-8", "surrogatepass"))
            return f"literal {len(literals) - 1} of them"
        if isinstance(value, dict):
            return {name: held(each) for name, each in value.items()}
        if isinstance(value, list):
            return [held(each) for each in value]
        return value

    raw = json.dumps(held(made)).encode()
    for number, literal in enumerate(literals):
        raw = raw.replace(b'"literal %d of them"' % number, literal)
    return raw


def _valid(random: Random) -> Document:
    return valid_indicator(random) if random.random() < 0.7 else valid_sighting(random)


def valid_indicator(random: Random) -> Document:
    """
    An indicator, as STIX 2.1 has it; now and then a removal, or one of STIX 2.0.
    """
    created = _time(random)
    made: Document = {
        "type": "indicator",
        "spec_version": "2.1",
        "id": _id(random, "indicator"),
        "created": created,
        "modified": max(created, _time(random)),
        "pattern": _pattern(random),
        "pattern_type": "stix",
        "valid_from": created,
    }
    _perhaps(
        random, made, "indicator_types", lambda: _some(random, ("malicious-activity", "benign"))
    )
    _perhaps(random, made, "name", lambda: _text(random))
    _perhaps(random, made, "description", lambda: _text(random))
    _perhaps(random, made, "valid_until", lambda: "2031-01-01T00:00:00Z")
    _perhaps(random, made, "pattern_version", lambda: "2.1")
    _perhaps(
        random,
        made,
        "kill_chain_phases",
        lambda: [{"kill_chain_name": "lockheed-martin", "phase_name": "delivery"}],
    )
    _perhaps(random, made, "x_threatbus_update", lambda: random.choice(("EDIT", "REMOVE")), 0.1)
    if random.random() < 0.1:
        made["pattern_type"] = random.choice(("suricata", "yara", "sigma"))
        made["pattern"] = random.choice(("alert dns any any -> any any (sid:1;)", "rule a {}"))
        made.pop("pattern_version", None)
    elif random.random() < 0.1:  # STIX 2.0
        for name in ("spec_version", "pattern_type", "indicator_types", "pattern_version"):
            made.pop(name, None)
        made["labels"] = ["malicious-activity"]
    _common(random, made)
    return made


def valid_sighting(random: Random) -> Document:
    """
    A sighting, as STIX 2.1 has it.
    """
    created = _time(random)
    made: Document = {
        "type": "sighting",
        "spec_version": "2.1",
        "id": _id(random, "sighting"),
        "created": created,
        "modified": created,
        "sighting_of_ref": _id(random, random.choice(("indicator", "indicator", "malware"))),
    }
    _perhaps(random, made, "first_seen", lambda: "2019-12-31T23:59:59Z")
    _perhaps(random, made, "last_seen", lambda: _time(random))
    _perhaps(random, made, "count", lambda: random.choice((0, 1, 50, 999_999_999)))
    _perhaps(random, made, "summary", lambda: random.random() < 0.5)
    _perhaps(random, made, "description", lambda: _text(random))
    _perhaps(random, made, "observed_data_refs", lambda: [_id(random, "observed-data")])
    _perhaps(random, made, "where_sighted_refs", lambda: [_id(random, "location"), IDENTITY])
    _perhaps(random, made, "x_threatbus_source", lambda: "VAST")
    _perhaps(random, made, "x_threatbus_match_type", lambda: random.choice(("LIVE", "RETRO")))
    _perhaps(random, made, "x_threatbus_indicator", lambda: valid_indicator(random))
    _perhaps(random, made, "x_threatbus_sighting_context", lambda: {"src.ip": "::1", "n": [1, {}]})
    _common(random, made)
    return made


def _common(random: Random, made: Document) -> None:
    _perhaps(random, made, "created_by_ref", lambda: IDENTITY)
    _perhaps(random, made, "confidence", lambda: random.choice((0, 1, 50, 100)))
    _perhaps(random, made, "lang", lambda: random.choice(("en", "de-CH", "zh-Hans")))
    _perhaps(random, made, "labels", lambda: _some(random, ("a", "b", "tlp:white", "ü")))
    _perhaps(random, made, "revoked", lambda: random.random() < 0.2, 0.1)
    _perhaps(random, made, "object_marking_refs", lambda: [MARKING])
    _perhaps(random, made, "external_references", lambda: [_reference(random)])
    _perhaps(random, made, "extensions", lambda: _extensions(random), 0.05)
    _perhaps(random, made, "x_custom", lambda: _value(random))
    if random.random() < 0.1:
        selectors = [name for name in ("id", "type", "created", "pattern") if name in made]
        made["granular_markings"] = [
            random.choice(({"marking_ref": MARKING}, {"lang": "en"}))
            | {"selectors": [random.choice(selectors)]}
        ]


def _perhaps(
    random: Random, made: Document, name: str, value: Callable[[], Any], probability: float = 0.25
) -> None:
    if random.random() < probability:
        made[name] = value()


def _some(random: Random, among: tuple[str, ...]) -> list[str]:
    return random.sample(among, random.randint(1, len(among)))


def an_id(kind: str = "indicator") -> str:
    """
    A STIX id; the same each time.
    """
    return f"{kind}--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e"


def _id(random: Random, kind: str) -> str:
    return f"{kind}--{uuid.UUID(int=random.getrandbits(128), version=random.choice((1, 4, 4, 5)))}"


def _time(random: Random) -> str:
    whole = (
        f"202{random.randint(0, 9)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}"
        f"T{random.randint(0, 23):02}:{random.randint(0, 59):02}:{random.randint(0, 59):02}"
    )
    return f"{whole}.{random.randint(0, 999):03}Z"


def _text(random: Random) -> str:
    return random.choice(("evil.example", "", "a b", "ü", "\U0001f600", "\0", "\u2028", "x" * 300))


def _value(random: Random) -> Any:
    return random.choice(
        (1, -1, 0, 2.5, 1e300, 2**63 - 1, True, None, "x", [], {}, [[1], "a"], {"a": {"": [None]}})
    )


def _pattern(random: Random) -> str:
    number = random.randint(0, 255)
    return random.choice(
        (
            f"[ipv4-addr:value = '198.51.100.{number}']",
            f"[ipv6-addr:value = '2001:db8::{number:x}']",
            f"[domain-name:value = 'host{number}.example']",
            f"[url:value = 'http://host{number}.example/a?b=c']",
            f"[file:hashes.MD5 = '{number:032x}']",
            f"[file:hashes.'SHA-256' = '{number:064x}']",
            f"[x509-certificate:hashes.'SHA-1' = '{number:02x}{':aB' * 19}']",
            f"[file:hashes.MD5 IN ('{number:032x}', '{number:032X}') AND (file:size > 1)]",
            f"[file:name = 'a b{number}.exe']",
            "[ipv4-addr:value ISSUBSET '198.51.100.0/24'"
            f" OR domain-name:value = 'a{number}.example']",
            f"[domain-name:value = 'a.example' AND ipv4-addr:value = '198.51.100.{number}']",
            f"[process:pid > {number}] FOLLOWEDBY [file:size <= 2.5] WITHIN 5 SECONDS",
            "([url:value IN ('http://a.example/', 'b') AND EXISTS file:name]"
            " OR [a:b.c[*].d LIKE 'x']) START t'2020-01-01T00:00:00Z' STOP t'2021-01-01T00:00:00Z'",
        )
    )


def _reference(random: Random) -> Document:
    made: Document = {"source_name": "somewhere"}
    made[random.choice(("description", "url", "external_id"))] = "https://example.com/"
    _perhaps(random, made, "hashes", lambda: {"SHA-256": "0" * 64, "MD5": "F" * 32}, 0.2)
    return made


def _extensions(random: Random) -> Document:
    return {EXTENSION: {"extension_type": "property-extension", "rank": random.randint(0, 9)}}


WRONG: dict[str, tuple[Any, ...]] = {
    "type": ("Indicator", "malware", "", "identity"),
    "spec_version": ("2.0", "2.2", "", "3", 2.1),
    "id": (
        "indicator--00000000-0000-0000-0000-000000000000",
        "sighting--00000000-0000-0000-0000-000000000000",
        "indicator--7a3c2d51-0b1e-4c5f-0d8e-2f6a7b8c9d0e",
        "sighting--7a3c2d51-0b1e-4c5f-cd8e-2f6a7b8c9d0e",
        "x--y--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e",
        "indicator--7A3C2D51-0B1E-4C5F-9D8E-2F6A7B8C9D0E",
        "sighting--7A3C2D51-0B1E-4C5F-9D8E-2F6A7B8C9D0E",
        "indicator--{7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e}",
        "indicator--7a3c2d510b1e4c5f9d8e2f6a7b8c9d0e",
        "indicator--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e\n",
        "7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e",
        "",
    ),
    "created": (
        "2020-01-01",
        "2020-01-01 00:00:00Z",
        "2020-01-01T00:00:00",
        "2020-01-01T00:00:00+02:00",
        "2020-01-01T00:00:00.123456789Z",
        "2020-01-01T00:00:00z",
        "2020-01-01t00:00:00Z",
        "2020-02-30T00:00:00Z",
        "2020-01-01T23:59:60Z",
        "2020-01-01T24:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59-14:00",
        "10000-01-01T00:00:00Z",
        1577836800,
        "",
    ),
    "created_by_ref": (
        "me",
        "identity--00000000-0000-0000-0000-000000000000",
        "malware--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e",
        "identity--x",
    ),
    "object_marking_refs": (
        "marking-definition--613f2e26-407d-48c7-9eca-b8e91df99dc9",
        ["tlp:white"],
        [IDENTITY],
        [MARKING, 1],
        [[]],
        {},
    ),
    "external_references": (
        [{"url": "https://example.com/"}],
        [{"source_name": "x"}],
        [{"source_name": 1, "url": "x"}],
        [{"source_name": "x", "url": ["x"]}],
        [{"source_name": "x", "url": None}],
        [{"source_name": "x", "url": "x", "hashes": {}}],
        [{"source_name": "x", "url": "x", "hashes": {"MD5": "x"}}],
        [{"source_name": "x", "url": "x", "hashes": {"CRC": "x"}}],
        [{"source_name": "x", "url": "x", "hashes": {"sha256": "0" * 64}}],
        [{"source_name": "x", "url": "x", "hashes": {"SHA-1": 1}}],
        [{"source_name": "x", "url": "x", "x_more": 1}],
        [{"source_name": "x", "url": "x", "More": 1}],
        [{"source_name": "x", "url": "x", "self": 1}],
        [{}],
        ["x"],
        {"source_name": "x", "url": "x"},
        "x",
    ),
    "kill_chain_phases": (
        [{"kill_chain_name": "x"}],
        [{"phase_name": "x"}],
        [{"kill_chain_name": "x", "phase_name": 1}],
        [{"kill_chain_name": "x", "phase_name": None}],
        [{"kill_chain_name": "x", "phase_name": "y", "x_more": []}],
        ["x"],
        {},
    ),
    "granular_markings": (
        [{"marking_ref": MARKING}],
        [{"selectors": ["id"]}],
        [{"marking_ref": MARKING, "lang": "en", "selectors": ["id"]}],
        [{"marking_ref": "x", "selectors": ["id"]}],
        [{"marking_ref": MARKING, "selectors": []}],
        [{"marking_ref": MARKING, "selectors": ["nothing"]}],
        [{"marking_ref": MARKING, "selectors": ["labels.[7]"]}],
        [{"marking_ref": MARKING, "selectors": ["labels.[0]"]}],
        [{"marking_ref": MARKING, "selectors": ["external_references.[0].url"]}],
        [{"marking_ref": MARKING, "selectors": ["x_custom.a"]}],
        [{"marking_ref": MARKING, "selectors": ["revoked"]}],
        [{"marking_ref": MARKING, "selectors": ["Bad Selector"]}],
        [{"marking_ref": MARKING, "selectors": "id"}],
        [1],
        {},
    ),
    "extensions": (
        {"x": {}},
        {EXTENSION: 1},
        {EXTENSION: {"extension_type": 1}},
        {EXTENSION: {"extension_type": "toplevel-property-extension"}},
        {"extension-definition--x": {}},
        {"archive-ext": {}},
        {},
        [{}],
        "x",
    ),
    "labels": ("x", [1], [None], [[]], {}, [""], ["a", "a"], 1),
    "confidence": ("high", -1, 101, 5.5, 50.0, "50", True, 10**30, [1]),
    "lang": (1, "", "not a language", ["en"]),
    "revoked": ("true", 1, 0, "no", "maybe", []),
    "name": (1, ["x"], {}, True),
    "description": (1, ["x"], {}),
    "indicator_types": ("benign", [1], {}, [None]),
    "pattern": (
        "",
        "x",
        "[]",
        "[ipv4-addr:value = '198.51.100.1'",
        "[ipv4-addr:value = '999.1.1.1']",
        "[ipv4-addr:value = 198.51.100.1]",
        "[a:b = 'x'] START '2020-01-01T00:00:00Z' STOP '2021-01-01T00:00:00Z'",
        "[EXISTS a:b]",
        "[file:hashes.MD5 = 'x']",
        "[file:hashes.'SHA-256' LIKE 'abc%']",
        "[file:hashes.MD5 NOT IN ('d41d8cd98f00b204e9800998ecf8427e')]",
        "[file:hashes.MD5 IN ()]",
        "[file:hashes.MD5 IN ('d41d8cd98f00b204e9800998ecf8427e', 'x')]",
        "[file:hashes[1] = 'x']",
        "[file:hashes[*] = 'x']",
        "[a:b[-1] = 1]",
        "[domain-name:value = 'a.example' OR file:hashes.'SHA-1' = 'x']",
        "(([a:b = 1] AND [c:d = 2]) FOLLOWEDBY [e:f = 3])",
        "/* x */ [a:b = 1]",
        "\xa0[a:b = 1]",
        " ( [a:b = 1])",
        "[a:b = t'2020-13-01T00:00:00Z']",
        "[a:b = h'abc']",
        "[a:b IN ()]",
        "[a:b MATCHES '(']",
        "[" + " OR ".join(f"a:b = '{number}'" for number in range(1000)) + "]",
        "(" * 60 + "[a:b = 1]" + ")" * 60,
        1,
        ["[a:b = 1]"],
        {},
    ),
    "pattern_type": ("", 1, "STIX", ["stix"], "pcre"),
    "pattern_version": ("2.0", "1", "", 2.1, "x"),
    "valid_from": ("2032-01-01T00:00:00Z", "tomorrow", 1),
    "valid_until": ("1999-01-01T00:00:00Z", "never", 1),
    "x_threatbus_update": ("ADD", "DELETE", "remove", 1, []),
    "sighting_of_ref": (
        "me",
        "indicator--x",
        "indicator--00000000-0000-0000-0000-000000000000",
        "ipv4-addr--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e",
        "relationship--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e",
        "x-own--7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e",
        MARKING,
        1,
    ),
    "first_seen": ("2032-01-01T00:00:00Z", "then", 1),
    "last_seen": ("1999-01-01T00:00:00Z", "then", 1),
    "count": (-1, 10**9, "1", 1.5, 1.0, True, [], "many"),
    "summary": ("yes", "true", 1, 2, []),
    "observed_data_refs": ("x", ["x"], [IDENTITY], {}, [1]),
    "where_sighted_refs": ("x", ["x"], [MARKING], {}, [1]),
    "x_threatbus_sighting_context": ("x", [1], 1, True),
    "x_threatbus_indicator": ("x", {}, [1]),
}
"""
Values that properties should not have, or not always.
"""

WRONG["modified"] = WRONG["created"]

NAMES = (
    "X", "x-y", "_x", "1x", "x y", "xy", "", "ü", "x" * 251, "self", "allow_custom", "cls",
    "interoperability", "custom_properties", "x_Upper", "-x", "x.y", "x\n",
)  # fmt: skip
"""
Names that custom properties should not have, or not always.
"""

_OF_INDICATORS = {
    *("pattern", "pattern_type", "pattern_version", "valid_from", "valid_until"),
    *("indicator_types", "name", "kill_chain_phases", "x_threatbus_update"),
}
_OF_SIGHTINGS = {
    *("sighting_of_ref", "first_seen", "last_seen", "count", "summary", "observed_data_refs"),
    *("where_sighted_refs", "x_threatbus_sighting_context", "x_threatbus_indicator"),
}


def _spoil(random: Random, made: Document) -> None:
    """
    Make one property wrong.
    """
    kind = random.random()
    if kind < 0.1:
        del made[random.choice(list(made))]
        if not made:
            made["type"] = "indicator"
    elif kind < 0.2:
        made[random.choice(list(made))] = random.choice((None, [], {}, "", 0, False))
    elif kind < 0.3:
        made[random.choice(NAMES)] = _value(random)
    else:
        alien = _OF_SIGHTINGS if made.get("type") == "indicator" else _OF_INDICATORS
        name = random.choice([name for name in WRONG if name not in alien])
        made[name] = random.choice(WRONG[name])


EXTREMES: tuple[Callable[[Random], str], ...] = (
    lambda random: random.choice(("1e400", "-1e400", "1e-400", "1E308", "-0.0", "0e0", "1e22")),
    lambda random: random.choice(("", "-")) + "9" * random.choice((15, 16, 18, 19, 20, 400, 5000)),
    lambda random: "0." + "1" * random.choice((10, 20, 400, 5000)),
    lambda random: "1" * random.choice((17, 400, 5000)) + ".5",
    lambda random: random.choice(("9223372036854775807", "9223372036854775808")),
    lambda random: random.choice(("18446744073709551615", "18446744073709551616")),
    lambda random: random.choice(("-9223372036854775808", "-9223372036854775809")),
    lambda random: _nested(random, "[", "]"),
    lambda random: _nested(random, '{"a":', "}"),
    lambda random: random.choice(("NaN", "Infinity", "-Infinity", "01", "1.", ".5", "+1", "0x1")),
    lambda random: random.choice(
        (r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'{"\ud800":1}')
    ),
    lambda random: random.choice((r'"\u0000"', '"\0"', '"\x1f"', '"\x7f"', '"\ud800"', r'"\x"')),
    lambda random: random.choice(('{"a":1,"a":2}', '{"a":1e400,"a":2}', '{"":1,"":{}}')),
    lambda random: '"' + "x" * random.choice((1000, 100_000, 2_000_000)) + '"',
    lambda random: "[" + "1," * random.choice((1000, 100_000)) + "1]",
    lambda random: random.choice(("", "undefined", "'x'", "tru", "1 1", '"a" "b"', "// x", "}")),
)
"""
What stands where a value should, as JSON or nearly so.
"""


def _nested(random: Random, opening: str, closing: str) -> str:
    depth = random.choice((10, 30, 60, 62, 64, 100, 500, 976, 2000, 100_000))
    return opening * depth + "1" + closing * depth
