"""
What subscribers may cost a plugin, and what is left of them: nothing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from tbvast.stix.limits import SHORTEST_MESSAGE_LIMIT
from tests.functional.blocking import Client, Peer, PluginProcess, Publisher, an_indicator, frame
from tests.functional.components import wait_until
from tests.functional.test_conformance import INTEL, HostTestCase

CYCLES = 2000
"""
Subscriptions that come and go.
"""

AT_ONCE = 50
"""
How many of them there are at a time.
"""

GROWTH = 8 * 2**20
"""
Bytes that resident memory may grow by, for whatever reason: 4 KiB for each cycle.
"""

SAMPLE = 1000
"""
Messages whose delivery is timed together.
"""


class PluginTestCase(HostTestCase):
    """
    A plugin with settings of its own.
    """

    def plugin(self, **settings: Any) -> PluginProcess:
        """
        @return: One that answers.
        """
        return self.run_host(PluginProcess(self.directory(), **settings))

    def client(self, plugin: PluginProcess) -> Client:
        """
        @return: One that has not subscribed.
        """
        client = Client(plugin.manage)
        self.addCleanup(client.close)
        return client

    def publisher(self, client: Client) -> Publisher:
        """
        @param client: Somebody who knows where the sub endpoint is.
        """
        publisher = Publisher(client.host, client.sub)
        self.addCleanup(publisher.close)
        return publisher

    def rate(self, publisher: Publisher, client: Client) -> float:
        """
        How fast a client receives what is published, in messages a second.
        """
        rates = []
        for _ in range(5):
            documents = [an_indicator() for _ in range(SAMPLE)]
            began = time.perf_counter()
            publisher.publish(*documents)
            client.ids_until(documents[-1]["id"])
            rates.append(SAMPLE / (time.perf_counter() - began))
        return statistics.median(rates)


class LeakTests(PluginTestCase):
    """
    Subscriptions that have ended leave nothing behind.
    """

    def check(self, cycle: Callable[[PluginProcess, Publisher], None]) -> None:
        """
        @param cycle: Makes L{AT_ONCE} subscriptions, which end in some way.
        """
        plugin = self.plugin(
            detached_timeout=0.5,
            heartbeat_timeout=0.5,
            loglevel="warn",
            max_client_subscriptions=CYCLES + 1,  # all of them are one client
        )
        living = self.client(plugin)
        living.join(INTEL)
        publisher = self.publisher(living)

        def settled() -> bool:
            return len(plugin.subscriptions()) == 1

        cycle(plugin, publisher)
        wait_until(settled)
        rate = self.rate(publisher, living)
        for _ in range(3):
            cycle(plugin, publisher)
        wait_until(settled)
        descriptors, threads = plugin.descriptors(), plugin.threads()
        grown: list[int] = []
        # A leak grows each time. The most memory ever needed at once, which the allocator
        # keeps, depends on how busy the machine is.
        while len(grown) < 3 and (not grown or grown[-1] >= GROWTH):
            memory = plugin.rss()
            for _ in range(CYCLES // AT_ONCE):
                cycle(plugin, publisher)
            wait_until(settled)
            wait_until(lambda: plugin.descriptors() <= descriptors)
            self.assertLessEqual(plugin.threads(), threads)
            grown.append(plugin.rss() - memory)
        self.assertLess(grown[-1], GROWTH, f"grew by {grown} bytes")
        last = an_indicator()
        publisher.publish(last)
        living.ids_until(last["id"])
        # Other tests may take the machine's time meanwhile; a leak would last.
        wait_until(lambda: self.rate(publisher, living) > rate / 2)

    def test_death(self) -> None:
        """
        2,000 subscribers receive something, and die without a word.
        """

        def cycle(plugin: PluginProcess, publisher: Publisher) -> None:
            clients = [Client(plugin.manage) for _ in range(AT_ONCE)]
            for number, client in enumerate(clients):
                client.join(INTEL if number % 2 else "threatbus/intel")
                if number % 4 == 1:
                    client.heartbeat()
            publisher.publish(an_indicator())
            for client in clients:
                client.receive()
                client.close()

        self.check(cycle)

    def test_snapshots(self) -> None:
        """
        2,000 subscribers ask for a snapshot, and unsubscribe while it is sent.
        """

        def cycle(plugin: PluginProcess, publisher: Publisher) -> None:
            clients = [Client(plugin.manage) for _ in range(AT_ONCE)]
            publisher.publish(an_indicator())
            for number, client in enumerate(clients):
                client.subscribe(INTEL, snapshot=1)
                if number % 2:
                    client.connect()
                    client.receive()
                client.unsubscribe()
                client.close()

        self.check(cycle)


class EndTests(PluginTestCase):
    """
    A subscriber that is gone is noticed.
    """

    def test_gone(self) -> None:
        """
        Its ZeroMQ subscription ends, in either dialect.
        """
        plugin = self.plugin(detached_timeout=0.2)
        for topic in (INTEL, "threatbus/intel"):
            client = self.client(plugin)
            client.join(topic)
            wait_until(lambda: plugin.subscriptions()[0]["attached"])
            client.leave()
            wait_until(lambda: not plugin.subscriptions())
            plugin.saw("went away")

    def test_repeated(self) -> None:
        """
        One that has subscribed to its topic several times, and in part, ends as well.
        """
        plugin = self.plugin(detached_timeout=0.2)
        client = self.client(plugin)
        client.join("threatbus/intel")
        for prefix in (client.topic, client.topic, client.topic + " "):
            client.hear(prefix)
        wait_until(lambda: plugin.subscriptions()[0]["attached"])
        client.leave()
        wait_until(lambda: not plugin.subscriptions())

    def test_reconnected(self) -> None:
        """
        The end of an older connection does not end a newer one.
        """
        plugin = self.plugin(detached_timeout=0.2)
        client, sentinel = self.client(plugin), self.client(plugin)
        client.join(INTEL)
        publisher = self.publisher(client)
        older = Peer(client.host, client.pub, b"SUB")
        self.addCleanup(older.close)
        older.send(b"\1" + client.topic.encode())
        older.close()
        sentinel.join(INTEL)
        wait_until(lambda: plugin.subscriptions()[-1]["attached"])
        sentinel.leave()
        wait_until(lambda: len(plugin.subscriptions()) == 1)
        document = an_indicator()
        publisher.publish(document)
        self.assertEqual(client.ids_until(document["id"]), [document["id"]])

    def test_never_came(self) -> None:
        plugin = self.plugin(detached_timeout=0.2)
        self.client(plugin).subscribe(INTEL, snapshot=1)
        wait_until(lambda: not plugin.subscriptions())

    def test_silent(self) -> None:
        """
        Its heartbeats stop; who never had any is not missed.
        """
        plugin = self.plugin(heartbeat_timeout=0.2)
        silent, quiet = self.client(plugin), self.client(plugin)
        silent.join(INTEL)
        quiet.join("stix2/")
        self.assertEqual(silent.heartbeat(), "success")
        wait_until(lambda: len(plugin.subscriptions()) == 1)
        plugin.saw("fell silent")
        self.assertEqual(silent.heartbeat(), "error")
        self.assertEqual(plugin.subscriptions()[0]["topics"], ["stix2/"])


class LimitTests(PluginTestCase):
    """
    Each limit can be set, and holds.
    """

    def test_message_size(self) -> None:
        """
        A message that is too large ends its own connection only, and the log says so.
        """
        most = SHORTEST_MESSAGE_LIMIT
        plugin = self.plugin(max_message_bytes=most)
        client = self.client(plugin)
        client.join(INTEL)
        publisher = self.publisher(client)
        fitting = frame(an_indicator(description="x" * 1_000_000))
        for endpoint, port, kind, message in (
            ("manage", plugin.manage.port, b"REQ", [b"", b"x" * (4 * most + 1)]),
            ("sub", client.sub, b"PUB", [fitting + b" " * most]),
        ):
            peer = Peer("127.0.0.1", port, kind)
            self.addCleanup(peer.close)
            peer.send(*message)
            self.assertTrue(peer.was_cut_off())
            plugin.saw(f"Disconnected a client of {endpoint}: its message is too long")
        self.assertEqual(plugin.status()["received"]["connection"]["oversized"], 2)
        publisher.send(fitting)
        self.assertEqual(len(json.loads(client.receive()[1])["description"]), 1_000_000)
        self.assertEqual(client.heartbeat(), "success")

    def test_request_size(self) -> None:
        """
        A request that is too long is answered, up to four times the limit.
        """
        most = SHORTEST_MESSAGE_LIMIT
        plugin = self.plugin(max_message_bytes=most)
        client = self.client(plugin)
        for length in (most + 1, 4 * most):
            reply = json.loads(client.ask(b" " * length))
            reason = f"request: {length} is not at most {most} bytes"
            self.assertEqual(reply, {"status": "error", "reason": reason})
        self.assertEqual(plugin.status()["received"]["request"]["refused"], 2)
        self.assertNotIn("oversized", plugin.status()["received"]["connection"])

    def test_many_requests(self) -> None:
        """
        100 clients whose requests of four times the limit, or without an end, do not finish cannot
        take more memory than some of them; others are answered.
        """
        most = SHORTEST_MESSAGE_LIMIT
        plugin = self.plugin(max_message_bytes=most)
        client = self.client(plugin)
        client.join(INTEL)
        before, peak = plugin.rss(), 0
        for number in range(100):
            peer = Peer("127.0.0.1", plugin.manage.port, b"DEALER")
            self.addCleanup(peer.close)
            if number % 2:
                peer.begin(4 * most, bytes(4 * most - 1))
            else:
                for _ in range(8):
                    peer.send(bytes(most // 2), more=True)
            peak = max(peak, plugin.rss())
            self.assertEqual(client.heartbeat(), "success")
        self.assertLess(peak - before, 32 * most)
        self.assertGreater(plugin.status()["received"]["connection"]["oversized"], 50)
        plugin.saw("Disconnected a client of manage, 127.0.0.1: too much of its messages waits.")

    def test_endless(self) -> None:
        """
        A message without an end is not taken for ever, on any endpoint.
        """
        most = SHORTEST_MESSAGE_LIMIT
        plugin = self.plugin(max_message_bytes=most)
        client = self.client(plugin)
        client.join(INTEL)
        publisher = self.publisher(client)
        before = plugin.rss()
        for number, (endpoint, port, kind, size) in enumerate(
            [
                ("manage", plugin.manage.port, b"DEALER", most),
                ("pub", client.pub, b"SUB", 2000),
                ("sub", client.sub, b"PUB", most),
            ],
            1,
        ):
            peer = Peer("127.0.0.1", port, kind)
            self.addCleanup(peer.close)
            while peer.send(b"x" * size, more=True):
                self.assertLess(plugin.rss() - before, 100 * most)
            plugin.saw(f"Disconnected a client of {endpoint}, 127.0.0.1: too much of its messages")
            self.assertEqual(plugin.status()["received"]["connection"]["oversized"], number)
            document = an_indicator()
            publisher.publish(document)
            client.ids_until(document["id"])

    def test_subscriptions(self) -> None:
        plugin = self.plugin(max_subscriptions=2)
        self.fill(plugin, "subscriptions: 2 is not less than the limit, 2")

    def test_client_subscriptions(self) -> None:
        """
        Without keys, whoever has the same address is the same client.
        """
        plugin = self.plugin(max_client_subscriptions=2)
        self.fill(plugin, "subscriptions: 2 is not less than the limit for one client, 2")

    def fill(self, plugin: PluginProcess, reason: str) -> None:
        """
        The third subscription is refused, until one of the others has ended.
        """
        clients = [self.client(plugin) for _ in range(3)]
        for client in clients[:2]:
            client.subscribe(INTEL)
        reply = clients[2].request("subscribe", topic=INTEL)
        self.assertEqual(reply["status"], "error")
        plugin.saw(reason)
        self.assertEqual(clients[0].heartbeat(), "success")
        clients[1].unsubscribe()
        clients[2].subscribe(INTEL)

    def test_topics(self) -> None:
        plugin = self.plugin(max_topics=2)
        client = self.client(plugin)
        client.subscribe([INTEL, "stix2/sighting"])
        reply = client.request("subscribe", topic=["a", "b", "c"])
        self.assertEqual(reply["status"], "error")
        plugin.saw("topic: 3 is not at most 2 topics")

    def test_snapshot_days(self) -> None:
        """
        Who wants more is refused, and told how much there is.
        """
        plugin = self.plugin(max_snapshot_days=2)
        asked, asking = self.client(plugin), self.client(plugin)
        asked.join(INTEL)
        reply = asking.request("subscribe", topic=INTEL, snapshot=1000)
        self.assertEqual(reply["reason"], "snapshot: 1000 is not at most 2 days")
        asking.join(INTEL, snapshot=2)
        self.assertEqual(json.loads(asked.receive()[1])["snapshot"], 2 * 86400)

    def late(self, size: int, **settings: Any) -> tuple[PluginProcess, Client, list[str]]:
        """
        Publish 500 indicators before a subscriber connects.

        @param size: Bytes that each has more than it needs.
        @return: The plugin, the subscriber, and the ids of all indicators.
        """
        plugin = self.plugin(**settings)
        client, other = self.client(plugin), self.client(plugin)
        client.subscribe(INTEL)
        other.join(INTEL)
        publisher = self.publisher(client)
        ids = []
        for _ in range(10):  # the other one has no longer a queue
            documents = [an_indicator(description="x" * size) for _ in range(50)]
            publisher.publish(*documents)
            batch = [document["id"] for document in documents]
            self.assertEqual(other.ids_until(batch[-1]), batch)
            ids += batch
        return plugin, client, ids

    def test_queue_messages(self) -> None:
        """
        No more wait in memory; the rest comes from the journal.
        """
        self.check_late(0, queue_messages=100)

    def test_queue_bytes(self) -> None:
        self.check_late(1000, queue_bytes=100_000)

    def check_late(self, size: int, **settings: Any) -> None:
        plugin, client, ids = self.late(size, **settings)
        described = plugin.subscriptions()[0]
        self.assertLessEqual(described["queued"], 100)
        self.assertEqual(described["queued"] + described["behind"], 500)
        client.connect()
        self.assertEqual(client.ids_until(ids[-1]), ids)
        described = plugin.subscriptions()[0]
        self.assertEqual((described["dropped"], described["sent"]), (0, 500))

    def test_errors_per_minute(self) -> None:
        """
        More errors than that are only counted.
        """
        plugin = self.plugin(errors_per_minute=5)
        client = self.client(plugin)
        client.join(INTEL)
        publisher = self.publisher(client)
        for _ in range(100):
            publisher.send(b"stix2/indicator {")
            client.ask(b"{")
        last = an_indicator()
        publisher.publish(last)
        client.ids_until(last["id"])
        self.assertEqual(plugin.log.count("Refused a message"), 5)
        self.assertEqual(plugin.log.count("Refused a request"), 5)
        received = plugin.status()["received"]
        self.assertEqual(received["message"]["refused"], 100)
        self.assertEqual(received["request"]["refused"], 100)
