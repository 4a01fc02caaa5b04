"""
A subscription to a bus, which is renewed whenever it is lost.

The bus is a tbvast plugin or a Threat Bus 2022.5.16 host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bus_client.manage_client import ManageClient
from tbvast.bus_client.reception import Reception, Snapshot
from tbvast.bus_client.sighting_reports import SightingReports
from tbvast.errors import BusRefused, BusUnreachable
from tbvast.interfaces import ICursor
from tbvast.protocol import manage
from tbvast.protocol.frames import Item
from tbvast.protocol.unreadable import Unreadable
from tbvast.service.flusher import Reported
from tbvast.service.rate_limit import RateLimit
from tbvast.service.retry_policy import doubling
from tbvast.service.state_machine import machine_of
from tbvast.stix.documents import JsonObject
from tbvast.values import HostPort, Position
from tbvast.zeromq.sockets import Factory, SocketOptions

_Input = Callable[[], None]

RETRY_FIRST = 0.5
RETRY_MOST = 15.0
"""
Seconds between attempts to subscribe. They double each time, up to the most.
"""

ERRORS_PER_MINUTE = 60
"""
The most log lines a minute that a bus can provoke.
"""


class SubscriptionRequest(msgspec.Struct, frozen=True):
    """
    The request that a subscription makes, again after every loss.

    @ivar topics: At least one; of the stix2 dialect.
    @ivar snapshot: The age of the indicators to begin with, in days; C{0} for none.
    @ivar name: The subscriber's name for itself.
    @ivar heartbeat: Seconds between heartbeats.
    """

    topics: tuple[str, ...]
    snapshot: int
    name: str
    heartbeat: float


@implementer(ICursor)
@attrs.define(eq=False)
class Listener:
    """
    An L{ICursor} that keeps its position in memory and passes the items on.

    @param receive: Called with the items that arrive. If it returns a C{Deferred}, the next
        items are read from the bus after that has fired.
    """

    _receive: Callable[[list[Item]], Deferred[None] | None]
    position: Position | None = attrs.field(init=False, default=None)

    async def apply(
        self, items: Sequence[Item], position: Position | None, decided: bool = False
    ) -> None:
        if items:
            done = self._receive(list(items))
            if done is not None:
                await done
        if position is not None:
            self.position = position

    async def set_aside(self, items: Sequence[Unreadable]) -> None:
        """
        Unreadable items are in the log already.
        """

    async def commit(self) -> None:
        """
        Nothing is durable here.
        """

    async def begin_snapshot(self) -> None:
        """
        A snapshot's items are passed on like all others.
        """

    async def end_snapshot(self, position: Position) -> None:
        await self.apply((), position)


TABLE = """
               start     stop           applied      accepted    lost  retry     unsubscribed
