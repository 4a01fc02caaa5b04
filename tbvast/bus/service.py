"""
The bus: its three endpoints, and the parts between them.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.bus.access_control import AccessControl
from tbvast.bus.client_work import ClientWork
from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.ingest import Intake
from tbvast.bus.journal.client import JournalService, set_aside
from tbvast.bus.journal.retention import Retention
from tbvast.bus.journal.values import EVERYBODY, upstream_publisher
from tbvast.bus.manage_endpoint import ManageEndpoint
from tbvast.bus.snapshots import JournalSource, Snapshots
from tbvast.bus.statistics import Statistics
from tbvast.bus.subscription import LOSSES_PER_MINUTE, BusParts
from tbvast.bus.subscription_saver import SubscriptionSaver
from tbvast.bus.subscriptions import Subscriptions
from tbvast.bus.unread_answers import LONG_ANSWER, UnreadAnswers
from tbvast.bus.upstream import Upstream
from tbvast.errors import StartupRefused
from tbvast.interfaces import IReloadable
from tbvast.protocol.frames import REPORT_TOPICS
from tbvast.service.clock import calendar
from tbvast.service.descriptors import raise_descriptor_limit
from tbvast.service.process import SequentialService
from tbvast.service.rate_limit import RateLimit
from tbvast.service.turns import TurnWatch
from tbvast.settings.schema import PluginSettings
from tbvast.values import Received
from tbvast.zeromq.connection_guard import HANDSHAKE_LIMIT, ConnectionGuard
from tbvast.zeromq.connection_table import ConnectionTable, EndpointConnections
from tbvast.zeromq.curve import load_key_pair, server_options
from tbvast.zeromq.receive_limits import (
    CURVE_BYTES,
    FRAME_BYTES,
    OVERHEAD_BYTES,
    ReceiveLimits,
)
from tbvast.zeromq.sockets import (
    KEEPALIVE,
    Factory,
    GuardedXPubConnection,
    RouterConnection,
    SocketOptions,
    XSubConnection,
    is_loopback,
    tcp_address,
)
from tbvast.zeromq.zap import ZapHandler

JOURNAL_NAME = "journal.db"

STOP_LIMIT = 3.0
"""
Seconds, when the bus stops, for received messages to become durable.
"""

DRAIN_TIME = 0.5
"""
Seconds, when the bus stops, after which ZeroMQ has read everything that had reached the
machine.
"""

DRAIN_LIMIT = 3.0
"""
Seconds, when the bus stops, after which nothing more is read even if messages still arrive.
"""

FLUSH_LIMIT = 2.0
"""
Seconds, when the bus stops, for subscribers to receive waiting frames; they get the rest
after the next start.
"""

OWN_DESCRIPTORS = 100
"""
The descriptors that the bus needs besides those of connections.
"""

WITNESS_SHARE = 16
"""
One descriptor in so many is used to find out which end has closed a connection.
"""

ANSWERED_MULTIPLE = 4
"""
The longest request that is answered, in multiples of the longest that is accepted.
"""

WAITING_REQUESTS = 16
WAITING_MESSAGES = 128
"""
The most bytes that ZeroMQ holds of requests, and of messages to sub, in multiples of the longest
that is accepted; for one client of sub, half of them.
"""

WAITING_SUBSCRIPTION_BYTES = 1 << 18
WAITING_SUBSCRIPTIONS_BYTES = 1 << 24
"""
The most bytes that ZeroMQ holds of ZeroMQ subscriptions, for one subscriber and for all.
"""

REQUEST_QUEUE = 100
"""
The most requests of one client that ZeroMQ holds.
"""

ACCEPT_QUEUE = 1024
"""
The most connections that wait in the kernel until ZeroMQ accepts them. It accepts them all at once,
so they are fewer where there are few descriptors.
"""

_RECEIVE_QUEUE = 100_000
_HEARTBEATS: SocketOptions = {
    zmq.HEARTBEAT_IVL: 5_000,  # milliseconds
    zmq.HEARTBEAT_TIMEOUT: 15_000,
}


@implementer(IReloadable)
class Bus(SequentialService):
    """
    One bus, with its journal and its sockets.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: PluginSettings,
        state: Path,
        fail: Callable[[str], None],
    ) -> None:
        """
        @param state: The state directory.
        @param fail: Called, with the reason, if the bus cannot continue.
        @raise StartupRefused: If the endpoints would be exposed without access control, or
            the file of clients cannot be used.
        @raise KeyUnusable: If the key file cannot be used.
        """
        super().__init__()
        refuse_exposed_plaintext(settings)
        self._keys = load_key_pair(settings.curve_key) if settings.curve_key else None
        self._unanswered = 0
        self._access = AccessControl(Path(settings.clients) if settings.clients else None)
        self._reactor = reactor
        self._settings = settings
        self._journal_service = JournalService(reactor, state / JOURNAL_NAME, fail)
        self._journal_service.setServiceParent(self)
        self._descriptors = raise_descriptor_limit()
        self._max_connections = connection_limit(settings, self._descriptors)

    def startService(self) -> None:
        """
        @raise JournalFailed: If the journal cannot be used.
        @raise EndpointUnusable: If an endpoint cannot be bound, for example because its port
            is taken.
        """
        super().startService()
        self._factory = Factory(self._reactor)
        try:
            self._compose()
        except Exception:
            super().stopService().addCallback(lambda _: self._factory.shutdown())
            raise
        # By then, a signal stops the service instead of killing the process.
        self._reactor.callWhenRunning(self._say_ready)

    def _say_ready(self) -> None:
        settings = self._settings
        self._log.info(
            "The bus is ready on {host}: manage {manage}, pub {pub}, sub {sub};"
            " {head} entries in the journal.",
            host=settings.host,
            manage=settings.manage,
            pub=settings.pub,
            sub=settings.sub,
            head=self._journal_service.journal.head,
        )

    def _compose(self) -> None:
        reactor, settings, access = self._reactor, self._settings, self._access
        journal = self._journal_service.journal
        saved = self._journal_service.saved_subscriptions
        options = self._options()
        refuse = functools.partial(set_aside, journal)
        subscriptions = Subscriptions(reactor, settings)
        turns = TurnWatch(reactor)
        statistics = Statistics(
            reactor,
            journal,
            subscriptions.everybody,
            lambda: turns.longest,
            lambda: (len(connections), connections.limit),
        )
        connections = ConnectionTable(
            reactor,
            self._max_connections,
            settings.max_address_connections,
            ["sub"],
            statistics,
            RateLimit(reactor, settings.errors_per_minute),
        )
        limits = receive_limits(reactor, settings.max_message_bytes)
        pub = GuardedXPubConnection(
            self._factory,
            subscriptions.attach,
            subscriptions.detach,
            EndpointConnections(connections, "pub", True, limits["pub"]),
            settings.max_connection_topics,
            options,
        )
        snapshots = Snapshots(
            reactor, calendar, [JournalSource(journal)], subscriptions.everybody, refuse
        )
        parts = BusParts(
            clock=reactor,
            settings=settings,
            publisher=pub,
            journal=journal,
            refuse=refuse,
            retry=subscriptions.retry,
            begin_snapshot=snapshots.begin,
            close=subscriptions.close,
            losses=RateLimit(reactor, LOSSES_PER_MINUTE),
            budget=subscriptions.budget,
        )
        subscriptions.restore(parts, saved)
        for each in subscriptions.everybody():
            if not access.may_subscribe(each.user, each.streams):
                subscriptions.close(each.topic, "may no longer subscribe")
        for each in subscriptions.everybody():
            if each.owed:
                snapshots.begin(each)
        upstreams = MultiService()

        async def deliver(batch: CommittedBatch) -> None:
            for upstream in upstreams:
                upstream.deliver(batch)
            await subscriptions.deliver(batch)

        publishing = EndpointConnections(connections, "sub", False, limits["sub"])
        overhead = FRAME_BYTES + (CURVE_BYTES if self._keys else 0)

        def published(messages: list[Received]) -> None:
            sizes: defaultdict[str, int] = defaultdict(int)
            for message in messages:
                for frame in message.frames:
                    sizes[message.descriptor] += len(frame) + overhead
            for descriptor, size in sizes.items():
                publishing.handed_over(descriptor, size)
            intake.receive(messages)

        self._sub = XSubConnection(
            self._factory,
            published,
            {**options, zmq.RCVHWM: _RECEIVE_QUEUE},
            caught_up=publishing.caught_up,
            overlong=publishing.end_overlong,
        )
        work = ClientWork(reactor)
        intake = Intake(
            reactor,
            work,
            journal,
            access,
            statistics,
            deliver,
            snapshots.answered,
            self._sub,
            settings.errors_per_minute,
        )
        for upstream in settings.upstream:
            publisher = upstream_publisher(upstream.threatbus) if settings.clients else EVERYBODY
            take = functools.partial(intake.take, publisher=publisher)
            other = Upstream(reactor, self._factory, upstream, journal, take)
            other.setServiceParent(upstreams)
        self._saver = SubscriptionSaver(reactor, journal, subscriptions.everybody, saved)
        age, size = settings.retention_days * 86400.0, settings.retention_bytes
        retention = Retention(reactor, journal, intake.fan_out, age, size)
        self._guard = guard = ConnectionGuard(
            reactor, connections, limits, self._descriptors // WITNESS_SHARE
        )
        for service in (subscriptions, self._saver, statistics, retention, upstreams, guard, turns):
            service.setServiceParent(self)
        self._subscriptions = subscriptions
        self._intake = intake
        self._unread = unread = UnreadAnswers()
        self._endpoint = ManageEndpoint(
            parts, work, access, subscriptions, intake, statistics, unread
        )
        self._asking = EndpointConnections(
            connections, "manage", bool(settings.clients), limits["manage"]
        )
        requests = {
            **_HEARTBEATS,
            zmq.MAXMSGSIZE: ANSWERED_MULTIPLE * settings.max_message_bytes,
            zmq.RCVHWM: REQUEST_QUEUE,
        }
        self._manage = RouterConnection(
            self._factory,
            self._asked,
            {**options, **requests},
            by_address=True,
            overlong=self._asking.end_overlong,
        )
        for topic in REPORT_TOPICS:
            self._sub.subscribe(topic)
        for endpoint, connection, port in (
            ("pub", pub, settings.pub),
            ("sub", self._sub, settings.sub),
            ("manage", self._manage, settings.manage),
        ):
            guard.watch(endpoint, connection)
            connection.bind(tcp_address(settings.host, port))

    def _options(self) -> SocketOptions:
        keys: SocketOptions = {}
        if self._keys is not None:
            keys = server_options(self._keys)
            ZapHandler(self._factory, self._access.may_connect)
        return {
            **keys,
            **KEEPALIVE,
            zmq.MAXMSGSIZE: self._settings.max_message_bytes,
            zmq.BACKLOG: min(ACCEPT_QUEUE, self._descriptors // 16),
            zmq.HANDSHAKE_IVL: int(HANDSHAKE_LIMIT * 1000),
            zmq.IPV6: int(":" in self._settings.host),
        }

    def _asked(self, messages: list[Received]) -> None:
        for message in messages:
            frames = message.frames
            self._asking.heard(message.descriptor)
            # ZeroMQ adds the first frame.
            self._asking.handed_over(message.descriptor, sum(map(len, frames[1:])))
            # An empty frame ends the routing frames; a bare DEALER does not send one.
            length = frames.index(b"") + 1 if b"" in frames else 1
            reply = functools.partial(self._reply, frames[:length], message.user)
            self._unanswered += 1
            answer = self._endpoint.answer(frames[length:], message.user, frames[0])
            answer.addCallback(reply)

    def _reply(self, envelope: list[bytes], user: str, reply: bytes) -> None:
        self._unanswered -= 1
        if not self.running:
            return
        if len(reply) > LONG_ANSWER:
            self._unread.sent(user, len(reply), self._manage.send_shared([*envelope, reply]))
        else:
            self._manage.send_now([*envelope, reply])

    def reload(self) -> None:
        """
        Read the file of clients again. Removed or restricted clients lose their
        subscriptions.
        """
        self._subscriptions.close_all(self._access.reload())

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        Read the messages that have reached the sockets, commit them, deliver them to the
        attached subscribers, and save the progress of these.
        """
        # Not unbound: that would also close the connections, with the messages that they hold.
        await self._drain()
        # Messages that peers still send wait with them until they can connect again.
        self._guard.release()
        self._sub.shutdown()
        self._manage.pause()  # later requests are not answered
        try:
            await self._intake.finish().addTimeout(STOP_LIMIT, self._reactor)
            answered = Deferred.fromCoroutine(self._answer_all())
            await answered.addTimeout(STOP_LIMIT, self._reactor)
        except TimeoutError:
            self._log.warn("Stopping with messages that could not be made durable.")
        await self._saver.flush(FLUSH_LIMIT)
        await super().stopService()
        self._factory.shutdown()

    async def _answer_all(self) -> None:
        while self._unanswered:
            await deferLater(self._reactor, 0.01)

    async def _drain(self) -> None:
        began = self._reactor.seconds()
        elapsed = 0.0
        while elapsed < DRAIN_LIMIT:
            await deferLater(self._reactor, 0.01)
            elapsed = self._reactor.seconds() - began
            # The reactor may be late: read the messages that it has not seen yet.
            self._sub.doRead()
            self._manage.doRead()
            drained = self._sub.drained and not self._sub.paused and self._manage.drained
            if elapsed >= DRAIN_TIME and drained:
                return
        self._log.warn("Stopping while messages still arrive; some were not read.")


def connection_limit(settings: PluginSettings, descriptors: int) -> int:
    """
    The most connections that a bus can have at a time. ZeroMQ accepts them in its own thread, so
    some descriptors have to stay free for those that it accepts before the bus refuses them.

    @param descriptors: The most descriptors that the process may have.
    @raise StartupRefused: If that is too few.
    """
    own = OWN_DESCRIPTORS + descriptors // 8 + descriptors // WITNESS_SHARE
    limit = min(settings.max_connections, descriptors - own)
    if limit <= 0:
        raise StartupRefused(
            f"the limit of {descriptors} open files (ulimit -n) leaves none for connections"
        )
    return limit


def receive_limits(clock: IReactorTime, longest: int) -> dict[str, ReceiveLimits]:
    """
    The limits of the bytes that ZeroMQ holds.

    @param longest: The longest message that is accepted, in bytes.
    @return: The limits by endpoint.
    """
    most, total = ANSWERED_MULTIPLE * longest + OVERHEAD_BYTES, WAITING_REQUESTS * longest
    waiting = WAITING_MESSAGES * longest
    return {
        "manage": ReceiveLimits(clock, most, total),
        "pub": ReceiveLimits(clock, WAITING_SUBSCRIPTION_BYTES, WAITING_SUBSCRIPTIONS_BYTES),
        "sub": ReceiveLimits(clock, waiting // 2, waiting),
    }


def refuse_exposed_plaintext(settings: PluginSettings) -> None:
    """
    Refuse to start a bus that everybody on the network could use.

    @raise StartupRefused: If it would listen on the network without keys, unless the settings
        allow that.
    """
    if bool(settings.curve_key) != bool(settings.clients):
        raise StartupRefused(
            "curve_key and clients belong together: the bus's own key, and the file of"
            " the keys that are let in"
        )
    if settings.curve_key or settings.allow_plaintext or is_loopback(settings.host):
        return
    raise StartupRefused(
        f"host {settings.host} is open to the network, and there are no keys: make some with"
        " tbvast keygen and set curve_key and clients, or set allow_plaintext: true"
    )
