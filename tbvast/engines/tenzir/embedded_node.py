"""
A Tenzir node of our own, as a child process.
"""

from __future__ import annotations

import json
import os
import re
import socket
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

_SETTINGS = """\
# What tbvast gives to the node that it starts; written anew at each start.
tenzir:
  # As an option it would come too late: the node has made its default one by then.
  cache-directory: {cache}
  # Else an import that stays open is matched a second late.
  import-buffer-timeout: 0s
  # The node's own log; it would be gigabytes otherwise.
  file-verbosity: warning
caf:
  middleman:
    # Without this, the node would listen on a second port, of all interfaces.
    enable-automatic-connections: false
"""


def node_settings(folder: Path) -> str:
    """
    @param folder: Where the node may keep what it can do without.
    @return: The configuration file of a node that tbvast starts.
    """
    return _SETTINGS.format(cache=json.dumps(str(folder / "cache")))


SHORTEST_DELAY = 0.5
"""
Seconds before a node that ended is started again; they double each time.
"""

LONGEST_DELAY = 30.0
"""
The most seconds before a node that ended is started again.
"""

STEADY = 60.0
"""
Seconds that a node has to run for its next end to count as the first.
"""

STOP_LIMIT = 15.0
"""
Seconds that a node has to save its state and end before it is killed.
"""

LONGEST_LINE = 1 << 16
"""
The most bytes of one line of the node's output that are kept.
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
    A node that runs while the service does, and is started again if it ends.

    It does not outlive this process, however that ends.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: Any,
        state: Path,
        program: Program | None = None,
    ) -> None:
        """
        @param reactor: Provides C{IReactorProcess} and C{IReactorTime}.
        @param endpoint: Where it is to listen; its C{str} is C{HOST:PORT}.
        @param state: A directory for all it keeps; made if it is not there.
        @param program: The node; the one that is installed, if not given.
        @raise tbvast.errors.EngineMissing: If none is installed.
        """
        self._program = program or binaries.node()
        self._reactor = reactor
        self._endpoint = str(endpoint)
        self._state = state
        self._process: Any = None
        self._restart: IDelayedCall | None = None
        self._kill: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._ready = False
        self._ends = 0
        self._started = 0.0

    def when_ready(self) -> Deferred[None]:
        """
        @return: Fires when the node accepts clients: at once, if it does.
        """
        if self._ready:
            return succeed(None)
        ready: Deferred[None] = Deferred(self._forget)
        self._waiting.append(ready)
        return ready

    def _forget(self, ready: Deferred[None]) -> None:
        self._waiting.remove(ready)

    def startService(self) -> None:
        """
        @raise StartupRefused: If the state directory or the address cannot be
            used.
        """
        self._write_settings()
        self._try_address()
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

    def _try_address(self) -> None:
        host, _, port = self._endpoint.rpartition(":")
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )[0]
            with socket.socket(family, kind, protocol) as attempt:
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                attempt.bind(address)
        except (OSError, OverflowError, ValueError) as e:
            reason = getattr(e, "strerror", None) or str(e)
            raise StartupRefused(
                f"the engine cannot listen on {self._endpoint}: {reason}; "
                "--vast-listen names another address, --vast a node that runs already"
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
        command = binaries.launched(self._program, arguments)
        self._process = self._reactor.spawnProcess(
            _Node(self), command[0], command, env=dict(os.environ)
        )

    def stopService(self) -> Deferred[None]:
        """
        @return: Fires when nothing of the node is left.
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
            self._kill = self._reactor.callLater(STOP_LIMIT, self._end_hard)
        return self._stopped

    def _end_hard(self) -> None:
        self._kill = None
        self._log.warn("The node has not ended after {limit} s; killing it.", limit=STOP_LIMIT)
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        try:
            self._process.signalProcess(name)
        except ProcessExitedAlready:
            pass

    # What the child's protocol reports

    def said(self, line: bytes) -> None:
        """
        The node wrote a line of its log.
        """
        line = _COLOUR.sub(b"", line).rstrip()
        match = _LINE.fullmatch(line)
        level, text = (_LEVELS[match[1]], match[2]) if match else (LogLevel.debug, line)
        # Its own metrics are nobody's loss; and how it ends is known.
        if b" #internal " in text or (not self.running and level < LogLevel.error):
            level = LogLevel.debug
        if text.strip():
            self._log.emit(level, "The node: {line}", line=text.decode("utf-8", "replace"))

    def became_ready(self) -> None:
        """
        The node said that it accepts clients.
        """
        self._ready = True
        self._log.info(
            "The node is ready at {endpoint} after {elapsed:.2f} s.",
            endpoint=self._endpoint,
            elapsed=self._reactor.seconds() - self._started,
        )
        waiting, self._waiting = self._waiting, []
        for ready in waiting:
            ready.callback(None)

    def ended(self, reason: Failure) -> None:
        """
        The node has ended and is reaped.
        """
        self._process = None
        self._ready = False
        if self._kill is not None:
            self._kill.cancel()
            self._kill = None
        if self._stopped is not None:
            self._stopped.callback(None)
        if self.running:
            self._start_again(reason)

    def _start_again(self, reason: Failure) -> None:
        if self._reactor.seconds() - self._started >= STEADY:
            self._ends = 0
        delay = min(SHORTEST_DELAY * 2**self._ends, LONGEST_DELAY)
        self._ends += 1
        self._log.error(
            "The node ended by itself ({reason}); starting it again in {delay} s.",
            reason="exit status 0" if reason.check(ProcessDone) else reason.getErrorMessage(),
            delay=delay,
        )
        self._restart = self._reactor.callLater(delay, self._start)


class _Node(ProcessProtocol):
    """
    Reads what the node writes, line by line.
    """

    def __init__(self, service: EmbeddedNode) -> None:
        self._service = service
        self._rest = b""

    def outReceived(self, data: bytes) -> None:
        # Its endpoint is all that it ever writes there.
        if b"\n" in data:
            self._service.became_ready()

    def errReceived(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LONGEST_LINE]
        for line in lines:
            self._service.said(line)

    def processEnded(self, reason: Failure) -> None:
        self._service.said(self._rest)
        self._service.ended(reason)
