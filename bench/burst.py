"""
A burst of indicators, published to sub at once: how many per second reach everybody.

    python -m bench.burst [--short] [--runs 3] [--messages 100000] [--only tbvast]

The time is from the first message sent to the last one received by the last subscriber.
While tbvast is under the burst, its manage endpoint is asked every 20 ms, and its
reactor's turns are timed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import zmq

from bench.command import command_line
from bench.peers import (
    FORWARDERS,
    Bus,
    Load,
    Uninstallable,
    forwarder,
    tbvast,
    threatbus,
)
from bench.report import figure, machine, percentile, ratio, spread, table

BEAT = 0.02
"""
Seconds between two heartbeats.
"""

OLD_MESSAGES = 3000
"""
The burst for the old host, which is slow.
"""

GOALS = {"1 old": "0.5", "4 old": "0.6", "4 tbvast/1": "1.0"}


class Result:
    """
    Figures of one bus in one setting, one for each run.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.beats: list[float] = []
        self.turns: list[float] = []
        self.cpu: list[float] = []


def once(bus: Bus, messages: int, subscribers: int, fed: bool, result: Result) -> tuple[int, int]:
    """
    @return: When it began and ended, in nanoseconds.
    """
    topics = (
        ["stix2/"] * subscribers
        if bus.name == FORWARDERS["proxy"]
        else bus.topics(subscribers, fed)
    )
    load = Load(bus, topics, subscribers)
    try:
        load.prepare(messages)
        used = bus.cpu()
        load.publisher.tell("burst")
        if bus.manage:
            result.beats += beats(bus, topics[0], load)
        said = load.finish()
        began = int(load.publisher.told())
        ended = max(int(line[0]) for line in said)
        surplus = [int(line[1]) for line in said]
        if any(surplus):
            raise RuntimeError(f"{bus.name}: {surplus} messages more than were published")
        result.cpu.append((bus.cpu() - used) / messages * 1e6)
        result.rates.append(messages / (ended - began) * 1e9)
        return began, ended
    finally:
        load.end()


def beats(bus: Bus, topic: str, load: Load) -> list[float]:
    """
    Send heartbeats until all subscribers have all.

    @return: How long each answer took: milliseconds.
    """
    delays = []
    deadline = time.monotonic() + 120
    with zmq.Context() as context, context.socket(zmq.REQ) as manage:
        manage.linger = 0
        manage.connect(f"tcp://127.0.0.1:{bus.manage}")
        while not all(each.said() for each in load.subscribers):
            began = time.monotonic()
            if began > deadline:
                raise TimeoutError(f"{bus.name}: the subscribers do not get all")
            manage.send_json({"action": "heartbeat", "topic": topic})
            if not manage.poll(30_000):
                raise TimeoutError(f"{bus.name} does not answer heartbeats")
            manage.recv()
            taken = time.monotonic() - began
            delays.append(taken * 1000)
            time.sleep(max(0.0, BEAT - taken))
    return delays


def longest(path: Path, began: int, ended: int) -> float:
    """
    @return: The longest reactor turn within a time: milliseconds.
    """
    turns = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
    return max((took for at, took in turns if began < at and at - took < ended), default=0) / 1e6


def run_tbvast(messages: int, subscribers: int, fed: bool, result: Result) -> None:
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        turns = Path(folder, "turns")
        with tbvast(turns) as bus:
            began, ended = once(bus, messages, subscribers, fed, result)
        result.turns.append(longest(turns, began, ended))


def run_peer(
    start: Callable[[], AbstractContextManager[Bus]],
    messages: int,
    subscribers: int,
    result: Result,
) -> None:
    with start() as bus:
        once(bus, messages, subscribers, False, result)


def measure(runs: int, messages: int, only: str) -> int:
    print(f"A burst of {messages:,} indicators of 420 bytes, {runs} runs. {machine()}\n")
    settings = [(1, False), (4, False), (4, True)]
    results: dict[tuple[str, str], Result] = {}

    def result(name: str, setting: str) -> Result:
        return results.setdefault((name, setting), Result())

    for _ in range(runs):  # one after the other, so that all see the same machine
        for subscribers, fed in settings:
            setting = f"{subscribers} {'tbvast/1' if fed else 'old'}"
            if only in ("", "tbvast"):
                run_tbvast(messages, subscribers, fed, result("tbvast", setting))
            if fed:
                continue
            for kind, name in FORWARDERS.items():
                if only in ("", kind):
                    run_peer(
                        partial(forwarder, kind, subscribers),
                        messages,
                        subscribers,
                        result(name, setting),
                    )
            if only in ("", "threatbus"):
                try:
                    run_peer(
                        threatbus,
                        min(messages, OLD_MESSAGES),
                        subscribers,
                        result("Threat Bus 2022.5.16", setting),
                    )
                except Uninstallable as e:
                    print(e)
    show(results)
    return 0


def show(results: dict[tuple[str, str], Result]) -> None:
    empty = Result()
    rows = []
    for (name, setting), found in results.items():
        peer = results.get((FORWARDERS["json"], setting.replace("tbvast/1", "old")), empty)
        beats = [percentile(found.beats, p) for p in (50, 99)] if found.beats else []
        rows.append(
            [
                *(setting, name, spread(found.rates), ratio(found.rates, peer.rates)),
                GOALS[setting] if name == "tbvast" else "",
                spread(found.cpu),
                " / ".join(map(figure, beats)) or "-",
                figure(max(found.turns)) if found.turns else "-",
            ]
        )
    rows.sort(key=lambda row: (list(GOALS).index(row[0]), row[1] != "tbvast"))
    print(
        table(
            [
                *("subscribers", "bus", "messages/s", "x json.loads", "at least"),
                *("CPU us/message", "heartbeat p50 / p99 ms", "longest turn ms"),
            ],
            rows,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    words = {"only": "tbvast, json, blind, proxy or threatbus"}
    options = command_line(__doc__, arguments, words, runs=(3, 1), messages=(100_000, 20_000))
    return measure(options.runs, options.messages, options.only)


if __name__ == "__main__":
    sys.exit(main())
