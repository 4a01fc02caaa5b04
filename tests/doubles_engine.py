"""
Engines in memory, threads that a test steps by hand, and what every engine keeps to.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import (
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tbvast.engines.search_budget import SearchBudget
from tbvast.errors import (
    EngineCallFailed,
    EngineError,
    EngineInterrupted,
    EngineTablesChanged,
    EngineTimeout,
)
from tbvast.interfaces import IAdding, IEngine, IEngineClient
from tbvast.service.clock import awake
from tbvast.stix.observables import Kind, Observable
from tbvast.values import EngineIdentity, Entry, Hit, Match, Moment, Progress

SCHEMA = "suricata.http"

Deliver = Callable[[list[Match]], "Deferred[None] | None"]
T = TypeVar("T")

CALLS = ("identify", "prepare", "add", "remove", "contents", "find", "watch")
"""
The names of the calls of an engine.
"""


class WouldBlock(Exception):
    """
    The real thing would wait here, and a test would never end.
    """


class Searched(NamedTuple):
    """
    The arguments of a search of past events.
    """

    entries: list[Entry]
    limit: int
    timeout: float
    since: float | None


@implementer(IEngine)
class MemoryEngine:
    """
    An L{IEngine} whose node is this object.

    @ivar failure: What every call raises, if it is not C{None}.
    @ivar failures: What the next calls of a name raise, in order.
    @ivar log: The names of the calls that were made, in order.
    @ivar searches: The searches that were made.
    @ivar interrupted: Whether calls are interrupted.
    @ivar hears: Whether a marker comes out of a live match as soon as it runs.
    @ivar date: The node's date, in seconds since the epoch.
    @ivar awake: The seconds since the machine's start.
    @ivar moments: The moments of the markers.
    """

    def __init__(self, version: str = "6.20.0", endpoint: str = "127.0.0.1:5158") -> None:
        self.failure: EngineError | None = None
        self.failures: dict[str, list[EngineError]] = {}
        self.cut: Counter[str] = Counter()
        self.log: list[str] = []
        self.searches: list[Searched] = []
        self.interrupted = False
        self.hears = False
        self.date = 1e9
        self.awake = 0.0
        self.moments: list[Moment] = []
        self._identity = EngineIdentity("tenzir", version, endpoint)
        self._table: dict[Observable, Entry] | None = None
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._watches: list[MemoryWatch] = []
        self._spoiled = False

    # What a test does to the node

    @property
    def table(self) -> dict[Observable, tuple[str, ...]]:
        """
        The ids in the tables of L{watch}, by observable.
        """
        return {entry.observable: entry.ids for entry in (self._table or {}).values()}

    @property
    def watching(self) -> int:
        """
        The number of live matches that run.
        """
        return len(self._watches)

    def arrive(self, event: dict[str, Any], schema: str = SCHEMA) -> None:
        """
        An event is imported.
        """
        self._events.append((schema, event))
        match = found(event, schema, list((self._table or {}).values()))
        if match is not None:
            for watch in self._watches:
                watch.put([match])

    def mark(self, date: float | None = None) -> None:
        """
        A marker is imported, and passes every live match.

        @param date: The node's date from now on.
        """
        self.date = self.date + 1.0 if date is None else date
        self.awake += 1.0
        moment = Moment(self.date, self.awake, self.date - self.awake)
        self.moments.append(moment)
        lowest = min(each.ahead for each in self.moments)
        for watch in self._watches:
            watch.put(Progress(moment, moment, 0.1, lowest))

    def end_watches(self, error: Exception | None = None) -> None:
        """
        The live matches end by themselves.
        """
        for watch in self._watches:
            watch.put(error or StopIteration())

    def lose(self) -> None:
        """
        The node is killed and started again: its tables are gone.
        """
        self._table = None

    def remove_tables(self) -> None:
        """
        Somebody else removes the tables.
        """
        self._table = None
        self.tell_change()

    def empty_tables(self) -> None:
        """
        Somebody else empties the tables.
        """
        self._table = {}

    def tell_change(self) -> None:
        """
        The live matches notice that somebody else has changed the tables.
        """
        self._spoiled = True
        self.end_watches(EngineTablesChanged("tbvast_ip has other entries"))

    def replace(self, entry: Entry) -> None:
        """
        Somebody else replaces an entry, which no live match notices.
        """
        assert self._table is not None
        self._table[entry.observable] = entry

    # IEngine

    def identify(self) -> EngineIdentity:
        self._call("identify")
        return self._identity

    def prepare(self) -> None:
        self._call("prepare")
        if self._table is None or self._spoiled:
            self._table = {}
        self._spoiled = False

    def add(self, batches: Iterable[Sequence[Entry]]) -> None:
        table = self._prepared("add")
        for entries in batches:
            table.update({entry.observable: entry for entry in entries})

    def remove(self, observables: Sequence[Observable]) -> None:
        table = self._prepared("remove")
        for observable in observables:
            table.pop(observable, None)

    def contents(self) -> list[Entry]:
        return list(self._prepared("contents").values())

    def find(
        self,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        since: float | None = None,
    ) -> Iterator[list[Match]]:
        self.searches.append(Searched(list(entries), limit, timeout, since))
        late: EngineTimeout | None = None
        try:
            self._prepared("find")
        except EngineTimeout as e:
            late = e
        budget = SearchBudget(limit, entries)
        for schema, event in list(self._events):
            match = found(event, schema, entries)
            if match is not None and (matches := budget.apply([match])):
                yield matches
                self._check("find")
        if late is not None:
            raise late

    def watch(self, progress: Callable[[Progress], None]) -> MemoryWatch:
        self._prepared("watch")
        watch = MemoryWatch(self._watches.remove, progress)
        self._watches.append(watch)
        if self.hears:
            self.mark()
        return watch

    def interrupt(self) -> None:
        self.interrupted = True
        for watch in self._watches:
            watch.interrupted = True

    def resume(self) -> None:
        self.interrupted = False

    def _call(self, name: str) -> None:
        self.log.append(name)
        self._check(name)
        if failures := self.failures.get(name):
            raise failures.pop(0)

    def _check(self, name: str) -> None:
        if self.interrupted:
            raise EngineInterrupted(name)
        if self.failure is not None:
            raise self.failure

    def _prepared(self, name: str) -> dict[Observable, Entry]:
        self._call(name)
        if self._table is None:
            raise EngineTablesChanged("context `tbvast_ip` not found")
        return self._table


class MemoryWatch(Iterator[list[Match]]):
    """
    The live match of a L{MemoryEngine}.
    """

    def __init__(
        self, forget: Callable[[MemoryWatch], None], progress: Callable[[Progress], None]
    ) -> None:
        self.interrupted = False
        self._forget = forget
        self._progress = progress
        self._closed = False
        self._items: deque[list[Match] | Progress | Exception] = deque([[]])

    def put(self, item: list[Match] | Progress | Exception) -> None:
        """
        Something comes out of the match.
        """
        self._items.append(item)

    def poll(self) -> list[Match] | Progress:
        """
        @return: What comes out next.
        @raise WouldBlock: If nothing has arrived.
        """
        if self.interrupted:
            raise EngineInterrupted("watch")
        if self._closed:
            raise StopIteration
        if not self._items:
            raise WouldBlock("nothing has arrived")
        item = self._items.popleft()
        if isinstance(item, Exception):
            self.close()
            raise item
        return item

    def __next__(self) -> list[Match]:
        while isinstance(item := self.poll(), Progress):
            self._progress(item)
        return item

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._forget(self)


@implementer(IAdding)
class MemoryAdding:
    """
    An L{IAdding} that keeps what it is given until all of it was.

    @ivar pieces: What it was given.
    @ivar abandoned: Whether nobody wants to know.
    """

    def __init__(self, add: Callable[[MemoryAdding], Deferred[None]]) -> None:
        """
        @param add: Called at the end.
        """
        self._add = add
        self.pieces: list[Sequence[Entry]] = []
        self.abandoned = False
        self._interrupted = False
        self._added: Deferred[None] | None = None
        self._over = False

    def add(self, entries: Sequence[Entry]) -> None:
        if self._over:
            raise AssertionError("it is over")
        if len({entry.observable for entry in entries}) < len(entries):
            raise AssertionError("an observable is there twice")
        if not all(entry.ids for entry in entries):
            raise AssertionError("an entry that nobody wants")
        self.pieces.append(entries)

    def end(self) -> Deferred[None]:
        if self._over:
            raise AssertionError("it is over")
        self._over = True
        self._added = self._add(self)
        return self._added

    def abandon(self) -> None:
        self._over = self.abandoned = True
        if self._added is not None:
            self._added.addErrback(lambda failure: None).cancel()

    def batches(self) -> Iterator[Sequence[Entry]]:
        """
        @return: What it was given.
        @raise EngineInterrupted: After that, if it was interrupted.
        """
        yield from self.pieces
        if self._interrupted:
            raise EngineInterrupted("add")

    def interrupt(self) -> None:
        """
        The engine's calls are interrupted.
        """
        self._interrupted = True


class _Call:
    """
    A call of a L{MemoryEngineClient}.

    @ivar result: Its result; cancelling it ends the call.
    """

    def __init__(self) -> None:
        self.result: Deferred[Any] = Deferred(lambda _: self.end(CancelledError()))
        self._waiting: Deferred[Any] | None = None
        self._reason: BaseException | None = None

    async def wait(self, waiting: Deferred[None] | None) -> None:
        """
        Wait for something, unless the call has ended.
        """
        self._waiting = waiting
        if self._reason is not None:
            self.end(self._reason)
        try:
            await (waiting or succeed(None))
        except CancelledError as e:
            raise self._reason or e from None
        finally:
            self._waiting = None
        if self._reason is not None:
            raise self._reason

    def end(self, reason: BaseException) -> None:
        """
        End the call, now or when it waits next.
        """
        self._reason = self._reason or reason
        if self._waiting is not None:
            self._waiting.cancel()

    def ended(self, outcome: Any) -> None:
        """
        Tell the result.
        """
        if not self.result.called:
            self.result.callback(outcome)


@implementer(IEngineClient)
class MemoryEngineClient:
    """
    An L{IEngineClient} of a L{MemoryEngine}, without threads: calls are made at once.

    @ivar held: Names of calls that wait until L{release}.
    @ivar added: What was added, and is.
    """

    def __init__(self, engine: MemoryEngine) -> None:
        """
        @param engine: What is asked.
        """
        self.held: Collection[str] = ()
        self.added: list[MemoryAdding] = []
        self._engine = engine
        self._calls: list[_Call] = []
        self._holding: list[Deferred[None]] = []
        self._idle: list[Deferred[None]] = []

    # What only a test does

    def arrive(self, event: dict[str, Any], schema: str = SCHEMA) -> None:
        """
        An event is imported, and what it matches is delivered.
        """
        self._engine.arrive(event, schema)
        _fire(self._idle)

    def mark(self, date: float | None = None) -> None:
        """
        A marker is imported, and comes out.

        @param date: The node's date from now on.
        """
        self._engine.mark(date)
        _fire(self._idle)

    def end_watches(self, error: Exception | None = None) -> None:
        """
        The live matches end by themselves.
        """
        self._engine.end_watches(error)
        _fire(self._idle)

    def remove_tables(self) -> None:
        """
        Somebody else removes the tables.
        """
        self._engine.remove_tables()
        _fire(self._idle)

    def empty_tables(self) -> None:
        """
        Somebody else empties the tables.
        """
        self._engine.empty_tables()

    def tell_change(self) -> None:
        """
        The live match notices that somebody else has changed the tables.
        """
        self._engine.tell_change()
        _fire(self._idle)

    def release(self) -> None:
        """
        Make the calls that are held, and hold no further ones.
        """
        self.held = ()
        _fire(self._holding)

    # IEngineClient

    @property
    def cut(self) -> Mapping[str, int]:
        return self._engine.cut

    def identify(self) -> Deferred[EngineIdentity]:
        return self._simple("identify", self._engine.identify)

    def prepare(self) -> Deferred[None]:
        return self._simple("prepare", self._engine.prepare)

    def adding(self) -> MemoryAdding:
        def add(adding: MemoryAdding) -> Deferred[None]:
            return self._simple("add", lambda: self._engine.add(adding.batches()))

        self.added.append(MemoryAdding(add))
        return self.added[-1]

    def remove(self, observables: Sequence[Observable]) -> Deferred[None]:
        return self._simple("remove", lambda: self._engine.remove(observables))

    def contents(self) -> Deferred[list[Entry]]:
        return self._simple("contents", self._engine.contents)

    def find(
        self,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        deliver: Deliver,
        since: float | None = None,
    ) -> Deferred[None]:
        async def search(call: _Call) -> None:
            for batch in self._engine.find(entries, limit, timeout, since):
                await call.wait(deliver(batch))

        return self._call("find", search)

    def watch(
        self, deliver: Deliver, progress: Callable[[Progress], Deferred[None] | None]
    ) -> Deferred[None]:
        async def follow(call: _Call) -> None:
            with closing(self._engine.watch(unheeded)) as watch:
                while True:
                    try:
                        item = watch.poll()
                    except WouldBlock:
                        await call.wait(_waiting(self._idle))
                        continue
                    except StopIteration:
                        return
                    receive: Any = progress if isinstance(item, Progress) else deliver
                    await call.wait(receive(item))

        return self._call("watch", follow)

    def interrupt(self) -> None:
        self._engine.interrupt()
        for adding in self.added:
            adding.interrupt()
        for call in list(self._calls):
            call.end(EngineInterrupted())

    def resume(self) -> None:
        self._engine.resume()

    def _simple(self, name: str, method: Callable[[], T]) -> Deferred[T]:
        async def make(call: _Call) -> T:
            return method()

        return self._call(name, make)

    def _call(
        self, name: str, make: Callable[[_Call], Coroutine[Deferred[Any], Any, T]]
    ) -> Deferred[T]:
        async def run() -> T:
            if name in self.held:
                await call.wait(_waiting(self._holding))
            return await make(call)

        def ended(outcome: Any) -> None:
            self._calls.remove(call)
            call.ended(outcome)

        call = _Call()
        self._calls.append(call)
        Deferred.fromCoroutine(run()).addBoth(ended)
        return call.result


def _waiting(line: list[Deferred[None]]) -> Deferred[None]:
    waiting: Deferred[None] = Deferred(line.remove)
    line.append(waiting)
    return waiting


def _fire(line: list[Deferred[None]]) -> None:
    waiting = list(line)
    line.clear()
    for each in waiting:
        each.callback(None)


class SteppedThreads:
    """
    Worker threads that do nothing until a test says so.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Deferred[Any], Callable[[], Any]]] = deque()

    @property
    def waiting(self) -> int:
        """
        How many calls have been made and not performed.
        """
        return len(self._calls)

    def defer(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        """
        Keep a call.
        """
        result: Deferred[Any] = Deferred()
        self._calls.append((result, lambda: f(*args, **kwargs)))
        return result

    def perform(self) -> None:
        """
        Make the oldest call that is kept.
        """
        result, call = self._calls.popleft()
        try:
            value = call()
        except Exception:
            outcome: Any = Failure()
        else:
            outcome = value
        if not result.called:
            result.callback(outcome)


def call_at_once(f: Callable[..., Deferred[Any]], *args: Any) -> Any:
    """
    A stand-in for C{blockingCallFromThread}, where the test is all threads.

    @raise WouldBlock: If the L{Deferred} has not fired.
    """
    outcome: list[Any] = []
    f(*args).addBoth(outcome.append)
    if not outcome:
        raise WouldBlock("the Deferred has not fired")
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]


