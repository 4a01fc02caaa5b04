"""
The plugin's resident memory: idle, and with many indicators in its journal.

    python -m bench.memory [--short] [--runs 3]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bench.peers import tbvast
from bench.reopen import ask, fill
from bench.report import machine, spread, table
from bench.snapshots import memory

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
        idle = memory(bus.pid, "VmRSS")
        fill(bus, indicators)
        return idle, memory(bus.pid, "VmRSS")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).strip().split("\n\n")[0])
    parser.add_argument("--short", action="store_true", help="100,000 indicators, once")
    parser.add_argument("--runs", type=int, default=0, help="3, or 1 if short")
    options: Any = parser.parse_args(arguments)
    indicators = 100_000 if options.short else 1_000_000
    runs = options.runs or (1 if options.short else 3)
    print(f"Resident memory of the plugin, {runs} runs. {machine()}\n")
    idle, holding = zip(*[measured(indicators) for _ in range(runs)], strict=True)
    rows = [
        ["idle", spread(idle), str(MOST_IDLE)],
        [f"holding {indicators:,}", spread(holding), str(MOST_HOLDING)],
    ]
    print(table(["plugin", "MiB", "below"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
