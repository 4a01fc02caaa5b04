"""
The sink that gives sightings to a command.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.bridge.commands.processes import (
    STOPPED,
    CommandService,
    CommandStream,
    LineQueue,
    encode_line,
)
from tbvast.errors import CommandRefused
from tbvast.interfaces import ISink
from tbvast.service.child_process import BackOff, Exit
from tbvast.stix.sightings import MatchType


@attrs.define(eq=False, slots=False)
class _SinkStream(CommandStream):
    """
    A running command that reads a line for each event.

    A line counts as taken when it is in the command's pipe. The pipe's content is lost if the
    command ends; so a new process gets no line before it has run for L{WARM_UP_SECONDS}. It is
    not bound to this process, so that it can read the pipe to its end.
    """

    WARM_UP_SECONDS = 0.5

    _log = Logger()

    _lines: LineQueue = attrs.field(init=False, factory=LineQueue)
    _started: float = attrs.field(init=False, default=0.0)
    _ready: bool = attrs.field(init=False, default=False)

    def send(self, data: bytes) -> Deferred[None]:
        """
        Send a line.

        @return: Fires when it is in the pipe; fails with L{CommandFailed} if the sink is stopped.
        """
        taken = self._lines.add(data)
        self._feed()
        return taken

    def stop(self) -> None:
        """
        Fail the waiting lines, although the last batch may still reach the command.
        """
        super().stop()
        self._lines.fail(self._service.command.program, STOPPED)

    def _feed(self) -> None:
        if not self._lines or self._backoff.waiting:
            return
        if self._child is None:
            self._ready = False
            self._started = self._service.clock.seconds()
            if self._start(bound=False):
                self._call_later(self.WARM_UP_SECONDS, self._become_ready)
        elif self._ready and (batch := self._lines.next_batch()):
            self._call_later(self._timeout, self._stalled)
            self._child.write(batch)

    def _become_ready(self) -> None:
        self._ready = True
        self._feed()

    def _stalled(self) -> None:
        self._log.warn(
            "Command {program} has taken nothing for {seconds:g} s; {waiting} events wait.",
            program=self._service.command.program,
            seconds=self._timeout,
            waiting=len(self._lines),
        )

    def drained(self) -> None:
        self._cancel_timer()
        self._lines.taken()
        self._feed()

    def input_closed(self) -> None:
        if self._child is not None:
            self._child.end(self._timeout)

    def ended(self, exit_: Exit) -> None:
        self._child = None
        self._cancel_timer()
        self._lines.put_back()
        if self._service.clock.seconds() - self._started > BackOff.MAX_SECONDS:
            self._backoff.succeeded()
        self._failed(str(exit_), exit_.stderr)


@implementer(ISink)
class CommandSink(CommandService[_SinkStream]):
    """
    An L{ISink} that runs a command.

    The command is run once for each event, with the context as JSON on its standard input,
    and has taken it if it ends with exit status 0. As a stream, one command keeps running and
    gets a line for each event. Its standard output is ignored.
    """

    stream_type = _SinkStream
    consequence = "events wait until it runs again"
    reads_on = True

    def send(self, context: dict[str, Any], value: str, match_type: MatchType) -> Deferred[None]:
        if not self.running:
            return fail(self.failure(STOPPED))
        try:
            argv = self.command.argv(value, match_type)
            line = encode_line(self.command.program, context)
        except CommandRefused as e:
            return fail(e)
        if self.stream is not None:
            return self.stream.send(line)
        return self.run(argv, line).addCallback(lambda _: None)
