"""
The bus: its three endpoints, and the parts between them.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.bus.access_control import AccessControl
from tbvast.bus.fanout import CommittedBatch
from tbvast.bus.ingest import Intake
from tbvast.bus.journal.client import Journal, JournalService, log_not_set_aside
from tbvast.bus.journal.ownership import EVERYBODY, upstream_publisher
from tbvast.bus.journal.retention import Retention
from tbvast.bus.manage_endpoint import Addresses, ManageEndpoint
from tbvast.bus.queued_subscription import QueuedSubscription
from tbvast.bus.replayed_subscription import ReplayedSubscription
from tbvast.bus.snapshots import JournalSource, Snapshots
from tbvast.bus.statistics import Statistics
from tbvast.bus.subscriptions import Limits, Subscription, Subscriptions
from tbvast.bus.upstream import Upstream
from tbvast.errors import StartupRefused
from tbvast.interfaces import IReloadable
from tbvast.protocol.frames import REPORT_TOPICS
from tbvast.service.clock import calendar
from tbvast.service.process import SequentialService
from tbvast.settings.schema import PluginSettings
from tbvast.storage.set_aside import SetAside, Stage, reason_of
from tbvast.values import Received
from tbvast.zeromq.curve import load_key_pair, server_options
from tbvast.zeromq.sockets import (
    KEEPALIVE,
    Factory,
    GuardedXPubConnection,
    RouterConnection,
    SocketOptions,
    SubConnection,
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

_RECEIVE_QUEUE = 100_000
_HEARTBEAT_MS = 5_000
_HEARTBEAT_TIMEOUT_MS = 15_000


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
        self._upstreams: list[Upstream] = []
        self._unanswered = 0
        self._access = AccessControl(Path(settings.clients) if settings.clients else None)
        self._reactor = reactor
        self._settings = settings
        self._journal_service = JournalService(reactor, state / JOURNAL_NAME, fail)
        self._journal_service.setServiceParent(self)

    def startService(self) -> None:
        """
        @raise JournalFailed: If the journal cannot be used.
        @raise EndpointUnusable: If an endpoint cannot be bound, for example because its port
            is taken.
        """
        super().startService()
        self._factory = Factory(self._reactor)
        try:
            self._socket_options = self._options()
            self._compose()
            self._listen()
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
        settings = self._settings
        journal = self._journal_service.journal
        subscriptions = Subscriptions(
            self._reactor,
            Limits(
                subscriptions=settings.max_subscriptions,
                client_subscriptions=settings.max_client_subscriptions,
                topics=settings.max_topics,
                queue_messages=settings.queue_messages,
                queue_bytes=settings.queue_bytes,
                heartbeat_timeout=settings.heartbeat_timeout,
                detached_timeout=settings.detached_timeout,
            ),
            functools.partial(
                ReplayedSubscription,
                journal=journal,
                replay=journal,
                unreadable=self._unreadable,
            ),
            functools.partial(
                QueuedSubscription,
                journal=journal,
                replay=journal,
                again=self._snapshot_again,
            ),
        )
        subscriptions.save = journal.save_subscriptions
        self._restore(subscriptions, journal)
        for each in subscriptions.everybody():
            if not self._access.may_subscribe(each.user, each.streams):
                subscriptions.close(each.topic, "may no longer subscribe")
        statistics = Statistics(self._reactor, journal, subscriptions)
        self._sub = SubConnection(
            self._factory,
            lambda messages: intake.receive(messages),
            {**self._socket_options, zmq.RCVHWM: _RECEIVE_QUEUE},
        )
        intake = Intake(
            self._reactor,
            journal,
            self._access,
            statistics,
            self._fan_out,
            lambda envelope: snapshots.answered(envelope),
            self._sub,
            settings.errors_per_minute,
        )
        snapshots = Snapshots(
            self._reactor,
            calendar,
            [JournalSource(journal)],
            subscriptions.everybody,
            intake.set_aside,
        )
        self._snapshots = snapshots
        for each in subscriptions.everybody():
            if isinstance(each, QueuedSubscription) and each.owed:
                self._snapshot_again(each)
        subscriptions.setServiceParent(self)
        statistics.setServiceParent(self)
        self._subscriptions = subscriptions
        self._intake = intake
        retention = Retention(
            self._reactor,
            journal,
            intake.fan_out,
            settings.retention_days * 86400.0,
            settings.retention_bytes,
        )
        retention.setServiceParent(self)
        for upstream in settings.upstream:
            publisher = upstream_publisher(upstream.threatbus) if settings.clients else EVERYBODY
            take = functools.partial(intake.take, publisher=publisher)
            other = Upstream(self._reactor, self._factory, upstream, journal, journal, take)
            other.setServiceParent(self)
            self._upstreams.append(other)
        self._endpoint = ManageEndpoint(
            self._reactor,
            Addresses(advertised_host(settings), settings.pub, settings.sub),
            self._access,
            journal,
            subscriptions,
            snapshots,
            intake,
            statistics,
            settings.max_snapshot_days,
            settings.errors_per_minute,
        )

    def _restore(self, subscriptions: Subscriptions, journal: Journal) -> None:
        """
        Make the saved subscriptions again. One that cannot be read is set aside.
        """
        bad = subscriptions.restore(self._journal_service.saved_subscriptions)
        if bad:
            items = [SetAside(Stage.SUBSCRIPTION, reason_of(e), raw) for raw, e in bad.values()]
            journal.set_aside(items).addErrback(log_not_set_aside, items)

    def _fan_out(self, batch: CommittedBatch) -> Deferred[None]:
        for upstream in self._upstreams:
            upstream.deliver(batch)
        return self._subscriptions.fan_out(batch)

    def _snapshot_again(self, subscription: QueuedSubscription) -> None:
        days = min(subscription.request.snapshot, self._settings.max_snapshot_days)
        self._snapshots.deliver(subscription, days)

    def _unreadable(self, subscription: Subscription) -> None:
        self._subscriptions.close(subscription.topic, "cannot replay the journal,")

    def _options(self) -> SocketOptions:
        """
        The options of every socket.
        """
        keys: SocketOptions = {}
        if self._keys is not None:
            keys = server_options(self._keys)
            ZapHandler(self._factory, self._access.may_connect)
        return {
            **keys,
            **KEEPALIVE,
            zmq.MAXMSGSIZE: self._settings.max_message_bytes,
            zmq.IPV6: int(":" in self._settings.host),
        }

    def _listen(self) -> None:
        settings, options = self._settings, self._socket_options
        heartbeats: SocketOptions = {
            zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
            zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
        }
        self._manage = RouterConnection(
            self._factory, self._asked, {**options, **heartbeats}, by_address=True
        )
        pub = GuardedXPubConnection(
            self._factory,
            self._subscriptions.attach,
            self._subscriptions.detach,
            options,
        )
        self._subscriptions.send = pub.send_frames
        self._subscriptions.unacknowledged = pub.unacknowledged
        for topic in REPORT_TOPICS:
            self._sub.subscribe(topic)
        for connection, port in (
            (pub, settings.pub),
            (self._sub, settings.sub),
            (self._manage, settings.manage),
        ):
            connection.bind(tcp_address(settings.host, port))

    def _asked(self, messages: list[Received]) -> None:
        for message in messages:
            frames = message.frames
            # An empty frame ends the routing frames; a bare DEALER does not send one.
            length = frames.index(b"") + 1 if b"" in frames else 1
            reply = functools.partial(self._reply, frames[:length])
            self._unanswered += 1
            self._endpoint.answer(frames[length:], message.user).addCallback(reply)

    def _reply(self, envelope: list[bytes], reply: bytes) -> None:
        self._unanswered -= 1
        if self.running:
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
        self._sub.shutdown()
        self._manage.pause()  # later requests are not answered
        try:
            await self._intake.finish().addTimeout(STOP_LIMIT, self._reactor)
            await self._answer_all().addTimeout(STOP_LIMIT, self._reactor)
        except TimeoutError:
            self._log.warn("Stopping with messages that could not be made durable.")
        await self._subscriptions.flush(FLUSH_LIMIT)
        await super().stopService()
        self._factory.shutdown()

    def _answer_all(self) -> Deferred[None]:
        """
        @return: Fires when all received requests have been answered.
        """

        async def wait() -> None:
            while self._unanswered:
                await deferLater(self._reactor, 0.01)

        return Deferred.fromCoroutine(wait())

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


def advertised_host(settings: PluginSettings) -> str:
    """
    The host that subscribers are told to connect to: never a wildcard.
    """
    if settings.advertise:
        return settings.advertise
    if settings.host in ("0.0.0.0", "::"):
        return socket.getfqdn()
    return settings.host
