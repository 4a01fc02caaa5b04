"""
ZeroMQ sockets as Twisted connections: what a message is, and no decisions.

Every connection is a L{txzmq.ZmqConnection} of a L{Factory}; unlike txZMQ's own
classes they read a bounded burst of messages per reactor turn, use the factory's
reactor only, and are given a callable instead of being subclassed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import zmq
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from txzmq import ZmqConnection, ZmqEndpoint, ZmqEndpointType, ZmqFactory

from tbvast.errors import TbvastError
from tbvast.values import Received
from tbvast.zeromq.tcp_peer import TcpPeer

BURST_MESSAGES = 250
"""
The most messages that one connection reads in one reactor turn.
"""

BURST_BYTES = 1 << 18
"""
The bytes after which one connection stops reading in one reactor turn.
"""

PEER_MESSAGES = 256
"""
The most messages that wait in an XPUB socket for one peer. ZeroMQ does not count
bytes, so it is no more than what keeps a fast peer busy.
"""

TOPIC_BYTES = 2048
"""
The longest subscription that an XPUB socket takes from a peer. ZeroMQ ends the
process when it forgets one of some hundred thousand bytes.
"""

SocketOptions = Mapping[Any, int | bytes]
"""
Values of socket options, by C{zmq} constant.
"""

KEEPALIVE: SocketOptions = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 15,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
"""
How the end of a silent peer is noticed, within half a minute, where ZeroMQ's heartbeats
would end a living one: their answers wait behind what one of both does not read.
"""

UNANSWERED_LIMIT = 30.0
"""
Seconds without an answer of a peer's system, to which something was sent, after which the
peer is taken as dead. Keepalive is silent while there is something to send.
"""

_DESCRIPTOR = "__fd"
"""
The property that tells one connection from another.
"""

_NOBLOCK = int(zmq.NOBLOCK)

_send = zmq.backend.Socket.send
# What zmq.Socket puts around it is for other types of sockets, and takes as long again.

_NOT_TAKEN = (zmq.EAGAIN, zmq.EHOSTUNREACH)

_SUBSCRIBE = 1
_UNSUBSCRIBE = 0


class EndpointUnusable(TbvastError):
    """
    A socket could not be bound or connected.

    @ivar address: E.g. C{tcp://127.0.0.1:13370}.
    @ivar reason: What the operating system said.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.address} cannot be used: {self.reason}"


class Factory(ZmqFactory):
    """
    The ZeroMQ context of one service, and its connections.
    """

    def __init__(self, reactor: Any, linger: int = 200) -> None:
        """
        @param linger: Milliseconds that unsent messages are given when a
            connection is shut down.
        """
        super().__init__()
        self.reactor = reactor
        self.lingerPeriod = linger
        self.context.setsockopt(zmq.MAX_SOCKETS, 4096)


