"""
Engines in memory, threads that a test steps by hand, and what every engine keeps to.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tbvast.engines.search_budget import SearchBudget
from tbvast.errors import EngineCallFailed, EngineError, EngineInterrupted
from tbvast.interfaces import IAdding, IEngine, IEngineClient
from tbvast.stix.observables import Kind, Observable
from tbvast.values import EngineIdentity, Entry, Hit, Match, Moment, Progress

SCHEMA = "suricata.http"


class WouldBlock(Exception):
    """
    The real thing would wait here, and a test would never end.
    """


@implementer(IEngine)
class MemoryEngine:
    """
    An L{IEngine} whose node is this object.

    @ivar failure: What every call raises, if it is not C{None}.
    @ivar log: The names of the calls that were made, in order.
    """

    def __init__(self, version: str = "6.20.0", endpoint: str = "127.0.0.1:5158") -> None:
        self.failure: EngineError | None = None
        self.cut: Counter[str] = Counter()
        self.log: list[str] = []
        self._identity = EngineIdentity("tenzir", version, endpoint)
        self._table: dict[Observable, Entry] | None = None
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._watches: list[_Watch] = []
        self._interrupted = False
        self._marked = 0

    # What a test does to the node

    def arrive(self, event: dict[str, Any], schema: str = SCHEMA) -> None:
        """
        An event is imported.
        """
        self._events.append((schema, event))
        match = found(event, schema, list((self._table or {}).values()))
        if match is not None:
            for watch in self._watches:
                watch.put(match)

    def lose(self) -> None:
        """
        The node is killed and started again: its tables are gone.
        """
        self._table = None

    # IEngine

    def identify(self) -> EngineIdentity:
        self._call("identify")
        return self._identity

    def prepare(self) -> None:
        self._call("prepare")
        if self._table is None:
            self._table = {}

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
        self._prepared("find")
        budget = SearchBudget(limit, entries)
        for schema, event in list(self._events):
            match = found(event, schema, entries)
            if match is not None and (matches := budget.apply([match])):
                yield matches
                self._call("find")

    def watch(self, progress: Callable[[Progress], None]) -> Iterator[list[Match]]:
        self._prepared("watch")
        watch = _Watch(self._watches.remove, progress)
        self._watches.append(watch)
        return watch

    def mark(self) -> None:
        """
        A marker is imported, and passes every live match.
        """
        self._marked += 1
        moment = Moment(1e9 + self._marked, float(self._marked), 1e9)
        for watch in self._watches:
            watch.put_progress(Progress(moment, moment, 0.0, 1e9))

    def interrupt(self) -> None:
        self._interrupted = True
        for watch in self._watches:
            watch.interrupted = True

    def resume(self) -> None:
        self._interrupted = False

    def _call(self, name: str) -> None:
        self.log.append(name)
        if self._interrupted:
            raise EngineInterrupted(name)
        if self.failure is not None:
            raise self.failure

    def _prepared(self, name: str) -> dict[Observable, Entry]:
        self._call(name)
        if self._table is None:
            raise EngineCallFailed(name, "context `tbvast_ip` not found")
        return self._table


class _Watch(Iterator[list[Match]]):
    """
    The live match of a L{MemoryEngine}.
    """

    def __init__(
        self, forget: Callable[[_Watch], None], progress: Callable[[Progress], None]
    ) -> None:
        self.interrupted = False
        self._forget = forget
        self._progress = progress
        self._closed = False
        self._batches: deque[list[Match] | Progress] = deque([[]])

    def put(self, match: Match) -> None:
        self._batches.append([match])

    def put_progress(self, progress: Progress) -> None:
        self._batches.append(progress)

    def __next__(self) -> list[Match]:
        if self.interrupted:
            raise EngineInterrupted("watch")
        if self._closed:
            raise StopIteration
        while self._batches:
            item = self._batches.popleft()
            if not isinstance(item, Progress):
                return item
            self._progress(item)
        raise WouldBlock("nothing has arrived")

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

    def __init__(self, add: Callable[[list[Sequence[Entry]]], Deferred[None]]) -> None:
        """
        @param add: Called with all of it.
        """
        self._add = add
        self.pieces: list[Sequence[Entry]] = []
        self.abandoned = False
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
        self._added = self._add(self.pieces)
        return self._added

    def abandon(self) -> None:
        self._over = self.abandoned = True
        if self._added is not None:
            self._added.addErrback(lambda failure: None).cancel()


@implementer(IEngineClient)
class MemoryEngineClient:
    """
    An L{IEngineClient} of a L{MemoryEngine}, without threads: calls are made at
    once.

    @ivar engine: What is asked.
    @ivar watching: The results of the live matches that run.
    """

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.watching: list[Deferred[None]] = []
        self._deliveries: list[tuple[Iterator[list[Match]], Any]] = []

    def arrive(self, event: dict[str, Any], schema: str = SCHEMA) -> None:
        """
        An event is imported, and what it matches is delivered.
        """
        self.engine.arrive(event, schema)
        for watch, deliver in list(self._deliveries):
            self._pump(watch, deliver)

    def mark(self) -> None:
        """
        A marker is imported, and comes out.
        """
        self.engine.mark()
        for watch, deliver in list(self._deliveries):
            self._pump(watch, deliver)

    def end_watches(self, error: EngineError) -> None:
        """
        The live matches end by themselves.
        """
        self._deliveries.clear()
        watching, self.watching = self.watching, []
        for result in watching:
            result.errback(error)

    def _pump(self, watch: Iterator[list[Match]], deliver: Any) -> None:
        try:
            while True:
                deliver(next(watch))
        except WouldBlock:
            pass

    def identify(self) -> Deferred[EngineIdentity]:
        return maybeDeferred(self.engine.identify)

    def prepare(self) -> Deferred[None]:
        return maybeDeferred(self.engine.prepare)

    def adding(self) -> MemoryAdding:
        return MemoryAdding(lambda pieces: maybeDeferred(self.engine.add, pieces))

    def remove(self, observables: Sequence[Observable]) -> Deferred[None]:
        return maybeDeferred(self.engine.remove, observables)

    def contents(self) -> Deferred[list[Entry]]:
        return maybeDeferred(self.engine.contents)

    async def _find(self, batches: Iterator[list[Match]], deliver: Any) -> None:
        for batch in batches:
            delivered = deliver(batch)
            if delivered is not None:
                await delivered

    def find(
        self,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        deliver: Callable[[list[Match]], Deferred[None] | None],
        since: float | None = None,
    ) -> Deferred[None]:
        batches = self.engine.find(entries, limit, timeout, since)
        return Deferred.fromCoroutine(self._find(batches, deliver))

    def watch(
        self,
        deliver: Callable[[list[Match]], Deferred[None] | None],
        progress: Callable[[Progress], Deferred[None] | None],
    ) -> Deferred[None]:
        def told(news: Progress) -> None:
            progress(news)

        try:
            watch = self.engine.watch(told)
        except EngineError:
            return fail()
        delivery = (watch, deliver)

        def end(result: Deferred[None]) -> None:
            self._deliveries.remove(delivery)
            self.watching.remove(result)

        running: Deferred[None] = Deferred(end)
        self.watching.append(running)
        self._deliveries.append(delivery)
        self._pump(watch, deliver)
        return running

    def interrupt(self) -> None:
        self.engine.interrupt()
        self.end_watches(EngineInterrupted("watch"))

    def resume(self) -> None:
        self.engine.resume()


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
        timer = threading.Timer(self.limit, engine.interrupt)
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


def _by_observable(entry: Entry) -> Observable:
    return entry.observable
