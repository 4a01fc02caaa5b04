"""
Commands that run as child processes, and are read, awaited and ended.
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
from tbvast.bus_client.subscription import ManageClient
from tbvast.engines.binaries import Program, launch_command
from tbvast.errors import TbvastError
from tbvast.protocol.manage import decode_reply, encode_status
from tbvast.settings import HostPort
from tbvast.zeromq.sockets import Factory

KEPT = 200
"""
The most lines of a command's output that are kept: the last ones.
"""

START_LIMIT = 30.0
"""
Seconds that a service has to become ready.
"""

STOP_LIMIT = 15.0
"""
Seconds from SIGTERM to SIGKILL.
"""


class CommandEnded(TbvastError):
    """
    A command ended, or did not do in time what was waited for.

    @ivar name: What the command is called.
    @ivar reason: What happened to it.
    @ivar output: The end of what it said.
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
    A command that runs as a child process, which does not outlive this one.

    @ivar lines: The last lines of its standard output and error.
    @ivar status: Its exit status, once it has ended: 128 and the signal's number
        if one ended it.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """
        @param name: What the command is called in errors.
        """
        self.name = name
        self.lines: list[str] = []
        self.status: int | None = None
        self._reactor = reactor
        self._rest = b""
        self._waiting: list[tuple[str, int, Deferred[str]]] = []
        self._ending: list[Deferred[int]] = []

    def run(
        self,
        arguments: Sequence[str],
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Start the command.

        @param arguments: The program's path first.
        @param stdin: All of its standard input.
        @param environment: What is to be different from this process's own.
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
        The process's id; only while it runs.
        """
        transport: Any = self.transport
        return int(transport.pid)

    @property
    def output(self) -> str:
        """
        The end of what it said.
        """
        return "\n".join(self.lines)

    def saw(self, text: str, limit: float = START_LIMIT, times: int = 1) -> Deferred[str]:
        """
        Wait for a line of output.

        @param text: What it holds.
        @param limit: Seconds.
        @param times: How many such lines there have to be.
        @return: Fires with the last of them, which may have come before; fails with
            L{CommandEnded}.
        """
        lines = [line for line in self.lines if text in line]
        if len(lines) >= times:
            return succeed(lines[times - 1])
        if self.status is not None:
            return fail(self._ended())
        waiting: Deferred[str] = Deferred()
        self._waiting.append((text, times - len(lines), waiting))

        def too_late(result: Any, seconds: float) -> Any:
            reason = f"did not say {text!r} within {seconds:g} s"
            raise CommandEnded(self.name, reason, self.output)

        return waiting.addTimeout(limit, self._reactor, onTimeoutCancel=too_late)

    def signal(self, name: str) -> None:
        """
        @param name: E.g. C{"TERM"}; nothing happens once it has ended.
        """
        transport: Any = self.transport
        try:
            transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def wait(self) -> Deferred[int]:
        """
        @return: Fires with the exit status, when it has ended.
        """
        if self.status is not None:
            return succeed(self.status)
        ending: Deferred[int] = Deferred()
        self._ending.append(ending)
        return ending

    def stop(self) -> Deferred[int]:
        """
        End it: with SIGTERM, and with SIGKILL if that is not enough.

        @return: As L{wait}.
        """
        if self.status is not None or self.transport is None:
            return succeed(self.status or 0)
        self.signal("TERM")
        late = self._reactor.callLater(STOP_LIMIT, self.signal, "KILL")

        def ended(status: int) -> int:
            if late.active():
                late.cancel()
            return status

        return self.wait().addCallback(ended)

    def outReceived(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._said(line.decode("utf-8", "replace"))

    errReceived = outReceived

    def _said(self, line: str) -> None:
        self.lines.append(line)
        del self.lines[:-KEPT]
        waiting, self._waiting = self._waiting, []
        for awaited, times, seen in waiting:
            left = times - (awaited in line)
            if left:
                self._waiting.append((awaited, left, seen))
            else:
                seen.callback(line)

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self.status = value.exitCode if value.signal is None else 128 + value.signal
        if self._rest:
            self._said(self._rest.decode("utf-8", "replace"))
        waiting, self._waiting = self._waiting, []
        for *_, awaited in waiting:
            awaited.errback(self._ended())
        ending, self._ending = self._ending, []
        for ended in ending:
            ended.callback(self.status)

    def _ended(self) -> CommandEnded:
        return CommandEnded(self.name, f"ended with exit status {self.status}", self.output)


def _eb_first(failure: Failure) -> Failure:
    if isinstance(failure.value, FirstError):
        return failure.value.subFailure
    return failure


def _environment() -> dict[str, str]:
    """
    This process's environment, in which a child finds the same tbvast.
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
    C{twistd tbvast-plugin}, on free ports of the loopback address.

    @ivar manage: Its manage endpoint.
    @ivar pub: Its pub endpoint.
    @ivar sub: Its sub endpoint.
    """

    def __init__(self, reactor: Any, state: Path, *options: str) -> None:
        """
        @param state: Its state directory; another one may take it over after it.
        @param options: More of its options.
        """
        super().__init__(reactor, "tbvast-plugin")
        self._state = state
        self._options = options
        self.manage, self.pub, self.sub = (HostPort("127.0.0.1", port) for port in free_ports(3))

    def start(self) -> Deferred[Any]:
        """
        @return: Fires when it answers; fails with L{CommandEnded}.
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
        @return: Fires with the answer of its manage endpoint.
        """
        factory = Factory(self._reactor)

        def answered(result: Any) -> Any:
            factory.shutdown()
            return result

        client = ManageClient(self._reactor, factory, self.manage)
        return client.ask(request).addBoth(answered).addCallback(decode_reply)

    def again(self) -> RunningPlugin:
        """
        @return: One to start when this has ended, with the same ports and state.
        """
        other = RunningPlugin(self._reactor, self._state, *self._options)
        other.manage, other.pub, other.sub = self.manage, self.pub, self.sub
        return other


class RunningBridge(RunningCommand):
    """
    C{twistd tbvast-bridge}, with an embedded engine on a free port.

    @ivar engine: Where the engine listens.
    """

    def __init__(
        self, reactor: Any, bus: HostPort, state: Path, *options: str, live: bool = True
    ) -> None:
        """
        @param bus: The manage endpoint of the bus.
        @param state: Its state directory, the engine's within.
        @param options: More of its options.
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
        @return: Fires when it has subscribed, and its engine matches; fails with
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
        return seen.addErrback(_eb_first)

    def again(self) -> RunningBridge:
        """
        @return: One to start when this has ended, with the same engine and state.
        """
        other = RunningBridge(
            self._reactor, self._bus, self._state, *self._options, live=self._live
        )
        other.engine = self.engine
        return other


def free_ports(count: int) -> list[int]:
    """
    @return: Ports of the loopback address that nothing listens on, all different.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
