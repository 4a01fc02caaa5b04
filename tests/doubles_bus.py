"""
Doubles for tests of the bus.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zmq.utils import z85
from zope.interface import implementer

from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.client import Journal, set_aside
from tbvast.bus.journal.reader import JournalReader
from tbvast.bus.journal.values import Opened, Outcome
from tbvast.bus.journal.writer import JournalStore
from tbvast.bus.snapshots import JournalSource, Snapshots
from tbvast.bus.subscription import LOSSES_PER_MINUTE, BusParts, Subscription
from tbvast.bus.subscription_saver import SubscriptionSaver
from tbvast.bus.subscriptions import Subscriptions, make_subscription
from tbvast.interfaces import (
    ICounters,
    IJournal,
    IPausable,
    IPublisher,
    ISnapshotSource,
)
from tbvast.protocol.frames import INDICATOR_TOPIC, SIGHTING_TOPIC, Item
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.topics import Dialect, dialect_of, new_topic
from tbvast.service.flusher import Reported
from tbvast.service.rate_limit import RateLimit
from tbvast.settings.schema import PluginSettings
from tbvast.stix.indicators import Indicator, decode_indicator
from tbvast.storage.set_aside import SetAside
from tests.doubles import MemoryJournal, asking, call_now


def a_request(*topics: str, **changes: Any) -> Subscribe:
    """
    A subscribe request; to C{stix2/indicator} if no topic is named.
    """
    topics = topics or ("stix2/indicator",)
    fields: dict[str, Any] = {
        "topics": topics,
        "snapshot": 0,
        "dialect": dialect_of(topics[0]) if len(topics) == 1 else Dialect.STIX2,
        "protocol": "",
        "name": "",
        **changes,
    }
    return Subscribe(**fields)


def a_batch(entries: Sequence[tuple[int, Item]]) -> CommittedBatch:
    """
    A batch of items that can all be rendered.
    """

    def refuse(items: Sequence[SetAside]) -> None:
        raise AssertionError(items)

    return CommittedBatch(entries, refuse)


class DirectSubscription(Subscription):
    """
    Delivers each batch at its commit, without a journal and without a state of its own.
    """

    def __init__(self, parts: BusParts, request: Subscribe, user: str, topic: str) -> None:
        super().__init__(parts, request, user, topic, 0)
        self._keeps_up = True  # it never reads the journal

    def committed(self, batch: CommittedBatch) -> None:
        if not self.closed:
            self.deliver(batch.numbered(self.request.dialect, self.streams)[1])


def found_in(journal: IJournal, ids: Iterable[str]) -> Deferred[dict[str, bytes]]:
    """
    Read the documents of some indicators that are in force, by id.
    """
    wanted = set(ids)
    page = journal.current(0, journal.head, 0, max(journal.head, 1), 1 << 30)
    return page.addCallback(
        lambda found: {
            item.id: item.raw
            for item in (decode_indicator(raw) for _, raw in found)
            if item.id in wanted
        }
    )


class MemoryBus:
    """
    The subscriptions of a bus with its journal, and a pub endpoint in memory.

    @ivar parts: The parts that the subscriptions use.
    """

    def __init__(
        self,
        clock: IReactorTime,
        journal: MemoryJournal,
        pub: IPublisher,
        /,
        kind: Callable[[BusParts, Subscribe, str, str], Subscription] | None = None,
        sources: Sequence[ISnapshotSource] = (),
        **settings: Any,
    ) -> None:
        """
        @param kind: Makes all subscriptions; by default the bus's own factory does.
        @param sources: The sources of snapshots; by default the journal.
        """
        self.subscriptions = Subscriptions(clock, some_settings(**settings))
        everybody = self.subscriptions.everybody
        self.snapshots = Snapshots(
            clock,
            clock.seconds,
            sources or [JournalSource(journal)],
            everybody,
            functools.partial(set_aside, journal),
        )
        self.parts = BusParts(
            clock,
            some_settings(**settings),
            pub,
            journal,
            functools.partial(set_aside, journal),
            self.subscriptions.retry,
            self.snapshots.begin,
            self.subscriptions.close,
            RateLimit(clock, LOSSES_PER_MINUTE),
            self.subscriptions.budget,
        )
        self._kind = kind
        self.saver = SubscriptionSaver(clock, journal, everybody, journal.saved)
        self.subscriptions.restore(self.parts, journal.saved)
        for each in everybody():
            if each.owed:
                self.snapshots.begin(each)

    @property
    def _services(self) -> Sequence[IService]:
        return self.subscriptions, self.saver

    def start(self) -> None:
        for service in self._services:
            service.startService()

    def stop(self) -> Deferred[None]:
        """
        Stop in order.
        """

        async def stop() -> None:
            for service in reversed(self._services):
                await maybeDeferred(service.stopService)

        return Deferred.fromCoroutine(stop())

    def make(self, request: Subscribe, user: str = "") -> Subscription:
        if self._kind is None:
            return make_subscription(self.parts, request, user)
        return self._kind(self.parts, request, user, new_topic(request.topics[0], request.dialect))

    def open(self, request: Subscribe, user: str = "") -> Any:
        """
        Open a subscription.
        """
        subscription = self.make(request, user)
        self.subscriptions.open(subscription)
        return subscription

    def deliver(self, batch: CommittedBatch) -> Deferred[None]:
        return Deferred.fromCoroutine(self.subscriptions.deliver(batch))


@implementer(ICounters)
class MemoryCounters:
    """
    @ivar counts: The counts by kind and verdict.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def count(self, kind: str, verdict: str, number: int = 1) -> None:
        self.counts[kind, verdict] += number


