"""
The sightings of the demonstration, compared with those expected.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from devtools.telemetry import DemoIndicator, Occurrence
from tbvast.cli.terminal import escaped_text
from tbvast.stix.sightings import MatchType

PHASES = (MatchType.RETRO, MatchType.LIVE)


class Score:
    """
    Counts arriving sightings and compares them with those expected.

    @ivar missing: The expected sightings that have not arrived, by phase.
    @ivar unexpected: The sightings that were not expected, by phase.
    @ivar delays: The delays of the expected sightings, in seconds, by phase.
    """

    def __init__(self, expected: Mapping[MatchType, Counter[Occurrence]]) -> None:
        """
        @param expected: The number of sightings of each occurrence, by phase.
        """
        self.expected = expected
        self.missing = {phase: counts.copy() for phase, counts in expected.items()}
        self.unexpected: dict[MatchType, Counter[Occurrence]] = {p: Counter() for p in expected}
        self.delays: dict[MatchType, list[float]] = {phase: [] for phase in expected}

    def count(self, phase: MatchType, found: Occurrence, delay: float) -> None:
        """
        Count a sighting.

        @param phase: The phase to which it belongs.
        @param found: The occurrence that was sighted.
        @param delay: Seconds since publication (retro) or import (live).
        """
        missing = self.missing[phase]
        if missing[found] > 0:
            missing[found] -= 1
            self.delays[phase].append(delay)
        else:
            self.unexpected[phase][found] += 1

    def complete(self, phase: MatchType) -> bool:
        """
        Whether every expected sighting has arrived.
        """
        return not +self.missing[phase]

    @property
    def perfect(self) -> bool:
        """
        Whether every expected sighting has arrived, and no other.
        """
        return all(self.complete(phase) and not self.unexpected[phase] for phase in self.expected)

    def found_count(self, phase: MatchType, value: str) -> int:
        """
        The number of expected sightings of a value that have arrived.
        """
        return _of(self.expected[phase], value) - _of(self.missing[phase], value)

    def table(self, indicators: Iterable[DemoIndicator]) -> Table:
        """
        The table of arrived and expected sightings.

        @param indicators: Its rows.
        """
        table = Table(
            title=Text("sightings, found of expected", "bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_footer=True,
        )
        table.add_column("kind", Text("all"))
        table.add_column("indicator", overflow="fold")
        for phase in PHASES:
            total = self.expected[phase].total()
            found = total - self.missing[phase].total()
            table.add_column(phase.lower(), _cell(found, total), justify="right")
        for each in indicators:
            cells = (
                _cell(self.found_count(phase, each.value), _of(self.expected[phase], each.value))
                for phase in PHASES
            )
            table.add_row(each.kind, escaped_text(each.value), *cells)
        return table

    def lines(self) -> Sequence[str]:
        """
        The lines below the table: delays, missing and unexpected sightings.
        """
        lines = []
        for phase, since in zip(PHASES, ("publication", "import"), strict=True):
            delays = self.delays[phase]
            if delays:
                lines.append(
                    f"{phase.lower()}: from {since} to sighting"
                    f" {statistics.median(delays):.2f} s (median), {max(delays):.2f} s (most)"
                )
        for phase in PHASES:
            for word, counts in (
                ("missing", +self.missing[phase]),
                ("unexpected", self.unexpected[phase]),
            ):
                for value in dict.fromkeys(found.value for found in counts):
                    lines.append(f"{word}, {phase.lower()}: {_of(counts, value)} of {value}")
        return lines


def _of(counts: Counter[Occurrence], value: str) -> int:
    return sum(count for found, count in counts.items() if found.value == value)


def _cell(found: int, expected: int) -> Text:
    return Text(f"{found} of {expected}", "green" if found == expected else "bold red")
