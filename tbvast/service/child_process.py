"""
Child processes: written to, read and ended without blocking.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IReactorFDSet,
    IReactorProcess,
    IReactorTime,
)
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.errors import CommandFailed
from tbvast.service.retry_policy import doubling

STDIN, STDOUT, STDERR = range(3)

MAX_STDERR_BYTES = 2048
"""
The most bytes of a child's standard error that are stored: the last ones.
"""

LINGER_SECONDS = 1.0
"""
Seconds that the pipes of a child may stay open after its exit, if a process that it left
behind holds them.
"""


class Exit(msgspec.Struct, frozen=True):
    """
    The end of a process.

    @ivar code: The exit status; C{None} if a signal ended the process.
    @ivar signal: The signal's number; C{None} if the process exited by itself.
    @ivar stderr: The last part of its standard error.
    """

    code: int | None
    signal: int | None
    stderr: str

    @property
    def clean(self) -> bool:
        """
        Whether the process exited by itself with status 0.
        """
        return self.code == 0

    def __str__(self) -> str:
        if self.code is None:
            return f"ended by signal {self.signal}"
        return f"ended with exit status {self.code}"


@implementer(IPullProducer)
class Child(ProcessProtocol):
    """
    One running process.
    """

    def __init__(
        self,
        clock: IReactorTime,
        kill_after: float,
        received: Callable[[bytes], None],
        ended: Callable[[Exit], None],
        drained: Callable[[], None],
        input_closed: Callable[[], None],
    ) -> None:
        """
        @see: L{Children.spawn}
        """
        self._clock = clock
        self._kill_after = kill_after
        self._received = received
        self._ended = ended
        self._drained = drained
        self._input_closed = input_closed
        self._stderr = b""
        self._reason: Failure | None = None
        self._finished = False
        self._written = False
        self._input_open = True
        self._terminated = False
        self._timer: IDelayedCall | None = None

    @property
    def stderr(self) -> str:
        """
        The last part of the process's standard error, so far.
        """
        return self._stderr.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """
        Write to the process's standard input. Ignored once it is closed.

        @param data: The bytes.
        """
        if self._input_open:
            self._written = True
            self._pipes.write(data)

    def close_input(self) -> None:
        """
        Close the process's standard input, after everything written so far.
        """
        if self._input_open:
            self._input_open = False
            self._pipes.unregisterProducer()
            self._pipes.closeStdin()

    def end(self, grace: float = 0.0) -> None:
        """
        End the process: close its input, then send SIGTERM, then SIGKILL.

        @param grace: Seconds from the closing to SIGTERM.
        """
        if self._terminated or self._reason is not None:
            return
        self.close_input()
        self._cancel()
        if grace > 0:
            self._timer = self._clock.callLater(grace, self._terminate)
        else:
            self._terminate()

    def _terminate(self) -> None:
        self._terminated = True
        self._timer = self._clock.callLater(self._kill_after, self._kill)
        self._signal("TERM")

    def _kill(self) -> None:
        self._timer = None
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self._pipes.signalProcess(name)

    @property
    def _pipes(self) -> Any:
        # Twisted's transport is also a consumer, which IProcessTransport does not declare.
        return self.transport

    def connectionMade(self) -> None:
        self._pipes.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """
        Report that everything written so far is in the pipe.
        """
        if self._written:
            self._written = False
            self._drained()

    def stopProducing(self) -> None:
        """
        Do nothing: L{inConnectionLost} follows.
        """

    def outReceived(self, data: bytes) -> None:
        if not self._finished:
            self._received(data)

    def errReceived(self, data: bytes) -> None:
        self._stderr = (self._stderr + data)[-MAX_STDERR_BYTES:]

    def inConnectionLost(self) -> None:
        if self._input_open:
            self._input_open = False
            self._input_closed()

    def processExited(self, reason: Failure) -> None:
        self._reason = reason
        self._cancel()
        self._timer = self._clock.callLater(LINGER_SECONDS, self._abandon)

    def processEnded(self, reason: Failure) -> None:
        self._finish()

    def _abandon(self) -> None:
        self._timer = None
        self._pipes.loseConnection()
        self._finish()

    def _finish(self) -> None:
        if self._finished or self._reason is None:
            return
        self._finished = True
        self._input_open = False
        self._cancel()
        status: Any = self._reason.value
        self._ended(Exit(status.exitCode, status.signal, self.stderr))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _ignore(*_: object) -> None:
    """
    Ignore an event of a child.
    """


class Children:
    """
    The processes that one owner has started and that have not been reaped yet.
    """

    def __init__(self, reactor: IReactorProcess, clock: IReactorTime, kill_after: float) -> None:
        """
        @param reactor: The reactor that starts them.
        @param clock: The clock of the time limits.
        @param kill_after: Seconds from SIGTERM to SIGKILL.
        """
        self._reactor = reactor
        self._clock = clock
        self._kill_after = kill_after
        self._running: set[Child] = set()
        self._waiting: list[Deferred[None]] = []

    def spawn(
        self,
        argv: Sequence[bytes],
        executable: bytes,
        ended: Callable[[Exit], None],
        received: Callable[[bytes], None] = _ignore,
        drained: Callable[[], None] = _ignore,
        input_closed: Callable[[], None] = _ignore,
    ) -> Child:
        """
        Start a process with this one's environment and working directory.

        @param argv: The command line.
        @param executable: The path of the program.
        @param ended: Called once, when the process has been reaped and its output read.
        @param received: Called with each chunk of its standard output.
        @param drained: Called whenever everything written is in its pipe.
        @param input_closed: Called if the process closes its standard input or ends.
        @raise OSError: If the process cannot be started.
        """

        def reaped(exit_: Exit) -> None:
            self._running.discard(child)
            ended(exit_)
            if not self._running:
                waiting, self._waiting = self._waiting, []
                for d in waiting:
                    d.callback(None)

        child = Child(self._clock, self._kill_after, received, reaped, drained, input_closed)
        self._reactor.spawnProcess(child, executable, argv)
        self._running.add(child)
        return child

    def stop(self, grace: float = 0.0) -> Deferred[None]:
        """
        End all processes.

        @param grace: Seconds from the closing of their input to SIGTERM.
        @return: Fires when all have been reaped.
        """
        if not self._running:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        for child in list(self._running):
            child.end(grace)
        return done


class Finished(msgspec.Struct, frozen=True):
    """
    The result of a process that ended with exit status 0.

    @ivar output: Its whole standard output; empty if that is ignored.
    @ivar stderr: The last part of its standard error.
    """

    output: bytes
    stderr: str


class _Job:
    """
    One run of a program: waiting, running or finished.
    """

    def __init__(self, argv: Sequence[bytes], line: bytes) -> None:
        """
        @param argv: The command line.
        @param line: The whole standard input.
        """
        self.argv = argv
        self.line = line
        self.output = bytearray()
        self.result: Deferred[Finished] | None = Deferred()
        self.child: Child | None = None
        self.timer: IDelayedCall | None = None

    def take_result(self) -> Deferred[Finished] | None:
        """
        Take the result of the run, once, and cancel the time limit.

        @return: The C{Deferred} to fire; C{None} if it was already taken.
        """
        result, self.result = self.result, None
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        return result


class OneShots:
    """
    Runs a program once for each input, a few at a time.

    The number of waiting runs is not limited: callers wait for their results.
    """

    def __init__(
        self,
        children: Children,
        clock: IReactorTime,
        program: str,
        executable: bytes,
        timeout: float,
        concurrency: int,
        max_output: int,
    ) -> None:
        """
        @param children: The processes of the owner.
        @param clock: The clock of the time limit.
        @param program: The program's name, for error messages.
        @param executable: Its path.
        @param timeout: The most seconds for one run.
        @param concurrency: The most processes at a time.
        @param max_output: The most bytes of a run's output; a run with more fails. With
            C{0}, the output is ignored, and not limited.
        """
        self._children = children
        self._clock = clock
        self._program = program
        self._executable = executable
        self._timeout = timeout
        self._concurrency = concurrency
        self._max_output = max_output
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._starting = False
        self._stopped = False

    def run(self, argv: Sequence[bytes], line: bytes) -> Deferred[Finished]:
        """
        Run the program once.

        @param argv: The command line.
        @param line: The whole standard input.
        @return: Fires when the program has ended with exit status 0; fails with
            L{CommandFailed} otherwise.
        """
        job = _Job(argv, line)
        result = job.result
        assert result is not None
        self._waiting.append(job)
        self._start()
        return result

    def stop(self) -> None:
        """
        Fail the waiting runs, and start no more. The owner of the L{Children} ends the
        running processes.
        """
        self._stopped = True
        self._start()

    def resume(self) -> None:
        """
        Start processes again after L{stop}.
        """
        self._stopped = False

    def _start(self) -> None:
        if self._starting:
            # A callback has added a run: the loop below starts it, without recursion.
            return
        self._starting = True
        try:
            while self._waiting and (self._stopped or self._running < self._concurrency):
                job = self._waiting.popleft()
                if self._stopped:
                    self._fail(job, "stopped before it was run")
                else:
                    self._spawn(job)
        finally:
            self._starting = False

    def _spawn(self, job: _Job) -> None:
        def received(data: bytes) -> None:
            if self._max_output == 0 or job.result is None:
                return
            job.output += data
            if len(job.output) > self._max_output:
                self._give_up(job, f"more than {self._max_output} bytes of output")

        def ended(exit_: Exit) -> None:
            self._running -= 1
            if exit_.clean:
                result = job.take_result()
                if result is not None:
                    result.callback(Finished(bytes(job.output), exit_.stderr))
            else:
                self._fail(job, str(exit_), exit_.stderr)
            self._start()

        try:
            child = self._children.spawn(job.argv, self._executable, ended, received)
        except OSError as e:
            self._fail(job, f"cannot be started: {e.strerror or e}")
            return
        self._running += 1
        job.child = child
        job.timer = self._clock.callLater(
            self._timeout, self._give_up, job, f"not finished after {self._timeout:g} s"
        )
        child.write(job.line)
        child.close_input()

    def _give_up(self, job: _Job, reason: str) -> None:
        assert job.child is not None
        job.output.clear()
        self._fail(job, reason, job.child.stderr)
        job.child.end()

    def _fail(self, job: _Job, reason: str, stderr: str = "") -> None:
        result = job.take_result()
        if result is not None:
            result.errback(CommandFailed(self._program, reason, stderr))


class BackOff:
    """
    Delays the next attempt after a failure. The delay doubles up to the maximum.

    @cvar FIRST_SECONDS: The first delay.
    @cvar MAX_SECONDS: The longest delay.
    @ivar failures: The number of failures in a row.
    """

    FIRST_SECONDS = 1.0
    MAX_SECONDS = 30.0

    def __init__(self, clock: IReactorTime, again: Callable[[], None]) -> None:
        """
        @param clock: The clock of the delay.
        @param again: Called after each delay, for the next attempt.
        """
        self._clock = clock
        self._again = again
        self._delay = doubling(self.FIRST_SECONDS, self.MAX_SECONDS)
        self._timer: IDelayedCall | None = None
        self.failures = 0

    @property
    def waiting(self) -> bool:
        """
        Whether the delay has not elapsed yet.
        """
        return self._timer is not None

    def failed(self) -> None:
        """
        Begin a delay, longer than the last one.
        """
        self.cancel()
        self._timer = self._clock.callLater(self._delay(self.failures), self._elapsed)
        self.failures += 1

    def succeeded(self) -> None:
        """
        Begin with the first delay again.
        """
        self.failures = 0

    def cancel(self) -> None:
        """
        Cancel the delay.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed(self) -> None:
        self._timer = None
        self._again()


class Output(FileDescriptor):
    """
    Writes to a descriptor of this process without blocking.

    The descriptor is not made non-blocking, since that would affect the processes that share
    it, such as a shell. It is written to only when it is ready, and then no more than a ready
    pipe accepts at once. It is never closed.
    """

    connected = 1

    def __init__(self, reactor: IReactorFDSet, descriptor: int, lost: Callable[[], None]) -> None:
        """
        @param reactor: The reactor that watches the descriptor.
        @param descriptor: The descriptor.
        @param lost: Called when its reader has gone.
        """
        super().__init__(reactor)
        self._descriptor = descriptor
        self._lost = lost

    def fileno(self) -> int:
        return self._descriptor

    def writeSomeData(self, data: bytes) -> int | Exception:
        try:
            return os.write(self._descriptor, data[: select.PIPE_BUF])
        except BlockingIOError:
            return 0
        except OSError:
            return CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._lost()
