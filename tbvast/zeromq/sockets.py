"""
ZeroMQ sockets as Twisted connections. They move messages and decide nothing.

Every connection is a C{txzmq.ZmqConnection} of a L{Factory}. Unlike txZMQ's own classes,
connections read a bounded burst of messages per reactor turn, use only the factory's
reactor, and call a receiver instead of being subclassed.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import zmq
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from txzmq import ZmqConnection, ZmqEndpoint, ZmqEndpointType, ZmqFactory
from zope.interface import implementer

from tbvast.errors import TbvastError
from tbvast.interfaces import IPausable, IPublisher
from tbvast.service.rate_limit import RateLimit
from tbvast.values import Received
from tbvast.zeromq.connection_table import EndpointConnections
from tbvast.zeromq.tcp_peer import TcpPeer, network_of
from tbvast.zeromq.topic_limits import TopicLimits

BURST_MESSAGES = 250
BURST_BYTES = 1 << 18
BURST_FRAMES = 4000
"""
The messages, their bytes, and their frames, after which one connection stops reading in one reactor
turn.
"""

MAX_FRAMES = 1024
"""
The most frames of a message. Those of tbvast's protocols have up to three and the envelopes of
proxies, but what Threat Bus answered is answered.
"""

BURST_REQUESTS = 50
"""
The same for requests, which may take a quarter of a millisecond each, however short they are.
"""

PEER_MESSAGES = 256
"""
The most messages that an XPUB socket queues for one peer. ZeroMQ counts messages, not
bytes, so the queue is only as long as a fast peer needs to stay busy.
"""

LISTENERS = 4
"""
The connections with one topic that count as a subscriber's; a subscriber has one, and more for a
moment when it connects again.
"""

SUBSCRIPTION_BYTES = 1 << 14
"""
The bytes of subscriptions of one peer that wait in the kernel. They arrive even after the peer has
been disconnected.
"""

TOPIC_BYTES = 2048
"""
The longest subscription, in bytes, that an XPUB socket accepts from a peer. ZeroMQ aborts
the process when it removes a subscription of some hundred thousand bytes.
"""

SocketOptions = Mapping[int, int | bytes]
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
TCP keepalive, which detects a dead peer within half a minute. ZeroMQ's heartbeats would
also disconnect a living one: their replies queue behind messages that are not being read.
"""

UNANSWERED_LIMIT = 30.0
"""
Seconds after which a peer counts as dead, if its system acknowledges none of the sent data.
TCP keepalive does not probe while data is unacknowledged.
"""

COMPLAINTS_PER_MINUTE = 10

DOUBT_SECONDS = 1.0
"""
Seconds after which the connections are looked at again, if nobody knows whose subscription has
ended.
"""

_ADDRESS = "Peer-Address"

_NOBLOCK = int(zmq.NOBLOCK)

_send = zmq.backend.Socket.send
# The wrapper in zmq.Socket serves other socket types, and takes as long again.

_NOT_ACCEPTED = (zmq.EAGAIN, zmq.EHOSTUNREACH)

_SUBSCRIBE = 1
_UNSUBSCRIBE = 0


@dataclass(eq=False, repr=False)
class EndpointUnusable(TbvastError):
    """
    A socket could not be bound or connected.

    @ivar address: E.g. C{tcp://127.0.0.1:13370}.
    @ivar reason: The error text of the operating system.
    """

    address: str
    reason: str

    def __str__(self) -> str:
        return f"{self.address} cannot be used: {self.reason}"


