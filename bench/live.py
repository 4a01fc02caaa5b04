"""
Whether the live match keeps up with a sensor that imports mixed events in small batches, and
how far it is behind.

    python -m bench.live [--short] [--runs 3] [--indicators 100000] [--rate 5000]
                         [--seconds 20] [--batch 10]

A pipeline of the node imports what it reads from a Unix socket: flow, dns, http, tls,
fileinfo and alert events, one in a hundred of which holds an indicator's value. The time of
each of these ends when a subscriber of the old dialect has its sighting.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.command import command_line
from bench.faults import indicator
from bench.matching import Matching, event
from bench.recall import document
from bench.report import machine, percentile, table
from tbvast.engines.tenzir import pipelines
from tests.functional.components import run
from tests.slow_matcher import Value

HITS = 100
"""
One in so many events holds an indicator's value.
"""

SPARE = 1 << 20
"""
A number that none of the measured events has.
"""

PART = 5_000
"""
Indicators that are published at once.
"""

PATIENCE = 60.0
"""
Seconds after the last event in which its sighting may come.
"""


def value(number: int) -> Value:
    """
    The value of an indicator; those whose numbers differ by four are of one kind.
    """
    host = f"h{number}.planted.example"
    values: tuple[Value, ...] = (
        ("ip", f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}"),
        ("domain", host),
        ("url", f"{host}/x"),
        ("sha256", hashlib.sha256(host.encode()).hexdigest()),
    )
    return values[number % 4]


def mixed(number: int, indicators: int) -> dict[str, Any]:
    """
    One of the events.
    """
    of = number % HITS
    hit = (number // HITS * 37) % HITS == of
    near = number * 7919 % indicators // 4 * 4
    other = f"www{number % 40_000}.frequent.example"
    address = f"172.{16 + number % 16}.{number // 16 % 250}.{number % 241}"
    name = value(near + 1)[1] if hit else other
    if of < 45:
        return event("flow", number, value(near)[1] if hit else address)
    more: dict[str, Any]
    if of < 75:
        answers = [address, f"172.16.{number % 250}.3", f"172.16.{number % 250}.4"]
        more = {
            "type": "answer",
            "rrname": name,
            "answers": [{"rrtype": "A", "rdata": each} for each in answers[: 1 + of % 3]],
            "grouped": {"A": answers[: 1 + of % 3]},
        }
        return event("dns", number, address, dns=more)
    if of < 85:
        host, _, path = value(near + 2)[1].partition("/") if hit else (other, "", "index.html")
        more = {"hostname": host, "url": f"/{path}", "http_user_agent": "Mozilla/5.0"}
        return event("http", number, address, http=more)
    if of < 95:
        more = {"sni": name, "version": "TLS 1.3", "fingerprint": ":".join(["ab"] * 20)}
        return event("tls", number, address, tls=more)
    if of < 99:
        found = value(near + 3)[1] if hit else hashlib.sha256(b"%d" % number).hexdigest()
        more = {"filename": f"/get/{number}", "sha256": found, "size": number % 1000}
        return event("fileinfo", number, address, fileinfo=more)
    more = {"signature_id": number, "severity": 2}
    return event("alert", number, address, alert=more, http={"hostname": name, "url": "/"})


def is_hit(number: int) -> bool:
    return (number // HITS * 37) % HITS == number % HITS


class Sensor:
    """
    Imports through a pipeline of the node's own.
    """

    def __init__(self, client: Path, folder: Path) -> None:
        path = folder / "eve.sock"
        pipeline = f'accept_unix_socket "{path}" {{ read_suricata _batch_timeout=10ms }}\nimport\n'
        run(client, pipelines.start_pipeline(pipeline, "sensor", 3600.0), "")
        while not path.exists():
            time.sleep(0.05)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))

    def feed(self, batches: Sequence[bytes], interval: float) -> list[float]:
        """
        @return: When each batch was written.
        """
        sent = []
        began = time.monotonic()
        for number, batch in enumerate(batches):
            time.sleep(max(0.0, began + number * interval - time.monotonic()))
            sent.append(time.monotonic())
            self.socket.sendall(batch)
        return sent


def once(indicators: int, rate: int, seconds: int, batch: int) -> tuple[int, int, list[float]]:
    """
    @return: How many hits there were, how many were sighted, and how late: seconds.
    """
    size = rate * batch // 1000
    numbers = range(size * 1000 // batch * seconds)
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        bench = Matching(Path(folder))
        try:
            bench.attached()
            for start in range(0, indicators, PART):
                part = range(start, min(start + PART, indicators))
                bench.give([document(value(number)) for number in part])
            bench.give([indicator(SPARE)])
            bench.held(indicators)
            sensor = Sensor(bench.client, Path(folder))
            batches = [
                b"".join(
                    json.dumps(mixed(number, indicators)).encode() + b"\n"
                    for number in numbers[start : start + size]
                )
                for start in range(0, len(numbers), size)
            ]
            sent = sensor.feed(batches, batch / 1000)
            hits = [number for number in numbers if is_hit(number)]
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and not bench.sightings.at.keys() >= set(hits):
                time.sleep(0.1)
            at = dict(bench.sightings.at)
            late = [at[number] - sent[number // size] for number in hits if number in at]
            return len(hits), len(late), late
        finally:
            bench.end()


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(
        *(__doc__, arguments),
        runs=(3, 1),
        indicators=(100_000, 5_000),
        rate=(5_000, 1_000),
        seconds=(20, 5),
        batch=(10, 10),
    )
    print(
        f"{options.rate:,} events/s in batches of {options.batch} ms for {options.seconds} s,"
        f" {options.indicators:,} indicators. {machine()}\n",
        flush=True,
    )
    lines = []
    whole = True
    for number in range(1, options.runs + 1):
        hits, sighted, late = once(options.indicators, options.rate, options.seconds, options.batch)
        whole = whole and hits == sighted
        late = late or [float("nan")]
        lines.append(
            [
                *(str(number), f"{hits:,}", f"{sighted:,}"),
                *(f"{percentile(late, 50):.3f}", f"{percentile(late, 99):.3f}"),
                *(f"{max(late):.3f}", "all, p99 of 0.5 s"),
            ]
        )
    columns = ["run", "hits", "sighted", "p50 s late", "p99 s late", "most s late", "at least"]
    print(table(columns, lines))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
