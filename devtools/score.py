"""
What was expected, what came, and when.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from devtools.telemetry import Found, Wanted
from tbvast.cli.terminal import styled
from tbvast.stix.sightings import MatchType

PHASES = (MatchType.RETRO, MatchType.LIVE)


class Score:
    """
    Sightings as they come, held against those that are expected.

    @ivar missing: What has not come yet, by phase.
    @ivar unexpected: What should not have come, by phase.
    @ivar delays: Seconds from when each that was expected could be made until it
        came, by phase.
    """

    def __init__(self, expected: Mapping[MatchType, Counter[Found]]) -> None:
        self.expected = expected
        self.missing = {phase: counts.copy() for phase, counts in expected.items()}
        self.unexpected: dict[MatchType, Counter[Found]] = {p: Counter() for p in expected}
        self.delays: dict[MatchType, list[float]] = {phase: [] for phase in expected}

    def came(self, phase: MatchType, found: Found, delay: float) -> None:
        """
        Count a sighting.

        @param delay: Seconds since it could be made.
        """
        missing = self.missing[phase]
        if missing[found] > 0:
            missing[found] -= 1
            self.delays[phase].append(delay)
        else:
            self.unexpected[phase][found] += 1

    def complete(self, phase: MatchType) -> bool:
        """
        Whether all that is expected has come.
        """
        return not +self.missing[phase]

    @property
    def perfect(self) -> bool:
        """
        Whether all that was expected has come, and nothing else.
        """
        return all(self.complete(phase) and not self.unexpected[phase] for phase in self.expected)

    def found(self, phase: MatchType, value: str) -> int:
        """
        How many of the sightings of a value that are expected have come.
        """
        return _of(self.expected[phase], value) - _of(self.missing[phase], value)

    def table(self, wanted: Iterable[Wanted]) -> Table:
        """
        What was found of what was to be found, by indicator.
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
        for each in wanted:
            cells = (
                _cell(self.found(phase, each.value), _of(self.expected[phase], each.value))
                for phase in PHASES
            )
            table.add_row(each.kind, styled(each.value), *cells)
        return table

    def lines(self) -> Sequence[str]:
        """
        What else there is to say at the end.
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


def _of(counts: Counter[Found], value: str) -> int:
    return sum(count for found, count in counts.items() if found.value == value)


def _cell(found: int, expected: int) -> Text:
    return Text(f"{found} of {expected}", "green" if found == expected else "bold red")
