"""
The command line that all benches share.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any


def command_line(
    doc: str | None,
    arguments: Sequence[str] | None,
    words: Mapping[str, str] = MappingProxyType({}),
    /,
    **sizes: tuple[int, int],
) -> Any:
    """
    Read a bench's command line: C{--short}, and an option for each word and size.

    @param doc: The module's; its first paragraph says what the bench is.
    @param arguments: C{None} for those of the process.
    @param words: The help of each option that is a word; its default is C{""}.
    @param sizes: What each number is by default, in full and in short.
    @return: The value of each, by name.
    """
    parser = argparse.ArgumentParser(description=(doc or "").strip().split("\n\n")[0])
    parser.add_argument("--short", action="store_true", help="measure in small")
    for name, (full, short) in sizes.items():
        said = f"{full:,}" if full == short else f"{full:,}, or {short:,} if short"
        parser.add_argument(f"--{name}", type=int, help=f"default: {said}")
    for name, help in words.items():
        parser.add_argument(f"--{name}", default="", help=help)
    options = parser.parse_args(arguments)
    for name, size in sizes.items():
        value = getattr(options, name)
        if value is None:
            setattr(options, name, size[options.short])
        elif value < 1:
            parser.error(f"--{name}: {value} is not a positive number")
    return options
