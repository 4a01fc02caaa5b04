"""
The transports between the bridge and a live match that runs in a node.

Everything here blocks, and runs in the worker thread that watches.
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
from typing import Protocol, TypeVar

import msgspec

from tbvast.engines.json_text import decode_json
from tbvast.engines.pyvast_calls import CHUNK, LONGEST, Commands, Waiter, complaint
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.answers import Launched, Line, Page
from tbvast.engines.tenzir.markers import Round
from tbvast.errors import EngineCallFailed, EngineError

ATTACH = 5.0
"""
Seconds for a node to connect to a socket of ours. After that the socket counts as
unreachable.
"""

LIFETIME = 300.0
"""
Seconds after which the node ends the live match, unless the bridge renews it. While nobody
reads its results, the node keeps everything in memory, about half a kilobyte an event.
"""

RENEWAL = 30.0
"""
Seconds between renewals.
"""

PAGE = 1000
"""
The most matches of one fetched page.
"""

SHORT_DIRECTORIES = ("/run", "/tmp", "/var/tmp")
"""
Where a directory for sockets is tried if the usual paths are too long for a socket.
"""

_WATCH = "watch"
_CREDENTIALS = struct.Struct("3i")


class _Renewed(msgspec.Struct):
    reset: list[str] = []


_T = TypeVar("_T")

Ask = Callable[[Commands, str], bytes]
"""
Runs a pipeline in a command, and returns the command's output.
"""


class Feed(Protocol):
    """
    A live match in the node: markers in, matches and markers out.
    """

    def send(self, markers: Round) -> None:
        """
        Import markers.
        """

    def receive(self, wait: float) -> list[str]:
        """
        @param wait: The most seconds to wait.
        @return: The texts that the match has written, in order; empty if none came.
        @raise EngineCallFailed: If the match has ended.
        """


class Unreachable(EngineCallFailed):
    """
    The node cannot reach a socket of ours.
    """


class _Pipelines:
    """
    Pipelines in the node that end unless they are renewed.
    """

    def __init__(self, commands: Commands, ask: Ask, names: tuple[str, ...]) -> None:
        self._commands = commands
        self._ask = ask
        self._names = names
        self._renewed = time.monotonic()

    def started(self, request: str) -> None:
        answer = _read(self._ask(self._commands, request), Launched)
        if answer.error is not None:
            raise EngineCallFailed(_WATCH, complaint(str(answer.error)))

    def renew(self) -> None:
        """
        Extend their lifetime, if it is due.

        @raise EngineCallFailed: If one has ended.
        """
        if time.monotonic() - self._renewed < RENEWAL:
            return
        there = _read(
            self._ask(self._commands, pipelines.renew_pipelines(self._names)), _Renewed
        ).reset
        if set(there) != set(self._names):
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        self._renewed = time.monotonic()


def end(commands: Commands, ask: Ask, names: tuple[str, ...]) -> None:
    """
    End pipelines in the node, if they exist.
    """
    for name in names:
        with contextlib.suppress(EngineError):
            ask(commands, pipelines.end_pipeline(name))


def names(bridge: str) -> tuple[str, str]:
    """
    The names of one live match's two pipelines: the match, and the markers.
    """
    return f"tbvast-live-{bridge}", f"tbvast-markers-{bridge}"


class SocketFeed:
    """
    The node connects to sockets of ours, which other users cannot reach.
    """

    def __init__(self, waiter: Waiter, pipelines: _Pipelines) -> None:
        self._waiter = waiter
        self._pipelines = pipelines
        self._bridge = ""
        self._listening: socket.socket | None = None
        self._in: socket.socket | None = None
        self._out: socket.socket | None = None
        self._rest: list[bytes] = []
        self._size = 0

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        commands: Commands,
        owner: Commands,
        ask: Ask,
        note: Path,
        pipeline: Callable[[str], str],
    ) -> Iterator[SocketFeed]:
        """
        Start the match.

        @param owner: Ends the pipelines in the node, even after an interruption of
            C{commands}.
        @param note: An empty directory, whose name distinguishes this match from others.
        @param pipeline: Builds the match from the last operator of its pipeline.
        @raise Unreachable: If the node does not connect.
        """
        bridge = note.name
        match, markers = names(bridge)
        with (
            commands.waiting(_WATCH) as waiter,
            contextlib.ExitStack() as closing,
        ):
            running = _Pipelines(commands, ask, (match, markers))
            feed = cls(waiter, running)
            feed._bridge = bridge
            closing.callback(feed._close)
            place = closing.enter_context(socket_directory(note))
            coming = closing.enter_context(_listening(place / "m"))
            feed._listening = closing.enter_context(_listening(place / "e"))
            closing.callback(end, owner, ask, (match, markers))
            out = pipeline(pipelines.to_socket(str(place / "e")))
            running.started(pipelines.start_pipeline(out, match, LIFETIME))
            from_us = pipelines.markers_from_socket(str(place / "m"))
            running.started(pipelines.start_pipeline(from_us, markers, LIFETIME))
            feed._in = _accepted(waiter, coming)
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
            if not self._waiter.writable(connection, ATTACH):
                raise EngineCallFailed(_WATCH, "the node does not read markers")
            try:
                data = data[connection.send(data) :]
            except OSError as e:
                raise EngineCallFailed(_WATCH, f"cannot send markers to the node: {e}") from None
        # The node connects only when it has something to write.
        if self._out is None and self._listening is not None:
            self._out = _accepted(self._waiter, self._listening)

    def receive(self, wait: float) -> list[str]:
        self._pipelines.renew()
        connection = self._connected(self._out)
        if not self._waiter.readable(connection, wait):
            return []
        try:
            chunk = connection.recv(CHUNK)
        except OSError as e:
            raise EngineCallFailed(_WATCH, f"the node has gone: {e}") from None
        if not chunk:
            raise EngineCallFailed(_WATCH, "the match has ended in the node")
        *whole, tail = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._rest, whole[0]])
            self._rest, self._size = [], 0
        self._rest.append(tail)
        self._size += len(tail)
        if self._size > LONGEST:
            raise EngineCallFailed(_WATCH, f"a line is longer than {LONGEST} bytes")
        return [_text(line) for line in whole if line]

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
    The bridge fetches the matches through the node's endpoint, page by page.
    """

    def __init__(self, commands: Commands, ask: Ask, bridge: str) -> None:
        self._commands = commands
        self._ask = ask
        self._bridge = bridge
        self._token = ""
        self._pipelines = _Pipelines(commands, ask, names(bridge))

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
        match, markers = names(bridge)
        feed = cls(commands, ask, bridge)
        try:
            feed._pipelines.started(
                pipelines.launch_pipeline(pipeline(""), match, LIFETIME, whole=True)
            )
            feed._pipelines.started(
                pipelines.start_pipeline(pipelines.markers_from_topic(markers), markers, LIFETIME)
            )
            yield feed
        finally:
            end(owner, ask, (match, markers))

    def send(self, markers: Round) -> None:
        published = pipelines.publish_markers(
            names(self._bridge)[1], self._bridge, markers.number, markers.leaves
        )
        name = f"tbvast-marker-{secrets.token_hex(8)}"
        self._pipelines.started(pipelines.start_pipeline(published, name, LIFETIME))

    def receive(self, wait: float) -> list[str]:
        self._pipelines.renew()
        fetch = pipelines.serve_results(names(self._bridge)[0], self._token, PAGE, wait, least=1)
        page = _read(self._ask(self._commands, fetch), Page)
        if page.error is not None or page.state == "failed":
            raise EngineCallFailed(_WATCH, complaint(str(page.error or "it failed")))
        if page.next_continuation_token is None:
            raise EngineCallFailed(_WATCH, f"the match has ended in the node ({page.state})")
        self._token = page.next_continuation_token
        return [event.data.line for event in page.events]


def _read(text: bytes, kind: type[_T]) -> _T:
    try:
        return decode_json(text, kind)
    except msgspec.MsgspecError:
        raise EngineCallFailed(_WATCH, f"unexpected reply {text[:200]!r}") from None


def _text(line: bytes) -> str:
    try:
        return decode_json(line, Line).line
    except msgspec.MsgspecError:
        raise EngineCallFailed(_WATCH, f"unexpected line {line[:200]!r}") from None


@contextlib.contextmanager
def socket_directory(preferred: Path) -> Iterator[Path]:
    """
    A private directory whose path is short enough for that of a socket: C{preferred}, or
    one that is removed again.

    @raise Unreachable: If there is none.
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


def _accepted(waiter: Waiter, listening: socket.socket) -> socket.socket:
    """
    The first connection from a process of our own user, or of root.
    """
    deadline = time.monotonic() + ATTACH
    while waiter.readable(listening, deadline - time.monotonic()):
        connection, _ = listening.accept()
        _, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user in (0, os.getuid()):
            connection.setblocking(False)
            return connection
        connection.close()
    raise Unreachable(_WATCH, f"the node did not connect within {ATTACH:g} s")
