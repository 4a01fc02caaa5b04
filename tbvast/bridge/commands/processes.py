"""
The processes of the configured commands, one for each event or for many, and their input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import attrs
import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger

from tbvast.bridge.commands.command_line import Command
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.service.child_process import BackOff, Child, ChildOwner, Children, Exit
from tbvast.service.rate_limit import RateLimit
from tbvast.stix.sightings import MatchType

STOPPED = "stopped before it took the event"

WRITE_BYTES = 64 * 1024
"""
About the most bytes that are written at once: the capacity of a pipe.
"""


PATIENCE_SECONDS = 5.0
"""
Seconds from SIGTERM to SIGKILL, and before SIGTERM for a sink that keeps running.
"""

Finished = tuple[bytes, str]
"""
The result of a process that ended with exit status 0: its whole standard output, empty if that
is ignored, and the last part of its standard error.
"""

StreamType = TypeVar("StreamType", bound="CommandStream")


class CommandService(Service, Generic[StreamType]):
    """
    A configured command that gets each event in a process of its own, or all in one.

    The number of waiting events is not limited: callers wait for their results.

    @cvar stream_type: The class of the process that keeps running.
    @cvar consequence: The consequence of a failure for the events, for the log.
    @cvar max_output: The most bytes of a run's output; a run with more fails. With C{0}, the
        output is ignored, and not limited.
    @cvar reads_on: Whether a stopped stream has time to read its input to the end.
    @cvar TIMEOUT_SECONDS: The most seconds for one run, or for an answer. For a sink that keeps
        running: seconds without progress after which a warning is logged.
    @cvar MAX_PROCESSES: The most processes at a time, if each gets one event.
    @ivar stream: The process that keeps running, if there is one for all events.
    """

    TIMEOUT_SECONDS, MAX_PROCESSES = 10.0, 4

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
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """
        @param command: The command; without placeholders, if it is a stream.
        @param stream: Whether one process gets many events.
        @param patience: As L{PATIENCE_SECONDS}.
        """
        self.command = command
        self.clock = clock
        self.children = Children(reactor, clock, f"Command {command.program}", patience)
        self._patience = patience
        self.stream = self.stream_type(self) if stream else None
        self._log_limit = RateLimit(clock, 1)
        self._unlogged = 0
        self._waiting: deque[tuple[Sequence[bytes], bytes, Deferred[Finished]]] = deque()
        self._running = 0
        self._starting = False

    def stopService(self) -> Deferred[None]:
        """
        Resolve the waiting events, and end the processes.

        @return: Fires when all processes have ended.
        """
        super().stopService()
        waiting, self._waiting = self._waiting, deque()
        for *_, result in waiting:
            result.errback(self.failure(STOPPED))
        if self.stream is not None:
            self.stream.stop()
        reads_on = self.stream is not None and self.reads_on
        return self.children.stop(self._patience if reads_on else 0.0)

    def failure(self, reason: str, stderr: str = "") -> CommandFailed:
        return CommandFailed(self.command.program, reason, stderr)

    def log_failure(self, error: CommandFailed) -> None:
        """
        Log the first failure at once, then one a minute, with the number since the last line.
        """
        self._unlogged += 1
        if not self._log_limit.allows():
            return
        failures, self._unlogged = self._unlogged, 0
        self._log.warn(
            "Command {program} failed ({failures} new failures): {reason}; {consequence}.",
            program=error.program,
            failures=failures,
            reason=error.reason,
            consequence=self.consequence,
            stderr=error.stderr,
        )

    def run(self, argv: Sequence[bytes], line: bytes) -> Deferred[Finished]:
        """
        Run the command once.

        @param line: The whole standard input.
        @return: Fires at the end with exit status 0; fails with L{CommandFailed} otherwise.
        """
        result: Deferred[Finished] = Deferred()
        self._waiting.append((argv, line, result))
        self._start()
        return result

    def _start(self) -> None:
        if self._starting:
            # A callback has added a run: the loop below starts it, without recursion.
            return
        self._starting = True
        try:
            while self._waiting and self._running < self.MAX_PROCESSES:
                self._spawn(*self._waiting.popleft())
        finally:
            self._starting = False

    def _spawn(self, argv: Sequence[bytes], line: bytes, result: Deferred[Finished]) -> None:
        run = _Run(self, result)
        try:
            # The end of its input ends it, if this process is killed; a launch would cost
            # more than most commands do.
            run.child = self.children.spawn(
                argv, run, executable=self.command.executable, bound=False
            )
        except OSError as e:
            result.errback(self.failure(f"cannot be started: {e.strerror or e}"))
            return
        self._running += 1
        limit = self.TIMEOUT_SECONDS
        run.timer = self.clock.callLater(limit, run.give_up, f"not finished after {limit:g} s")
        run.child.write(line)
        run.child.close_input()

    def run_ended(self) -> None:
        """
        Start the next run.
        """
        self._running -= 1
        self._start()


@attrs.define(eq=False)
class _Run(ChildOwner):
    """
    One run of a command.
    """

    _service: CommandService[Any]
    _result: Deferred[Finished]
    _output: bytearray = attrs.field(init=False, factory=bytearray)
    child: Child = attrs.field(init=False)
    timer: IDelayedCall = attrs.field(init=False)

    def received(self, data: bytes) -> None:
        most = self._service.max_output
        if most and not self._result.called:
            self._output += data
            if len(self._output) > most:
                self.give_up(f"more than {most} bytes of output")

    def give_up(self, reason: str) -> None:
        self._output.clear()
        if not self._result.called:
            self._result.errback(self._service.failure(reason, self.child.stderr))
        self.child.end()

    def ended(self, exit_: Exit) -> None:
        if self.timer.active():
            self.timer.cancel()
        if not self._result.called:
            if exit_.clean:
                self._result.callback((bytes(self._output), exit_.stderr))
            else:
                self._result.errback(self._service.failure(str(exit_), exit_.stderr))
        self._service.run_ended()


@attrs.define(eq=False, slots=False)
class CommandStream(ChildOwner):
    """
    One process that gets a line for each event. It is started when there is an event for it;
    after a failure, with increasing delays.
    """

    _service: CommandService[Any]
    _child: Child | None = attrs.field(init=False, default=None)
    _timer: IDelayedCall | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._timeout = self._service.TIMEOUT_SECONDS
        self._backoff = BackOff(self._service.clock, self._feed)

    def _feed(self) -> None:
        """
        Write the lines that wait, if the process can take them; start it if necessary.
        """
        raise NotImplementedError

    def _failed(self, reason: str, stderr: str = "") -> None:
        """
        Delay the next start.
        """
        self._service.log_failure(self._service.failure(reason, stderr))
        self._backoff.failed()

    def _start(self, bound: bool = True) -> bool:
        """
        Start the process.

        @return: Whether it could be started.
        """
        command = self._service.command
        try:
            self._child = self._service.children.spawn(
                command.argv("", MatchType.LIVE), self, executable=command.executable, bound=bound
            )
        except OSError as e:
            self._failed(f"cannot be started: {e.strerror or e}")
            return False
        return True

    def _call_later(self, seconds: float, call: Callable[..., None], *arguments: str) -> None:
        self._cancel_timer()
        self._timer = self._service.clock.callLater(seconds, call, *arguments)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def stop(self) -> None:
        """
        Give no more lines to the process. The service ends it.
        """
        self._backoff.cancel()
        self._cancel_timer()
        if self._child is not None:
            self._child.disown()
            self._child = None


def encode_line(program: str, event: dict[str, Any]) -> bytes:
    """
    Encode an event as one line of JSON.

    @raise CommandRefused: If the event has no JSON form.
    """
    try:
        return msgspec.json.encode(event) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise CommandRefused(program, "an event that has no JSON form") from None


class LineQueue:
    """
    The lines that wait for a pipe, which are written in batches.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, Deferred[None]]] = deque()
        self._writing: list[tuple[bytes, Deferred[None]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._writing)

    def add(self, line: bytes) -> Deferred[None]:
        """
        Append a line.

        @return: Fires when the line is in the pipe.
        """
        taken: Deferred[None] = Deferred()
        self._waiting.append((line, taken))
        return taken

    def next_batch(self) -> bytes:
        """
        @return: The bytes to write now; empty while the previous batch is not in the pipe.
        """
        if self._writing:
            return b""
        size = 0
        while self._waiting and size < WRITE_BYTES:
            line = self._waiting.popleft()
            self._writing.append(line)
            size += len(line[0])
        return b"".join(data for data, _ in self._writing)

    def taken(self) -> None:
        """
        Note that the whole batch is in the pipe.
        """
        batch, self._writing = self._writing, []
        for _, taken in batch:
            taken.callback(None)

    def put_back(self) -> None:
        """
        Note that the batch was not written completely: its lines wait again.
        """
        self._waiting.extendleft(reversed(self._writing))
        self._writing = []

    def fail(self, program: str, reason: str) -> None:
        """
        Fail all lines.
        """
        self.put_back()
        lines, self._waiting = self._waiting, deque()
        for _, taken in lines:
            taken.errback(CommandFailed(program, reason))
