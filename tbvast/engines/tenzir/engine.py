"""
Tenzir, the engine of today.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.engines.interruptible import InterruptibleIterator
from tbvast.engines.json_text import decode_json
from tbvast.engines.pyvast_calls import Commands, Result, complaint
from tbvast.engines.search_budget import Limit
from tbvast.engines.tenzir import feeds, pipelines, rows
from tbvast.engines.tenzir.answers import Launched, Page
from tbvast.engines.tenzir.feeds import Feed, ServedFeed, SocketFeed, Unreachable
from tbvast.engines.tenzir.markers import PULSE, Markers
from tbvast.errors import (
    EngineCallFailed,
    EngineError,
    EngineTimeout,
    EngineUnsupported,
    Invalid,
    shown,
)
from tbvast.interfaces import IEngine
from tbvast.service.clock import awake
from tbvast.stix.observables import Kind, Observable
from tbvast.telemetry.known_fields import BUILT_IN, Source
from tbvast.values import EngineIdentity, Entry, Match, Progress

OLDEST = (6, 20)
"""
The oldest version that is known to work. 6.19.1 is known not to: of a conditional
expression it gives an event the value of another one, and so finds what is not there.
"""

UNREACHABLE = 600.0
"""
Seconds after which a live match tries again a socket that the node could not reach. A node
that was busy for a moment reaches it then; one in a container of its own never does.
"""

_SETTINGS = """\
# What tbvast gives to each engine command that it runs.
caf:
  middleman:
    # Without this, every command would listen on a port of all interfaces.
    enable-automatic-connections: false
tenzir:
  # By default, each command makes one where everybody may write.
  cache-directory: {cache}
  # Without the others, which are not used, a command starts in five sixths of the time.
  plugins: [context]
"""


def command_settings(folder: Path) -> str:
    """
    @param folder: Where a command may keep what it can do without.
    @return: The configuration file of the engine's commands.
    """
    return _SETTINGS.format(cache=json.dumps(str(folder / "cache")))


ASKING = 30.0
"""
Seconds for a call that only asks something.
"""

WRITING = 300.0
"""
Seconds for a call that writes, or reads back, a table.
"""

SILENCE = 60.0
"""
Seconds of waiting for markers that do not come out, after which a live match is given up.
"""

HELLO = 1.0
"""
Seconds after which the first markers are imported again; and the most that is waited for
anything at once.
"""

PAGE = 1000
"""
How many matches of a retro search are fetched at once.
"""

LONGEST_ARGUMENT = 60_000
"""
Characters of a pipeline beyond which it is not given as an argument: the system
takes 128 KiB, with all that goes with it.
"""


WAITING = 1.0
"""
The most seconds that one fetch of a retro search waits for a full page.
"""

_FROM_STDIN = ("-f", "/dev/stdin")  # where a command is to find its pipeline

_T = TypeVar("_T")


class _Named(msgspec.Struct):
    name: str


class _Pong(msgspec.Struct):
    version: str = ""
    error: Any = None


LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""
The hosts whose nodes may reach our sockets.
"""


