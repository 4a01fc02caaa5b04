"""
The supervisor of child processes: starts, reads, writes and ends them without blocking.

A worker thread cannot use the reactor, so a blocking caller has processes of another library.
It shares with L{Child} the launch (L{launch_command}) and the description of the end (L{Exit}).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IPullProducer, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.service import launch
from tbvast.service.retry_policy import doubling

MAX_STDERR_BYTES = 2048
"""
The most bytes of a child's standard error that are stored: the last ones.
"""

LINGER_SECONDS, REAP_SECONDS = 1.0, 5.0
"""
Seconds that the pipes of a child may stay open after its exit, if a process that it left behind
holds them; and the most that a blocking caller waits until a killed process is reaped.
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
    stderr: str = ""

    @classmethod
    def of(cls, status: int) -> Exit:
        """
        @param status: The exit status, or the negative number of a signal.
        """
        return cls(None, -status) if status < 0 else cls(status, None)

    @property
    def clean(self) -> bool:
        """
        Whether the process exited by itself with status 0.
        """
        return self.code == 0

    def __str__(self) -> str:
        if self.code is None:
            return f"ended with signal {self.signal}"
        return f"ended with exit status {self.code}"


def launch_command(
    path: str | bytes, arguments: Sequence[str | bytes], name: str | bytes | None = None
) -> list[bytes]:
    """
    @param path: The path of a program.
    @param arguments: Its arguments.
    @param name: The program's own name as it sees it; by default its path.
    @return: A command line that starts the program as a child which ends with this process.
    """
    own = sys.executable, "-I", "-S", launch.__file__, str(os.getpid())
    return [os.fsencode(word) for word in (*own, name or path, path, *arguments)]


def ending_signals(patience: Sequence[float]) -> Iterator[tuple[signal.Signals, float]]:
    """
    Yield the signals with which a blocking caller ends a process, each with the seconds to wait
    for its end before the next one.

    @param patience: Seconds after each SIGTERM; SIGKILL follows the last one.
    """
    for seconds in patience:
        yield signal.SIGTERM, seconds
    yield signal.SIGKILL, REAP_SECONDS


class ChildOwner:
    """
    Handles the events of a child; here by doing nothing.
    """

    def received(self, data: bytes) -> None:
        """
        Handle a chunk of the child's standard output.
        """

    def complained(self, data: bytes) -> None:
        """
        Handle a chunk of the child's standard error.
        """

    def drained(self) -> None:
        """
        Handle that everything written is in the child's pipe.
        """

    def input_closed(self) -> None:
        """
        Handle that the child has closed its standard input, or has ended.
        """

    def ended(self, exit_: Exit) -> None:
        """
        Handle that the child has been reaped and its output read. This is the last event.
        """


