"""
Doubles for tests of the bus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zmq.utils import z85
from zope.interface import implementer

from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.journal.client import Journal
from tbvast.bus.journal.reader import JournalReader
from tbvast.bus.journal.values import Opened, Outcome
from tbvast.bus.journal.writer import JournalStore
from tbvast.bus.subscriptions import Limits, Saved, Subscription
from tbvast.interfaces import ICounters, IPausable
from tbvast.protocol.frames import INDICATOR_TOPIC, SIGHTING_TOPIC, Item
from tbvast.protocol.manage import Subscribe
from tbvast.protocol.topics import Dialect, dialect_of
from tbvast.service.flusher import Reported
from tbvast.stix.indicators import Indicator
from tests.doubles import asking, call_now


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


class DirectSubscription(Subscription):
    """
    Delivers each batch at its commit, without a journal and without a state of its own.
    """

    def __init__(self, *args: Any, saved: Saved | None = None) -> None:
        super().__init__(*args)

    def committed(self, batch: CommittedBatch) -> None:
        self.deliver(batch.numbered(self.request.dialect, self.streams)[1])


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


def some_limits(**changes: Any) -> Limits:
    """
    Limits that tests do not reach, and timeouts of 15 and 60 seconds.
    """
    fields: dict[str, Any] = {
        "subscriptions": 2000,
        "client_subscriptions": 1000,
        "topics": 16,
        "queue_messages": 100_000,
        "queue_bytes": 1 << 26,
        "heartbeat_timeout": 15.0,
        "detached_timeout": 60.0,
        **changes,
    }
    return Limits(**fields)


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
        self.journal = Journal(opened, clock.seconds, ask, self.reader, call_now, self.lost.append)

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
