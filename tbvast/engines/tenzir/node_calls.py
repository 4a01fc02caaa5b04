"""
Calls of a Tenzir node: pipelines that the engine's command runs, and the replies of the node's
API.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TypeVar

import attrs
import msgspec

from tbvast.engines.pyvast_calls import Commands, decode_json, error_summary
from tbvast.engines.tenzir import pipelines
from tbvast.errors import EngineCallFailed, EngineError, shown

QUERY_SECONDS = 30.0
TABLE_SECONDS = 300.0
"""
Seconds for a call that only queries the node, and for one that reads a table back.
"""

WRITE_SECONDS = 60.0
"""
Seconds for a call that writes to a table to read each chunk of lines, and to end after the last
one. All later changes wait behind a command that hangs; after this time they are written again.
"""

MAX_ARGUMENT_CHARACTERS = 60_000
"""
The most characters of a pipeline that is passed as an argument; the system allows 128 KiB for
an argument. Longer pipelines are passed on standard input.
"""

_T = TypeVar("_T")


class _Launched(msgspec.Struct):
    error: object = None


class Line(msgspec.Struct):
    """
    A result, as a string.
    """

    line: str


class _Served(msgspec.Struct):
    data: Line


class Page(msgspec.Struct):
    """
    A page of a pipeline's results.

    @ivar next_continuation_token: The token for the next page; C{None} after the last one.
    @ivar state: The state of the pipeline.
    @ivar events: The results.
    @ivar error: The reason why there are no results; C{None} if there may be some.
    """

    next_continuation_token: str | None = None
    state: str = ""
    events: list[_Served] = []
    error: object = None

    @property
    def lines(self) -> list[str]:
        """
        The results, in order.
        """
        return [event.data.line for event in self.events]


@attrs.define(eq=False)
class NodeCalls:
    """
    The calls of the node for one purpose.

    Each raises L{EngineError}, as L{Commands.run} does.

    @param commands: Runs the engine's command.
    @param name: The name of the calls in errors.
    """

    commands: Commands
    _name: str

    def run(self, pipeline: str, timeout: float = QUERY_SECONDS) -> list[bytes]:
        """
        Run a pipeline.

        @return: The lines of its output.
        """
        arguments, stdin = [pipeline], ""
        if len(pipeline) > MAX_ARGUMENT_CHARACTERS:
            arguments, stdin = ["-f", "/dev/stdin"], pipeline
        return self.commands.run(self._name, arguments, stdin, timeout=timeout).lines

    def write(self, pipeline: str, texts: Iterable[str]) -> None:
        """
        Run a pipeline that reads lines.

        @param texts: The lines; see L{Commands.feed}.
        @raise EngineCallFailed: If it has not processed them all: the engine skips a line that
            it cannot read, warns, and still succeeds.
        """
        result = self.commands.feed(self._name, [pipeline], texts, timeout=WRITE_SECONDS)
        if result.warnings:
            raise EngineCallFailed(self._name, error_summary(result.warnings))

    def ask(self, pipeline: str, kind: type[_T]) -> _T:
        """
        Run a pipeline that yields a single reply.

        @param kind: The type of the reply.
        @raise EngineCallFailed: If the reply is malformed.
        """
        return decode_answer(self._name, b"".join(self.run(pipeline)), kind)

    def start(self, pipeline: str) -> None:
        """
        Start a pipeline in the node.

        @param pipeline: The pipeline that starts it.
        @raise EngineCallFailed: If it is not started.
        """
        reply = self.ask(pipeline, _Launched)
        if reply.error is not None:
            raise EngineCallFailed(self._name, error_summary(str(reply.error)))

    def fetch(self, pipeline: str) -> Page:
        """
        Fetch a page of a pipeline's results.

        @raise EngineCallFailed: If the pipeline has failed.
        """
        page = self.ask(pipeline, Page)
        if page.error is not None or page.state == "failed":
            raise EngineCallFailed(self._name, error_summary(str(page.error or "it failed")))
        return page

    def end(self, *names: str) -> None:
        """
        End pipelines in the node, if they exist.
        """
        for name in names:
            with contextlib.suppress(EngineError):
                self.run(pipelines.end_pipeline(name))


def decode_answer(call: str, text: bytes, kind: type[_T]) -> _T:
    """
    Decode a reply of the node.

    @param call: The name of the engine call in errors.
    @raise EngineCallFailed: If the reply is malformed.
    """
    try:
        return decode_json(text, kind)
    except msgspec.MsgspecError:
        raise EngineCallFailed(call, f"unexpected reply {shown(text)}") from None
