"""
Counts the observables in events, in any field, that the bridge does not sight.

    python -m bench.everywhere [--telemetry FILE...] [--each 3] [--show 30]

L{tests.deep_matcher} finds the observables of the events without any table of fields. Indicators
are made of some of each kind from each field of each schema; the bridge searches the stored events
for them. The exit status is 0 if every sighting is of an event that holds the value. The bench
prints the numbers of missed sightings by schema, field and kind.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.recall import DATA, Indicators, sighted, spelt
from bench.report import table
from tests import deep_matcher, slow_matcher
from tests.slow_matcher import Telemetry, Value


class Place(NamedTuple):
    """
    Where a value is.
    """

    schema: str
    field: str
    kind: str


Held = dict[tuple[Value, str], set[Place]]
"""
The places of a value in an event, which its key names.
"""


def held_by(files: Iterable[Telemetry]) -> Held:
    """
    @return: All that can be an indicator's value.
    """
    found: Held = defaultdict(set)
    for each in files:
        for schema, event in each.events:
            for value, paths in deep_matcher.observables(event).items():
                if slow_matcher.drawable(value):
                    places = {Place(schema, path, value[0]) for path in paths}
                    found[value, slow_matcher.key(event)] |= places
    return found


def drawn(held: Held, each: int, chance: random.Random) -> list[Value]:
    """
    @return: So many values of each place.
    """
    by_place: dict[Place, set[Value]] = defaultdict(set)
    for (value, _), places in held.items():
        for place in places:
            by_place[place].add(value)
    values = [
        value
        for _, there in sorted(by_place.items())
        for value in chance.sample(sorted(there), min(each, len(there)))
    ]
    return list(dict.fromkeys(values))


def compare(held: Held, values: dict[str, Value], found: set[tuple[str, str]], show: int) -> int:
    """
    Print the numbers of expected, missed and false sightings.

    @param values: The values by the ids of their indicators.
    @param found: The indicator and the event of each sighting.
    @return: The number of sightings of events that do not hold the value.
    """
    ids = {value: id for id, value in values.items()}
    should = {(ids[value], event) for value, event in held if value in ids}
    expected: Counter[Place] = Counter()
    missed: Counter[Place] = Counter()
    for (value, event), places in held.items():
        if value in ids:
            expected.update(places)
            if (ids[value], event) not in found:
                missed.update(places)
    by_kind: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for place, count in expected.items():
        row = by_kind[place.schema, place.kind]
        row[0] += count
        row[1] += missed[place]
    rows = [(*key, f"{all:,}", f"{lost:,}") for key, (all, lost) in sorted(by_kind.items())]
    print(table(("schema", "kind", "in fields", "not sighted"), rows))
    most = [(*place, f"{count:,}") for place, count in missed.most_common(show)]
    print(f"\nThe {len(most)} places where most is missed, of {len(missed):,}:\n")
    print(table(("schema", "field", "kind", "not sighted"), most))
    false = len(found - should)
    print(f"\n{len(should):,} expected, {len(should & found):,} sighted, {false:,} false")
    return false


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n\n")[0])
    parser.add_argument("--telemetry", type=Path, nargs="+", metavar="FILE", help="EVE, Zeek logs")
    parser.add_argument("--each", type=int, default=3, help="values of each kind of each field: 3")
    parser.add_argument("--show", type=int, default=30, help="places to print: 30")
    parser.add_argument("--seed", type=int, default=1, help="the seed of the random choice: 1")
    options: Any = parser.parse_args(arguments)
    paths = options.telemetry or [
        path
        for each in ("suricata/*", "zeek-json/*", "zeek-tsv/*")
        for path in sorted(DATA.glob(each))
    ]
    files = [slow_matcher.read(path) for path in paths]
    held = held_by(files)
    indicators = Indicators({}, {}, {})
    values: dict[str, Value] = {}
    for number, value in enumerate(drawn(held, options.each, random.Random(options.seed))):
        indicators.add(f"[{spelt(value, number)}]", value[0])
        values[next(reversed(indicators.documents))] = value
    wanted = sum(value in set(values.values()) for value, _ in held)
    print(f"{sum(len(each.events) for each in files):,} events, {len(values):,} indicators")
    came = sighted("retro", indicators, files, wanted)
    found = {(each.indicator, each.event) for each in came}
    return 1 if compare(held, values, found, options.show) else 0


if __name__ == "__main__":
    sys.exit(main())
