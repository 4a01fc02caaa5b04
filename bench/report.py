"""
Medians, ranges and tables: what every bench command prints.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import zmq

PACKAGES = ("tbvast", "pyzmq", "Twisted")


def percentile(values: Sequence[float], percent: float) -> float:
    """
    @param values: At least one.
    @param percent: 0 to 100.
    @return: The smallest value that so many percent of the values do not exceed.
    """
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def figure(value: float) -> str:
    """
    @return: A number with three digits that count, or all before the point.
    """
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """
    @param values: One for each run.
    @return: Their median, and the range if there were several.
    """
    if not values:
        return "-"
    middle = figure(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({figure(min(values))}..{figure(max(values))})"


def ratio(values: Sequence[float], peer: Sequence[float]) -> str:
    """
    @return: How the median of some values relates to that of a peer.
    """
    if not values or not peer or not statistics.median(peer):
        return "-"
    return f"{statistics.median(values) / statistics.median(peer):.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    @return: A Markdown table, which is also to be read as it is.
    """
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def machine() -> str:
    """
    @return: What was measured on, and what with, in one line.
    """
    said = [
        f"{os.cpu_count()} cores, shared by all processes of a run",
        f"load average {os.getloadavg()[0]:.1f} before",
        f"Python {platform.python_version()}",
        f"libzmq {zmq.zmq_version()}",
    ]
    for package in PACKAGES:
        try:
            said.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            said.append(f"{package} from its sources")
    return ", ".join(said)
