"""
Tests for L{tbvast.zeromq.sockets}, with real sockets on the loopback address.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import zmq
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from tbvast.service.rate_limit import RateLimit
from tbvast.values import Received
from tbvast.zeromq import topic_limits
from tbvast.zeromq.connection_table import ConnectionTable, EndpointConnections
from tbvast.zeromq.receive_limits import ReceiveLimits
from tbvast.zeromq.sockets import (
    BURST_BYTES,
    BURST_FRAMES,
    BURST_MESSAGES,
    BURST_REQUESTS,
    MAX_FRAMES,
    PEER_MESSAGES,
    TOPIC_BYTES,
    Connection,
    DealerConnection,
    EndpointUnusable,
    Factory,
    GuardedXPubConnection,
    RouterConnection,
    SubConnection,
    SubscriptionChange,
    XPubConnection,
    read_subscription,
    tcp_address,
)
from tests.doubles import until
from tests.doubles_bus import MemoryCounters

reactor: Any = installed_reactor

ANY_PORT = "tcp://127.0.0.1:0"


def nothing(*args: Any) -> None:
    """
    Ignore received messages.
    """


class Mailbox:
    """
    Receives the messages of a connection.

    @ivar bursts: The messages of each burst.
    """

    def __init__(self) -> None:
        self.bursts: list[list[Received]] = []

    def __call__(self, messages: list[Received]) -> None:
        self.bursts.append(messages)

    @property
    def messages(self) -> list[Received]:
        """
        All messages.
        """
        return [message for burst in self.bursts for message in burst]

    @property
    def frames(self) -> list[bytes]:
        """
        The last frame of each message, without its sender.
        """
        return [message.frames[-1] for message in self.messages]


class SocketsTestCase(TestCase):
    """
    Connections that last as long as a test.
    """

    def setUp(self) -> None:
        self.factory = Factory(reactor, linger=0)
        self.raw: list[zmq.Socket[bytes]] = []
        self.addCleanup(self.clean)

    def clean(self) -> None:
        for raw in self.raw:
            raw.close(0)
        if self.factory.context is not None:
            self.factory.shutdown()
        self.assertEqual(self.leftovers(), [])

    def leftovers(self) -> list[Any]:
        """
        @return: The readers and calls of connections in the reactor.
        """
        readers = [reader for reader in reactor.getReaders() if isinstance(reader, Connection)]
        calls = [
            call
            for call in reactor.getDelayedCalls()
            if isinstance(getattr(call.func, "__self__", None), Connection)
        ]
        return readers + calls

    def address(self, connection: Connection) -> str:
        """
        Where a connection is bound.
        """
        bound: bytes = connection.socket.get(zmq.LAST_ENDPOINT)
        return bound.rstrip(b"\0").decode()

    def raw_socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        """
        A connected socket that only the test reads.
        """
        raw: zmq.Socket[bytes] = self.factory.context.socket(kind)
        self.raw.append(raw)
        raw.set(zmq.RCVHWM, 1)
        raw.connect(address)
        return raw

    async def until(self, condition: Callable[[], Any]) -> None:
        await until(reactor, condition)


class MessageTests(SocketsTestCase):
    """
    Messages between connections of all kinds.
    """

    def pair(self, **arguments: Any) -> tuple[RouterConnection, Mailbox, DealerConnection, Mailbox]:
        """
        A replying and a requesting end.
        """
        asked, answered = Mailbox(), Mailbox()
        router = RouterConnection(self.factory, asked, **arguments)
        router.bind(ANY_PORT)
        dealer = DealerConnection(self.factory, answered)
        dealer.connect(self.address(router))
        return router, asked, dealer, answered

    async def test_multipart(self) -> None:
        """
        The frames of a message arrive together and unchanged, including empty and long ones.
        """
        router, asked, dealer, answered = self.pair()
        message = [b"", b"\0\xff", b"", b"x" * (1 << 20), b""]
        self.assertTrue(dealer.send_now(message))
        await self.until(lambda: asked.messages)
        (received,) = asked.messages
        peer, *frames = received.frames
        self.assertEqual((received.user, frames), ("", message))
        self.assertTrue(router.send_now([peer, b"answer"]))
        await self.until(lambda: answered.messages)
        self.assertEqual(answered.messages, [Received("", [b"answer"])])

    async def test_shared(self) -> None:
        """
        A long frame is sent to several peers, and it is known when each has taken it.
        """
        router, asked, dealer, answered = self.pair()
        silent = DealerConnection(self.factory, answered, {zmq.RCVHWM: 1, zmq.RCVBUF: 4096})
        silent.connect(self.address(router))
        silent.pause()
        frame = b"x" * (1 << 23)
        taken: list[Callable[[], bool]] = []
        for each in (silent, dealer):
            each.send_now((b"", b"question"))
            await self.until(lambda: asked.messages)
            peer = asked.bursts.pop()[0].frames[0]
            taken += [router.send_shared([peer, b"", frame]) for _ in range(3)]
        await self.until(lambda: len(answered.messages) == 3)
        self.assertEqual(answered.messages[2].frames, [b"", frame])
        await self.until(lambda: all(each() for each in taken[3:]))
        self.assertFalse(taken[2]())
        silent.shutdown()
        await self.until(lambda: all(each() for each in taken))

    async def test_shared_with_nobody(self) -> None:
        """
        A message to a peer that is gone is dropped.
        """
        router, *_ = self.pair()
        taken = router.send_shared([b"nobody", b"", b"x"])
        await self.until(taken)

    async def test_single_frame(self) -> None:
        """
        A message of one frame arrives as one.
        """
        _, asked, dealer, _ = self.pair()
        dealer.send_now((b"alone",))
        await self.until(lambda: asked.messages)
        self.assertEqual(asked.messages[0].frames[1:], [b"alone"])

    async def test_by_address(self) -> None:
        """
        Without keys, the sender's network address can identify it.
        """
        _, asked, dealer, _ = self.pair(by_address=True)
        dealer.send_now((b"", b"question"))
        await self.until(lambda: asked.messages)
        self.assertEqual(asked.messages[0].user, "127.0.0.1")

    async def test_by_network(self) -> None:
        """
        Whoever has an IPv6 address has all of its network, so they are one client.
        """
        asked = Mailbox()
        router = RouterConnection(self.factory, asked, {zmq.IPV6: 1}, by_address=True)
        router.bind("tcp://[::1]:*")
        dealer = DealerConnection(self.factory, nothing, {zmq.IPV6: 1})
        dealer.connect(self.address(router))
        dealer.send_now((b"question",))
        await self.until(lambda: asked.messages)
        self.assertEqual(asked.messages[0].user, "::/64")

    async def test_order(self) -> None:
        """
        Messages arrive in order, in bursts of bounded length.
        """
        _, asked, dealer, _ = self.pair()
        count = 3 * BURST_MESSAGES + 1
        for number in range(count):
            self.assertTrue(dealer.send_now((b"%d" % number,)))
        await self.until(lambda: len(asked.messages) == count)
        self.assertEqual(asked.frames, [b"%d" % number for number in range(count)])
        self.assertLessEqual(max(map(len, asked.bursts)), BURST_REQUESTS)

    async def test_large_bursts(self) -> None:
        """
        A burst ends with the message that makes it long in bytes.
        """
        _, asked, dealer, _ = self.pair()
        for _ in range(10):
            dealer.send_now((b"x" * (BURST_BYTES // 2),))
        await self.until(lambda: len(asked.messages) == 10)
        self.assertLessEqual(max(map(len, asked.bursts)), 2)

    async def test_many_frames(self) -> None:
        """
        A message of too many frames is dropped, in several turns, and its sender is named. One
        with the most frames, and those of others, arrive.
        """
        overlong: list[str] = []
        router, asked, dealer, _ = self.pair(overlong=overlong.append)
        dealer.send_now([b"most"] * (MAX_FRAMES - 1))  # ZeroMQ adds one
        dealer.send_now([b""] * (10 * BURST_FRAMES))
        dealer.send_now([b"later"] * MAX_FRAMES)
        dealer.send_now([b"last"])
        reads, read_soon = 0, router._read_soon

        def count() -> None:
            nonlocal reads
            reads += 1
            read_soon()

        self.patch(router, "_read_soon", count)
        await self.until(lambda: b"last" in asked.frames)
        self.assertEqual([m.frames[1] for m in asked.messages], [b"most", b"last"])
        descriptor = asked.messages[0].descriptor
        self.assertEqual(overlong, [descriptor, descriptor])
        self.assertGreater(reads, 5)

    async def test_failing_receiver(self) -> None:
        """
        A receiver's exception is logged, and the receiver gets the next message.
        """
        received = Mailbox()

        def receive(messages: list[Received]) -> None:
            received(messages)
            raise ValueError

        router = RouterConnection(self.factory, receive)
        router.bind(ANY_PORT)
        dealer = DealerConnection(self.factory, nothing)
        dealer.connect(self.address(router))
        dealer.send_now((b"x",))
        await self.until(lambda: len(received.messages) == 1)
        dealer.send_now((b"x",))
        await self.until(lambda: len(received.messages) == 2)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    async def test_too_long(self) -> None:
        """
        A message above the limit does not arrive; others do.
        """
        received = Mailbox()
        router = RouterConnection(self.factory, received, {zmq.MAXMSGSIZE: 1000})
        router.bind(ANY_PORT)
        for message in (b"x" * 1001, b"y" * 1000):
            dealer = DealerConnection(self.factory, nothing)
            dealer.connect(self.address(router))
            dealer.send_now((message,))
        await self.until(lambda: received.messages)
        self.assertEqual(received.frames, [b"y" * 1000])

    async def test_nobody_there(self) -> None:
        """
        A message without a receiver is refused.
        """
        dealer = DealerConnection(self.factory, nothing)
        dealer.bind(ANY_PORT)
        self.assertFalse(dealer.send_now((b"hello?",)))
        self.assertFalse(dealer.send_now((b"hello", b"again?")))
        router = RouterConnection(self.factory, nothing, {zmq.ROUTER_MANDATORY: 1})
        router.bind(ANY_PORT)
        self.assertFalse(router.send_now((b"nobody", b"answer")))


class PauseTests(SocketsTestCase):
    """
    Tests for L{Connection.pause} and L{Connection.resume}.
    """

    async def test_nothing_is_lost(self) -> None:
        """
        Messages to a paused connection arrive after it resumes, in order, and not before.
        """
        heard = Mailbox()
        pub = XPubConnection(self.factory, heard)
        pub.bind(ANY_PORT)
        slow, fast = Mailbox(), Mailbox()
        subs = [SubConnection(self.factory, mailbox) for mailbox in (slow, fast)]
        for sub, topic in zip(subs, (b"a", b"all"), strict=True):
            sub.subscribe(topic)
            sub.connect(self.address(pub))
        await self.until(lambda: len(heard.messages) == 2)
        subs[0].pause()
        subs[0].pause()
        sent = [b"all %d" % number for number in range(2000)]
        for frame in sent:
            self.assertTrue(pub.send_now((frame,)))
        await self.until(lambda: len(fast.messages) == len(sent))
        self.assertEqual(slow.messages, [])
        subs[0].resume()
        subs[0].resume()
        await self.until(lambda: len(slow.messages) == len(sent))
        self.assertEqual(slow.frames, sent)

    async def test_by_the_receiver(self) -> None:
        """
        A receiver that pauses its own connection gets one burst at a time.
        """
        received = Mailbox()

        def receive(messages: list[Received]) -> None:
            received(messages)
            router.pause()

        router = RouterConnection(self.factory, receive)
        router.bind(ANY_PORT)
        dealer = DealerConnection(self.factory, nothing)
        dealer.connect(self.address(router))
        count = 2 * BURST_MESSAGES + 1
        for number in range(count):
            dealer.send_now((b"%d" % number,))
        bursts = 0

        async def another() -> None:
            nonlocal bursts
            await self.until(lambda: len(received.bursts) > bursts)
            bursts += 1
            self.assertEqual(len(received.bursts), bursts)

        while len(received.messages) < count:
            await another()
            router.resume()
        self.assertEqual(received.frames, [b"%d" % number for number in range(count)])

    async def test_connected_meanwhile(self) -> None:
        """
        A peer that connects to a paused connection learns its subscriptions, so that its
        messages wait instead of being dropped.
        """
        received = Mailbox()
        sub = SubConnection(self.factory, received)
        sub.subscribe(b"topic")
        sub.bind(ANY_PORT)
        sub.pause()
        pubs = [self.raw_socket(zmq.XPUB, self.address(sub)) for _ in range(3)]
        await self.until(lambda: all(pub.poll(0) for pub in pubs))
        for number, pub in enumerate(pubs):
            self.assertEqual(pub.recv(), b"\1topic")
            pub.send(b"topic %d" % number)
        turn: Deferred[None] = Deferred()
        reactor.callLater(0.2, turn.callback, None)
        await turn
        self.assertEqual(received.messages, [])
        sub.resume()
        await self.until(lambda: len(received.messages) == 3)
        self.assertEqual(sorted(received.frames), [b"topic 0", b"topic 1", b"topic 2"])

    async def test_idle(self) -> None:
        """
        Messages that arrive at a paused connection cost nothing.
        """
        sub = SubConnection(self.factory, nothing)
        sub.subscribe(b"")
        sub.bind(ANY_PORT)
        pub = self.raw_socket(zmq.XPUB, self.address(sub))
        await self.until(lambda: pub.poll(0))
        sub.pause()
        reads = 0
        read = sub.doRead

        def count() -> None:
            nonlocal reads
            reads += 1
            read()

        sub.doRead = count  # type: ignore[method-assign]
        for number in range(1000):
            pub.send(b"%d" % number)
        turn: Deferred[None] = Deferred()
        reactor.callLater(0.2, turn.callback, None)
        await turn
        self.assertLess(reads, 100)


class DrainTests(SocketsTestCase):
    """
    Tests for C{drained}.
    """

    async def test_drained(self) -> None:
        """
        A connection is drained after the last burst, not between bursts.
        """
        states: list[bool] = []
        router = RouterConnection(self.factory, lambda _: states.append(router.drained))
        router.bind(ANY_PORT)
        dealer = DealerConnection(self.factory, nothing)
        dealer.connect(self.address(router))
        self.assertTrue(router.drained)
        router.pause()
        for number in range(BURST_REQUESTS + 1):
            dealer.send_now((b"%d" % number,))
        turn: Deferred[None] = Deferred()
        reactor.callLater(0.2, turn.callback, None)
        await turn
        router.resume()
        await self.until(lambda: len(states) == 2)
        self.assertEqual(states, [False, True])


class EndpointTests(SocketsTestCase):
    """
    Binding and connecting.
    """

    def test_taken(self) -> None:
        """
        A port in use is refused with the address and the reason.
        """
        first = RouterConnection(self.factory, nothing)
        first.bind(ANY_PORT)
        address = self.address(first)
        second = RouterConnection(self.factory, nothing)
        e = self.assertRaises(EndpointUnusable, second.bind, address)
        self.assertEqual(e.address, address)
        self.assertEqual(str(e), f"{address} cannot be used: Address already in use")

    def test_malformed(self) -> None:
        """
        A malformed address is refused.
        """
        dealer = DealerConnection(self.factory, nothing)
        for address in ("tcp://127.0.0.1", "tcp://127.0.0.1:x", "nonsense", "x://y"):
            with self.subTest(address):
                self.assertRaises(EndpointUnusable, dealer.connect, address)

    async def test_later(self) -> None:
        """
        The peer need not listen yet: messages arrive when it does.
        """
        with socket.socket() as attempt:
            attempt.bind(("127.0.0.1", 0))
            address = tcp_address(*attempt.getsockname())
        dealer = DealerConnection(self.factory, nothing)
        dealer.connect(address)
        self.assertTrue(dealer.send_now((b"early",)))
        received = Mailbox()
        RouterConnection(self.factory, received).bind(address)
        await self.until(lambda: received.messages)
        self.assertEqual(received.frames, [b"early"])


class ShutdownTests(SocketsTestCase):
    """
    A closed connection leaves nothing behind.
    """

    def test_one(self) -> None:
        """
        A closed connection leaves no reader and no call, whatever its state.
        """
        for prepare in (
            lambda connection: None,
            lambda connection: connection.send_now((b"x",)),
            lambda connection: connection.pause(),
            lambda connection: (connection.pause(), connection.resume()),
        ):
            connection = DealerConnection(self.factory, nothing)
            connection.connect("tcp://127.0.0.1:1")
            prepare(connection)
            connection.shutdown()
            self.assertEqual(self.leftovers(), [])
            self.assertEqual(self.factory.connections, set())

    def test_all(self) -> None:
        """
        The factory closes all its connections.
        """
        for kind in (DealerConnection, RouterConnection, SubConnection, XPubConnection):
            kind(self.factory, nothing).bind(ANY_PORT)
        self.factory.shutdown()
        self.assertEqual(self.leftovers(), [])

    async def test_by_the_receiver(self) -> None:
        """
        A receiver may close its own connection.
        """
        received = Mailbox()

        def receive(messages: list[Received]) -> None:
            received(messages)
            router.shutdown()

        router = RouterConnection(self.factory, receive)
        router.bind(ANY_PORT)
        dealer = DealerConnection(self.factory, nothing)
        dealer.connect(self.address(router))
        for _ in range(2 * BURST_MESSAGES):
            dealer.send_now((b"x",))
        await self.until(lambda: received.messages)
        dealer.shutdown()
        self.assertEqual(self.leftovers(), [])
        self.assertEqual(len(received.bursts), 1)


class XPubTests(SocketsTestCase):
    """
    Tests for L{XPubConnection} and L{GuardedXPubConnection}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[bytes] = []
        self.left: list[bytes] = []

    def guard(
        self, admit: Callable[[bytes], bool], max_topics: int = 1000
    ) -> GuardedXPubConnection:
        """
        An endpoint that is not bound yet.
        """
        self.counters = MemoryCounters()
        complaints = RateLimit(reactor, 0)
        table = ConnectionTable(reactor, 100, 100, [], self.counters, complaints)
        connections = EndpointConnections(table, "pub", True, ReceiveLimits(reactor, 100, 100))
        return GuardedXPubConnection(
            self.factory, lambda topic, _: admit(topic), self.left.append, connections, max_topics
        )

    def guarded(self, *topics: bytes) -> GuardedXPubConnection:
        """
        An endpoint that admits some topics.
        """

        def admit(topic: bytes) -> bool:
            self.asked.append(topic)
            return topic in topics

        pub = self.guard(admit)
        pub.bind(ANY_PORT)
        return pub

    def subscribed(self, pub: Connection, *topics: bytes) -> tuple[SubConnection, Mailbox]:
        """
        A subscriber of the default kind.
        """
        received = Mailbox()
        sub = SubConnection(self.factory, received)
        for topic in topics:
            sub.subscribe(topic)
        sub.connect(self.address(pub))
        return sub, received

    async def test_heard(self) -> None:
        """
        Subscriptions are received when they begin, and when they end with their subscriber.
        """
        heard = Mailbox()
        pub = XPubConnection(self.factory, heard)
        pub.bind(ANY_PORT)
        sub, _ = self.subscribed(pub, b"topic")
        await self.until(lambda: heard.messages)
        sub.shutdown()
        await self.until(lambda: len(heard.messages) == 2)
        self.assertEqual(
            [read_subscription(frame) for frame in heard.frames],
            [SubscriptionChange(b"topic", True), SubscriptionChange(b"topic", False)],
        )

    async def test_admitted(self) -> None:
        """
        A subscriber receives the admitted topic only, not the other requested ones: not
        everything, not a shorter topic.
        """
        pub = self.guarded(b"mine")
        _, received = self.subscribed(pub, b"", b"m", b"yours", b"mine")
        await self.until(lambda: set(self.asked) == {b"", b"m", b"yours", b"mine"})
        for frame in (b"yours secret", b"m 1", b"other", b"mine 1", b"mineindicator 2"):
            self.assertTrue(pub.send_now((frame,)))
        await self.until(lambda: len(received.messages) == 2)
        self.assertEqual(received.frames, [b"mine 1", b"mineindicator 2"])

    async def test_many(self) -> None:
        """
        Frames are accepted until the peer's queue is full; the sender continues with the first
        refused one.
        """
        pub = self.guarded(b"mine")
        sub, received = self.subscribed(pub, b"mine")
        await self.until(lambda: self.asked == [b"mine"])
        sub.pause()
        frames = [b"mine %06d" % number + b"x" * 10_000 for number in range(5000)]
        taken = pub.send_frames(frames)
        self.assertGreater(taken, 0)
        self.assertLess(taken, len(frames))
        sub.resume()
        sent = taken

        def all_sent() -> bool:
            nonlocal sent
            sent += pub.send_frames(frames[sent:])
            return sent == len(frames) == len(received.messages)

        await self.until(all_sent)
        self.assertEqual(received.frames, frames)

    async def test_everything(self) -> None:
        """
        A peer that requests everything gets nothing, and another one gets its topic.
        """
        pub = self.guarded(b"mine")
        _, nosy = self.subscribed(pub, b"")
        await self.until(lambda: self.asked == [b""])
        _, received = self.subscribed(pub, b"mine")
        await self.until(lambda: len(self.asked) == 2)
        for number in range(10):
            pub.send_now((b"mine %d" % number,))
        await self.until(lambda: len(received.messages) == 10)
        self.assertEqual(nosy.messages, [])

    async def test_two_peers(self) -> None:
        """
        Two peers with the same topic both receive it; when one leaves, the other still does.
        """
        pub = self.guarded(b"mine")
        (first, got_first), (_, got_second) = (self.subscribed(pub, b"mine") for _ in range(2))
        await self.until(lambda: len(self.asked) == 2)
        pub.send_now((b"mine 1",))
        await self.until(lambda: got_first.messages and got_second.messages)
        first.shutdown()
        await self.until(lambda: self.left == [b"mine"])
        pub.send_now((b"mine 2",))
        await self.until(lambda: len(got_second.messages) == 2)
        self.assertEqual(got_first.frames, [b"mine 1"])

    async def test_unsubscribed(self) -> None:
        """
        A peer that unsubscribes receives nothing more, and its end is reported.
        """
        pub = self.guarded(b"mine", b"end")
        sub, received = self.subscribed(pub, b"mine", b"end")
        await self.until(lambda: len(self.asked) == 2)
        sub.socket.set(zmq.UNSUBSCRIBE, b"mine")
        await self.until(lambda: self.left == [b"mine"])
        pub.send_now((b"mine 1",))
        pub.send_now((b"end",))
        await self.until(lambda: received.messages)
        self.assertEqual(received.frames, [b"end"])

    async def test_malformed(self) -> None:
        """
        Malformed and oversized subscriptions do not harm other peers.
        """
        pub = self.guarded(b"mine")
        for message in (
            [b""],
            [b"\x02mine"],
            [b"\x01mine", b"more"],
            [b"junk", b"\x01mine"],
            [b"\x00mine"],
            [b""] * 1000 + [b"\x01mine"],
            [b"\xff" * 1000],
            [b"\x01" + b"x" * 100_000],
        ):
            self.raw_socket(zmq.XSUB, self.address(pub)).send_multipart(message)
        _, received = self.subscribed(pub, b"mine")
        # If it was disconnected, it gets this when it is back.
        await self.until(lambda: pub.send_now((b"mine 1",)) and received.messages)
        self.assertEqual(set(received.frames), {b"mine 1"})

    async def test_nothing_stolen(self) -> None:
        """
        Messages that are no subscriptions do not give a topic to another peer than the one that
        asked for it. Each subscriber gets its topic, though its subscription came among them.
        """
        topics = [b"%02d mine" % number for number in range(30)]
        pub = self.guarded(*topics)
        pub.pause()
        strangers = [self.raw_socket(zmq.XSUB, self.address(pub)) for _ in range(3)]
        subscribers = [self.subscribed(pub) for _ in topics]
        for number, ((sub, _), topic) in enumerate(zip(subscribers, topics, strict=True)):
            strangers[number % 3].send(b"\x02" + topic)
            sub.subscribe(topic)
            await deferLater(reactor, 0.002)
        pub.resume()
        await self.until(lambda: pub.unacknowledged(topics) is not None)
        for topic in topics:
            self.assertTrue(pub.send_now((topic,)))
        await self.until(lambda: all(received.messages for _, received in subscribers))
        self.assertEqual([received.frames for _, received in subscribers], [[t] for t in topics])

    async def test_ended_among_messages(self) -> None:
        """
        A peer that unsubscribes among messages that are no subscriptions gets nothing more, and
        another one with its topic goes on.
        """
        pub = self.guarded(b"mine", b"end")
        (leaving, got_leaving), (_, got_staying) = (
            self.subscribed(pub, b"mine", b"end") for _ in range(2)
        )
        await self.until(lambda: len(self.asked) == 4)
        pub.pause()
        stranger = self.raw_socket(zmq.XSUB, self.address(pub))
        stranger.send(b"\x02mine")
        await self.until(lambda: pub.socket.get(zmq.EVENTS) & zmq.POLLIN)
        leaving.socket.set(zmq.UNSUBSCRIBE, b"mine")
        pub.resume()
        await self.until(lambda: self.left.count(b"mine") == 1)
        pub.send_now((b"mine 1",))
        # If it was disconnected, it gets this when it is back.
        await self.until(lambda: pub.send_now((b"end",)) and got_leaving.messages)
        await self.until(lambda: got_staying.frames[:1] == [b"mine 1"])
        self.assertEqual(set(got_leaving.frames), {b"end"})

    async def test_sender_of_messages(self) -> None:
        """
        A peer that sends messages which are no subscriptions is disconnected.
        """
        pub = self.guarded(b"mine")
        stranger = self.raw_socket(zmq.XSUB, self.address(pub))
        stranger.set(zmq.RECONNECT_IVL, -1)
        stranger.send(b"\x01mine")
        await self.until(lambda: self.asked)
        stranger.send(b"message")
        await self.until(lambda: self.left == [b"mine"])

    async def test_too_many_topics(self) -> None:
        """
        A peer that subscribes to too many topics is disconnected, whether it may have them or not;
        others are not.
        """
        for mine in (True, False):
            with self.subTest(mine=mine):
                await self.check_too_many_topics(mine)

    async def check_too_many_topics(self, mine: bool) -> None:
        pub = self.guard(lambda topic: mine or topic == b"last", max_topics=10)
        pub.bind(ANY_PORT)
        _, received = self.subscribed(pub, b"last")
        await self.until(lambda: pub.unacknowledged([b"last"]) is not None)
        many = self.raw_socket(zmq.XSUB, self.address(pub))
        many.set(zmq.RECONNECT_IVL, -1)
        for number in range(1000):
            many.send(b"\x01topic %d" % number)
        await self.until(lambda: self.counters.counts["connection", "topics"])
        await self.until(lambda: list(pub._peers) == [b"last"])
        self.assertEqual(self.counters.counts["connection", "topics"], 1)
        pub.send_now((b"last",))
        await self.until(lambda: received.messages)

    async def test_reconnected(self) -> None:
        """
        A peer that was disconnected gets all of its topics again, though nothing is sent meanwhile.
        """
        topics = [b"mine %d" % number for number in range(60)]
        pub = self.guarded(*topics)
        self.subscribed(pub, *topics)
        for _ in range(3):
            await self.until(lambda: self.holders(pub) == [1] * 60)
            pub._disconnect(pub._peers[topics[0]][0][0])
            await self.until(lambda: len(self.left) == 60)
            self.left.clear()

    async def test_topics_of_strangers(self) -> None:
        """
        Too many refused topics of one address end a connection that has some of them; the
        subscriber whose topic arrives just then gets it.
        """
        self.patch(topic_limits, "WALK_BYTES", 1000)
        self.patch(topic_limits, "ADDRESS_BYTES", 100)
        pub = self.guard(lambda topic: topic.startswith(b"mine"))
        pub.bind(ANY_PORT)
        stranger = self.raw_socket(zmq.XSUB, self.address(pub))
        stranger.set(zmq.RECONNECT_IVL, -1)
        for number in range(9):
            stranger.send(b"\x01%0100d" % number)
        await self.until(lambda: pub._limits.walk == 900)
        self.subscribed(pub, b"mine " + bytes(100))
        await self.until(lambda: self.holders(pub) == [1])
        self.assertEqual(self.counters.counts["connection", "topics"], 1)
        self.assertEqual(pub._limits.walk, 2 * 105)

    def holders(self, pub: GuardedXPubConnection) -> list[int]:
        """
        The number of peers that have each topic.
        """
        return [len(peers) for peers in pub._peers.values()]

    async def test_failing(self) -> None:
        """
        An error in the admission of one subscription leaves the endpoint to the others.
        """

        def admit(topic: bytes) -> bool:
            if topic == b"bad":
                raise RuntimeError("a defect")
            return True

        pub = self.guard(admit)
        pub.bind(ANY_PORT)
        _, received = self.subscribed(pub, b"bad", b"mine")
        await self.until(lambda: pub.unacknowledged([b"mine"]) is not None)
        pub.send_now((b"mine 1",))
        await self.until(lambda: received.messages)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_short_visits(self) -> None:
        """
        Peers that ask for a topic and go at once, and those that also send messages, do not
        disconnect the peer that has it.
        """
        pub = self.guarded(b"mine")
        sub, received = self.subscribed(pub, b"mine")
        monitor = sub.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.raw.append(monitor)
        await self.until(lambda: pub.unacknowledged([b"mine"]) is not None)
        for number in range(30):
            visitor = self.factory.context.socket(zmq.XSUB)
            visitor.connect(self.address(pub))
            visitor.send(b"\x01mine")
            visitor.send(b"message" if number % 2 else b"\x01other")
            visitor.close(200)
            if number % 3:
                await deferLater(reactor, 0.002)
        await self.until(lambda: len(pub._peers[b"mine"]) == 1)
        self.assertTrue(pub.send_now((b"mine 1",)))
        await self.until(lambda: received.messages)
        self.assertFalse(monitor.poll(0))

    async def test_others_descriptor(self) -> None:
        """
        A connection to another endpoint that has the descriptor of a peer that is gone is spared.
        """
        pub = self.guarded(b"mine")
        with socket.create_server(("127.0.0.1", 0)) as server:
            with socket.create_connection(server.getsockname()) as client:
                other, _ = server.accept()
                with other:
                    pub._disconnect(str(other.fileno()))
                    other.sendall(b"still here")
                    self.assertEqual(client.recv(10), b"still here")

    async def test_end_of_a_stranger(self) -> None:
        """
        The end of a peer that asked for a topic before it was there takes nothing from the one
        that has it.
        """
        topics: list[bytes] = []
        pub = self.guard(lambda topic: topic in topics)
        pub.bind(ANY_PORT)
        early, got_early = self.subscribed(pub, b"mine", b"early")
        topics.append(b"early")
        await self.until(lambda: pub.unacknowledged([b"early"]) is not None)
        topics.append(b"mine")
        _, received = self.subscribed(pub, b"mine")
        await self.until(lambda: pub.unacknowledged([b"mine"]) is not None)
        early.shutdown()
        await self.until(lambda: b"early" in self.left)
        await self.until(lambda: pub.unacknowledged([b"mine"]) is not None)
        pub.send_now((b"mine 1",))
        await self.until(lambda: received.messages)
        self.assertEqual((received.frames, got_early.frames), ([b"mine 1"], []))

    async def test_long_topic(self) -> None:
        """
        An oversized topic is rejected before admission.
        """
        pub = self.guarded(b"mine")
        self.subscribed(pub, bytes(TOPIC_BYTES + 1))
        self.subscribed(pub, b"mine")
        await self.until(lambda: self.asked)
        self.assertEqual(self.asked, [b"mine"])

    async def test_full(self) -> None:
        """
        A message is refused while the queue of its subscriber is full. No accepted message is
        lost, and later there is room again.
        """
        pub = self.guarded(b"mine")
        sub = self.raw_socket(zmq.SUB, self.address(pub))
        sub.subscribe(b"mine")
        await self.until(lambda: self.asked)
        taken = 0
        while pub.send_now((b"mine %d " % taken + b"x" * 50_000,)):
            taken += 1
            self.assertLess(taken, 100 * PEER_MESSAGES)
        received: list[bytes] = []

        def drained() -> bool:
            while sub.poll(0):
                received.append(sub.recv())
            return len(received) == taken

        await self.until(drained)
        self.assertEqual([int(frame.split(b" ")[1]) for frame in received], list(range(taken)))
        await self.until(lambda: pub.send_now((b"mine again",)))

    async def test_full_for_one(self) -> None:
        """
        A full queue does not affect other topics.
        """
        pub = self.guarded(b"slow", b"fast")
        slow = self.raw_socket(zmq.SUB, self.address(pub))
        slow.subscribe(b"slow")
        _, received = self.subscribed(pub, b"fast")
        await self.until(lambda: len(self.asked) == 2)
        while pub.send_now((b"slow " + b"x" * 50_000,)):
            pass
        self.assertTrue(pub.send_now((b"fast 1",)))
        await self.until(lambda: received.messages)
        self.assertFalse(pub.send_now((b"slow 1",)))

    async def test_unacknowledged(self) -> None:
        """
        The kernel holds nothing for a subscriber that reads, and much for one that does not. It
        is unknown for a topic without subscribers.
        """
        pub = self.guarded(b"slow", b"fast")
        slow = self.raw_socket(zmq.SUB, self.address(pub))
        slow.subscribe(b"slow")
        _, received = self.subscribed(pub, b"fast")
        await self.until(lambda: len(self.asked) == 2)
        while pub.send_now((b"slow " + b"x" * 50_000,)):
            pass
        pub.send_now((b"fast 1",))
        await self.until(lambda: received.messages)
        await self.until(lambda: pub.unacknowledged([b"fast"]) == 0)
        held = pub.unacknowledged([b"slow", b"fast"])
        assert held is not None
        self.assertGreater(held, 50_000)
        self.assertIsNone(pub.unacknowledged([b"fast", b"nobody"]))
        self.assertEqual(pub.unacknowledged([]), 0)
