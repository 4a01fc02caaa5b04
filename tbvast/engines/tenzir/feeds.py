"""
The transports between the bridge and a live match that runs in a node.

Everything here blocks, and runs in the worker thread of the live match.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from tbvast.engines.line_buffer import READ_BYTES, LineBuffer
from tbvast.engines.pyvast_calls import Commands, Waiter
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.answers import Line, check_started, decode_answer, decode_page
from tbvast.engines.tenzir.markers import Round
from tbvast.errors import EngineCallFailed, EngineError

CONNECT_SECONDS = 5.0
"""
Seconds for a node to connect to one of the bridge's sockets. After that the socket counts as
unreachable.
"""

LIFETIME_SECONDS = 300.0
"""
Seconds after which the node ends the live match, unless the bridge renews it. As long as the
results are not read, the node keeps them in memory: about half a kilobyte per event.
"""

RENEWAL_SECONDS = 30.0
"""
Seconds between renewals.
"""

PAGE_EVENTS = 1000
"""
The most matches of a fetched page.
"""

SHORT_DIRECTORIES = ("/run", "/tmp", "/var/tmp")
"""
The parents to try for a directory of sockets if the usual paths are too long for a socket.
"""

_WATCH = "watch"
_CREDENTIALS = struct.Struct("3i")


class _Renewed(msgspec.Struct):
    reset: list[str] = []


Ask = Callable[[Commands, str], bytes]
"""
Runs a pipeline with a command, and returns the command's output.
"""


class Feed(Protocol):
    """
    A live match in the node: markers in, matches and markers out.
    """

    def send(self, markers: Round) -> None:
        """
        Import markers.

        @raise EngineCallFailed: If the node does not accept them.
        """

    def receive(self, wait: float) -> list[str]:
        """
        @param wait: The most seconds to wait.
        @return: The new texts of the match, in order; empty if there are none.
        @raise EngineCallFailed: If the match has ended.
        """


class Unreachable(EngineCallFailed):
    """
    The node cannot reach a socket of the bridge.
    """


class _Pipelines:
    """
    Pipelines in the node that end unless they are renewed.
    """

    def __init__(self, commands: Commands, ask: Ask, names: tuple[str, ...]) -> None:
        """
        @param commands: Runs the requests.
        @param ask: Makes a request.
        @param names: The names of the pipelines.
        """
        self._commands = commands
        self._ask = ask
        self._names = names
        self._renewed = time.monotonic()

    def start(self, request: str) -> None:
        """
        Start a pipeline.

        @param request: The pipeline that starts it.
        @raise EngineCallFailed: If it is not started.
        """
        check_started(_WATCH, self._ask(self._commands, request))

    def renew(self) -> None:
        """
        Extend their lifetime, if it is due.

        @raise EngineCallFailed: If one has ended.
        """
        if time.monotonic() - self._renewed < RENEWAL_SECONDS:
            return
        reply = self._ask(self._commands, pipelines.renew_pipelines(self._names))
        there = decode_answer(_WATCH, reply, _Renewed).reset
        if set(there) != set(self._names):
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        self._renewed = time.monotonic()


def end_pipelines(commands: Commands, ask: Ask, names: tuple[str, ...]) -> None:
    """
    End pipelines in the node, if they exist.
    """
    for name in names:
        with contextlib.suppress(EngineError):
            ask(commands, pipelines.end_pipeline(name))


def pipeline_names(bridge: str) -> tuple[str, str]:
    """
    @param bridge: The name of the bridge's live match.
    @return: The names of its two pipelines: the match, and the import of markers.
    """
    return f"tbvast-live-{bridge}", f"tbvast-markers-{bridge}"


class SocketFeed:
    """
    A live match whose node connects to sockets of the bridge, which other users cannot reach.
    """

    def __init__(self, waiter: Waiter, running: _Pipelines, bridge: str) -> None:
        """
        @param waiter: Waits for the sockets.
        @param running: The pipelines of the match.
        @param bridge: The name of the bridge's live match.
        """
        self._waiter = waiter
        self._pipelines = running
        self._bridge = bridge
        self._listening: socket.socket | None = None
        self._in: socket.socket | None = None
        self._out: socket.socket | None = None
        self._lines = LineBuffer(_WATCH)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        commands: Commands,
        owner: Commands,
        ask: Ask,
        directory: Path,
        pipeline: Callable[[str], str],
    ) -> Iterator[SocketFeed]:
        """
        Start the match; end it on exit.

        @param commands: Runs the requests of the match.
        @param owner: Ends the pipelines in the node, even after an interruption of
            C{commands}.
        @param ask: Makes a request.
        @param directory: An empty directory, whose unique name is also that of the match.
        @param pipeline: Completes the match's pipeline with its last operator.
        @raise Unreachable: If the node does not connect.
        """
        bridge = directory.name
        match, markers = pipeline_names(bridge)
        with (
            commands.waiting(_WATCH) as waiter,
            contextlib.ExitStack() as closing,
        ):
            running = _Pipelines(commands, ask, (match, markers))
            feed = cls(waiter, running, bridge)
            closing.callback(feed._close)
            place = closing.enter_context(socket_directory(directory))
            coming = closing.enter_context(_listening(place / "m"))
            feed._listening = closing.enter_context(_listening(place / "e"))
            closing.callback(end_pipelines, owner, ask, (match, markers))
            out = pipeline(pipelines.to_socket(str(place / "e")))
            running.start(pipelines.start_pipeline(out, match, LIFETIME_SECONDS))
            from_us = pipelines.markers_from_socket(str(place / "m"))
            running.start(pipelines.start_pipeline(from_us, markers, LIFETIME_SECONDS))
            feed._in = _accept_own_user(waiter, coming)
            yield feed

    def send(self, markers: Round) -> None:
        connection = self._connected(self._in)
        data = b"".join(
            msgspec.json.encode(
                {
                    pipelines.MARKER_SOURCE: self._bridge,
                    pipelines.MARKER_NUMBER: markers.number,
                    pipelines.MARKER_LEAF: leaf,
                }
            )
            + b"\n"
            for leaf in markers.leaves
        )
        while data:
            if not self._waiter.writable(connection, CONNECT_SECONDS):
                raise EngineCallFailed(_WATCH, "the node does not read markers")
            try:
                data = data[connection.send(data) :]
            except OSError as e:
                raise EngineCallFailed(_WATCH, f"cannot send markers to the node: {e}") from None
        # The node connects only when it has something to write.
        if self._out is None and self._listening is not None:
            self._out = _accept_own_user(self._waiter, self._listening)

    def receive(self, wait: float) -> list[str]:
        self._pipelines.renew()
        connection = self._connected(self._out)
        if not self._waiter.readable(connection, wait):
            return []
        try:
            chunk = connection.recv(READ_BYTES)
        except OSError as e:
            raise EngineCallFailed(_WATCH, f"the connection to the node is lost: {e}") from None
        if not chunk:
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        return [decode_answer(_WATCH, line, Line).line for line in self._lines.add(chunk) if line]

    def _connected(self, connection: socket.socket | None) -> socket.socket:
        if connection is None:
            raise EngineCallFailed(_WATCH, "the node has not connected")
        return connection

    def _close(self) -> None:
        for connection in (self._in, self._out):
            if connection is not None:
                connection.close()


class ServedFeed:
    """
    A live match whose matches are fetched through the node's endpoint, page by page.
    """

    def __init__(self, commands: Commands, ask: Ask, bridge: str) -> None:
        """
        @param commands: Runs the requests of the match.
        @param ask: Makes a request.
        @param bridge: The name of the bridge's live match.
        """
        self._commands = commands
        self._ask = ask
        self._bridge = bridge
        self._token = ""
        self._pipelines = _Pipelines(commands, ask, pipeline_names(bridge))

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        commands: Commands,
        owner: Commands,
        ask: Ask,
        bridge: str,
        pipeline: Callable[[str], str],
    ) -> Iterator[ServedFeed]:
        """
        @see: L{SocketFeed.opened}
        """
        match, markers = pipeline_names(bridge)
        feed = cls(commands, ask, bridge)
        try:
            feed._pipelines.start(
                pipelines.launch_pipeline(pipeline(""), match, LIFETIME_SECONDS, whole=True)
            )
            feed._pipelines.start(
                pipelines.start_pipeline(
                    pipelines.markers_from_topic(markers), markers, LIFETIME_SECONDS
                )
            )
            yield feed
        finally:
            end_pipelines(owner, ask, (match, markers))

    def send(self, markers: Round) -> None:
        published = pipelines.publish_markers(
            pipeline_names(self._bridge)[1], self._bridge, markers.number, markers.leaves
        )
        name = f"tbvast-marker-{secrets.token_hex(8)}"
        self._pipelines.start(pipelines.start_pipeline(published, name, LIFETIME_SECONDS))

    def receive(self, wait: float) -> list[str]:
        self._pipelines.renew()
        fetch = pipelines.serve_results(
            pipeline_names(self._bridge)[0], self._token, PAGE_EVENTS, wait, least=1
        )
        page = decode_page(_WATCH, self._ask(self._commands, fetch))
        if page.next_continuation_token is None:
            raise EngineCallFailed(_WATCH, f"the match has ended in the node ({page.state})")
        self._token = page.next_continuation_token
        return page.lines


@contextlib.contextmanager
def socket_directory(preferred: Path) -> Iterator[Path]:
    """
    Provide a private directory whose path is short enough for sockets: C{preferred}, or a
    temporary one, which is removed on exit.

    @raise Unreachable: If no directory has such a path.
    """
    preferred = preferred.resolve()
    if pipelines.is_socket_path(f"{preferred}/m"):
        yield preferred
        return
    for parent in (tempfile.gettempdir(), *SHORT_DIRECTORIES):
        with contextlib.ExitStack() as closing:
            try:
                made = closing.enter_context(
                    tempfile.TemporaryDirectory(prefix="tbvast-", dir=parent)
                )
            except OSError:
                continue
            if pipelines.is_socket_path(f"{made}/m"):
                yield Path(made)
                return
    raise Unreachable(_WATCH, "no directory for sockets has a path that is short enough")


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(8)
        yield listening


def _accept_own_user(waiter: Waiter, listening: socket.socket) -> socket.socket:
    """
    Accept the first connection from a process of this process's user, or of root.

    @raise Unreachable: If there is none within L{CONNECT_SECONDS}.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    while waiter.readable(listening, deadline - time.monotonic()):
        connection, _ = listening.accept()
        _, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user in (0, os.getuid()):
            connection.setblocking(False)
            return connection
        connection.close()
    raise Unreachable(_WATCH, f"the node did not connect within {CONNECT_SECONDS:g} s")
