"""
Indicators into the real engine: how fast through bus and bridge, and how fast alone.

    python -m bench.ingest [--short] [--runs 3]

The engine alone reads the same observables as NDJSON on the standard input of one command,
with the same pipeline. What is measured of tbvast goes from the first indicator published to
the last one that the engine has taken; the bridge searches past events for them meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers import document
from bench.reopen import ask
from bench.report import machine, ratio, spread, table
from bench.way import Way
from tbvast.bridge.engines import rows, tql
from tbvast.intel.indicators import decode_indicator
from tbvast.intel.matches import Entry
from tbvast.intel.patterns import matchable
from tests.functional.components import run

AT_LEAST = 0.5
PIECE = 5000

_COUNT = 'context_inspect "{}"\nsummarize entries=count()\nwrite_ndjson\n'

OTHER = tql.Tables("bench_ip", "bench_net", "bench_str")
"""
Tables that the engine alone fills.
"""


class Ingest(Way):
    """
    Plugin, bridge and engine, with nothing in them.
    """

    def through(self, documents: list[bytes]) -> float:
        """
        @return: Indicators a second, by way of bus and bridge.
        """
        began = time.monotonic()
        for start in range(0, len(documents), PIECE):
            piece = b",".join(documents[start : start + PIECE])
            ask(self._manage, b'{"action":"publish","documents":[' + piece + b"]}")
        self.held(len(documents))
        taken = time.monotonic() - began
        held = json.loads(run(self.engine, _COUNT.format(tql.MAIN.ip), ""))["entries"]
        if held != len(documents):
            raise AssertionError(f"{len(documents)} entries were published, {held} are held")
        return len(documents) / taken

    def alone(self, documents: list[bytes]) -> float:
        """
        @return: Observables a second, by one command of the engine.
        """
        entries = []
        for raw in documents:
            indicator = decode_indicator(raw)
            (observable,) = matchable(indicator.pattern or "").observables
            entries.append(Entry(observable, (indicator.id,)))
        text = rows.written(entries)
        for name in OTHER:
            run(self.engine, tql.create(name), "")
        began = time.monotonic()
        run(self.engine, tql.update(OTHER), text)
        return len(documents) / (time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).strip().split("\n\n")[0])
    parser.add_argument("--short", action="store_true", help="10,000 indicators, once")
    parser.add_argument("--runs", type=int, default=0, help="3, or 1 if short")
    options: Any = parser.parse_args(arguments)
    count = 10_000 if options.short else 100_000
    runs = options.runs or (1 if options.short else 3)
    print(f"{count:,} indicators into the engine, {runs} runs. {machine()}\n")
    documents = [document(number) for number in range(count)]
    through, alone = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
            bench = Ingest(Path(folder))
            try:
                through.append(bench.through(documents))
                alone.append(bench.alone(documents))
            finally:
                bench.end()
    print(
        table(
            ["way", "indicators/s", "x the engine alone", "at least"],
            [
                ["plugin and bridge", spread(through), ratio(through, alone), str(AT_LEAST)],
                ["the engine alone", spread(alone), "1.00", ""],
            ],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
