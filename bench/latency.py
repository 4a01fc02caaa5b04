"""
How long an indicator takes from publisher to subscriber while the bus is hardly busy.

    python -m bench.latency [--short] [--runs 3] [--rate 200] [--seconds 10]

Each message bears the time at which it was sent; publisher and subscriber are processes
of one machine, and so read the same clock.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from bench.command import command_line
from bench.peers import FORWARDERS, Bus, Load, Uninstallable, forwarder, tbvast, threatbus
from bench.report import figure, machine, percentile, ratio, spread, table

OLD_HOST = "Threat Bus 2022.5.16"


def once(bus: Bus, rate: int, seconds: int, fed: bool) -> list[float]:
    """
    @return: How late each message was: milliseconds.
    """
    topics = ["stix2/"] if bus.name == FORWARDERS["proxy"] else bus.topics(1, fed)
    load = Load(bus, topics, 1)
    try:
        load.expect(rate * seconds, stamped=True)
        load.publisher.tell(f"pace {rate * seconds} {rate}")
        ((_, surplus, *late),) = load.finish()
        if int(surplus) or len(late) != rate * seconds:
            raise RuntimeError(f"{bus.name}: {len(late)} of {rate * seconds} messages came")
        return [int(each) / 1000 for each in late]
    finally:
        load.end()


def measure(runs: int, rate: int, seconds: int) -> int:
    print(f"{rate} messages/s for {seconds} s, {runs} runs. {machine()}\n")
    buses: dict[str, tuple[bool, Callable[[], AbstractContextManager[Bus]]]] = {
        "tbvast, old dialect": (False, tbvast),
        "tbvast, tbvast/1": (True, tbvast),
        OLD_HOST: (False, threatbus),
        **{name: (False, partial(forwarder, kind, 1)) for kind, name in FORWARDERS.items()},
    }
    results: dict[str, list[list[float]]] = {name: [] for name in buses}
    for _ in range(runs):
        for name, (fed, start) in buses.items():
            try:
                with start() as bus:
                    results[name].append(once(bus, rate, seconds, fed))
            except Uninstallable as e:
                print(e)
    bare = [percentile(run, 99) for run in results[FORWARDERS["json"]]]
    rows = []
    for name, found in results.items():
        half, most = ([percentile(run, p) for run in found] for p in (50, 99))
        rows.append(
            [
                *(name, spread(half), spread(most)),
                figure(max(map(max, found))) if found else "-",
                ratio(most, bare),
            ]
        )
    print(table(["bus", "p50 ms", "p99 ms", "longest ms", "p99 x json.loads"], rows))
    if results[OLD_HOST]:
        old = statistics.median(percentile(run, 50) for run in results[OLD_HOST])
        print(f"\nAt least: p99 below {figure(old)} ms, the old host's p50.")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(__doc__, arguments, runs=(3, 1), rate=(200, 200), seconds=(10, 3))
    return measure(options.runs, options.rate, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
