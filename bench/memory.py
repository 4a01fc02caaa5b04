"""
The resident memory of the plugin's two processes: idle, and with many indicators in its journal.

    python -m bench.memory [--short] [--runs 3] [--indicators 1000000]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.command import command_line
from bench.peers import tbvast
from bench.reopen import ask, fill
from bench.report import machine, spread, table

MOST_IDLE, MOST_HOLDING = 60, 300
"""
MiB that the plugin should stay below.
"""


def measured(indicators: int) -> tuple[float, float]:
    """
    @return: MiB when idle, and with so many indicators.
    """
    with tbvast() as bus:
        ask(bus.manage, b'{"action":"status"}')
        idle = bus.memory("VmRSS")
        fill(bus, indicators)
        return idle, bus.memory("VmRSS")


def measure(runs: int, indicators: int) -> int:
    print(f"Resident memory of the plugin, {runs} runs. {machine()}\n")
    idle, holding = zip(*[measured(indicators) for _ in range(runs)], strict=True)
    rows = [
        ["idle", spread(idle), str(MOST_IDLE)],
        [f"holding {indicators:,}", spread(holding), str(MOST_HOLDING)],
    ]
    print(table(["plugin", "MiB", "below"], rows))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(__doc__, arguments, runs=(3, 1), indicators=(1_000_000, 100_000))
    return measure(options.runs, options.indicators)


if __name__ == "__main__":
    sys.exit(main())
