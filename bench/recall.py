"""
Counts what is not sighted, sighted wrongly, or twice, against a plain, slow matcher.

    python -m bench.recall [--short] [--telemetry FILE...] [--indicators FILE...]
                           [--each 50] [--others 5000] [--conjunctions 200] [--alternatives 100]
                           [--invented 100]

Indicators are made of values that are drawn from the telemetry, of others that are not in
it but look like these, and of pairs of values; those of the bundles are published with them.
Plugin, bridge and engine run as processes: once with the indicators first, once with the
events first. Sightings are what a subscriber of the bus gets. The exit status is 0 if
nothing was missed, false or double.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import ipaddress
import itertools
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from bench.reopen import ask
from bench.way import Way, waited
from tbvast.engines.tenzir import pipelines
from tests import slow_matcher
from tests.functional.components import FORMATS, bridge_on, import_events, run
from tests.slow_matcher import PATHS, Event, Telemetry, Value, Wanted, undone

DATA = Path(__file__).parents[1] / "tests" / "data"

QUIET = 3.0
"""
Seconds without a new sighting after which no more are waited for, if all are there.
"""

LIMIT = 60.0
"""
Seconds without a new sighting after which no more are waited for, if some are missing.
"""

PIECE = 500

IMPORTING = 3
"""
How many commands import at the same time.
"""

FEW = 20
"""
Events below which it is not worth it to import them by type.
"""

MANY = 200
"""
Events beyond which two values are not drawn to be wanted together.
"""

_COUNT = 'context_inspect "{}"\nsummarize count=count()\nwrite_ndjson\n'

LAST = "192.0.2.213"
"""
The address in the event that is imported after all others.
"""

SHAPES = (
    "[{0} OR {1}]",
    "[{0}] OR [{1}]",
    "([{0}]) OR [({1})]",
)
"""
How two terms of which one is enough are written.
"""


Fields = dict[str, Callable[[], Any]]
"""
What makes the values of fields.
"""


class Indicators(NamedTuple):
    """
    What is published.

    @ivar documents: By id.
    @ivar wanted: What the plain matcher reads in their patterns, by id.
    @ivar kinds: What they are called in the table, by id.
    """

    documents: dict[str, dict[str, Any]]
    wanted: dict[str, Wanted]
    kinds: dict[str, str]

    def add(self, pattern: str, kind: str) -> None:
        self.keep(_document(pattern, f"{kind} {pattern}"), kind)

    def keep(self, found: dict[str, Any], kind: str) -> None:
        id = found["id"]
        self.documents[id] = found
        self.wanted[id] = slow_matcher.wanted(found["pattern"])
        self.kinds[id] = kind


class Sighted(NamedTuple):
    """
    @ivar texts: What was seen, as the sighting says.
    @ivar live: Whether the live match found it.
    """

    indicator: str
    event: str
    texts: frozenset[str]
    live: bool


# Indicators


def document(value: Value) -> dict[str, Any]:
    """
    The indicator of a value.
    """
    kind, text = value
    return _document(f"[{term(kind, f'http://{text}' if kind == 'url' else text)}]", str(value))


def _document(pattern: str, name: str) -> dict[str, Any]:
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": f"indicator--{uuid.uuid5(uuid.NAMESPACE_OID, name)}",
        "created": "2024-01-01T00:00:00Z",
        "modified": "2024-01-01T00:00:00Z",
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": "2000-01-01T00:00:00Z",
    }


def term(kind: str, text: str, operator: str = "=") -> str:
    """
    A comparison.
    """
    path = PATHS[kind]
    if kind == "certificate":
        name = {32: "MD5", 40: "'SHA-1'", 64: "'SHA-256'"}[len(text.replace(":", ""))]
        path = f"x509-certificate:hashes.{name}"
    if kind in ("ip", "network") and ":" in text:
        path = "ipv6-addr:value"
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"{path} {operator} '{escaped}'"


def spelt(value: Value, number: int) -> str:
    """
    A comparison with a value, in one of the ways in which people write it.
    """
    kind, text = value
    if kind == "network":
        return term(kind, text, ("=", "ISSUBSET")[number % 2])
    if kind == "url":
        host, _, rest = text.partition("/")
        plain = f"http://{host}/{rest}"
        more = f"HTTPS://{host.upper()}/{rest}#top" if ":" in host else f"https://{host}:443/{rest}"
        return term(kind, (plain, more, plain)[number % 3])
    other = {
        "domain": f"{text.upper()}.",
        "certificate": ":".join(map(str.__add__, text[::2], text[1::2])),
        "mac": text.upper().replace(":", "-"),
        "ip": ipaddress.ip_address(text).exploded if kind == "ip" else "",
        "file-name": f"C:\\Temp\\{text}",
        "user-agent": text,
    }
    return term(kind, other.get(kind, text.upper()) if number % 3 == 1 else text)


# What is drawn


def draw(found: Telemetry, each: int, chance: random.Random) -> list[Value]:
    """
    So many values of each kind that are in a file.
    """
    by_kind: dict[str, set[Value]] = defaultdict(set)
    for _, event in found.events:
        for value in filter(slow_matcher.drawable, slow_matcher.values(event)):
            by_kind[value[0]].add(value)
            if value[0] == "ip":
                by_kind["ip6" if ":" in value[1] else "ip"].add(value)
    addresses = sorted(by_kind["ip"])
    networks = {_network(value, chance) for value in chance.sample(addresses, len(addresses))}
    by_kind["network"] = networks
    return [
        value
        for _, values in sorted(by_kind.items())
        for value in chance.sample(sorted(values), min(each, len(values)))
    ]


def _network(value: Value, chance: random.Random) -> Value:
    """
    One that an address is in, mostly a small one.
    """
    wide = ":" in value[1]
    bits = chance.choice((48, 64, 120, 126, 127) if wide else (20, 24, 28, 30, 31, 31))
    return "network", str(ipaddress.ip_network(f"{value[1]}/{bits}", strict=False))


def near(value: Value, chance: random.Random) -> Iterator[Value]:
    """
    What looks like a value, and is another one.
    """
    kind, text = value
    place = chance.randrange(len(text))
    changed = text[:place] + chance.choice("0123456789abcdef") + text[place + 1 :]
    yield kind, changed
    if kind in ("ip", "network"):
        network = ipaddress.ip_network(text)
        for number in (int(network.broadcast_address) + 1, int(network.network_address) - 1):
            if 0 <= number < 2**network.max_prefixlen:
                beside = ipaddress.ip_network((number, network.prefixlen), strict=False)
                yield kind, str(beside) if kind == "network" else str(beside.network_address)
    elif kind == "domain":
        yield from ((kind, f"www.{text}"), (kind, text.partition(".")[2]), (kind, f"x{text}"))
        yield from ((kind, f"{text}.example"), (kind, text.replace(".", "-", 1)))
        yield from (("file-name", text), ("user-agent", text))
    elif kind == "url":
        host, _, rest = text.partition("/")
        yield from ((kind, text[:-1]), (kind, f"{text}/"), (kind, f"{text}?x=1"))
        yield from ((kind, f"{host}/{rest.swapcase()}"), (kind, f"{host}/{rest.partition('?')[0]}"))
        yield from ((kind, f"{host}:8080/{rest}"), (kind, f"www.{text}"), (kind, f"{host}/"))
    elif kind == "email":
        local, _, host = text.partition("@")
        yield from ((kind, f"{local}@mail.{host}"), (kind, f"x{text}"), (kind, f"{text}.example"))
        yield "domain", host
    elif kind == "file-name":
        yield from ((kind, text.swapcase()), (kind, f"{text}.exe"), (kind, text[1:]))
        yield kind, text.rpartition(".")[0]
    elif kind == "user-agent":
        yield from ((kind, text.swapcase()), (kind, text[:-1]), (kind, f"{text} "))
    # The digits of one kind are not a value of another one.
    for other in _SAME_DIGITS.get(kind, ()):
        yield other, text


_SAME_DIGITS = {
    "md5": ("ja3", "ja3s", "certificate"),
    "sha1": ("certificate",),
    "sha256": ("certificate",),
    "certificate": ("sha1",),
}


def made_up(kind: str, number: int, chance: random.Random) -> Value:
    """
    One of a kind of which there is nothing to resemble, or not enough.
    """
    digits = f"{chance.getrandbits(256):064x}"
    texts = {
        "ip": f"198.18.{number // 256 % 256}.{number % 256}",
        "network": f"198.19.{number // 16 % 256}.{number % 16 * 16}/28",
        "domain": f"n{number}.not-there.example",
        "url": f"not-there.example/{number}",
        "email": f"n{number}@not-there.example",
        "file-name": f"{number}.not-there",
        "user-agent": f"Not-There/{number}",
        "mac": ":".join(digits[place : place + 2] for place in range(0, 12, 2)),
        "ja4": f"t13d1516h2_{digits[:12]}_{digits[12:24]}",
        "certificate": digits[:40],
    }
    return kind, texts.get(kind, digits[: {"sha1": 40, "sha256": 64}.get(kind, 32)])


def draw_others(
    drawn: Sequence[Value], count: int, there: Callable[[Value], bool], chance: random.Random
) -> list[Value]:
    """
    So many values, of all kinds, that are not in the telemetry: as many as there are that
    resemble what is, and then others.

    @param there: Whether the telemetry holds a value.
    """
    share = -(-count // len(PATHS))
    found: dict[str, dict[Value, None]] = {kind: {} for kind in PATHS}
    for _ in range(4):
        for value in chance.sample(drawn, len(drawn)):
            for other in near(value, chance):
                written = slow_matcher.normal(*other)
                if written and len(found[written[0]]) < share and not there(written):
                    found[written[0]][written] = None
    for kind, values in found.items():
        numbers = itertools.count()
        while len(values) < share:
            value = made_up(kind, next(numbers), chance)
            if not there(value):
                values[value] = None
    return [value for values in found.values() for value in values][:count]


def invented(count: int, chance: random.Random) -> Iterator[Telemetry]:
    """
    So many events of each of some schemas, with what is rare in logs: ports, proxies, lists
    longer than what is looked at of them, hardware addresses, and fields that are missing.
    """

    def name() -> str:
        text = f"{chance.choice('abcd')}{chance.randrange(30)}.example"
        return chance.choice((text, text, text.upper(), f"{text}."))

    def address() -> str:
        number = chance.randrange(60)
        return chance.choice((f"198.51.100.{number}", f"2001:db8::{number:x}"))

    def host() -> str:
        return chance.choice((name, name, address))()

    def mailbox() -> str:
        text = f"U{chance.randrange(40)}@{name().rstrip('.')}"
        return chance.choice((text, f"Some One <{text}>"))

    def hashed(size: int) -> Callable[[], str]:
        def make() -> str:
            text = hashlib.sha256(b"%d" % chance.randrange(60)).hexdigest()[:size]
            return chance.choice((text, text.upper()))

        return make

    def hardware() -> str:
        text = f"00:00:5e:00:53:{chance.randrange(60):02x}"
        return chance.choice((text, text.upper(), text.replace(":", "-")))

    def target() -> str:
        return f"/{chance.choice('pPqQ')}{chance.choice(('', ' x', '?y=1', '/R'))}"

    def location() -> str:
        at = chance.choice(("", "", ":80", ":443", ":8080"))
        return f"http://{name()}{at}{chance.choice((target(), target(), '', '?Z'))}"

    def requested() -> str:
        return chance.choice((target, target, location))()

    def file_name() -> str:
        return (
            chance.choice(("", "/tmp/", "C:\\")) + f"{chance.choice('fF')}{chance.randrange(30)}.x"
        )

    def many(one: Callable[[], Any], most: int = 12) -> Callable[[], list[Any]]:
        return lambda: [one() for _ in range(chance.randrange(1, most))]

    def agent() -> str:
        return f"Agent/{chance.randrange(40)} (Some {chance.choice('xX')})"

    def colons() -> str:
        return ":".join([f"{chance.randrange(60):02x}"] * 20)

    def ja4() -> str:
        return f"t13d1516h2_8daaf6152771_{chance.randrange(60):012x}"

    def filled(fields: Fields, often: float) -> dict[str, Any]:
        return {key: one() for key, one in fields.items() if chance.random() < often}

    def record(**fields: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
        return functools.partial(filled, fields, 0.7)

    def whole(**fields: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
        return functools.partial(filled, fields, 1.0)

    hashes = {"md5": hashed(32), "sha1": hashed(40), "sha256": hashed(64)}
    port = functools.partial(chance.choice, (80, 443, 8080, 8081))
    handshake: Fields = {"ja3": record(hash=hashed(32)), "ja3s": record(hash=hashed(32))}
    handshake |= {"ja4": ja4}
    asked = record(hostname=name, url=requested, http_port=port, http_user_agent=agent)
    # The engine makes texts of the records in a list if they differ.
    queries = many(whole(rrname=name))
    answers = many(whole(rrname=name, rdata=host), 30)
    files = many(whole(filename=file_name, **hashes))
    grouped = record(A=many(address, 30), AAAA=many(address), CNAME=many(name, 30))
    mail = record(**{"from": mailbox}, to=many(mailbox), cc=many(mailbox), url=many(location))
    certified = {"sni": host, "subjectaltname": many(host), "fingerprint": colons}
    eve: dict[str, Fields] = {
        "flow": {},
        "dns": {"dns": record(rrname=name, queries=queries, answers=answers, grouped=grouped)},
        "http": {"http": asked},
        "tls": {"tls": record(**certified, **handshake)},
        "quic": {"quic": record(sni=host, ua=agent, **handshake)},
        "smtp": {
            "smtp": record(helo=name, mail_from=mailbox, rcpt_to=many(mailbox)),
            "email": mail,
        },
        "fileinfo": {"http": asked, "fileinfo": record(filename=file_name, **hashes)},
        "alert": {"http": asked, "files": files},
        "arp": {"arp": record(src_mac=hardware, dest_mac=hardware)},
    }
    ends: Fields = {"src_ip": address, "dest_ip": address}
    ends |= {"ether": record(src_mac=hardware, dest_mac=hardware)}
    both: Fields = {"id.orig_h": address, "id.resp_h": address, "id.resp_p": port}
    zeek: dict[str, Fields] = {
        "conn": {**both, "orig_l2_addr": hardware, "resp_l2_addr": hardware},
        "dns": {**both, "query": name, "answers": many(host, 30)},
        "http": {**both, "host": name, "uri": requested, "user_agent": agent},
        "ssl": {**both, "server_name": host, "cert_chain_fps": many(hashed(64))},
        "files": {"tx_hosts": many(address), "filename": file_name, **hashes},
        "x509": {"fingerprint": hashed(64), "san.dns": many(host), "san.ip": many(address)},
        "smtp": {**both, "helo": name, "from": mailbox, "to": many(mailbox), "path": many(address)},
    }
    number = itertools.count()
    for format, schemas in (("suricata", eve), ("zeek-json", zeek)):
        for schema, fields in schemas.items():
            events = []
            make = record(**fields, **(ends if format == "suricata" else {}))
            for _ in range(count):
                event = make()
                moment = datetime.fromtimestamp(1_700_000_000 + next(number), UTC)
                if format == "suricata":
                    event |= {"timestamp": f"{moment:%Y-%m-%dT%H:%M:%S.%f}+0000"}
                    event |= {"event_type": schema}
                else:
                    event |= {"ts": f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z", "_path": schema}
                events.append((f"{format.partition('-')[0]}.{schema}", event))
            text = "".join(json.dumps(event) + "\n" for _, event in events)
            yield Telemetry(format, text, events)


# Pairs


def alternatives(
    drawn: Sequence[Value], others: Sequence[Value], count: int, chance: random.Random
) -> Iterator[str]:
    """
    Patterns of two terms of which one is enough.
    """
    for number in range(count):
        one = chance.choice(drawn)
        two = chance.choice(drawn if number % 2 else others)
        terms = [spelt(one, number), spelt(two, number)]
        chance.shuffle(terms)
        same = [value for value in drawn if value[0] == one[0] and one[0] not in ("network", "ip")]
        if one[0] == "certificate":  # each length of a hash has a path of its own
            same = [value for value in same if len(value[1]) == len(one[1])]
        if number % (len(SHAPES) + 1) == len(SHAPES) and same:
            listed = term(one[0], one[1]).replace(" = ", " IN (") + ", "
            yield f"[{listed}{term(*chance.choice(same)).partition(' = ')[2]})]"
        else:
            yield SHAPES[number % len(SHAPES)].format(*terms)


def conjunctions(
    events: Sequence[Event],
    drawn: Sequence[Value],
    others: Sequence[Value],
    count: int,
    chance: random.Random,
) -> Iterator[str]:
    """
    Patterns of two terms which both must hold: half of them are in one event, the others
    are in the telemetry, but never together.
    """
    there: dict[Value, set[int]] = defaultdict(set)
    for number, event in enumerate(events):
        for value in slow_matcher.values(event):
            there[value].add(number)
    made = 0
    for event in chance.choices(events, k=count * 20):
        if made == count // 2:
            break
        values = sorted(filter(slow_matcher.drawable, slow_matcher.values(event)))
        if len(values) < 2:
            continue
        one, two = chance.sample(values, 2)
        if len(there[one] & there[two]) > MANY:
            continue  # such as two addresses that talk all the time: there are enough
        made += 1
        if one[0] == "ip" and made % 4 == 0:
            one = _network(one, chance)
        first, second = spelt(one, made), spelt(two, made)
        if made % 5 == 0:
            other = spelt(chance.choice(others), made)
            yield f"[{first} AND ({other} OR {second})]"
        else:
            yield f"[{first} AND {second}]"
    apart = [value for value in drawn if value[0] != "network"]
    for _ in range(count * 20):
        if made == count:
            break
        one, two = chance.sample(apart, 2)
        if not there[one] & there[two]:
            made += 1
            yield f"[{spelt(one, made)} AND {spelt(two, made)}]"


def published(path: Path) -> Iterator[dict[str, Any]]:
    """
    The indicators of a bundle.
    """
    for each in json.loads(path.read_text(encoding="utf-8"))["objects"]:
        if each["type"] == "indicator" and each.get("pattern_type", "stix") == "stix":
            yield each


# Running


class Sightings(threading.Thread):
    """
    A subscriber of the bus, as there were before tbvast.

    @ivar all: What came.
    @ivar last: Whether the sighting of the last event came, which is not among these.
    """

    def __init__(self, manage: int, context: zmq.Context[Any]) -> None:
        super().__init__(daemon=True)
        wish = {"action": "subscribe", "topic": "stix2/sighting", "snapshot": 0}
        reply = json.loads(ask(manage, json.dumps(wish).encode()))
        self._socket = context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.subscribe(reply["topic"])
        self._socket.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
        self.all: list[Sighted] = []
        self.last = threading.Event()

    def run(self) -> None:
        with self._socket:
            while True:
                try:
                    message = self._socket.recv()
                except zmq.ContextTerminated:
                    return
                found = _sighted(json.loads(message.partition(b" ")[2]))
                if found.texts == {LAST}:
                    self.last.set()
                else:
                    self.all.append(found)


def _sighted(found: dict[str, Any]) -> Sighted:
    named = [found["x_threatbus_indicator_value"]]
    return Sighted(
        found["sighting_of_ref"],
        slow_matcher.key(found["x_threatbus_sighting_context"]),
        frozenset(found.get("x_threatbus_indicator_values", named)),
        found["x_threatbus_match_type"] == "LIVE",
    )


class Recall(Way):
    """
    One run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sightings = Sightings(self._manage, self._context)
        self.sightings.start()
        waited(lambda: [each["attached"] for each in self._subscriptions()] == [True, True])

    def _subscriptions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(ask(self._manage, b'{"action":"status"}'))[
            "subscriptions"
        ]
        return found

    def spread(self, documents: Sequence[dict[str, Any]]) -> list[str]:
        """
        @return: Why some were refused.
        """
        reasons: list[str] = []
        for start in range(0, len(documents), PIECE):
            request = {"action": "publish", "documents": documents[start : start + PIECE]}
            answer = json.loads(ask(self._manage, json.dumps(request).encode()))
            reasons += answer.get("reasons", {}).values()
        return reasons

    def hold(self, count: int) -> int:
        """
        Wait until the engine holds so many values.

        @return: How many it holds, which may be others if it came to rest with them.
        """
        held, since = 0, time.monotonic()
        while held != count and time.monotonic() - since < LIMIT:
            time.sleep(1)
            if (now := self._held()) != held:
                held, since = now, time.monotonic()
        return held

    def rest(self) -> None:
        """
        Wait until past events have been searched.
        """
        waited(lambda: not self._busy())

    @functools.cached_property
    def _tables(self) -> pipelines.Tables:
        return pipelines.main_tables(bridge_on(self.client))

    def _held(self) -> int:
        answers = (run(self.client, _COUNT.format(table), "") for table in self._tables)
        return sum(json.loads(answer or '{"count": 0}')["count"] for answer in answers)

    def _busy(self) -> bool:
        time.sleep(2.5)  # two heartbeats
        return any(
            bool(each["report"]["engine"].get("searching") or each["report"]["engine"]["pending"])
            for each in self._subscriptions()
            if each.get("report")
        )

    def feed(self, files: Iterable[Telemetry]) -> None:
        """
        Import all events, and wait until the live match has seen them.
        """
        with ThreadPoolExecutor(IMPORTING) as pool:
            for done in [pool.submit(run, self.client, *each) for each in _imports(files)]:
                done.result()
        event = {"timestamp": "2024-01-01T00:00:00Z", "event_type": "flow", "src_ip": LAST}
        import_events(self.client, json.dumps(event), "suricata")
        waited(lambda: self.sightings.last.is_set())

    def come(self, wanted: int) -> list[Sighted]:
        """
        @return: All that came, once nothing more does.
        """
        count, since = 0, time.monotonic()
        while time.monotonic() - since < (QUIET if count >= wanted else LIMIT):
            time.sleep(0.2)
            if (now := len(self.sightings.all)) != count:
                count, since = now, time.monotonic()
        return list(self.sightings.all)


