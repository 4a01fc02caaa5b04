"""
The output of a command, on a terminal or into a pipe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import attrs
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

from tbvast.service.escaping import escape_controls, escape_json_controls


@implementer(ILogObserver)
@attrs.define(eq=False)
class TerminalLogObserver:
    """
    Writes log events to standard error, one line each: warnings and above.

    @param screen: The streams of the command.
    """

    _screen: Screen

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            failure = event.get("log_failure")
            reason = f" ({failure.type.__name__}: {failure.value})" if failure else ""
            self._screen.write_error(formatEvent(event) + reason)


class Screen:
    """
    The standard streams of a command.

    Everything written is escaped by L{escape_controls}.

    @ivar is_terminal: Whether standard output is a terminal: for tables and colours.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self.is_terminal = out.isatty()
        # Rich must not interpret untrusted text as markup, emoji or numbers.
        self._console = Console(file=out, markup=False, emoji=False, highlight=False)

    @property
    def width(self) -> int:
        """
        The width of the terminal, in columns.
        """
        return self._console.width

    def write_line(self, *fields: str) -> None:
        """
        Write a line to standard output; several fields are separated by tabs.
        """
        print("\t".join(map(escape_controls, fields)), file=self._out, flush=True)

    def write_json(self, document: bytes) -> None:
        """
        Write a document, which is valid JSON, to standard output.
        """
        print(escape_json_controls(document), file=self._out, flush=True)

    def render(self, renderable: RenderableType) -> None:
        """
        Render text with styles, or a table, on standard output.

        @param renderable: Its texts must be escaped already, see L{escaped_text}.
        """
        self._console.print(renderable)

    def write_error(self, reason: str) -> None:
        """
        Write a line to standard error, with the name of the command.
        """
        print(f"tbvast: {escape_controls(reason)}", file=self._err, flush=True)

    def discard_output(self) -> None:
        """
        Redirect standard output, whose reader has gone, to the null device. Otherwise Python's
        last flush would report a broken pipe.
        """
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """
        Show a progress bar on standard error, if that is a terminal.

        @param label: The text beside the bar.
        @param total: The number of steps.
        @return: A context manager, whose value is called with the number of further steps done.
        """
        if not self._err.isatty():  # rich before 14 writes an end of line all the same
            yield lambda steps: None
            return
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=self._err, markup=False, emoji=False, highlight=False),
            transient=True,
        )
        task = bar.add_task(escape_controls(label), total=total)
        with bar:
            yield lambda steps: bar.advance(task, steps)


def escaped_text(text: str, style: str = "") -> Text:
    """
    Escape untrusted text for L{Screen.render}.

    @param style: A style of rich.
    """
    return Text(escape_controls(text), style=style)
