"""
Strangers that take connections: whoever else uses the plugin notices nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import zmq

from tbvast.values import HostPort
from tests.functional.blocking import (
    LIMIT,
    Client,
    NoPeer,
    Peer,
    PluginProcess,
    Publisher,
    an_indicator,
)
from tests.functional.components import wait_until
from tests.functional.test_conformance import INTEL, HostTestCase
from tests.functional.test_strangers_bus import LONGEST_TURN

CLIENTS = 1400
"""
ZeroMQ clients of one address.
"""

SILENT = 4374
"""
TCP connections of one address that say nothing.
"""

USUAL = 1024
"""
The usual soft limit of descriptors.
"""

TOPICS = 1_000_000
"""
Topics that one client subscribes to.
"""

WATCHED = 5.0
"""
Seconds for which the others are watched.
"""

PATIENCE = 10.0
"""
Seconds in which somebody from another address has an answer. The kernel repeats an attempt to
connect that did not fit into the queue of a listener after 1 s and 3 s, and there are two of them.
"""

GROWTH = 100 * 2**20
"""
Bytes that resident memory may grow by.
"""


class StrangersTestCase(HostTestCase):
    """
    A plugin with a subscriber and a publisher, and strangers.
    """

    def start(self, soft: int, hard: int, **settings: int) -> None:
        """
        @param soft: The limit of descriptors that the plugin starts with.
        @param hard: The most that it may raise it to.
        """
        settings["heartbeat_timeout"] = round(10 * LIMIT)  # a test that waits does not beat
        self.plugin = self.run_host(PluginProcess(self.directory(), (soft, hard), **settings))
        self.known = Client(self.plugin.manage)
        self.addCleanup(self.known.close)
        self.known.join(INTEL)
        self.publisher = Publisher("127.0.0.1", self.known.sub)
        self.addCleanup(self.publisher.close)
        self.check_served()
        self.memory = self.plugin.rss()

    def check_served(self, seconds: float = 0.2) -> None:
        """
        The publisher and the subscriber go on, and lose nothing.
        """
        documents = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            documents.append(an_indicator())
            self.publisher.publish(documents[-1])
            time.sleep(0.05)
        ids = [document["id"] for document in documents]
        self.assertEqual(self.known.ids_until(ids[-1]), ids)
        self.assertEqual(self.known.heartbeat(), "success")

    def ask_from_elsewhere(self) -> dict[str, Any]:
        """
        Subscribe from another address, and ask for the status.

        @return: The status.
        """
        began = time.monotonic()
        other = Client(HostPort("127.0.0.2:0;127.0.0.1", self.plugin.manage.port))
        try:
            other.join(INTEL)
            document = an_indicator()
            wait_until(lambda: other.request("status")["subscriptions"][-1]["attached"])
            self.publisher.publish(document)
            other.ids_until(document["id"])
            self.known.ids_until(document["id"])
            status = other.request("status")
            other.unsubscribe()
        finally:
            other.close()
        self.assertLess(time.monotonic() - began, PATIENCE)
        return status

    def check_unharmed(self) -> dict[str, Any]:
        """
        While the strangers are there, everybody else is served, and the plugin is neither busy nor
        large.

        @return: The status.
        """
        status = self.ask_from_elsewhere()
        began, busy = time.monotonic(), self.plugin.seconds()
        self.check_served(WATCHED)
        share = (self.plugin.seconds() - busy) / (time.monotonic() - began)
        grown = self.plugin.rss() - self.memory
        print(f"busy for {share:.0%}, grown by {grown / 2**20:.0f} MiB", flush=True)
        self.assertLess(share, 0.5)
        self.assertLess(grown, GROWTH)
        return status

    def check_recovered(self) -> None:
        """
        Once the strangers are gone, their address is served, too.
        """
        wait_until(lambda: self.plugin.descriptors() < 100)
        self.check_served()
        self.assertEqual(self.plugin.status()["status"], "success")

    def check_refused(self, status: dict[str, Any]) -> None:
        """
        Connections have been refused. It depends on the machine how many: once there is one, the
        kernel holds off further attempts of its address.
        """
        self.assertGreater(status["received"]["connection"]["refused"], 0)

    @contextlib.contextmanager
    def clients(self, kind: int, port: int) -> Iterator[None]:
        """
        Ordinary clients, which connect again when their connection ends.
        """
        context = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 2 * CLIENTS)
        sockets = [context.socket(kind) for _ in range(CLIENTS)]
        for each in sockets:
            if kind == zmq.SUB:
                each.subscribe("a topic of nobody")
            each.connect(f"tcp://127.0.0.1:{port}")
        try:
            yield
        finally:
            context.destroy(linger=0)

    @contextlib.contextmanager
    def silent(self, port: int) -> Iterator[list[socket.socket]]:
        """
        Connections that say nothing.
        """
        with contextlib.ExitStack() as stack:
            connections = []
            for _ in range(SILENT):
                connection = stack.enter_context(socket.socket())
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    connection.connect(("127.0.0.1", port))
                connections.append(connection)
            yield connections


class ManyClientsTests(StrangersTestCase):
    """
    1,400 ZeroMQ clients.
    """

    def connections(self) -> dict[str, int]:
        connections: dict[str, int] = self.known.request("status")["connections"]
        return connections

    def test_soft_limit(self) -> None:
        """
        At the usual soft limit, all of them are connected: the plugin raises it.
        """
        self.start(USUAL, 4096)
        for kind, port in ((zmq.SUB, self.known.pub), (zmq.DEALER, self.plugin.manage.port)):
            with self.clients(kind, port):
                wait_until(lambda: self.connections()["open"] > CLIENTS)
                status = self.check_unharmed()
            self.assertNotIn("refused", status["received"]["connection"])
            self.assertLess(status["connections"]["open"], status["connections"]["limit"])
            self.check_recovered()

    def test_hard_limit(self) -> None:
        """
        If the hard limit is as low, some of them are refused, and nobody else.
        """
        self.start(USUAL, USUAL)
        for kind, port in (
            (zmq.SUB, self.known.pub),
            (zmq.DEALER, self.plugin.manage.port),
            (zmq.XPUB, self.known.sub),
        ):
            with self.clients(kind, port):
                wait_until(lambda: self.plugin.descriptors() > USUAL / 2)
                self.plugin.saw("Ended a connection from 127.0.0.1")
                status = self.check_unharmed()
                self.assertLess(self.plugin.descriptors(), USUAL)
            self.check_refused(status)
            self.check_recovered()


class SilentConnectionsTests(StrangersTestCase):
    """
    4,374 connections that do not even begin the handshake.
    """

    def test_silent(self) -> None:
        """
        They end when they have not finished the handshake in time.
        """
        self.start(USUAL, 4096)
        with self.silent(self.plugin.manage.port):
            self.check_unharmed()
            wait_until(lambda: self.unfinished() > 1000)
            wait_until(lambda: self.plugin.descriptors() < 100)
        self.check_recovered()

    def unfinished(self) -> int:
        received = self.known.request("status")["received"]
        return int(received.get("connection", {}).get("unfinished", 0))

    def test_limit(self) -> None:
        """
        Those above the limit are refused. It is lower than the queue in the kernel, so that they
        reach it even if a busy machine makes their attempts slow.
        """
        self.start(USUAL, 4096, max_connections=500)
        with self.silent(self.known.sub):
            self.plugin.saw("Ended a connection from 127.0.0.1")
            status = self.check_unharmed()
            self.check_refused(status)
            wait_until(lambda: self.plugin.descriptors() < 100)
        self.check_recovered()


class ManyTopicsTests(StrangersTestCase):
    """
    A client that subscribes to 1,000,000 topics that are not its own.
    """

    def check(self) -> None:
        self.plugin.saw("Disconnected a subscriber: it has subscribed to more than 1000 topics.")
        status = self.check_unharmed()
        self.assertGreater(status["received"]["connection"]["topics"], 0)

    def test_socket(self) -> None:
        """
        It is disconnected each time that it has connected again.
        """
        self.start(USUAL, 4096)
        context = zmq.Context()
        try:
            subscriber = context.socket(zmq.SUB)
            subscriber.set(zmq.SNDHWM, 0)
            for number in range(TOPICS):
                subscriber.subscribe(f"{number:032}")
            subscriber.connect(f"tcp://127.0.0.1:{self.known.pub}")
            self.check()
        finally:
            context.destroy(linger=0)
        self.check_recovered()
        self.assertLess(self.plugin.rss() - self.memory, GROWTH)

    def test_unidentified(self) -> None:
        """
        A client of a protocol version that does not identify it is disconnected, too.
        """
        self.start(USUAL, 4096)
        topics = b"".join(b"\x00\x21\x01%032d" % number for number in range(TOPICS // 10))
        with socket.create_connection(("127.0.0.1", self.known.pub), LIMIT) as stranger:
            # The greeting of ZMTP 2.0, and an identity.
            stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x01\x02" + b"\x00\x00")
            with contextlib.suppress(ConnectionError):
                stranger.sendall(topics)
            self.check()
        self.check_recovered()

    def test_many_connections(self) -> None:
        """
        Connections with few topics each end, that of a subscriber with more does not; and there is
        no long turn of the reactor, though ZeroMQ looks at all topics whenever a connection ends.
        """
        self.start(USUAL, 4096)
        other = Client(HostPort("127.0.0.2:0;127.0.0.1", self.plugin.manage.port))
        self.addCleanup(other.close)
        other.join(INTEL)
        for _ in range(59):
            other.hear(other.request("subscribe", topic=INTEL)["topic"])
        monitor = other._sub.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        wait_until(self.all_attached)
        with contextlib.ExitStack() as stack:
            for number in range(400):
                with contextlib.suppress(NoPeer):
                    peer = Peer("127.0.0.1", self.known.pub, b"SUB")
                    stack.callback(peer.close)
                    frames = [b"\x01%032d" % (1000 * number + topic) for topic in range(50)]
                    peer.send_bytes(b"".join(b"\0" + bytes([len(each)]) + each for each in frames))
        wait_until(lambda: self.plugin.descriptors() < 100)
        self.assertTrue(self.all_attached())
        self.assertFalse(monitor.poll(0))
        status = self.plugin.status()
        self.check_refused(status)
        self.assertLess(status["longest_turn"], LONGEST_TURN)
        self.check_served()

    def all_attached(self) -> bool:
        return all(each["attached"] for each in self.plugin.status()["subscriptions"])
