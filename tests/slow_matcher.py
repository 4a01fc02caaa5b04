"""
A plain matcher of telemetry files, which shares nothing with what it checks.

It follows C{docs/matching.md}: it looks at one event at a time, and reads patterns with the
parser of C{stix2-patterns}.
"""

from __future__ import annotations

import gzip
import ipaddress
import itertools
import json
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from stix2patterns.v21.grammars.STIXPatternVisitor import STIXPatternVisitor
from stix2patterns.v21.pattern import Pattern

Event = dict[str, Any]
Value = tuple[str, str]
"""
A kind, which is a key of L{PATHS}, and a text in the one form that is compared.
"""


class Term(NamedTuple):
    """
    @ivar text: As the pattern has it.
    """

    value: Value
    text: str


Wanted = tuple[tuple[Term, ...], ...]
"""
What a pattern wants: of one of these all terms, in the same event.
"""


class Telemetry(NamedTuple):
    """
    What is in a file.

    @ivar format: How it is imported, a key of L{tests.functional.components.FORMATS}.
    @ivar text: What is imported.
    @ivar events: Each with its schema.
    """

    format: str
    text: str
    events: list[tuple[str, Event]]


FIELDS: Mapping[str, tuple[str, ...]] = {
    "address": (
        *("src_ip", "dest_ip", "dns.grouped.A", "dns.grouped.AAAA"),
        *("id.orig_h", "id.resp_h", "tx_hosts", "rx_hosts", "san.ip", "x_originating_ip", "path"),
    ),
    "host": (
        *("http.hostname", "tls.sni", "tls.subjectaltname", "quic.sni", "dns.answers.rdata"),
        *("host", "server_name", "san.dns", "answers"),
    ),
    "domain": (
        *("dns.rrname", "dns.queries.rrname", "dns.query.rrname", "dns.grouped.CNAME"),
        *("dns.authorities.rrname", "dns.authorities.soa.mname", "smtp.helo"),
        *("query", "helo"),
    ),
    "url": ("email.url",),
    "email": (
        *("smtp.mail_from", "smtp.rcpt_to", "email.from", "email.to", "email.cc"),
        *("mailfrom", "rcptto", "from", "to", "cc", "reply_to"),
    ),
    "md5": ("fileinfo.md5", "files.md5", "md5"),
    "sha1": ("fileinfo.sha1", "files.sha1", "sha1"),
    "sha256": ("fileinfo.sha256", "files.sha256", "sha256"),
    "file-name": (
        *("fileinfo.filename", "files.filename", "ftp_data.filename"),
        *("filename", "orig_filenames", "resp_filenames"),
    ),
    "certificate": (
        *("tls.fingerprint", "tls.client.fingerprint"),
        *("fingerprint", "cert_chain_fps", "client_cert_chain_fps"),
    ),
    "ja3": ("tls.ja3.hash", "quic.ja3.hash", "ja3"),
    "ja3s": ("tls.ja3s.hash", "quic.ja3s.hash", "ja3s"),
    "ja4": ("tls.ja4", "quic.ja4", "ja4"),
    "user-agent": ("http.http_user_agent", "quic.ua", "user_agent"),
    "mac": (
        *("ether.src_mac", "ether.dest_mac", "ether.src_macs", "ether.dest_macs"),
        *("arp.src_mac", "arp.dest_mac", "dhcp.client_mac"),
        *("orig_l2_addr", "resp_l2_addr", "mac"),
    ),
}
"""
Where to look, also for a C{host}, which is a name or an address. A path goes through lists.
"""

LENGTH = 8
LENGTHS = dict.fromkeys(
    (*("answers", "dns.answers.rdata"), *map("dns.grouped.{}".format, ("A", "AAAA", "CNAME"))), 24
)
"""
How many elements of a list are looked at.
"""

PATHS = {
    "ip": "ipv4-addr:value",
    "network": "ipv4-addr:value",
    "domain": "domain-name:value",
    "url": "url:value",
    "email": "email-addr:value",
    "md5": "file:hashes.MD5",
    "sha1": "file:hashes.'SHA-1'",
    "sha256": "file:hashes.'SHA-256'",
    "file-name": "file:name",
    "certificate": "x509-certificate:hashes.'SHA-1'",
    "ja3": "network-traffic:extensions.'tls-ext'.ja3",
    "ja3s": "network-traffic:extensions.'tls-ext'.ja3s",
    "ja4": "network-traffic:extensions.'tls-ext'.ja4",
    "user-agent": "network-traffic:extensions.'http-request-ext'.request_header.'User-Agent'",
    "mac": "mac-addr:value",
}
"""
How a pattern says of which kind a value is.
"""

