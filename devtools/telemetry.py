"""
The telemetry of the demonstration, and what is to be found in it.

The match here is not the one that is shown: it looks at the files as they are, at
every value of every event, and knows nothing of engines.
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

SURICATA = "from_stdin { read_suricata } | import"
ZEEK = "from_stdin { read_zeek_json } | import"

LOGS = (
    ("suricata/eve-verify.json.gz", SURICATA),
    ("suricata/eve-m57.json.gz", SURICATA),
    ("suricata/eve-small.json", SURICATA),
    ("zeek-json/conn.log.json.gz", ZEEK),
    ("zeek-json/dns.log.json.gz", ZEEK),
    ("zeek-json/files.log.json.gz", ZEEK),
    ("zeek-json/http.log.json.gz", ZEEK),
    ("zeek-json/ssh.log.json.gz", ZEEK),
)
"""
The files, below the folder of the data, and the pipelines that import them.
"""

ALONE = ("smtp", "stats")
"""
Kinds of events that the engine, in its version 6.20, may refuse to import together
with others.
"""

_TIMES = ("timestamp", "ts")


class Log(NamedTuple):
    """
    Events that are imported together.

    @ivar pipeline: What imports them.
    """

    name: str
    pipeline: str
    events: list[Event]

    @property
    def text(self) -> bytes:
        """
        What the pipeline reads.
        """
        return b"".join(json.dumps(event).encode() + b"\n" for event in self.events)

    @property
    def times(self) -> Iterator[int]:
        """
        When the events happened, as L{time_of} says it.
        """
        return map(time_of, self.events)


class Wanted(NamedTuple):
    """
    A value that is to be found.
    """

    kind: str
    value: str


class Found(NamedTuple):
    """
    An event that holds a value.

    @ivar time: Of the event, in microseconds since the epoch.
    """

    value: str
    time: int


def read_logs(data: Path) -> list[Log]:
    """
    Read all the telemetry; an event that is equal to one before it is left out, for
    it would be the same sighting.

    @param data: The folder with the data.
    @raise StartupRefused: If it is not there.
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
    if pipeline == ZEEK:  # which wants to be told what the file's name says
        kind = path.name.partition(".")[0]
        events = [{"_path": kind, **event} for event in events]
    new = {text: event for event in events if (text := _canonical(event)) not in seen}
    seen.update(new)
    return Log(path.name, pipeline, list(new.values()))


def _parts(log: Log) -> Iterator[Log]:
    """
    A log in parts that the engine imports.
    """
    for kind in ALONE:
        alone = [event for event in log.events if event.get("event_type") == kind]
        if alone:
            yield log._replace(name=f"{log.name}, {kind}", events=alone)
    yield log._replace(events=[e for e in log.events if e.get("event_type") not in ALONE])


def halves(logs: Sequence[Log]) -> tuple[list[Log], list[Log]]:
    """
    What is past, and what is to come: every other event of each log, so that most
    values are in both.
    """
    past = [log._replace(events=log.events[::2]) for log in logs]
    future = [log._replace(events=log.events[1::2]) for log in logs]
    return past, [log for log in future if log.events]


def find(wanted: Iterable[Wanted], logs: Iterable[Log]) -> Counter[Found]:
    """
    How often each value is found: an event counts once, wherever the value stands.
    """
    tests = [(each.value, _MATCHERS[each.kind](each.value)) for each in wanted]
    return Counter(
        Found(value, time_of(event))
        for log in logs
        for event in log.events
        for value, test in tests
        if test(event)
    )


def time_of(event: Event) -> int:
    """
    @return: In microseconds since the epoch.
    """
    text = next(event[name] for name in _TIMES if name in event)
    time = datetime.fromisoformat(text)
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def _canonical(event: Event) -> str:
    return json.dumps(event, sort_keys=True)


def _values(value: Any) -> Iterator[str]:
    """
    Every text in an event, however deep.
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


def _same(value: str) -> Test:
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
    wanted = value.partition("://")[2]

    def test(event: Event) -> bool:
        http = event.get("http", {})
        seen = (
            (http.get("hostname"), http.get("url")),
            (event.get("host"), event.get("uri")),
        )
        return any(f"{host}{rest}" == wanted for host, rest in seen)

    return test


_MATCHERS: Mapping[str, Callable[[str], Test]] = {
    "address": _same,
    "network": _network,
    "domain": _same,
    "URL": _url,
    "SHA-256": _same,
    "MD5": _same,
    "e-mail": _mailbox,
}

WANTED = (
    Wanted("address", "138.201.208.22"),
    Wanted("address", "93.191.156.41"),
    Wanted("address", "13.107.253.70"),
    Wanted("network", "138.201.208.0/24"),
    Wanted("domain", "mamzon.ru"),
    Wanted("domain", "madmaskiner.dk"),
    Wanted("domain", "irc.freenode.net"),
    Wanted("domain", "dl.javafx.com"),
    Wanted("URL", "http://madmaskiner.dk/wp-content/uploads/2015/07/Siemens-GS58NAW40_5.jpg"),
    Wanted("URL", "http://www.powershellgallery.com/api/v2/FindPackagesById()?id=%27AzureAD%27"),
    Wanted("URL", "http://www.nmap.org/"),
    Wanted("SHA-256", "2e4c462b3424afcc04f43429d5f001e4ef9a28143bfeefb9af2254b4df3a7c1a"),
    Wanted("MD5", "70041821acf87389e40ddcb092004184"),
    Wanted("e-mail", "xH@xH.com"),
)
"""
What is looked for: harmless values that happen to be in the telemetry.
"""