def found(event: dict[str, Any], schema: str, entries: Sequence[Entry]) -> Match | None:
    """
    Look for entries in any field of an event, slowly.
    """
    hits = [
        Hit(field, entry.observable.kind, entry.observable.value, entry.ids)
        for field, value in _values(event)
        for entry in entries
        if _holds(value, entry.observable)
    ]
    return Match(dict(event), schema, tuple(hits)) if hits else None


def _values(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _leaves(event)
    http = event.get("http")
    if isinstance(http, dict) and "hostname" in http and "url" in http:
        yield "http.url", f"{http['hostname']}{http['url']}"


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        for name, item in part.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(part, list):
        for position, item in enumerate(part):
            yield from _leaves(item, f"{path}[{position}]")
    elif isinstance(part, str):
        yield path, part


def _holds(value: str, observable: Observable) -> bool:
    if observable.kind is Kind.NETWORK:
        try:
            return ipaddress.ip_address(value) in ipaddress.ip_network(observable.value)
        except ValueError:
            return False
    if observable.kind is Kind.URL:
        host, slash, path = value.partition("/")
        return bool(slash) and f"{host.lower()}/{path}" == observable.value
    return value.lower() == observable.value


ADDRESS = Entry(Observable(Kind.IP, "203.0.113.7"), ("indicator--1",))
HOST = Entry(Observable(Kind.DOMAIN, "evil.example"), ("indicator--2", "indicator--3"))
URL = Entry(Observable(Kind.URL, "evil.example/x?Y=1"), ("indicator--4",))
TOGETHER = (
    Entry(Observable(Kind.IP, "203.0.113.7"), ("indicator--1", "indicator--6"), joint=True),
    Entry(Observable(Kind.DOMAIN, "evil.example"), ("indicator--6",), joint=True),
)
"""
What an indicator, C{indicator--6}, wants together; of one an other wants to know too.
"""

ABSENT = Entry(Observable(Kind.DOMAIN, "absent.example"), ("indicator--5",))


def event(number: int = 0, **http: str) -> dict[str, Any]:
    """
    An event of Suricata's, seen over HTTP.
    """
    return {
        "timestamp": f"2026-01-02T03:04:{number:02}.000000Z",
        "flow_id": number,
        "event_type": "http",
        "src_ip": "10.0.0.1",
        "src_port": 1025,
        "dest_ip": "203.0.113.7",
        "dest_port": 80,
        "http": {"hostname": "good.example", "url": "/", **http},
    }


def unheeded(progress: Progress) -> None:
    """
    Takes the word of how far a live match is, and does nothing.
    """


class EngineContract:
    """
    What every L{IEngine} keeps to; mixed into one class for each provider.
    """

    # What the test case that this is mixed into has.
    addCleanup: Any
    assertEqual: Any
    assertLessEqual: Any
    assertTrue: Any
    assertRaises: Any
    assertRegex: Any

    limit = 60.0
    """
    Seconds after which a call that should have ended is interrupted.
    """

    tells_covered = True
    """
    Whether the engine tells up to where it has matched everything.
    """

    def make_engine(self) -> IEngine:
        """
        An engine that is prepared, and holds nothing.
        """
        raise NotImplementedError

    def arrive(self, event: dict[str, Any]) -> None:
        """
        Import an event of schema C{suricata.http}.
        """
        raise NotImplementedError

    def found(self, engine: IEngine, entries: Sequence[Entry], limit: int = 0) -> list[Match]:
        """
        All that a search finds.
        """
        return [match for batch in engine.find(entries, limit, self.limit) for match in batch]

    def running(self, engine: IEngine) -> Any:
        """
        A live match that runs. It ends by itself if nothing comes for too long.
        """
        timer = self.timer = threading.Timer(self.limit, engine.interrupt)
        timer.daemon = True
        timer.start()
        self.addCleanup(timer.cancel)
        self.progress: list[Progress] = []
        watch = engine.watch(self.progress.append)
        self.assertEqual(next(watch), [])
        return watch

    def test_interface(self) -> None:
        """
        It provides its interface.
        """
        verifyObject(IEngine, self.make_engine())

    def test_identify(self) -> None:
        """
        It says who it is, with a version.
        """
        self.assertRegex(self.make_engine().identify().version, r"\d")

    def test_prepare_again(self) -> None:
        """
        What it holds survives another preparation.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS]])
        engine.prepare()
        self.assertEqual(engine.contents(), [ADDRESS])

    def test_contents(self) -> None:
        """
        What was added can be read back as it was.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS, HOST, URL]])
        self.assertEqual(
            sorted(engine.contents(), key=_by_observable),
            sorted([ADDRESS, HOST, URL], key=_by_observable),
        )

    def test_add_replaces(self) -> None:
        """
        Ids of an observable that is there already are replaced.
        """
        engine = self.make_engine()
        engine.add([[HOST]])
        again = Entry(HOST.observable, ("indicator--9",))
        engine.add([[again]])
        self.assertEqual(engine.contents(), [again])

    def test_remove(self) -> None:
        """
        What is removed is gone; what is not there need not be.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS, HOST]])
        engine.remove([HOST.observable, ABSENT.observable])
        self.assertEqual(engine.contents(), [ADDRESS])

    def test_find(self) -> None:
        """
        A search finds the events that hold an entry, and only those.
        """
        engine = self.make_engine()
        self.arrive(event(1))
        self.arrive(event(2, hostname="EVIL.example", url="/x?Y=1"))
        found = self.found(engine, [HOST, ABSENT])
        self.assertEqual([m.event["flow_id"] for m in found], [2])
        (hit,) = found[0].hits
        self.assertEqual((hit.kind, hit.value, hit.ids), (Kind.DOMAIN, "evil.example", HOST.ids))
        self.assertEqual(hit.field, "http.hostname")

    def test_find_location(self) -> None:
        """
        A URL is found in an event that holds its parts.
        """
        engine = self.make_engine()
        self.arrive(event(1, hostname="evil.example", url="/x?y=1"))
        self.arrive(event(2, hostname="EVIL.example", url="/x?Y=1"))
        found = self.found(engine, [URL])
        self.assertEqual([m.event["flow_id"] for m in found], [2])

    def test_find_limit(self) -> None:
        """
        Of one observable, no more events are returned than asked for.
        """
        engine = self.make_engine()
        for number in range(5):
            self.arrive(event(number))
        self.assertEqual(len(self.found(engine, [ADDRESS], 3)), 3)
        self.assertEqual(len(self.found(engine, [ADDRESS], 0)), 5)

    def test_find_together(self) -> None:
        """
        An event with several observables of one indicator is found with all of them,
        however many events there are with one of them, of which no more are returned
        than asked for.
        """
        engine = self.make_engine()
        for number in range(5):
            self.arrive(event(number))
        for number in range(5, 10):
            self.arrive({**event(number, hostname="evil.example"), "dest_ip": "192.0.2.1"})
        self.arrive(event(10, hostname="evil.example"))
        found = self.found(engine, TOGETHER, 2)
        seen: dict[str, dict[int, set[Kind]]] = {}
        for match in found:
            for hit in match.hits:
                for id in hit.ids:
                    events = seen.setdefault(id, {})
                    events.setdefault(match.event["flow_id"], set()).add(hit.kind)
        both = {Kind.IP, Kind.DOMAIN}
        self.assertEqual([n for n, kinds in seen["indicator--6"].items() if kinds == both], [10])
        self.assertEqual(len(seen["indicator--1"]), 2)

    def test_watch_together(self) -> None:
        """
        A live match finds all that an indicator wants together in an event at once.
        """
        engine = self.make_engine()
        engine.add([TOGETHER])
        with closing(self.running(engine)) as watch:
            self.arrive(event(1, hostname="evil.example"))
            match = next(watch)[0]
        self.assertEqual(
            sorted(hit.kind for hit in match.hits if "indicator--6" in hit.ids),
            [Kind.DOMAIN, Kind.IP],
        )

    def test_find_leaves_nothing(self) -> None:
        """
        A search changes nothing that is matched live, nor the next search.
        """
        engine = self.make_engine()
        engine.add([[URL]])
        self.arrive(event(1, hostname="evil.example"))
        self.found(engine, [HOST])
        self.assertEqual(engine.contents(), [URL])
        self.assertEqual(self.found(engine, [ABSENT]), [])

    def test_find_nothing(self) -> None:
        """
        A search for no entry at all is over at once.
        """
        self.assertEqual(self.found(self.make_engine(), []), [])

    def test_find_closed(self) -> None:
        """
        A search that was given up early leaves room for another.
        """
        engine = self.make_engine()
        self.arrive(event(1))
        batches: Any = engine.find([ADDRESS], 0, self.limit)
        with closing(batches):
            next(batches)
        self.assertEqual(len(self.found(engine, [ADDRESS])), 1)

    def test_watch(self) -> None:
        """
        A live match finds what arrives later, by what is held at that moment.
        """
        engine = self.make_engine()
        self.arrive(event(1))
        engine.add([[ADDRESS]])
        with closing(self.running(engine)) as watch:
            self.arrive(event(2))
            ((match,),) = [next(watch)]
            self.assertEqual(match.event["flow_id"], 2)
            self.assertEqual(match.hits[0].ids, ADDRESS.ids)
            engine.remove([ADDRESS.observable])
            self.arrive(event(3))
            engine.add([[HOST]])
            self.arrive(event(4, hostname="Evil.Example"))
            ((match,),) = [next(watch)]
            self.assertEqual(match.event["flow_id"], 4)

    def test_watch_progress(self) -> None:
        """
        The match tells how far it is: of what it has heard no later than of what is
        covered, and of that only when it has yielded all matches of before. An engine
        that cannot tell what is covered never says so.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS]])
        with closing(self.running(engine)) as watch:
            matches: list[Match] = []
            for number in range(1, 4):
                self.arrive(event(number))
                self.mark(engine)
                matches += next(watch)
            if self.tells_covered:
                self.covered(engine, watch)
        self.assertEqual([match.event["flow_id"] for match in matches], [1, 2, 3])
        told = [each for each in self.progress if each.covered is not None]
        for each in told:
            assert each.covered is not None and each.heard is not None
            self.assertLessEqual(each.covered.awake, each.heard.awake)
            self.assertLessEqual(each.covered.imported, each.heard.imported)
            self.assertLessEqual(each.lowest, each.heard.ahead)
        self.assertEqual(bool(told), self.tells_covered)

    def mark(self, engine: IEngine) -> None:
        """
        Have the engine be told how far it is, if it does not do so by itself.
        """

    def covered(self, engine: IEngine, watch: Any) -> None:
        """
        Wait until the match has told what is covered.
        """
        deadline = time.monotonic() + self.limit
        while not any(each.covered for each in self.progress):
            if time.monotonic() > deadline:
                raise AssertionError("nothing was covered in time")
            self.arrive(event(59))
            next(watch)

    def test_watch_again(self) -> None:
        """
        A live match can be ended, and begun again.
        """
        engine = self.make_engine()
        self.running(engine).close()
        engine.add([[ADDRESS]])
        with closing(self.running(engine)) as watch:
            self.arrive(event(1))
            self.assertEqual(len(next(watch)), 1)

    def test_interrupt(self) -> None:
        """
        Once interrupted, no call is answered until calls are allowed again.
        """
        engine = self.make_engine()
        engine.interrupt()
        for call in (
            engine.identify,
            engine.contents,
            lambda: engine.add([[ADDRESS]]),
            lambda: self.found(engine, [ADDRESS]),
            lambda: next(engine.watch(unheeded)),
        ):
            self.assertRaises(EngineInterrupted, call)
        engine.resume()
        self.assertEqual(engine.contents(), [])


