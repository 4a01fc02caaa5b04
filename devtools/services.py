"""
Commands and services that run as child processes.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, FirstError, fail, gatherResults, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

import tbvast
from tbvast.bus_client.manage_client import ManageClient
from tbvast.engines.binaries import Program, launch_command
from tbvast.errors import TbvastError
from tbvast.protocol.manage import decode_reply, encode_status
from tbvast.values import HostPort
from tbvast.zeromq.sockets import Factory

MAX_OUTPUT_LINES = 200
"""
The maximum number of lines kept of a command's output.
"""

START_TIMEOUT_SECONDS = 30.0
"""
Time limit for a service to become ready.
"""

STOP_TIMEOUT_SECONDS = 15.0
"""
The time from SIGTERM to SIGKILL.
"""


class CommandEnded(TbvastError):
    """
    A command ended, or exceeded a time limit.

    @ivar name: The name of the command.
    @ivar reason: The event, a verb phrase that follows the name.
    @ivar output: The end of its output.
    """

    def __init__(self, name: str, reason: str, output: str) -> None:
        super().__init__(name, reason, output)
        self.name = name
        self.reason = reason
        self.output = output

    def __str__(self) -> str:
        last = self.output.strip().splitlines()[-1:]
        return f"{self.name} {self.reason}" + (f": {last[0]}" if last else "")


class RunningCommand(ProcessProtocol):
    """
    A command that runs as a child process and does not outlive this process.

    @ivar lines: The last lines of its standard output and error.
    @ivar status: Its exit status, or 128 plus the number of the signal that ended it;
        L{None} while it runs.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """
        @param name: The name of the command in errors.
        """
        self.name = name
        self.lines: list[str] = []
        self.status: int | None = None
        self._reactor = reactor
        self._unfinished = b""
        self._line_waiters: list[tuple[str, int, Deferred[str]]] = []
        self._exit_waiters: list[Deferred[int]] = []

    def run(
        self,
        arguments: Sequence[str],
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Start the command.

        @param arguments: The program's path and its arguments.
        @param stdin: The whole standard input.
        @param environment: Variables that replace or extend those of this process.
        @raise OSError: If it cannot be started.
        """
        program, *rest = arguments
        command = launch_command(Program(program, program), rest)
        self._reactor.spawnProcess(
            self, command[0], command, env={**_environment(), **(environment or {})}
        )
        transport: Any = self.transport
        transport.write(stdin)
        transport.closeStdin()

    @property
    def pid(self) -> int:
        """
        The id of the process, while it runs.
        """
        transport: Any = self.transport
        return int(transport.pid)

    @property
    def output(self) -> str:
        """
        The end of its output, as one text.
        """
        return "\n".join(self.lines)

    def saw(self, text: str, limit: float = START_TIMEOUT_SECONDS, times: int = 1) -> Deferred[str]:
        """
        Wait for a line of output.

        @param text: A part of the line.
        @param limit: The time limit, in seconds.
        @param times: The number of such lines to wait for, with those already written.
        @return: Fires with the last of them; fails with L{CommandEnded}.
        """
        lines = [line for line in self.lines if text in line]
        if len(lines) >= times:
            return succeed(lines[times - 1])
        if self.status is not None:
            return fail(self._ended())
        waiting: Deferred[str] = Deferred()
        self._line_waiters.append((text, times - len(lines), waiting))

        def too_late(result: Any, seconds: float) -> Any:
            reason = f"did not write {text!r} within {seconds:g} s"
            raise CommandEnded(self.name, reason, self.output)

        return waiting.addTimeout(limit, self._reactor, onTimeoutCancel=too_late)

    def signal(self, name: str) -> None:
        """
        Send a signal; to a process that has ended, none is sent.

        @param name: E.g. C{"TERM"}.
        """
        transport: Any = self.transport
        try:
            transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def wait(self) -> Deferred[int]:
        """
        Wait for the end of the process.

        @return: Fires with its exit status.
        """
        if self.status is not None:
            return succeed(self.status)
        ending: Deferred[int] = Deferred()
        self._exit_waiters.append(ending)
        return ending

    def stop(self) -> Deferred[int]:
        """
        End the process with SIGTERM, and after a time limit with SIGKILL.

        @return: Fires with its exit status.
        """
        if self.status is not None or self.transport is None:
            return succeed(self.status or 0)
        self.signal("TERM")
        late = self._reactor.callLater(STOP_TIMEOUT_SECONDS, self.signal, "KILL")

        def ended(status: int) -> int:
            if late.active():
                late.cancel()
            return status

        return self.wait().addCallback(ended)

    def outReceived(self, data: bytes) -> None:
        *whole, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in whole:
            self._add_line(line.decode("utf-8", "replace"))

    errReceived = outReceived

    def _add_line(self, line: str) -> None:
        self.lines.append(line)
        del self.lines[:-MAX_OUTPUT_LINES]
        waiting, self._line_waiters = self._line_waiters, []
        for awaited, times, seen in waiting:
            left = times - (awaited in line)
            if left:
                self._line_waiters.append((awaited, left, seen))
            else:
                seen.callback(line)

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self.status = value.exitCode if value.signal is None else 128 + value.signal
        if self._unfinished:
            self._add_line(self._unfinished.decode("utf-8", "replace"))
        waiting, self._line_waiters = self._line_waiters, []
        for *_, awaited in waiting:
            awaited.errback(self._ended())
        ending, self._exit_waiters = self._exit_waiters, []
        for ended in ending:
            ended.callback(self.status)

    def _ended(self) -> CommandEnded:
        return CommandEnded(self.name, f"ended with exit status {self.status}", self.output)


def _unwrap_first_error(failure: Failure) -> Failure:
    if isinstance(failure.value, FirstError):
        return failure.value.subFailure
    return failure


def _environment() -> dict[str, str]:
    """
    The environment of this process, with a path on which a child finds the same tbvast.
    """
    paths = [str(Path(tbvast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def twistd(*arguments: str) -> list[str]:
    """
    The command line that runs a service in the foreground.
    """
    beside = Path(sys.executable).with_name("twistd")
    command = str(beside) if beside.exists() else shutil.which("twistd") or "twistd"
    return [command, "--nodaemon", "--pidfile=", *arguments]


class RunningPlugin(RunningCommand):
    """
    C{twistd tbvast-plugin} on free ports of the loopback address.

    @ivar manage: The manage endpoint.
    @ivar pub: The pub endpoint.
    @ivar sub: The sub endpoint.
    """

    def __init__(self, reactor: Any, state: Path, *options: str) -> None:
        """
        @param state: The state directory; L{again} uses it too.
        @param options: Further command line options.
        """
        super().__init__(reactor, "tbvast-plugin")
        self._state = state
        self._options = options
        self.manage, self.pub, self.sub = (HostPort("127.0.0.1", port) for port in free_ports(3))

    def start(self) -> Deferred[Any]:
        """
        Start the service.

        @return: Fires when it answers requests; fails with L{CommandEnded}.
        """
        self.run(
            twistd(
                "tbvast-plugin",
                f"--state-dir={self._state}",
                *(f"--{name}={getattr(self, name).port}" for name in ("manage", "pub", "sub")),
                *self._options,
            )
        )
        return self.saw("The bus is ready").addCallback(lambda _: self.ask(encode_status()))

    def ask(self, request: bytes) -> Deferred[dict[str, Any]]:
        """
        Send a request to the manage endpoint.

        @return: Fires with the reply.
        """
        factory = Factory(self._reactor)

        def answered(result: Any) -> Any:
            factory.shutdown()
            return result

        client = ManageClient(self._reactor, factory, self.manage)
        return client.ask(request).addBoth(answered).addCallback(decode_reply)

    def again(self) -> RunningPlugin:
        """
        Prepare a restart.

        @return: A plugin with the same ports and state, to be started after the end of
            this one.
        """
        other = RunningPlugin(self._reactor, self._state, *self._options)
        other.manage, other.pub, other.sub = self.manage, self.pub, self.sub
        return other


class RunningBridge(RunningCommand):
    """
    C{twistd tbvast-bridge} with an embedded engine on a free port.

    @ivar engine: The endpoint of the engine.
    """

    def __init__(
        self, reactor: Any, bus: HostPort, state: Path, *options: str, live: bool = True
    ) -> None:
        """
        @param bus: The manage endpoint of the bus.
        @param state: The state directory, which contains that of the engine.
        @param options: Further command line options.
        @param live: Whether to match arriving events.
        """
        super().__init__(reactor, "tbvast-bridge")
        self._bus = bus
        self._state = state
        self._options = options
        self._live = live
        self.engine = HostPort("127.0.0.1", free_ports(1)[0])

    def start(self) -> Deferred[Any]:
        """
        Start the service.

        @return: Fires when it has subscribed and its engine matches; fails with
            L{CommandEnded}.
        """
        self.run(
            twistd(
                "tbvast-bridge",
                f"--threatbus={self._bus}",
                f"--state-dir={self._state}",
                f"--vast-listen={self.engine}",
                f"--live-match={'yes' if self._live else 'no'}",
                *self._options,
            )
        )
        signs = ["Subscribed to", "is ready: "]
        if self._live:
            signs.append("The live match is running")
        seen = gatherResults([self.saw(sign) for sign in signs], consumeErrors=True)
        return seen.addErrback(_unwrap_first_error)

    def again(self) -> RunningBridge:
        """
        Prepare a restart.

        @return: A bridge with the same engine and state, to be started after the end of
            this one.
        """
        other = RunningBridge(
            self._reactor, self._bus, self._state, *self._options, live=self._live
        )
        other.engine = self.engine
        return other


def free_ports(count: int) -> list[int]:
    """
    Find free ports of the loopback address.

    @return: Different ports on which nothing listens.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
