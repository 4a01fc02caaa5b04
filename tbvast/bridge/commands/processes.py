"""
The processes of the configured commands: one for each event, or one for many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger

from tbvast.bridge.commands.command_line import Command
from tbvast.errors import CommandFailed
from tbvast.service.child_process import BackOff, Child, Children, Exit
from tbvast.service.rate_limit import RateLimit
from tbvast.stix.sightings import MatchType

STOPPED = "stopped before it took the event"


class CommandLimits(msgspec.Struct, frozen=True):
    """
    The limits of a command.

    @ivar timeout: The most seconds for one run, or for an answer. For a sink that keeps
        running: seconds without progress after which a warning is logged.
    @ivar concurrency: The most processes at a time, if each gets one event.
    @ivar in_flight: The most events without an answer, if one process gets many.
    @ivar patience: Seconds from SIGTERM to SIGKILL. A sink that keeps running gets the same
        time to end by itself before SIGTERM.
    """

    timeout: float = 10.0
    concurrency: int = 4
    in_flight: int = 64
    patience: float = 5.0


DEFAULT_LIMITS = CommandLimits()


class FailureLog:
    """
    Logs the first failure of a command at once, then one a minute, with the number of failures
    since the last line.
    """

    def __init__(self, log: Logger, clock: IReactorTime, consequence: str) -> None:
        """
        @param log: The logger.
        @param clock: The clock of the limit.
        @param consequence: The consequence of a failure for the events, for the log.
        """
        self._log = log
        self._limit = RateLimit(clock, 1)
        self._consequence = consequence
        self._unlogged = 0

    def add(self, error: CommandFailed) -> None:
        """
        Log a failure, or count it.
        """
        self._unlogged += 1
        if not self._limit.allows():
            return
        failures, self._unlogged = self._unlogged, 0
        self._log.warn(
            "Command {program} failed ({failures} new failures): {reason}; {consequence}.",
            program=error.program,
            failures=failures,
            reason=error.reason,
            consequence=self._consequence,
            stderr=error.stderr,
        )


class Finished(msgspec.Struct, frozen=True):
    """
    The result of a process that ended with exit status 0.

    @ivar output: Its whole standard output; empty if that is ignored.
    @ivar stderr: The last part of its standard error.
    """

    output: bytes
    stderr: str


class CommandRuns:
    """
    Runs a command once for each event, a few at a time.

    The number of waiting runs is not limited: callers wait for their results.
    """

    def __init__(
        self,
        children: Children,
        clock: IReactorTime,
        command: Command,
        limits: CommandLimits,
        max_output: int,
    ) -> None:
        """
        @param children: The processes of the command.
        @param clock: The clock of the time limit.
        @param command: The command.
        @param limits: The limits of its processes.
        @param max_output: The most bytes of a run's output; a run with more fails. With
            C{0}, the output is ignored, and not limited.
        """
        self._children = children
        self._clock = clock
        self._command = command
        self._limits = limits
        self._max_output = max_output
        self._waiting: deque[tuple[Sequence[bytes], bytes, Deferred[Finished]]] = deque()
        self._running = 0
        self._starting = False

    def run(self, argv: Sequence[bytes], line: bytes) -> Deferred[Finished]:
        """
        Run the command once.

        @param argv: The command line.
        @param line: The whole standard input.
        @return: Fires when the process has ended with exit status 0; fails with
            L{CommandFailed} otherwise.
        """
        result: Deferred[Finished] = Deferred()
        self._waiting.append((argv, line, result))
        self._start()
        return result

    def stop(self) -> None:
        """
        Fail the waiting runs. The owner of the L{Children} ends the running processes.
        """
        waiting, self._waiting = self._waiting, deque()
        for *_, result in waiting:
            result.errback(self._failed("stopped before it was run"))

    def _failed(self, reason: str, stderr: str = "") -> CommandFailed:
        return CommandFailed(self._command.program, reason, stderr)

    def _start(self) -> None:
        if self._starting:
            # A callback has added a run: the loop below starts it, without recursion.
            return
        self._starting = True
        try:
            while self._waiting and self._running < self._limits.concurrency:
                self._spawn(*self._waiting.popleft())
        finally:
            self._starting = False

    def _spawn(self, argv: Sequence[bytes], line: bytes, result: Deferred[Finished]) -> None:
        output = bytearray()

        def received(data: bytes) -> None:
            if self._max_output and not result.called:
                output.extend(data)
                if len(output) > self._max_output:
                    give_up(f"more than {self._max_output} bytes of output")

        def give_up(reason: str) -> None:
            output.clear()
            if not result.called:
                result.errback(self._failed(reason, child.stderr))
            child.end()

        def ended(exit_: Exit) -> None:
            self._running -= 1
            if timer.active():
                timer.cancel()
            if not result.called:
                if exit_.clean:
                    result.callback(Finished(bytes(output), exit_.stderr))
                else:
                    result.errback(self._failed(str(exit_), exit_.stderr))
            self._start()

        try:
            # The end of its input ends it, if this process is killed; a launch would cost
            # more than most commands do.
            child = self._children.spawn(
                argv,
                ended,
                executable=self._command.executable,
                received=received,
                bound=False,
            )
        except OSError as e:
            result.errback(self._failed(f"cannot be started: {e.strerror or e}"))
            return
        self._running += 1
        limit = self._limits.timeout
        timer = self._clock.callLater(limit, give_up, f"not finished after {limit:g} s")
        child.write(line)
        child.close_input()


class CommandStream:
    """
    One process that gets a line for each event. It is started when there is an event for it;
    after a failure, with increasing delays.

    The standard input of a process that is not bound to this one ends when this one does.
    """

    def __init__(
        self,
        children: Children,
        clock: IReactorTime,
        command: Command,
        limits: CommandLimits,
        failure_log: FailureLog,
    ) -> None:
        """
        @param children: The processes of the command.
        @param clock: The clock of the limits.
        @param command: The command, without placeholders.
        @param limits: The limits of the process.
        @param failure_log: Logs its failures.
        """
        self._children = children
        self._clock = clock
        self._command = command
        self._limits = limits
        self._failure_log = failure_log
        self._backoff = BackOff(clock, self._feed)
        self._child: Child | None = None
        self._timer: IDelayedCall | None = None

    def _feed(self) -> None:
        """
        Write the lines that wait, if the process can take them; start it if necessary.
        """
        raise NotImplementedError

    def _ended(self, exit_: Exit) -> None:
        """
        Handle the end of the process.
        """
        raise NotImplementedError

    def _failed(self, error: CommandFailed) -> None:
        """
        Delay the next start.
        """
        self._failure_log.add(error)
        self._backoff.failed()

    def _start(self, **callbacks: Any) -> bool:
        """
        Start the process.

        @param callbacks: Further arguments of L{Children.spawn}.
        @return: Whether it could be started.
        """
        try:
            self._child = self._children.spawn(
                self._command.argv("", MatchType.LIVE),
                self._ended,
                executable=self._command.executable,
                **callbacks,
            )
        except OSError as e:
            reason = f"cannot be started: {e.strerror or e}"
            self._failed(CommandFailed(self._command.program, reason))
            return False
        return True

    def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """
        Replace the time limit of the process.
        """
        self._cancel_timer()
        self._timer = self._clock.callLater(seconds, call)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def stop(self) -> None:
        """
        Give no more lines to the process. The owner of the L{Children} ends it.
        """
        self._backoff.cancel()
        self._cancel_timer()
        if self._child is not None:
            self._child.disown()
            self._child = None


StreamType = TypeVar("StreamType", bound=CommandStream)


class CommandService(Service, Generic[StreamType]):
    """
    A configured command, which gets each event in a process of its own, or all of them in one
    process that keeps running.

    @cvar stream_type: The class of the process that keeps running.
    @cvar consequence: The consequence of a failure for the events, for the log.
    @cvar max_output: The most bytes of a run's output; see L{CommandRuns}.
    @cvar reads_on: Whether a stopped stream has time to read its input to the end.
    """

    stream_type: type[StreamType]
    consequence: str
    max_output = 0
    reads_on = False

    _log = Logger()

    def __init__(
        self,
        command: Command,
        reactor: IReactorProcess,
        clock: IReactorTime,
        stream: bool = False,
        limits: CommandLimits = DEFAULT_LIMITS,
    ) -> None:
        """
        @param command: The command; without placeholders, if it is a stream.
        @param reactor: The reactor that starts the processes.
        @param clock: The clock of the limits.
        @param stream: Whether one process gets many events.
        @param limits: The limits of the processes.
        """
        self._command = command
        self._children = Children(reactor, clock, f"Command {command.program}", limits.patience)
        self._failure_log = FailureLog(self._log, clock, self.consequence)
        self._runs = CommandRuns(self._children, clock, command, limits, self.max_output)
        self._stream: StreamType | None = None
        if stream:
            self._stream = self.stream_type(
                self._children, clock, command, limits, self._failure_log
            )
        self._grace = limits.patience if stream and self.reads_on else 0.0

    def stopService(self) -> Deferred[None]:
        """
        Resolve the waiting events, and end the processes.

        @return: Fires when all processes have ended.
        """
        super().stopService()
        self._runs.stop()
        if self._stream is not None:
            self._stream.stop()
        return self._children.stop(self._grace)