def _imports(files: Iterable[Telemetry]) -> Iterator[tuple[str, str]]:
    """
    @return: Pipelines, each with what it reads.
    """
    for each in files:
        if each.format != "suricata" or len(each.events) < FEW:
            yield f"{FORMATS[each.format]} | import", each.text
            continue
        by_schema: dict[str, list[str]] = defaultdict(list)
        for schema, event in each.events:
            by_schema[schema].append(json.dumps(event))
        # The engine refuses some batches of several types, but has to take whole batches.
        for lines in by_schema.values():
            yield "from_stdin { read_suricata } | import", "\n".join(lines)


def sighted(
    mode: str, indicators: Indicators, files: list[Telemetry], wanted: int
) -> list[Sighted]:
    """
    Have everything published and imported.

    @param mode: C{"live"}, indicators first, or C{"retro"}.
    @return: What a subscriber got.
    """
    documents = list(indicators.documents.values())
    terms = {
        each.value
        for alternatives in indicators.wanted.values()
        for each in itertools.chain.from_iterable(alternatives)
    }
    escaped = {undone(value) for value in terms if "%" in value[1]} - terms
    distinct = len({*terms, *escaped, ("ip", LAST)})
    with tempfile.TemporaryDirectory(prefix="tbvast-recall-") as folder:
        run = Recall(Path(folder))
        try:
            run.spread([document(("ip", LAST))])
            if mode == "retro":
                run.hold(1)
                run.feed(files)
            refused = run.spread(documents)
            held = run.hold(distinct)
            run.rest()
            if mode == "live":
                run.feed(files)
            if refused:
                print(f"{len(refused):,} indicators were refused: {refused[0]}")
            if held != distinct:
                print(f"the engine holds {held:,} values, not {distinct:,}")
            return run.come(wanted)
        finally:
            run.end()


