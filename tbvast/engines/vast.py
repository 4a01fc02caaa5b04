"""
VAST, as it was from 2020 to 2022, for those who still run it.
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

from tbvast.engines.interruptible import InterruptibleIterator
from tbvast.engines.json_text import decode_json
from tbvast.engines.pyvast_calls import Commands
from tbvast.engines.search_budget import Limit
from tbvast.errors import EngineCallFailed, EngineTimeout, EngineUnsupported
from tbvast.interfaces import IEngine
from tbvast.stix.observables import Kind, Observable
from tbvast.values import EngineIdentity, Entry, Hit, Match, Progress

MATCHER = "tbvast"
"""
The name of the matcher that holds what is matched live.
"""

CALLING = 60.0
"""
Seconds for one call that is not a search.
"""

_REFERENCE = "threatbus__"

# What goes into an argument or a query as it is: no quotes, no backslash, no
# blanks, nothing but ASCII, and nothing that a command takes for an option.
_PLAIN = re.compile(r"(?!-)[!#-\[\]-~]{1,2048}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9-]{1,200}", re.ASCII)

# The engine compares with every text of an event: a file's name could be found as
# that of a host. Certificates' hashes are written in many ways.
_BEYOND = frozenset({Kind.FILE_NAME, Kind.USER_AGENT, Kind.CERTIFICATE})


class _Version(msgspec.Struct):
    VAST: str = ""


class _Indicator(msgspec.Struct):
    value: str
    context: str | None = None


class _Sighted(msgspec.Struct):
    event: dict[str, Any]
    indicator: _Indicator


@implementer(IEngine)
class VastEngine:
    """
    A VAST node, asked with its command line.

    It matches live what its C{matcher} plugin does: equal values, no networks.
    The matcher cannot be read back, so that C{contents} is what this object has
    written. What would have to be escaped is left out, and logged by its kind.

    It imports nothing that would come out of its matcher, so it does not tell how far that
    has got: after every interruption all that is stored is searched.

    It says of one observable at a time that an event holds it. What else the event
    holds for the same indicators is looked up here.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: str,
        binary: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param endpoint: The node's, C{HOST:PORT}.
        @param binary: The path of the C{vast} command.
        @param monotonic: The time in seconds, from any thread.
        """
        self.cut: Mapping[str, int] = {}  # it looks at whole lists
        self._endpoint = endpoint
        self._commands = Commands(binary, endpoint)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held = _Entries()
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
        if MATCHER.encode() not in there:
            options = ("--mode=exact", "--match-types=ip,addr,string")
            self._run("prepare", "matcher", "start", *options, MATCHER)

    def add(self, pieces: Iterable[Sequence[Entry]]) -> None:
        for entries in pieces:
            self._add(entries)

    def _add(self, entries: Sequence[Entry]) -> None:
        usable = [entry for entry in entries if self._usable(entry)]
        if usable:
            rows = b"".join(msgspec.json.encode(_row(entry)) + b"\n" for entry in usable)
            self._commands.run(
                "add",
                ("import", "--type=intel.indicator", "json"),
                rows.decode(),
                timeout=CALLING,
            )
        for entry in usable:
            value, reference = entry.observable.value, _reference(entry)
            self._run("add", "matcher", "add", MATCHER, value, reference)
            with self._lock:
                self._held.put(entry)

    def remove(self, observables: Sequence[Observable]) -> None:
        for observable in observables:
            with self._lock:
                held = self._held.pop(observable)
            if held is not None:
                self._run("remove", "matcher", "remove", MATCHER, observable.value)

    def contents(self) -> list[Entry]:
        self._run("contents", "status")
        with self._lock:
            return list(self._held)

    def find(
        self,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        since: float | None = None,
    ) -> Iterator[list[Match]]:
        commands = self._commands.part()
        return InterruptibleIterator(
            self._found(commands, entries, limit, timeout), commands.interrupt
        )

    def _found(
        self, commands: Commands, entries: Sequence[Entry], limit: int, timeout: float
    ) -> Generator[list[Match], None, None]:
        deadline = self._monotonic() + timeout
        options = self._options(commands)
        bound = (f"--max-events={limit}",) if limit else ()
        searched = _Entries(filter(expressible, entries))
        for entry in entries:
            left = deadline - self._monotonic()
            if left <= 0:
                raise EngineTimeout("find", timeout)
            if not self._usable(entry, live=False):
                continue
            beside = searched.beside(entry)
            enough = Limit(limit, [entry, *beside])
            # What it has to be seen with may come after any number of events without.
            more = () if entry.joint else bound
            arguments = ("export", *options, *more, "json", query(entry.observable))
            for lines in commands.stream("find", arguments, timeout=left):
                found = [_match("find", line, entry, beside) for line in lines if line]
                if kept := enough.apply(found):
                    yield kept

    def _options(self, commands: Commands) -> tuple[str, ...]:
        """
        What every search is given: newer versions know a lower priority.
        """
        if self._export is None:
            said = commands.run("find", ("export", "--help"), timeout=CALLING).lines
            known = any(b"--low-priority" in line for line in said)
            self._export = ("--low-priority",) if known else ()
        return self._export

    def watch(self, progress: Callable[[Progress], None]) -> Iterator[list[Match]]:
        commands = self._commands.part()
        return InterruptibleIterator(self._watched(commands, progress), commands.interrupt)

    def _watched(
        self, commands: Commands, progress: Callable[[Progress], None]
    ) -> Generator[list[Match], None, None]:
        attached = commands.stream("watch", ("matcher", "attach", "json", MATCHER))
        with contextlib.closing(attached) as batches:
            next(batches)
            yield []  # it has started, but does not say when it is attached
            progress(Progress())
            for lines in batches:
                found = [match for line in lines if (match := self._sighted(line)) is not None]
                if found:
                    yield found
        raise EngineCallFailed("watch", "the match ended by itself")

    def _sighted(self, line: bytes) -> Match | None:
        try:
            seen = decode_json(line, _Sighted)
        except msgspec.MsgspecError:
            self._log.warn("A sighting of the matcher cannot be read.", size=len(line))
            return None
        # The engine writes strings as it would read them: in quotes.
        context = (seen.indicator.context or "").strip('"')
        kind, _, ids = context.removeprefix(_REFERENCE).partition("__")
        if not context.startswith(_REFERENCE) or kind not in set(Kind) or not ids:
            return None  # somebody else's
        observable = Observable(Kind(kind), seen.indicator.value.strip('"'))
        entry = Entry(observable, tuple(ids.split(",")))
        with self._lock:
            beside = self._held.beside(entry)
        return _matched(seen.event, entry, beside)

    def interrupt(self) -> None:
        self._commands.interrupt()

    def resume(self) -> None:
        self._commands.resume()

    def _run(self, name: str, *arguments: str) -> list[bytes]:
        return self._commands.run(name, arguments, timeout=CALLING).lines

    def _usable(self, entry: Entry, live: bool = True) -> bool:
        """
        Whether an entry can be given to the command line as it is.
        """
        kind = entry.observable.kind
        if live and kind is Kind.NETWORK:
            return False
        if expressible(entry):
            return True
        self._log.warn("The engine cannot be asked for a value of kind {kind}.", kind=kind)
        return False


def expressible(entry: Entry) -> bool:
    """
    Whether an entry can be part of arguments and queries as it is, and means the
    same to the engine.
    """
    observable = entry.observable
    if observable.kind in _BEYOND or not _PLAIN.fullmatch(observable.value):
        return False
    return all(_ID.fullmatch(id) for id in entry.ids)


def query(observable: Observable) -> str:
    """
    The query for an observable whose value needs no escapes.
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


