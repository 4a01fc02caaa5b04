"""
A plain matcher of telemetry files, which shares nothing with what it checks.

It follows the table of fields in C{docs/matching.md}, and looks at one event at a time.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Value = tuple[str, str]
"""
A kind (C{ip}, C{domain}, C{url}, C{email}, C{md5}, C{sha1}, C{sha256}) and a value.
"""

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")

FIELDS: Mapping[str, tuple[str, ...]] = {
    "host": (
        *("src_ip", "dest_ip", "id.orig_h", "id.resp_h", "tx_hosts", "rx_hosts"),
        *("http.hostname", "host", "tls.sni", "tls.subjectaltname", "quic.sni", "server_name"),
        *("san.ip", "san.dns", "query", "helo", "smtp.helo"),
        *("dns.rrname", "dns.queries.rrname"),
    ),
    "answer": (
        *("answers", "dns.grouped.A", "dns.grouped.AAAA", "dns.grouped.CNAME"),
        "dns.answers.rdata",
    ),
    "email": (
        *("smtp.mail_from", "smtp.rcpt_to", "email.from", "email.to", "email.cc"),
        *("mailfrom", "rcptto", "from", "to", "cc", "reply_to"),
    ),
    "hash": tuple(
        f"{where}{kind}"
        for where in ("", "fileinfo.", "files.")
        for kind in ("md5", "sha1", "sha256")
    ),
}

LENGTHS = {"answer": 24}
LENGTH = 8


def read(path: Path) -> list[Event]:
    """
    The events of a file; one that is equal to one before it is the same event.
    """
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    if text.startswith("#"):
        events = list(_tsv(text))
    else:
        events = [json.loads(line) for line in text.splitlines() if line]
    return list({json.dumps(event, sort_keys=True): event for event in events}.values())


def _tsv(text: str) -> Iterator[Event]:
    names: list[str] = []
    types: list[str] = []
    for line in text.splitlines():
        first, *rest = line.split("\t")
        if first == "#fields":
            names = rest
        elif first == "#types":
            types = rest
        elif not line.startswith("#"):
            yield {
                name: cell.split(",") if type.startswith(("vector", "set")) else cell
                for name, type, cell in zip(names, types, [first, *rest], strict=True)
                if cell not in ("-", "(empty)")
            }


def key(event: Event) -> str:
    """
    What an event is told by: its time in microseconds, its flow, its type.
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
    flow = event.get("flow_id", event.get("uid", event.get("fuid", "")))
    return f"{micros} {flow} {event.get('event_type', '')}"


def values(event: Event) -> set[Value]:
    """
    All that an event is matched by.
    """
    found: set[Value] = set()
    for kind, paths in FIELDS.items():
        for path in paths:
            for text in _at(event, path, LENGTHS.get(kind, LENGTH)):
                if kind == "hash":
                    found.add((path.rpartition(".")[2], text.lower()))
                elif kind == "email":
                    found.add(("email", text.rpartition("<")[2].rstrip(">").strip().lower()))
                else:
                    found.add(_host(text))
    http = event.get("http", {})
    if isinstance(http, dict) and "hostname" in http and "url" in http:
        found.add(("url", http["hostname"].lower() + http["url"]))
    if "host" in event and "uri" in event:
        found.add(("url", event["host"].lower() + event["uri"]))
    return found


def _host(text: str) -> Value:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return "domain", text.lower().rstrip(".")
    mapped = getattr(address, "ipv4_mapped", None)
    return "ip", str(mapped or address)


def _at(event: Any, path: str, length: int) -> Iterator[str]:
    if isinstance(event, list):
        for each in event[:length]:
            yield from _at(each, path, length)
    elif not path:
        if isinstance(event, str):
            yield event
    elif isinstance(event, dict):
        if path in event:  # also Zeek's names, which hold dots
            yield from _at(event[path], "", length)
        else:
            first, _, rest = path.partition(".")
            if rest and first in event:
                yield from _at(event[first], rest, length)


def matches(event: Event, indicators: Iterable[Value]) -> set[Value]:
    """
    Which indicators, also of the kind C{cidr}, an event has to be sighted for.
    """
    seen = values(event)
    addresses = [ipaddress.ip_address(value) for kind, value in seen if kind == "ip"]
    return {
        (kind, value)
        for kind, value in indicators
        if (kind, value) in seen
        or (kind == "cidr" and any(a in ipaddress.ip_network(value) for a in addresses))
    }


def drawable(value: Value) -> bool:
    """
    Whether there is one way to write a value as an indicator.
    """
    kind, text = value
    if kind == "domain":
        return _NAME.fullmatch(text) is not None
    if kind == "url":
        return re.fullmatch(r"[a-z0-9.-]+\.[a-z0-9-]+/[A-Za-z0-9/._=&?-]*", text) is not None
    if kind == "email":
        return re.fullmatch(r"[a-z0-9._-]+@[a-z0-9-]+(\.[a-z0-9-]+)+", text) is not None
    return True