# Comparing


class Expected(NamedTuple):
    """
    @ivar held: By indicator and event the texts of each alternative that holds.
    @ivar counts: How many events there are of each, which look the same.
    @ivar schemas: Those of the events.
    """

    held: dict[tuple[str, str], list[frozenset[str]]]
    counts: Counter[tuple[str, str]]
    schemas: dict[str, str]


def expected(indicators: Indicators, files: Iterable[Telemetry]) -> Expected:
    found = Expected({}, Counter(), {})
    matcher = slow_matcher.Matcher(indicators.wanted)
    for each in files:
        for schema, event in each.events:
            key = slow_matcher.key(event)
            found.schemas[key] = schema
            for id, held in matcher.matches(event).items():
                found.held.setdefault((id, key), []).extend(held)
                found.counts[id, key] += 1
    return found


COLUMNS = ("expected", "found", "missed", "false", "duplicates")


def compare(
    mode: str, indicators: Indicators, should: Expected, came: Iterable[Sighted], show: int
) -> int:
    """
    Print what is different.

    @return: How much of it is wrong.
    """
    right: Counter[tuple[str, str]] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    live = 0
    for each in came:
        pair = each.indicator, each.event
        live += each.live
        (right if each.texts in should.held.get(pair, ()) else wrong)[pair] += 1
    rows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * len(COLUMNS))
    for pair in should.counts.keys() | wrong.keys():
        want, got, false = should.counts[pair], right[pair], wrong[pair]
        counts = want, min(want, got), max(want - got, 0), false, max(got - want, 0)
        row = rows[indicators.kinds.get(pair[0], "?"), should.schemas.get(pair[1], "?")]
        for place, number in enumerate(counts):
            row[place] += number
        if any(counts[2:]) and show:
            show -= 1
            pattern = indicators.documents.get(pair[0], {}).get("pattern")
            print(f"    {pattern}, event {pair[1]}: {dict(zip(COLUMNS, counts, strict=True))}")
    print(f"\n{mode:38}" + "".join(f"{column:>11}" for column in COLUMNS))
    for (kind, schema), row in sorted(rows.items()):
        print(f"  {kind:14}{schema:22}" + "".join(f"{number:11,}" for number in row))
    total = [sum(column) for column in zip(*rows.values(), strict=True)] or [0] * len(COLUMNS)
    print(f"  {'all':36}" + "".join(f"{number:11,}" for number in total))
    print(f"  {live:,} by the live match, {right.total() + wrong.total() - live:,} by a search\n")
    sys.stdout.flush()
    return sum(total[2:])