def _row(entry: Entry) -> dict[str, str]:
    return {
        "value": entry.observable.value,
        "type": entry.observable.kind.value,
        "reference": _reference(entry),
    }


def _reference(entry: Entry) -> str:
    return f"{_REFERENCE}{entry.observable.kind}__{','.join(entry.ids)}"


def _match(name: str, line: bytes, entry: Entry, beside: Iterable[Entry]) -> Match:
    try:
        event = decode_json(line, dict[str, Any])
    except msgspec.MsgspecError:
        raise EngineCallFailed(name, "it answered what is not an event") from None
    return _matched(event, entry, beside)


def _matched(event: dict[str, Any], entry: Entry, beside: Iterable[Entry]) -> Match:
    """
    The engine says neither the schema nor the field: the field is looked up.

    @param entry: What the engine has found.
    @param beside: What else may be in the event.
    """
    leaves = list(_leaves(event))
    hits = [_hit(located(leaves, entry.observable) or "", entry)]
    for other in beside:
        field = located(leaves, other.observable)
        if field is not None:
            hits.append(_hit(field, other))
    return Match(event, "", tuple(hits))


def _hit(field: str, entry: Entry) -> Hit:
    return Hit(field, entry.observable.kind, entry.observable.value, entry.ids)


class _Entries:
    """
    Entries, by observable and by the ids of indicators.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[Observable, Entry] = {}
        self._wanted: dict[str, dict[Observable, None]] = {}
        for entry in entries:
            self.put(entry)

    def put(self, entry: Entry) -> None:
        self.pop(entry.observable)
        self._entries[entry.observable] = entry
        for id in entry.ids:
            self._wanted.setdefault(id, {})[entry.observable] = None

    def pop(self, observable: Observable) -> Entry | None:
        entry = self._entries.pop(observable, None)
        for id in entry.ids if entry is not None else ():
            wanted = self._wanted[id]
            del wanted[observable]
            if not wanted:
                del self._wanted[id]
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def beside(self, entry: Entry) -> list[Entry]:
        """
        The other entries of an entry's indicators; each with only these ids.
        """
        found: dict[Observable, list[str]] = {}
        for id in entry.ids:
            for observable in self._wanted.get(id, ()):
                if observable != entry.observable:
                    found.setdefault(observable, []).append(id)
        return [
            Entry(observable, tuple(ids), self._entries[observable].joint)
            for observable, ids in found.items()
        ]


def located(leaves: Sequence[tuple[str, str]], observable: Observable) -> str | None:
    """
    Where an event holds an observable: a field's path.

    @param leaves: The event's texts, with their paths.
    """
    kind, value = observable.kind, observable.value
    if kind is Kind.URL:
        host, _, target = value.partition("/")
        if any(text.lower() == host and _name(path) in _HOSTS for path, text in leaves):
            at = (p for p, text in leaves if text == f"/{target}" and _name(p) in _TARGETS)
            return next(at, None)
        return None
    if kind is Kind.NETWORK:
        return next((path for path, text in leaves if _within(text, value)), None)
    return next((path for path, text in leaves if text.lower() == value), None)


_HOSTS = frozenset({"hostname", "host"})
_TARGETS = frozenset({"url", "uri"})


def _name(path: str) -> str:
    return path.rpartition(".")[2]


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
