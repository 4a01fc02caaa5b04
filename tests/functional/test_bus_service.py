"""
Tests for L{tbvast.bus.service}, with its sockets on the loopback address.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.trial.unittest import TestCase

from devtools.services import free_ports
from tbvast.bus.service import JOURNAL_NAME, Bus
from tbvast.bus_client.manage_client import ManageClient
from tbvast.bus_client.report_publisher import ReportPublisher
from tbvast.bus_client.subscription import BusSubscription, Listener, SubscriptionRequest
from tbvast.errors import JournalFailed
from tbvast.protocol import manage
from tbvast.protocol.frames import REPORT_TOPICS, Item, render
from tbvast.protocol.topics import Dialect
from tbvast.settings.schema import PluginSettings
from tbvast.values import HostPort
from tbvast.zeromq.sockets import (
    DealerConnection,
    EndpointUnusable,
    Factory,
    SubConnection,
    XPubConnection,
    tcp_address,
)
from tests.doubles import a_sighting, an_indicator, until
from tests.doubles_bus import encode_report
from tests.functional.components import children

reactor: Any = real_reactor

HOST = "127.0.0.1"


def bus_calls() -> list[str]:
    """
    The delayed calls that a bus has left behind.
    """
    return [str(call) for call in reactor.getDelayedCalls() if "LoopingCall" in str(call)]


class BusTestCase(TestCase):
    """
    A bus, and the sockets of its peers.
    """

    def setUp(self) -> None:
        self.state = Path(self.mktemp())
        self.state.mkdir()
        manage, pub, sub = free_ports(3)
        self.settings = PluginSettings(host=HOST, manage=manage, pub=pub, sub=sub)
        self.factory = Factory(reactor, linger=0)
        self.bus: Bus | None = None
        self.failures: list[str] = []
        self.addCleanup(self.clean)

    async def clean(self) -> None:
        if self.bus is not None:
            await self.stop()
        self.factory.shutdown()

    def start(self) -> None:
        bus = Bus(reactor, self.settings, self.state, self.failures.append)
        bus.startService()
        self.bus = bus

    async def stop(self) -> None:
        bus, self.bus = self.bus, None
        assert bus is not None
        await bus.stopService()

    def client(self) -> ManageClient:
        """
        Make a peer of the manage endpoint.
        """
        client = ManageClient(reactor, self.factory, HostPort(HOST, self.settings.manage))
        self.addCleanup(client.close)
        return client

    async def ask(self, **request: Any) -> Any:
        return json.loads(await self.client().ask(json.dumps(request).encode()))

    async def publish(self, *items: Item) -> list[str]:
        reply = await self.client().ask(manage.encode_publish([item.raw for item in items]))
        return manage.decode_published(reply).outcomes

    def listen(self, topic: str) -> list[bytes]:
        """
        Subscribe to an own topic.

        @return: What will have arrived.
        """
        received: list[bytes] = []
        sub = SubConnection(
            self.factory, lambda messages: received.extend(m.frames[0] for m in messages)
        )
        sub.subscribe(topic.encode())
        sub.connect(tcp_address(HOST, self.settings.pub))
        return received

    async def until(self, condition: Callable[[], Any]) -> None:
        await until(reactor, condition)


class BusTests(BusTestCase):
    """
    Tests for L{Bus}.
    """

    async def test_dialects(self) -> None:
        """
        Published items reach the subscribers of both dialects, after the snapshot.
        """
        self.start()
        old, new = an_indicator(1), an_indicator(2)
        self.assertEqual(await self.publish(old), ["accepted"])
        received = {}
        for topic in ("threatbus/intel", "stix2/indicator"):
            reply = await self.ask(action="subscribe", topic=topic, snapshot=1)
            self.assertEqual(reply["pub_endpoint"], f"{HOST}:{self.settings.pub}")
            self.assertEqual(reply["sub_port"], self.settings.sub)
            received[reply["topic"]] = self.listen(reply["topic"])
        self.assertEqual(await self.publish(new, old), ["accepted", "repeated"])
        for topic, frames in received.items():
            dialect = Dialect.VAST if topic.startswith("threatbus/") else Dialect.STIX2
            await self.until(lambda frames=frames: len(frames) == 2)  # type: ignore[misc]
            expected = [render(dialect, item)[0] for item in (old, new)]
            self.assertEqual(frames, [topic.encode() + tail for tail in expected])

    async def test_reports(self) -> None:
        """
        Reports on the sub endpoint reach their subscribers, and messages that are no reports do
        no harm.
        """
        self.start()
        reply = await self.ask(action="subscribe", topic="stix2/sighting")
        received = self.listen(reply["topic"])
        ready: list[None] = []
        publisher = ReportPublisher(
            self.factory, tcp_address(HOST, self.settings.sub), lambda: ready.append(None)
        )
        self.addCleanup(publisher.close)
        await self.until(lambda: publisher.send(b"stix2/sighting {}"))
        for report in (encode_report(an_indicator()), encode_report(a_sighting())):
            await self.until(lambda report=report: publisher.send(report))  # type: ignore[misc]
        await self.until(lambda: received)
        tail = render(Dialect.STIX2, a_sighting())[0]
        self.assertEqual(received, [reply["topic"].encode() + tail])
        status = await self.ask(action="status")
        self.assertEqual(status["received"]["message"], {"refused": 1})

    async def test_always_a_reply(self) -> None:
        """
        Every message on the manage endpoint is answered, behind the same routing frames.
        """
        self.start()
        replies: list[list[bytes]] = []
        dealer = DealerConnection(
            self.factory, lambda messages: replies.extend(m.frames for m in messages)
        )
        dealer.connect(tcp_address(HOST, self.settings.manage))
        request = manage.encode_heartbeat("nobody")
        error = manage.ERROR
        for sent, expected in [
            ([b"", request], [b"", error]),
            ([request], [error]),
            ([b"hop", b"", request], [b"hop", b"", error]),
            ([b"", request[:5], request[5:]], [b"", error]),
            ([b""], [b"", error]),
            ([b"", b""], [b"", error]),
            ([b"", b"", b""], [b"", error]),
            ([b"", b"\xff"], [b"", error]),
            ([b"[" * 100_000], [error]),
        ]:
            replies.clear()
            dealer.send_now(sent)
            await self.until(lambda: replies)
            self.assertEqual(replies, [expected])

    async def test_restart(self) -> None:
        """
        A subscriber gets all that is published before, during and after a restart of
        the bus, once; the bus's identity stays.
        """
        received: list[Item] = []
        listener = Listener(lambda items: received.extend(items))
        subscription = BusSubscription(
            reactor,
            self.factory,
            HostPort(HOST, self.settings.manage),
            SubscriptionRequest(("stix2/indicator",), 1, "a test", 0.05),
            listener,
        )
        self.start()
        subscription.startService()
        self.addCleanup(subscription.stopService)
        await self.until(lambda: subscription.connected)
        plugin = subscription.reception.plugin
        await self.publish(an_indicator(1))
        await self.until(lambda: len(received) == 1)
        await self.stop()
        self.start()
        await self.publish(an_indicator(2))
        await self.until(lambda: len(received) == 2)
        await self.publish(an_indicator(3))
        await self.until(lambda: len(received) == 3)
        self.assertEqual(received, [an_indicator(number) for number in (1, 2, 3)])
        self.assertEqual(subscription.reception.plugin, plugin)

    async def test_remembered(self) -> None:
        """
        A subscription of an old dialect survives a restart: items published afterwards arrive
        without a new subscription.
        """
        self.start()
        topic = (await self.ask(action="subscribe", topic="stix2/indicator"))["topic"]
        received = self.listen(topic)
        await self.publish(an_indicator(1))
        await self.until(lambda: len(received) == 1)
        await self.stop()
        self.start()
        await self.publish(an_indicator(2))
        await self.until(lambda: len(received) == 2)
        self.assertEqual(await self.ask(action="heartbeat", topic=topic), {"status": "success"})

    async def test_what_was_received_is_kept(self) -> None:
        """
        Items that were taken in are durable when the bus stops.
        """
        self.start()
        client = self.client()
        answers = [
            client.ask(manage.encode_publish([an_indicator(number).raw])) for number in range(2)
        ]
        await answers[0]
        await self.stop()
        client.close()
        answers[1].addErrback(lambda failure: None)
        self.start()
        self.assertEqual(await self.publish(an_indicator(0)), ["repeated"])

    async def test_what_was_sent_is_read(self) -> None:
        """
        When the bus stops, messages that have reached the sub endpoint are durable and have
        been delivered to the attached subscribers.
        """
        self.start()
        topic = (await self.ask(action="subscribe", topic="stix2/indicator"))["topic"]
        received = self.listen(topic)
        heard: list[Any] = []
        pub = XPubConnection(self.factory, heard.extend)
        pub.connect(tcp_address(HOST, self.settings.sub))
        await self.until(lambda: len(heard) == len(REPORT_TOPICS))
        items = [an_indicator(number) for number in range(1000)]
        sent = pub.send_frames([encode_report(item) for item in items])
        self.assertEqual(sent, len(items))
        await self.stop()
        await self.until(lambda: len(received) == len(items))
        self.start()
        self.assertEqual(await self.publish(*items[:1], *items[-1:]), ["repeated", "repeated"])

    async def test_taken_port(self) -> None:
        """
        If any port is taken, the bus does not start, and leaves nothing running.
        """
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            taken.listen()
            for endpoint in ("manage", "pub", "sub"):
                port = taken.getsockname()[1]
                ports = dict(zip(("manage", "pub", "sub"), free_ports(3), strict=True))
                settings = PluginSettings(host=HOST, **{**ports, endpoint: port})
                bus = Bus(reactor, settings, self.state, self.failures.append)
                e = self.assertRaises(EndpointUnusable, bus.startService)
                self.assertIn(str(port), str(e))
                await self.until(lambda: bus_calls() == [] and children(os.getpid()) == [])
        self.start()

    def test_unusable_journal(self) -> None:
        """
        A journal that cannot be used is refused, and nothing is left.
        """
        (self.state / JOURNAL_NAME).write_bytes(b"x" * 10_000)
        self.assertRaises(
            JournalFailed,
            Bus(reactor, self.settings, self.state, self.failures.append).startService,
        )

    async def test_stopped(self) -> None:
        """
        It leaves nothing in the reactor, even with subscribers attached, and frees the ports.
        """
        self.start()
        for _ in range(3):
            reply = await self.ask(action="subscribe", topic="stix2/indicator", snapshot=1)
            self.listen(reply["topic"])
        await self.publish(an_indicator(1))
        await self.stop()
        self.assertEqual(bus_calls(), [])
        self.start()