@implementer(IPullProducer)
@attrs.define(eq=False)
class Child(ProcessProtocol):
    """
    One process, from its start until it is reaped.

    @param owner: Handles its events.
    @param clock: The clock of the time limits.
    @param name: Its name in the log.
    @param patience: Seconds from SIGTERM to SIGKILL.
    @ivar reaped: Fires at the end, after the owner.
    """

    _log = Logger()

    _owner: ChildOwner
    _clock: IReactorTime
    _name: str
    _patience: float
    reaped: Deferred[None] = attrs.field(init=False, factory=Deferred)
    _stderr: bytes = attrs.field(init=False, default=b"")
    _reason: Failure | None = attrs.field(init=False, default=None)
    _finished: bool = attrs.field(init=False, default=False)
    _written: bool = attrs.field(init=False, default=False)
    _input_open: bool = attrs.field(init=False, default=True)
    _terminated: bool = attrs.field(init=False, default=False)
    _timer: IDelayedCall | None = attrs.field(init=False, default=None)

    @property
    def stderr(self) -> str:
        """
        The last part of the process's standard error, so far.
        """
        return self._stderr.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """
        Write to the process's standard input. Ignored once it is closed.
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

    def disown(self) -> None:
        """
        Report nothing more to the owner of the process.
        """
        self._owner = ChildOwner()

    def send_signal(self, number: int) -> None:
        """
        Send a signal; to a process that has ended, none is sent.
        """
        with suppress(ProcessExitedAlready):
            self._pipes.signalProcess(number)

    def _terminate(self) -> None:
        self._terminated = True
        self._timer = self._clock.callLater(self._patience, self._kill)
        self.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        text = "{name} has not ended after {limit:g} s; killing it."
        self._log.warn(text, name=self._name, limit=self._patience)
        self.send_signal(signal.SIGKILL)

    @property
    def _pipes(self) -> Any:
        # Twisted's transport is also a consumer, which IProcessTransport does not declare.
        return self.transport

    def connectionMade(self) -> None:
        self._pipes.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self._written:  # and now it is in the pipe
            self._written = False
            self._owner.drained()

    def stopProducing(self) -> None:
        """
        Do nothing: L{inConnectionLost} follows.
        """

    def outReceived(self, data: bytes) -> None:
        if not self._finished:
            self._owner.received(data)

    def errReceived(self, data: bytes) -> None:
        if not self._finished:
            self._stderr = (self._stderr + data)[-MAX_STDERR_BYTES:]
            self._owner.complained(data)

    def inConnectionLost(self) -> None:
        if self._input_open:
            self._input_open = False
            self._owner.input_closed()

    def processExited(self, reason: Failure) -> None:
        self._reason = reason
        self._cancel()
        self._timer = self._clock.callLater(LINGER_SECONDS, self._close_pipes)

    def processEnded(self, reason: Failure) -> None:
        self._finish()

    def _close_pipes(self) -> None:
        self._pipes.loseConnection()
        self._finish()

    def _finish(self) -> None:
        if self._finished or self._reason is None:
            return
        self._finished = True
        self._input_open = False
        self._cancel()
        status: Any = self._reason.value
        try:
            self._owner.ended(Exit(status.exitCode, status.signal, self.stderr))
        finally:
            self.reaped.callback(None)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


@attrs.define(eq=False)
class Children:
    """
    The processes that one owner has started and that have not been reaped yet.

    @param reactor: The reactor that starts them.
    @param clock: The clock of the time limits.
    @param name: The name of each process in the log.
    @param patience: Seconds from SIGTERM to SIGKILL.
    """

    _reactor: IReactorProcess
    _clock: IReactorTime
    _name: str
    _patience: float
    _running: set[Child] = attrs.field(init=False, factory=set)

    def spawn(
        self,
        argv: Sequence[str | bytes],
        owner: ChildOwner,
        *,
        executable: str | bytes | None = None,
        bound: bool = True,
        environment: Mapping[str, str] | None = None,
        descriptors: Mapping[int, int] | None = None,
    ) -> Child:
        """
        Start a process in this one's working directory.

        @param argv: The command line.
        @param owner: Handles the events of the process.
        @param executable: The path of the program; by default its name.
        @param bound: Whether the process dies with this one, however this one ends. Otherwise
            it can read its standard input to the end before it ends.
        @param environment: Its environment; by default that of this process.
        @param descriptors: The process's descriptors, each with the one of this process that
            it inherits as such, in place of three pipes.
        @raise OSError: If the process cannot be started.
        """
        name, *arguments = argv
        path = executable or name
        command = launch_command(path, arguments, name) if bound else list(map(os.fsencode, argv))
        program = command[0] if bound else os.fsencode(path)
        child = Child(owner, self._clock, self._name, self._patience)
        self._reactor.spawnProcess(child, program, command, env=environment, childFDs=descriptors)
        self._running.add(child)
        child.reaped.addCallback(lambda _: self._running.discard(child))
        return child

    def stop(self, grace: float = 0.0) -> Deferred[None]:
        """
        End all processes.

        @param grace: Seconds from the closing of their input to SIGTERM.
        @return: Fires when all have been reaped.
        """
        ending = list(self._running)
        for child in ending:
            child.end(grace)
        return gatherResults([child.reaped for child in ending]).addCallback(lambda _: None)


@attrs.define(eq=False)
class BackOff:
    """
    Delays the next attempt after a failure. The delay doubles up to the maximum.

    @cvar MAX_SECONDS: The longest delay.
    @param clock: The clock of the delay.
    @param again: Called after each delay, for the next attempt.
    @param first: The first delay, in seconds.
    @ivar failures: The number of failures in a row.
    """

    MAX_SECONDS = 30.0

    _clock: IReactorTime
    _again: Callable[[], None]
    _first: float = 1.0
    _timer: IDelayedCall | None = attrs.field(init=False, default=None)
    failures: int = attrs.field(init=False, default=0)

    @property
    def waiting(self) -> bool:
        """
        Whether the delay has not elapsed yet.
        """
        return self._timer is not None and self._timer.active()

    def failed(self) -> float:
        """
        Begin a delay, longer than the last one.

        @return: The delay, in seconds.
        """
        self.cancel()
        delay = doubling(self._first, self.MAX_SECONDS)(self.failures)
        self._timer = self._clock.callLater(delay, self._again)
        self.failures += 1
        return delay

    def succeeded(self) -> None:
        """
        Begin with the first delay again.
        """
        self.failures = 0

    def cancel(self) -> None:
        """
        Cancel the delay.
        """
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
