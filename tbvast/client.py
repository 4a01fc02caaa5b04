"""
The other end of a bus: what subscribes to it, and what reports to it.

It works with a tbvast plugin and with a Threat Bus 2022.5.16 host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import BusRefused, BusUnreachable, Invalid, ProtocolInvalid
from tbvast.ops.ratelimit import RateLimit
from tbvast.settings import HostPort
from tbvast.wire import manage
from tbvast.wire.frames import Item, decode_delivery
from tbvast.zeromq.connections import (
    DealerConnection,
    Factory,
    SocketOptions,
    SubConnection,
    XPubConnection,
    read_subscription,
)

REQUEST_TIMEOUT = 5.0
"""
Seconds that a bus is given to answer, as Threat Bus's applications do.
"""

RETRY_FIRST = 0.5
RETRY_MOST = 15.0
"""
Seconds between attempts to subscribe: they double, up to the most.
"""

ERRORS_PER_MINUTE = 60

_DAY = 86400.0


class ManageClient:
    """
    Asks a bus's manage endpoint, one question at a time.
    """

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        bus: HostPort,
        keys: SocketOptions | None = None,
    ) -> None:
        """
        @param keys: L{tbvast.zeromq.curve.client_options}, if the bus wants any.
        """
        self._reactor = reactor
        self._factory = factory
        self._bus = bus
        self._keys = keys
        self._turn = DeferredLock()
        self._connection: DealerConnection | None = None
        self._waiting: Deferred[bytes] | None = None

    def ask(self, request: bytes, timeout: float = REQUEST_TIMEOUT) -> Deferred[bytes]:
        """
        @param timeout: Seconds that the bus has, once it is this question's turn.
        @return: Fires with the reply, or fails with L{BusUnreachable}.
        """
        return self._turn.run(self._ask, request, timeout)

    def _ask(self, request: bytes, timeout: float) -> Deferred[bytes]:
        if self._connection is None:
            self._connection = DealerConnection(self._factory, self._answered, self._keys)
            self._connection.connect(f"tcp://{self._bus}")
        waiting: Deferred[bytes] = Deferred(self._abandon)
        self._waiting = waiting
        self._connection.send_now((b"", request))

        def too_late(result: Any, seconds: float) -> Any:
            raise BusUnreachable(str(self._bus), seconds)

        return waiting.addTimeout(timeout, self._reactor, onTimeoutCancel=too_late)

    def _answered(self, messages: list[list[bytes]]) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(b"".join(messages[-1][1:]))

    def _abandon(self, waiting: Deferred[bytes]) -> None:
        # A late answer must not be taken for that to the next question.
        self._waiting = None
        self.close()

    def close(self) -> None:
        """
        Let go of the socket; the next question makes a new one.
        """
        if self._connection is not None:
            self._connection.shutdown()
            self._connection = None


class Announcer:
    """
    Sends reports to a bus's sub endpoint, once the bus listens.

    A PUB socket drops what nobody listens to, so nothing is sent before the
    bus's own ZeroMQ subscription has been seen.
    """

    def __init__(
        self,
        factory: Factory,
        address: str,
        ready: Callable[[], None],
        keys: SocketOptions | None = None,
    ) -> None:
        """
        @param address: E.g. C{tcp://localhost:13372}.
        @param ready: Called whenever the bus has begun to listen to a topic.
        @param keys: As for L{ManageClient}.
        """
        self._ready = ready
        self._topics: set[bytes] = set()
        self._connection = XPubConnection(factory, self._heard, keys)
        self._connection.connect(address)

    def _heard(self, messages: list[list[bytes]]) -> None:
        begun = False
        for verb, topic in map(read_subscription, (m[0] for m in messages)):
            if verb == 1:
                self._topics.add(topic)
                begun = True
            elif verb == 0:
                self._topics.discard(topic)
        if begun:
            self._ready()

    def send(self, frame: bytes) -> bool:
        """
        @return: Whether the frame is on its way; it is not while the bus does
            not listen, or its queue is full.
        """
        return any(map(frame.startswith, self._topics)) and self._connection.send_now((frame,))

    def close(self) -> None:
        self._connection.shutdown()


class Wish(msgspec.Struct, frozen=True):
    """
    What a subscriber wants of a bus.

    @ivar topics: At least one; of the stix2 dialect.
    @ivar snapshot: Days of intel wanted first.
    @ivar name: What the subscriber calls itself.
    @ivar heartbeat: Seconds between heartbeats.
    """

    topics: tuple[str, ...]
    snapshot: int
    name: str
    heartbeat: float


class BusSubscription(Service):
    """
    A subscription to a bus that is made again whenever it is lost.

    What is missed meanwhile is asked for with a snapshot of that time.

    @ivar connected: Whether the subscription stands.
    @ivar plugin: The bus's identity; empty for a Threat Bus host.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        bus: HostPort,
        wish: Wish,
        receive: Callable[[list[Item]], Deferred[None] | None],
        report: Callable[[], dict[str, Any]] | None = None,
        ready: Callable[[], None] | None = None,
        options: SocketOptions | None = None,
        keys: SocketOptions | None = None,
    ) -> None:
        """
        @param receive: Called with what arrives; the next is read from the bus
            once the L{Deferred} it may return has fired.
        @param report: What the subscriber says of itself in a heartbeat.
        @param ready: Called when the bus has begun to listen to reports; makes
            this subscription open its sub endpoint at all.
        @param options: Options of the socket that receives.
        @param keys: As for L{ManageClient}.
        """
        self.connected = False
        self.plugin = ""
        self.received = 0
        self.refused = 0
        self._reactor = reactor
        self._factory = factory
        self._bus = bus
        self._wish = wish
        self._receive = receive
        self._report = report
        self._ready = ready
        self._keys = keys or {}
        self._options = {**(options or {}), **self._keys}
        self._manage = ManageClient(reactor, factory, bus, self._keys)
        self._complaints = RateLimit(reactor, ERRORS_PER_MINUTE)
        self._announcer: Announcer | None = None
        self._sub: SubConnection | None = None
        self._running: Deferred[None] = succeed(None)
        self._lost: float | None = None

    def startService(self) -> None:
        super().startService()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._eb_ended)

    def _eb_ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("The subscription to {bus} ended", failure, bus=str(self._bus))

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._running.cancel()
        return self._running.addBoth(lambda _: self._manage.close())

    def send(self, frame: bytes) -> bool:
        """
        Send a report to the bus's sub endpoint.

        @see: L{Announcer.send}
        """
        return self._announcer is not None and self._announcer.send(frame)

    async def _run(self) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                subscribed = await self._subscribe()
            except (BusUnreachable, BusRefused) as e:
                if delay == RETRY_FIRST:
                    self._log.warn("{reason}; trying on.", reason=str(e))
                await deferLater(self._reactor, delay)
                delay = min(delay * 2, RETRY_MOST)
                continue
            delay = RETRY_FIRST
            try:
                await self._keep(subscribed)
            except BusUnreachable as e:
                self._log.warn("{reason}; subscribing again.", reason=str(e))
            finally:
                self._disconnect()
                self._lost = self._reactor.seconds()
            self._manage.close()

    async def _subscribe(self) -> manage.Subscribed:
        days = self._wish.snapshot
        if self._lost is not None:
            missed = self._reactor.seconds() - self._lost + self._wish.heartbeat
            days = max(days, math.ceil(missed / _DAY))
        wish = manage.encode_subscribe(self._wish.topics, days, self._wish.name)
        reply = await self._manage.ask(wish)
        try:
            subscribed = manage.decode_subscribed(reply)
        except ProtocolInvalid as e:
            raise BusRefused("subscribe", e.expected) from e
        self._connect(subscribed)
        self._log.info(
            "Subscribed to {bus} for {topics}, with a snapshot of {days} days.",
            bus=str(self._bus),
            topics=", ".join(self._wish.topics),
            days=days,
        )
        return subscribed

    def _connect(self, subscribed: manage.Subscribed) -> None:
        topic = subscribed.topic.encode()
        host = HostPort(self._bus.host, subscribed.pub_port)
        sub = SubConnection(
            self._factory, lambda messages: self._arrived(topic, messages), self._options
        )
        self._sub = sub
        sub.subscribe(topic)
        sub.connect(f"tcp://{host}")
        if self._ready is not None:
            address = HostPort(self._bus.host, subscribed.sub_port)
            self._announcer = Announcer(self._factory, f"tcp://{address}", self._ready, self._keys)
        self.connected = True
        self.plugin = subscribed.plugin

    def _disconnect(self) -> None:
        self.connected = False
        for connection in (self._sub, self._announcer):
            if isinstance(connection, SubConnection):
                connection.shutdown()
            elif connection is not None:
                connection.close()
        self._sub = self._announcer = None

    async def _keep(self, subscribed: manage.Subscribed) -> None:
        """
        Send heartbeats until the bus no longer knows the subscription.
        """
        speaks = subscribed.protocol == manage.PROTOCOL and self._report is not None
        try:
            while True:
                await deferLater(self._reactor, self._wish.heartbeat)
                report = self._report() if speaks and self._report is not None else None
                beat = manage.encode_heartbeat(subscribed.topic, report)
                reply = await self._manage.ask(beat)
                if reply != manage.SUCCESS and not _is_success(reply):
                    self._log.warn(
                        "{bus} has forgotten the subscription; subscribing again.",
                        bus=str(self._bus),
                    )
                    return
        except CancelledError:
            await self._leave(subscribed)
            raise

    async def _leave(self, subscribed: manage.Subscribed) -> None:
        try:
            await self._manage.ask(manage.encode_unsubscribe(subscribed.topic), timeout=1.0)
        except BusUnreachable:
            self._log.debug("The bus did not hear that this subscriber left.")

    def _arrived(self, topic: bytes, messages: list[tuple[str, list[bytes]]]) -> None:
        items = []
        for _, message in messages:
            try:
                items.append(decode_delivery(topic, message))
            except Invalid as e:
                self.refused += 1
                if self._complaints.allows():
                    self._log.warn("Ignored a message of the bus: {reason}", reason=str(e))
        if not items:
            return
        self.received += len(items)
        done = self._receive(items)
        if done is not None and not done.called:
            sub = self._sub
            assert sub is not None
            sub.pause()
            done.addErrback(
                lambda failure: self._log.failure("While taking what the bus sent", failure)
            ).addCallback(lambda _: self._resume(sub))

    def _resume(self, sub: SubConnection) -> None:
        if sub is self._sub:
            sub.resume()


def _is_success(reply: bytes) -> bool:
    try:
        return manage.decode_reply(reply).get("status") == "success"
    except ProtocolInvalid:
        return False
