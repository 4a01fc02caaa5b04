"""
Where a command's words go: a terminal that people look at, or a pipe.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def visible(text: str) -> str:
    """
    A text of which nothing can act on a terminal, or hide on it.

    Control characters, line ends and direction marks are written as escapes.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible_json(document: bytes) -> str:
    """
    A JSON document as text; of which nothing can act on a terminal either.

    @param document: Valid JSON, in which such characters only stand in strings.
    """
    text = document.decode("utf-8", "replace")
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in _HIDDEN else _json_escape(c) for c in text
    )


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


@implementer(ILogObserver)
class Complaints:
    """
    A log observer: what somebody at a terminal should know goes there.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            failure = event.get("log_failure")
            reason = f" ({failure.type.__name__}: {failure.value})" if failure else ""
            self._screen.complain(formatEvent(event) + reason)


class Screen:
    """
    The standard streams of a command.

    @ivar rich: Whether standard output is a terminal, for tables and colours.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self.rich = out.isatty()
        # Nothing that is shown may be taken for markup, an emoji or a number.
        self._console = Console(file=out, markup=False, emoji=False, highlight=False)

    @property
    def width(self) -> int:
        """
        Columns of the terminal.
        """
        return self._console.width

    def tell(self, line: str) -> None:
        """
        Write a line to standard output.
        """
        print(visible(line), file=self._out, flush=True)

    def put(self, *fields: str) -> None:
        """
        Write a line of fields, with tabs between them, to standard output.
        """
        print("\t".join(map(visible, fields)), file=self._out, flush=True)

    def put_json(self, document: bytes) -> None:
        """
        Write a JSON document to standard output.

        @param document: Valid JSON.
        """
        print(visible_json(document), file=self._out, flush=True)

    def show(self, renderable: RenderableType) -> None:
        """
        Write a table, say, to a standard output that is a terminal.
        """
        self._console.print(renderable)

    def complain(self, reason: str) -> None:
        """
        Write one line to standard error.
        """
        print(f"tbvast: {visible(reason)}", file=self._err, flush=True)

    def abandon(self) -> None:
        """
        Write nothing more to standard output, which nobody reads any more.

        Python would complain about what it cannot write at the very end.
        """
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """
        A bar on standard error, if that is a terminal.

        @param total: Its steps.
        @return: What to call with the number of steps that were made.
        """
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=self._err, markup=False, emoji=False, highlight=False),
            transient=True,
            disable=not self._err.isatty(),
        )
        task = bar.add_task(visible(what), total=total)
        with bar:
            yield lambda steps: bar.advance(task, steps)


def styled(text: str, style: str = "") -> Text:
    """
    A text from elsewhere, to be shown.
    """
    return Text(visible(text), style=style)
