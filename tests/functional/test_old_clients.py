"""
Clients of the old dialects lose nothing that is in the journal.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import threading
import time
from typing import Any

import zmq

from tests.functional.blocking import (
    Client,
    Pace,
    Peer,
    PluginProcess,
    Publisher,
    Sockets,
    an_indicator,
)
from tests.functional.components import children, wait_until
from tests.functional.test_conformance import INTEL
from tests.functional.test_plugin_limits import PluginTestCase

RATE = 300
"""
Messages a second.
"""

RUNS = 10
"""
How often the plugin is ended under load.
"""

SILENCE = 25.0
"""
Seconds that a subscriber does not read: more than its connection once had.
"""

FILE_LIMIT = 1 << 20
"""
The most bytes of a file, when the disk is full.
"""


class Reader(threading.Thread):
    """
    Reads what a client is sent, until it is stopped.

    @ivar ids: The ids of what arrived; in the vast dialect those of the references.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.ids: list[str] = []
        self._client = client
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ending.is_set():
            if self._client.waiting(0.05):
                document = json.loads(self._client.receive()[1])
                self.ids.append(document.get("id") or document["reference"][len("threatbus__") :])

    def stop(self) -> None:
        self._ending.set()
        self.join()


class Stream(threading.Thread):
    """
    Publishes at a steady rate, as a client does that nobody acknowledges anything to.

    @ivar ids: What it has sent.
    """

    def __init__(self, host: str, port: int, rate: float = RATE) -> None:
        super().__init__()
        self.ids: list[str] = []
        self._publisher = Publisher(host, port)
        self._rate = rate
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        pace = Pace(self._rate)
        while not self._ending.is_set():
            document = an_indicator()
            self._publisher.publish(document)
            self.ids.append(document["id"])
            pace.turn()

    def stop(self) -> None:
        self._ending.set()
        self.join()
        self._publisher.close()


def in_order(expected: list[str], received: list[str]) -> int:
    """
    @return: How many were received more than once.
    @raise AssertionError: Unless everything was received, each for the first time in the
        order in which it is expected.
    """
    first = list(dict.fromkeys(received))
    missing = set(expected).difference(first)
    if missing:
        raise AssertionError(f"{len(missing)} of {len(expected)} are missing")
    wanted = set(expected)
    if [id for id in first if id in wanted] != expected:
        raise AssertionError("they are not in order")
    return len(received) - len(first)


