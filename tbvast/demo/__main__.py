"""
C{python -m tbvast.demo}: from indicator to sighting, on real input.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import tbvast
from tbvast.cli import start
from tbvast.demo.story import demonstrate

DATA = Path(tbvast.__file__).parents[1] / "tests" / "data"
"""
Where the data is in a checkout.
"""

DESCRIPTION = """\
Starts a bus, a bridge and an embedded engine on free ports, publishes indicators, and
imports telemetry of Suricata and Zeek before and after that. Shows the sightings as
they come; the exit status is 0 if every expected one came, and no other. Nothing is
left running, and nothing is kept.
"""


def main() -> None:
    """
    @raise SystemExit: Always.
    """
    parser = argparse.ArgumentParser(prog="python -m tbvast.demo", description=DESCRIPTION)
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=DATA,
        help="the folder with the data (default: %(default)s)",
    )
    start(partial(demonstrate, data=parser.parse_args().data))


if __name__ == "__main__":
    main()
