"""
A Tenzir node that runs as a child process.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel

from tbvast.engines import binaries
from tbvast.engines.tenzir.certificate import provide_certificate
from tbvast.engines.tenzir.configuration import Tls, command_settings, node_settings
from tbvast.engines.tenzir.node_policy import disabled_plugins, list_plugins
from tbvast.errors import StartupRefused
from tbvast.service.child_process import BackOff, ChildOwner, Children, Exit
from tbvast.service.lines import LineBuffer
from tbvast.service.process import check_free
from tbvast.values import HostPort

MIN_RESTART_SECONDS = 0.5
STEADY_SECONDS = 60.0
"""
Seconds before a node that ended is restarted, which double each time up to
L{BackOff.MAX_SECONDS}, and seconds that a node has to run to reset them.
"""

STOP_SECONDS = 15.0
"""
Seconds for a node to save its state and end, before it is killed.
"""

MAX_LINE_BYTES = 1 << 16
"""
The most bytes of a line of the node's log; a longer one is split.
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


@attrs.define(eq=False, slots=False)
class EmbeddedNode(Service, ChildOwner):
    """
    A node that runs while the service does, and is restarted if it ends.

    It does not outlive this process, however this process ends. Only clients with its
    certificate can use it, and only for what its policy allows; see
    L{tbvast.engines.tenzir.node_policy}.

    @param reactor: Provides C{IReactorProcess} and C{IReactorTime}.
    @param endpoint: The address that it listens on.
    @param state: The directory for its state; created if necessary.
    @param certificate: The file of its certificate, which is made if necessary, and so is its
        directory.
    @param plugins: The plugins that it may use in addition to those that tbvast needs.
    @param program: The path of the node's program; by default the installed one.
    @raise tbvast.errors.EngineMissing: If no node is installed.
    """

    _log = Logger()

    _reactor: Any
    _endpoint: HostPort
    _state: Path
    _certificate: Path
    _plugins: Collection[str] = ()
    _program: str = attrs.field(factory=binaries.find_node)
    _lines: LineBuffer = attrs.field(init=False, factory=LineBuffer)
    _started: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self._settings = self._state / "node.yaml"
        self._children = Children(self._reactor, self._reactor, "The node", STOP_SECONDS)
        self._backoff = BackOff(self._reactor, self._start, MIN_RESTART_SECONDS)

    def startService(self) -> None:
        """
        Start the node.

        @raise StartupRefused: If the state directory or the address is not usable.
        """
        try:
            check_free("the engine", self._endpoint)
        except StartupRefused as e:
            raise StartupRefused(
                f"{e}; --vast-listen names another address, --vast a node that runs already"
            ) from None
        try:
            self._write_settings()
        except OSError as e:
            raise StartupRefused(
                f"the engine's state directory {self._state} cannot be written: {e.strerror}"
            ) from None
        super().startService()
        self._start()

    def _write_settings(self) -> None:
        for folder in (self._state, self._certificate.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        provide_certificate(self._certificate, datetime.datetime.now(datetime.UTC))
        lister = self._state / "lister.yaml"
        lister.write_text(command_settings(self._state, str(self._endpoint)), encoding="utf-8")
        disabled = disabled_plugins(list_plugins(self._program, str(lister)), self._plugins)
        tls = Tls.of_embedded(self._certificate)
        text = node_settings(self._state, str(self._endpoint), tls, disabled)
        self._settings.write_text(text, encoding="utf-8")

    def _start(self) -> None:
        self._started = self._reactor.seconds()
        command = (
            binaries.NODE_NAME,
            f"--config={self._settings}",
            f"--state-directory={self._state / 'node'}",
            "--print-endpoint",
            "--console-verbosity=info",
            "--console-format=%l %v",
        )
        self._children.spawn(command, self, executable=self._program)

    def stopService(self) -> Deferred[None]:
        """
        Stop the node.

        @return: Fires when the node has ended and is reaped.
        """
        super().stopService()
        self._backoff.cancel()
        return self._children.stop()

    def received(self, data: bytes) -> None:
        # The node writes nothing but its endpoint to standard output.
        if b"\n" in data:
            self._log.info(
                "The node is ready at {endpoint} after {elapsed:.2f} s.",
                endpoint=str(self._endpoint),
                elapsed=self._reactor.seconds() - self._started,
            )

    def complained(self, data: bytes) -> None:
        for line in self._lines.add(data):
            self._log_line(line)
        if self._lines.size > MAX_LINE_BYTES:
            self._log_line(self._lines.take_rest())

    def _log_line(self, line: bytes) -> None:
        line = _COLOUR.sub(b"", line).rstrip()
        match = _LINE.fullmatch(line)
        level, text = (_LEVELS[match[1]], match[2]) if match else (LogLevel.debug, line)
        # The node's internal metrics are noise, and so are its messages while it stops.
        if b" #internal " in text or (not self.running and level < LogLevel.error):
            level = LogLevel.debug
        if text.strip():
            self._log.emit(level, "The node: {line}", line=text.decode("utf-8", "replace"))

    def ended(self, exit_: Exit) -> None:
        self._log_line(self._lines.take_rest())
        if not self.running:
            return
        if self._reactor.seconds() - self._started >= STEADY_SECONDS:
            self._backoff.succeeded()
        self._log.error(
            "The node {exit}; restarting it in {delay} s.",
            exit=str(exit_),
            delay=self._backoff.failed(),
        )