class Connection(ZmqConnection):
    """
    A socket that reads bounded bursts, and can be paused.

    @ivar paused: Whether L{pause} was called last, or L{resume}.
    @ivar drained: Whether nothing was left to be read when it was read last.
    """

    _log = Logger()

    read_scheduled: IDelayedCall | None

    def __init__(
        self,
        factory: Factory,
        receive: Callable[[list[Any]], None],
        options: SocketOptions | None = None,
    ) -> None:
        """
        @param receive: Called with the messages of each burst; a message is a
            list of frames.
        @param options: Socket options that have to be set before the socket is
            bound or connected.
        """
        self._receive = receive
        self.paused = False
        self.drained = True
        super().__init__(factory)
        for option, value in (options or {}).items():
            self.socket.set(option, value)

    def bind(self, address: str) -> None:
        """
        @param address: E.g. C{tcp://127.0.0.1:13370}.
        @raise EndpointUnusable: If it is taken, say.
        """
        self._open(ZmqEndpoint(ZmqEndpointType.bind, address))

    def connect(self, address: str) -> None:
        """
        @param address: As for L{bind}; nobody needs to listen there yet.
        @raise EndpointUnusable: If it is no address.
        """
        self._open(ZmqEndpoint(ZmqEndpointType.connect, address))

    def _open(self, endpoint: ZmqEndpoint) -> None:
        try:
            self.addEndpoints([endpoint])
        except zmq.ZMQError as e:
            raise EndpointUnusable(endpoint.address, zmq.strerror(e.errno or 0)) from e

    def pause(self) -> None:
        """
        Read nothing until L{resume} is called; ZeroMQ's own queue fills up. Peers still
        connect, and learn the subscriptions.
        """
        self.paused = True

    def resume(self) -> None:
        """
        Read again after L{pause}.
        """
        if self.paused and self.factory is not None:
            self.paused = False
            self._read_soon()

    def send_now(self, frames: Sequence[bytes]) -> bool:
        """
        @return: Whether ZeroMQ took the message; it does not when the peer's
            queue is full or the peer is gone.
        """
        if len(frames) == 1:
            return self.send_frames(frames) == 1
        self._read_soon()
        try:
            self.socket.send_multipart(frames, _NOBLOCK)
        except zmq.ZMQError as e:
            if e.errno in _NOT_TAKEN:
                return False
            raise
        return True

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """
        Send messages of one frame each.

        @return: How many ZeroMQ took, before the first that it did not; as for
            L{send_now}.
        """
        self._read_soon()
        socket = self.socket
        taken = 0
        try:
            for frame in frames:
                _send(socket, frame, _NOBLOCK)
                taken += 1
        except zmq.ZMQError as e:
            if e.errno not in _NOT_TAKEN:
                raise
        return taken

    def doRead(self) -> None:
        if self.read_scheduled is not None:
            if self.read_scheduled.active():
                self.read_scheduled.cancel()
            self.read_scheduled = None
        if self.factory is None:
            return
        if self.paused:
            # The descriptor says that there are commands, once; until they have been
            # processed, no new peer is part of the socket.
            self.socket.get(zmq.EVENTS)
            return
        messages: list[Any] = []
        size = 0
        try:
            while len(messages) < BURST_MESSAGES and size < BURST_BYTES:
                message, length = self._read_message()
                messages.append(message)
                size += length
            self._read_soon()
            self.drained = False
        except zmq.Again:
            self.drained = True
        if messages:
            try:
                self._receive(messages)
            except Exception:
                self._log.failure("While receiving {count} messages", count=len(messages))

    def _read_message(self) -> tuple[Any, int]:
        """
        @return: A message, as the receiver gets it, and its size in bytes.
        @raise zmq.Again: If there is none.
        """
        message = [frame.bytes for frame in self._read_frames()]
        return message, sum(map(len, message))

    def _read_frames(self) -> list[zmq.Frame]:
        """
        As C{recv_multipart}, which asks the socket whether there is more: that takes
        longer than all the rest.
        """
        frame = self.socket.recv(_NOBLOCK, False)
        return self._with_rest(frame) if frame.more else [frame]

    def _with_rest(self, frame: zmq.Frame) -> list[zmq.Frame]:
        frames = [frame]
        while frame.more:
            frame = self.socket.recv(_NOBLOCK, False)
            frames.append(frame)
        return frames

    def _read_soon(self) -> None:
        if self.read_scheduled is None:
            self.read_scheduled = self.factory.reactor.callLater(0, self.doRead)


class IdentifyingConnection(Connection):
    """
    A socket that identifies the sender of each message: it passes on L{Received} values.
    """

    def __init__(
        self,
        factory: Factory,
        receive: Callable[[list[Received]], None],
        options: SocketOptions | None = None,
        by_address: bool = False,
    ) -> None:
        """
        @param by_address: Whether to name users by address if there are no keys.
        """
        self._name = "Peer-Address" if by_address else ""
        if zmq.CURVE_SERVER in (options or {}):
            self._name = "User-Id"
        super().__init__(factory, receive, options)

    def _read_message(self) -> tuple[Any, int]:
        first = self.socket.recv(_NOBLOCK, False)
        user = _property(first, self._name) if self._name else ""
        if not first.more:  # most messages of a busy bus
            only = first.bytes
            return Received(user, [only]), len(only)
        message = [frame.bytes for frame in self._with_rest(first)]
        return Received(user, message), sum(map(len, message))


class RouterConnection(IdentifyingConnection):
    """
    The answering end of REQ sockets: a message begins with the peer's routing
    frames.
    """

    socketType = zmq.ROUTER


class DealerConnection(Connection):
    """
    The asking end, which need not wait for one answer before the next question.
    """

    socketType = zmq.DEALER


class SubConnection(IdentifyingConnection):
    """
    The receiving end of PUB sockets.
    """

    socketType = zmq.SUB

    def subscribe(self, topic: bytes) -> None:
        """
        @param topic: A prefix of the messages to receive.
        """
        self.socket.set(zmq.SUBSCRIBE, topic)


class XPubConnection(Connection):
    """
    The sending end of SUB sockets, which hears of their subscriptions.

    A message that a subscriber's full queue cannot take is refused, not dropped,
    so that the sender can keep it; a topic should have one subscriber.
    """

    socketType = zmq.XPUB

    def __init__(
        self,
        factory: Factory,
        receive: Callable[[list[list[bytes]]], None],
        options: SocketOptions | None = None,
    ) -> None:
        super().__init__(factory, receive, {zmq.XPUB_NODROP: 1, **(options or {})})


