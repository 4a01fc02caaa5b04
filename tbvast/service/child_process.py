"""
Child processes that are fed, read and ended without blocking.
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

STDIN, STDOUT, STDERR = range(3)

STDERR_KEPT = 2048
"""
The most bytes of a child's standard error that are remembered: the last ones.
"""

LINGER = 1.0
"""
Seconds that the pipes of a child which has exited may stay open, held by a
process that it left behind.
"""


class Exit(msgspec.Struct, frozen=True):
    """
    How a process ended.

    @ivar code: Its exit status, or L{None} if a signal ended it.
    @ivar signal: The signal's number, or L{None} if it exited by itself.
    @ivar stderr: The end of what it said on standard error.
    """

    code: int | None
    signal: int | None
    stderr: str

    @property
    def clean(self) -> bool:
        """
        Whether it exited by itself with status 0.
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
        deaf: Callable[[], None],
    ) -> None:
        """
        @see: L{Children.spawn}
        """
        self._clock = clock
        self._kill_after = kill_after
        self._received = received
        self._ended = ended
        self._drained = drained
        self._deaf = deaf
        self._stderr = b""
        self._reason: Failure | None = None
        self._over = False
        self._fed = False
        self._open = True
        self._terminated = False
        self._timer: IDelayedCall | None = None

    @property
    def stderr(self) -> str:
        """
        The end of what the process said on standard error, so far.
        """
        return self._stderr.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """
        Give the process something to read; nothing once its input is closed.
        """
        if self._open:
            self._fed = True
            self._pipes.write(data)

    def close_input(self) -> None:
        """
        Close the process's standard input, after what was written to it.
        """
        if self._open:
            self._open = False
            self._pipes.unregisterProducer()
            self._pipes.closeStdin()

    def end(self, grace: float = 0.0) -> None:
        """
        End the process: close its input, then SIGTERM, then SIGKILL.

        @param grace: Seconds between the first and the second.
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
        # IProcessTransport does not know that Twisted's is also a consumer.
        return self.transport

    def connectionMade(self) -> None:
        self._pipes.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """
        Everything written so far has left for the pipe.
        """
        if self._fed:
            self._fed = False
            self._drained()

    def stopProducing(self) -> None:
        """
        The pipe is closed; L{inConnectionLost} follows.
        """

    def outReceived(self, data: bytes) -> None:
        if not self._over:
            self._received(data)

    def errReceived(self, data: bytes) -> None:
        self._stderr = (self._stderr + data)[-STDERR_KEPT:]

    def inConnectionLost(self) -> None:
        if self._open:
            self._open = False
            self._deaf()

    def processExited(self, reason: Failure) -> None:
        self._reason = reason
        self._cancel()
        self._timer = self._clock.callLater(LINGER, self._abandon)

    def processEnded(self, reason: Failure) -> None:
        self._finish()

    def _abandon(self) -> None:
        self._timer = None
        self._pipes.loseConnection()
        self._finish()

    def _finish(self) -> None:
        if self._over or self._reason is None:
            return
        self._over = True
        self._open = False
        self._cancel()
        status: Any = self._reason.value
        self._ended(Exit(status.exitCode, status.signal, self.stderr))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _ignore(*_: object) -> None:
    """
    For the callers that do not want to know.
    """


class Children:
    """
    The processes that one owner has started and that are not reaped yet.
    """

    def __init__(self, reactor: IReactorProcess, clock: IReactorTime, kill_after: float) -> None:
        """
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
        deaf: Callable[[], None] = _ignore,
    ) -> Child:
        """
        Start a process with this one's environment and directory.

        @param ended: Called once, when it was reaped and its output was read.
        @param received: Called with each piece of its standard output.
        @param drained: Called whenever all that was written is in its pipe.
        @param deaf: Called if it closes its standard input itself, or ends.
        @raise OSError: If it cannot be started.
        """

        def over(exit_: Exit) -> None:
            self._running.discard(child)
            ended(exit_)
            if not self._running:
                waiting, self._waiting = self._waiting, []
                for d in waiting:
                    d.callback(None)

        child = Child(self._clock, self._kill_after, received, over, drained, deaf)
        self._reactor.spawnProcess(child, executable, argv)
        self._running.add(child)
        return child

    def stop(self, grace: float = 0.0) -> Deferred[None]:
        """
        End all processes.

        @param grace: Seconds they have to end by themselves, once their input
            is closed.
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
    What came of a process that ended with exit status 0.

    @ivar output: All of its standard output, if it was to be kept.
    @ivar stderr: The end of its standard error.
    """

    output: bytes
    stderr: str


