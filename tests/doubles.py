"""
Doubles for the bus, its client and the bridge: in memory, keeping the contracts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bus.journal.values import (
    EVERYBODY,
    NOBODY,
    JournalEntry,
    Outcome,
    Publisher,
    Run,
    Verdict,
)
from tbvast.errors import (
    CommandFailed,
    JournalFailed,
)
from tbvast.interfaces import (
    IContextTransform,
    IJournal,
    IPublisher,
    ISink,
    ISnapshotSource,
)
from tbvast.protocol import manage
from tbvast.protocol.damaged_json import finished
from tbvast.protocol.frames import Item, stream_of
from tbvast.protocol.topics import Stream
from tbvast.stix.admission import bare_removal
from tbvast.stix.indicators import (
    Indicator,
    Operation,
    decode_indicator,
    with_operation,
    with_version,
)
from tbvast.stix.observables import Observable
from tbvast.stix.sightings import MatchType, Sighting, decode_sighting
from tbvast.storage.set_aside import SetAside, SetAsideReport, Stage
from tbvast.storage.worker_client import CallWorker
from tbvast.storage.worker_server import Unencodable, answers, encode_request, result_decoder
from tbvast.values import Hit, Match, Position

DAY = 86400.0

WAIT_LIMIT = 10.0
"""
Seconds after which what a test waits for is taken as never to come.
"""


# Documents


def indicator_id(number: int) -> str:
    return f"indicator--00000000-0000-4000-8000-{number:012x}"


def sighting_id(number: int) -> str:
    return f"sighting--00000000-0000-4000-8000-{number:012x}"


def moment(second: float) -> str:
    """
    A STIX timestamp, some seconds after the epoch.
    """
    minutes, rest = divmod(second, 60)
    days, minutes = divmod(int(minutes), 24 * 60)
    return f"1970-01-{1 + days:02}T{minutes // 60:02}:{minutes % 60:02}:{rest:09.6f}Z"


def indicator_document(number: int = 1, version: float | None = 1, **changes: Any) -> bytes:
    """
    An indicator's document; C{None} leaves a field out.

    @param version: Its C{modified}, in seconds since the epoch.
    """
    fields: dict[str, Any] = {
        "type": "indicator",
        "spec_version": "2.1",
        "id": indicator_id(number),
        "created": None if version is None else moment(0),
        "modified": None if version is None else moment(version),
        "pattern": f"[ipv4-addr:value = '192.0.2.{number % 256}']",
        "pattern_type": "stix",
        "valid_from": None if version is None else moment(0),
        **changes,
    }
    return msgspec.json.encode({key: value for key, value in fields.items() if value is not None})


def an_indicator(number: int = 1, version: float | None = 1, **changes: Any) -> Indicator:
    """
    @see: L{indicator_document}
    """
    return decode_indicator(indicator_document(number, version, **changes))


def a_sighting(number: int = 1, **changes: Any) -> Sighting:
    """
    A sighting; C{None} leaves a field out.
    """
    fields: dict[str, Any] = {
        "type": "sighting",
        "spec_version": "2.1",
        "id": sighting_id(number),
        "created": moment(number),
        "modified": moment(number),
        "sighting_of_ref": indicator_id(number),
        "last_seen": moment(number),
        **changes,
    }
    return decode_sighting(
        msgspec.json.encode({key: value for key, value in fields.items() if value is not None})
    )


def a_match(event: dict[str, Any], *hits: tuple[Observable, Sequence[str]]) -> Match:
    """
    A match of an event with some observables, and the ids of those who want them.
    """
    return Match(
        event,
        "test.event",
        tuple(Hit("field", o.kind, o.value, tuple(ids)) for o, ids in hits),
    )


# Threads and time


def call_now(f: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """
    A L{tbvast.service.thread.Defer} whose thread is done at once.
    """
    return maybeDeferred(f, *args)


def asking(*objects: object, call: Callable[..., Deferred[Any]] = call_now) -> CallWorker:
    """
    A L{CallWorker} of objects that are here; what is asked, and the result, are encoded as if they
    were in another process.

    @param call: Makes the calls.
    """

    def ask(method: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        try:
            request = encode_request(method, arguments)
        except Unencodable as e:
            return fail(e)
        return call(_asked, objects, method, request)

    untyped: Callable[..., Deferred[Any]] = ask
    return untyped


def _asked(objects: Sequence[object], method: Callable[..., Any], request: bytes) -> Any:
    decode = result_decoder(method)
    *parts, last = answers(objects, request)
    return decode(last[1:]) if last[1:] else [decode(part[1:]) for part in parts]


class SteppedThread:
    """
    A thread that does what is asked of it when the test says so.

    @ivar waiting: What it has not done yet.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def defer(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.waiting.append((result, f, args))
        return result

    def perform(self, most: int = 1000) -> None:
        """
        Do what waits, and what comes of it.

        @param most: How many calls to make at the most.
        """
        while self.waiting and most:
            most -= 1
            result, f, args = self.waiting.pop(0)
            maybeDeferred(f, *args).chainDeferred(result)


async def until(reactor: IReactorTime, condition: Callable[[], Any]) -> None:
    """
    Wait until something is so.

    @raise AssertionError: If it is not so within L{WAIT_LIMIT}.
    """
    deadline = reactor.seconds() + WAIT_LIMIT
    while not condition():
        if reactor.seconds() > deadline:
            raise AssertionError(f"not so within {WAIT_LIMIT:g} s")
        await deferLater(reactor, 0.002)


# The bus


@implementer(IJournal)
class MemoryJournal:
    """
    An L{IJournal} that remembers until it is let go.

    @ivar failing: Whether the disk refuses.
    @ivar holding: Whether L{append} waits for L{release}.
    @ivar held: What L{append} was asked for and has not done yet.
    @ivar holding_reads: Whether L{entries} waits for L{release}.
    @ivar held_reads: What L{entries} was asked for and has not done yet.
    @ivar batches: How many items each call of L{append} had.
    @ivar saved: The subscriptions that are remembered.
    @ivar saves: The changes of each call of L{save_subscriptions}.
    @ivar aside: What was set aside.
    """

    def __init__(self, clock: IReactorTime, identity: str = "memory") -> None:
        self.aside: list[SetAside] = []
        self.identity = identity
        self.head = 0
        self.floor = 0
        self.failing = False
        self.holding = False
        self.held: list[tuple[Deferred[list[Outcome]], list[Item], Sequence[Run]]] = []
        self.holding_reads = False
        self.held_reads: list[tuple[Deferred[list[JournalEntry]], tuple[Any, ...]]] = []
        self.batches: list[int] = []
        self.saved: dict[str, bytes] = {}
        self.saves: list[dict[str, bytes | None]] = []
        self._clock = clock
        self._accepted: list[JournalEntry] = []
        self._positions: dict[str, Position] = {}
        self._latest: dict[str, _Kept] = {}
        self._last = 0
        self._numbers_aside: set[int] = set()

    def append(
        self, items: Sequence[Item], publishers: Sequence[Run] = ()
    ) -> Deferred[list[Outcome]]:
        self.batches.append(len(items))
        if self.holding:
            result: Deferred[list[Outcome]] = Deferred()
            self.held.append((result, list(items), publishers))
            return result
        return self._attempt(self._append, items, publishers)

    def release(self) -> None:
        """
        Do what was held.
        """
        held, self.held = self.held, []
        for result, items, publishers in held:
            self._attempt(self._append, items, publishers).chainDeferred(result)
        reads, self.held_reads = self.held_reads, []
        for found, wanted in reads:
            if not found.called:  # cancelled
                self._attempt(self._entries, *wanted).chainDeferred(found)

    def current(
        self, after: int, until: int, since: float, limit: int, size: int
    ) -> Deferred[list[tuple[int, bytes]]]:
        return self._attempt(self._current, after, until, since, limit, size)

    def counts(self) -> Deferred[dict[str, int]]:
        return self._attempt(
            lambda: {
                "indicators": sum(self._is_current(kept) for kept in self._latest.values()),
                "sightings": sum(
                    isinstance(k.item, Sighting) and k.number not in self._numbers_aside
                    for k in self._latest.values()
                ),
            }
        )

    def entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> Deferred[list[JournalEntry]]:
        if self.holding_reads:
            result: Deferred[list[JournalEntry]] = Deferred()
            self.held_reads.append((result, (after, streams, limit, size)))
            return result
        return self._attempt(self._entries, after, streams, limit, size)

    def pruned(self, after: int, until: int) -> Deferred[int]:
        return self._attempt(
            lambda: until - after - sum(after < e.number <= until for e in self._accepted)
        )

    def position(self, reader: str) -> Deferred[Position | None]:
        return self._attempt(self._positions.get, reader)

    def set_position(self, reader: str, position: Position) -> Deferred[None]:
        return self._attempt(self._positions.__setitem__, reader, position)

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> Deferred[None]:
        return self._attempt(self._save, changes)

    def prune(self, floor: int, keep: Collection[int] = ()) -> None:
        """
        Let go of the entries up to a number, but for some.
        """
        self.floor = floor
        self._accepted = [e for e in self._accepted if e.number > floor or e.number in keep]

    def damage(self, number: int, raw: bytes) -> None:
        """
        Have another document in an entry's place.
        """
        self._accepted = [
            msgspec.structs.replace(e, raw=raw) if e.number == number else e for e in self._accepted
        ]

    def set_aside(self, items: Sequence[SetAside]) -> Deferred[None]:
        return self._attempt(self._set_aside, items)

    def _set_aside(self, items: Sequence[SetAside]) -> None:
        for item in items:
            number = item.number or self._number_of(item)
            if number in self._numbers_aside:
                continue
            self.aside.append(msgspec.structs.replace(item, number=number))
            if number:
                self._numbers_aside.add(number)

    def _number_of(self, item: SetAside) -> int:
        if item.stage in (Stage.INTAKE, Stage.APPEND):
            return 0
        return next((k.number for k in self._latest.values() if k.item.raw == item.body), 0)

    def set_aside_report(self) -> Deferred[SetAsideReport]:
        return self._attempt(self._report)

    def _report(self) -> SetAsideReport:
        if not self.aside:
            return SetAsideReport()
        newest = self.aside[-1]
        text = f"{newest.stage}: {newest.id or 'no id'}: {newest.reason}"
        return SetAsideReport(len(self.aside), text)

    def _save(self, changes: dict[str, bytes | None]) -> None:
        self.saves.append(changes)
        for topic, request in changes.items():
            self.saved.pop(topic, None)
            if request is not None:
                self.saved[topic] = request

    def _entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> list[JournalEntry]:
        found: list[JournalEntry] = []
        for entry in self._accepted:
            if entry.number in self._numbers_aside:
                continue
            if entry.number > after and entry.stream in streams and len(found) < limit:
                found.append(entry)
                size -= len(entry.raw)
                if size <= 0:
                    break
        return found

    def _attempt(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if self.failing:
            return fail(JournalFailed("the disk refuses"))
        return succeed(f(*args))

    def _append(self, items: Sequence[Item], publishers: Sequence[Run]) -> list[Outcome]:
        now = self._now()
        if now < self._last - 1_000_000:  # the clock was set back
            for kept in self._latest.values():
                kept.counts = min(kept.counts, now)
        self._last = now
        given = [p for count, p in publishers or ((len(items), EVERYBODY),) for _ in range(count)]
        return [self._keep(item, who) for item, who in zip(items, given, strict=True)]

    def _now(self) -> int:
        return int(self._clock.seconds() * 1e6)

    def _current(
        self, after: int, until: int, since: float, limit: int, size: int
    ) -> list[tuple[int, bytes]]:
        found = sorted(
            (kept.number, kept.item.raw)
            for kept in self._latest.values()
            if after < kept.number <= until and kept.received >= since and self._is_current(kept)
        )
        ends = itertools.accumulate(len(raw) for _, raw in found)
        return [each for each, end in zip(found, ends, strict=True) if end - len(each[1]) < size][
            :limit
        ]

    def _is_current(self, kept: _Kept) -> bool:
        item = kept.item
        return (
            isinstance(item, Indicator)
            and kept.in_force
            and kept.number not in self._numbers_aside
            and (item.valid_until is None or item.valid_until > self._clock.seconds() * 1e6)
        )

    def _keep(self, item: Item, who: Publisher) -> Outcome:
        kept = self._latest.get(item.id)
        aside = kept is not None and kept.number in self._numbers_aside
        if isinstance(item, Sighting):
            if kept is not None and not aside:
                return Outcome(Verdict.REPEATED, 0, item)
            return self._accept(item, True, NOBODY)
        removal = item.operation is Operation.REMOVE
        if kept is None:
            if removal and (item.pattern is None or who.name):
                return Outcome(Verdict.UNKNOWN, 0, item)
            return self._accept(item, not removal, who.name)
        if aside:  # the same version can come again
            decided = kept.decided - {(False, kept.version)}
            kept = msgspec.structs.replace(kept, version=kept.version - 1, decided=decided)
        verdict = self._judge_removal(item, kept) if removal else self._judge(item, kept)
        if verdict is not Verdict.ACCEPTED:
            return Outcome(verdict, 0, item, "why" if verdict is Verdict.OUTDATED else "")
        if not (who.manages or kept.owner in (who.name, NOBODY)):
            return Outcome(Verdict.REFUSED, 0, item, f"it belongs to {kept.owner}")
        if not removal:
            return self._accept(item, True, kept.owner or who.name, kept)
        old = kept.item
        version = item.modified or self._now()
        if item.pattern is None and aside:
            bare = bare_removal(item.id, max(version, kept.version))
            item = msgspec.structs.replace(bare, modified=version)
        elif item.pattern is None or not item.modified:
            raw = item.raw
            if item.pattern is None:
                raw = with_operation(old.raw, Operation.REMOVE)
            item = decode_indicator(with_version(raw, version))
        return self._accept(item, False, kept.owner, kept)

    def _judge_removal(self, item: Indicator, kept: _Kept) -> Verdict:
        if not kept.in_force:
            return Verdict.REPEATED
        if item.modified and (True, item.modified) in kept.decided:
            return Verdict.OUTDATED
        return Verdict.ACCEPTED

    def _judge(self, item: Indicator, kept: _Kept) -> Verdict:
        now, version = self._now(), item.modified
        if kept.in_force and version == kept.version:
            edits = item.operation is Operation.EDIT or version == 0
            different = edits and item.raw != kept.item.raw
            return Verdict.ACCEPTED if different else Verdict.REPEATED
        since = kept.version if kept.version <= now else min(kept.counts, now)
        if (version > now or version > since) and (False, version) not in kept.decided:
            return Verdict.ACCEPTED
        return Verdict.OUTDATED

    def _accept(
        self, item: Item, in_force: bool, owner: str, before: _Kept | None = None
    ) -> Outcome:
        self.head += 1
        kept = _Kept(self.head, item, in_force, self._clock.seconds(), owner, self._now())
        if isinstance(item, Indicator):
            kept.version = item.modified
            kept.decided = {(not in_force, item.modified)}
            if before is not None:
                kept.decided |= before.decided
                if not in_force:
                    kept.version = max(item.modified, before.version)
        self._latest[item.id] = kept
        self._accepted.append(JournalEntry(self.head, stream_of(item), item.raw))
        return Outcome(Verdict.ACCEPTED, self.head, item)


class _Kept(msgspec.Struct):
    """
    The latest version of something.

    @ivar version: The date that it says.
    @ivar counts: As of when it counts while that lies in the future.
    @ivar decided: Everything that was ever accepted of the same id: whether it was a
        removal, and the version.
    """

    number: int
    item: Item
    in_force: bool
    received: float
    owner: str
    counts: int
    version: int = 0
    decided: set[tuple[bool, int]] = set()


class BusyClock(Clock):
    """
    A clock that goes on with each look at it, as it does while there is work; what is
    called later is called in another turn, which is one L{advance}.
    """

    def __init__(self, step: float) -> None:
        """
        @param step: Seconds that pass between two looks.
        """
        super().__init__()
        self._step = step

    def seconds(self) -> float:
        self.rightNow += self._step
        return self.rightNow

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        for call in [call for call in self.calls if call.getTime() <= self.rightNow]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


@implementer(IPublisher)
class MemoryPub:
    """
    A pub endpoint: what it was given, while there is room.

    @ivar frames: What it took.
    @ivar room: How many frames it still takes.
    @ivar closed: Topics whose subscriber takes nothing.
    """

    def __init__(self, room: int = 1_000_000) -> None:
        self.frames: list[bytes] = []
        self.room = room
        self.closed: set[str] = set()

    def send_frames(self, frames: Iterable[bytes]) -> int:
        taken = list(itertools.islice(frames, max(self.room, 0)))
        if taken and taken[0].startswith(tuple(topic.encode() for topic in self.closed)):
            return 0
        self.room -= len(taken)
        self.frames.extend(taken)
        return len(taken)

    def unacknowledged(self, topics: Iterable[bytes]) -> int | None:
        return None

    def to(self, topic: str) -> list[bytes]:
        """
        What followed a topic in the frames that were sent to it.
        """
        prefix = topic.encode()
        return [frame[len(prefix) :] for frame in self.frames if frame.startswith(prefix)]


MOST_DOCUMENTS = 2000
"""
The most documents of a request.
"""


def decode_request(raw: bytes) -> manage.Request:
    """
    Decode a request at once.
    """
    return finished(manage.decode_request(raw, MOST_DOCUMENTS))


@implementer(ISnapshotSource)
class MemorySource:
    """
    A source that knows some pages of documents, and may fail after them.

    @ivar asked: Since when each snapshot was wanted.
    @ivar hanging: Whether it never answers.
    """

    def __init__(self, name: str, *pages: list[bytes], failure: Exception | None = None) -> None:
        self.name = name
        self.asked: list[float] = []
        self.time_limit: float | None = None
        self.hanging = False
        self._pages = pages
        self._failure = failure

    async def pages(self, since: float, send: Callable[[list[bytes]], Deferred[None]]) -> int:
        self.asked.append(since)
        if self.hanging:
            await Deferred()
        for page in self._pages:
            await send(page)
        if self._failure is not None:
            raise self._failure
        return sum(map(len, self._pages))


# The bridge


@implementer(IContextTransform)
class MemoryTransform:
    """
    A transform that says what it was asked.

    @ivar failing: Whether it leaves every event unchanged.
    """

    def __init__(self) -> None:
        self.failing = False

    def transform(
        self, event: dict[str, Any], value: str, match_type: MatchType
    ) -> Deferred[dict[str, Any]]:
        try:
            msgspec.json.encode(event)
        except TypeError:
            return succeed(event)
        if self.failing:
            return succeed(event)
        return succeed({"changed": event, "value": value, "match_type": match_type})


@implementer(ISink)
class MemorySink:
    """
    A sink that keeps what it takes.

    @ivar failure: What it answers instead of taking anything.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, Any], str, MatchType]] = []
        self.failure: CommandFailed | None = None

    def send(self, context: dict[str, Any], value: str, match_type: MatchType) -> Deferred[None]:
        if self.failure is not None:
            return fail(self.failure)
        self.taken.append((context, value, match_type))
        return succeed(None)


class _NodeTransport(StringTransport):
    """
    The client's end of a connection to a L{MemoryNode}.
    """

    def __init__(self, node: MemoryNode) -> None:
        super().__init__()
        self._node = node

    def loseConnection(self) -> None:
        self._node.hang_up()

    def abortConnection(self) -> None:
        self._node.hang_up()


@implementer(IStreamClientEndpoint)
class MemoryNode:
    """
    The endpoint of a node that is up or down.

    @ivar up: Whether somebody listens.
    @ivar attempts: How often a connection was asked for.
    """

    def __init__(self, up: bool = True) -> None:
        self.up = up
        self.attempts = 0
        self._protocol: Any = None

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        self.attempts += 1
        if not self.up:
            return fail(ConnectionRefusedError())
        self._protocol = protocolFactory.buildProtocol(None)
        self._protocol.makeConnection(_NodeTransport(self))
        return succeed(self._protocol)

    @property
    def connected(self) -> bool:
        """
        Whether somebody is connected.
        """
        return self._protocol is not None

    def hang_up(self) -> None:
        """
        End the connection.
        """
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connectionLost(Failure(ConnectionDone()))

    def die(self) -> None:
        """
        Go down, and take the connection along.
        """
        self.up = False
        self.hang_up()
