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
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import attrs
import msgspec

from tbvast.engines.pyvast_calls import READ_BYTES, Waiter, add_lines
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.markers import Round
from tbvast.engines.tenzir.node_calls import Line, NodeCalls, decode_answer
from tbvast.errors import EngineCallFailed
from tbvast.service.lines import LineBuffer

CONNECT_SECONDS = 10.0
"""
Seconds for a node to connect to one of the bridge's sockets. After that the socket counts as
unreachable.
"""

LIFETIME_SECONDS = 300.0
RENEWAL_SECONDS, SERVED_RENEWAL_SECONDS = 30.0, 5.0
"""
Seconds after which the node ends the live match, unless the bridge renews it, and between these
renewals, which also show whether it still runs; without sockets nothing else does. As long as
the results are not read, the node keeps them in memory: about half a kilobyte per event.
"""

PAGE_EVENTS = 1000

SHORT_DIRECTORIES = ("/run", "/tmp", "/var/tmp")
"""
The parents to try for a directory of sockets if the usual paths are too long for a socket.
"""

_WATCH = "watch"
_CREDENTIALS = struct.Struct("3i")


class _Renewed(msgspec.Struct):
    reset: list[str] = []


class Unreachable(EngineCallFailed):
    """
    The node cannot reach a socket of the bridge.
    """


def pipeline_names(match: str) -> tuple[str, str]:
    """
    @param match: The name of a live match.
    @return: The names of its two pipelines: the match, and the import of markers.
    """
    return f"tbvast-live-{match}", f"tbvast-markers-{match}"


@attrs.define(eq=False)
class Feed:
    """
    A live match in the node: markers in, matches and markers out. Its two pipelines end unless
    they are renewed.

    @param node: Makes the requests of the match.
    @param owner: Ends the pipelines in the node, even after an interruption of C{node}.
    @param directory: An empty directory, whose unique name is also that of the match.
    """

    _node: NodeCalls
    _owner: NodeCalls
    _directory: Path
    _renewed: float = attrs.field(init=False, factory=time.monotonic)
    _renewal_seconds: ClassVar[float] = RENEWAL_SECONDS

    def opened(self, match: str) -> AbstractContextManager[None]:
        """
        Start the match; end it on exit.

        @param match: The pipeline of the match, without a sink.
        @raise EngineCallFailed: If it is not started.
        @raise Unreachable: If the node cannot connect to the bridge.
        """
        raise NotImplementedError

    def send(self, markers: Round) -> None:
        """
        Import markers.

        @raise EngineCallFailed: If the node does not accept them.
        """
        raise NotImplementedError

    def receive(self, wait: float) -> list[str]:
        """
        @param wait: The most seconds to wait.
        @return: The new texts of the match, in order; empty if there are none.
        @raise EngineCallFailed: If the match has ended.
        """
        raise NotImplementedError

    @property
    def _names(self) -> tuple[str, str]:
        return pipeline_names(self._directory.name)

    @contextlib.contextmanager
    def _running(self, match: str, markers: str) -> Iterator[None]:
        """
        Start the match with one pipeline, and import markers with another; end both on exit.
        """
        try:
            self._node.start(match)
            self._node.start(pipelines.start_pipeline(markers, self._names[1], LIFETIME_SECONDS))
            yield
        finally:
            self._owner.end(*self._names)

    def _renew_if_due(self) -> None:
        if time.monotonic() - self._renewed < self._renewal_seconds:
            return
        reply = self._node.ask(pipelines.renew_pipelines(self._names), _Renewed)
        if set(reply.reset) != set(self._names):
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        self._renewed = time.monotonic()


