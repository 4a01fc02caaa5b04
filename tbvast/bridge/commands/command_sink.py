"""
The sink that gives sightings to a command.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.bridge.commands.command_line import Command
from tbvast.bridge.commands.failure_log import FailureLog
from tbvast.bridge.commands.json_lines import LineQueue, encode_line
from tbvast.errors import CommandFailed, CommandRefused, SettingsInvalid
from tbvast.interfaces import ISink
from tbvast.service.child_process import BackOff, Child, Children, Exit, OneShots
from tbvast.stix.sightings import MatchType


class _RunningSink:
    """
    One running command, which gets a line for each event.

    A line counts as taken when it is in the command's pipe. The pipe's content is lost if the
    command ends; so a new process gets no line before it has run for L{WARM_UP_SECONDS}.
    """

    WARM_UP_SECONDS = 0.5
    STOPPED = "stopped before it took the event"

    _log = Logger()

    def __init__(
        self,
        children: Children,
        clock: IReactorTime,
        command: Command,
        argv: Sequence[bytes],
        timeout: float,
    ) -> None:
        """
        @param children: The processes of the sink.
        @param clock: The clock of the limits.
        @param command: The command.
        @param argv: Its command line.
        @param timeout: Seconds without progress after which a warning is logged; the events
            wait on.
        """
        self._children = children
        self._clock = clock
        self._command = command
        self._argv = argv
        self._timeout = timeout
        self._failure_log = FailureLog(self._log, clock, "events wait until it runs again")
        self._backoff = BackOff(clock, self._feed)
        self._lines = LineQueue()
        self._child: Child | None = None
        self._started = 0.0
        self._timer: IDelayedCall | None = None
        self._ready = False
        self._stopped = False

    def send(self, data: bytes) -> Deferred[None]:
        """
        Send a line.

        @return: Fires when the line is in the pipe; fails with L{CommandFailed} if the sink
            is stopped before.
        """
        if self._stopped:
            return fail(CommandFailed(self._command.program, self.STOPPED))
        taken = self._lines.add(data)
        self._feed()
        return taken

    def stop(self) -> None:
        """
        Fail the waiting lines, although the last batch may still reach the command. The
        owner of the L{Children} ends the process.
        """
        self._stopped = True
        self._backoff.cancel()
        self._disarm()
        self._child = None
        self._lines.fail(self._command.program, self.STOPPED)

    def resume(self) -> None:
        """
        Accept lines again after L{stop}.
        """
        self._stopped = False

    def _feed(self) -> None:
        if not self._lines or self._backoff.waiting or self._stopped:
            return
        if self._child is None:
            self._start()
        elif self._ready:
            batch = self._lines.next_batch()
            if batch:
                self._timer = self._clock.callLater(self._timeout, self._stalled)
                self._child.write(batch)

    def _start(self) -> None:
        try:
            child = self._children.spawn(
                self._argv,
                os.fsencode(self._command.executable),
                ended=lambda exit_: self._ended(child, exit_),
                drained=lambda: self._drained(child),
                input_closed=lambda: self._input_closed(child),
            )
        except OSError as e:
            reason = f"cannot be started: {e.strerror or e}"
            self._failure_log.add(CommandFailed(self._command.program, reason))
            self._backoff.failed()
            return
        self._child = child
        self._started = self._clock.seconds()
        self._ready = False
        self._timer = self._clock.callLater(self.WARM_UP_SECONDS, self._become_ready)

    def _become_ready(self) -> None:
        self._timer = None
        self._ready = True
        self._feed()

    def _stalled(self) -> None:
        self._timer = None
        self._log.warn(
            "Command {program} has taken nothing for {seconds:g} s; {waiting} events wait.",
            program=self._command.program,
            seconds=self._timeout,
            waiting=len(self._lines),
        )

    def _drained(self, child: Child) -> None:
        if child is not self._child:
            return
        self._disarm()
        self._lines.taken()
        self._feed()

    def _input_closed(self, child: Child) -> None:
        if child is self._child:
            child.end(self._timeout)

    def _ended(self, child: Child, exit_: Exit) -> None:
        if child is not self._child:
            return
        self._child = None
        self._disarm()
        self._lines.put_back()
        if self._clock.seconds() - self._started > BackOff.MAX_SECONDS:
            self._backoff.succeeded()
        self._failure_log.add(CommandFailed(self._command.program, str(exit_), exit_.stderr))
        self._backoff.failed()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@implementer(ISink)
class CommandSink(Service):
    """
    An L{ISink} that runs a command.

    The command is run once for each event, with the context as JSON on its standard input,
    and has taken it if it ends with exit status 0. As a stream, one command keeps running and
    gets a line for each event. Its standard output is ignored.
    """

    def __init__(
        self,
        command: Command,
        reactor: IReactorProcess,
        clock: IReactorTime,
        stream: bool = False,
        timeout: float = 10.0,
        concurrency: int = 4,
        kill_after: float = 5.0,
    ) -> None:
        """
        @param command: The command.
        @param reactor: The reactor that starts the processes.
        @param clock: The clock of the limits.
        @param stream: Whether one running command takes all events.
        @param timeout: The most seconds for one run; of a stream, the seconds without
            progress after which a warning is logged.
        @param concurrency: The most processes at a time.
        @param kill_after: Seconds from SIGTERM to SIGKILL. A stream gets the same time to
            end by itself before SIGTERM.
        @raise SettingsInvalid: If the command of a stream has placeholders.
        """
        if stream and command.per_event:
            raise SettingsInvalid(
                "sink",
                shlex.join([command.program, *command.arguments]),
                "a command without %ioc and %matchtype, which a stream has no single value for",
            )
        self._command = command
        self._children = Children(reactor, clock, kill_after)
        self._runs = OneShots(
            self._children,
            clock,
            command.program,
            os.fsencode(command.executable),
            timeout,
            concurrency,
            0,
        )
        self._grace = kill_after if stream else 0.0
        self._stream: _RunningSink | None = None
        if stream:
            argv = command.argv("", MatchType.LIVE)
            self._stream = _RunningSink(self._children, clock, command, argv, timeout)

    def startService(self) -> None:
        super().startService()
        self._runs.resume()
        if self._stream is not None:
            self._stream.resume()

    def stopService(self) -> Deferred[None]:
        """
        Fail the waiting events, and end the processes.

        @return: Fires when all processes have ended.
        """
        super().stopService()
        self._runs.stop()
        if self._stream is not None:
            self._stream.stop()
        return self._children.stop(self._grace)

    def send(self, context: dict[str, Any], value: str, match_type: MatchType) -> Deferred[None]:
        try:
            argv = self._command.argv(value, match_type)
            line = encode_line(self._command.program, context)
        except CommandRefused as e:
            return fail(e)
        if self._stream is not None:
            return self._stream.send(line)
        return self._runs.run(argv, line).addCallback(lambda _: None)