class TablesContract:
    """
    What an L{IEngine} keeps to whose tables others can change; mixed into a test case with
    L{EngineContract}.
    """

    make_engine: Any
    running: Any
    mark: Any
    covered: Any
    arrive: Any
    progress: list[Progress]
    timer: threading.Timer
    assertEqual: Any
    assertLess: Any
    assertRaises: Any

    def remove_table(self) -> None:
        """
        Somebody else removes the table of addresses.
        """
        raise NotImplementedError

    def erase(self, observable: Observable) -> None:
        """
        Somebody else removes an entry.
        """
        raise NotImplementedError

    def test_table_removed(self) -> None:
        """
        Every call that needs a table that was removed says so, until the engine is prepared again.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS, HOST]])
        self.remove_table()
        for call in (
            engine.contents,
            lambda: engine.add([[ADDRESS]]),
            lambda: engine.remove([ADDRESS.observable]),
        ):
            self.assertRaises(EngineTablesChanged, call)
        engine.prepare()
        self.assertEqual(engine.contents(), [])
        engine.add([[ADDRESS]])
        self.assertEqual(engine.contents(), [ADDRESS])

    def test_watch_table_removed(self) -> None:
        """
        A live match ends if a table is removed.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS]])
        with closing(self.running(engine)) as watch:
            self.remove_table()
            self.assertRaises(EngineTablesChanged, list, watch)

    def test_watch_entry_removed(self) -> None:
        """
        A live match ends if an entry is removed. Nothing counts as covered that arrived later.
        After another preparation and a new start, it matches again.
        """
        engine = self.make_engine()
        engine.add([[ADDRESS]])
        with closing(self.running(engine)) as watch:
            self.mark(engine)
            self.covered(engine, watch)
            changed = awake()
            self.erase(ADDRESS.observable)
            self.arrive(event(1))
            self.assertRaises(EngineTablesChanged, list, watch)
        self.timer.cancel()
        for each in self.progress:
            if each.covered is not None:
                self.assertLess(each.covered.awake, changed)
        engine.prepare()
        self.assertEqual(engine.contents(), [])
        engine.add([[ADDRESS]])
        with closing(self.running(engine)) as watch:
            self.arrive(event(2))
            ((match,),) = [next(watch)]
            self.assertEqual(match.event["flow_id"], 2)


