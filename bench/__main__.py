"""
All of the bench commands, one after the other.

    python -m bench [--short] [NAME ...]

The exit status is 0 if all could measure what they are for; one that could not does not
keep the others from it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

COMMANDS = (
    "burst",
    "latency",
    "growth",
    "snapshots",
    "reopen",
    "memory",
    "ingest",
    "matching",
    "live",
    "recall",
    "strangers",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run bench commands.")
    parser.add_argument("--short", action="store_true", help="small versions, in minutes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COMMANDS))
    options: Any = parser.parse_args(arguments)
    if unknown := sorted({*options.names} - {*COMMANDS}):
        parser.error(f"NAME: {unknown[0]!r} is not one of {', '.join(COMMANDS)}")
    failed = []
    for name in options.names or COMMANDS:
        print(f"\n## {name}\n", flush=True)
        if find_spec(f"bench.{name}") is None:
            print("not there")
            failed.append(name)
            continue
        more = ["--short"] if options.short else []
        # A process each: what one leaves behind is not in the figures of the next.
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *more]).returncode:
            failed.append(name)
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
