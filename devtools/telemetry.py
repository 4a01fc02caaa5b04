"""
The telemetry of the demonstration, and the indicators that occur in it.

The matcher here is independent of the product: it compares every value of every event
of the files, and uses no engine.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tbvast.errors import StartupRefused

Event = dict[str, Any]

SURICATA_PIPELINE = "from_stdin { read_suricata } | import"
ZEEK_PIPELINE = "from_stdin { read_zeek_json } | import"

LOGS = (
    ("suricata/eve-verify.json.gz", SURICATA_PIPELINE),
    ("suricata/eve-m57.json.gz", SURICATA_PIPELINE),
    ("suricata/eve-small.json", SURICATA_PIPELINE),
    ("zeek-json/conn.log.json.gz", ZEEK_PIPELINE),
    ("zeek-json/dns.log.json.gz", ZEEK_PIPELINE),
    ("zeek-json/files.log.json.gz", ZEEK_PIPELINE),
    ("zeek-json/http.log.json.gz", ZEEK_PIPELINE),
    ("zeek-json/ssh.log.json.gz", ZEEK_PIPELINE),
)
"""
The files, relative to the data directory, and the pipelines that import them.
"""

IMPORTED_ALONE = ("smtp", "stats")
"""
The types of events that version 6.20 of the engine may refuse to import together with
others.
"""

_TIMES = ("timestamp", "ts")


class Log(NamedTuple):
    """
    Events that are imported together.

    @ivar name: The name of the file, and the type of events if it is split.
    @ivar pipeline: The pipeline that imports them.
    @ivar events: The events.
    """

    name: str
    pipeline: str
    events: list[Event]

    @property
    def text(self) -> bytes:
        """
        The input of the pipeline.
        """
        return b"".join(json.dumps(event).encode() + b"\n" for event in self.events)

    @property
    def times(self) -> Iterator[int]:
        """
        The times of the events, see L{time_of}.
        """
        return map(time_of, self.events)


class DemoIndicator(NamedTuple):
    """
    An indicator that the demonstration publishes.

    @ivar kind: The kind of its observable.
    @ivar value: The value of its observable.
    """

    kind: str
    value: str


class Occurrence(NamedTuple):
    """
    The occurrence of an indicator's value in an event.

    @ivar value: The value.
    @ivar time: The time of the event, in microseconds since the epoch.
    """

    value: str
    time: int


def read_logs(data: Path) -> list[Log]:
    """
    Read all telemetry, without repeated events, because they give the same sighting.

    @param data: The data directory.
    @raise StartupRefused: If a file cannot be read.
    """
    seen: set[str] = set()
    try:
        return [
            part for name, pipeline in LOGS for part in _parts(_read(data / name, pipeline, seen))
        ]
    except OSError as e:
        raise StartupRefused(
            f"the telemetry {e.filename} cannot be read: {e.strerror}; it is part of the"
            " repository, in tests/data, which --data names"
        ) from e


def _read(path: Path, pipeline: str, seen: set[str]) -> Log:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    events = [json.loads(line) for line in raw.splitlines()]
    if pipeline == ZEEK_PIPELINE:  # its reader needs the type of the log, which the file's name has
        kind = path.name.partition(".")[0]
        events = [{"_path": kind, **event} for event in events]
    new = {text: event for event in events if (text := _canonical(event)) not in seen}
    seen.update(new)
    return Log(path.name, pipeline, list(new.values()))


def _parts(log: Log) -> Iterator[Log]:
    """
    Split a log into parts that the engine imports.
    """
    for kind in IMPORTED_ALONE:
        alone = [event for event in log.events if event.get("event_type") == kind]
        if alone:
            yield log._replace(name=f"{log.name}, {kind}", events=alone)
    yield log._replace(events=[e for e in log.events if e.get("event_type") not in IMPORTED_ALONE])


def split_past_and_future(logs: Sequence[Log]) -> tuple[list[Log], list[Log]]:
    """
    Split logs into past and future: every other event of each log, so that most
    values occur in both.
    """
    past = [log._replace(events=log.events[::2]) for log in logs]
    future = [log._replace(events=log.events[1::2]) for log in logs]
    return past, [log for log in future if log.events]


def find_occurrences(
    indicators: Iterable[DemoIndicator], logs: Iterable[Log]
) -> Counter[Occurrence]:
    """
    Count the occurrences of indicators; an event counts once for each value.
    """
    tests = [(each.value, _MATCHERS[each.kind](each.value)) for each in indicators]
    return Counter(
        Occurrence(value, time_of(event))
        for log in logs
        for event in log.events
        for value, test in tests
        if test(event)
    )


def time_of(event: Event) -> int:
    """
    The time of an event.

    @return: Microseconds since the epoch.
    """
    text = next(event[name] for name in _TIMES if name in event)
    time = datetime.fromisoformat(text)
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def _canonical(event: Event) -> str:
    return json.dumps(event, sort_keys=True)


def _values(value: Any) -> Iterator[str]:
    """
    Every text in a value, at any depth.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)


Test = Callable[[Event], bool]


def _equal_text(value: str) -> Test:
    folded = value.lower()
    return lambda event: any(text.lower() == folded for text in _values(event))


def _mailbox(value: str) -> Test:
    folded = value.lower()

    def test(event: Event) -> bool:
        return any(text.rpartition("<")[2].rstrip(">").lower() == folded for text in _values(event))

    return test


def _network(value: str) -> Test:
    network = ipaddress.ip_network(value)

    def within(text: str) -> bool:
        try:
            return ipaddress.ip_address(text) in network
        except ValueError:
            return False

    return lambda event: any(map(within, _values(event)))


def _url(value: str) -> Test:
    address = value.partition("://")[2]

    def test(event: Event) -> bool:
        http = event.get("http", {})
        seen = (
            (http.get("hostname"), http.get("url")),
            (event.get("host"), event.get("uri")),
        )
        return any(f"{host}{rest}" == address for host, rest in seen)

    return test


_MATCHERS: Mapping[str, Callable[[str], Test]] = {
    "address": _equal_text,
    "network": _network,
    "domain": _equal_text,
    "URL": _url,
    "SHA-256": _equal_text,
    "MD5": _equal_text,
    "e-mail": _mailbox,
}

INDICATORS = (
    DemoIndicator("address", "138.201.208.22"),
    DemoIndicator("address", "93.191.156.41"),
    DemoIndicator("address", "13.107.253.70"),
    DemoIndicator("network", "138.201.208.0/24"),
    DemoIndicator("domain", "mamzon.ru"),
    DemoIndicator("domain", "madmaskiner.dk"),
    DemoIndicator("domain", "irc.freenode.net"),
    DemoIndicator("domain", "dl.javafx.com"),
    DemoIndicator(
        "URL", "http://madmaskiner.dk/wp-content/uploads/2015/07/Siemens-GS58NAW40_5.jpg"
    ),
    DemoIndicator(
        "URL", "http://www.powershellgallery.com/api/v2/FindPackagesById()?id=%27AzureAD%27"
    ),
    DemoIndicator("URL", "http://www.nmap.org/"),
    DemoIndicator("SHA-256", "2e4c462b3424afcc04f43429d5f001e4ef9a28143bfeefb9af2254b4df3a7c1a"),
    DemoIndicator("MD5", "70041821acf87389e40ddcb092004184"),
    DemoIndicator("e-mail", "xH@xH.com"),
)
"""
The published indicators: harmless values that happen to occur in the telemetry.
"""
