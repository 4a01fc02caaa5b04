"""
Calls of a Tenzir node: pipelines that the engine's command runs.
"""

from __future__ import annotations

import contextlib

from tbvast.engines.pyvast_calls import Commands
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.answers import Page, check_started, decode_page
from tbvast.errors import EngineError

QUERY_SECONDS = 30.0
"""
Seconds for a call that only queries the node.
"""

MAX_ARGUMENT_CHARACTERS = 60_000
"""
The most characters of a pipeline that is passed as an argument; the system allows 128 KiB for
an argument. Longer pipelines are passed on standard input.
"""

_PIPELINE_ON_STDIN = ("-f", "/dev/stdin")


class NodeCalls:
    """
    The calls of the node for one purpose.

    Each raises L{EngineError}, as L{Commands.run} does.

    @ivar name: The name of the calls in errors.
    """

    def __init__(self, commands: Commands, name: str) -> None:
        """
        @param commands: Runs the engine's command.
        @param name: The name of the calls in errors.
        """
        self._commands = commands
        self.name = name

    def run(self, pipeline: str, timeout: float = QUERY_SECONDS) -> list[bytes]:
        """
        Run a pipeline.

        @return: The lines of its output.
        """
        if len(pipeline) > MAX_ARGUMENT_CHARACTERS:
            call = self._commands.run(self.name, _PIPELINE_ON_STDIN, pipeline, timeout=timeout)
        else:
            call = self._commands.run(self.name, [pipeline], timeout=timeout)
        return call.lines

    def ask(self, pipeline: str) -> bytes:
        """
        Run a pipeline that yields a single reply.
        """
        return b"".join(self.run(pipeline))

    def start(self, pipeline: str) -> None:
        """
        Start a pipeline in the node.

        @param pipeline: The pipeline that starts it.
        @raise EngineCallFailed: If it is not started.
        """
        check_started(self.name, self.ask(pipeline))

    def fetch(self, pipeline: str) -> Page:
        """
        Fetch a page of a pipeline's results.

        @raise EngineCallFailed: If the pipeline has failed.
        """
        return decode_page(self.name, self.ask(pipeline))

    def end(self, *names: str) -> None:
        """
        End pipelines in the node, if they exist.
        """
        for name in names:
            with contextlib.suppress(EngineError):
                self.run(pipelines.end_pipeline(name))
