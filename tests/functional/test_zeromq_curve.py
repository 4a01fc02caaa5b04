"""
Tests for L{tbvast.zeromq.curve} and L{tbvast.zeromq.zap} with real sockets.
"""

from __future__ import annotations

from typing import Any

import zmq
from twisted.internet import reactor as real_reactor
from twisted.trial.unittest import TestCase

from tbvast.values import Received
from tbvast.zeromq.curve import KeyPair, client_options, server_options
from tbvast.zeromq.sockets import (
    Connection,
    DealerConnection,
    Factory,
    RouterConnection,
    SocketOptions,
    SubConnection,
    XPubConnection,
)
from tbvast.zeromq.zap import ZapHandler
from tests.doubles import until

reactor: Any = real_reactor


def new_keys() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


class SocketTests(TestCase):
    """
    Keys between sockets.
    """

    def setUp(self) -> None:
        self.factory = Factory(reactor, linger=0)
        self.addCleanup(self.factory.shutdown)
        self.server = new_keys()
        self.client = new_keys()
        known = self.client.public.decode()
        self.asked: list[str] = []

        def lets_in(key: str) -> bool:
            self.asked.append(key)
            return key == known

        ZapHandler(self.factory, lets_in)
        self.received: list[Received] = []

    def listening(self, kind: Any) -> str:
        """
        @return: The address of a new socket that admits only known keys.
        """
        connection = kind(self.factory, self.received.extend, server_options(self.server))
        connection.bind("tcp://127.0.0.1:*")
        address: bytes = connection.socket.get(zmq.LAST_ENDPOINT)
        return address.rstrip(b"\0").decode()

    def dealer(self, address: str, options: SocketOptions) -> tuple[Connection, zmq.Socket[bytes]]:
        """
        @return: A client, and the monitor of its connection attempts.
        """
        connection = DealerConnection(self.factory, lambda messages: None, options)
        monitor = connection.socket.get_monitor_socket()
        self.addCleanup(monitor.close)
        self.addCleanup(connection.socket.disable_monitor)
        connection.connect(address)
        connection.send_now([b"", b"hello"])
        return connection, monitor

    async def ended(self, monitor: zmq.Socket[bytes]) -> None:
        """
        Wait until a connection attempt has ended.
        """
        failures = (
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_DISCONNECTED
        )

        def failed() -> bool:
            while monitor.poll(0):
                event, _ = monitor.recv_multipart()
                if int.from_bytes(event[:2], "little") & failures:
                    return True
            return False

        await until(reactor, failed)

    async def test_router(self) -> None:
        """
        A client with a known key is admitted, and its messages carry the key.
        """
        address = self.listening(RouterConnection)
        self.dealer(address, client_options(self.client, self.server.public))
        await until(reactor, lambda: self.received)
        received = self.received[0]
        self.assertEqual(received.user, self.client.public.decode())
        self.assertEqual(received.frames[1:], [b"", b"hello"])

    async def test_unknown_key(self) -> None:
        """
        A client with another key is rejected by the handler.
        """
        stranger = new_keys()
        address = self.listening(RouterConnection)
        _, monitor = self.dealer(address, client_options(stranger, self.server.public))
        await self.ended(monitor)
        self.assertEqual(set(self.asked), {stranger.public.decode()})
        self.assertEqual(self.received, [])

    async def test_no_key(self) -> None:
        """
        A client without a key is rejected.
        """
        _, monitor = self.dealer(self.listening(RouterConnection), {})
        await self.ended(monitor)
        self.assertEqual((self.asked, self.received), ([], []))

    async def test_other_server(self) -> None:
        """
        A client does not talk to a server that it does not trust.
        """
        address = self.listening(RouterConnection)
        _, monitor = self.dealer(address, client_options(self.client, new_keys().public))
        await self.ended(monitor)
        self.assertEqual(self.received, [])

    async def test_sub(self) -> None:
        """
        A SUB socket identifies the sender of each message, too.
        """
        connection = SubConnection(self.factory, self.received.extend, server_options(self.server))
        connection.subscribe(b"report")
        connection.bind("tcp://127.0.0.1:*")
        address = connection.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        heard: list[Any] = []
        pub = XPubConnection(
            self.factory, heard.extend, client_options(self.client, self.server.public)
        )
        pub.connect(address)
        await until(reactor, lambda: heard)
        pub.send_now([b"report 1"])
        await until(reactor, lambda: self.received)
        self.assertEqual(self.received, [Received(self.client.public.decode(), [b"report 1"])])
