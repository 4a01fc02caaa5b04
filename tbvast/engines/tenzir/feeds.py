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

from tbvast.engines.pyvast_calls import READ_BYTES, Commands, Waiter, add_lines
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.answers import Line, decode_answer
from tbvast.engines.tenzir.markers import Round
from tbvast.engines.tenzir.node_calls import NodeCalls
from tbvast.errors import EngineCallFailed
from tbvast.service.lines import LineBuffer

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


def pipeline_names(bridge: str) -> tuple[str, str]:
    """
    @param bridge: The name of the bridge's live match.
    @return: The names of its two pipelines: the match, and the import of markers.
    """
    return f"tbvast-live-{bridge}", f"tbvast-markers-{bridge}"


class _LivePipelines:
    """
    The two pipelines of a live match in the node, which end unless they are renewed.

    @ivar bridge: The name of the bridge's live match.
    @ivar names: The names of the match, and of the import of markers.
    @ivar node: Asks the node.
    """

    def __init__(self, commands: Commands, owner: Commands, bridge: str) -> None:
        """
        @param commands: Runs the requests of the match.
        @param owner: Ends the pipelines in the node, even after an interruption of
            C{commands}.
        @param bridge: The name of the bridge's live match.
        """
        self.node = NodeCalls(commands, _WATCH)
        self.bridge = bridge
        self.names = pipeline_names(bridge)
        self._owner = NodeCalls(owner, _WATCH)
        self._renewed = time.monotonic()

    @contextlib.contextmanager
    def started(self, match: str, markers: str) -> Iterator[None]:
        """
        Start the pipelines; end them on exit.

        @param match: The pipeline that starts the match.
        @param markers: The pipeline that imports markers.
        @raise EngineCallFailed: If one is not started.
        """
        try:
            self.node.start(match)
            self.node.start(pipelines.start_pipeline(markers, self.names[1], LIFETIME_SECONDS))
            yield
        finally:
            self._owner.end(*self.names)

    def renew(self) -> None:
        """
        Extend their lifetime, if it is due.

        @raise EngineCallFailed: If one has ended.
        """
        if time.monotonic() - self._renewed < RENEWAL_SECONDS:
            return
        reply = self.node.ask(pipelines.renew_pipelines(self.names))
        if set(decode_answer(_WATCH, reply, _Renewed).reset) != set(self.names):
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        self._renewed = time.monotonic()


class SocketFeed:
    """
    A live match whose node connects to sockets of the bridge, which other users cannot reach.
    """

    def __init__(
        self,
        waiter: Waiter,
        running: _LivePipelines,
        markers: socket.socket,
        listening: socket.socket,
        connections: contextlib.ExitStack,
    ) -> None:
        """
        @param waiter: Waits for the sockets.
        @param running: The pipelines of the match.
        @param markers: The connection on which the node reads markers.
        @param listening: The socket to which the node connects with its first result.
        @param connections: Closes that connection.
        """
        self._waiter = waiter
        self._pipelines = running
        self._markers = markers
        self._listening = listening
        self._connections = connections
        self._results: socket.socket | None = None
        self._lines = LineBuffer()

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        commands: Commands,
        owner: Commands,
        directory: Path,
        pipeline: Callable[[str], str],
    ) -> Iterator[SocketFeed]:
        """
        Start the match; end it on exit.

        @param commands: Runs the requests of the match.
        @param owner: Ends the pipelines in the node, even after an interruption of
            C{commands}.
        @param directory: An empty directory, whose unique name is also that of the match.
        @param pipeline: Completes the match's pipeline with its last operator.
        @raise Unreachable: If the node does not connect.
        """
        running = _LivePipelines(commands, owner, directory.name)
        with (
            commands.waiting(_WATCH) as waiter,
            socket_directory(directory) as place,
            _listening(place / "m") as coming,
            _listening(place / "e") as listening,
            contextlib.ExitStack() as connections,  # closed once the pipelines have ended
            running.started(
                pipelines.start_pipeline(
                    pipeline(pipelines.to_socket(str(place / "e"))),
                    running.names[0],
                    LIFETIME_SECONDS,
                ),
                pipelines.markers_from_socket(str(place / "m")),
            ),
        ):
            markers = connections.enter_context(_accept_own_user(waiter, coming))
            yield cls(waiter, running, markers, listening, connections)

    def send(self, markers: Round) -> None:
        data = b"".join(
            msgspec.json.encode(
                {
                    pipelines.MARKER_SOURCE: self._pipelines.bridge,
                    pipelines.MARKER_NUMBER: markers.number,
                    pipelines.MARKER_LEAF: leaf,
                }
            )
            + b"\n"
            for leaf in markers.leaves
        )
        while data:
            if not self._waiter.writable(self._markers, CONNECT_SECONDS):
                raise EngineCallFailed(_WATCH, "the node does not read markers")
            try:
                data = data[self._markers.send(data) :]
            except OSError as e:
                raise EngineCallFailed(_WATCH, f"cannot send markers to the node: {e}") from None
        # The node connects only when it has something to write.
        if self._results is None:
            connection = _accept_own_user(self._waiter, self._listening)
            self._results = self._connections.enter_context(connection)

    def receive(self, wait: float) -> list[str]:
        self._pipelines.renew()
        if self._results is None:
            raise EngineCallFailed(_WATCH, "the node has not connected")
        if not self._waiter.readable(self._results, wait):
            return []
        try:
            chunk = self._results.recv(READ_BYTES)
        except OSError as e:
            raise EngineCallFailed(_WATCH, f"the connection to the node is lost: {e}") from None
        if not chunk:
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        lines = add_lines(_WATCH, self._lines, chunk)
        return [decode_answer(_WATCH, line, Line).line for line in lines if line]


class ServedFeed:
    """
    A live match whose matches are fetched through the node's endpoint, page by page.
    """

    def __init__(self, running: _LivePipelines) -> None:
        """
        @param running: The pipelines of the match.
        """
        self._pipelines = running
        self._token = ""

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        commands: Commands,
        owner: Commands,
        directory: Path,
        pipeline: Callable[[str], str],
    ) -> Iterator[ServedFeed]:
        """
        @see: L{SocketFeed.opened}
        """
        running = _LivePipelines(commands, owner, directory.name)
        match, markers = running.names
        with running.started(
            pipelines.launch_pipeline(pipeline(""), match, LIFETIME_SECONDS, whole=True),
            pipelines.markers_from_topic(markers),
        ):
            yield cls(running)

    def send(self, markers: Round) -> None:
        running = self._pipelines
        published = pipelines.publish_markers(
            running.names[1], running.bridge, markers.number, markers.leaves
        )
        name = f"tbvast-marker-{secrets.token_hex(8)}"
        running.node.start(pipelines.start_pipeline(published, name, LIFETIME_SECONDS))

    def receive(self, wait: float) -> list[str]:
        self._pipelines.renew()
        match = self._pipelines.names[0]
        fetch = pipelines.serve_results(match, self._token, PAGE_EVENTS, wait, least=1)
        page = self._pipelines.node.fetch(fetch)
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
