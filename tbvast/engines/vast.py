"""
The legacy engine: VAST as of 2020 to 2022.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.engines.pyvast_calls import Commands, InterruptibleIterator, decode_json
from tbvast.engines.search_budget import SearchBudget
from tbvast.errors import EngineCallFailed, EngineTimeout, EngineUnsupported
from tbvast.interfaces import IEngine
from tbvast.stix.observables import Kind, Observable
from tbvast.values import EngineIdentity, Entry, Hit, Match, Progress

CALL_SECONDS = 60.0
"""
Seconds for a call that is not a search.
"""

_REFERENCE_PREFIX = "threatbus__"

# Values that are safe in arguments and queries: ASCII without quotes, backslashes and blanks, and
# without a leading hyphen, which would make an option.
_SAFE_VALUE = re.compile(r"(?!-)[!#-\[\]-~]{1,2048}", re.ASCII)
_SAFE_ID = re.compile(r"[A-Za-z0-9-]{1,200}", re.ASCII)

# The engine compares a value with every text of an event, so that it might find the name of a
# file as that of a host. The hashes of certificates have many notations.
_INEXPRESSIBLE = frozenset({Kind.FILE_NAME, Kind.USER_AGENT, Kind.CERTIFICATE})


class _Version(msgspec.Struct):
    VAST: str


class _Intel(msgspec.Struct):
    value: str
    type: Kind
    reference: str

    @classmethod
    def of(cls, entry: Entry) -> _Intel:
        kind = entry.observable.kind
        reference = f"{_REFERENCE_PREFIX}{kind}__{','.join(entry.ids)}"
        return cls(entry.observable.value, kind, reference)


class _Indicator(msgspec.Struct):
    value: str
    context: str | None = None


class _MatcherReport(msgspec.Struct):
    event: dict[str, Any]
    indicator: _Indicator


@implementer(IEngine)
class VastEngine:
    """
    A VAST node, driven through its command line.

    Its live match is the C{matcher} plugin, which finds equal values, but no networks. A matcher
    cannot be read back, so that C{contents} returns the entries that this object was given.
    Values that would need escaping are skipped, and their kind is logged.

    Without markers in the live match, all stored events are searched after an interruption.

    The node reports one observable of an event at a time. This class looks up the other
    observables of the same indicators in the event.
    """

    _log = Logger()

    def __init__(self, endpoint: str, binary: str, bridge: str) -> None:
        """
        @param endpoint: The node's endpoint, C{HOST:PORT}.
        @param binary: The path of the C{vast} command.
        @param bridge: The identity of the bridge, which is part of the name of its matcher.
        """
        self._matcher = f"tbvast-{bridge}"
        self.cut: Mapping[str, int] = {}  # it reads every list to its end
        self._endpoint = endpoint
        self._commands = Commands(binary, endpoint)
        self._lock = threading.Lock()
        self._held = _Entries()
        self._unsupported: dict[Observable, Entry] = {}
        self._export: tuple[str, ...] | None = None

    def identify(self) -> EngineIdentity:
        self._run("identify", "status")
        said = b"\n".join(self._run("identify", "version"))
        try:
            version = msgspec.json.decode(said, type=_Version).VAST
        except msgspec.MsgspecError:
            version = ""
        if not version:
            raise EngineUnsupported("of an unknown version", "VAST of 2020 to 2022")
        return EngineIdentity("vast", version, self._endpoint)

    def prepare(self) -> None:
        there = {line.split(b" ")[0] for line in self._run("prepare", "matcher", "list")}
        if self._matcher.encode() not in there:
            options = ("--mode=exact", "--match-types=ip,addr,string")
            self._run("prepare", "matcher", "start", *options, self._matcher)

    def add(self, batches: Iterable[Sequence[Entry]]) -> None:
        for entries in batches:
            usable = [
                entry
                for entry in entries
                if entry.observable.kind is not Kind.NETWORK and self._usable(entry)
            ]
            unsupported = {entry.observable: entry for entry in entries}
            for entry in usable:
                del unsupported[entry.observable]
            with self._lock:
                self._unsupported |= unsupported
            rows = [_Intel.of(entry) for entry in usable]
            if rows:
                lines = msgspec.json.Encoder().encode_lines(rows).decode()
                importing = ("import", "--type=intel.indicator", "json")
                self._commands.run("add", importing, lines, timeout=CALL_SECONDS)
            for entry, row in zip(usable, rows, strict=True):
                self._run("add", "matcher", "add", self._matcher, row.value, row.reference)
                with self._lock:
                    self._held.put(entry)

    def remove(self, observables: Sequence[Observable]) -> None:
        for observable in observables:
            with self._lock:
                self._unsupported.pop(observable, None)
                held = self._held.pop(observable)
            if held is not None:
                self._run("remove", "matcher", "remove", self._matcher, observable.value)

    def contents(self) -> list[Entry]:
        self._run("contents", "status")
        with self._lock:
            return [*self._held, *self._unsupported.values()]

    def find(
        self, entries: Sequence[Entry], limit: int, timeout: float, since: float | None = None
    ) -> Iterator[list[Match]]:
        return InterruptibleIterator(
            self._commands, lambda commands: self._search(commands, entries, limit, timeout)
        )

    def _search(
        self, commands: Commands, entries: Sequence[Entry], limit: int, timeout: float
    ) -> Generator[list[Match], None, None]:
        deadline = time.monotonic() + timeout
        options = self._options(commands)
        bound = (f"--max-events={limit}",) if limit else ()
        searched = _Entries(filter(is_expressible, entries))
        for entry in entries:
            left = deadline - time.monotonic()
            if left <= 0:
                raise EngineTimeout("find", timeout)
            if not self._usable(entry):
                continue
            related = searched.related(entry)
            budget = SearchBudget(limit, [entry, *related])
            # Any number of events may precede one that has the other joint observables, too.
            more = () if entry.joint else bound
            arguments = ("export", *options, *more, "json", query(entry.observable))
            for lines in commands.stream("find", arguments, timeout=left):
                try:
                    events = [decode_json(line, dict[str, Any]) for line in lines if line]
                except msgspec.MsgspecError:
                    raise EngineCallFailed("find", "unexpected reply") from None
                if kept := budget.apply([_make_match(each, entry, related) for each in events]):
                    yield kept

    def _options(self, commands: Commands) -> tuple[str, ...]:
        if self._export is None:
            said = commands.run("find", ("export", "--help"), timeout=CALL_SECONDS).lines
            known = any(b"--low-priority" in line for line in said)
            self._export = ("--low-priority",) if known else ()
        return self._export

    def watch(self, progress: Callable[[Progress], None]) -> Iterator[list[Match]]:
        return InterruptibleIterator(
            self._commands, lambda commands: self._watch(commands, progress)
        )

    def _watch(
        self, commands: Commands, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        attached = commands.stream("watch", ("matcher", "attach", "json", self._matcher))
        with contextlib.closing(attached) as batches:
            next(batches)
            yield []  # it has started; when it is attached is unknown
            progress(Progress())
            for lines in batches:
                if found := [each for each in map(self._decode_report, lines) if each is not None]:
                    yield found
        raise EngineCallFailed("watch", "the match ended by itself")

    def _decode_report(self, line: bytes) -> Match | None:
        try:
            seen = decode_json(line, _MatcherReport)
        except msgspec.MsgspecError:
            self._log.warn("Cannot read a report of the matcher: {size} bytes.", size=len(line))
            return None
        # The engine writes strings in quotes.
        context = (seen.indicator.context or "").strip('"')
        kind, _, ids = context.removeprefix(_REFERENCE_PREFIX).partition("__")
        if not context.startswith(_REFERENCE_PREFIX) or kind not in set(Kind) or not ids:
            return None  # of another client
        observable = Observable(Kind(kind), seen.indicator.value.strip('"'))
        entry = Entry(observable, tuple(ids.split(",")))
        with self._lock:
            related = self._held.related(entry)
        return _make_match(seen.event, entry, related)

    def interrupt(self) -> None:
        self._commands.interrupt()

    def resume(self) -> None:
        self._commands.resume()

    def _run(self, name: str, *arguments: str) -> list[bytes]:
        return self._commands.run(name, arguments, timeout=CALL_SECONDS).lines

    def _usable(self, entry: Entry) -> bool:
        if is_expressible(entry):
            return True
        kind = entry.observable.kind
        self._log.warn("The engine does not support a value of the kind {kind}.", kind=kind)
        return False


def is_expressible(entry: Entry) -> bool:
    """
    Whether an entry is safe in arguments and queries, and has the same meaning for the engine.
    """
    observable = entry.observable
    if observable.kind in _INEXPRESSIBLE or not _SAFE_VALUE.fullmatch(observable.value):
        return False
    return all(_SAFE_ID.fullmatch(id) for id in entry.ids)


def query(observable: Observable) -> str:
    """
    @return: The query for an observable of an entry that L{is_expressible}.
    """
    value = observable.value
    if observable.kind in (Kind.IP, Kind.NETWORK):
        return value
    if observable.kind is Kind.DOMAIN:
        return f'"{value}" == net.domain || "{value}" == net.hostname'
    if observable.kind is Kind.URL:
        host, _, path = value.partition("/")
        return f'"{host}" == net.hostname && "/{path}" == net.uri'
    return f'"{value}" == :string'


def _make_match(event: dict[str, Any], entry: Entry, related: Iterable[Entry]) -> Match:
    """
    Make a match of an event. The engine does not report the field, so it is looked up.

    @param entry: The entry that the engine has found.
    @param related: Further entries that the event may hold.
    """
    leaves = list(_leaves(event))
    hits = [
        Hit(field or "", each.observable.kind, each.observable.value, each.ids)
        for each in (entry, *related)
        if (field := field_holding(leaves, each.observable)) is not None or each is entry
    ]
    return Match(event, "", tuple(hits))


class _Entries:
    """
    Entries by observable, and by the ids of their indicators.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[Observable, Entry] = {}
        self._by_id: dict[str, dict[Observable, None]] = {}
        for entry in entries:
            self.put(entry)

    def put(self, entry: Entry) -> None:
        self.pop(entry.observable)
        self._entries[entry.observable] = entry
        for id in entry.ids:
            self._by_id.setdefault(id, {})[entry.observable] = None

    def pop(self, observable: Observable) -> Entry | None:
        entry = self._entries.pop(observable, None)
        for id in entry.ids if entry is not None else ():
            remaining = self._by_id[id]
            del remaining[observable]
            if not remaining:
                del self._by_id[id]
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def related(self, entry: Entry) -> list[Entry]:
        """
        @return: The other entries of an entry's indicators, each with only these ids.
        """
        found: dict[Observable, list[str]] = {}
        for id in entry.ids:
            for observable in self._by_id.get(id, ()):
                if observable != entry.observable:
                    found.setdefault(observable, []).append(id)
        return [
            Entry(observable, tuple(ids), self._entries[observable].joint)
            for observable, ids in found.items()
        ]


def field_holding(leaves: Sequence[tuple[str, str]], observable: Observable) -> str | None:
    """
    @param leaves: The paths and texts of an event.
    @return: The path of the field that holds an observable; C{None} if no field does.
    """
    kind, value = observable.kind, observable.value
    if kind is Kind.URL:
        host, _, target = value.partition("/")
        named = [(path, path.rpartition(".")[2], text) for path, text in leaves]
        if any(text.lower() == host and name in ("hostname", "host") for _, name, text in named):
            for path, name, text in named:
                if text == f"/{target}" and name in ("url", "uri"):
                    return path
        return None
    if kind is Kind.NETWORK:
        return next((path for path, text in leaves if _within(text, value)), None)
    return next((path for path, text in leaves if text.lower() == value), None)


def _within(text: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(text) in ipaddress.ip_network(network)
    except ValueError:
        return False


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        for name, item in part.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(part, list):
        for position, item in enumerate(part):
            yield from _leaves(item, f"{path}[{position}]")
    elif isinstance(part, str):
        yield path, part
