"""
Documents that somebody might send: good ones, and STIX objects with something wrong.

A document is made as its properties in JSON, since what is worth trying, C{1e400} or two
properties of one name, is nothing that an encoder would write. Good documents are known
by their ids (L{GOOD}), so that whoever counts them need not read the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec

GOOD = b"--600d600d-"
"""
Stands in the id of every good document, and in no other.
"""

POOL = 2000
"""
How many made documents are kept, and sent again under ids of their own.
"""

RENEWED = 8
"""
One of so many documents is made anew.
"""

_ID = b"00000000-0000-4000-8000-0000000000ff"
"""
Stands in a document of the pool where its own id will stand.
"""

_NAMES = "a.example", "login.bank.example", "xn--bcher-kva.example", "\u00fcber.example"

PATTERNS = (
    "[ipv4-addr:value = '198.51.100.{n}']",
    "[ipv4-addr:value = '203.0.113.0/24']",
    "[ipv4-addr:value ISSUBSET '198.51.100.0/24']",
    "[ipv6-addr:value = '2001:db8::{n}']",
    "[domain-name:value = 'h{n}.example']",
    "[url:value = 'http://h{n}.example/a?b=c']",
    "[email-addr:value = 'a{n}@b.example']",
    "[file:hashes.MD5 = 'd41d8cd98f00b204e9800998ecf8427e']",
    "[file:hashes.'SHA-256' = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855']",
    "[file:name = 'a{n}.exe']",
    "[mac-addr:value = '00:11:22:33:44:55']",
    "[network-traffic:dst_ref.type = 'ipv4-addr' AND network-traffic:dst_ref.value = '192.0.2.1']",
    "[ipv4-addr:value = '192.0.2.{n}' OR domain-name:value = 'o{n}.example']",
    "[ipv4-addr:value = '192.0.2.{n}' AND domain-name:value = 'o{n}.example']",
    "[ipv4-addr:value IN ('192.0.2.1', '192.0.2.{n}')]",
    "[ipv4-addr:value = '192.0.2.1'] AND [domain-name:value = 'p{n}.example']",
    "[ipv4-addr:value = '192.0.2.1'] FOLLOWEDBY [url:value = 'http://a.example/'] WITHIN 5 SECONDS",
    "([ipv4-addr:value = '192.0.2.1'] OR [ipv4-addr:value = '192.0.2.2']) REPEATS 3 TIMES",
    "[domain-name:value LIKE '%.example' OR domain-name:value MATCHES '^a+$']",
    "[process:pid > 5 AND process:command_line != 'x']",
    "[x509-certificate:hashes.'SHA-1' = 'da39a3ee5e6b4b0d3255bfef95601890afd80709']",
    "[windows-registry-key:key = 'HKLM\\\\\\\\a' AND windows-registry-key:values[0].data = 'b']",
    "[artifact:payload_bin = b'aGVsbG8=' OR artifact:payload_bin = h'00ff']",
)

_TIMES = (
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:60Z",
    "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z",
    "2024-02-30T00:00:00Z",
    "2024-13-01T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:00:00", "2024-01-01",
    "2024-01-01 00:00:00Z", "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.1234567890123Z",
    "2024-01-01t00:00:00z", "2024-01-01T00:00:00+99:99", "1970-01-01T00:00:00Z", "now", "",
    "1582-10-10T00:00:00Z", "2024-W01-1T00:00:00Z", "20240101T000000Z", "2024-01-01T00:00Z",
    "2084-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z",
    "\u0662024-01-01T00:00:00Z",
)  # fmt: skip

_UUID = "7a3c2d51-0b1e-4c5f-9d8e-2f6a7b8c9d0e"

_REFS = (
    "me", "", f"x--y--{_UUID}", f"indicator--{_UUID.upper()}", f"identity--{_UUID}", "indicator--",
    "identity--00000000-0000-0000-0000-000000000000", f"indicator-{_UUID}", f"Indicator--{_UUID}",
    f"indicator--{{{_UUID}}}", f"indicator--{_UUID.replace('-', '')}", f" indicator--{_UUID}",
    "indicator--7a3c2d51-0b1e-9c5f-0d8e-2f6a7b8c9d0e", f"-indicator--{_UUID}", f"a--{_UUID}",
    f"marking-definition--{_UUID}", f"indicator--{_UUID}\n", f"x_y--{_UUID}",
    f"\u0131ndicator--{_UUID}",
    f"malware--{_UUID}", f"{'x' * 251}--{_UUID}", f"sighting--{_UUID}",
    f"indicator--{_UUID}--{_UUID}",
)  # fmt: skip

_WRONG_PATTERNS = (
    "", "[", "[]", "x", "[ipv4-addr:value]", "[ipv4-addr:value = 192.0.2.1]", "[a = 'b']",
    "[ipv4-addr:value = '192.0.2.256']", "[ipv4-addr:value = '192.0.2.1/33']",
    "[domain-name:value = '']",
    "[domain-name:value = 'a\\u0000b']", "[domain-name:value = '-.-']", "[file:hashes.MD5 = 'xyz']",
    "[url:value = '\\\\']", "[ipv4-addr:value = '192.0.2.1'", "[ipv4-addr:value = '192.0.2.1']]",
    "[ipv4-addr:value = '192.0.2.1'] WITHIN -1 SECONDS", "[process:pid = 1e400]", "[a:b = t'2024']",
    "[ipv4-addr:value = '192.0.2.1'] START t'2024-01-01T00:00:00Z' STOP t'2023-01-01T00:00:00Z'",
    "[ipv6-addr:value = 'fe80::1%eth0']", "[domain-name:value = '%s.example']" % ("a" * 300),
)  # fmt: skip

_LONG_PATTERNS = (
    "(" * 500 + "[ipv4-addr:value = '192.0.2.1']" + ")" * 500,
    " OR ".join(f"[ipv4-addr:value = '10.0.{n // 256}.{n % 256}']" for n in range(1000)),
    "[" + " OR ".join(f"ipv4-addr:value = '10.1.{n // 256}.{n % 256}'" for n in range(1000)) + "]",
    "[" + "NOT " * 400 + "ipv4-addr:value = '192.0.2.1']", "[process:pid = " + "9" * 5000 + "]",
)  # fmt: skip

_KINDS: dict[str, str] = {
    "type": "text", "spec_version": "text", "id": "ref", "created_by_ref": "ref", "created": "time",
    "modified": "time", "revoked": "any", "labels": "texts", "confidence": "number", "lang": "text",
    "external_references": "objects", "object_marking_refs": "refs", "granular_markings": "objects",
    "extensions": "object", "name": "text", "description": "text", "indicator_types": "texts",
    "pattern": "pattern", "pattern_type": "text", "pattern_version": "text", "valid_from": "time",
    "valid_until": "time", "kill_chain_phases": "objects", "first_seen": "time",
    "last_seen": "time",
    "count": "number", "sighting_of_ref": "ref", "observed_data_refs": "refs",
    "where_sighted_refs": "refs", "summary": "any", "x_threatbus_update": "text",
    "x_threatbus_indicator": "object", "x_threatbus_indicator_value": "text",
    "x_threatbus_match_type": "text", "x_threatbus_sighting_context": "object",
    "x_threatbus_source": "text", "x_own": "any", "X-Own": "any", "x own": "any", "": "any",
}  # fmt: skip
"""
What may be made wrong in an object, and of what kind it should be.
"""

_OF_ALL = (
    "type", "spec_version", "id", "created_by_ref", "created", "modified", "revoked", "labels",
    "confidence", "lang", "external_references", "object_marking_refs", "granular_markings",
    "extensions", "x_own", "X-Own", "x own", "",
)  # fmt: skip
_OF_INDICATOR = (
    *_OF_ALL, "name", "description", "indicator_types", "pattern", "pattern_type",
    "pattern_version",
    "valid_from", "valid_until", "kill_chain_phases", "x_threatbus_update",
)  # fmt: skip
_OF_SIGHTING = (
    *_OF_ALL, "description", "first_seen", "last_seen", "count", "sighting_of_ref",
    "observed_data_refs", "where_sighted_refs", "summary", "x_threatbus_indicator",
    "x_threatbus_indicator_value", "x_threatbus_match_type", "x_threatbus_sighting_context",
    "x_threatbus_source",
)  # fmt: skip


def encoded(value: object) -> bytes:
    """
    A value in JSON, with characters as they are.
    """
    return msgspec.json.encode(value)


def _nested(depth: int, left: bytes = b"[", middle: bytes = b"", right: bytes = b"]") -> bytes:
    return left * depth + middle + right * depth


EXTREMES: tuple[bytes, ...] = (
    b"null", b"true", b"false", b"0", b"-1", b"-0", b"-0.0", b"1.5", b"101", b"1e400", b"-1e400",
    b"1e-400", b"1E+308", b"1e999999999", b"9" * 5000, b"-" + b"9" * 5000, b"9" * 4301,
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"9007199254740993",
    b"0." + b"1" * 5000, b"9" * 400 + b".5", b'""', b'"\\u0000"', b'"a\\u0000b"', b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\\uD83D\\uDE00"', '"\u202e\u2066\ufeff"'.encode(), '"\u2028\u2029"'.encode(),
    b'"\\u001b[2J"',
    b"[]", b"{}", b"[null]", b'[""]', b"[[]]", b"[{}]", b'{"":null}', b'{"a":1,"a":2}',
    b'{"\\u0000":1}',
    b'{"\\ud800":1}', b'{"__proto__":1}', b'{"type":"indicator"}', b'"' + b"x" * 5000 + b'"',
    _nested(60), _nested(100), _nested(250), _nested(500), _nested(976), _nested(1000),
    _nested(100, b'{"a":', b"1", b"}"), _nested(970, b'{"a":', b"1", b"}"), _nested(1000, b'{"":',
    b"1", b"}"),
    _nested(480, b'[{"a":', b"1", b"}]"), b"[" + b"1," * 3000 + b"1]",
)  # fmt: skip
"""
Values that are JSON, each of which some decoder or encoder does not like.
"""

_SHORT = tuple(each for each in EXTREMES if len(each) < 100)
_LONG = tuple(each for each in EXTREMES if len(each) >= 100)

LONG = 0.1
"""
How often an extreme value is one of the long ones; all of them cost more than they find.
"""

HUGE = 300_000
"""
Characters of the longest of texts that are sent often.
"""

_OBJECTS: dict[str, tuple[bytes, ...]] = {
    "external_references": (
        b'[{"description":"x"}]', b'[{"source_name":"a"}]', b'[{"source_name":1}]',
        b'[{"source_name":""}]',
        b'[{"source_name":"a","url":"not a url"}]',
        b'[{"source_name":"a","hashes":{"MD5":"x"},"url":"http://a"}]',
        b'["x"]', b'[{"source_name":"a","external_id":null}]',
        b'[{"source_name":"capec","external_id":"x"}]',
    ),
    "kill_chain_phases": (
        b'[{"kill_chain_name":"a"}]', b'[{"phase_name":"a"}]',
        b'[{"kill_chain_name":1,"phase_name":2}]',
        b'[{"kill_chain_name":"","phase_name":""}]', b'["a"]',
        b'{"kill_chain_name":"a","phase_name":"b"}',
    ),
    "granular_markings": (
        b'[{"selectors":["nowhere"],"lang":"en"}]', b'[{"selectors":[],"lang":"en"}]',
        b'[{"lang":"en"}]',
        b'[{"selectors":["labels.[9]"],"marking_ref":"me"}]',
        b'[{"selectors":["id"],"marking_ref":"x--y"}]',
    ),
    "extensions": (
        b'{"x":{}}', b'{"extension-definition--' + _UUID.encode() + b'":{}}', b'{"":{}}',
        b'{"a":1}',
        b'{"extension-definition--' + _UUID.encode() + b'":{"extension_type":"x"}}',
    ),
}  # fmt: skip


class Hostile:
    """
    Makes documents with one to three properties made wrong.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._kept: list[bytes] = []

    def document(self) -> bytes:
        """
        A STIX object, or what resembles one; always valid JSON, with an id that is most
        often new, on one line.
        """
        if len(self._kept) < POOL:
            made = self._made()
            self._kept.append(made)
        elif self._random.random() < 1 / RENEWED:
            made = self._made()
            self._kept[self._random.randrange(POOL)] = made
        else:
            made = self._random.choice(self._kept)
        return made.replace(_ID, self.uuid())

    def uuid(self) -> bytes:
        """
        One that nobody had before.
        """
        bits = self._random.getrandbits
        return b"%08x-%04x-4%03x-a%03x-%012x" % (
            bits(32) & 0x5FFFFFFF,  # never that of a good one
            bits(16),
            bits(12),
            bits(12),
            bits(48),
        )

    def vast_sighting(self) -> bytes:
        """
        The report of a matcher of old, often with something wrong.
        """
        properties = [
            (b'"ts"', self._either(b'"2024-01-01T00:00:00Z"', self._wrong("time"))),
            (b'"reference"', self._either(b'"threatbus__indicator--%b"' % _ID, self._wrong("ref"))),
            (b'"context"', self._wrong("any")),
        ]
        return _object(properties).replace(_ID, self.uuid())

    def envelope(self, id: bytes = b"x") -> bytes:
        """
        A part of an answer to a snapshot request, of a document as L{document} makes them.

        @param id: That of the request.
        """
        kind = self._random.choice((b"1", b"1", b"1", b"2", b'"1"', b"3", b"1e400", b"null"))
        return b'{"type":"snapshotenvelope","snapshot_type":%b,"snapshot_id":"%b","body":%b}' % (
            kind,
            id,
            self.document(),
        )

    def _either(self, right: bytes, wrong: bytes) -> bytes:
        return right if self._random.random() < 0.5 else wrong

    def _made(self) -> bytes:
        make, names = self._random.choice(
            ((self._indicator, _OF_INDICATOR), (self._sighting, _OF_SIGHTING))
        )
        properties = make()
        for _ in range(self._random.randint(1, 3)):
            self._spoil(properties, names)
        return _object(properties)

    def _spoil(self, properties: list[tuple[bytes, bytes]], names: Sequence[str]) -> None:
        name = self._random.choice(names)
        key, wrong = encoded(name), self._wrong(_KINDS[name], name)
        places = [place for place, (each, _) in enumerate(properties) if each == key]
        way = self._random.random()
        if not places or way < 0.1:  # twice, if it was there
            properties.insert(self._random.randint(0, len(properties)), (key, wrong))
        elif way < 0.2:
            del properties[places[0]]
        else:
            properties[places[0]] = key, wrong

    def _wrong(self, kind: str, name: str = "") -> bytes:
        random = self._random
        way = random.random()
        if way < 0.35 or kind == "any":
            return self._extreme()
        if way < 0.353:
            text = random.choice(("x", "\u00fc", "\\", '"', "\x01"))
            return encoded(text * (HUGE if random.random() < 0.02 else 5000))
        if kind == "time":
            return encoded(random.choice(_TIMES))
        if kind == "ref":
            return encoded(random.choice(_REFS))
        if kind == "refs":
            return encoded([random.choice(_REFS) for _ in range(random.randint(0, 3))])
        if kind == "pattern":
            return encoded(self._wrong_pattern())
        if kind == "number":
            return random.choice(
                (b'"high"', b"-1", b"1e400", b"1.5", b"101", b"0", b"1e2", b"9" * 5000, b"true")
            )
        if kind == "objects" or name == "extensions":
            return random.choice(_OBJECTS.get(name, EXTREMES))
        if kind == "texts":
            return random.choice((b"[]", b'["a",1]', b'["a","a"]', b'"a"', b'[""]', b"[null]"))
        if kind == "object":
            return b'{"a":%b}' % self._extreme()
        return random.choice(
            (b'"indicator"', b'"sighting"', b'"2.0"', b'"2.1"', b'"REMOVE"', b'"EDIT"', b'"LIVE"',
             b'"stix"', b'"yara"', b'"x"', b'"\\u00df"', b'"a b"', b"1", b'"malware"')
        )  # fmt: skip

    def _extreme(self) -> bytes:
        return self._random.choice(_LONG if self._random.random() < LONG else _SHORT)

    def _wrong_pattern(self) -> str:
        way = self._random.random()
        if way < 0.4:
            return self._random.choice(_WRONG_PATTERNS)
        if way < 0.41:
            return self._random.choice(_LONG_PATTERNS)
        pattern = self._random.choice(PATTERNS)
        place = self._random.randrange(len(pattern))
        return pattern[:place] + self._random.choice(
            (pattern[place + 1 :], pattern[place:] * 2, "'" + pattern[place:], "]", "\u0000")
        )

    def _pattern(self) -> bytes:
        return encoded(
            self._random.choice(PATTERNS).replace("{n}", str(self._random.randrange(256)))
        )

    def _common(self, kind: bytes) -> list[tuple[bytes, bytes]]:
        properties = [
            (b'"type"', b'"%b"' % kind),
            (b'"spec_version"', b'"2.1"'),
            (b'"id"', b'"%b--%b"' % (kind, _ID)),
            (b'"created"', b'"2024-01-01T00:00:00.000Z"'),
            (b'"modified"', b'"2024-01-02T03:04:05.678Z"'),
        ]
        for key, value in (
            (b'"created_by_ref"', b'"identity--%b"' % _UUID.encode()),
            (b'"labels"', b'["a","b"]'),
            (b'"confidence"', b"80"),
            (b'"lang"', b'"en"'),
            (b'"external_references"', b'[{"source_name":"a","external_id":"b"}]'),
            (
                b'"object_marking_refs"',
                b'["marking-definition--613f2e26-407d-48c7-9eca-b8e91df99dc9"]',
            ),
            (b'"x_own"', b'{"a":[1,2.5,"b"]}'),
        ):
            if self._random.random() < 0.2:
                properties.append((key, value))
        return properties

    def _indicator(self) -> list[tuple[bytes, bytes]]:
        properties = [
            *self._common(b"indicator"),
            (b'"pattern"', self._pattern()),
            (b'"pattern_type"', b'"stix"'),
            (b'"valid_from"', b'"2024-01-01T00:00:00Z"'),
        ]
        for key, value in (
            (b'"name"', b'"an indicator"'),
            (b'"description"', b'"it says"'),
            (b'"indicator_types"', b'["malicious-activity"]'),
            (b'"valid_until"', b'"2034-01-01T00:00:00Z"'),
            (b'"kill_chain_phases"', b'[{"kill_chain_name":"a","phase_name":"b"}]'),
            (b'"revoked"', b"true"),
            (b'"x_threatbus_update"', self._random.choice((b'"REMOVE"', b'"EDIT"'))),
        ):
            if self._random.random() < 0.15:
                properties.append((key, value))
        return properties

    def _sighting(self) -> list[tuple[bytes, bytes]]:
        properties = [
            *self._common(b"sighting"),
            (b'"sighting_of_ref"', b'"indicator--%b"' % _ID),
            (b'"last_seen"', b'"2024-01-01T00:00:00Z"'),
        ]
        for key, value in (
            (b'"first_seen"', b'"2024-01-01T00:00:00Z"'),
            (b'"count"', b"3"),
            (b'"where_sighted_refs"', b'["identity--%b"]' % _UUID.encode()),
            (b'"x_threatbus_indicator"', _object(self._indicator())),
            (b'"x_threatbus_indicator_value"', b'"192.0.2.1"'),
            (b'"x_threatbus_match_type"', b'"LIVE"'),
            (b'"x_threatbus_sighting_context"', b'{"a":"b"}'),
            (b'"x_threatbus_source"', b'"x"'),
        ):
            if self._random.random() < 0.3:
                properties.append((key, value))
        return properties