class EndedTests(PluginTestCase):
    """
    The plugin ends under load.
    """

    def subscriber(self, plugin: PluginProcess, topic: str) -> Reader:
        client = self.client(plugin)
        client.join(topic)
        reader = Reader(client)
        self.addCleanup(reader.stop)
        return reader

    def test_killed(self) -> None:
        """
        It is killed, several times: whatever is in the journal reaches the subscribers of
        both dialects, in order; some of it twice, and no more than was sent within the
        last seconds.
        """
        plugin = self.plugin()
        readers = [self.subscriber(plugin, topic) for topic in (INTEL, "threatbus/intel")]
        client = self.client(plugin)
        client.subscribe("nothing")
        stream = Stream(client.host, client.sub)
        self.addCleanup(stream.stop)
        for _ in range(RUNS // 2):
            time.sleep(2.5)
            plugin.signal(signal.SIGKILL)
            plugin.wait()
            plugin = self.run_host(plugin.again())
        time.sleep(1)
        stream.stop()
        kept = self.all_kept(plugin, stream)
        for reader in readers:
            wait_until(functools.partial(self.got_all, kept, reader))
            again = in_order(kept, reader.ids)
            self.assertLess(again, RUNS // 2 * RATE * 4)
        self.assertGreater(len(kept), RATE * RUNS // 2)
        described = plugin.subscriptions()
        self.assertEqual([each["dropped"] for each in described], [0, 0, 0])

    def test_terminated(self) -> None:
        """
        It is stopped in order, many times: all that was sent before is in the journal, and
        reaches the subscriber once.
        """
        plugin = self.plugin()
        reader = self.subscriber(plugin, INTEL)
        client = self.client(plugin)
        client.subscribe("nothing")
        stream = Stream(client.host, client.sub)
        self.addCleanup(stream.stop)
        for _ in range(RUNS):
            began = len(stream.ids)
            # What it has sent while nobody was there has waited with it.
            wait_until(functools.partial(self.has, plugin, stream, began))
            time.sleep(0.5)
            sent = len(stream.ids)
            plugin.signal(signal.SIGTERM)
            self.assertEqual(plugin.wait(), 0)
            self.assertEqual(set(stream.ids[began:sent]).difference(plugin.kept()), set())
            plugin = self.run_host(plugin.again())
        stream.stop()
        kept = self.all_kept(plugin, stream)
        wait_until(functools.partial(self.got_all, kept, reader))
        self.assertEqual(in_order(kept, reader.ids), 0)
        # Nobody can save what is on its way in the very moment.
        self.assertLess(len(set(stream.ids).difference(kept)), RUNS * RATE / 10)

    def has(self, plugin: PluginProcess, stream: Stream, number: int) -> bool:
        return len(stream.ids) > number and stream.ids[number] in plugin.kept()

    def all_kept(self, plugin: PluginProcess, stream: Stream) -> list[str]:
        """
        @return: The ids in the journal, after the last message of a stream that was stopped.
        """
        wait_until(lambda: stream.ids[-1] in plugin.kept())
        return plugin.kept()

    def got_all(self, kept: list[str], reader: Reader) -> bool:
        return set(kept) <= set(reader.ids)

    def test_requests(self) -> None:
        """
        A request that it has got when it is stopped is answered.
        """
        plugin = self.plugin()
        sockets = Sockets()
        self.addCleanup(sockets.close)
        asking = sockets.socket(zmq.DEALER, plugin.manage.port, plugin.manage.host)
        documents = [an_indicator() for _ in range(20)]
        for document in documents:
            asking.send_multipart(
                [b"", json.dumps({"action": "publish", "documents": [document]}).encode()]
            )
        plugin.signal(signal.SIGTERM)
        for _ in documents:
            self.assertTrue(asking.poll(10_000))
            reply = json.loads(asking.recv_multipart()[-1])
            self.assertEqual(reply["outcomes"], ["accepted"])
        self.assertEqual(plugin.wait(), 0)
        self.assertEqual(plugin.kept(), [document["id"] for document in documents])

    def test_away(self) -> None:
        """
        What is published while a subscriber's connection is gone, also across a restart
        and when the queue in memory is too small for it, reaches it when it is back.
        """
        plugin = self.plugin(queue_messages=50)
        client = self.client(plugin)
        client.join(INTEL)
        wait_until(lambda: plugin.subscriptions()[0]["attached"])
        wait_until(lambda: plugin.saved(client.topic))
        client.leave()
        publisher = self.publisher(client)
        documents = [an_indicator() for _ in range(500)]
        publisher.publish(*documents[:300])
        wait_until(lambda: len(plugin.kept()) == 300)
        plugin.signal(signal.SIGKILL)
        plugin.wait()
        plugin = self.run_host(plugin.again())
        publisher.publish(*documents[300:])
        client.connect()
        ids = [document["id"] for document in documents]
        received = client.ids_until(ids[-1])
        in_order(plugin.kept(), received)
        self.assertEqual(plugin.subscriptions()[0]["dropped"], 0)

    def test_snapshot(self) -> None:
        """
        A snapshot that was under way when the plugin was killed comes again, whole.
        """
        plugin = self.plugin()
        other = self.client(plugin)
        other.join(INTEL)
        documents = [an_indicator(description="x" * 2000) for _ in range(5000)]
        ids = [document["id"] for document in documents]
        publisher = self.publisher(other)
        publisher.publish(*documents)
        self.assertEqual(other.ids_until(ids[-1]), ids)
        client = self.client(plugin)
        client.subscribe(INTEL, snapshot=1)
        client.connect(RCVHWM=1, RCVBUF=4096)
        self.assertEqual(json.loads(client.receive()[1])["id"], ids[0])
        wait_until(lambda: plugin.saved(client.topic))
        plugin.signal(signal.SIGKILL)
        plugin.wait()
        plugin = self.run_host(plugin.again())
        last = an_indicator()
        self.publisher(other).publish(last)
        received = client.ids_until(last["id"])
        self.assertEqual(list(dict.fromkeys(received[-len(ids) - 1 :])), [*ids, last["id"]])


class PausedTests(PluginTestCase):
    """
    The intake is paused.
    """

    def test_connected_meanwhile(self) -> None:
        """
        The disk is full for a moment: a publisher that connects meanwhile is heard, and
        nothing of it is lost.
        """
        plugin = self.plugin()
        client = self.client(plugin)
        client.subscribe("nothing")
        early = self.publisher(client)
        documents = []
        self.limit(plugin, FILE_LIMIT)
        while "messages are not accepted" not in plugin.log:
            documents += [an_indicator() for _ in range(100)]
            early.publish(*documents[-100:])
            time.sleep(0.05)
        late = self.publisher(client)
        documents += [an_indicator() for _ in range(50)]
        late.publish(*documents[-50:])
        said = plugin.log.count("messages are not accepted")
        wait_until(lambda: plugin.log.count("messages are not accepted") > said)
        self.assertNotIn(documents[-1]["id"], plugin.kept())
        self.limit(plugin, resource.RLIM_INFINITY)
        wait_until(lambda: {d["id"] for d in documents} <= set(plugin.kept()))

    def limit(self, plugin: PluginProcess, size: int) -> None:
        for pid in (plugin.pid, *children(plugin.pid)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class SlowTests(PluginTestCase):
    """
    A subscriber is slow, or dead.
    """

    timeout = 240

    def test_silent(self) -> None:
        """
        One that does not read for a while keeps its subscription, and gets everything.
        """
        plugin = self.plugin(queue_messages=100)
        slow, other = self.client(plugin), self.client(plugin)
        slow.subscribe(INTEL)
        slow.connect(RCVHWM=1, RCVBUF=4096)
        other.join(INTEL)
        publisher = self.publisher(other)
        ids: list[str] = []
        pace = Pace(1)
        while pace.elapsed < SILENCE:
            documents = [an_indicator(description="x" * 4000) for _ in range(100)]
            publisher.publish(*documents)
            batch = [document["id"] for document in documents]
            self.assertEqual(other.ids_until(batch[-1]), batch)
            ids += batch
            pace.turn()
        described = plugin.subscriptions()[0]
        self.assertTrue(described["attached"])
        self.assertLessEqual(described["queued"], 100)
        self.assertGreater(described["behind"], 0)
        self.assertEqual(slow.ids_until(ids[-1]), ids)
        described = plugin.subscriptions()[0]
        self.assertEqual((described["dropped"], described["sent"]), (0, len(ids)))
        self.assertNotIn("went away", plugin.log)

    def test_dead(self) -> None:
        """
        One whose machine is gone is noticed, whether it had something to get or not.
        """
        plugin = self.plugin()
        living = self.client(plugin)
        living.join(INTEL)
        publisher = self.publisher(living)
        for topic in (INTEL, "stix2/sighting"):
            client = self.client(plugin)
            client.subscribe(topic)
            peer = Peer(client.host, client.pub, b"SUB")
            self.addCleanup(peer.close)
            peer.send(b"\1" + client.topic.encode())
            wait_until(lambda: plugin.subscriptions()[-1]["attached"])
            peer.die()
        publisher.publish(an_indicator())
        began = time.monotonic()
        wait_until(lambda: self.attached(plugin) == [True, False, False], 90)
        self.assertGreater(time.monotonic() - began, 15)
        plugin.saw("no longer answers")
        last = an_indicator()
        publisher.publish(last)
        living.ids_until(last["id"])

    def attached(self, plugin: PluginProcess) -> list[bool]:
        return [each["attached"] for each in plugin.subscriptions()]

    def test_unsent(self) -> None:
        """
        Of one that ends while it is behind, the log says what it has not been sent.
        """
        plugin = self.plugin(queue_messages=100)
        slow, other = self.client(plugin), self.client(plugin)
        slow.subscribe(INTEL)
        slow.connect(RCVHWM=1, RCVBUF=4096)
        other.join(INTEL)
        documents: list[dict[str, Any]] = []
        publisher = self.publisher(other)
        for _ in range(40):
            batch = [an_indicator(description="x" * 4000) for _ in range(100)]
            publisher.publish(*batch)
            other.ids_until(batch[-1]["id"])
            documents += batch
        described = plugin.subscriptions()[0]
        unsent = (described["queued"], described["behind"])
        self.assertEqual(described["sent"] + sum(unsent), len(documents))
        self.assertGreater(min(unsent), 0)
        slow.unsubscribe()
        plugin.saw(
            f"unsubscribed after {described['sent']} messages; 0 lost, {unsent[0]} waiting and up"
            f" to {unsent[1]} in the journal not sent"
        )
