"""
The current engine: a Tenzir node.
"""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.engines.pyvast_calls import Commands, InterruptibleIterator
from tbvast.engines.search_budget import SearchBudget
from tbvast.engines.tenzir import feeds, pipelines, rows
from tbvast.engines.tenzir.configuration import Tls, command_settings
from tbvast.engines.tenzir.markers import Markers
from tbvast.engines.tenzir.node_calls import QUERY_SECONDS, TABLE_SECONDS, NodeCalls, decode_answer
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
from tbvast.stix.observables import Observable
from tbvast.telemetry.known_fields import BUILT_IN, POSITIONS, Source
from tbvast.values import EngineIdentity, Entry, Match, Progress

OLDEST_VERSION = (6, 20)
"""
The oldest version that is known to work. Version 6.19.1 does not: it may give an event the value
that a conditional expression has for another event, and so reports false matches.
"""

SOCKET_RETRY_SECONDS = 600.0
"""
Seconds until a live match tries sockets again after the node could not reach one. A node that
was only busy reaches it then; a node in its own container never does.
"""

_OPTIONS = ("--connection-timeout=5s", "--console-verbosity=warning", "--color=never")
SILENCE_SECONDS = 60.0
"""
Seconds of waiting without a marker after which a live match fails.
"""

HELLO_SECONDS = 1.0
"""
Seconds between imports of the first markers until one comes out; also the longest single wait.
"""

PAGE_WAIT_SECONDS = 1.0
"""
The most seconds that a retro search waits for a full page.
"""


class _TableName(msgspec.Struct):
    name: str


class _Pong(msgspec.Struct):
    version: str = ""