_MORE_PATHS = {
    "ipv6-addr:value": "ip",
    "email-message:from_ref.value": "email",
    "email-message:sender_ref.value": "email",
    "network-traffic:src_ref.value": "domain",
    "network-traffic:dst_ref.value": "domain",
}

_HEX = {"md5": 32, "ja3": 32, "ja3s": 32, "sha1": 40, "sha256": 64}
_WIDEST = {4: 8, 6: 16}
_LABEL = "[a-z0-9_-]{1,63}"
_IDENTITY = (
    *("flow_id", "uid", "fuid", "event_type", "trans_depth", "trans_id", "pcap_cnt", "tx_id"),
    *("alert.signature_id", "dns.id", "dns.type", "fileinfo.filename", "smb.id"),
)


# Events


def read(path: Path) -> Telemetry:
    """
    What is in a file; an event that is equal to one before it is the same event.
    """
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    if text.startswith("#"):
        found = re.search(r"^#path\s+(\S+)", text, re.MULTILINE)
        schema = f"zeek.{found[1] if found else ''}"
        return Telemetry("zeek-tsv", text, [(schema, event) for event in _once(_tsv(text))])
    events = _once(json.loads(line) for line in text.splitlines() if line)
    if all("event_type" in event for event in events):
        named = [(f"suricata.{event['event_type']}", event) for event in events]
        return Telemetry("suricata", _lines(events), named)
    for event in events:
        event.setdefault("_path", path.name.partition(".")[0])
    named = [(f"zeek.{event['_path']}", event) for event in events]
    return Telemetry("zeek-json", _lines(events), named)


def _once(events: Iterable[Event]) -> list[Event]:
    return list({json.dumps(event, sort_keys=True): event for event in events}.values())


def _lines(events: Iterable[Event]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def _tsv(text: str) -> Iterator[Event]:
    names: list[str] = []
    types: list[str] = []
    for line in text.split("\n"):
        first, *rest = line.split("\t")
        if first == "#fields":
            names = rest
        elif first == "#types":
            types = rest
        elif line and not line.startswith("#"):
            yield {
                name: [_unescaped(each) for each in cell.split(",")]
                if type.startswith(("vector", "set", "table"))
                else _unescaped(cell)
                for name, type, cell in zip(names, types, [first, *rest], strict=True)
                if cell not in ("-", "(empty)")
            }


def _unescaped(cell: str) -> str:
    parts = re.split(rb"\\x([0-9a-f]{2})", cell.encode())
    parts[1::2] = (bytes.fromhex(each.decode()) for each in parts[1::2])
    return b"".join(parts).decode(errors="replace")


def key(event: Event) -> str:
    """
    What an event is told by: its time in microseconds, and a few fields.
    """
    time = event.get("timestamp", event.get("ts"))
    if re.fullmatch(r"[0-9.]+", str(time)):
        micros = round(Decimal(str(time)) * 1_000_000)
    else:
        moment = datetime.fromisoformat(str(time))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        micros = (since.days * 86400 + since.seconds) * 1_000_000
        fraction = re.search(r"\.[0-9]+", str(time))
        # The engine's nanoseconds may be one short of what the file says.
        micros += round(Decimal(fraction[0] if fraction else 0) * 1_000_000)
    found = (f"{path}={each}" for path in _IDENTITY for each in _at(event, path, 1) if each != "")
    return " ".join((str(micros), *found))


def values(event: Event) -> set[Value]:
    """
    All that an event is matched by, but for networks.
    """
    found: set[Value] = set()
    for kind, paths in FIELDS.items():
        for path in paths:
            for each in _at(event, path, LENGTHS.get(path, LENGTH)):
                if isinstance(each, str):
                    found |= _seen(kind, each)
    http = event.get("http")
    if isinstance(http, dict):
        found |= _requested(http.get("hostname"), http.get("url"), [http.get("http_port")])
    ports = [None, *_at(event, "id.resp_p", 1)]
    host, uri = event.get("host"), event.get("uri")
    if isinstance(host, str) and isinstance(uri, str) and uri.startswith("/"):
        found |= {("undone", f"{_name(host)}{end}{uri}") for end in _ends(ports)}
    return found | _requested(host, uri, ports)


def _seen(kind: str, text: str) -> set[Value]:
    if kind in ("address", "host"):
        address = _address(text)
        if address is not None:
            return {("ip", address)}
        return {("domain", _name(text))} if kind == "host" else set()
    if kind == "domain":
        return {("domain", _name(text))}
    if kind == "email":
        return {("email", text.rpartition("<")[2].partition(">")[0].lower())}
    if kind == "url":
        return {("url", _located(text))}
    if kind == "file-name":
        return {("file-name", _last(text))}
    if kind == "user-agent":
        return {("user-agent", text)}
    if kind == "mac":
        return {("mac", text.lower().replace("-", ":"))}
    return {(kind, text.lower().replace(":", ""))}


def _at(event: Any, path: str, length: int) -> Iterator[Any]:
    if isinstance(event, list):
        for each in event[:length]:
            yield from _at(each, path, length)
    elif not path:
        if event is not None and not isinstance(event, dict):
            yield event
    elif isinstance(event, dict):
        if path in event:  # also Zeek's names, which hold dots
            yield from _at(event[path], "", length)
        else:
            first, _, rest = path.partition(".")
            if rest and first in event:
                yield from _at(event[first], rest, length)


# Values


def normal(kind: str, text: str) -> Value | None:
    """
    The one form of a value of an indicator; L{None} if it is none of its kind.
    """
    if kind in ("ip", "network", "domain"):
        return _normal_host(kind, text)
    if kind == "url":
        written = _located(text)
        return ("url", written) if _name_or_address(written.partition("/")[0]) else None
    if kind == "email":
        local, _, host = text.lower().rpartition("@")
        found = normal("domain", host)
        good = re.fullmatch(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}", local)
        return ("email", f"{local}@{found[1]}") if good and found and found[0] == "domain" else None
    if kind == "file-name":
        name = _last(text)
        return ("file-name", name) if name.isprintable() and name else None
    if kind == "user-agent":
        return ("user-agent", text) if text.isprintable() and text else None
    if kind == "mac":
        digits = re.sub("[:.-]", "", text.lower())
        whole = re.fullmatch("[0-9a-f]{12}", digits) is not None
        return ("mac", ":".join(re.findall("..", digits))) if whole else None
    if kind == "ja4":
        form = "[tqd][0-9a-z]{2}[di][0-9]{4}[0-9a-z]{2}(_[0-9a-f]{12}){2}"
        return ("ja4", text.lower()) if re.fullmatch(form, text.lower()) else None
    digits = text.lower().replace(":", "") if kind == "certificate" else text.lower()
    long = _HEX.get(kind, len(digits))
    whole = re.fullmatch("[0-9a-f]+", digits) is not None and len(digits) == long
    return (kind, digits) if whole and long in (32, 40, 64) else None


def _normal_host(kind: str, text: str) -> Value | None:
    address = _address(text)
    if address is not None:
        return "ip", address
    if kind == "domain" and "/" not in text:
        name = text.lower().removesuffix(".")
        good = re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name) and len(name) <= 253
        return ("domain", name) if good and not name.rpartition(".")[2].isdigit() else None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if network.num_addresses == 1:
        return "ip", str(network.network_address)
    return ("network", str(network)) if network.prefixlen >= _WIDEST[network.version] else None