def counted(values: Iterable[Value]) -> str:
    kinds = Counter(
        "IPv6" if kind == "ip" and ":" in text else "IPv4" if kind == "ip" else kind
        for kind, text in values
    )
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n\n")[0])
    parser.add_argument("--short", action="store_true", help="measure in small")
    parser.add_argument("--telemetry", type=Path, nargs="+", metavar="FILE", help="EVE, Zeek logs")
    parser.add_argument("--indicators", type=Path, nargs="*", metavar="FILE", help="STIX bundles")
    parser.add_argument("--each", type=int, help="values of each kind from each file: 50")
    parser.add_argument("--others", type=int, help="values that do not hit: 5000")
    parser.add_argument("--conjunctions", type=int, help="pairs that are wanted together: 200")
    parser.add_argument("--alternatives", type=int, help="pairs of which one is enough: 100")
    parser.add_argument("--invented", type=int, help="events made up for each schema: 100")
    parser.add_argument("--show", type=int, default=5, help="differences to print")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn depends on it")
    options: Any = parser.parse_args(arguments)
    sizes = {"each": (50, 3), "others": (5000, 150), "conjunctions": (200, 20)}
    sizes |= {"alternatives": (100, 10), "invented": (100, 10)}
    for name, (full, short) in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, short if options.short else full)
    if options.telemetry is None:
        patterns = ["suricata/*", "zeek-json/*", "zeek-tsv/*"]
        options.telemetry = [path for each in patterns for path in sorted(DATA.glob(each))]
    if options.indicators is None:
        options.indicators = sorted(DATA.glob("stix/*.json"))
    return measure(options)