class _Job:
    """
    One run of a program: waiting, running, or over.
    """

    def __init__(self, argv: Sequence[bytes], line: bytes) -> None:
        self.argv = argv
        self.line = line
        self.output = bytearray()
        self.result: Deferred[Finished] | None = Deferred()
        self.child: Child | None = None
        self.timer: IDelayedCall | None = None

    def take_result(self) -> Deferred[Finished] | None:
        """
        @return: What is to be fired, the first time; L{None} afterwards.
        """
        result, self.result = self.result, None
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        return result


class OneShots:
    """
    Runs of one program, each for one input, a few at a time.

    Waiting runs are kept in memory without a limit: whoever adds them waits
    for their results.
    """

    def __init__(
        self,
        children: Children,
        clock: IReactorTime,
        program: str,
        executable: bytes,
        timeout: float,
        concurrency: int,
        kept: int,
    ) -> None:
        """
        @param program: The program's name for error messages.
        @param timeout: Seconds that one run may take.
        @param concurrency: The most processes at a time.
        @param kept: The most bytes of a run's output; one that says more
            fails. C{0} means that output is not wanted, and not limited.
        """
        self._children = children
        self._clock = clock
        self._program = program
        self._executable = executable
        self._timeout = timeout
        self._concurrency = concurrency
        self._kept = kept
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._starting = False
        self._stopped = False

    def run(self, argv: Sequence[bytes], line: bytes) -> Deferred[Finished]:
        """
        Run the program once.

        @param line: All of its standard input.
        @return: Fires when it has ended with exit status 0; fails with
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
        Fail what waits, and start nothing more. Running processes are the
        business of their L{Children}.
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
            # A callback added a run: the loop below takes it, not the stack.
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
            if self._kept == 0 or job.result is None:
                return
            job.output += data
            if len(job.output) > self._kept:
                self._give_up(job, f"more than {self._kept} bytes of output")

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
    How long to wait before trying again: twice as long each time.
    """

    FIRST = 1.0
    MOST = 30.0

    def __init__(self, clock: IReactorTime, again: Callable[[], None]) -> None:
        """
        @param again: Called when the wait is over.
        """
        self._clock = clock
        self._again = again
        self._timer: IDelayedCall | None = None
        self.failures = 0

    @property
    def waiting(self) -> bool:
        """
        Whether it is too early to try again.
        """
        return self._timer is not None

    def failed(self) -> None:
        """
        Wait, longer than the last time.
        """
        self.cancel()
        delay = min(self.MOST, self.FIRST * 2.0 ** min(self.failures, 16))
        self.failures += 1
        self._timer = self._clock.callLater(delay, self._over)

    def succeeded(self) -> None:
        """
        The next wait is a short one again.
        """
        self.failures = 0

    def cancel(self) -> None:
        """
        Wait no longer.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self) -> None:
        self._timer = None
        self._again()


class Output(FileDescriptor):
    """
    A descriptor of this process that is written to without ever waiting for
    its reader.

    It is not made non-blocking, for whoever shares it (a shell, the log) would
    suffer: it is written to only when it is ready, and then no more than a
    pipe that is ready takes at once. It is never closed.
    """

    connected = 1

    def __init__(self, reactor: IReactorFDSet, descriptor: int, lost: Callable[[], None]) -> None:
        """
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