@attrs.define(eq=False)
class SocketFeed(Feed):
    """
    A live match whose node connects to sockets of the bridge, which other users cannot reach.
    """

    _waiter: Waiter = attrs.field(init=False)
    _markers: socket.socket = attrs.field(init=False)
    _listening: socket.socket = attrs.field(init=False)
    _connections: contextlib.ExitStack = attrs.field(init=False)
    _results: socket.socket | None = attrs.field(init=False, default=None)
    _deadline: float = attrs.field(init=False)
    _lines: LineBuffer = attrs.field(init=False, factory=LineBuffer)

    @contextlib.contextmanager
    def opened(self, match: str) -> Iterator[None]:
        with (
            self._node.commands.waiting(_WATCH) as self._waiter,
            socket_directory(self._directory) as place,
            _listen(place / "m") as coming,
            _listen(place / "e") as self._listening,
            # Closed once the pipelines have ended.
            contextlib.ExitStack() as self._connections,
            self._running(
                pipelines.start_pipeline(
                    match + pipelines.to_socket(str(place / "e")), self._names[0], LIFETIME_SECONDS
                ),
                pipelines.markers_from_socket(str(place / "m")),
            ),
        ):
            connection = self._accept(coming, CONNECT_SECONDS)
            if connection is None:
                raise _unreachable()
            self._markers = connection
            self._deadline = time.monotonic() + CONNECT_SECONDS
            yield

    def _accept(self, listening: socket.socket, wait: float) -> socket.socket | None:
        """
        Accept the first connection from a process of this process's user, or of root.

        @param wait: The most seconds to wait for one.
        @return: The connection; C{None} if there was none in time.
        """
        deadline = time.monotonic() + wait
        while self._waiter.ready(listening, deadline - time.monotonic()):
            connection, _ = listening.accept()
            _, user, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if user in (0, os.getuid()):
                connection.setblocking(False)
                return self._connections.enter_context(connection)
            connection.close()
        return None

    def send(self, markers: Round) -> None:
        fields = {
            pipelines.MARKER_SOURCE: self._directory.name,
            pipelines.MARKER_NUMBER: markers.number,
        }
        data = msgspec.json.Encoder().encode_lines(
            {**fields, pipelines.MARKER_LEAF: leaf} for leaf in markers.leaves
        )
        while data:
            if not self._waiter.ready(self._markers, CONNECT_SECONDS, to_write=True):
                raise EngineCallFailed(_WATCH, "the node does not read markers")
            try:
                data = data[self._markers.send(data) :]
            except OSError as e:
                raise EngineCallFailed(_WATCH, f"cannot send markers to the node: {e}") from None

    def receive(self, wait: float) -> list[str]:
        self._renew_if_due()
        if self._results is None:
            # The node connects when it has something to write; the match may have begun only after
            # the first markers.
            self._results = self._accept(self._listening, wait)
            if self._results is None:
                if time.monotonic() > self._deadline:
                    raise _unreachable()
                return []
        if not self._waiter.ready(self._results, wait):
            return []
        try:
            chunk = self._results.recv(READ_BYTES)
        except OSError as e:
            raise EngineCallFailed(_WATCH, f"the connection to the node is lost: {e}") from None
        if not chunk:
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        lines = add_lines(_WATCH, self._lines, chunk)
        return [decode_answer(_WATCH, line, Line).line for line in lines if line]


def _unreachable() -> Unreachable:
    return Unreachable(_WATCH, f"the node did not connect within {CONNECT_SECONDS:g} s")


@attrs.define(eq=False)
class ServedFeed(Feed):
    """
    A live match whose matches are fetched through the node's endpoint, page by page.
    """

    _renewal_seconds = SERVED_RENEWAL_SECONDS
    _token: str = attrs.field(init=False, default="")

    def opened(self, match: str) -> AbstractContextManager[None]:
        name, markers = self._names
        return self._running(
            pipelines.launch_pipeline(match, name, LIFETIME_SECONDS, whole=True),
            pipelines.markers_from_topic(markers),
        )

    def send(self, markers: Round) -> None:
        published = pipelines.publish_markers(
            self._names[1], self._directory.name, markers.number, markers.leaves
        )
        name = f"tbvast-marker-{secrets.token_hex(8)}"
        self._node.start(pipelines.start_pipeline(published, name, LIFETIME_SECONDS))

    def receive(self, wait: float) -> list[str]:
        self._renew_if_due()
        fetch = pipelines.serve_results(self._names[0], self._token, PAGE_EVENTS, wait, least=1)
        page = self._node.fetch(fetch)
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
        try:
            temporary = tempfile.TemporaryDirectory(prefix="tbvast-", dir=parent)
        except OSError:
            continue
        with temporary as made:
            if pipelines.is_socket_path(f"{made}/m"):
                yield Path(made)
                return
    raise Unreachable(_WATCH, "no directory for sockets has a path that is short enough")


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(8)
        yield listening
