"""
A subscription to a bus, which is renewed whenever it is lost.

The bus is a tbvast plugin or a Threat Bus 2022.5.16 host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq
from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    TimeoutError,
    gatherResults,
    succeed,
)
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bus_client.manage_client import ManageClient
from tbvast.bus_client.report_publisher import ReportPublisher
from tbvast.errors import BusRefused, BusUnreachable, Invalid, ProtocolInvalid, shown
from tbvast.interfaces import ICursor
from tbvast.protocol import manage
from tbvast.protocol.delivery import decode_delivery
from tbvast.protocol.frames import SIGHTING_TOPIC, Item
from tbvast.protocol.replay import Batch, Delivery, Mark, Part, Torn
from tbvast.protocol.unreadable import Unreadable, unreadable
from tbvast.service.flusher import Reported
from tbvast.service.rate_limit import RateLimit
from tbvast.service.retry_policy import doubling
from tbvast.values import HostPort, Position, Received
from tbvast.zeromq.sockets import (
    Factory,
    SocketOptions,
    SubConnection,
)

QUEUE_WITHOUT_REPLAY = 100_000
QUEUE_WITH_REPLAY = 200
"""
The most messages in the receiving socket. A bus without replay drops further ones; a bus
with replay keeps them.
"""

MOST_WAITING = 10_000
MOST_WAITING_BYTES = 64 << 20
"""
Reading pauses while as many items, or bytes, wait to be applied.
"""

SAME_GAP = 3
"""
Times in a row that the same numbers have to be missing before the subscription skips them:
the bus does not have them. After an unreadable frame, one time less suffices.
"""

INCOMPLETE_FIRST = 1.0
INCOMPLETE_MOST = 600.0
"""
Seconds before another snapshot is requested after an incomplete one. They double each time,
up to the most.
"""

REPORT_TIMEOUT = 30.0
"""
Seconds within which a bus has to acknowledge reports, which it makes durable first.
"""

RETRY_FIRST = 0.5
RETRY_MOST = 15.0
"""
Seconds between attempts to subscribe. They double each time, up to the most.
"""

ERRORS_PER_MINUTE = 60
"""
The most log lines a minute that a bus can provoke.
"""

_DAY = 86400.0


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
class Listener:
    """
    An L{ICursor} that keeps its position in memory and passes the items on.
    """

    def __init__(self, receive: Callable[[list[Item]], Deferred[None] | None]) -> None:
        """
        @param receive: Called with the items that arrive. If it returns a C{Deferred}, the
            next items are read from the bus after that has fired.
        """
        self.position: Position | None = None
        self._receive = receive

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
        self.position = position


class BusSubscription(Service):
    """
    A subscription to a bus, which is renewed whenever it is lost.

    A bus that speaks tbvast/1 learns the subscriber's position, and sends exactly the items
    after it. A Threat Bus host is asked for a snapshot of the time without a subscription.

    @ivar connected: Whether there is a subscription at the moment.
    @ivar plugin: The bus's identity; empty for a Threat Bus host.
    @ivar refused: The number of items and messages that were unreadable.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        factory: Factory,
        bus: HostPort,
        request: SubscriptionRequest,
        cursor: ICursor,
        report: Callable[[], dict[str, Any]] | None = None,
        ready: Callable[[], None] | None = None,
        options: SocketOptions | None = None,
        keys: SocketOptions | None = None,
    ) -> None:
        """
        @param reactor: Measures all times.
        @param factory: Makes the sockets.
        @param bus: The bus's manage endpoint.
        @param request: The request to subscribe.
        @param cursor: Applies the items that arrive. While many wait for it, no more are
            read from the bus.
        @param report: Returns the subscriber's state, for heartbeats.
        @param ready: Called when the bus begins to listen to reports. Without it, the
            subscription does not connect to the sub endpoint.
        @param options: Options of the receiving socket.
        @param keys: As for L{ManageClient}.
        """
        self.connected = False
        self.plugin = ""
        self.refused = 0
        self._reactor = reactor
        self._factory = factory
        self._bus = bus
        self._request = request
        self._cursor = cursor
        self._report = report
        self._ready = ready
        self._keys = keys or {}
        self._options = {**(options or {}), **self._keys}
        self._manage = ManageClient(reactor, factory, bus, self._keys)
        self._reports = ManageClient(reactor, factory, bus, self._keys)
        self._complaints = RateLimit(reactor, ERRORS_PER_MINUTE)
        self._publisher: ReportPublisher | None = None
        self._sub: SubConnection | None = None
        self._running: Deferred[None] = succeed(None)
        self._lost: float | None = None
        self._applying: Deferred[None] = succeed(None)
        self._arrivals: list[Delivery | Item | Unreadable] = []
        self._waiting = 0
        self._waiting_bytes = 0
        self._answered = -math.inf
        self._expected = 0
        self._torn = False
        self._last_gap: tuple[str, int, int] | None = None
        self._same_gap_count = 0
        self._snapshot: _Snapshot | None = None
        self._position_held = False
        self._incomplete_snapshots = 0
        self._snapshot_retry: IDelayedCall | None = None
        self._breaking: Deferred[None] | None = None
        self._broken = False

    def startService(self) -> None:
        """
        Begin to subscribe.
        """
        super().startService()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._eb_ended)

    def _eb_ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure(
                "The subscription to {bus} failed for good", failure, bus=str(self._bus)
            )

    def stopService(self) -> Deferred[None]:
        """
        Unsubscribe.

        @return: Fires when the items that were being applied are applied.
        """
        super().stopService()
        self._running.cancel()
        return gatherResults([self._running, self._applying]).addCallback(self._cb_stopped)

    def _cb_stopped(self, _: Any) -> None:
        self._manage.close()
        self._reports.close()

    def send(self, frame: bytes) -> bool:
        """
        Send a report to the bus's sub endpoint, if there is a subscription.

        @see: L{ReportPublisher.send}
        """
        return self._publisher is not None and self._publisher.send(frame)

    def report_sightings(self, documents: Sequence[bytes]) -> Deferred[Reported]:
        """
        Report sightings: to a bus that speaks tbvast/1 by a request, which it acknowledges
        when they are durable; to a Threat Bus host on its sub endpoint, without
        acknowledgement.

        @param documents: Sightings, each a JSON document.
        @return: Fires with the outcome; never fails.
        """
        if not self.connected:
            return succeed(Reported([False] * len(documents)))
        if not self.plugin:
            return succeed(Reported([self.send(SIGHTING_TOPIC + b" " + raw) for raw in documents]))
        began = self._reactor.seconds()
        return self._reports.ask(manage.encode_publish(documents), REPORT_TIMEOUT).addCallbacks(
            self._cb_reported,
            self._eb_reported,
            callbackArgs=(len(documents),),
            errbackArgs=(len(documents), began),
        )

    def _cb_reported(self, reply: bytes, count: int) -> Reported:
        try:
            published = manage.decode_published(reply)
        except ProtocolInvalid as e:
            reason = _reason(reply)
            # A refusal with a reason is due to the bus's own state; one without, to the request.
            return Reported([False] * count, {}, reason or str(e), not reason)
        if len(published.outcomes) != count:
            reason = f"{len(published.outcomes)} outcomes for {count} sightings"
            return Reported([False] * count, {}, reason, True)
        refused = {n: why for n, why in published.reasons.items() if 0 <= n < count}
        return Reported([True] * count, refused)

    def _eb_reported(self, failure: Failure, count: int, began: float) -> Reported:
        failure.trap(BusUnreachable)
        if self.connected and self._answered > began:
            return Reported([False] * count, {}, str(failure.value), True)
        return Reported([False] * count)

    async def _run(self) -> None:
        delay, failures, complained = doubling(RETRY_FIRST, RETRY_MOST), 0, False
        while True:
            await self._applied()
            try:
                subscribed = await self._subscribe()
            except CancelledError:
                raise
            except (BusUnreachable, BusRefused) as e:
                if not complained:
                    self._log.warn("{reason}; trying again.", reason=str(e))
                complained = True
            except Exception:
                self._log.failure("Cannot subscribe to {bus}", bus=str(self._bus))
                self._disconnect()
            else:
                complained = False
                try:
                    if await self._maintain(subscribed):
                        failures = 0
                except CancelledError:
                    raise
                except Exception:
                    self._log.failure("Error in the subscription to {bus}", bus=str(self._bus))
            await deferLater(self._reactor, delay(failures))
            failures += 1

    async def _maintain(self, subscribed: manage.Subscribed) -> bool:
        """
        Use a subscription until it is lost.

        @return: Whether the next attempt may follow soon: the subscription did not break, or
            lasted long enough.
        """
        began = self._reactor.seconds()
        try:
            await self._send_heartbeats(subscribed)
        except BusUnreachable as e:
            self._warn("{reason}; subscribing again.", reason=str(e))
        finally:
            self._disconnect()
            self._lost = self._reactor.seconds()
        self._manage.close()
        return not self._broken or self._lost - began > RETRY_MOST

    def _applied(self) -> Deferred[None]:
        """
        @return: Fires when the items that arrived are applied, or have failed to apply.
            Cancelling it does not cancel that.
        """
        applied: Deferred[None] = Deferred()
        self._applying.addCallback(lambda _: applied.callback(None))
        return applied

    async def _subscribe(self) -> manage.Subscribed:
        """
        Request a subscription and connect to it.

        @raise BusRefused: If the bus refuses, or its reply is malformed.
        @raise BusUnreachable: If the bus does not reply in time.
        """
        resume = self._cursor.position
        days = self._request.snapshot
        if self._lost is not None:
            missed = self._reactor.seconds() - self._lost + self._request.heartbeat
            days = max(days, math.ceil(missed / _DAY))
        reply = await self._manage.ask(
            manage.encode_subscribe(self._request.topics, days, self._request.name, resume)
        )
        try:
            subscribed = manage.decode_subscribed(reply)
        except ProtocolInvalid as e:
            reason = _reason(reply)
            raise BusRefused("subscribe", shown(reason) if reason else str(e)) from e
        self._answered = self._reactor.seconds()
        await self._begin(subscribed, resume, days)
        self._connect(subscribed)
        return subscribed

    async def _begin(
        self, subscribed: manage.Subscribed, resume: Position | None, days: int
    ) -> None:
        """
        Prepare for the beginning of a subscription: a resumption or a snapshot.

        @param resume: The requested position.
        @param days: The requested age of the snapshot.
        """
        here = Position(subscribed.plugin, subscribed.number)
        numbered = subscribed.protocol == manage.PROTOCOL
        self._expected = subscribed.number
        self._torn = self._position_held = False
        self._snapshot = None
        if numbered and resume is not None:
            if here != resume:
                await self._cursor.begin_snapshot()
                self._snapshot = _Snapshot(ending=True)
                beginning = "with everything that is in force"
            else:
                beginning = f"from number {resume.number} on"
        else:
            if numbered and days > 0:
                self._snapshot = _Snapshot(ending=False)
            elif numbered:
                await self._cursor.apply((), here)
            beginning = f"with a snapshot of {days} days"
        if self._complaints.allows():
            self._log.info(
                "Subscribed to {bus} for {topics}, {beginning}.",
                bus=str(self._bus),
                topics=", ".join(self._request.topics),
                beginning=beginning,
            )

    def _connect(self, subscribed: manage.Subscribed) -> None:
        self._broken = False
        self._arrivals, self._waiting, self._waiting_bytes = [], 0, 0
        topic = subscribed.topic.encode()
        host = HostPort(self._bus.host, subscribed.pub_port)
        queue = (
            QUEUE_WITH_REPLAY if subscribed.protocol == manage.PROTOCOL else QUEUE_WITHOUT_REPLAY
        )
        sub = SubConnection(
            self._factory,
            lambda messages: self._arrived(sub, topic, messages),
            {**self._options, zmq.RCVHWM: queue},
        )
        self._sub = sub
        sub.subscribe(topic)
        sub.connect(f"tcp://{host}")
        if self._ready is not None:
            address = HostPort(self._bus.host, subscribed.sub_port)
            self._publisher = ReportPublisher(
                self._factory, f"tcp://{address}", self._ready, self._keys
            )
        self.connected = True
        self.plugin = subscribed.plugin if subscribed.protocol == manage.PROTOCOL else ""

    def _disconnect(self) -> None:
        self.connected = False
        if self._snapshot_retry is not None:
            if self._snapshot_retry.active():
                self._snapshot_retry.cancel()
            self._snapshot_retry = None
        self._reports.close()
        for connection in (self._sub, self._publisher):
            if isinstance(connection, SubConnection):
                connection.shutdown()
            elif connection is not None:
                connection.close()
        self._sub = self._publisher = None

    async def _send_heartbeats(self, subscribed: manage.Subscribed) -> None:
        """
        Send heartbeats until the bus no longer knows the subscription, or it breaks.
        """
        reports = subscribed.protocol == manage.PROTOCOL and self._report is not None
        try:
            while True:
                if await self._breaks_within(self._request.heartbeat):
                    return
                report = self._report() if reports and self._report is not None else None
                beat = manage.encode_heartbeat(subscribed.topic, report)
                reply = await self._manage.ask(beat)
                if reply != manage.SUCCESS and not _is_success(reply):
                    self._warn(
                        "{bus} no longer knows the subscription; subscribing again.",
                        bus=str(self._bus),
                    )
                    return
                self._answered = self._reactor.seconds()
        except CancelledError:
            await self._unsubscribe(subscribed)
            raise

    async def _breaks_within(self, seconds: float) -> bool:
        """
        @return: Whether the subscription breaks in that time.
        """
        self._breaking = Deferred()
        if self._broken:
            return True
        try:
            await self._breaking.addTimeout(seconds, self._reactor)
        except TimeoutError:
            return False
        finally:
            self._breaking = None
        return True

    async def _unsubscribe(self, subscribed: manage.Subscribed) -> None:
        try:
            await self._manage.ask(manage.encode_unsubscribe(subscribed.topic), timeout=1.0)
        except BusUnreachable:
            self._log.debug("The bus did not confirm the end of the subscription.")

    def _arrived(self, sub: SubConnection, topic: bytes, messages: list[Received]) -> None:
        for received in messages:
            message = received.frames
            delivery: Delivery | Item | Unreadable
            try:
                delivery = decode_delivery(topic, message)
            except Invalid as e:
                delivery = unreadable(str(e), b"".join(message))
            except Exception as e:  # a bug in a decoder
                delivery = unreadable(f"{type(e).__name__}: {e}", b"".join(message))
            self._arrivals.append(delivery)
            self._waiting_bytes += sum(map(len, message))
            self._waiting += len(delivery.items) if isinstance(delivery, Batch | Part | Torn) else 1
        if self._applying.called:
            self._applying = Deferred.fromCoroutine(self._drain(sub))
            self._applying.addErrback(self._eb_not_applied)
        if not self._applying.called and (
            self._waiting >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES
        ):
            sub.pause()

    async def _drain(self, sub: SubConnection) -> None:
        """
        Apply the deliveries that wait, and those that arrive meanwhile, until none is left.
        Deliveries that wait together are applied together.
        """
        while self._arrivals:
            deliveries, self._arrivals = self._arrivals, []
            self._waiting = self._waiting_bytes = 0
            if sub is self._sub:
                sub.resume()
            await self._apply_batch(sub, deliveries)
            if not self._arrivals:
                await self._cursor.commit()

    async def _apply_batch(
        self, sub: SubConnection, deliveries: Sequence[Delivery | Item | Unreadable]
    ) -> None:
        """
        Apply deliveries in order, and as many as possible in one step.

        @param sub: The socket of the subscription that they belong to. The rest of them is
            dropped when that subscription is over.
        """
        pending = _Pending()
        for delivery in deliveries:
            if self._broken or sub is not self._sub:
                return
            if isinstance(delivery, Batch) and not self.plugin:  # a Threat Bus host has no numbers
                pending.add(delivery)
            elif isinstance(delivery, Batch):
                if self._snapshot is not None:
                    self._end_incomplete("it has no end")
                if delivery.after > self._expected and not self._skips_gap(delivery, pending):
                    await self._apply(pending)
                    self._report_loss()
                    return
                if delivery.until > self._expected:
                    self._expected = delivery.until
                    pending.position = Position(self.plugin, delivery.until)
                    self._torn = False
                pending.add(delivery)
            elif isinstance(delivery, Part):
                if self._snapshot is not None:
                    self._snapshot.add(delivery)
                pending.add(delivery)
            elif isinstance(delivery, Mark):
                await self._apply(pending)
                pending = _Pending()
                if sub is self._sub:
                    await self._end_snapshot(delivery)
            elif isinstance(delivery, Torn):
                self._torn = True
                pending.add(delivery)
            elif isinstance(delivery, Unreadable):
                self._torn = True
                pending.refused.append(delivery)
            else:
                pending.items.append(delivery)
        await self._apply(pending)

    def _skips_gap(self, batch: Batch, pending: _Pending) -> bool:
        """
        Decide whether to skip the numbers that are missing before a batch.

        The bus reads them from its journal. If they are missing there, they will be missing
        every time.

        @return: Whether they are skipped; if so, they are among the refused items.
        """
        gap = (self.plugin, self._expected, batch.after)
        self._same_gap_count = self._same_gap_count + 1 if gap == self._last_gap else 1
        self._last_gap = gap
        if self._same_gap_count < SAME_GAP - self._torn:
            return False
        reason = f"the bus does not send the numbers from {self._expected + 1} to {batch.after}"
        pending.refused.append(Unreadable(batch.after, (), reason, b""))
        return True

    async def _apply(self, pending: _Pending) -> None:
        if pending.refused:
            self.refused += len(pending.refused)
            for each in pending.refused:
                self._warn("Set aside an item from the bus: {reason}", reason=each.reason)
            await self._cursor.set_aside(pending.refused)
        position = None if self._position_held else pending.position
        if pending.items or position is not None:
            # A bus that numbers its items has decided which version is in force.
            await self._cursor.apply(pending.items, position, decided=bool(self.plugin))

    async def _end_snapshot(self, mark: Mark) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            self._warn("{bus} ended a snapshot that it had not begun.", bus=str(self._bus))
            return
        if not mark.failed and snapshot.count != mark.count:
            self._end_incomplete(f"{snapshot.count} of its {mark.count} items came")
            return
        self._log.info(
            "The snapshot is complete: {count} items{refused}{failed}.",
            count=mark.count,
            refused="" if not snapshot.refused else f", {snapshot.refused} of them set aside",
            failed="" if not mark.failed else f", without those of {shown(', '.join(mark.failed))}",
        )
        if mark.failed:
            self._report_loss()
            return
        self._snapshot = None
        self._incomplete_snapshots = 0
        position = Position(self.plugin, mark.number)
        if not (mark.full and snapshot.ending):
            await self._cursor.apply((), position)
        elif snapshot.nameless:
            self._warn(
                "The ids of {count} items in the snapshot are unreadable:"
                " indicators that are missing from it stay in force.",
                count=snapshot.nameless,
            )
            await self._cursor.apply((), position)
        else:
            await self._cursor.end_snapshot(position)

    def _end_incomplete(self, reason: str) -> None:
        """
        End an incomplete snapshot, and request another one later. Its items stay, and the
        following ones are applied, but the position is held until then.
        """
        delay = doubling(INCOMPLETE_FIRST, INCOMPLETE_MOST)(self._incomplete_snapshots)
        self._incomplete_snapshots += 1
        self._snapshot = None
        self._position_held = True
        self._warn(
            "The snapshot of {bus} is incomplete: {reason}. It ends nothing;"
            " requesting another one in {delay:g} s.",
            bus=str(self._bus),
            reason=reason,
            delay=delay,
        )
        self._snapshot_retry = self._reactor.callLater(delay, self._break)

    def _report_loss(self) -> None:
        self._warn("{bus} did not send everything; subscribing again.", bus=str(self._bus))
        self._break()

    def _warn(self, text: str, **values: Any) -> None:
        """
        Log a warning that the bus can provoke at will, at a limited rate.
        """
        if self._complaints.allows():
            self._log.warn(text, **values)

    def _eb_not_applied(self, failure: Failure) -> None:
        self._log.failure("Cannot apply items from the bus", failure)
        self._break()

    def _break(self) -> None:
        self._broken = True
        if self._breaking is not None and not self._breaking.called:
            self._breaking.callback(None)