stopped        applying  stopped        -            -           -     -         -
applying       -         stopping       subscribing  -           -     -         -
subscribing    -         stopping       -            subscribed  lost  -         -
subscribed     -         unsubscribing  -            -           lost  -         -
lost           -         stopping       -            -           -     applying  -
unsubscribing  -         -              -            -           -     -         stopping
stopping       -         -              stopped      -           -     -         -
"""
"""
The states of a L{BusSubscription}, the inputs, and the state that follows; C{-} where the
input comes too late and has no effect.
"""


class Inputs(Protocol):
    """
    The inputs of a L{BusSubscription}:

        - C{start} and C{stop}: the service starts, and stops;
        - C{applied}: the items of the last subscription are applied, and the position with them;
        - C{accepted}: the bus has accepted the request to subscribe, and the cursor is ready;
        - C{lost}: the bus does not answer, refuses, forgets, or has to send items again;
        - C{retry}: the delay after a loss is over;
        - C{unsubscribed}: the bus has confirmed the end of the subscription, or is away.
    """

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def applied(self) -> None: ...
    def accepted(self) -> None: ...
    def lost(self) -> None: ...
    def retry(self) -> None: ...
    def unsubscribed(self) -> None: ...


@attrs.define(eq=False, slots=False)
class BusSubscription(Service):
    """
    A subscription to a bus, which is renewed whenever it is lost.

    A bus that speaks tbvast/1 learns the subscriber's position, and sends exactly the items
    after it. A Threat Bus host is asked for a snapshot of the time without a subscription.

    It is a machine: L{TABLE} tells the states. Each has a method of its name, which runs
    while the state lasts, and returns the input that follows.

    @param reactor: Measures all times.
    @param factory: Makes the sockets.
    @param bus: The bus's manage endpoint.
    @param request: The request to subscribe.
    @param cursor: Applies the arriving items. While many wait for it, no more are read.
    @param report: Returns the subscriber's state, for heartbeats.
    @param ready: Called when the bus begins to listen to reports. Without it, the
        subscription does not connect to the sub endpoint.
    @param options: Options of the receiving socket.
    @param keys: As for L{ManageClient}.
    @ivar reception: Receives the items.
    """

    _log = Logger()

    _reactor: IReactorTime
    _factory: Factory
    _bus: HostPort
    _request: SubscriptionRequest
    _cursor: ICursor
    _report: Callable[[], JsonObject] | None = None
    _ready: Callable[[], None] | None = None
    _options: SocketOptions = attrs.field(factory=dict)
    _keys: SocketOptions = attrs.field(factory=dict)
    _reply: manage.Subscribed = attrs.field(init=False, default=manage.Subscribed("", 0, 0))
    _snapshot: Snapshot | None = attrs.field(init=False, default=None)
    _reports: SightingReports | None = attrs.field(init=False, default=None)
    _began: float = attrs.field(init=False, default=0.0)
    _lost_at: float | None = attrs.field(init=False, default=None)
    _failures: int = attrs.field(init=False, default=0)
    _complained: bool = attrs.field(init=False, default=False)
    _running: Deferred[None] = attrs.field(init=False, factory=lambda: succeed(None))
    _stops: list[Deferred[None]] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.reception = Reception(self._reactor, self._cursor, self._warn, self._broken)
        self._manage = ManageClient(self._reactor, self._factory, self._bus, self._keys)
        self._lines = RateLimit(self._reactor, ERRORS_PER_MINUTE)
        self._machine = MACHINE(self)

    @property
    def connected(self) -> bool:
        """
        Whether there is a subscription at the moment.
        """
        return self._reports is not None

    def startService(self) -> None:
        super().startService()
        self._machine.start()

    def stopService(self) -> Deferred[None]:
        """
        @return: Fires when the items that were being applied are applied.
        """
        super().stopService()
        stopped: Deferred[None] = Deferred()
        self._stops.append(stopped)
        self._machine.stop()
        return stopped

    def report_sightings(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        """
        Report sightings, if there is a subscription.

        @see: L{SightingReports.report}
        """
        if self._reports is None:
            return succeed(Reported([False] * len(documents)))
        return self._reports.report(documents)

    def _enter(self, state: str) -> None:
        self._running.cancel()
        running: Deferred[_Input] = Deferred.fromCoroutine(getattr(self, f"_{state}")())
        self._running = running.addCallback(lambda input: input()).addErrback(self._eb_state)

    def _eb_state(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("Error in the subscription to {bus}", failure, bus=str(self._bus))
            self._machine.lost()

    # The states

    async def _applying(self) -> _Input:
        await self.reception.applied()
        return self._machine.applied

    async def _subscribing(self) -> _Input:
        try:
            await self._subscribe()
        except (BusUnreachable, BusRefused) as e:
            if not self._complained:
                self._log.warn("{reason}; trying again.", reason=str(e))
            self._complained = True
            return self._machine.lost
        self._complained = False
        return self._machine.accepted

    async def _subscribed(self) -> _Input:
        self._began = self._reactor.seconds()
        options = {**self._options, **self._keys}
        self.reception.begin(self._factory, self._bus.host, self._reply, self._snapshot, options)
        self._reports = reports = SightingReports(
            self._reactor, self._factory, self._bus, self._reply, self._ready, self._keys
        )
        report = None if self._reply.position is None else self._report
        try:
            while True:
                await deferLater(self._reactor, self._request.heartbeat)
                beat = manage.encode_heartbeat(self._reply.topic, report and report())
                if manage.refusal(await self._manage.ask(beat)) is not None:
                    self._warn("{bus} no longer knows the subscription; subscribing again.")
                    break
                reports.answered = self._reactor.seconds()
        except BusUnreachable as e:
            self._warn("{reason}; subscribing again.", reason=str(e))
        self._failures = 0
        return self._machine.lost

    async def _lost(self) -> _Input:
        self._disconnect()
        delay = doubling(RETRY_FIRST, RETRY_MOST)(self._failures)
        self._failures += 1
        await deferLater(self._reactor, delay)
        return self._machine.retry

    async def _unsubscribing(self) -> _Input:
        try:
            await self._manage.ask(manage.encode_unsubscribe(self._reply.topic), timeout=1.0)
        except BusUnreachable:
            self._log.debug("The bus did not confirm the end of the subscription.")
        return self._machine.unsubscribed

    async def _stopping(self) -> _Input:
        self._disconnect()
        return await self._applying()

    async def _stopped(self) -> _Input:
        self._manage.close()
        stops, self._stops = self._stops, []
        for stopped in stops:
            stopped.callback(None)
        return self._machine.start if self.running else lambda: None

    async def _subscribe(self) -> None:
        """
        Request a subscription, and prepare the cursor for a resumption or a snapshot.
        """
        resume = self._cursor.position
        days = self._request.snapshot
        if self._lost_at is not None:
            missed = self._reactor.seconds() - self._lost_at + self._request.heartbeat
            days = max(days, math.ceil(missed / 86400))
        request = manage.encode_subscribe(self._request.topics, days, self._request.name, resume)
        self._reply = await self._manage.request("subscribe", request, manage.decode_subscribed)
        here = self._reply.position
        beginning = f"with a snapshot of {days} days"
        self._snapshot = None
        if here is not None and here == resume:
            beginning = f"from number {here.number} on"
        elif here is not None and resume is not None:
            beginning = "with everything that is in force"
            await self._cursor.begin_snapshot()
            self._snapshot = Snapshot(ending=True)
        elif here is not None and days > 0:
            self._snapshot = Snapshot(ending=False)
        elif here is not None:
            await self._cursor.apply((), here)
        if self._lines.allows():
            self._log.info(
                "Subscribed to {bus} for {topics}, {beginning}.",
                bus=str(self._bus),
                topics=", ".join(self._request.topics),
                beginning=beginning,
            )

    def _warn(self, text: str, **values: object) -> None:
        self._lines.warn(self._log, text, bus=str(self._bus), **values)

    def _broken(self) -> None:
        if self._reactor.seconds() - self._began > RETRY_MOST:
            self._failures = 0
        self._machine.lost()

    def _disconnect(self) -> None:
        self.reception.close()
        if self._reports is not None:
            reports, self._reports = self._reports, None
            reports.close()
            self._manage.close()
            self._lost_at = self._reactor.seconds()


MACHINE = machine_of(
    TABLE, Inputs, BusSubscription, lambda subscription, state: subscription._enter(state)
)
