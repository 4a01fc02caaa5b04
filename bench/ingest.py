"""
Indicators into the engine: how fast through bus and bridge, and how fast alone.

    python -m bench.ingest [--short] [--runs 3] [--indicators 100000] [--old 500]

The engine alone reads the same observables as NDJSON on the standard input of one command,
with the same pipeline. Of the bridge is measured how fast it takes a burst that waits for it
in the bus: it is stopped while that is published, and goes on then. Before either is measured,
what was written by then has reached the disk. The whole way goes from the first indicator
published, and made durable by the bus, which shares the machine's cores, to the last one that
the engine has taken.

The old bridge, which runs a process for each indicator, has the same bus, and instead of an
engine a command that only counts. It matches live, and searches no past events.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.command import command_line
from bench.peers import Uninstallable, document, tbvast
from bench.reopen import ask
from bench.report import machine, ratio, spread, table
from bench.way import Way, waited
from tbvast.engines.tenzir import pipelines, rows
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.pattern_conditions import matchable
from tbvast.values import Entry
from tests.functional.components import bridge_on, run
from tests.functional.peers import (
    VAST_THREATBUS,
    installed,
    logging_to_console,
    write_command,
)

AT_LEAST, AIM = 0.5, 0.9
PIECE = 5000

_COUNT = 'context_inspect "{}"\nsummarize entries=count()\nwrite_ndjson\n'

OTHER = pipelines.Tables("bench_ip", "bench_net", "bench_str")
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
        self._publish(documents)
        return self._taken(len(documents), began)

    def waiting(self, documents: list[bytes]) -> float:
        """
        @return: Indicators a second, of a burst that the bus has already.
        """
        os.kill(self.bridge.pid, signal.SIGSTOP)
        try:
            self._publish(documents)
            os.sync()
            began = time.monotonic()
        finally:
            os.kill(self.bridge.pid, signal.SIGCONT)
        return self._taken(len(documents), began)

    def _publish(self, documents: list[bytes]) -> None:
        for start in range(0, len(documents), PIECE):
            piece = b",".join(documents[start : start + PIECE])
            ask(self._manage, b'{"action":"publish","documents":[' + piece + b"]}")

    def _taken(self, count: int, began: float) -> float:
        self.held(count)
        taken = time.monotonic() - began
        counting = _COUNT.format(pipelines.main_tables(bridge_on(self.client)).ip)
        held = json.loads(run(self.client, counting, ""))["entries"]
        if held != count:
            raise AssertionError(f"{count} entries were published, {held} are held")
        return count / taken

    def alone(self, documents: list[bytes]) -> float:
        """
        @return: Observables a second, by one command of the engine.
        """
        entries = []
        for raw in documents:
            indicator = decode_indicator(raw)
            (observable,) = matchable(indicator.pattern or "").observables
            entries.append(Entry(observable, (indicator.id,)))
        text = rows.encode_entries(entries)
        for name in OTHER:
            run(self.client, pipelines.create_table(name), "")
        os.sync()
        began = time.monotonic()
        run(self.client, pipelines.update_tables(OTHER), text)
        return len(documents) / (time.monotonic() - began)


def counted(documents: list[bytes]) -> float:
    """
    @return: Indicators a second that the old bridge passes on.
    @raise Uninstallable: If it cannot be had.
    """
    command = installed(VAST_THREATBUS)
    with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder, tbvast() as bus:
        calls = Path(folder, "calls")
        calls.touch()
        stand_in = Path(folder, "vast")
        write_command(
            stand_in,
            'case "$*" in *"matcher attach"*) exec cat ;;'
            f' *"matcher add"*) printf . >>{calls} ;; esac',
        )
        config = {
            "logging": logging_to_console(Path(folder), "INFO"),
            "threatbus": f"127.0.0.1:{bus.manage}",
            "vast": "127.0.0.1:1",
            "vast_binary": str(stand_in),
            "live_match": True,
            "matcher_name": "intel",
            "retro_match": False,
            "metrics": {"interval": 0, "filename": str(Path(folder, "metrics"))},
        }
        path = Path(folder, "config.yaml")
        path.write_text(json.dumps(config))  # YAML, too
        bridge = subprocess.Popen(
            [*command, f"--config={path}"],
            stdin=subprocess.PIPE,  # which `cat` reads, until we end it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            waited(lambda: attached(bus.manage))
            began = time.monotonic()
            ask(bus.manage, b'{"action":"publish","documents":[' + b",".join(documents) + b"]}")
            waited(lambda: calls.stat().st_size >= len(documents))
            return len(documents) / (time.monotonic() - began)
        finally:
            bridge.kill()
            bridge.communicate()


def attached(manage: int) -> bool:
    """
    Whether a bus has a subscriber that receives.
    """
    answer = json.loads(ask(manage, b'{"action":"status"}'))
    return any(each["attached"] for each in answer["subscriptions"])


def measure(runs: int, count: int, old: int) -> int:
    print(f"{count:,} indicators into the engine, {runs} runs. {machine()}\n")
    documents = [document(number) for number in range(count)]
    waiting: list[float] = []
    through: list[float] = []
    alone, peer = [], []
    for _ in range(runs):
        for way in (waiting, through):
            with tempfile.TemporaryDirectory(prefix="tbvast-bench-") as folder:
                bench = Ingest(Path(folder))
                try:
                    if way is through:
                        way.append(bench.through(documents))
                    else:
                        way.append(bench.waiting(documents))
                        alone.append(bench.alone(documents))
                finally:
                    bench.end()
        try:
            peer.append(counted(documents[:old]))
        except Uninstallable as e:
            print(e)
    rows = [
        ["the bridge", spread(waiting), ratio(waiting, alone), str(AT_LEAST), str(AIM)],
        ["the whole way", spread(through), ratio(through, alone), "", ""],
        ["the engine alone", spread(alone), "1.00", "", ""],
        [f"the old bridge, {old:,}, no engine", spread(peer), ratio(peer, alone), "", ""],
    ]
    print(table(["way", "indicators/s", "x the engine alone", "at least", "aim"], rows))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line(
        *(__doc__, arguments), runs=(3, 1), indicators=(100_000, 10_000), old=(500, 200)
    )
    return measure(options.runs, options.indicators, options.old)


if __name__ == "__main__":
    sys.exit(main())
