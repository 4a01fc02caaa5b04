"""
Commands and services that run as child processes.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Any

from twisted.internet.defer import (
    Deferred,
    FirstError,
    TimeoutError,
    fail,
    gatherResults,
    succeed,
)
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

import tbvast
from tbvast.bus_client.manage_client import ManageClient
from tbvast.errors import TbvastError
from tbvast.protocol.manage import decode_reply, encode_status
from tbvast.service.child_process import Child, ChildOwner, Children, Exit, ending_signals
from tbvast.service.lines import LineBuffer
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


POLL_SECONDS = 0.05
"""
The time between two looks at a condition.
"""


def shell_status(exit_: Exit) -> int:
    """
    The exit status as a shell has it: 128 plus the number of the signal, if one ended the process.
    """
    return exit_.code if exit_.code is not None else 128 + (exit_.signal or 0)


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


class RunningCommand(ChildOwner):
    """
    A command that runs as a child process and does not outlive this process.

    @ivar lines: The last lines of its standard output and error.
    @ivar status: Its exit status, or 128 plus the number of the signal that ended it;
        L{None} while it runs.
    @ivar child: The process, once it was started.
    """

    def __init__(
        self, reactor: Any, name: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        @param name: The name of the command in errors.
        @param environment: Variables that replace or extend those of this process.
        """
        self.name = name
        self.lines: list[str] = []
        self.status: int | None = None
        self._reactor = reactor
        self._environment = environment or {}
        self._children = Children(reactor, reactor, name, STOP_TIMEOUT_SECONDS)
        self._unfinished = LineBuffer()
        self._line_waiters: list[tuple[str, int, Deferred[str]]] = []
        self._exit_waiters: list[Deferred[int]] = []
        self._exit: Exit | None = None
        self.child: Child

    def run(self, arguments: Sequence[str], stdin: bytes = b"") -> None:
        """
        Start the command.

        @param arguments: The program's path and its arguments.
        @param stdin: The whole standard input.
        @raise OSError: If it cannot be started.
        """
        self.child = self._children.spawn(
            arguments,
            self,
            environment={**own_environment(), **self._environment},
        )
        self.child.write(stdin)
        self.child.close_input()

    @property
    def pid(self) -> int:
        """
        The id of the process, while it runs.
        """
        transport: Any = self.child.transport
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
            return fail(self.failure())
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
        self.child.send_signal(Signals[f"SIG{name}"])

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
        return self._children.stop().addCallback(lambda _: self.status or 0)

    def received(self, data: bytes) -> None:
        for line in self._unfinished.add(data):
            self._add_line(line.decode("utf-8", "replace"))

    def complained(self, data: bytes) -> None:
        RunningCommand.received(self, data)

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

    def ended(self, exit_: Exit) -> None:
        self._exit = exit_
        self.status = shell_status(exit_)
        if rest := self._unfinished.take_rest():
            self._add_line(rest.decode("utf-8", "replace"))
        waiting, self._line_waiters = self._line_waiters, []
        for *_, awaited in waiting:
            awaited.errback(self.failure())
        ending, self._exit_waiters = self._exit_waiters, []
        for each in ending:
            each.callback(self.status)

    def failure(self) -> CommandEnded:
        """
        @return: The error of a command whose end was unexpected.
        """
        return CommandEnded(self.name, str(self._exit), self.output)


async def until(
    reactor: Any,
    condition: Callable[[], Any],
    limit: float = START_TIMEOUT_SECONDS,
) -> Any:
    """
    Wait until a condition is true.

    @param condition: Returns a true value, or an awaitable of one, when it is so.
    @param limit: The time limit, in seconds.
    @return: That value.
    @raise TimeoutError: If it does not become true in time.
    """
    deadline = reactor.seconds() + limit
    while True:
        found = condition()
        value = await found if isinstance(found, Awaitable) else found
        if value:
            return value
        if reactor.seconds() >= deadline:
            raise TimeoutError(f"not so within {limit:g} s: {value!r}")
        await deferLater(reactor, POLL_SECONDS)


def end_process(process: subprocess.Popen[bytes], patience: float = STOP_TIMEOUT_SECONDS) -> int:
    """
    End a process of a blocking caller, as L{RunningCommand.stop} does.

    @param patience: Seconds from SIGTERM to SIGKILL.
    @return: Its exit status.
    """
    for number, seconds in ending_signals((patience,)):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
    return process.wait()


def _unwrap_first_error(failure: Failure) -> Failure:
    if isinstance(failure.value, FirstError):
        return failure.value.subFailure
    return failure


def own_environment() -> dict[str, str]:
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

    def __init__(
        self,
        reactor: Any,
        state: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param state: The state directory; L{again} uses it too.
        @param options: Further command line options.
        @param environment: See L{RunningCommand}.
        """
        super().__init__(reactor, "tbvast-plugin", environment)
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
        other = RunningPlugin(
            self._reactor, self._state, *self._options, environment=self._environment
        )
        other.manage, other.pub, other.sub = self.manage, self.pub, self.sub
        return other


class RunningBridge(RunningCommand):
    """
    C{twistd tbvast-bridge} with an embedded engine on a free port.

    @ivar engine: The endpoint of the engine.
    @ivar client: The configuration file of the engine's clients; there once the bridge has started.
    """

    def __init__(
        self,
        reactor: Any,
        bus: HostPort,
        state: Path,
        *options: str,
        live: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        @param bus: The manage endpoint of the bus.
        @param state: The state directory, which contains that of the engine.
        @param options: Further command line options.
        @param live: Whether to match arriving events.
        @param environment: See L{RunningCommand}.
        """
        super().__init__(reactor, "tbvast-bridge", environment)
        self._bus = bus
        self._state = state
        self._options = options
        self._live = live
        self.engine = HostPort("127.0.0.1", free_ports(1)[0])
        self.client = state / "client" / "client.yaml"

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
            self._reactor,
            self._bus,
            self._state,
            *self._options,
            live=self._live,
            environment=self._environment,
        )
        other.engine = self.engine
        return other


def free_ports(count: int) -> list[int]:
    """
    Find free ports of the loopback address. The system gives none of them to a connection, so
    they stay free until a service listens.

    @return: Different ports on which nothing listens.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            break
    return found


_PORTS = range(20_000, 32_000)
"""
Ports below those that Linux gives to connections.
"""
