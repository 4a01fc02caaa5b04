"""
Receives the items of one subscription, and applies them in order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import attrs
import zmq
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import Invalid, shown
from tbvast.interfaces import ICursor
from tbvast.protocol.frames import Item
from tbvast.protocol.manage import Subscribed
from tbvast.protocol.replay import Batch, Delivery, Mark, Part, Torn, decode_delivery
from tbvast.protocol.unreadable import Unreadable, unreadable
from tbvast.service.retry_policy import doubling
from tbvast.values import HostPort, Position, Received
from tbvast.zeromq.sockets import Factory, SocketOptions, SubConnection

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
Seconds before another snapshot is requested after an incomplete one; doubled up to the most.
"""


@attrs.define(eq=False)
class Snapshot:
    """
    A snapshot that is arriving.

    @ivar ending: Whether indicators that are missing from it are no longer in force.
    @ivar count: The number of its items that arrived.
    @ivar refused: The number of unreadable ones among them.
    @ivar nameless: The number of unreadable ones without a readable id.
    """

    ending: bool
    count: int = 0
    refused: int = 0
    nameless: int = 0

    def add(self, part: Part) -> None:
        self.count += len(part.items) + len(part.refused)
        self.refused += len(part.refused)
        self.nameless += sum(not each.ids for each in part.refused)