@implementer(IPausable)
class MemorySub:
    """
    A sub endpoint that is read or not.

    @ivar changes: Whether it was paused, at each change.
    """

    def __init__(self) -> None:
        self.changes: list[bool] = []

    def pause(self) -> None:
        self.changes.append(True)

    def resume(self) -> None:
        self.changes.append(False)


def encode_report(item: Item) -> bytes:
    """
    Encode an item as a frame for the sub endpoint of a bus.
    """
    topic = INDICATOR_TOPIC if isinstance(item, Indicator) else SIGHTING_TOPIC
    return topic + b" " + item.raw


def some_settings(**changes: Any) -> PluginSettings:
    """
    Settings with limits that tests do not reach, and timeouts of 15 and 60 seconds.
    """
    fields: dict[str, Any] = {
        "max_subscriptions": 2000,
        "max_client_subscriptions": 1000,
        "max_topics": 16,
        "queue_messages": 100_000,
        "queue_bytes": 1 << 26,
        "heartbeat_timeout": 15.0,
        "detached_timeout": 60.0,
        **changes,
    }
    return PluginSettings(**fields)


def clients_file(path: Path, **may: str) -> dict[str, str]:
    """
    Write a file of clients.

    @param may: The permissions of each client, as written in the file, by name.
    @return: Their keys, by name.
    """
    keys = {name: z85.encode(f"{number:032}".encode()).decode() for number, name in enumerate(may)}
    path.write_text("".join(f"{keys[name]} {name} {may[name]}\n" for name in may))
    return keys


class MemoryBusSubscription(Service):
    """
    A L{tbvast.bus_client.subscription.BusSubscription} to a bus that is there or not.

    @ivar given: The arguments that it was made with.
    @ivar room: The number of sightings that the bus still accepts.
    @ivar sent: The messages to its sub endpoint.
    @ivar reported: The documents that it accepted in requests.
    @ivar poison: Documents that make a request fail.
    @ivar refused: The reasons why it never accepts some documents, by document.
    @ivar holding: Whether requests are answered only later.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self.given = (args, more)
        self.connected = False
        self.plugin = ""
        self.room = 1_000_000
        self.sent: list[bytes] = []
        self.reported: list[bytes] = []
        self.poison: set[bytes] = set()
        self.refused: dict[bytes, str] = {}
        self.holding = False
        self._held: Deferred[None] | None = None

    def connect(self, plugin: str = "") -> None:
        """
        The bus is there, and listens.
        """
        self.connected = True
        self.plugin = plugin
        self.given[1]["ready"]()

    def send(self, frame: bytes) -> bool:
        if not self.connected or not self.room:
            return False
        self.room -= 1
        self.sent.append(frame)
        return True

    def report_sightings(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        return Deferred.fromCoroutine(self._report(documents))

    async def _report(self, documents: Sequence[bytes]) -> Reported:
        if self.connected and not self.plugin:
            return Reported([self.send(SIGHTING_TOPIC + b" " + raw) for raw in documents])
        if self.connected and self.holding:
            self._held = Deferred()
            await self._held
        none = [False] * len(documents)
        if not self.connected:
            return Reported(none)
        if self.poison.intersection(documents):
            return Reported(none, {}, "no answer", True)
        refused = {n: self.refused[raw] for n, raw in enumerate(documents) if raw in self.refused}
        taken = documents[: self.room]
        self.room -= len(taken)
        self.reported.extend(raw for raw in taken if raw not in self.refused)
        return Reported([True] * len(taken) + none[len(taken) :], refused)

    def release(self) -> None:
        """
        The bus answers.
        """
        held, self._held = self._held, None
        if held is not None:
            held.callback(None)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.connected = False
        self.release()
        return succeed(None)


class FileJournal:
    """
    A journal in a file, which is written without a process, and read without a thread.

    @ivar journal: The L{Journal}.
    @ivar store: The writer.
    @ivar reader: The reader.
    @ivar lost: The reasons why the file can no longer be used.
    """

    def __init__(
        self,
        path: Path,
        clock: IReactorTime,
        identity: str = "bus",
        call: Callable[..., Deferred[Any]] = call_now,
    ) -> None:
        """
        @param call: Makes the calls that write.
        """
        self.store = JournalStore(path, identity)
        self.reader = JournalReader(path)
        opened = Opened(self.store.identity, self.store.head, self.store.floor)
        ask = asking(self.store, call=call)
        self.lost: list[str] = []
        self.journal = Journal(
            opened,
            clock.seconds,
            ask,
            *(self.reader, call_now),
            *(self.reader, call_now),
            self.lost.append,
        )

    def close(self) -> None:
        self.store.close()
        self.reader.close()


class FileJournalTestCase(SynchronousTestCase):
    """
    A test with a journal in a file.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path(self.mktemp())
        self.open()

    def open(self) -> None:
        self.file = FileJournal(self.path, self.clock)
        self.addCleanup(self.file.close)
        self.journal = self.file.journal

    def append(self, *items: Item) -> list[Outcome]:
        outcomes: list[Outcome] = self.successResultOf(self.journal.append(items))
        return outcomes
