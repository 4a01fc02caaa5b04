"""
Tests for L{tbvast.zeromq.connections}.
"""

from __future__ import annotations

import socket
from typing import Any

import zmq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as real_reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tbvast.zeromq.connections import (
    BURST_BYTES,
    BURST_MESSAGES,
    PEER_MESSAGES,
    TOPIC_BYTES,
    Connection,
    DealerConnection,
    EndpointUnusable,
    Factory,
    GuardedXPubConnection,
    RouterConnection,
    SubConnection,
    XPubConnection,
    is_loopback,
    read_subscription,
    tcp_address,
)
from tests.doubles import until

reactor: Any = real_reactor


def ignore(messages: list[Any]) -> None:
    """
    A receiver that wants nothing.
    """


def address_of(connection: Connection) -> str:
    address: bytes = connection.socket.get(zmq.LAST_ENDPOINT)
    return address.rstrip(b"\0").decode()


class ConnectionTestCase(TestCase):
    """
    A test with sockets, which are all closed at its end.
    """

    def setUp(self) -> None:
        self.factory = Factory(reactor, linger=0)
        self.addCleanup(self.factory.shutdown)


class SubscriberTestCase(ConnectionTestCase):
    """
    A test with somebody who publishes.
    """

    def setUp(self) -> None:
        super().setUp()
        self.received: list[bytes] = []

    def subscriber(self, address: str, *topics: bytes, queue: int = 0) -> SubConnection:
        """
        Somebody who receives into L{received}.
        """

        def receive(messages: list[tuple[str, list[bytes]]]) -> None:
            self.received.extend(frame for _, message in messages for frame in message)

        options = {zmq.RCVHWM: queue} if queue else None
        connection = SubConnection(self.factory, receive, options)
        for topic in topics:
            connection.subscribe(topic)
        connection.connect(address)
        return connection


