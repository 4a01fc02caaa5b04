"""
What one client may cost a plugin, and what the others notice of it.
"""

from __future__ import annotations

import time
from typing import Any

import zmq

from tests.functional.blocking import LIMIT, Client, an_indicator
from tests.functional.components import wait_until
from tests.functional.test_conformance import INTEL
from tests.functional.test_plugin_limits import PluginTestCase

MIB = 2**20


class SubscriptionTests(PluginTestCase):
    """
    Subscriptions that nobody reads.
    """

    def subscribed(self, client: Client, count: int) -> list[dict[str, Any]]:
        """
        Ask for many subscriptions.

        @return: The replies.
        """
        return [client.request("subscribe", topic=INTEL) for _ in range(count)]

    def test_limit(self) -> None:
        """
        One client that asks for 10,000 subscriptions gets 100, and is told why; that of another
        one, and what it has had before, are not touched.
        """
        plugin = self.plugin()
        stranger = self.client(plugin)
        replies = self.subscribed(stranger, 1000)
        self.assertEqual(sum(reply["status"] == "success" for reply in replies), 100)
        self.assertEqual(
            replies[-1]["reason"],
            "subscriptions: 100 is not less than the limit for one client, 100",
        )
        self.assertEqual(plugin.status()["received"]["request"]["refused"], 900)

    def test_nobody_reads(self) -> None:
        """
        200 subscriptions that nobody reads, and 300 indicators of 5,000 bytes: no more waits than
        allowed, a subscriber that reads gets all at once, and later everybody does.
        """
        plugin = self.plugin(
            max_client_subscriptions=2000, queue_total_bytes=4 * MIB, detached_timeout=600
        )
        stranger, known = self.client(plugin), self.client(plugin)
        topics = [reply["topic"] for reply in self.subscribed(stranger, 200)]
        known.join(INTEL)
        publisher = self.publisher(known)
        deaf = stranger.socket(zmq.SUB, known.pub, known.host, RCVHWM=1, RCVBUF=4096)
        for topic in topics:
            deaf.subscribe(topic)
        wait_until(lambda: all(each["attached"] for each in plugin.subscriptions()))
        before = plugin.rss()
        documents = [an_indicator(description="x" * 5000) for _ in range(300)]
        ids = [document["id"] for document in documents]
        for start in range(0, 300, 50):
            publisher.publish(*documents[start : start + 50])
            self.assertEqual(known.ids_until(ids[start : start + 50][-1]), ids[start : start + 50])
            self.assertEqual(known.heartbeat(), "success")
        wait_until(lambda: sum(each["queued_bytes"] for each in plugin.subscriptions()) <= 4 * MIB)
        grown = plugin.rss() - before
        self.assertLess(grown, 60 * MIB, f"grew by {grown / MIB:.0f} MiB")
        got = dict.fromkeys(topics, 0)
        deadline = time.monotonic() + 2 * LIMIT
        while sum(got.values()) < 60_000 and time.monotonic() < deadline:
            if deaf.poll(1000):
                message = deaf.recv()
                got[message[:32].decode()] += 1
        self.assertEqual(set(got.values()), {300})
