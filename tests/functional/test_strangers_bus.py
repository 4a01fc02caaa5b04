"""
What one client may cost a plugin, and what the others notice of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import zmq

from tbvast.values import HostPort
from tests.functional.blocking import LIMIT, Client, Peer, Sockets, an_indicator
from tests.functional.components import wait_until
from tests.functional.test_conformance import INTEL
from tests.functional.test_plugin_limits import PluginTestCase

MIB = 2**20

BARE_ROUTER = """
import zmq
with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
    router.bind("inproc://router")
    with context.socket(zmq.DEALER) as dealer:
        dealer.connect("inproc://router")
        dealer.send(b"")
        print(router.recv_multipart()[0].hex())
"""
"""
Prints the identity that libzmq gives to the first peer of a ROUTER in a new process.
"""


class IdentityTests(PluginTestCase):
    """
    A stranger claims identities that libzmq gives to others.
    """

    def test_claimed(self) -> None:
        """
        Nobody can tell which ones: libzmq would abort the plugin when the next client comes.
        """
        first = subprocess.check_output([sys.executable, "-c", BARE_ROUTER], text=True)
        number = int.from_bytes(bytes.fromhex(first)[1:], "big")
        plugin = self.plugin()
        for ahead in range(50):
            identity = b"\0" + (number + ahead).to_bytes(4, "big")
            peer = Peer("127.0.0.1", plugin.manage.port, b"DEALER", identity)
            self.addCleanup(peer.close)
        for _ in range(50):
            self.client(plugin).join(INTEL)
        self.assertEqual(plugin.status()["status"], "success")


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


LONGEST_TURN = 0.05
"""
Seconds of CPU time that a turn of the plugin's reactor may take.
"""


def publishing(*documents: bytes) -> bytes:
    """
    A request to publish documents.
    """
    return b'{"action":"publish","documents":[' + b",".join(documents) + b"]}"


def filled(first: bytes, unit: bytes, last: bytes, size: int) -> bytes:
    """
    A text of a size, in which a part is repeated.
    """
    return first + unit * ((size - len(first) - len(last)) // len(unit)) + last


class HostileTestCase(PluginTestCase):
    """
    A plugin, a subscriber of each dialect that is not disturbed, and a stranger.
    """

    def setUp(self) -> None:
        super().setUp()
        self.host = self.plugin(loglevel="error")
        self.known = self.client(self.host)
        self.known.join(INTEL)
        self.old = self.client(self.host)
        self.old.join("threatbus/intel")
        self.publisher_ = self.publisher(self.known)
        self.stranger = self.client(self.host)
        self.more = Sockets()
        self.addCleanup(self.more.close)
        document = an_indicator()
        self.publisher_.publish(document)
        self.known.ids_until(document["id"])

    def asking(self, *requests: bytes) -> list[zmq.Socket[bytes]]:
        """
        Send requests, each from a socket of its own.
        """
        sockets = []
        for request in requests:
            socket = self.more.socket(zmq.REQ, self.host.manage.port, "127.0.0.1")
            socket.send(request)
            sockets.append(socket)
        return sockets

    def answers(self, sockets: list[zmq.Socket[bytes]]) -> list[dict[str, Any]]:
        """
        Receive the replies, while heartbeats, documents and status requests of others are
        answered.
        """
        longest = 0.0
        waiting = list(sockets)
        while waiting:
            began = time.monotonic()
            self.assertEqual(self.known.heartbeat(), "success")
            longest = max(longest, time.monotonic() - began)
            waiting = [each for each in waiting if not each.poll(1)]
        self.slowest = longest
        return [json.loads(each.recv()) for each in sockets]

    def assert_short_turns(self) -> None:
        longest = self.host.status()["longest_turn"]
        self.assertLess(longest, LONGEST_TURN)


class RequestTests(HostileTestCase):
    """
    Requests of a stranger.
    """

    def test_many_documents(self) -> None:
        """
        Six requests of 5,000,000 documents "0" are refused with the limit, cost little more than
        their bytes, and hold up nobody.
        """
        before = self.host.rss()
        asked = self.asking(*[publishing(*[b"0"] * 5_000_000)] * 6)
        document = an_indicator()
        reply = self.known.request("publish", documents=[document])
        self.assertEqual(reply["outcomes"], ["accepted"])
        peak = [0]
        replies = self.answers(asked)
        peak.append(self.host.rss())
        for each in replies:
            self.assertEqual(
                each["reason"],
                "documents: 'more than 100000' is not at most 100000 in one request",
            )
        self.assertLess(max(peak) - before, 200 * MIB)
        self.assert_short_turns()

    def test_under_way(self) -> None:
        """
        More than one client may have under way is refused, with the limit.
        """
        request = publishing(filled(b'"', b"x", b'"', 10_000_000))
        replies = self.answers(self.asking(*[request] * 12))
        reasons = [each["reason"] for each in replies if "reason" in each]
        self.assertTrue(all("at most 67108864 bytes for one client" in each for each in reasons))
        self.assertGreaterEqual(len(reasons), 1)
        self.assertEqual(sum(each["status"] == "success" for each in replies), 12 - len(reasons))
        self.assertEqual(self.host.status()["received"]["request"]["refused"], len(reasons))
        self.assert_short_turns()

    def test_shapes(self) -> None:
        """
        No request of 10 MiB, whatever is in it, takes a long turn; each is answered.
        """
        size = 10 * MIB - 1000
        for name, request in {
            "empty objects": filled(b'{"action":"publish","documents":[', b"{},", b"0]}", size),
            "deep": publishing(b"[" * (size // 2) + b"]" * (size // 2)),
            "not closed": publishing(b"[" * size),
            "empty lists": filled(b'{"action":"publish","documents":[[', b"[],", b"0]]}", size),
            "broken": filled(
                b'{"action":"publish","documents":[', b'{"type":"x","id":,', b"0]}", size
            ),
            "commas": publishing(b"," * size),
            "spaces": b" " * size,
            "a long text": publishing(b'"' + b"x" * size + b'\xff"'),
            "an action of lists": filled(b'{"action":[', b"[],", b"0]}", 4 * MIB),
            "topics": filled(b'{"action":"subscribe","topic":[', b'"a",', b'"b"]}', 4 * MIB),
            "properties": filled(b'{"action":"status"', b',"aaaaaa":0', b"}", 4 * MIB),
        }.items():
            with self.subTest(name):
                (reply,) = self.answers(self.asking(request))
                self.assertIn("status", reply)
                self.assert_short_turns()

    def test_documents(self) -> None:
        """
        Nor do documents, and patterns, that are as costly as they may be: neither to admit nor to
        render for old clients.
        """
        hashes = " OR ".join([f"file:hashes.MD5 = '{'a:' * 16}{'b' * 16}'"] * 390)
        addresses = ", ".join(["'192.0.2.1'"] * 1490)
        patterns = (
            f"[{hashes}]",
            f"[ipv4-addr:value IN ({addresses})]",
            f"[{' AND '.join(['(' * 5 + 'a:b = 1' + ')' * 5] * 300)}]",
            "[a:b = '" + "\\'" * 32_000 + "']",
            "[a:b" + " " * 65_000 + "= 1]",
            "[a:b = 1" + " OR a:b = 1" * 5000 + "]",
        )
        documents = [an_indicator(each) for each in patterns * 20]
        documents += [an_indicator(x_many=[[]] * 9_000) for _ in range(20)]
        documents += [an_indicator(x_many=[[]] * 300_000), an_indicator("x" * 900_000)]
        for start in range(0, len(documents), 20):
            some = [json.dumps(each).encode() for each in documents[start : start + 20]]
            (reply,) = self.answers(self.asking(publishing(*some)))
            self.assertEqual(reply["status"], "success")
            self.publisher_.publish(*documents[start : start + 20])
        last = an_indicator()
        self.publisher_.publish(last)
        self.known.ids_until(last["id"])
        self.assert_short_turns()

    def test_status(self) -> None:
        """
        300 status requests at once are answered from a few reports.
        """
        began = time.monotonic()
        replies = self.answers(self.asking(*[b'{"action":"status"}'] * 300))
        self.assertEqual({each["status"] for each in replies}, {"success"})
        self.assertLess(len({each["uptime"] for each in replies}), 300)
        self.assertLess(time.monotonic() - began, LIMIT)
        self.assert_short_turns()

    def test_refused_documents(self) -> None:
        """
        Requests of 100,000 documents that are all refused take little more than their bytes.
        """
        before = self.host.rss()
        replies = self.answers(self.asking(*[publishing(*[b"0"] * 100_000)] * 6))
        for each in replies:
            self.assertEqual(each["outcomes"], ["refused"] * 100_000)
            self.assertEqual(len(each["reasons"]), 1000)
        self.assertLess(self.host.rss() - before, 60 * MIB)
        self.assert_short_turns()

    def test_unread(self) -> None:
        """
        Answers that a stranger does not read take a bounded amount of memory, however long its
        reports make each status, and hold up nobody.
        """
        before = self.host.rss()
        address = "127.0.0.9:0;127.0.0.1"
        other = Client(HostPort(address, self.host.manage.port))
        self.addCleanup(other.close)
        report = {"a": "x" * 65_000}
        for _ in range(90):
            topic = other.request("subscribe", topic=INTEL)["topic"]
            reply = other.request("heartbeat", topic=topic, report=report)
            self.assertEqual(reply["status"], "success")
        deaf = self.more.socket(
            zmq.DEALER, self.host.manage.port, address, RCVHWM=1, RCVBUF=4096, SNDHWM=0
        )
        for request in (b'{"action":"status"}', publishing(*[b"0"] * 20_000)):
            for _ in range(200):
                deaf.send_multipart([b"", request])
        wait_until(
            lambda: self.host.status()["received"].get("request", {}).get("refused", 0) > 300
        )
        self.answers(self.asking(b'{"action":"status"}'))
        self.assertLess(self.host.rss() - before, 100 * MIB)
        reason = other.request("status")["reason"]
        self.assertIn("is not at most 16777216 bytes for one client", reason)
        deaf.close(0)
        wait_until(lambda: other.request("status")["status"] == "success")
        self.assert_short_turns()

    def test_bursts(self) -> None:
        """
        Many short requests at once, and many topics, take no long turn either.
        """
        topics = b",".join(b'"%d"' % number for number in range(7000))
        for request, count in (
            (b"x", 2000),
            (b"", 2000),
            (b'{"action":"heartbeat","topic":"x"}', 2000),
            (publishing(b"0"), 2000),
            (b'{"action":"subscribe","topic":[' + topics + b"]}", 80),
        ):
            with self.subTest(request[:40]):
                socket = self.more.socket(
                    zmq.DEALER, self.host.manage.port, "127.0.0.1", SNDHWM=0, RCVHWM=0
                )
                for _ in range(count):
                    socket.send_multipart([b"", request])
                for _ in range(count):
                    self.assertTrue(socket.poll(round(1000 * LIMIT)))
                    socket.recv_multipart()
                self.assert_short_turns()

    def test_many_subscriptions(self) -> None:
        """
        Nor do 6,000 subscriptions of strangers at 60 addresses.
        """
        request = json.dumps({"action": "subscribe", "topic": INTEL}).encode()
        for number in range(60):
            socket = self.more.socket(
                zmq.DEALER, self.host.manage.port, f"127.0.1.{number + 1}:0;127.0.0.1", SNDHWM=0
            )
            for _ in range(100):
                socket.send_multipart([b"", request])
            for _ in range(100):
                self.assertTrue(socket.poll(round(1000 * LIMIT)))
                socket.recv_multipart()
            self.assertEqual(self.known.heartbeat(), "success")
        wait_until(lambda: len(self.host.subscriptions()) > 6000)
        document = an_indicator()
        self.publisher_.publish(document)
        self.known.ids_until(document["id"])
        self.assert_short_turns()


class AgainAndAgainTests(PluginTestCase):
    """
    Requests that are accepted, again and again.
    """

    def test_subscribe(self) -> None:
        """
        A stranger that subscribes, each time with long topics and another snapshot, and
        unsubscribes, neither fills the log nor has others asked for each snapshot.
        """
        plugin = self.plugin()
        known, stranger = self.client(plugin), self.client(plugin)
        known.join(INTEL)
        before = len(plugin.log)
        topics = [INTEL, *(f"{n:02}" + "\u00ad" * 254 for n in range(99))]
        for days in range(1, 501):
            topic = stranger.request("subscribe", topic=topics, snapshot=days, name="\u00ad" * 256)[
                "topic"
            ]
            self.assertEqual(stranger.request("unsubscribe", topic=topic)["status"], "success")
        document = an_indicator()
        self.publisher(known).publish(document)
        received = [known.receive() for _ in range(21)]
        asked = [topic.removeprefix(known.topic) for topic, _ in received[:20]]
        self.assertEqual(asked, ["snapshotrequest"] * 20)
        self.assertIn(document["id"], received[20][1])
        self.assertLess(len(plugin.log) - before, 1_000_000)
        self.assertLess(max(map(len, plugin.log.splitlines())), 5000)
        self.assertLess(plugin.status()["longest_turn"], LONGEST_TURN)


class MessageTests(HostileTestCase):
    """
    Messages that ZeroMQ takes apart.
    """

    def test_many_frames(self) -> None:
        """
        A message of 100,000 frames ends its connection, on any endpoint, without a long turn.
        """
        for number, (port, kind) in enumerate(
            [
                (self.host.manage.port, b"DEALER"),
                (self.known.sub, b"PUB"),
                (self.known.pub, b"SUB"),
            ],
            1,
        ):
            peer = Peer("127.0.0.1", port, kind)
            self.addCleanup(peer.close)
            peer.send(b"stix2/indicator {}", *[b""] * 100_000)
            self.assertTrue(peer.was_cut_off())
            self.assertEqual(self.host.status()["received"]["connection"]["oversized"], number)
            document = an_indicator()
            self.publisher_.publish(document)
            self.known.ids_until(document["id"])
        self.assert_short_turns()

    def test_endless_frames(self) -> None:
        """
        Messages of empty frames that never end, each of which takes 64 bytes of memory and two on
        its way, end their connections, nobody else's.
        """
        before = self.host.rss()
        for number, (port, kind) in enumerate(
            [(self.host.manage.port, b"DEALER"), (self.known.sub, b"PUB")], 1
        ):
            peer = Peer("127.0.0.1", port, kind)
            self.addCleanup(peer.close)
            for _ in range(100):
                if not peer.send_bytes(b"\x01\x00" * 100_000):
                    break
            self.assertTrue(peer.was_cut_off())
            self.assertEqual(self.host.status()["received"]["connection"]["oversized"], number)
            self.assertLess(self.host.rss() - before, 256 * MIB)
            document = an_indicator()
            self.publisher_.publish(document)
            self.known.ids_until(document["id"])
        self.assert_short_turns()