@implementer(IEngine)
class TenzirEngine:
    """
    A Tenzir node, driven through its command line.

    Both matches run in the node, because events of several schemas in one batch cannot be sent
    to a client. The matches of a search are fetched page by page. Those of the live match are
    written to one of the bridge's sockets, or fetched if the node cannot reach it. Neither way
    opens a port.

    @ivar cut: The numbers of events with a list that the live match did not read to its end,
        by schema.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: str,
        binary: str,
        state: Path,
        bridge: str,
        *,
        sources: Sequence[Source] = BUILT_IN,
        positions: int = POSITIONS,
        subdomains: bool = False,
        local: bool | None = None,
        own: bool = False,
        tls: Tls | None = None,
    ) -> None:
        """
        @param endpoint: The node's endpoint, C{HOST:PORT}.
        @param binary: The path of the command; see
            L{tbvast.engines.binaries.find_client}.
        @param state: A directory for a small configuration file and for sockets; created if
            necessary.
        @param bridge: The identity of the bridge, which is part of the names of its tables.
        @param sources: The fields of events that can hold observables.
        @param positions: The number of elements that are read of each list in an event.
        @param subdomains: Whether a domain also matches the names below it.
        @param local: Whether the node can reach a socket in C{state}; C{None} to try it if the
            node is on this machine.
        @param own: Whether the node belongs to this bridge, so that nobody else needs the
            tables of a bridge of 0.1.0.
        @param tls: The files for the node's endpoint; C{None} if it asks for none.
        @raise tbvast.errors.Invalid: If a source is malformed.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = state / "client.yaml"
        settings.write_text(command_settings(state, endpoint, tls), encoding="utf-8")
        self._live_directories = state / "live"
        self._live_directories.mkdir(mode=0o700, exist_ok=True)
        host = endpoint.rpartition(":")[0].strip("[]")
        self._local = host in ("127.0.0.1", "::1", "localhost") if local is None else local
        self._socket_after = 0.0
        self._endpoint = endpoint
        self._tables = pipelines.main_tables(bridge)
        self._retro_tables = pipelines.retro_tables(bridge)
        self._outdated = frozenset(self._retro_tables)
        if own:
            self._outdated |= frozenset(pipelines.OLD_TABLES)
        self._plan_for = functools.partial(
            pipelines.plan, tuple(sources), positions, subdomains=subdomains
        )
        self._plan = self._plan_for()
        self.cut: Counter[str] = Counter()
        self._searching = threading.Lock()
        self._searched_observables: set[Observable] = set()
        self._commands = Commands(binary, endpoint, (f"--config={settings}", *_OPTIONS))

    def identify(self) -> EngineIdentity:
        expected = "Tenzir {}.{} or newer".format(*OLDEST_VERSION)
        node = NodeCalls(self._commands, "identify")
        try:
            # The command's own `version` does not ask the node.
            version = node.ask(pipelines.ping_node(), _Pong).version
        except EngineCallFailed as e:
            # The protocol between command and node differs between versions.
            if "unexpected_message" in e.reason:
                e.reason = f"node and command are of different versions; {expected} is needed"
            raise
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None:
            raise EngineUnsupported(f"of an unknown version ({shown(version)})", expected)
        if (int(numbers[1]), int(numbers[2])) < OLDEST_VERSION:
            raise EngineUnsupported(f"Tenzir {version}", expected)
        return EngineIdentity("tenzir", version, self._endpoint)

    def prepare(self) -> None:
        node = NodeCalls(self._commands, "prepare")
        lines = node.run(pipelines.list_tables())
        there = {decode_answer("prepare", line, _TableName).name for line in lines}
        with self._searching:
            for table in there & self._outdated:
                node.run(pipelines.drop_table(table))
                there.remove(table)
            self._searched_observables.clear()
            for table in (*self._tables, *self._retro_tables):
                if table not in there:
                    node.run(pipelines.create_table(table))

    def add(self, batches: Iterable[Sequence[Entry]]) -> None:
        update = pipelines.update_tables(self._tables)
        NodeCalls(self._commands, "add").write(update, map(rows.encode_entries, batches))

    def remove(self, observables: Sequence[Observable]) -> None:
        if observables:
            erase = pipelines.erase_from_tables(self._tables)
            lines = rows.encode_observables(observables)
            NodeCalls(self._commands, "remove").write(erase, [lines])

    def contents(self) -> list[Entry]:
        node = NodeCalls(self._commands, "contents")
        return [
            rows.decode_entry(line)
            for table in self._tables
            for line in node.run(pipelines.inspect_table(table), TABLE_SECONDS)
        ]

    def find(
        self, entries: Sequence[Entry], limit: int, timeout: float, since: float | None = None
    ) -> Iterator[list[Match]]:
        return InterruptibleIterator(
            self._commands, lambda commands: self._search(commands, entries, limit, timeout, since)
        )

    def _search(
        self,
        commands: Commands,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        since: float | None,
    ) -> Generator[list[Match], None, None]:
        if not entries:
            return
        deadline = time.monotonic() + timeout
        plan = self._plan_for(kinds={entry.observable.kind for entry in entries})
        budget = SearchBudget(limit, entries)
        node, owner = NodeCalls(commands, "find"), NodeCalls(self._commands, "find")
        # The node remembers the names of streams for a while: never use one twice.
        stream = f"tbvast-retro-{secrets.token_hex(8)}"
        token: str | None = None
        with self._searching:
            self._clear_search_tables()
            self._searched_observables.update(entry.observable for entry in entries)
            try:
                update = pipelines.update_tables(self._retro_tables)
                owner.write(update, [rows.encode_entries(entries)])
                search = pipelines.retro_search(plan, self._retro_tables, limit, since)
                token = ""
                # If this process does not end it, the node does, some time after the limit.
                node.start(pipelines.launch_pipeline(search, stream, timeout + QUERY_SECONDS))
                while token is not None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise EngineTimeout("find", timeout)
                    wait = min(left, PAGE_WAIT_SECONDS)
                    fetch = pipelines.serve_results(stream, token, feeds.PAGE_EVENTS, wait)
                    page = node.fetch(fetch)
                    token = page.next_continuation_token
                    if found := budget.apply(_decode("find", page.lines, plan).matches):
                        yield found
            except EngineTimeout as e:
                if time.monotonic() < deadline:  # one of its commands took too long
                    raise EngineCallFailed("find", str(e)) from None
                raise
            finally:
                if token is not None:
                    owner.end(stream)
                with contextlib.suppress(EngineError):
                    self._clear_search_tables()

    def _clear_search_tables(self) -> None:
        if self._searched_observables:
            erase = pipelines.erase_from_tables(self._retro_tables)
            lines = rows.encode_observables(self._searched_observables)
            NodeCalls(self._commands, "find").write(erase, [lines])
            self._searched_observables.clear()

    def watch(self, progress: Callable[[Progress], None]) -> Iterator[list[Match]]:
        return InterruptibleIterator(
            self._commands, lambda commands: self._watch(commands, progress)
        )

    def _watch(
        self, commands: Commands, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        # Matches that have ended may have left their pipelines in the node.
        for left in self._live_directories.iterdir():
            NodeCalls(self._commands, "watch").end(*feeds.pipeline_names(left.name))
            shutil.rmtree(left, ignore_errors=True)
        if self._local and time.monotonic() >= self._socket_after:
            try:
                yield from self._match(feeds.SocketFeed, commands, progress)
            except feeds.Unreachable as e:
                self._socket_after = time.monotonic() + SOCKET_RETRY_SECONDS
                self._log.info(
                    "The node cannot reach the bridge's socket ({reason}); live matches are"
                    " fetched through the node's endpoint instead.",
                    reason=e.reason,
                )
        yield from self._match(feeds.ServedFeed, commands, progress)

    def _match(
        self, kind: type[feeds.Feed], commands: Commands, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        """
        Run a live match. It has a directory with its name, which stays until the next match
        begins: the bridge may be killed before the pipelines have ended.
        """
        directory = self._live_directories / f"b{secrets.token_hex(8)}"
        directory.mkdir(mode=0o700)
        node, owner = NodeCalls(commands, "watch"), NodeCalls(self._commands, "watch")
        feed = kind(node, owner, directory)
        match = pipelines.live_match(self._plan, self._tables, directory.name)
        with feed.opened(match):
            yield from self._follow(feed, progress)

    def _follow(
        self, feed: feeds.Feed, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        markers = Markers(self._plan.leaves)
        running = False
        waited = 0.0
        feed.send(markers.begin(awake()))
        greeted = time.monotonic()
        while True:
            if not markers.pending and not markers.wait(awake()):
                feed.send(markers.begin(awake()))
                waited = 0.0
            elif not markers.heard and time.monotonic() - greeted > HELLO_SECONDS:
                feed.send(markers.again())
                greeted = time.monotonic()
            began = time.monotonic()
            lines = feed.receive(HELLO_SECONDS if markers.pending else markers.wait(awake()))
            waited += time.monotonic() - began
            results = _decode("watch", lines, self._plan)
            self.cut.update(results.cut)
            if lines and not running:
                running = True
                yield []
            if results.matches:
                yield results.matches
            for marker in results.markers:
                if (news := markers.passed(marker, awake())) is not None:
                    progress(news)
            # Counts only the time spent waiting for the node.
            if markers.pending and waited > SILENCE_SECONDS:
                raise EngineCallFailed("watch", f"no marker came out for {SILENCE_SECONDS:g} s")

    def interrupt(self) -> None:
        self._commands.interrupt()

    def resume(self) -> None:
        self._commands.resume()


def _decode(name: str, lines: Iterable[bytes | str], plan: pipelines.Plan) -> rows.Results:
    try:
        return rows.decode_results(lines, plan.slots)
    except Invalid as e:
        raise EngineCallFailed(name, str(e)) from None
