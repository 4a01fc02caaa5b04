"""
Subscribers take a snapshot at once: how fast, and how much memory the plugin needs.

    python -m bench.snapshots [--short] [--runs 3] [--indicators 1000000] [--subscribers 1]

The time is from the first request to subscribe to the last indicator received by the last
subscriber. The peak is the plugin's resident memory meanwhile, above what it had when idle.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from bench.command import command_line
from bench.peers import LIMIT, Bus, tbvast
from bench.reopen import ask, fill
from bench.report import figure, machine, spread, table

AT_LEAST, AIM = 50_000, 150_000
"""
Indicators per second to one subscriber.
"""


class Subscriber(threading.Thread):
    """
    Takes one snapshot.

    @ivar count: How many indicators it has got.
    """

    def __init__(self, context: zmq.Context[Any], manage: int, fed: bool, enough: int) -> None:
        super().__init__(daemon=True)
        self._context = context
        self._manage = manage
        self._fed = fed
        self._enough = enough
        self.count = 0

    def run(self) -> None:
        request: dict[str, Any] = {
            "action": "subscribe",
            "topic": "stix2/indicator",
            "snapshot": 30,
        }
        if self._fed:
            request["protocol"] = "tbvast/1"
        with self._context.socket(zmq.REQ) as manage, self._context.socket(zmq.SUB) as sub:
            manage.connect(f"tcp://127.0.0.1:{self._manage}")
            manage.send_json(request)
            reply: Any = manage.recv_json()
            topic = reply["topic"].encode()
            sub.rcvhwm = 1000
            sub.subscribe(topic)
            sub.connect(f"tcp://127.0.0.1:{reply['pub_port']}")
            while self.count < self._enough and sub.poll(LIMIT * 1000):
                frame = sub.recv()[len(topic) :]
                if frame.startswith(b"snapshot"):
                    items = msgspec.json.decode(frame.partition(b" ")[2])["items"]
                    self.count += len(items)
                elif frame.startswith(b"indicator"):
                    self.count += 1


def taken(bus: Bus, indicators: int, subscribers: int, fed: bool) -> tuple[float, float]:
    """
    @return: Indicators per second in all, and the peak: MiB.
    """
    bus.forget_peak()
    with zmq.Context() as context:
        group = [Subscriber(context, bus.manage, fed, indicators) for _ in range(subscribers)]
        began = time.monotonic()
        for each in group:
            each.start()
        for each in group:
            each.join()
        elapsed = time.monotonic() - began
    if counts := [each.count for each in group if each.count != indicators]:
        raise RuntimeError(f"{counts} indicators were received, instead of {indicators}")
    return subscribers * indicators / elapsed, bus.memory("VmHWM")


def measure(runs: int, indicators: int, subscribers: int) -> int:
    print(f"A snapshot of {indicators:,} indicators, {runs} runs. {machine()}\n")
    rates: dict[bool, list[float]] = {True: [], False: []}
    peaks: dict[bool, list[float]] = {True: [], False: []}
    with tbvast() as bus:
        ask(bus.manage, b'{"action":"status"}')
        idle = bus.memory("VmRSS")
        began = time.monotonic()
        fill(bus, indicators)
        filled = indicators / (time.monotonic() - began)
        holding = bus.memory("VmRSS")
        for _ in range(runs):
            for fed in rates:
                rate, peak = taken(bus, indicators, subscribers, fed)
                rates[fed].append(rate)
                peaks[fed].append(peak - idle)
    goals = [f"{AT_LEAST:,}", f"{AIM:,}"] if subscribers == 1 else ["", ""]
    rows = [
        [
            *("tbvast/1" if fed else "old", str(subscribers)),
            *(spread(found), *goals, spread(peaks[fed])),
        ]
        for fed, found in rates.items()
    ]
    head = ["dialect", "subscribers", "indicators/s in all", "at least", "aim", "peak MiB more"]
    print(table(head, rows))
    print(
        f"\nThe plugin has {figure(idle)} MiB when idle and {figure(holding)} MiB with the"
        f" indicators in its journal, which took {figure(filled)} of them per second."
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(
        *(__doc__, arguments),
        runs=(3, 1),
        indicators=(1_000_000, 100_000),
        subscribers=(1, 1),
    )
    return measure(options.runs, options.indicators, options.subscribers)


if __name__ == "__main__":
    sys.exit(main())