class GuardedXPubConnection(XPubConnection):
    """
    An XPUB socket on which nobody receives a topic that was not admitted.

    What waits in it for one peer is bounded by L{PEER_MESSAGES}.
    """

    def __init__(
        self,
        factory: Factory,
        admit: Callable[[bytes], bool],
        left: Callable[[bytes], None],
        options: SocketOptions | None = None,
    ) -> None:
        """
        @param admit: Called with the topic of each subscription that arrives;
            says whether the peer may have it.
        @param left: Called with the topic of each subscription that ends, if it
            was admitted.
        """
        self._admit = admit
        self._left = left
        self._peers: dict[bytes, list[tuple[str, TcpPeer | None]]] = {}
        super().__init__(
            factory,
            lambda messages: None,
            {
                **(options or {}),
                zmq.XPUB_MANUAL: 1,
                zmq.MAXMSGSIZE: TOPIC_BYTES,
                zmq.SNDHWM: PEER_MESSAGES,
            },
        )

    def unacknowledged(self, topics: Iterable[bytes]) -> int | None:
        """
        What the kernel holds for the peers that listen to some topics; ZeroMQ's own queue
        is not counted. A peer that no longer answers is cut off.

        @return: Bytes, of the peer that has most; C{None} if it is not known of all.
        """
        most = 0
        now = self.factory.reactor.seconds()
        for topic in topics:
            for _, peer in self._peers.get(topic, ((None, None),)):
                held = None if peer is None else peer.unacknowledged()
                if peer is None or held is None:
                    return None
                if held and peer.unanswered(now) >= UNANSWERED_LIMIT:
                    self._log.warn("A subscriber's system no longer answers: cut off.")
                    peer.abort()
                most = max(most, held)
        return most

    def _read_message(self) -> tuple[Any, int]:
        frames = self._read_frames()
        message = [frame.bytes for frame in frames]
        # In manual mode an option applies to the peer whose message was read last.
        for frame, change in zip(frames, map(read_subscription, message), strict=True):
            if change is None:
                continue
            if change.begins:
                self._arrived(change.topic, _property(frame, _DESCRIPTOR))
            else:
                self._ended(change.topic, _property(frame, _DESCRIPTOR))
        return message, sum(map(len, message))

    def _arrived(self, topic: bytes, name: str) -> None:
        # A peer may say it twice, but its end is only heard once.
        if name and any(
            name == known and not (peer and peer.gone) for known, peer in self._peers.get(topic, ())
        ):
            return
        if self._admit(topic):
            self.socket.set(zmq.SUBSCRIBE, topic)
            self._peers.setdefault(topic, []).append((name, _tcp_peer(name)))

    def _ended(self, topic: bytes, name: str) -> None:
        peers = self._peers.get(topic, [])
        names = [known for known, _ in peers]
        if name and name not in names:  # what it has never had
            return
        self.socket.set(zmq.UNSUBSCRIBE, topic)
        if not peers:
            return
        if name:
            index = names.index(name)
        else:  # of a connection that has ended; the oldest, if it cannot be told
            gone = (number for number, (_, peer) in enumerate(peers) if peer and peer.gone)
            index = next(gone, 0)
        del peers[index]
        if not peers:
            del self._peers[topic]
        self._left(topic)


def _tcp_peer(name: str) -> TcpPeer | None:
    try:
        return TcpPeer(int(name))
    except (ValueError, OSError):  # it has no name, or has ended already
        return None


def _property(frame: zmq.Frame, name: str) -> str:
    """
    What is known of the peer that sent a frame; empty if it speaks ZMTP 1.0 or 2.0,
    or is gone.
    """
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def tcp_address(host: str, port: int) -> str:
    """
    @param host: An IP address, or a name that resolves to one.
    @raise EndpointUnusable: If the name does not resolve.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise EndpointUnusable(f"{host}:{port}", str(e)) from e
    numeric = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"tcp://{numeric}:{port}"


def is_loopback(host: str) -> bool:
    """
    Whether only this machine can reach what listens on a host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


class SubscriptionChange(msgspec.Struct, frozen=True):
    """
    The beginning or end of a peer's subscription.

    @ivar topic: The topic: a prefix of messages.
    @ivar begins: Whether the subscription begins; otherwise it ends.
    """

    topic: bytes
    begins: bool


def read_subscription(frame: bytes) -> SubscriptionChange | None:
    """
    Decode a frame that an XPUB socket received.

    @return: C{None} if the frame is not a subscription message.
    """
    if not frame or frame[0] not in (_SUBSCRIBE, _UNSUBSCRIBE):
        return None
    return SubscriptionChange(frame[1:], frame[0] == _SUBSCRIBE)