def _seed_random() -> None:
    """
    Seed C{rand}, with which libzmq draws the number of the first peer of a ROUTER; it does not
    seed it itself. Whoever knows the numbers can claim that of a later peer as his own identity,
    and libzmq aborts the process when that peer comes.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))


class Factory(ZmqFactory):
    """
    The ZeroMQ context of one service, and its connections.
    """

    def __init__(self, reactor: IReactorTime, linger: int = 200) -> None:
        """
        @param reactor: The reactor in which all connections of the factory run; also an
            C{IReactorFDSet}.
        @param linger: Milliseconds for which a closing connection still sends its messages.
        """
        super().__init__()
        _seed_random()
        self.reactor = reactor
        self.lingerPeriod = linger
        self.context.setsockopt(zmq.MAX_SOCKETS, 4096)


@implementer(IPausable)
class Connection(ZmqConnection):
    """
    A socket that reads bounded bursts, and can be paused. Its receiver is called with
    L{Received} values.

    @ivar paused: Whether reading is paused.
    @ivar drained: Whether the last read emptied the socket.
    @cvar defaults: The options of every socket of the class.
    @cvar burst_messages: The messages after which it stops reading in one reactor turn.
    @cvar tells_connections: Whether a message has the descriptor of its sender's connection.
    """

    _log = Logger()

    _frame: zmq.Frame
    read_scheduled: IDelayedCall | None
    defaults: SocketOptions = {}
    burst_messages = BURST_MESSAGES
    tells_connections = False

    def __init__(
        self,
        factory: Factory,
        receive: Callable[[list[Received]], None],
        options: SocketOptions | None = None,
        by_address: bool = False,
        caught_up: Callable[[str], None] | None = None,
        overlong: Callable[[str], None] | None = None,
    ) -> None:
        """
        @param factory: The context and the reactor.
        @param receive: Called with the messages of each burst.
        @param options: Socket options, set before the socket is bound or connected.
        @param by_address: Whether the sender's network address identifies it on a socket
            without CURVE; of an IPv6 address, the network of 64 bits does.
        @param caught_up: Called, when no message waits any more, with the descriptor of the
            connection from which the last one came; empty if it is unknown.
        @param overlong: Called with the descriptor of the connection from which a message of more
            than L{MAX_FRAMES} frames came, which is dropped; empty if it is unknown.
        """
        self._receive = receive
        self._caught_up = caught_up
        self._overlong = overlong
        self._unfinished = False
        self._monitor: MonitorConnection | None = None
        self._user = _ADDRESS if by_address else ""
        if zmq.CURVE_SERVER in (options or {}):
            self._user = "User-Id"
        self.paused = False
        self.drained = True
        super().__init__(factory)
        for option, value in {**self.defaults, **(options or {})}.items():
            self.socket.set(option, value)

    def bind(self, address: str) -> None:
        """
        Listen on an address.

        @param address: E.g. C{tcp://127.0.0.1:13370}.
        @raise EndpointUnusable: If the address is in use, for example.
        """
        self._open(ZmqEndpoint(ZmqEndpointType.bind, address))

    def connect(self, address: str) -> None:
        """
        Connect to an address, now or as soon as a peer listens there.

        @param address: As for L{bind}.
        @raise EndpointUnusable: If the address is malformed.
        """
        self._open(ZmqEndpoint(ZmqEndpointType.connect, address))

    def _open(self, endpoint: ZmqEndpoint) -> None:
        try:
            self.addEndpoints([endpoint])
        except zmq.ZMQError as e:
            raise EndpointUnusable(endpoint.address, zmq.strerror(e.errno or 0)) from e
        self._read_soon()  # the descriptor signals only what comes after that

    def pause(self) -> None:
        """
        Stop reading until L{resume} is called; messages stay in ZeroMQ's own queue. Peers
        still connect and learn the subscriptions.
        """
        self.paused = True

    def resume(self) -> None:
        if self.paused and self.factory is not None:
            self.paused = False
            self._read_soon()

    def send_now(self, frames: Sequence[bytes]) -> bool:
        """
        Send a message without waiting.

        @return: Whether ZeroMQ accepted the message. It does not if the peer's queue is full
            or the peer is gone.
        """
        if len(frames) == 1:
            return self.send_frames(frames) == 1
        self._read_soon()
        try:
            self.socket.send_multipart(frames, _NOBLOCK)
        except zmq.ZMQError as e:
            if e.errno in _NOT_ACCEPTED:
                return False
            raise
        return True

    def send_frames(self, frames: Iterable[bytes]) -> int:
        """
        Send messages of one frame each, until ZeroMQ refuses one.

        @return: The number of accepted messages; see L{send_now}.
        """
        self._read_soon()
        socket = self.socket
        accepted = 0
        try:
            for frame in frames:
                _send(socket, frame, _NOBLOCK)
                accepted += 1
        except zmq.ZMQError as e:
            if e.errno not in _NOT_ACCEPTED:
                raise
        return accepted

    def doRead(self) -> None:
        if self.read_scheduled is not None:
            if self.read_scheduled.active():
                self.read_scheduled.cancel()
            self.read_scheduled = None
        if self.factory is None:
            return
        if self.paused:
            # The descriptor signals commands only once. Asking for events processes them;
            # until then no new peer joins the socket.
            self.socket.get(zmq.EVENTS)
            return
        messages: list[Received] = []
        size = frames = 0
        try:
            most = self.burst_messages
            while len(messages) < most and size < BURST_BYTES and frames < BURST_FRAMES:
                dropping = self._unfinished
                message = self._read_message()
                for frame in message.frames:
                    size += len(frame)
                    frames += 1
                if not (dropping or self._unfinished):
                    messages.append(message)
                elif not dropping and self._overlong is not None:
                    self._overlong(_descriptor(self._frame))
            self._read_soon()
            self.drained = False
        except zmq.Again:
            self.drained = True
        if messages:
            if self._caught_up is not None and self.drained:
                self._caught_up(_descriptor(self._frame))
            try:
                self._receive(messages)
            except Exception:
                self._log.failure("The receiver of {count} messages failed", count=len(messages))

    def _read_message(self) -> Received:
        """
        Read a message, or the next L{MAX_FRAMES} frames of a longer one, which is unfinished then.
        C{recv_multipart} would ask the socket whether more frames follow, which takes longer than
        all the rest.

        @raise zmq.Again: If no message waits.
        """
        self._frame = frame = self.socket.recv(_NOBLOCK, False)
        user = _property(frame, self._user) if self._user else ""
        if user and self._user == _ADDRESS:
            user = network_of(user)
        descriptor = _descriptor(frame) if self.tells_connections else ""
        frames = [frame.bytes]
        self._unfinished = frame.more
        if self._unfinished:
            self._read_rest(frames)
        return Received(user, frames, descriptor)

    def _read_rest(self, frames: list[bytes]) -> None:
        while self._unfinished and len(frames) < MAX_FRAMES:
            frame = self.socket.recv(_NOBLOCK, False)
            frames.append(frame.bytes)
            self._unfinished = frame.more

    def _read_soon(self) -> None:
        if self.read_scheduled is None:
            self.read_scheduled = self.factory.reactor.callLater(0, self.doRead)

    def shutdown(self) -> None:
        if self._monitor is not None:
            self._monitor.shutdown()
        super().shutdown()


class MonitorConnection(Connection):
    """
    Receives the events of another connection's socket.

    ZeroMQ's own thread sends the events, and would wait if nobody could receive them. So nothing
    limits their queue, and the events end before it does.
    """

    socketType = zmq.PAIR
    defaults: SocketOptions = {zmq.RCVHWM: 0}

    def __init__(
        self, monitored: Connection, events: int, receive: Callable[[list[Received]], None]
    ) -> None:
        """
        @param monitored: A connection that is not bound yet.
        @param events: The events to receive, as a sum of C{zmq.EVENT} constants.
        @param receive: Called with the messages of each burst. The first frame has the event and
            its value.
        """
        super().__init__(monitored.factory, receive)
        address = f"inproc://monitor-{monitored.fd}"
        monitored.socket.monitor(address, events)
        monitored._monitor = self
        self._monitored = monitored
        self.connect(address)

    def shutdown(self) -> None:
        if self.factory is not None:  # the monitored connection may have done it
            self._monitored.socket.monitor(None, 0)
            super().shutdown()


class RouterConnection(Connection):
    """
    The replying end of REQ sockets. A message begins with the peer's routing frames.
    """

    socketType = zmq.ROUTER
    burst_messages = BURST_REQUESTS
    tells_connections = True

    def send_shared(self, frames: Sequence[bytes]) -> Callable[[], bool]:
        """
        Send a message without waiting. Its last frame is not copied, so that messages with the
        same one share it.

        @return: Tells whether ZeroMQ no longer has it: it is with the peer's system, or was
            dropped, because the peer is gone or its queue was full.
        """
        *envelope, last = frames
        self._read_soon()
        for frame in envelope:
            self.socket.send(frame, _NOBLOCK | zmq.SNDMORE)
        shared = zmq.Frame(last, track=True, copy=False)
        tracker = self.socket.send(shared, _NOBLOCK, copy=False, track=True)
        return lambda: tracker.done


class DealerConnection(Connection):
    """
    The requesting end. It can send a request before the previous one is answered.
    """

    socketType = zmq.DEALER


class SubConnection(Connection):
    """
    The receiving end of PUB sockets.
    """

    socketType = zmq.SUB

    def subscribe(self, topic: bytes) -> None:
        """
        @param topic: A prefix of the messages to receive.
        """
        self.socket.set(zmq.SUBSCRIBE, topic)


class XSubConnection(Connection):
    """
    The receiving end of PUB sockets. Unlike L{SubConnection}, it also receives messages that nobody
    has subscribed to: ZeroMQ would drop any number of them in one call.
    """

    socketType = zmq.XSUB
    tells_connections = True

    def subscribe(self, topic: bytes) -> None:
        """
        @param topic: A prefix of the messages to receive.
        """
        self.socket.send(bytes([_SUBSCRIBE]) + topic)


class XPubConnection(Connection):
    """
    The sending end of SUB sockets. It receives their subscriptions; see L{read_subscription}.

    If a subscriber's queue is full, a message is refused, not dropped, so that the sender
    can keep it. A topic should therefore have one subscriber.
    """

    socketType = zmq.XPUB
    defaults: SocketOptions = {zmq.XPUB_NODROP: 1}


@implementer(IPublisher)
class GuardedXPubConnection(XPubConnection):
    """
    An XPUB socket that sends a topic only to peers that were admitted to it.

    It queues at most L{PEER_MESSAGES} for each peer. It disconnects peers that subscribe to too
    many topics. ZeroMQ takes subscriptions faster than they can be counted, so each peer's next one
    waits until the socket is read.

    In manual mode, a socket option applies to the peer whose subscription was read last. But
    after a message that is no subscription, ZeroMQ takes the peer of a later subscription for
    it, until the socket is read empty. Until then an option would admit the wrong peer, so the
    senders are disconnected instead. A SUB socket connects again, and repeats its
    subscriptions.
    """

    tells_connections = True
    burst_messages = 50  # each can end a connection

    def __init__(
        self,
        factory: Factory,
        admit: Callable[[bytes, str], bool],
        left: Callable[[bytes], None],
        connections: EndpointConnections,
        max_topics: int,
        options: SocketOptions | None = None,
    ) -> None:
        """
        @param admit: Decides whether a peer may subscribe to a topic; called for each
            subscription that arrives, with the topic and the peer's public key. The key is
            empty on a socket without CURVE.
        @param left: Called with the topic when an admitted subscription ends.
        @param connections: The connections to the endpoint.
        @param max_topics: The most topics that a peer may subscribe to.
        """
        self._admit = admit
        self._left = left
        self._connections = connections
        self._limits = TopicLimits(max_topics)
        self._max_topics = max_topics
        self._peers: dict[bytes, list[tuple[str, TcpPeer | None]]] = {}
        self._doubtful: dict[bytes, None] = {}
        self._looking: IDelayedCall | None = None
        self._misled = False
        self._junk_senders: set[str] = set()
        self._complaints = RateLimit(factory.reactor, COMPLAINTS_PER_MINUTE)
        super().__init__(
            factory,
            lambda messages: None,
            {
                **(options or {}),
                zmq.XPUB_MANUAL: 1,
                zmq.MAXMSGSIZE: TOPIC_BYTES,
                zmq.SNDHWM: PEER_MESSAGES,
                # With CURVE, ZeroMQ counts the key as a message that waits for ever.
                zmq.RCVHWM: 1 + (zmq.CURVE_SERVER in (options or {})),
                zmq.RCVBUF: SUBSCRIPTION_BYTES,
            },
            overlong=connections.end_overlong,
        )

    def unacknowledged(self, topics: Iterable[bytes]) -> int | None:
        """
        Disconnects peers that no longer answer.

        @return: The bytes for the peer with the most; C{None} if unknown for any peer.
        """
        most = 0
        now = self.factory.reactor.seconds()
        for topic in topics:
            for _, peer in self._peers.get(topic, ((None, None),)):
                held = None if peer is None else peer.unacknowledged()
                if peer is None or held is None:
                    return None
                if held and peer.unanswered(now) >= UNANSWERED_LIMIT:
                    self._log.warn("Disconnected a subscriber: its system no longer answers.")
                    peer.abort()
                most = max(most, held)
        return most

    def _read_message(self) -> Received:
        try:
            message = super()._read_message()
        except zmq.Again:
            self._misled = False
            self._junk_senders.clear()
            raise
        changes = [read_subscription(frame) for frame in message.frames]
        name = message.descriptor
        self._connections.handed_over(name, sum(map(len, message.frames)))
        if None in changes:
            self._misled = True
            # Once: after that, a new connection may have the descriptor.
            if name not in self._junk_senders:
                self._junk_senders.add(name)
                self._disconnect(name)
            text = "Disconnected a subscriber: its message of {size} bytes is no subscription."
            self._complaints.warn(self._log, text, size=len(message.frames[0]))
        for change in filter(None, changes):
            # An error that left doRead would end the endpoint.
            try:
                if change.begins:
                    self._arrived(change.topic, name, message.user)
                else:
                    self._ended(change.topic, name)
            except Exception:
                self._log.failure("Cannot handle a subscription to {topic}", topic=change.topic)
        return message

    def _arrived(self, topic: bytes, name: str, key: str) -> None:
        # A peer may repeat a subscription, but its end is reported only once.
        if name and any(
            name == known and not (peer and peer.gone) for known, peer in self._peers.get(topic, ())
        ):
            return
        peer = _tcp_peer(name)
        if name and (self._misled or peer is None or peer.closing):
            # Of a peer that is gone, a new one may have the place in ZeroMQ.
            self._disconnect(name)
            return
        if self._limits.begun(name, peer, topic):
            text = "Disconnected a subscriber: it has subscribed to more than {count} topics."
            self._expel(name, text)
            return
        if self._misled:
            text = "Refused a subscriber that cannot be identified; restart it."
            self._complaints.warn(self._log, text)
            self._limits.refused(name, topic)
        elif (key or not self._user) and self._admit(topic, key):
            self.socket.set(zmq.SUBSCRIBE, topic)
            peers = self._peers.setdefault(topic, [])
            peers.append((name, peer))
            if len(peers) <= LISTENERS:
                self._connections.heard(name)
        else:
            self._limits.refused(name, topic)
        if (excess := self._limits.excess(self._connections.silent)) is not None:
            text = "Disconnected a subscriber: the topics of its address are too many."
            self._expel(excess, text)
        self._connections.limit_silent(self._limits.connections)

    def _expel(self, name: str, text: str) -> None:
        """
        Disconnect a peer with too many topics.

        @param name: Empty if it cannot be identified: then all go that were not.
        @param text: The line of the log.
        """
        if name:
            self._disconnect(name)
        else:
            self._connections.end_silent()
        self._connections.count("topics")
        self._complaints.warn(self._log, text, count=self._max_topics)

    def _ended(self, topic: bytes, name: str) -> None:
        self._limits.ended(name, topic)
        if not name:
            self._look_soon()
        names = [known for known, _ in self._peers.get(topic, ())]
        if name and name not in names:  # it was never admitted
            return
        if not self._misled:
            self.socket.set(zmq.UNSUBSCRIBE, topic)
        elif name:
            self._disconnect(name)
        if name:
            self._remove(topic, names.index(name))
        elif names and not self._remove_closed(topic):
            if "" in names:  # an old peer never has a name
                self._remove(topic, names.index(""))
            else:
                # ZeroMQ tells the end of a subscription just before it closes the connection,
                # unless it was the end of a peer that had not been admitted.
                self._doubtful[topic] = None

    def _remove(self, topic: bytes, index: int) -> None:
        peers = self._peers[topic]
        del peers[index]
        if not peers:
            del self._peers[topic]
        self._left(topic)

    def _remove_closed(self, topic: bytes) -> bool:
        """
        Remove the first peer whose connection is closed. The end of its subscription comes
        without a name.

        @return: Whether there is one.
        """
        for index, (_, peer) in enumerate(self._peers.get(topic, ())):
            if peer and peer.closing:
                self._remove(topic, index)
                return True
        return False

    def _look_soon(self) -> None:
        if self._looking is None:
            self._looking = self.factory.reactor.callLater(DOUBT_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        self._limits.tidy()
        self._connections.limit_silent(self._limits.connections)
        doubtful, self._doubtful = self._doubtful, {}
        for topic in doubtful:
            while self._remove_closed(topic):
                pass

    def shutdown(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        super().shutdown()

    def _disconnect(self, name: str) -> None:
        """
        Disconnect a peer. If it is gone already, another connection may have its descriptor: it
        is spared, unless it is one to this endpoint, which a SUB socket opens again.
        """
        peer = _tcp_peer(name)
        endpoint = self.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        if peer is not None and endpoint.endswith(f":{peer.local_port()}"):
            peer.abort()


def _descriptor(frame: zmq.Frame) -> str:
    """
    @return: The descriptor of the connection from which a frame came; empty if it is unknown, as
        for L{_property}. It takes a third of the time.
    """
    try:
        number = frame.get(zmq.SRCFD)
    except zmq.ZMQError:
        return ""
    return str(number) if number >= 0 else ""


def _property(frame: zmq.Frame, name: str) -> str:
    """
    @return: A property of the connection from which a frame came; empty if it is unknown, because
        the peer speaks ZMTP 1.0 or 2.0, or is gone.
    """
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def _tcp_peer(name: str) -> TcpPeer | None:
    try:
        return TcpPeer(int(name))
    except (ValueError, OSError):  # it has no name, or is closed already
        return None


def tcp_address(host: str, port: int) -> str:
    """
    Make a ZeroMQ endpoint address.

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
    @param host: An IP address or a name.
    @return: Whether only this machine can connect to sockets that listen on the host.
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