class GuardedTests(SubscriberTestCase):
    """
    Tests for L{GuardedXPubConnection}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[bytes] = []
        self.left: list[bytes] = []
        self.pub = GuardedXPubConnection(self.factory, self.admit, self.left.append)
        self.pub.bind("tcp://127.0.0.1:*")
        self.address = address_of(self.pub)

    def admit(self, topic: bytes) -> bool:
        self.asked.append(topic)
        return topic in (b"mine", b"yours")

    async def test_admitted(self) -> None:
        """
        Who asks for a topic that was admitted receives it, and no other.
        """
        self.subscriber(self.address, b"mine")
        await until(reactor, lambda: self.asked)
        self.assertTrue(self.pub.send_now([b"yours 1"]))
        self.assertTrue(self.pub.send_now([b"mine 2"]))
        await until(reactor, lambda: self.received)
        self.assertEqual(self.received, [b"mine 2"])

    async def test_everything(self) -> None:
        """
        Who asks for everything, or for the beginning of a topic, receives nothing.
        """
        spied: list[Any] = []
        spy = SubConnection(self.factory, spied.extend)
        for topic in (b"", b"m", b"min"):
            spy.subscribe(topic)
        spy.connect(self.address)
        await until(reactor, lambda: len(self.asked) == 3)
        self.subscriber(self.address, b"mine")
        await until(reactor, lambda: len(self.asked) == 4)
        for number in range(10):
            self.pub.send_now([b"mine %d" % number])
        await until(reactor, lambda: len(self.received) == 10)
        self.assertEqual(spied, [])

    async def test_left(self) -> None:
        """
        When a peer goes, the end of its topic is told.
        """
        subscriber = self.subscriber(self.address, b"mine")
        await until(reactor, lambda: self.asked)
        subscriber.shutdown()
        await until(reactor, lambda: self.left)
        self.assertEqual(self.left, [b"mine"])

    async def test_full(self) -> None:
        """
        What a peer's full queue cannot take is refused, not dropped, and one peer's
        queue is none of another's.
        """
        slow = self.subscriber(self.address, b"mine", queue=1)
        slow.pause()
        others: list[Any] = []
        other = SubConnection(self.factory, others.extend)
        other.subscribe(b"yours")
        other.connect(self.address)
        await until(reactor, lambda: len(self.asked) == 2)
        sent = 0
        for _ in range(100 * PEER_MESSAGES):
            if not self.pub.send_now([b"mine %08d" % sent + bytes(65536)]):
                break
            sent += 1
            await deferLater(reactor, 0)
        else:
            self.fail("it took everything")
        self.assertGreaterEqual(sent, PEER_MESSAGES)
        self.assertTrue(self.pub.send_now([b"yours"]))
        await until(reactor, lambda: others)
        slow.resume()
        await until(reactor, lambda: len(self.received) == sent)
        self.assertEqual(
            [int(frame[5:13]) for frame in self.received], list(range(sent)), "in order"
        )

    async def test_long_topic(self) -> None:
        """
        A topic that is too long is not even asked about, and harms nobody.
        """
        self.subscriber(self.address, bytes(TOPIC_BYTES + 1))
        self.subscriber(self.address, b"mine")
        await until(reactor, lambda: self.asked)
        self.assertEqual(self.asked, [b"mine"])


class ReadingTests(ConnectionTestCase):
    """
    How a connection reads.
    """

    def setUp(self) -> None:
        super().setUp()
        self.bursts: list[list[Any]] = []
        self.router = RouterConnection(self.factory, self.bursts.append)
        self.router.bind("tcp://127.0.0.1:*")
        self.dealer = DealerConnection(self.factory, ignore)
        self.dealer.connect(address_of(self.router))

    @property
    def received(self) -> list[list[bytes]]:
        """
        All messages, without who sent them.
        """
        return [message[1:] for burst in self.bursts for _, message in burst]

    async def send(self, *frames: bytes, count: int = 1) -> None:
        for _ in range(count):
            self.assertTrue(self.dealer.send_now(frames))

    async def test_frames(self) -> None:
        """
        A message arrives with all of its frames, empty ones too.
        """
        await self.send(b"one", b"", b"three")
        await self.send(b"four")
        await until(reactor, lambda: len(self.received) == 2)
        self.assertEqual(self.received, [[b"one", b"", b"three"], [b"four"]])

    async def test_answer(self) -> None:
        """
        Who asked gets the answer; without keys nobody has a name.
        """
        answers: list[Any] = []
        asking = DealerConnection(self.factory, answers.extend)
        asking.connect(address_of(self.router))
        asking.send_now([b"", b"question"])
        await until(reactor, lambda: self.received)
        ((user, message),) = self.bursts[0]
        self.assertEqual(user, "")
        self.router.send_now([*message[:-1], b"answer"])
        await until(reactor, lambda: answers)
        self.assertEqual(answers, [[b"", b"answer"]])

    async def test_paused(self) -> None:
        """
        While it is paused nothing is received, and afterwards everything.
        """
        await self.send(b"first")
        await until(reactor, lambda: self.received)
        self.router.pause()
        self.router.pause()
        await self.send(b"more", count=50)
        await until(reactor, lambda: self.router.socket.get(zmq.EVENTS) & zmq.POLLIN)
        self.assertEqual(len(self.received), 1)
        self.router.resume()
        await until(reactor, lambda: len(self.received) == 51)

    async def test_paused_by_receiver(self) -> None:
        """
        A receiver that pauses gets no other burst until it resumes.
        """
        self.router.shutdown()
        bursts: list[list[Any]] = []

        def receive(messages: list[Any]) -> None:
            bursts.append(messages)
            router.pause()

        router = RouterConnection(self.factory, receive)
        router.bind("tcp://127.0.0.1:*")
        total = 3 * BURST_MESSAGES
        dealer = DealerConnection(self.factory, ignore, {zmq.SNDHWM: total})
        dealer.connect(address_of(router))
        for number in range(total):
            self.assertTrue(dealer.send_now([b"%d" % number]))
        await until(reactor, lambda: bursts)
        await deferLater(reactor, 0)
        self.assertEqual(len(bursts), 1)

        def resumed() -> bool:
            router.resume()
            return sum(map(len, bursts)) == total

        await until(reactor, resumed)
        received = [int(message[1]) for burst in bursts for _, message in burst]
        self.assertEqual(received, list(range(total)))

    async def test_burst_messages(self) -> None:
        """
        No burst has more messages than allowed, and none is lost.
        """
        total = 2 * BURST_MESSAGES + 7
        self.router.pause()
        await self.send(b"x", count=1000)
        self.router.resume()
        await self.send(b"x", count=total - 1000)
        await until(reactor, lambda: len(self.received) == total)
        self.assertLessEqual(max(map(len, self.bursts)), BURST_MESSAGES)

    async def test_burst_bytes(self) -> None:
        """
        Large messages end a burst early.
        """
        self.router.pause()
        await self.send(bytes(BURST_BYTES // 2), count=10)
        self.router.resume()
        await until(reactor, lambda: len(self.received) == 10)
        self.assertLessEqual(max(map(len, self.bursts)), 2)

    async def test_receiver_fails(self) -> None:
        """
        A receiver that fails is logged, and gets the next messages.
        """
        calls: list[Any] = []

        def receive(messages: list[Any]) -> None:
            calls.append(messages)
            if len(calls) == 1:
                raise RuntimeError

        router = RouterConnection(self.factory, receive)
        router.bind("tcp://127.0.0.1:*")
        dealer = DealerConnection(self.factory, ignore)
        dealer.connect(address_of(router))
        dealer.send_now([b"one"])
        await until(reactor, lambda: calls)
        dealer.send_now([b"two"])
        await until(reactor, lambda: len(calls) == 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class OpenTests(ConnectionTestCase):
    """
    Endpoints.
    """

    def test_taken(self) -> None:
        """
        An address that is taken is named, with what the system says.
        """
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        connection = RouterConnection(self.factory, ignore)
        error = self.assertRaises(EndpointUnusable, connection.bind, address)
        self.assertEqual(str(error), f"{address} cannot be used: Address already in use")

    def test_no_address(self) -> None:
        """
        What is no address cannot be connected to.
        """
        connection = XPubConnection(self.factory, ignore)
        self.assertRaises(EndpointUnusable, connection.connect, "tcp://127.0.0.1:no")

    def test_gone(self) -> None:
        """
        What is sent to nobody is not taken.
        """
        connection = RouterConnection(self.factory, ignore, {zmq.ROUTER_MANDATORY: 1})
        connection.bind("tcp://127.0.0.1:*")
        self.assertFalse(connection.send_now([b"nobody", b"answer"]))


class AddressTests(SynchronousTestCase):
    """
    Hosts and their addresses.
    """

    def test_addresses(self) -> None:
        """
        An IPv6 address is written in brackets.
        """
        self.assertEqual(tcp_address("127.0.0.1", 13370), "tcp://127.0.0.1:13370")
        self.assertEqual(tcp_address("::1", 13370), "tcp://[::1]:13370")

    def test_unresolved(self) -> None:
        """
        A name that does not resolve is named.
        """
        error = self.assertRaises(EndpointUnusable, tcp_address, "nowhere.invalid", 1)
        self.assertIn("nowhere.invalid:1", str(error))
        self.assertFalse(is_loopback("nowhere.invalid"))

    def test_loopback(self) -> None:
        """
        Loopback addresses are told from others.
        """
        self.assertTrue(all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1"))))
        self.assertFalse(any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1"))))

    @given(st.binary(max_size=20))
    def test_subscription(self, frame: bytes) -> None:
        """
        Only what begins with one of two bytes is a subscription, or its end.
        """
        verb, topic = read_subscription(frame)
        if frame[:1] in (b"\0", b"\1"):
            self.assertEqual(bytes([verb or 0]) + topic, frame)
        else:
            self.assertEqual((verb, topic), (None, b""))