@attrs.define(eq=False)
class Reception:
    """
    Receives the items of one subscription after the other, and applies them in order.

    A bus that speaks tbvast/1 numbers its items. The position moves with the numbers, but not
    while a snapshot is arriving, nor after an incomplete one: then the next items are
    applied without a position, and another snapshot is requested later. After a gap, or if
    the cursor fails, the reception ends, and the bus sends the items again.

    @param clock: Measures the delay after an incomplete snapshot.
    @param cursor: Applies the items.
    @param warn: Logs a warning that the bus can provoke: called with a format, in which
        C{bus} is the bus, and the other values of the format.
    @param broken: Called when the subscription has to be renewed.
    @ivar plugin: The identity of the bus; empty if it has no numbers.
    @ivar refused: The number of items and messages that were unreadable.
    """

    _log = Logger()

    _clock: IReactorTime
    _cursor: ICursor
    _warn: Callable[..., None]
    _broken: Callable[[], None]
    plugin: str = attrs.field(init=False, default="")
    refused: int = attrs.field(init=False, default=0)
    _connection: SubConnection | None = attrs.field(init=False, default=None)
    _applying: Deferred[None] = attrs.field(init=False, factory=lambda: succeed(None))
    _arrivals: list[Delivery] = attrs.field(init=False, factory=list)
    _waiting: int = attrs.field(init=False, default=0)
    _waiting_bytes: int = attrs.field(init=False, default=0)
    _expected: int = attrs.field(init=False, default=0)
    _torn: bool = attrs.field(init=False, default=False)
    _last_gap: tuple[str, int, int] | None = attrs.field(init=False, default=None)
    _same_gap_count: int = attrs.field(init=False, default=0)
    _snapshot: Snapshot | None = attrs.field(init=False, default=None)
    _incomplete_snapshots: int = attrs.field(init=False, default=0)
    _snapshot_retry: IDelayedCall | None = attrs.field(init=False, default=None)

    def begin(
        self,
        factory: Factory,
        host: str,
        subscribed: Subscribed,
        snapshot: Snapshot | None,
        options: SocketOptions,
    ) -> None:
        """
        Begin to receive, when the items of the last subscription are L{applied}.

        @param factory: Makes the socket.
        @param host: The bus's host.
        @param subscribed: The reply of the bus to the request to subscribe.
        @param snapshot: The snapshot that comes first, if any.
        @param options: Options of the socket.
        """
        self.plugin = "" if subscribed.position is None else subscribed.position.plugin
        self._expected = subscribed.number
        self._snapshot = snapshot
        self._snapshot_retry = None
        self._torn = False
        topic = subscribed.topic.encode()
        # A bus with replay keeps the messages that the queue does not hold; others drop them.
        queue = 200 if self.plugin else 100_000
        self._connection = SubConnection(
            factory, functools.partial(self._arrived, topic), {**options, zmq.RCVHWM: queue}
        )
        self._connection.subscribe(topic)
        self._connection.connect(f"tcp://{HostPort(host, subscribed.pub_port)}")

    def close(self) -> None:
        """
        Receive and apply no more. Items that are being applied are applied.
        """
        if self._connection is not None:
            self._connection.shutdown()
            self._connection = None
        self._arrivals.clear()
        if self._snapshot_retry is not None and self._snapshot_retry.active():
            self._snapshot_retry.cancel()

    def applied(self) -> Deferred[None]:
        """
        @return: Fires when the items that arrived are applied, or have failed; not cancellable.
        """
        applied: Deferred[None] = Deferred()
        self._applying.addCallback(lambda _: applied.callback(None))
        return applied

    def _arrived(self, topic: bytes, messages: list[Received]) -> None:
        for message in messages:
            delivery = _decode(topic, message.frames)
            self._arrivals.append(delivery)
            self._waiting_bytes += sum(map(len, message.frames))
            if not isinstance(delivery, Mark):
                self._waiting += len(delivery.items) + len(delivery.refused)
        if self._applying.called:
            self._applying = Deferred.fromCoroutine(self._drain())
            self._applying.addErrback(self._eb_not_applied)
        if (
            not self._applying.called
            and self._connection is not None
            and (self._waiting >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES)
        ):
            self._connection.pause()

    async def _drain(self) -> None:
        """
        Apply the deliveries that wait, and those that arrive meanwhile, until none is left.
        Deliveries that wait together are applied together.
        """
        while self._arrivals:
            deliveries, self._arrivals = self._arrivals, []
            self._waiting = self._waiting_bytes = 0
            if self._connection is not None:
                self._connection.resume()
            await self._apply_all(deliveries)
            if not self._arrivals:
                await self._cursor.commit()

    async def _apply_all(self, deliveries: Sequence[Delivery]) -> None:
        items: list[Item] = []
        refused: list[Unreadable] = []
        position: Position | None = None
        for delivery in deliveries:
            if self._connection is None:
                return
            if isinstance(delivery, Mark):
                await self._apply(items, refused, position)
                items, refused, position = [], [], None
                if self._connection is not None:
                    await self._end_snapshot(delivery)
                continue
            if isinstance(delivery, Part) and self._snapshot is not None:
                self._snapshot.add(delivery)
            elif isinstance(delivery, Torn):
                self._torn = True
            elif isinstance(delivery, Batch) and self.plugin:
                if self._snapshot is not None:
                    self._end_incomplete("it has no end")
                if delivery.after > self._expected and not self._skips_gap(delivery, refused):
                    await self._apply(items, refused, position)
                    self._report_loss()
                    return
                if delivery.until > self._expected:
                    self._expected = delivery.until
                    position = Position(self.plugin, delivery.until)
                    self._torn = False
            items.extend(delivery.items)
            refused.extend(delivery.refused)
        await self._apply(items, refused, position)

    def _skips_gap(self, batch: Batch, refused: list[Unreadable]) -> bool:
        """
        @return: Whether the numbers that are missing before a batch are skipped, because the bus
            does not have them; if so, they are among the refused items.
        """
        gap = (self.plugin, self._expected, batch.after)
        self._same_gap_count = self._same_gap_count + 1 if gap == self._last_gap else 1
        self._last_gap = gap
        if self._same_gap_count < SAME_GAP - self._torn:
            return False
        reason = f"the bus does not send the numbers from {self._expected + 1} to {batch.after}"
        refused.append(Unreadable(batch.after, (), reason, b""))
        return True

    async def _apply(
        self, items: list[Item], refused: list[Unreadable], position: Position | None
    ) -> None:
        if refused:
            self.refused += len(refused)
            for each in refused:
                self._warn("Set aside an item from the bus: {reason}", reason=each.reason)
            await self._cursor.set_aside(refused)
        if self._snapshot_retry is not None:
            position = None
        if items or position is not None:
            # A bus that numbers its items has decided which version is in force.
            await self._cursor.apply(items, position, decided=bool(self.plugin))

    async def _end_snapshot(self, mark: Mark) -> None:
        snapshot = self._snapshot
        if snapshot is None:
            self._warn("{bus} ended a snapshot that it had not begun.")
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
        ends = mark.full and snapshot.ending
        if ends and not snapshot.nameless:
            await self._cursor.end_snapshot(position)
            return
        if ends:
            self._warn(
                "The ids of {count} items in the snapshot are unreadable:"
                " indicators that are missing from it stay in force.",
                count=snapshot.nameless,
            )
        await self._cursor.apply((), position)

    def _end_incomplete(self, reason: str) -> None:
        """
        End an incomplete snapshot, and request another one later. Its items stay, and the
        following ones are applied, but the position is held until then.
        """
        delay = doubling(INCOMPLETE_FIRST, INCOMPLETE_MOST)(self._incomplete_snapshots)
        self._incomplete_snapshots += 1
        self._snapshot = None
        self._warn(
            "The snapshot of {bus} is incomplete: {reason}. It ends nothing;"
            " requesting another one in {delay:g} s.",
            reason=reason,
            delay=delay,
        )
        self._snapshot_retry = self._clock.callLater(delay, self._end)

    def _report_loss(self) -> None:
        self._warn("{bus} did not send everything; subscribing again.")
        self._end()

    def _eb_not_applied(self, failure: Failure) -> None:
        self._log.failure("Cannot apply items from the bus", failure)
        self._end()

    def _end(self) -> None:
        if self._connection is not None:
            self.close()
            self._broken()


def _decode(topic: bytes, message: list[bytes]) -> Delivery:
    try:
        delivery = decode_delivery(topic, message)
    except Exception as e:  # if not Invalid, a bug in a decoder
        reason = str(e) if isinstance(e, Invalid) else f"{type(e).__name__}: {e}"
        return Torn((), (unreadable(reason, b"".join(message)),))
    return Torn((delivery,), ()) if isinstance(delivery, Item) else delivery
