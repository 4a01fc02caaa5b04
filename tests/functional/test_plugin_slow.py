"""
A subscriber that reads slowly is nobody's concern but its own.
"""

from __future__ import annotations

import itertools

from tbvast.zeromq.sockets import PEER_MESSAGES
from tests.functional.blocking import Client, PluginProcess, Publisher, an_indicator
from tests.functional.components import wait_until
from tests.functional.test_conformance import INTEL
from tests.functional.test_plugin_limits import PluginTestCase

QUEUE_BYTES = 4 * 2**20

MARGIN = 32 * 2**20
"""
Bytes of memory that the journal, and everything else, may take.
"""


class SlowSubscriberTests(PluginTestCase):
    """
    One subscriber does not read, and others do.
    """

    def setUp(self) -> None:
        self.process: PluginProcess = self.plugin(queue_bytes=QUEUE_BYTES)
        self.others: list[Client] = [self.client(self.process) for _ in range(2)]
        for other in self.others:
            other.join(INTEL)
        self.publishing: Publisher = self.publisher(self.others[0])

    def slow(self) -> Client:
        """
        @return: One that has subscribed, and has no room for what it does not read.
        """
        client = self.client(self.process)
        client.subscribe(INTEL)
        client.connect(RCVHWM=1, RCVBUF=4096)
        return client

    def publish(self, count: int, size: int) -> list[str]:
        """
        Publish, and see that the others receive it all, in order.

        @param size: Of each message, in bytes.
        @return: The ids.
        """
        documents = [an_indicator(description="x" * size) for _ in range(count)]
        self.publishing.publish(*documents)
        ids = [document["id"] for document in documents]
        for other in self.others:
            self.assertEqual(other.ids_until(ids[-1]), ids)
        return ids

    def check(self, messages: int, batch: int, size: int) -> None:
        """
        @param messages: How many there are altogether.
        @param batch: How many at a time.
        """
        self.publish(batch, size)
        before = self.process.rss()
        slow = self.slow()
        batches = [self.publish(batch, size) for _ in range(messages // batch)]
        self.assertLess(self.process.rss() - before, QUEUE_BYTES + PEER_MESSAGES * size + MARGIN)
        described = self.process.subscriptions()[-1]
        self.assertGreater(described["behind"], 0)
        ids = list(itertools.chain.from_iterable(batches))
        self.assertEqual(slow.ids_until(ids[-1]), ids)
        described = self.process.subscriptions()[-1]
        self.assertEqual((described["dropped"], described["sent"]), (0, len(ids)))

    def test_many(self) -> None:
        """
        80 MB of small messages.
        """
        self.check(20_000, 500, 4000)

    def test_large(self) -> None:
        """
        200 MB of large messages.
        """
        self.check(2000, 20, 100_000)

    def test_speed(self) -> None:
        """
        The others get what they want as fast as before.
        """
        self.others.pop().leave()
        before = self.rate(self.publishing, self.others[0])
        slow = self.slow()
        for _ in range(10):
            self.publish(500, 4000)
        # Not at once: something else may need the machine for a moment.
        wait_until(lambda: self.rate(self.publishing, self.others[0]) > before / 2)
        slow.ids_until(self.publish(1, 4000)[-1])