def _object(properties: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"{" + b",".join([key + b":" + value for key, value in properties]) + b"}"


class Damage:
    """
    Makes messages that are damaged, or nothing but noise.
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def noise(self) -> bytes:
        """
        Random bytes.
        """
        size = self._random.choice((0, 1, 2, 10, 100, 1000, 10_000))
        return self._random.randbytes(self._random.randint(0, size))

    def parts(self, make: Callable[[], bytes]) -> list[bytes]:
        """
        A message of several frames.
        """
        return [
            self._random.choice((lambda: b"", make, self.noise))()
            for _ in range(self._random.randint(2, 12))
        ]

    def damaged(self, message: bytes, other: bytes) -> bytes:
        """
        @param other: Another message, of which a part may be taken.
        """
        for _ in range(self._random.randint(1, 3)):
            way = self._random.choice(
                (self._flip, self._cut, self._insert, self._repeat, self._replace, self._splice)
            )
            message = way(message, other)
        return message

    def _place(self, message: bytes) -> tuple[int, int]:
        start = self._random.randint(0, len(message))
        return start, min(len(message), start + self._random.randint(0, 40))

    def _flip(self, message: bytes, other: bytes) -> bytes:
        damaged = bytearray(message)
        for _ in range(self._random.randint(1, 8)):
            if damaged:
                damaged[self._random.randrange(len(damaged))] = self._random.randrange(256)
        return bytes(damaged)

    def _cut(self, message: bytes, other: bytes) -> bytes:
        start, end = self._place(message)
        return message[:start] + self._random.choice((b"", message[end:]))

    def _insert(self, message: bytes, other: bytes) -> bytes:
        start, _ = self._place(message)
        return message[:start] + self.noise()[:100] + message[start:]

    def _repeat(self, message: bytes, other: bytes) -> bytes:
        start, end = self._place(message)
        return message[:end] + message[start:end] * self._random.randint(1, 50) + message[end:]

    def _splice(self, message: bytes, other: bytes) -> bytes:
        start, _ = self._place(message)
        return message[:start] + other[self._random.randint(0, len(other)) :]

    def _replace(self, message: bytes, other: bytes) -> bytes:
        # The value of one property, in what is still valid JSON otherwise.
        start = message.find(b'":', self._random.randint(0, len(message)))
        if start < 0:
            return message
        ends = [end for end in (message.find(mark, start) for mark in (b",", b"}")) if end > 0]
        end = min(ends, default=len(message))
        return message[: start + 2] + self._random.choice(EXTREMES) + message[end:]


OBJECTS = {"ip": "ipv4-addr", "ipv6": "ipv6-addr", "domain": "domain-name", "url": "url"}
"""
The STIX objects of the kinds of the vast dialect.
"""


class Good:
    """
    Makes documents that have to arrive, each with what will be counted of it.

    What arrives of a document is told from all else by its id and version: see L{key_of}.
    """

    def __init__(self, random: Random, now: float) -> None:
        """
        @param now: The date of the first document, in seconds since the epoch.
        """
        self._random = random
        self._run = f"{random.getrandbits(16):04x}"
        self._now = now
        self._made = 0

    def id(self, kind: str) -> str:
        """
        A new one.
        """
        self._made += 1
        return f"{kind}--600d600d-{self._run}-4000-8000-{self._made:012x}"

    def observables(self) -> list[tuple[str, str]]:
        """
        Kinds of the vast dialect, and a value of each that nothing else has.
        """
        number = self._made
        return [
            ("ip", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"),
            ("domain", f"g{number}.example"),
            ("url", f"http://g{number}.example/x"),
            ("ipv6", f"2001:db8:a{number >> 12:x}:b{number & 4095:x}::1"),
        ]

    def indicator(self, **more: Any) -> dict[str, Any]:
        """
        An indicator of an observable, or two, that no other one has.
        """
        observables = self.observables()
        chosen = self._random.sample(observables, 2 if self._random.random() < 0.1 else 1)
        pattern = " OR ".join(f"{OBJECTS[kind]}:value = '{value}'" for kind, value in chosen)
        time = self.time()
        return {
            "type": "indicator",
            "spec_version": "2.1",
            "id": self.id("indicator"),
            "created": time,
            "modified": time,
            "pattern": f"[{pattern}]",
            "pattern_type": "stix",
            "valid_from": "2024-01-01T00:00:00Z",
            **more,
        }

    def sighting(self, of: str, **more: object) -> dict[str, object]:
        """
        @param of: The id of an indicator.
        """
        time = self.time()
        id = self.id("sighting")
        return {
            "type": "sighting",
            "spec_version": "2.1",
            "id": id,
            "created": time,
            "modified": time,
            "sighting_of_ref": of,
            "last_seen": time,
            "x_threatbus_sighting_context": {"mark": id},
            **more,
        }

    def time(self) -> str:
        """
        A time that comes after all that it gave before.
        """
        self._now += 0.001
        text = datetime.fromtimestamp(self._now, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")


def key_of(document: dict[str, object]) -> str:
    """
    What tells a version of a document from all others.
    """
    return f"{document['id']} {document.get('modified', '')}"


def line(document: dict[str, object]) -> bytes:
    """
    A document in JSON.
    """
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
