"""
How soon the plugin answers when it is started with a full journal.

    python -m bench.reopen [--short] [--runs 3] [--indicators 1000000]

The time is from the start of the process, so that Python's own start is in it, to the
first answer of manage; an empty journal stands beside it. The journal's files are in the
system's cache, as after a restart of the plugin, not of the machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import zmq

from bench.command import command_line
from bench.peers import Bus, document, tbvast
from bench.report import figure, machine, ratio, spread, table

BATCH = 5000


def ask(port: int, request: bytes, limit: float = 120.0) -> bytes:
    with zmq.Context() as context, context.socket(zmq.REQ) as manage:
        manage.linger = 0
        manage.reconnect_ivl = 1  # it is not ZeroMQ's patience that is measured
        manage.connect(f"tcp://127.0.0.1:{port}")
        manage.send(request)
        if not manage.poll(round(limit * 1000)):
            raise TimeoutError("manage does not answer")
        return bytes(manage.recv())


def fill(bus: Bus, indicators: int) -> None:
    for start in range(0, indicators, BATCH):
        batch = b",".join(document(n) for n in range(start, min(start + BATCH, indicators)))
        answer = ask(bus.manage, b'{"action":"publish","documents":[' + batch + b"]}")
        if answer.count(b'"accepted"') != min(BATCH, indicators - start):
            raise RuntimeError(f"the plugin refused some of {start}: {answer[:200]!r}")


def opened(state: Path) -> float:
    """
    @return: Seconds until it answers.
    """
    began = time.monotonic()
    with tbvast(state=state) as bus:
        ask(bus.manage, b'{"action":"heartbeat","topic":"none"}')
        return time.monotonic() - began


def measure(runs: int, indicators: int) -> int:
    print(f"A journal of {indicators:,} indicators, {runs} runs. {machine()}\n")
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
        states = {0: Path(folder, "empty"), indicators: Path(folder, "full")}
        for count, state in states.items():
            state.mkdir(mode=0o700)
            began = time.monotonic()
            with tbvast(state=state) as bus:
                fill(bus, count)
        taken = time.monotonic() - began
        times: dict[int, list[float]] = {count: [] for count in states}
        for _ in range(runs):
            for count, state in states.items():
                times[count].append(opened(state))
        size = sum(each.stat().st_size for each in states[indicators].rglob("*")) / 2**20
    rows = [
        [f"{count:,}", spread(found), ratio(found, times[0]), "2" if count else ""]
        for count, found in times.items()
    ]
    print(table(["indicators", "seconds until manage answers", "x empty", "at most"], rows))
    print(f"\nThe journal took {taken:.0f} s to fill and has {figure(size)} MiB.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(__doc__, arguments, runs=(3, 3), indicators=(1_000_000, 100_000))
    return measure(options.runs, options.indicators)


if __name__ == "__main__":
    sys.exit(main())