def _address(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _name(text: str) -> str:
    return text.lower().rstrip(".")


def _name_or_address(host: str) -> bool:
    return normal("domain", re.sub(r":[0-9]+$", "", host).strip("[]")) is not None


def _last(text: str) -> str:
    return re.split(r"[/\\]", text)[-1]


def _located(text: str) -> str:
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", text).partition("#")[0]
    host = re.split("[/?]", bare)[0]
    rest = bare[len(host) :].removeprefix("/")
    name, port = re.findall("^(.*?)(:[0-9]*)?$", host.rpartition("@")[2])[0]
    port = "" if port in (":", ":80", ":443") else port
    return f"{_name(name)}{port}/{_quoted(rest)}"


def _requested(host: str | None, target: str | None, ports: Iterable[Any]) -> set[Value]:
    """
    @param target: A path, or, as proxies are asked, a whole URL.
    """
    if target is not None and not target.startswith("/"):
        return {("url", _located(target))}
    if host is None or target is None:
        return set()
    return {("url", f"{_name(host)}{end}{_quoted(target)}") for end in _ends(ports)}


def _ends(ports: Iterable[Any]) -> set[str]:
    return {"" if str(port) in ("None", "80", "443") else f":{port}" for port in ports}


def _quoted(text: str) -> str:
    return text.replace(" ", "%20")


def undone(value: Value) -> Value:
    """
    What is seen of a URL in Zeek's log, which undoes its escapes.
    """
    plain = urllib.parse.unquote(value[1])
    return ("undone", plain) if value[0] == "url" and plain.isascii() else value


def drawable(value: Value) -> bool:
    """
    Whether a value, which is in an event, can be written as an indicator.
    """
    kind, text = value
    if normal(kind, text) != value or not text.isprintable():
        return False
    return kind != "url" or text.isascii()


# Patterns


def wanted(pattern: str) -> Wanted:
    """
    What of a pattern one event can fulfil.

    @return: Nothing if it cannot.
    @raise stix2patterns.exceptions.ParseException: If it is no pattern.
    """
    found: Wanted = Pattern(pattern).visit(_Reading())
    return tuple(terms for terms in dict.fromkeys(found) if terms)


class _Reading(STIXPatternVisitor):
    """
    What it does not know has no alternatives.
    """

    def visitChildren(self, node: Any) -> Wanted:
        parts = self._parts(node)
        return parts[0] if len(parts) == 1 else ()

    def _parts(self, node: Any) -> list[Wanted]:
        return [self.visit(each) for each in node.getChildren() if hasattr(each, "getRuleIndex")]

    def _either(self, node: Any) -> Wanted:
        return tuple(itertools.chain.from_iterable(self._parts(node)))

    visitObservationExpressionOr = _either
    visitComparisonExpression = _either

    def visitComparisonExpressionAnd(self, node: Any) -> Wanted:
        return tuple(
            tuple(dict.fromkeys(itertools.chain.from_iterable(terms)))
            for terms in itertools.product(*self._parts(node))
        )

    def _nothing(self, node: Any) -> Wanted:
        return ()

    visitObservationExpressionStartStop = _nothing
    visitObservationExpressionWithin = _nothing
    visitObservationExpressionRepeated = _nothing
    visitPropTestOrder = _nothing
    visitPropTestLike = _nothing
    visitPropTestRegex = _nothing
    visitPropTestIsSuperset = _nothing
    visitPropTestExists = _nothing

    def _compared(self, node: Any) -> Wanted:
        path, *said = (each.getText() for each in node.getChildren())
        if "NOT" in said or "!=" in said or "<>" in said:
            return ()
        path = path.replace("'", "")
        if re.fullmatch(r"network-traffic:(src|dst)_ref\.type", path):
            return ((),)  # the value beside it says so too
        kind = _kind(path)
        if kind is None:
            return ()
        if said[-2] == "ISSUBSET":
            kind = "network" if kind in ("ip", "domain") else ""
        texts = map(_unquoted, re.findall(r"'((?:[^'\\]|\\.)*)'", said[-1]))
        terms = (Term(value, text) for text in texts if (value := normal(kind, text)))
        return tuple((term,) for term in terms)

    visitPropTestEqual = _compared
    visitPropTestSet = _compared
    visitPropTestIsSubset = _compared


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _kind(path: str) -> str | None:
    for kind, written in PATHS.items():
        if written.replace("'", "") == path and kind != "network":
            return kind
    if found := re.fullmatch(r"(?i)file:hashes\.(md5|sha-?1|sha-?256)", path):
        return found[1].lower().replace("-", "")
    if re.fullmatch(r"(?i)x509-certificate:hashes\.(md5|sha-?1|sha-?256)", path):
        return "certificate"
    if found := re.fullmatch(r"(?i)network-traffic:extensions\.tls-ext\.(ja3s?|ja4)_hash", path):
        return found[1].lower()
    return _MORE_PATHS.get(path)


class Matcher:
    """
    Says for which indicators an event has to be sighted.
    """

    def __init__(self, indicators: Mapping[str, Wanted]) -> None:
        """
        @param indicators: By id.
        """
        self._indicators = indicators
        self._ids: dict[Value, set[str]] = defaultdict(set)
        for id, alternatives in indicators.items():
            for term in itertools.chain.from_iterable(alternatives):
                self._ids[term.value].add(id)
                self._ids[undone(term.value)].add(id)
        self._networks = [
            (value, ipaddress.ip_network(value[1])) for value in self._ids if value[0] == "network"
        ]
        self._covering: dict[str, list[Value]] = {}

    def matches(self, event: Event) -> dict[str, list[frozenset[str]]]:
        """
        @return: For each indicator the texts of each alternative that holds, as its
            pattern has them.
        """
        seen = values(event)
        for kind, text in list(seen):
            if kind == "ip":
                seen.update(self.covering(text))
        ids: set[str] = set().union(*(self._ids[value] for value in seen & self._ids.keys()))
        found = {
            id: [
                frozenset(term.text for term in terms)
                for terms in self._indicators[id]
                if all(seen & {term.value, undone(term.value)} for term in terms)
            ]
            for id in ids
        }
        return {id: held for id, held in found.items() if held}

    def covering(self, text: str) -> list[Value]:
        """
        The networks that hold an address.
        """
        if text not in self._covering:
            address = ipaddress.ip_address(text)
            self._covering[text] = [
                value for value, network in self._networks if address in network
            ]
        return self._covering[text]
