"""
How soon an indicator can be matched, a matching event is a sighting, and past events are
searched for many indicators.

    python -m bench.matching [--short] [--runs 3] [--indicators 50] [--events 100]
                             [--stored 1000000] [--sought 10000]

- An indicator is published to an idle system; the time ends when the engine has taken it,
  as the bridge logs it. The engine alone is given such an indicator by one command.
- An event is imported through a client that is already connected, one at a time. The time
  ends when a subscriber of the old dialect has the sighting. Beside the bridge's
  live match another one runs in the node; the engine alone takes until that has it.
- Indicators are published while many events are stored; the time ends with the last
  sighting. The engine alone is given the same indicators and searches once, in the same
  way. How many events the engine has read from its store meanwhile it says itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from bench.command import command_line
from bench.faults import address, indicator
from bench.ingest import OTHER
from bench.recall import document
from bench.reopen import ask
from bench.report import machine, percentile, ratio, spread, table
from bench.way import LIMIT, Way, waited
from tbvast.engines import binaries
from tbvast.engines.tenzir import pipelines, rows
from tbvast.engines.tenzir.engine import TenzirEngine
from tbvast.errors import EngineError
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.pattern_conditions import matchable
from tbvast.values import Entry
from tests.functional.components import FORMATS, bridge_on, run
from tests.slow_matcher import Value

KINDS = {"flow": 45, "dns": 30, "http": 15, "fileinfo": 10}
"""
The kinds of stored events, and the percentage of each.
"""

PIECE = 50_000
"""
Stored events that are imported by one command, all of one kind.
"""

SPACING = 50
"""
One in so many stored events has a value that nothing else has.
"""

HITTING = 0.1
"""
The part of the indicators that is in a stored event.
"""

BYTES_AN_EVENT = 1024, 3072
"""
Bytes of disk and of memory, with room to spare, that an event takes.
"""

FIRST = 60_000
"""
The number of the first address that no stored event has.
"""

_EXPORTED = """\
metrics "export"
where events > 0
summarize pipeline_id, events=sum(events)
write_ndjson
"""

TAKEN = b"The engine took 1 entries"
SEARCHED = b"A search of past events for"
"""
What the bridge's log says.
"""

Samples = tuple[list[float], list[float]]
"""
What was measured by way of plugin and bridge, and of the engine alone.
"""


class Lines(threading.Thread):
    """
    Reads what comes, and remembers when each number first did.

    @ivar signs: How often something came that has no number.
    """

    def __init__(self, read: Callable[[], Iterator[bytes]]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self._came = threading.Condition()
        self.signs = 0
        self.at: dict[int, float] = {}
        self.repeats = 0

    def run(self) -> None:
        for line in self._read():
            now = time.monotonic()
            number = re.search(rb'"flow_id":\s*(\d+)', line)
            with self._came:
                if number is None:
                    self.signs += 1
                elif int(number[1]) in self.at:
                    self.repeats += 1
                else:
                    self.at[int(number[1])] = now
                self._came.notify_all()

    def when(self, condition: Callable[[], bool]) -> None:
        """
        Wait for something to come.
        """
        with self._came:
            if not self._came.wait_for(condition, LIMIT):
                raise TimeoutError(f"waited {LIMIT:.0f} s in vain; {len(self.at)} came")


class Matching(Way):
    """
    Plugin, bridge and engine; a subscriber to sightings, and a connected importer.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._children: list[subprocess.Popen[bytes]] = []
        self.sightings = Lines(self._subscription)
        self.sightings.start()
        self._request = self._context.socket(zmq.REQ)
        self._request.connect(f"tcp://127.0.0.1:{self._manage}")
        self._importer = self._client(f"{FORMATS['suricata']} | import")
        self._text = self._log.open("rb")
        self._rest = b""
        self._unread: deque[bytes] = deque()

    def end(self) -> None:
        for child in self._children:
            child.kill()
            child.communicate()
        self._text.close()
        self._request.close()
        super().end()

    def _client(self, pipeline: str) -> subprocess.Popen[bytes]:
        options = f"--config={self.client}", "--console-verbosity=error"
        path = self._folder / f"{len(self._children)}.tql"
        path.write_text(pipeline)  # it may be too long for an argument
        child = subprocess.Popen(
            [binaries.find_client(), *options, "-f", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._children.append(child)
        return child

    def _subscription(self) -> Iterator[bytes]:
        wish = {"action": "subscribe", "topic": "stix2/sighting", "snapshot": 0}
        reply = json.loads(ask(self._manage, json.dumps(wish).encode()))
        with self._context.socket(zmq.SUB) as socket:
            socket.rcvhwm = 0
            socket.subscribe(reply["topic"])
            socket.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
            while True:
                try:
                    yield socket.recv()
                except zmq.ContextTerminated:
                    return

    def attached(self) -> None:
        """
        Wait until sightings are received.
        """
        waited(
            lambda: (
                all(each["attached"] for each in self.status()["subscriptions"])
                and len(self.status()["subscriptions"]) == 2
            )
        )

    def status(self) -> Any:
        return json.loads(ask(self._manage, b'{"action":"status"}'))

    def give(self, documents: Sequence[dict[str, Any]]) -> None:
        """
        Publish through a connection that is there.
        """
        self._request.send_json({"action": "publish", "documents": documents})
        if not self._request.poll(round(LIMIT * 1000)):
            raise TimeoutError("manage does not answer")
        outcomes = json.loads(self._request.recv())["outcomes"]
        if outcomes != ["accepted"] * len(documents):
            raise RuntimeError(f"the plugin refused some of {len(documents)}")

    def logged(self, words: bytes) -> None:
        """
        Wait for a line of the bridge's log that has not been read yet.

        @param words: What it holds.
        """
        deadline = time.monotonic() + LIMIT
        while True:
            while self._unread:
                if words in self._unread.popleft():
                    return
            *whole, self._rest = (self._rest + self._text.read()).split(b"\n")
            self._unread.extend(whole)
            if not whole:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited {LIMIT:.0f} s for the bridge in vain")
                time.sleep(0.001)

    # One indicator

    def indicators(self, numbers: range) -> Samples:
        """
        @return: Milliseconds until each is matchable.
        """
        through: list[float] = []
        alone: list[float] = []
        for name in OTHER:
            run(self.client, pipelines.create_table(name), "")
        for number in numbers:
            observable = Observable(Kind.IP, address(number))
            text = rows.encode_entries([Entry(observable, (f"indicator--{number}",))])
            began = time.monotonic()
            run(self.client, pipelines.update_tables(OTHER), text)
            alone.append((time.monotonic() - began) * 1000)
            began = time.monotonic()
            self.give([indicator(number)])
            self.logged(TAKEN)
            through.append((time.monotonic() - began) * 1000)
            self.logged(SEARCHED)  # idle again
        return through, alone

    # One event

    def happened(self, numbers: range) -> Samples:
        """
        @return: Milliseconds until each event, of an indicator that the engine holds,
            is a sighting.
        """
        through: list[float] = []
        alone: list[float] = []
        matched = Lines(self._watched)
        matched.start()
        matched.when(lambda: matched.signs > 0)
        self.happen_now(numbers[0])  # the first through a connection takes longer
        self.sightings.when(lambda: numbers[0] in self.sightings.at)
        for number in numbers[1:]:
            began = self.happen_now(number)
            for lines, found in ((matched, alone), (self.sightings, through)):
                lines.when(lambda: number in lines.at)  # noqa: B023
                found.append((lines.at[number] - began) * 1000)
        return through, alone

    def _watched(self) -> Iterator[bytes]:
        """
        What a live match beside the bridge's finds, as lines.
        """
        bridge = bridge_on(self.client)
        engine = TenzirEngine(
            self.engine, binaries.find_client(), self._folder / "beside", bridge, tls=self.tls
        )
        with contextlib.suppress(EngineError):  # the node ends with the bench
            for batch in engine.watch(lambda progress: None):
                if not batch:
                    yield b"it runs"
                for match in batch:
                    yield json.dumps(match.event).encode()

    def happen_now(self, number: int) -> float:
        """
        Import an event through the connected client.

        @return: When.
        """
        assert self._importer.stdin
        line = json.dumps(event("flow", number, address(number))).encode() + b"\n"
        began = time.monotonic()
        self._importer.stdin.write(line)
        self._importer.stdin.flush()
        return began

    # Many events

    def store(self, count: int) -> None:
        """
        Import events, and wait until the live match has seen them.
        """
        for kind, percent in KINDS.items():
            numbers = range(count * percent // 100)
            for start in range(0, len(numbers), PIECE):
                client = self._client("from_stdin { read_suricata } | import")
                assert client.stdin
                for number in numbers[start : start + PIECE]:
                    client.stdin.write(json.dumps(stored(kind, number)).encode() + b"\n")
                client.stdin.close()
                if client.wait(LIMIT):
                    raise RuntimeError(f"the engine did not take events of {kind}")
                self._children.remove(client)
        self.give([indicator(FIRST)])
        self.logged(TAKEN)
        self.logged(SEARCHED)
        self.happen_now(FIRST)
        self.sightings.when(lambda: FIRST in self.sightings.at)

    def searches(self) -> int:
        """
        How many searches the bridge says that it has made.
        """
        return int(self._report()["engine"]["searches"])

    def _report(self) -> dict[str, Any]:
        (report,) = (
            each["report"]
            for each in self.status()["subscriptions"]
            if each["name"] == "tbvast-bridge"
        )
        found: dict[str, Any] = report
        return found

    def idle(self) -> None:
        """
        Wait until the bridge has nothing to search for. Its search, and one of the bench's
        own, would use the same tables.
        """

        def nothing_to_search() -> bool:
            report = self._report()
            return not (report["engine"]["catching_up"] or report["store"]["unsearched"])

        self._reported(nothing_to_search)

    def _reported(self, condition: Callable[[], bool]) -> None:
        """
        Wait until the bridge's report says something.
        """
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the bridge has searched for {LIMIT:.0f} s")
            time.sleep(0.5)

    def read(self) -> int:
        """
        How many stored events the engine says that it has read for searches.
        """
        lines = map(json.loads, run(self.client, _EXPORTED, "").splitlines())
        return sum(
            line["events"] for line in lines if line["pipeline_id"].startswith("tbvast-retro")
        )

    def settled(self, measure: Callable[[], int]) -> int:
        """
        @return: What is measured, once it does not change.
        """
        found, since = measure(), time.monotonic()
        while time.monotonic() - since < 3:
            time.sleep(0.5)
            if (now := measure()) != found:
                found, since = now, time.monotonic()
        return found

    def alone(self, documents: list[dict[str, Any]], wanted: int) -> float:
        """
        @return: Seconds for one search by the engine.
        """
        engine = TenzirEngine(
            self.engine, binaries.find_client(), self._folder / "alone", "bench", tls=self.tls
        )
        engine.prepare()
        entries = list(map(entry, documents))
        began = time.monotonic()
        found = sum(map(len, engine.find(entries, 0, LIMIT)))
        if found != wanted:
            raise RuntimeError(f"the engine found {found} events instead of {wanted}")
        return time.monotonic() - began

    def through(self, documents: list[dict[str, Any]], wanted: int) -> float:
        """
        @return: Seconds from the publication to the last sighting.
        """
        before, searches = len(self.sightings.at), self.searches()
        began = time.monotonic()
        self.give(documents)
        self.sightings.when(lambda: len(self.sightings.at) >= before + wanted)
        seconds = max(self.sightings.at.values()) - began
        # The rest of the search finds nothing more, but uses the tables.
        self._reported(lambda: self.searches() > searches)
        return seconds


def event(kind: str, number: int, destination: str, **more: Any) -> dict[str, Any]:
    """
    An event as Suricata writes it.
    """
    return {
        "timestamp": f"2024-03-{1 + number % 28:02}T{number % 24:02}:{number % 60:02}"
        f":{number % 59:02}.{number % 1_000_000:06}+0000",
        "flow_id": number,
        "in_iface": "eth0",
        "event_type": kind,
        "src_ip": f"10.{128 + number % 7}.{number % 250}.{number % 199}",
        "src_port": 1024 + number % 60_000,
        "dest_ip": destination,
        "dest_port": (443, 53, 80, 8080)[number % 4],
        "proto": ("TCP", "UDP")[number % 2],
        **(more or {"flow": {"pkts_toserver": number % 900, "bytes_toserver": number % 90_000}}),
    }


def planted(kind: str, number: int) -> Value:
    """
    The value that only one stored event of a kind has.

    @param number: The event's.
    """
    name = f"{kind}-{number}.planted.example"
    if kind == "flow":
        return "ip", address(number // SPACING)
    if kind == "dns":
        return "domain", name
    if kind == "http":
        return "url", f"{name}/index.html"
    return "sha256", hashlib.sha256(name.encode()).hexdigest()


def stored(kind: str, number: int) -> dict[str, Any]:
    """
    One of the stored events of a kind.
    """
    rare = not number % SPACING
    text = planted(kind, number)[1]
    host = text.partition("/")[0] if rare else f"www{number % 40_000}.frequent.example"
    destination = f"172.{16 + number % 16}.{number // 16 % 250}.{number % 241}"
    # So that a number is never that of an event of another kind.
    number = number * len(KINDS) + list(KINDS).index(kind) + 10_000_000
    if kind == "flow":
        return event(kind, number, text if rare else destination)
    more: dict[str, Any] = {
        "dns": {"type": "query", "id": number % 65_536, "rrname": host, "rrtype": "A"},
        "http": {"hostname": host, "url": "/index.html", "http_method": "GET", "status": 200},
        "fileinfo": {
            "filename": f"/get/{number}",
            "sha256": text if rare else hashlib.sha256(b"%d" % (number % 30_000)).hexdigest(),
            "size": number % 100_000,
            "state": "CLOSED",
        },
    }
    if kind == "http":
        more["http"]["protocol"] = "HTTP/1.1"
    return event(kind, number, destination, **{kind: more[kind]})


def sought(count: int, events: int, round: int) -> tuple[list[dict[str, Any]], int]:
    """
    Indicators of all kinds to search for; no other round has the same.

    @return: With how many events they are in.
    """
    values: list[Value] = []
    for kind, percent in KINDS.items():
        rare = range(0, events * percent // 100, SPACING)
        share = int(count * HITTING * percent / 100)
        part = rare[round * share : (round + 1) * share]
        if len(part) < share:
            raise ValueError(f"{events} stored events are too few for {count} indicators")
        values += [planted(kind, number) for number in part]
    wanted = len(values)
    for number in range(round * count, (round + 1) * count - wanted):
        name = f"n{number}.not-there.example"
        kinds: tuple[Value, ...] = (
            ("ip", f"198.51.{number // 4 // 256 % 256}.{number // 4 % 256}"),
            ("domain", name),
            ("url", f"{name}/gone"),
            ("sha256", hashlib.sha256(name.encode()).hexdigest()),
        )
        values.append(kinds[number % 4])
    return list(map(document, values)), wanted


def entry(found: dict[str, Any]) -> Entry:
    """
    An indicator as the engine is given it.
    """
    decoded = decode_indicator(json.dumps(found).encode())
    (observable,) = matchable(decoded.pattern or "").observables
    return Entry(observable, (decoded.id,))


def short_of_room(events: int) -> str:
    """
    @return: What there is too little of to store so many events; C{""} if of nothing.
    """
    disk, memory = (events * each for each in BYTES_AN_EVENT)
    if shutil.disk_usage(tempfile.gettempdir()).free < disk + 2**30:
        return f"{disk / 2**30 + 1:.1f} GiB of disk are needed in {tempfile.gettempdir()}"
    available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    if available and int(available[1]) * 1024 < memory + 2**30:
        return f"{memory / 2**30 + 1:.1f} GiB of memory are needed"
    return ""


def latencies(title: str, found: list[Samples], at_least: str, aim: str) -> str:
    """
    @return: A table of some runs.
    """
    halves, mosts = (
        [[percentile(run[way], percent) for run in found] for way in (0, 1)] for percent in (50, 99)
    )
    more = [
        spread([one - other for one, other in zip(*each, strict=True)]) for each in (halves, mosts)
    ]
    return table(
        [title, "p50 ms", "p99 ms", "p50 ms more", "p99 ms more", "p99 x", "at least", "aim"],
        [
            [
                *("plugin and bridge", spread(halves[0]), spread(mosts[0]), *more),
                *(ratio(mosts[0], mosts[1]), at_least, aim),
            ],
            ["the engine alone", spread(halves[1]), spread(mosts[1]), "", "", "1.00", "", ""],
        ],
    )


def measure_latencies(runs: int, indicators: int, events: int) -> None:
    matchable, sighted = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
            bench = Matching(Path(folder))
            try:
                bench.attached()
                matchable.append(bench.indicators(range(indicators)))
                more = range(indicators, events + 1)
                if more:
                    bench.give([indicator(number) for number in more])
                    bench.settled(bench.searches)
                sighted.append(bench.happened(range(events + 1)))
            finally:
                bench.end()
    print(f"{indicators} indicators to an idle system, one after the other, {runs} runs:\n")
    print(latencies("publish to matchable", matchable, "p99 of 1,500 ms", "50 ms more"))
    print(f"\n{events} events, one after the other, {runs} runs:\n")
    print(latencies("import to sighting", sighted, "100 ms more", "20 ms more"), flush=True)


def measure_search(runs: int, stored: int, count: int) -> int:
    if reason := short_of_room(stored):
        print(f"\nPast events are not searched: {reason}.")
        return 1
    times: tuple[list[float], list[float]] = ([], [])
    passes: tuple[list[float], list[float]] = ([], [])
    searches: list[float] = []
    wanted = 0
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        bench = Matching(Path(folder))
        try:
            bench.attached()
            bench.store(stored)
            for round in range(runs):
                documents, wanted = sought(count, stored, round)
                for way, measured in enumerate((bench.through, bench.alone)):
                    bench.idle()
                    before = bench.settled(bench.read), bench.settled(bench.searches)
                    times[way].append(measured(documents, wanted))
                    passes[way].append((bench.settled(bench.read) - before[0]) / stored)
                    if not way:
                        searches.append(bench.settled(bench.searches) - before[1])
            if bench.sightings.repeats:
                raise RuntimeError(f"{bench.sightings.repeats} sightings came twice")
        finally:
            bench.end()
    print(
        f"\n{count:,} new indicators over {stored:,} stored events, {wanted:,} of which they"
        f" are in, {runs} runs:\n"
    )
    print(
        table(
            ["publish to last sighting", "s", "x the engine", "passes", "searches", "at most"],
            [
                [
                    *("plugin and bridge", spread(times[0]), ratio(*times)),
                    *(spread(passes[0]), spread(searches), "1 pass"),
                ],
                ["the engine alone", spread(times[1]), "1.00", spread(passes[1]), "", ""],
            ],
        )
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(
        *(__doc__, arguments),
        runs=(3, 1),
        indicators=(50, 10),
        events=(100, 30),
        stored=(1_000_000, 50_000),
        sought=(10_000, 500),
    )
    print(f"Matching, {options.runs} runs. {machine()}\n", flush=True)
    measure_latencies(options.runs, options.indicators, options.events)
    return measure_search(options.runs, options.stored, options.sought)


if __name__ == "__main__":
    sys.exit(main())
