"""
The current engine: a Tenzir node.
"""

from __future__ import annotations

import contextlib
import functools
import math
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
from tbvast.engines.tenzir.table_guard import TableGuard
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

REPORT_SILENCE_SECONDS = 60.0
"""
Seconds without a report on the tables, and with nothing else to read, after which a live match
fails.
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

_MISSING = re.compile(r"context \W?(\w+)\W? not found")

PAGE_WAIT_SECONDS = 1.0
"""
The most seconds that a retro search waits for a full page.
"""


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
        self._guard = TableGuard(self._tables, awake)
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
        with self._searching:
            there = self._sizes(node).keys()
            # A running live match no longer uses a table that was changed.
            dropped = self._outdated.union(self._tables if self._guard.spoiled else ())
            for table in there & dropped:
                node.run(pipelines.drop_table(table))
            for table in (*self._tables, *self._retro_tables):
                if table not in there - dropped:
                    node.run(pipelines.create_table(table))
            self._searched_observables.clear()
            self._guard.renewed()

    def _sizes(self, node: NodeCalls) -> dict[str, int]:
        """
        @return: The numbers of entries of all tables in the node, by name.
        """
        lines = node.run(pipelines.list_tables())
        sizes = [decode_answer("tables", line, rows.TableSize) for line in lines]
        return {each.name: each.entries for each in sizes}

    @contextlib.contextmanager
    def _noticing_removal(self) -> Iterator[None]:
        """
        Wraps calls that need the tables.

        @raise EngineTablesChanged: If one is not there.
        """
        try:
            yield
        except EngineCallFailed as e:
            if missing := _MISSING.search(e.reason):
                raise self._guard.changed(f"{missing[1]} was removed") from None
            raise

    def add(self, batches: Iterable[Sequence[Entry]]) -> None:
        def lines() -> Iterator[str]:
            for batch in batches:
                self._guard.adding(entry.observable for entry in batch)
                yield rows.encode_entries(batch)

        update = pipelines.update_tables(self._tables)
        with self._guard.writing(), self._noticing_removal():
            NodeCalls(self._commands, "add").write(update, lines())

    def remove(self, observables: Sequence[Observable]) -> None:
        if observables:
            erase = pipelines.erase_from_tables(self._tables)
            lines = rows.encode_observables(observables)
            with self._guard.writing(), self._noticing_removal():
                self._guard.removing(observables)
                NodeCalls(self._commands, "remove").write(erase, [lines])

    def contents(self) -> list[Entry]:
        node = NodeCalls(self._commands, "contents")
        entries: list[Entry] = []
        counts: dict[str, int] = {}
        inspecting = pipelines.inspect_tables(self._tables)
        for table, pipeline in zip(self._tables, inspecting, strict=True):
            with self._noticing_removal():
                lines = node.run(pipeline, TABLE_SECONDS)
            try:
                entries += map(rows.decode_entry, lines)
            except Invalid:
                raise self._guard.changed(f"{table} has entries of others") from None
            counts[table] = len(lines)
        self._guard.counted(counts)
        return entries

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
        with self._searching, self._noticing_removal():
            self._clear_search_tables()
            self._searched_observables.update(entry.observable for entry in entries)
            guard = TableGuard(self._retro_tables, awake)
            guard.counted(dict.fromkeys(self._retro_tables, 0))
            guard.adding(self._searched_observables)
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
                    results = _decode("find", page.lines, plan)
                    if found := budget.apply(results.matches):
                        yield found
                    for report in results.reports:
                        guard.check(report, awake())
                guard.check(self._sizes(owner), awake())
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
        try:
            with feed.opened(match):
                yield from self._follow(feed, progress)
        except EngineCallFailed:
            # A match ends when one of its tables is removed.
            self._guard.check(self._sizes(owner), -math.inf)
            raise

    def _follow(
        self, feed: feeds.Feed, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        markers = Markers(self._plan.leaves)
        running = False
        waited = 0.0
        feed.send(markers.begin(awake()))
        greeted = reported = time.monotonic()
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
            if not running and (results.matches or results.markers):
                running = True
                yield []
            if results.matches:
                yield results.matches
            # Before the markers, as if the report had come first: which came first is unknown.
            for report in results.reports:
                self._guard.check(report, markers.reported())
                reported = time.monotonic()
            for marker in results.markers:
                if (news := markers.passed(marker, awake())) is not None:
                    progress(news)
            # Counts only the time spent waiting for the node.
            if markers.pending and waited > SILENCE_SECONDS:
                raise EngineCallFailed("watch", f"no marker came out for {SILENCE_SECONDS:g} s")
            if not lines and time.monotonic() - reported > REPORT_SILENCE_SECONDS:
                raise EngineCallFailed("watch", "the node does not report on its tables")

    def interrupt(self) -> None:
        self._commands.interrupt()

    def resume(self) -> None:
        self._commands.resume()


def _decode(name: str, lines: Iterable[bytes | str], plan: pipelines.Plan) -> rows.Results:
    try:
        return rows.decode_results(lines, plan.slots)
    except Invalid as e:
        raise EngineCallFailed(name, str(e)) from None
