"""
What a delivered message costs the plugin, from one subscriber to a thousand.

    python -m bench.growth [--short] [--runs 3] [--deliveries 200000]

The cost is the CPU time of the plugin's process, with all its threads, for each message
delivered to a subscriber. Idle subscribers are connected, but to sightings only, of which
none come; they stand beside the same load without them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.command import command_line
from bench.peers import Load, Role, tbvast
from bench.report import machine, ratio, spread, table

NUMBERS = (1, 10, 100, 1000)

IDLE = 1000

MOST = 20_000
"""
The most messages of one run: one subscriber does not get more.
"""


def once(subscribers: int, messages: int, fed: bool, idle: int = 0) -> float:
    """
    @return: Microseconds of CPU for each message delivered.
    """
    with tbvast() as bus:
        watching = bus.topics(idle, fed, "stix2/sighting") if idle else []
        others = Role("subscriber", bus.pub, *watching) if idle else None
        try:
            if others:
                others.told()
            load = Load(bus, bus.topics(subscribers, fed), 1)
            try:
                load.prepare(messages)
                used = bus.cpu()
                load.publisher.tell("burst")
                load.finish()
                return (bus.cpu() - used) / (messages * subscribers) * 1e6
            finally:
                load.end()
        finally:
            if others:
                others.end()


def measure(runs: int, deliveries: int) -> int:
    print(f"{runs} runs. {machine()}\n")
    cases = [
        (subscribers, min(MOST, deliveries // subscribers), fed, idle)
        for fed in (False, True)
        for subscribers, idle in (*((n, 0) for n in NUMBERS), (1, IDLE))
    ]
    costs: dict[tuple[int, int, bool, int], list[float]] = {case: [] for case in cases}
    for _ in range(runs):
        for case in cases:
            costs[case].append(once(*case))
    rows = []
    for case, found in costs.items():
        subscribers, messages, fed, idle = case
        one = costs[1, min(MOST, deliveries), fed, 0]
        rows.append(
            [
                "tbvast/1" if fed else "old",
                *(f"{subscribers:,}", f"{idle:,}", f"{messages:,}"),
                *(spread(found), ratio(found, one)),
            ]
        )
    print(
        table(
            ["dialect", "subscribers", "idle", "messages", "CPU us/delivery", "x one subscriber"],
            rows,
        )
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(__doc__, arguments, runs=(3, 1), deliveries=(200_000, 20_000))
    return measure(options.runs, options.deliveries)


if __name__ == "__main__":
    sys.exit(main())