class EngineClientContract:
    """
    What every L{IEngineClient} keeps to; mixed into one class for each provider.

    @ivar engine: The engine that is asked.
    @ivar client: Its client.
    @ivar batches: What was delivered.
    """

    # What the test case that this is mixed into has.
    assertEqual: Any
    assertIs: Any
    assertNoResult: Any
    failureResultOf: Any
    successResultOf: Any

    def make_client(self, engine: MemoryEngine) -> IEngineClient:
        """
        A client of an engine.
        """
        raise NotImplementedError

    def perform(self) -> None:
        """
        Make the calls that wait; none is made before.
        """

    def setUp(self) -> None:
        self.engine = MemoryEngine()
        self.engine.prepare()
        self.client = self.make_client(self.engine)
        self.batches: list[list[Match]] = []

    def result(self, call: Deferred[Any]) -> Any:
        """
        The result of a call.
        """
        self.perform()
        return self.successResultOf(call)

    def failed(self, call: Deferred[Any], *errors: type[Exception]) -> Any:
        """
        The error of a call.
        """
        self.perform()
        return self.failureResultOf(call, *errors).value

    def find(self, *entries: Entry) -> Deferred[None]:
        """
        Search for entries without a limit.
        """
        return self.client.find(entries, 0, 1.0, self.batches.append)

    def test_interface(self) -> None:
        """
        It provides its interface.
        """
        verifyObject(IEngineClient, self.client)
        adding = self.client.adding()
        verifyObject(IAdding, adding)
        adding.abandon()
        self.perform()

    def test_calls(self) -> None:
        """
        It answers what the engine answers.
        """
        self.assertEqual(self.result(self.client.identify()), self.engine.identify())
        self.result(self.client.prepare())
        self.engine.cut["suricata.tls"] = 2
        self.assertEqual(dict(self.client.cut), {"suricata.tls": 2})

    def test_failure(self) -> None:
        """
        A call fails with the engine's error.
        """
        self.engine.failure = EngineCallFailed("contents", "no")
        for call in (self.client.identify(), self.client.contents(), self.find(ADDRESS)):
            self.assertIs(self.failed(call), self.engine.failure)

    def test_write(self) -> None:
        """
        Batches are written in order; later entries replace earlier ones.
        """
        again = Entry(HOST.observable, ("indicator--9",))
        adding = self.client.adding()
        adding.add([ADDRESS, HOST])
        adding.add([again])
        self.result(adding.end())
        self.assertEqual(self.result(self.client.contents()), [ADDRESS, again])
        self.result(self.client.remove([ADDRESS.observable]))
        self.assertEqual(self.engine.contents(), [again])

    def test_interrupt_adding(self) -> None:
        """
        A call that was interrupted before its last batch fails, whatever comes afterwards.
        """
        adding = self.client.adding()
        adding.add([ADDRESS])
        self.client.interrupt()
        self.client.resume()
        self.failed(adding.end(), EngineInterrupted)

    def test_abandon(self) -> None:
        """
        An abandoned call ends silently, before its end or after, and others are made.
        """
        before, after = self.client.adding(), self.client.adding()
        before.add([ADDRESS])
        before.abandon()
        after.add([ADDRESS])
        after.end()
        after.abandon()
        other = self.client.adding()
        other.add([HOST])
        self.result(other.end())

    def test_find(self) -> None:
        """
        Each batch of a search is delivered, then the search ends.
        """
        self.engine.arrive(event(1))
        self.engine.arrive(event(2, hostname="evil.example"))
        self.result(self.find(ADDRESS, HOST))
        self.assertEqual([len(batch) for batch in self.batches], [1, 1])

    def test_find_arguments(self) -> None:
        """
        A search has the limits that it is given.
        """
        self.result(self.client.find([ADDRESS], 3, 1.0, self.batches.append, 5.0))
        self.assertEqual(self.engine.searches, [Searched([ADDRESS], 3, 1.0, 5.0)])

    def test_find_timeout(self) -> None:
        """
        A search that runs out of time delivers its matches before.
        """
        self.engine.arrive(event(1))
        self.engine.failures["find"] = [EngineTimeout("find", 1.0)]
        self.failed(self.find(ADDRESS), EngineTimeout)
        self.assertEqual(len(self.batches), 1)

    def test_deliver_fails(self) -> None:
        """
        If a batch cannot be processed, the search ends with that error.
        """
        self.engine.arrive(event(1))
        for deliver in (lambda batch: fail(ValueError()), lambda batch: [][0]):
            self.failed(self.client.find([ADDRESS], 0, 1.0, deliver), ValueError, IndexError)

    def test_cancel_find(self) -> None:
        """
        A search that is cancelled while a batch is processed ends there, and the processing is
        cancelled.
        """
        self.engine.arrive(event(1))
        self.engine.arrive(event(2))
        cancelled: list[object] = []

        def deliver(batch: list[Match]) -> Deferred[None]:
            self.batches.append(batch)
            search.cancel()
            return Deferred(cancelled.append)

        search = self.client.find([ADDRESS], 0, 1.0, deliver)
        self.failed(search, CancelledError)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(len(self.batches), 1)

    def test_cancel_watch(self) -> None:
        """
        A live match that is cancelled delivers nothing more.
        """

        def deliver(batch: list[Match]) -> None:
            self.batches.append(batch)
            self.engine.mark()
            watch.cancel()

        watch = self.client.watch(deliver, lambda news: self.batches.append([]))
        self.failed(watch, CancelledError)
        self.assertEqual(self.batches, [[]])
        self.assertEqual(self.engine.watching, 0)

    def test_watch(self) -> None:
        """
        The live match delivers the empty batch first, and then what arrives, until it is
        cancelled.
        """
        self.engine.add([[ADDRESS]])

        def deliver(batch: list[Match]) -> Deferred[None] | None:
            self.batches.append(batch)
            if batch:
                return fail(OSError("the disk refuses"))
            self.engine.arrive(event(1))
            return None

        self.failed(self.client.watch(deliver, unheeded), OSError)
        self.assertEqual([len(batch) for batch in self.batches], [0, 1])
        self.engine.arrive(event(2))
        self.assertEqual(self.engine.watching, 0)

    def test_watch_ends(self) -> None:
        """
        A live match that ends by itself, or fails, says so.
        """

        def deliver(batch: list[Match]) -> None:
            self.engine.end_watches(error)

        error: Exception | None = None
        self.result(self.client.watch(deliver, unheeded))
        error = EngineCallFailed("watch", "no")
        self.assertIs(self.failed(self.client.watch(deliver, unheeded)), error)
        self.assertEqual(self.engine.watching, 0)

    def test_progress(self) -> None:
        """
        Progress is reported when all matches before have been delivered, and before the next.
        """
        self.engine.add([[ADDRESS]])
        said: list[int | None] = []

        def deliver(batch: list[Match]) -> None:
            said.append(len(batch))
            if not batch:
                self.engine.mark()
                self.engine.arrive(event(1))
                self.engine.mark()
                self.engine.end_watches()

        self.result(self.client.watch(deliver, lambda news: said.append(None)))
        self.assertEqual(said, [0, None, 1, None])

    def test_progress_not_stored(self) -> None:
        """
        If the progress cannot be stored, the match ends.
        """

        def deliver(batch: list[Match]) -> None:
            self.engine.mark()

        watch = self.client.watch(deliver, lambda news: fail(OSError("the disk refuses")))
        self.failed(watch, OSError)

    def test_interrupt(self) -> None:
        """
        An interrupt ends the delivery, and every call until calls are allowed again.
        """
        cancelled: list[object] = []

        def deliver(batch: list[Match]) -> Deferred[None]:
            self.client.interrupt()
            return Deferred(cancelled.append)

        self.failed(self.client.watch(deliver, unheeded), EngineInterrupted)
        self.assertEqual(len(cancelled), 1)
        self.failed(self.client.identify(), EngineInterrupted)
        self.failed(self.find(ADDRESS), EngineInterrupted)
        self.client.resume()
        self.result(self.client.identify())


def _by_observable(entry: Entry) -> Observable:
    return entry.observable
