"""
The plugin as a client of another bus: it takes in its intel, and reports sightings to it.

Two buses may name each other: no journal accepts an item twice, so nothing circulates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.bus.fanout import CommittedBatch
from tbvast.bus_client.subscription import BusSubscription, Listener, SubscriptionRequest
from tbvast.interfaces import IBacklog, IJournal
from tbvast.protocol.frames import Item
from tbvast.protocol.topics import Stream
from tbvast.service.flusher import Flusher
from tbvast.settings.schema import UpstreamSettings
from tbvast.storage.set_aside import SetAside, Stage, id_in
from tbvast.values import HostPort, PageRequest, Position, WaitingSighting
from tbvast.zeromq.curve import load_client_options
from tbvast.zeromq.sockets import Factory

NAME = "tbvast-plugin"
HEARTBEAT = 5.0

Take = Callable[[Sequence[Item]], Deferred[Any]]
"""
Takes in items from another bus; fires when they are durable.
"""


@attrs.define(eq=False)
class IntelCursor(Listener):
    """
    Takes in another bus's intel, and stores the position in the journal.

    Indicators that the other bus no longer has stay: other publishers may have sent them, too.

    @param reader: The name under which the position is stored.
    """

    _journal: IJournal
    _reader: str

    async def recall(self) -> None:
        """
        Read the stored position.
        """
        self.position = await self._journal.position(self._reader)

    async def apply(
        self, items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> None:
        await super().apply(items, None)
        if position is not None:
            await self._journal.set_position(self._reader, position)
            self.position = position


@implementer(IBacklog)
@attrs.define(eq=False)
class JournalBacklog:
    """
    The sightings of a journal that another bus has not taken. Their numbers are the keys.

    The journal stores the number before the first of them. After a crash, later ones that
    the other bus has taken are sent to it again.

    @param reader: The name under which the number is stored.
    """

    _journal: IJournal
    _reader: str
    _stored: int = attrs.field(init=False, default=0)
    _read_until: int | None = attrs.field(init=False, default=None)
    _open: dict[str, None] = attrs.field(init=False, factory=dict)

    async def page(self, request: PageRequest) -> list[WaitingSighting]:
        if self._read_until is None:
            position = await self._journal.position(self._reader)
            self._read_until = self._stored = position.number if position else 0
        left_out = frozenset(request.without)
        while wanted := [key for key in self._open if key not in left_out]:
            entries = await self._entries(int(wanted[0]) - 1, request.count, request.size)
            found = {each.key: each for each in entries}
            last = max(map(int, found), default=int(wanted[-1]) + 1)
            for key in wanted:
                if key not in found and int(key) < last:
                    del self._open[key]  # the journal has pruned it
            if again := [found[key] for key in wanted if key in found]:
                return again
        entries = await self._entries(self._read_until, request.count, request.size)
        if entries:
            self._open.update((each.key, None) for each in entries)
            self._read_until = int(entries[-1].key)
        return entries

    async def _entries(self, after: int, count: int, size: int) -> list[WaitingSighting]:
        entries = await self._journal.entries(after, (Stream.SIGHTING,), count, size)
        return [WaitingSighting(str(entry.number), entry.raw) for entry in entries]

    async def one(self, key: str) -> list[WaitingSighting]:
        found = [each for each in await self._entries(int(key) - 1, 1, 1) if each.key == key]
        if not found:
            self._open.pop(key, None)
        return found

    async def mark_sent(
        self, keys: Collection[str], request: PageRequest | None
    ) -> list[WaitingSighting] | None:
        for key in keys:
            self._open.pop(key, None)
        number = int(next(iter(self._open))) - 1 if self._open else self._read_until or 0
        if number > self._stored:
            await self._journal.set_position(self._reader, Position(self._journal.identity, number))
            self._stored = number
        return None if request is None else await self.page(request)

    async def set_aside(self, reasons: Mapping[str, str]) -> None:
        stream = Stream.SIGHTING.value.decode()
        items = [
            SetAside(Stage.REPORT, reason, raw, stream, id_in(raw), int(key))
            for key, reason in reasons.items()
            for _, raw in await self.one(key)
        ]
        await self._journal.set_aside(items)
        await self.mark_sent(reasons, None)


class Upstream(Service):
    """
    The connection to one other bus.

    The sightings of the journal are reported to it. A bus that speaks tbvast/1 says when
    they are durable; another one is sent each of them once.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        settings: UpstreamSettings,
        journal: IJournal,
        take: Take,
        subscribe: Callable[..., BusSubscription] = BusSubscription,
    ) -> None:
        """
        @param settings: The other bus.
        @param take: Takes in the other bus's intel.
        @param subscribe: Makes the subscription to the other bus.
        @raise KeyUnusable: If a key file cannot be used.
        """
        self._cursor = IntelCursor(take, journal, f"intel {settings.threatbus}")
        self._flusher = Flusher(
            reactor,
            JournalBacklog(journal, f"sightings {settings.threatbus}"),
            lambda documents: self._subscription.report_sightings(documents),
        )
        self._subscription = subscribe(
            reactor,
            factory,
            HostPort.parse(settings.threatbus),
            SubscriptionRequest(("stix2/indicator",), settings.snapshot, NAME, HEARTBEAT),
            self._cursor,
            ready=self._flusher.flush,
            keys=load_client_options(settings.curve_key, settings.server_key),
        )

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._begin())

    async def _begin(self) -> None:
        try:
            await self._cursor.recall()
            if self.running:
                self._subscription.startService()
                self._flusher.startService()
        except Exception:
            self._log.failure("Cannot start the connection to an upstream bus")

    def deliver(self, batch: CommittedBatch) -> None:
        """
        Report the sightings of a batch that the journal has accepted.
        """
        if Stream.SIGHTING in batch.streams:
            self._flusher.flush()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._subscription.running:
            flushed = self._flusher.stopService()
            await self._subscription.stopService()  # fails requests that are not answered
            await flushed