@implementer(IEngine)
class TenzirEngine:
    """
    A Tenzir node, asked with its command line.

    Both matches run in the node, where events of several schemas may mix: a batch of
    them cannot be sent to a client. What the search finds is fetched page by page; what
    the live match finds is written to a socket of ours, or fetched, if the node cannot
    reach that. Neither opens a port.

    @ivar cut: How many events, by schema, the live match has seen with a list that
        is longer than what was looked at of it.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: str,
        binary: str,
        state: Path,
        *,
        sources: Sequence[Source] = BUILT_IN,
        positions: int = pipelines.LIST_POSITIONS,
        subdomains: bool = False,
        oldest: tuple[int, int] = OLDEST,
        silence: float = SILENCE,
        pulse: float = PULSE,
        local: bool | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        awake: Callable[[], float] = awake,
    ) -> None:
        """
        @param endpoint: The node's, C{HOST:PORT}.
        @param binary: The path of the command; see
            L{tbvast.engines.binaries.client}.
        @param state: A directory for a small configuration file, and for sockets; made
            if it is not there.
        @param sources: Which fields hold what.
        @param positions: How many elements of each list in an event are looked
            at.
        @param subdomains: Whether a domain is also found in the names below it.
        @param oldest: The oldest version of the node that is not refused.
        @param silence: Seconds of waiting for markers after which a live match is
            given up.
        @param pulse: Seconds between markers.
        @param local: Whether the node can reach a socket in C{state}; C{None} to try it
            if the node is on this machine.
        @param monotonic: The time in seconds, from any thread.
        @param awake: The seconds since the machine's start, sleep included.
        @raise tbvast.errors.Invalid: If a source is not valid.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = state / "client.yaml"
        settings.write_text(command_settings(state), encoding="utf-8")
        self._state = state
        self._notes = state / "live"
        self._notes.mkdir(mode=0o700, exist_ok=True)
        host = endpoint.rpartition(":")[0].strip("[]")
        self._local = host in LOOPBACK if local is None else local
        self._socket_after = 0.0
        self._pulse = pulse
        self._awake = awake
        self._endpoint = endpoint
        self._sources = tuple(sources)
        self._positions = positions
        self._subdomains = subdomains
        self._oldest = oldest
        self._silence = silence
        self._monotonic = monotonic
        self._plan = self._planned(frozenset(Kind))
        self.cut: Counter[str] = Counter()
        self._searching = threading.Lock()
        self._stale: set[Observable] = set()
        self._commands = Commands(
            binary,
            endpoint,
            (
                f"--config={settings}",
                "--connection-timeout=5s",
                "--console-verbosity=warning",
                "--color=never",
            ),
        )

    def _planned(self, kinds: Collection[Kind]) -> pipelines.Plan:
        return pipelines.plan(self._sources, self._positions, kinds, self._subdomains)

    def identify(self) -> EngineIdentity:
        expected = "Tenzir {}.{} or newer".format(*self._oldest)
        try:
            # The command's own `version` does not ask the node.
            version = _answer(self._commands, "identify", pipelines.ping_node(), _Pong).version
        except EngineCallFailed as e:
            # What the two say to each other changes with the version.
            if "unexpected_message" in e.reason:
                e.reason = f"node and command are of different versions; {expected} is needed"
            raise
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None:
            raise EngineUnsupported(f"of an unknown version ({shown(version)})", expected)
        if (int(numbers[1]), int(numbers[2])) < self._oldest:
            raise EngineUnsupported(f"Tenzir {version}", expected)
        return EngineIdentity("tenzir", version, self._endpoint)

    def prepare(self) -> None:
        there = self._tables()
        for table in pipelines.MAIN_TABLES:
            if table not in there:
                self._create(table)
        with self._searching:
            self._renew(there)

    def _tables(self) -> set[str]:
        lines = _run(self._commands, "prepare", pipelines.list_tables())
        return {_decoded("prepare", line, _Named).name for line in lines}

    def _create(self, table: str) -> None:
        try:
            _run(self._commands, "prepare", pipelines.create_table(table))
        except EngineCallFailed as e:
            if "already exists" not in e.reason:  # another bridge was faster
                raise

    def _renew(self, there: set[str]) -> None:
        for table in pipelines.RETRO_TABLES:
            if table in there:
                _run(self._commands, "prepare", pipelines.drop_table(table))
            self._create(table)
        self._stale.clear()

    def add(self, pieces: Iterable[Sequence[Entry]]) -> None:
        texts = map(rows.encode_entries, pieces)
        _accepted(
            "add",
            self._commands.feed(
                "add", [pipelines.update_tables(pipelines.MAIN_TABLES)], texts, timeout=WRITING
            ),
        )

    def remove(self, observables: Sequence[Observable]) -> None:
        self._write(
            "remove",
            pipelines.erase_from_tables(pipelines.MAIN_TABLES),
            rows.encode_observables(observables),
        )

    def _write(self, name: str, pipeline: str, lines: str) -> None:
        if lines:
            _accepted(name, self._commands.run(name, [pipeline], lines, timeout=WRITING))

    def contents(self) -> list[Entry]:
        found = []
        for table in pipelines.MAIN_TABLES:
            for line in _run(self._commands, "contents", pipelines.inspect_table(table), WRITING):
                found.append(rows.decode_entry(line))
        return found

    def find(
        self,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        since: float | None = None,
    ) -> Iterator[list[Match]]:
        commands = self._commands.part()
        found = self._found(commands, entries, limit, timeout, since)
        return InterruptibleIterator(found, commands.interrupt)

    def _found(
        self,
        commands: Commands,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        since: float | None,
    ) -> Generator[list[Match], None, None]:
        if not entries:
            return
        deadline = self._monotonic() + timeout
        plan = self._planned({entry.observable.kind for entry in entries})
        enough = Limit(limit, entries)
        with self._searching:
            self._forget()
            self._stale.update(entry.observable for entry in entries)
            try:
                self._write(
                    "find",
                    pipelines.update_tables(pipelines.RETRO_TABLES),
                    rows.encode_entries(entries),
                )
                search = pipelines.retro_search(plan, pipelines.RETRO_TABLES, limit, since)
                with contextlib.closing(
                    self._searched(commands, search, timeout, deadline)
                ) as pages:
                    for page in pages:
                        if found := enough.apply(_matches("find", page, plan)):
                            yield found
            except EngineTimeout as e:
                if self._monotonic() < deadline:  # one of its commands took too long
                    raise EngineCallFailed("find", str(e)) from None
                raise
            finally:
                with contextlib.suppress(EngineError):
                    self._forget()

    def _forget(self) -> None:
        """
        Remove what earlier searches left in their tables.
        """
        self._write(
            "find",
            pipelines.erase_from_tables(pipelines.RETRO_TABLES),
            rows.encode_observables(self._stale),
        )
        self._stale.clear()

    def _searched(
        self, commands: Commands, pipeline: str, timeout: float, deadline: float
    ) -> Generator[list[str], None, None]:
        """
        Run a pipeline in the node, and fetch what it finds, page by page.

        The node ends it by itself some time after the limit, should we not be
        there any more to do so.
        """
        # The node remembers the names of streams for a while: never use one twice.
        stream = f"tbvast-retro-{secrets.token_hex(8)}"
        launched = pipelines.launch_pipeline(pipeline, stream, timeout + ASKING)
        over = False
        try:
            started = _answer(commands, "find", launched, Launched)
            if started.error is not None:
                raise EngineCallFailed("find", complaint(str(started.error)))
            token: str | None = ""
            while token is not None:
                left = deadline - self._monotonic()
                if left <= 0:
                    raise EngineTimeout("find", timeout)
                fetch = pipelines.serve_results(stream, token, PAGE, min(left, WAITING))
                page = _answer(commands, "find", fetch, Page)
                if page.error is not None or page.state == "failed":
                    raise EngineCallFailed("find", complaint(str(page.error or "it failed")))
                token = page.next_continuation_token
                over = token is None
                yield [event.data.line for event in page.events]
        finally:
            if not over:
                with contextlib.suppress(EngineError):
                    _run(self._commands, "find", pipelines.end_pipeline(stream))

    def watch(self, progress: Callable[[Progress], None]) -> Iterator[list[Match]]:
        commands = self._commands.part()
        return InterruptibleIterator(self._watched(commands, progress), commands.interrupt)

    def _watched(
        self, commands: Commands, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        self._end_left()
        if self._local and self._monotonic() >= self._socket_after:
            try:
                with (
                    self._noted() as note,
                    SocketFeed.opened(
                        commands, self._commands, _asked, note, self._pipeline(note.name)
                    ) as to_us,
                ):
                    yield from self._followed(to_us, progress)
            except Unreachable as e:
                self._socket_after = self._monotonic() + UNREACHABLE
                self._log.info(
                    "The node cannot reach a socket of the bridge's ({reason}): what the live"
                    " match finds is fetched through the node's endpoint.",
                    reason=e.reason,
                )
        with (
            self._noted() as note,
            ServedFeed.opened(
                commands, self._commands, _asked, note.name, self._pipeline(note.name)
            ) as served,
        ):
            yield from self._followed(served, progress)

    def _pipeline(self, bridge: str) -> Callable[[str], str]:
        matched = pipelines.live_match(self._plan, pipelines.MAIN_TABLES, bridge)
        return lambda end: matched + end

    def _end_left(self) -> None:
        """
        End what a bridge that was killed has left in the node.
        """
        for left in self._notes.iterdir():
            feeds.end(self._commands, _asked, feeds.names(left.name))
            shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[Path]:
        """
        A directory whose name is that of one live match; it is there until that has ended.
        """
        note = self._notes / f"b{secrets.token_hex(8)}"
        note.mkdir(mode=0o700)
        yield note
        shutil.rmtree(note, ignore_errors=True)

    def _followed(
        self, feed: Feed, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        markers = Markers(self._plan.leaves, self._pulse)
        running = False
        waited = 0.0
        feed.send(markers.begin(self._awake()))
        said = self._monotonic()
        while True:
            if not markers.under_way and not markers.wait(self._awake()):
                feed.send(markers.begin(self._awake()))
                waited = 0.0
            elif not markers.heard and self._monotonic() - said > HELLO:
                feed.send(markers.again())
                said = self._monotonic()
            began = self._monotonic()
            lines = feed.receive(HELLO if markers.under_way else markers.wait(self._awake()))
            waited += self._monotonic() - began
            passed, events = rows.split_markers(lines)
            self.cut.update(rows.truncated_schemas(events))
            found = _matches("watch", events, self._plan)
            if lines and not running:
                running = True
                yield []
            if found:
                yield found
            for marker in passed:
                if (news := markers.passed(marker, self._awake())) is not None:
                    progress(news)
            # Only the time that the node was waited for.
            if markers.under_way and waited > self._silence:
                raise EngineCallFailed("watch", f"no marker came out for {self._silence:g} s")

    def interrupt(self) -> None:
        self._commands.interrupt()

    def resume(self) -> None:
        self._commands.resume()


def _accepted(name: str, result: Result) -> None:
    """
    @raise EngineCallFailed: If something was left out: the engine does so with a line that
        it cannot read, and still succeeds.
    """
    if result.warnings:
        raise EngineCallFailed(name, complaint(result.warnings))


def _run(commands: Commands, name: str, pipeline: str, timeout: float = ASKING) -> list[bytes]:
    if len(pipeline) > LONGEST_ARGUMENT:
        return commands.run(name, _FROM_STDIN, pipeline, timeout=timeout).lines
    return commands.run(name, [pipeline], timeout=timeout).lines


def _asked(commands: Commands, pipeline: str) -> bytes:
    return b"".join(_run(commands, "watch", pipeline))


def _answer(commands: Commands, name: str, pipeline: str, kind: type[_T]) -> _T:
    """
    Ask something that has one answer.
    """
    return _decoded(name, b"".join(_run(commands, name, pipeline)), kind)


def _decoded(name: str, text: bytes, kind: type[_T]) -> _T:
    try:
        return decode_json(text, kind)
    except msgspec.MsgspecError:
        raise EngineCallFailed(name, f"it answered {shown(text)}") from None


def _matches(name: str, lines: Iterable[bytes | str], plan: pipelines.Plan) -> list[Match]:
    try:
        return rows.decode_matches(lines, plan.slots)
    except Invalid as e:
        raise EngineCallFailed(name, str(e)) from None