class _Pending:
    """
    Items that wait to be applied together.

    @ivar refused: The unreadable ones among them.
    @ivar position: The position after them; C{None} if they have none.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.refused: list[Unreadable] = []
        self.position: Position | None = None

    def add(self, delivery: Batch | Part | Torn) -> None:
        self.items.extend(delivery.items)
        self.refused.extend(delivery.refused)


class _Snapshot:
    """
    A snapshot that is arriving.

    @ivar ending: Whether indicators that are missing from it are no longer in force.
    @ivar count: The number of its items that arrived.
    @ivar refused: The number of unreadable ones among them.
    @ivar nameless: The number of unreadable ones without a readable id.
    """

    def __init__(self, ending: bool) -> None:
        self.ending = ending
        self.count = 0
        self.refused = 0
        self.nameless = 0

    def add(self, part: Part) -> None:
        self.count += len(part.items) + len(part.refused)
        self.refused += len(part.refused)
        self.nameless += sum(not each.ids for each in part.refused)


def _reason(reply: bytes) -> str:
    """
    @return: The reason that a bus gives for a refusal; empty if it gives none.
    """
    try:
        reason = manage.decode_reply(reply).get("reason", "")
    except ProtocolInvalid:
        return ""
    return reason if isinstance(reason, str) else ""


def _is_success(reply: bytes) -> bool:
    try:
        return manage.decode_reply(reply).get("status") == "success"
    except ProtocolInvalid:
        return False