def measure(options: Any) -> int:
    chance = random.Random(options.seed)
    files = [slow_matcher.read(path) for path in options.telemetry]
    files += invented(options.invented, chance)
    drawn = list(
        dict.fromkeys(value for each in files for value in draw(each, options.each, chance))
    )
    events = [event for each in files for _, event in each.events]
    there = {value for event in events for value in slow_matcher.values(event)}
    addresses = [ipaddress.ip_address(text) for kind, text in there if kind == "ip"]

    def holds(value: Value) -> bool:
        if value[0] == "network":
            network = ipaddress.ip_network(value[1])
            return any(address in network for address in addresses)
        return value in there

    others = draw_others(drawn, options.others, holds, chance)
    indicators = Indicators({}, {}, {})
    for number, value in enumerate(drawn + others):
        indicators.add(f"[{spelt(value, number)}]", value[0])
    for pattern in alternatives(drawn, others, options.alternatives, chance):
        indicators.add(pattern, "one of two")
    for pattern in conjunctions(events, drawn, others, options.conjunctions, chance):
        indicators.add(pattern, "two together")
    bundled = [each for path in options.indicators for each in published(path)]
    for each in bundled:
        indicators.keep(each, "of a bundle")
    should = expected(indicators, files)
    hit = {id for id, _ in should.counts}
    unread = sum(not indicators.wanted[each["id"]] for each in bundled)
    print(
        f"{len(events):,} events of {len(options.telemetry)} files, and"
        f" {options.invented:,} of each of {len(files) - len(options.telemetry)} schemas"
    )
    print(f"{len(drawn):,} values in them: {counted(drawn)}")
    print(f"{len(others):,} values that are not: {counted(others)}")
    for kind in ("one of two", "two together", "of a bundle"):
        ids = {id for id, each in indicators.kinds.items() if each == kind}
        print(f"{len(ids):,} {kind}, of which {len(ids & hit):,} are in the events")
    print(f"{unread:,} of the bundles' patterns cannot be matched in one event\n", flush=True)
    wrong = 0
    for mode in ("live", "retro"):
        came = sighted(mode, indicators, files, should.counts.total())
        wrong += compare(mode, indicators, should, came, options.show)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
