"""
A Tenzir node that runs as a child process.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from tbvast.engines import binaries
from tbvast.engines.binaries import Program
from tbvast.errors import StartupRefused
from tbvast.service.process import check_free
from tbvast.service.retry_policy import doubling
from tbvast.values import HostPort

_SETTINGS = """\
# Written by tbvast at each start of its node.
tenzir:
  # As a command-line option, this would come after the node has created its default one.
  cache-directory: {cache}
  # Otherwise the events of a continuous import are matched a second late.
  import-buffer-timeout: 0s
  # Otherwise the node's own log would grow to gigabytes.
  file-verbosity: warning
caf:
  middleman:
    # Without this, the node would listen on a second port, on all interfaces.
    enable-automatic-connections: false
"""


def node_settings(folder: Path) -> str:
    """
    @param folder: The parent of the node's cache directory.
    @return: The text of the configuration file for a node that tbvast starts.
    """
    return _SETTINGS.format(cache=json.dumps(str(folder / "cache")))


MIN_RESTART_SECONDS = 0.5
"""
Seconds before a node that ended is restarted; they double each time.
"""

MAX_RESTART_SECONDS = 30.0
"""
The most seconds before a node that ended is restarted.
"""

STEADY_SECONDS = 60.0
"""
Seconds that a node has to run to reset the delay.
"""

STOP_SECONDS = 15.0
"""
Seconds for a node to save its state and end, before it is killed.
"""

MAX_LINE_BYTES = 1 << 16
"""
The most bytes that are kept of an incomplete line of the node's log.
"""

_LEVELS = {
    b"trace": LogLevel.debug,
    b"debug": LogLevel.debug,
    b"info": LogLevel.info,
    b"warning": LogLevel.warn,
    b"error": LogLevel.error,
    b"critical": LogLevel.critical,
}
_LINE = re.compile(rb"(trace|debug|info|warning|error|critical):? (.*)", re.DOTALL)
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m|\r")


class EmbeddedNode(Service):
    """
    A node that runs while the service does, and is restarted if it ends.

    It does not outlive this process, however this process ends.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: HostPort,
        state: Path,
        program: Program | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorProcess} and C{IReactorTime}.
        @param endpoint: The address that it listens on.
        @param state: The directory for its state; created if necessary.
        @param program: The program of the node; by default the installed one.
        @raise tbvast.errors.EngineMissing: If no node is installed.
        """
        self._program = program or binaries.find_node()
        self._reactor = reactor
        self._endpoint = endpoint
        self._state = state
        self._process: Any = None
        self._restart: IDelayedCall | None = None
        self._kill: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self._delay = doubling(MIN_RESTART_SECONDS, MAX_RESTART_SECONDS)
        self._ends = 0
        self._started = 0.0

    def startService(self) -> None:
        """
        Start the node.

        @raise StartupRefused: If the state directory or the address is not usable.
        """
        self._write_settings()
        self._check_address()
        super().startService()
        self._stopped = None
        self._start()

    @property
    def _settings(self) -> Path:
        return self._state / "node.yaml"

    def _write_settings(self) -> None:
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._settings.write_text(node_settings(self._state), encoding="utf-8")
        except OSError as e:
            raise StartupRefused(
                f"the engine's state directory {self._state} cannot be written: {e.strerror}"
            ) from None

    def _check_address(self) -> None:
        try:
            check_free("the engine", self._endpoint)
        except StartupRefused as e:
            raise StartupRefused(
                f"{e}; --vast-listen names another address, --vast a node that runs already"
            ) from None

    def _start(self) -> None:
        self._restart = None
        self._started = self._reactor.seconds()
        arguments = (
            f"--config={self._settings}",
            f"--state-directory={self._state / 'node'}",
            f"--endpoint={self._endpoint}",
            "--print-endpoint",
            "--console-verbosity=info",
            "--console-format=%l %v",
        )
        command = binaries.launch_command(self._program, arguments)
        self._process = self._reactor.spawnProcess(
            _NodeProtocol(self), command[0], command, env=dict(os.environ)
        )

    def stopService(self) -> Deferred[None]:
        """
        Stop the node.

        @return: Fires when the node has ended and is reaped.
        """
        super().stopService()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is None:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
            self._signal("TERM")
            self._kill = self._reactor.callLater(STOP_SECONDS, self._kill_node)
        return self._stopped

    def _kill_node(self) -> None:
        self._kill = None
        self._log.warn("The node has not ended after {limit} s; killing it.", limit=STOP_SECONDS)
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        try:
            self._process.signalProcess(name)
        except ProcessExitedAlready:
            pass

    # Called by the child's protocol

    def log_line(self, line: bytes) -> None:
        """
        Log a line of the node's log.
        """
        line = _COLOUR.sub(b"", line).rstrip()
        match = _LINE.fullmatch(line)
        level, text = (_LEVELS[match[1]], match[2]) if match else (LogLevel.debug, line)
        # The node's internal metrics are noise, and so are its messages while it stops.
        if b" #internal " in text or (not self.running and level < LogLevel.error):
            level = LogLevel.debug
        if text.strip():
            self._log.emit(level, "The node: {line}", line=text.decode("utf-8", "replace"))

    def became_ready(self) -> None:
        """
        Log that the node accepts clients.
        """
        self._log.info(
            "The node is ready at {endpoint} after {elapsed:.2f} s.",
            endpoint=str(self._endpoint),
            elapsed=self._reactor.seconds() - self._started,
        )

    def ended(self, reason: Failure) -> None:
        """
        Record that the node has ended and is reaped; restart it if the service runs.

        @param reason: The reason that Twisted gives.
        """
        self._process = None
        if self._kill is not None:
            self._kill.cancel()
            self._kill = None
        if self._stopped is not None:
            self._stopped.callback(None)
        if self.running:
            self._schedule_restart(reason)

    def _schedule_restart(self, reason: Failure) -> None:
        if self._reactor.seconds() - self._started >= STEADY_SECONDS:
            self._ends = 0
        delay = self._delay(self._ends)
        self._ends += 1
        self._log.error(
            "The node ended unexpectedly ({reason}); restarting it in {delay} s.",
            reason="exit status 0" if reason.check(ProcessDone) else reason.getErrorMessage(),
            delay=delay,
        )
        self._restart = self._reactor.callLater(delay, self._start)


class _NodeProtocol(ProcessProtocol):
    """
    Reads the output and the log of the node.
    """

    def __init__(self, service: EmbeddedNode) -> None:
        self._service = service
        self._rest = b""

    def outReceived(self, data: bytes) -> None:
        # The node writes nothing but its endpoint to standard output.
        if b"\n" in data:
            self._service.became_ready()

    def errReceived(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE_BYTES]
        for line in lines:
            self._service.log_line(line)

    def processEnded(self, reason: Failure) -> None:
        self._service.log_line(self._rest)
        self._service.ended(reason)
