"""
The protocol of the three endpoints, as any host of it can be asked: by plain ZeroMQ
clients that know a host and the port of its manage endpoint.

L{ThreatBusConformance} is what an unmodified Threat Bus 2022.5.16 fulfils too,
L{TbvastConformance} what only tbvast does. C{TBVAST_CONFORMANCE_HOST=HOST:PORT} in the
environment runs both against the host whose manage endpoint is there, which nobody
else should use meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any, TypeVar
from unittest import SkipTest

import zmq
from twisted.trial.unittest import SynchronousTestCase

from devtools.services import free_ports
from tbvast.values import HostPort
from tests.functional.blocking import (
    LIMIT,
    PROBE,
    BlockingProcess,
    Client,
    Pace,
    Peer,
    PluginProcess,
    Publisher,
    Sockets,
    a_sighting,
    an_indicator,
    frame,
)
from tests.functional.peers import THREATBUS, Uninstallable, installed, logging_to_console

P = TypeVar("P", bound=BlockingProcess)

HOST = os.environ.get("TBVAST_CONFORMANCE_HOST")

INTEL = "stix2/indicator"
SIGHTINGS = "stix2/sighting"
ENVELOPES = "threatbus/snapshotenvelope"

NESTED = b"[" * 100_000 + b"]" * 100_000

BROKEN = {
    "nothing": b"",
    "no JSON": b"subscribe",
    "half of it": b'{"action": "subscribe", "topic": "stix2/indi',
    "not UTF-8": b'{"action": "subscribe", "topic": "\xff\xfe"}',
    "half a character": b'{"action": "subscribe", "topic": "\\ud800"}',
    "zeros": b"\0" * 100,
    "a list": b'["subscribe", "stix2/indicator"]',
    "a text": b'"subscribe"',
    "a number": b"1e999",
    "null": b"null",
    "nesting": NESTED,
    "nesting in a field": b'{"action": "subscribe", "topic": ' + NESTED + b"}",
    "nesting in an unknown field": b'{"action": "subscribe", "topic": "t", "x": ' + NESTED + b"}",
    "topic: a number": b'{"action": "subscribe", "topic": 7}',
    "topic: an object": b'{"action": "subscribe", "topic": {}}',
    "topic: a list of lists": b'{"action": "subscribe", "topic": [["stix2/indicator"]]}',
    "snapshot: a list": b'{"action": "subscribe", "topic": "t", "snapshot": [1]}',
    "snapshot: true": b'{"action": "subscribe", "topic": "t", "snapshot": true}',
    "snapshot: negative": b'{"action": "subscribe", "topic": "t", "snapshot": -1}',
    "snapshot: a part of a day": b'{"action": "subscribe", "topic": "t", "snapshot": 0.5}',
    "snapshot: endless": b'{"action": "subscribe", "topic": "t", "snapshot": 1e999}',
    "unsubscribe: a number": b'{"action": "unsubscribe", "topic": 7}',
    "heartbeat: a number": b'{"action": "heartbeat", "topic": 7}',
}
"""
Requests that are none.
"""

UNKNOWN = {
    "no action": b'{"topic": "stix2/indicator"}',
    "an unknown action": b'{"action": "dance", "topic": "stix2/indicator"}',
    "an action that is none": b'{"action": 7, "topic": "stix2/indicator"}',
    "no topic": b'{"action": "subscribe"}',
    "null": b'{"action": "subscribe", "topic": null}',
    "an empty topic": b'{"action": "heartbeat", "topic": ""}',
    "an empty list": b'{"action": "subscribe", "topic": []}',
    "nothing": b"{}",
}
"""
Requests for nothing known.
"""


class Conformance:
    """
    Clients of a host, which end with the test.

    @cvar host: The manage endpoint.
    """

    host: HostPort

    # Of the test case that this is mixed into.
    addCleanup: Any
    assertEqual: Any
    assertIn: Any
    assertRegex: Any
    assertTrue: Any
    subTest: Any

    def client(self) -> Client:
        """
        @return: One that has not subscribed.
        """
        client = self.ending(Client(self.host))

        def leave() -> None:
            if client.topic:
                client.unsubscribe()

        self.addCleanup(leave)
        return client

    def joined(self, topic: Any, snapshot: int = 0) -> Client:
        """
        @return: One that has subscribed, and receives what is published from now on.
        """
        client = self.client()
        client.join(topic, snapshot)
        self.settle(client)
        return client

    def settle(self, client: Client) -> None:
        """
        Wait until a client that has connected receives what is published.
        """

    def publisher(self, client: Client, *topics: str) -> Publisher:
        """
        @param client: Somebody who knows where the sub endpoint is.
        """
        return self.ending(Publisher(client.host, client.sub, *topics))

    def ending(self, sockets: Any) -> Any:
        """
        @return: The sockets, which are closed with the test.
        """
        self.addCleanup(sockets.close)
        return sockets


class ThreatBusConformance(Conformance):
    """
    What a Threat Bus fulfils, and so does tbvast.
    """

    def test_subscribe(self) -> None:
        """
        Every subscription has a topic of its own, of 32 random letters.
        """
        topics = set()
        for topic in (INTEL, SIGHTINGS, [INTEL, SIGHTINGS], "stix2/", "no/such/topic"):
            reply = self.client().subscribe(topic)
            self.assertRegex(reply["topic"], r"\A[a-z]{32}\Z")
            self.assertEqual(reply["status"], "success")
            self.assertEqual({type(reply["pub_port"]), type(reply["sub_port"])}, {int})
            topics.add(reply["topic"])
        self.assertEqual(len(topics), 5)

    def test_no_snapshot(self) -> None:
        """
        A subscribe request need not speak of a snapshot.
        """
        client = self.client()
        client.topic = client.request("subscribe", topic=INTEL)["topic"]
        self.assertEqual(client.heartbeat(), "success")

    def test_heartbeat(self) -> None:
        """
        It says whether there is a subscription.
        """
        client = self.client()
        client.subscribe(INTEL)
        self.assertEqual(client.heartbeat(), "success")
        self.assertEqual(client.request("heartbeat", topic="a" * 32), {"status": "error"})
        client.unsubscribe()
        self.assertEqual(client.heartbeat(), "error")

    def test_unsubscribe(self) -> None:
        """
        A subscription ends once.
        """
        client = self.client()
        client.subscribe([INTEL, SIGHTINGS])
        self.assertEqual(json.loads(client.unsubscribe()), {"status": "success"})
        self.assertEqual(json.loads(client.unsubscribe()), {"status": "error"})

    def test_unknown_action(self) -> None:
        for raw in (b'{"action": "dance", "topic": "t"}', b'{"action": "subscribe"}'):
            self.assertEqual(json.loads(self.client().ask(raw)), {"status": "unknown request"})

    def test_broken(self) -> None:
        """
        What is no request is answered, too.
        """
        client = self.client()
        for raw in (b"", b"{", b'{"action": "subscribe", "topic": "t", "snapshot": "x"}'):
            self.assertEqual(json.loads(client.ask(raw)), {"status": "error"})
        client.subscribe(INTEL)

    def test_proxy(self) -> None:
        """
        A reply finds its way back through a ZeroMQ proxy.
        """
        proxy = zmq.Context()
        front, back = proxy.socket(zmq.ROUTER), proxy.socket(zmq.DEALER)
        front.linger = back.linger = 0
        port = front.bind_to_random_port("tcp://127.0.0.1")
        back.connect(f"tcp://{self.host}")

        def forward() -> None:
            try:
                zmq.proxy(front, back)
            except zmq.ContextTerminated:
                front.close()
                back.close()

        thread = threading.Thread(target=forward)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(proxy.term)
        client = self.ending(Client(HostPort("127.0.0.1", port)))
        reply = client.request("heartbeat", topic="a" * 32)
        self.assertEqual(reply, {"status": "error"})

    def test_indicators(self) -> None:
        """
        They reach who wants them, in order, and nobody else.
        """
        one, other, both = map(self.joined, (INTEL, SIGHTINGS, [INTEL, SIGHTINGS]))
        documents = [an_indicator() for _ in range(100)]
        seen = a_sighting()
        self.publisher(one, INTEL, SIGHTINGS).publish(*documents, seen)
        ids = [document["id"] for document in documents]
        self.assertEqual(one.ids_until(ids[-1]), ids)
        self.assertEqual(both.ids_until(seen["id"]), [*ids, seen["id"]])
        self.assertEqual(other.ids_until(seen["id"]), [seen["id"]])

    def test_frame(self) -> None:
        """
        A message is one frame: the topic, a space, and a STIX object.
        """
        client = self.joined([INTEL, SIGHTINGS])
        update = {"x_threatbus_update": "EDIT", "name": "two words"}
        published = [an_indicator(**update), a_sighting(x_threatbus_source="a source")]
        self.publisher(client, INTEL, SIGHTINGS).publish(*published)
        for document in published:
            topic, payload = client.receive()
            self.assertEqual(topic, client.topic + document["type"])
            received = json.loads(payload)
            self.assertEqual({name: received[name] for name in document}, document)

    def test_prefix(self) -> None:
        """
        A topic is a prefix; one that nobody has ever heard of gets nothing.
        """
        every, nothing = self.joined("stix2/"), self.client()
        nothing.join("stix2/indicators of compromise")
        published = [an_indicator(), a_sighting()]
        self.publisher(every, INTEL, SIGHTINGS).publish(*published)
        ids = [document["id"] for document in published]
        self.assertEqual(every.ids_until(ids[-1]), ids)
        self.assertEqual(nothing.heartbeat(), "success")
        self.assertTrue(self.silent(nothing))

    def silent(self, client: Client) -> bool:
        """
        Whether a client has received nothing.
        """
        return not client.waiting()

    def test_snapshot_request(self) -> None:
        """
        Whoever wants a snapshot has the others asked, who answer it alone.
        """
        asked = self.joined(INTEL)
        bystander = self.joined(INTEL)
        asking = self.client()
        asking.join(INTEL, snapshot=3)
        topic, payload = asked.receive()
        request = json.loads(payload)
        self.assertEqual(topic, asked.topic + "snapshotrequest")
        self.assertEqual(
            {name: request[name] for name in ("type", "snapshot_type", "snapshot")},
            {"type": "snapshotrequest", "snapshot_type": 1, "snapshot": 3 * 86400},
        )
        self.settle(asking)
        publisher = self.publisher(asked, INTEL, ENVELOPES)
        answers = [an_indicator() for _ in range(3)]
        for document in answers:
            publisher.send(envelope(request["snapshot_id"], document))
        publisher.send(envelope("somebody else's", an_indicator()))
        last = an_indicator()
        ids = [document["id"] for document in answers]
        # What the host itself knows comes first.
        self.assertEqual(asking.ids_until(ids[-1])[-len(ids) :], ids)
        publisher.publish(last)
        self.assertEqual(asking.ids_until(last["id"]), [last["id"]])
        self.assertEqual(bystander.ids_until(last["id"]), [last["id"]])
        self.assertEqual(asked.ids_until(last["id"]), [last["id"]])

    def test_rubbish(self) -> None:
        """
        What is not valid on the sub endpoint reaches nobody, and what follows does.
        """
        client = self.joined([INTEL, SIGHTINGS])
        publisher = self.publisher(client, INTEL, ENVELOPES)
        before, after = an_indicator(), an_indicator()
        publisher.publish(before)
        for rubbish in (b"stix2/indicator", b"stix2/indicator {", b"stix2/indicator \xff"):
            publisher.send(rubbish)
        publisher.send(f"{ENVELOPES} {{}}".encode())
        publisher.publish(after)
        self.assertEqual(client.ids_until(after["id"]), [before["id"], after["id"]])


class TbvastConformance(Conformance):
    """
    What a Threat Bus does not fulfil, or not always.
    """

    def unharmed(self) -> None:
        """
        The host serves somebody new.
        """
        client = self.joined(INTEL)
        document = an_indicator()
        self.publisher(client).publish(document)
        self.assertEqual(client.ids_until(document["id"]), [document["id"]])
        self.assertEqual(client.heartbeat(), "success")

    # The manage endpoint

    def test_every_broken_request(self) -> None:
        """
        Every request is answered, and the peer can go on.
        """
        client = self.client()
        for name, raw in BROKEN.items():
            with self.subTest(name):
                self.assertEqual(json.loads(client.ask(raw)), {"status": "error"})
        client.subscribe(INTEL)
        self.assertEqual(client.heartbeat(), "success")

    def test_every_unknown_request(self) -> None:
        client = self.client()
        for name, raw in UNKNOWN.items():
            with self.subTest(name):
                self.assertEqual(json.loads(client.ask(raw)), {"status": "unknown request"})

    def test_frames(self) -> None:
        """
        A request in several frames, or in none to speak of, has one reply.
        """
        client = self.client()
        for frames in ([b"", b""], [b"a", b"b"], [b'{"action":', b'"dance"}'], [b""] * 1000):
            self.assertIn(json.loads(client.ask(*frames))["status"], ("error", "unknown request"))
        client.subscribe(INTEL)

    def test_large_request(self) -> None:
        """
        10 MiB are answered, whatever they are.
        """
        client = self.client()
        size = 10 * 2**20
        text = b'{"action": "subscribe", "topic": "%s"}'
        for raw in (b"x" * size, b"\0" * size, b"[" * size, text % (b"t" * (size - len(text) + 2))):
            self.assertEqual(json.loads(client.ask(raw)), {"status": "error"})
        frames = [b"x" * (size // 16)] * 16
        self.assertEqual(json.loads(client.ask(*frames)), {"status": "error"})
        client.subscribe(INTEL)

    def test_dealer(self) -> None:
        """
        A DEALER need not send a delimiter, nor wait for its turn.
        """
        sockets = self.ending(Sockets())
        dealer = sockets.socket(zmq.DEALER, self.host.port, self.host.host)
        requests = [b'{"action": "dance"}', b"", b"x"]
        for raw in requests:
            dealer.send(raw)
        dealer.send_multipart([b"", requests[0]])
        dealer.send_multipart([b"a hop", b"another", b"", requests[0]])
        replies = []
        for _ in range(5):
            self.assertTrue(dealer.poll(round(LIMIT * 1000)))
            replies.append(dealer.recv_multipart())
        unknown, error = b'{"status":"unknown request"}', b'{"status":"error"}'
        self.assertEqual(
            replies,
            [
                [unknown],
                [b"", error],
                [error],
                [b"", unknown],
                [b"a hop", b"another", b"", unknown],
            ],
        )

    def test_many_peers(self) -> None:
        """
        Each gets its own reply.
        """
        clients = [self.client() for _ in range(50)]
        for client in clients:
            client.subscribe(INTEL)
        self.assertEqual(len({client.topic for client in clients}), 50)
        self.assertEqual({client.heartbeat() for client in clients}, {"success"})

    # The vast dialect

    def test_vast_subscription(self) -> None:
        """
        A topic below C{threatbus/} is answered as its clients expect it.
        """
        client = self.client()
        for topic in ("threatbus/intel", "threatbus/sighting", "threatbus/other"):
            reply = client.subscribe(topic)
            self.assertRegex(reply["topic"], rf"\A{topic}[a-z]{{10}}\Z")
            self.assertEqual(reply["pub_endpoint"], f"{self.host.host}:{reply['pub_port']}")
            self.assertEqual(reply["sub_endpoint"], f"{self.host.host}:{reply['sub_port']}")
            self.assertEqual(client.unsubscribe(), b"Success")
            self.assertEqual(client.unsubscribe(), b"Success")
        raw = b'{"action": "dance", "topic": "threatbus/intel"}'
        self.assertEqual(client.ask(raw), b"Unknown request")

    def test_vast_intel(self) -> None:
        """
        What the dialect can express is sent in it, and nothing else.
        """
        client = self.joined("threatbus/intel")
        sha256 = "2e4c462b3424afcc04f43429d5f001e4ef9a28143bfeefb9af2254b4df3a7c1a"
        cases: list[tuple[str, dict[str, str], list[tuple[str, str, str]]]] = [
            ("[ipv4-addr:value = '192.0.2.7']", {}, [("192.0.2.7", "ip", "ADD")]),
            ("[ipv6-addr:value = '2001:db8::7']", {}, [("2001:db8::7", "ipv6", "ADD")]),
            ("[domain-name:value = 'evil.example']", {}, [("evil.example", "domain", "ADD")]),
            ("[url:value = 'http://e.example/x']", {}, [("http://e.example/x", "url", "ADD")]),
            (f"[file:hashes.'SHA-256' = '{sha256}']", {}, []),
            (
                "[ipv4-addr:value = '192.0.2.8']",
                {"x_threatbus_update": "REMOVE"},
                [("192.0.2.8", "ip", "REMOVE")],
            ),
            ("[ipv4-addr:value = '192.0.2.9']", {}, [("192.0.2.9", "ip", "ADD")]),
        ]
        publisher = self.publisher(client)
        expected = []
        for pattern, more, payloads in cases:
            document = an_indicator(pattern, **more)
            publisher.publish(document)
            expected += [
                {
                    "ioc": ioc,
                    "type": kind,
                    "reference": f"threatbus__{document['id']}",
                    "operation": operation,
                }
                for ioc, kind, operation in payloads
            ]
        for payload in expected:
            topic, received = client.receive()
            self.assertEqual((topic, json.loads(received)), (client.topic, payload))

    def test_vast_sightings(self) -> None:
        """
        A matcher's output becomes a sighting, in both dialects.
        """
        stix2, vast = self.joined(SIGHTINGS), self.joined("threatbus/sighting")
        known = an_indicator()["id"]
        match = {"ts": "2024-03-01T12:00:00+00:00", "reference": f"threatbus__{known}", "x": 1}
        publisher = self.publisher(stix2, SIGHTINGS, "vast/sightings")
        publisher.send(b"vast/sightings " + json.dumps(match).encode())
        topic, payload = stix2.receive()
        self.assertEqual(topic, stix2.topic + "sighting")
        self.assertEqual(json.loads(payload)["sighting_of_ref"], known)
        topic, payload = vast.receive()
        self.assertEqual(topic, vast.topic)
        self.assertEqual(json.loads(payload)["reference"], match["reference"])

    def test_both_dialects(self) -> None:
        """
        Subscribers of both are served by the same ports, each in its own.
        """
        topics = [INTEL, "threatbus/intel", [INTEL, SIGHTINGS], "threatbus/intel"]
        clients = [self.joined(topic) for topic in topics]
        self.assertEqual(len({(client.pub, client.sub) for client in clients}), 1)
        document = an_indicator()
        self.publisher(clients[0]).publish(document)
        for client, topic in zip(clients, topics, strict=True):
            received, payload = client.receive()
            if topic == "threatbus/intel":
                self.assertEqual(received, client.topic)
                self.assertIn(document["id"], json.loads(payload)["reference"])
            else:
                self.assertEqual(received, client.topic + "indicator")
                self.assertEqual(json.loads(payload)["id"], document["id"])

    # What subscribers get

    def test_overlap(self) -> None:
        """
        Topics that are repeated, or that overlap, deliver each message once.
        """
        published = [an_indicator(), a_sighting(), an_indicator()]
        for topics in (
            [INTEL, INTEL, SIGHTINGS],
            [INTEL, SIGHTINGS, "stix2/", "threatbus/intel", "threatbus/sighting"],
            ["stix2/", "threatbus/"],
            ["s", "st", "no/such/topic"],
        ):
            with self.subTest(topics):
                client = self.joined(topics)
                documents = [{**each, "id": fresh(each["id"])} for each in published]
                self.publisher(client, INTEL, SIGHTINGS).publish(*documents)
                ids = [document["id"] for document in documents]
                self.assertEqual(client.ids_until(ids[-1]), ids)

    def test_own_snapshot(self) -> None:
        """
        The host itself knows what there was, and what was taken back; it comes
        before what is new.
        """
        first = self.joined(INTEL)
        publisher = self.publisher(first)
        documents = [an_indicator() for _ in range(200)]
        publisher.publish(*documents)
        removed = {**documents[50], "x_threatbus_update": "REMOVE"}
        publisher.publish(removed)
        last = an_indicator()
        publisher.publish(last)
        first.ids_until(last["id"])
        client = self.client()
        client.subscribe(INTEL, snapshot=1)
        new = an_indicator()
        publisher.publish(new)
        first.ids_until(new["id"])
        client.connect()
        ids = [document["id"] for document in documents if document["id"] != removed["id"]]
        wanted = {*ids, removed["id"], last["id"], new["id"]}
        received = [id for id in client.ids_until(new["id"]) if id in wanted]
        self.assertEqual(received, [*ids, last["id"], new["id"]])

    def test_secrecy(self) -> None:
        """
        Who subscribes to everything, or guesses, receives nothing but its own.
        """
        spies = [self.client() for _ in range(3)]
        victim = self.client()
        victim.subscribe(INTEL)
        for spy, prefix in zip(spies, ("", victim.topic[:31], "threatbus/"), strict=True):
            spy.subscribe(INTEL)
            spy.connect(prefix)
            spy.hear(spy.topic)
        victim.connect()
        publisher = self.publisher(victim)
        document = an_indicator()
        publisher.publish(document)
        self.assertEqual(victim.ids_until(document["id"]), [document["id"]])
        for spy in spies:
            self.assertEqual(spy.receive()[0], spy.topic + "indicator")
            self.assertTrue(not spy.waiting())

    # What is not valid

    def test_every_rubbish(self) -> None:
        """
        What is not valid on the sub endpoint neither stops it nor repeats anything.
        """
        client = self.joined([INTEL, SIGHTINGS])
        publisher = self.publisher(client, INTEL, SIGHTINGS, ENVELOPES, "vast/sightings")
        valid = [an_indicator() for _ in range(3)]
        publisher.publish(valid[0])
        topics = (INTEL, SIGHTINGS, ENVELOPES, "vast/sightings")
        payloads = [b"", b" ", b"{", b"[]", b"null", b"{}", b"\xff", b"\0", NESTED, b"x" * 10**6]
        for topic in (topic.encode() for topic in topics):
            publisher.send(topic)
            for payload in payloads:
                publisher.send(topic + b" " + payload)
                publisher.send(topic + payload)
                publisher.send(topic, payload)
        for document in (a_sighting(), an_indicator(id=7), an_indicator("nonsense")):
            publisher.send(f"{INTEL} {json.dumps(document)}".encode())
        publisher.publish(valid[1])
        for frames in (
            [frame(an_indicator()), b""],
            [frame(an_indicator()), frame(an_indicator())],
            [INTEL.encode(), json.dumps(an_indicator()).encode()],
            [frame(an_indicator())] * 1000,
        ):
            publisher.send(*frames)
        publisher.publish(valid[2])
        ids = [document["id"] for document in valid]
        self.assertEqual(client.ids_until(ids[-1]), ids)

    def test_rubbish_on_pub(self) -> None:
        """
        What subscribers may send to the pub endpoint changes nothing.
        """
        client = self.joined(INTEL)
        peer = self.ending(Peer(client.host, client.pub, b"SUB"))
        for frames in (
            [b""],
            [b"\0"],
            [b"\1"],
            [b"\0" + client.topic.encode()],
            [b"\1" + b"\xff" * 100],
            [b"\1a", b"\1b"],
            [b"\2", b""],
            [b"message"],
            [b"x" * 1000] * 100,
        ):
            peer.send(*frames)
        for number in range(1000):
            peer.send(b"\1%d" % number)
        self.unharmed()
        document = an_indicator()
        self.publisher(client).publish(document)
        self.assertEqual(client.ids_until(document["id"])[-1], document["id"])

    def test_rubbish_while_subscribing(self) -> None:
        """
        Messages that are no subscriptions, sent to the pub endpoint while applications connect
        to it, cost none of them anything: each gets its own topic, and nothing else.
        """
        clients = [self.ending(Client(self.host)) for _ in range(20)]
        for client in clients:
            client.subscribe(INTEL)
        peers = [self.ending(Peer(client.host, client.pub, b"XSUB")) for client in clients]
        for client, peer in zip(clients, peers, strict=True):
            peer.send(b"\2" + client.topic.encode())
            client.connect()
            peer.send(b"message", b"\1a")
        documents = [an_indicator() for _ in range(10)]
        self.publisher(clients[0]).publish(*documents)
        ids = [document["id"] for document in documents]
        for client in clients:
            with self.subTest(topic=client.topic):
                self.assertEqual(client.ids_until(ids[-1]), ids)
        self.unharmed()

    def test_long_subscription(self) -> None:
        """
        A subscription of many bytes does not hurt, nor does its end.
        """
        client = self.joined(INTEL)
        for size in (100, 10_000, 1_000_000, 10 * 2**20):
            peer = self.ending(Peer(client.host, client.pub, b"SUB"))
            peer.send(b"\1" + b"x" * size)
            self.unharmed()
            peer.close()
            self.unharmed()

    def test_no_zeromq(self) -> None:
        """
        A peer that does not speak ZeroMQ is of no consequence.
        """
        client = self.joined(INTEL)
        for port in (self.host.port, client.pub, client.sub):
            for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, bytes(range(256)) * 100):
                sockets = self.ending(Sockets())
                stream = sockets.socket(zmq.STREAM, port, client.host)
                identity = stream.recv_multipart()[0]
                stream.send_multipart([identity, data])
        self.unharmed()

    def test_old_zeromq(self) -> None:
        """
        A peer that speaks ZMTP 1.0 is answered, too.
        """
        request = b'{"action": "dance"}'
        with socket.create_connection((self.host.host, self.host.port), LIMIT) as peer:
            peer.sendall(b"\1\0" + b"\1\1" + bytes([len(request) + 1, 0]) + request)
            received = b""
            while b"unknown request" not in received:
                part = peer.recv(1000)
                self.assertTrue(part, "cut off")
                received += part

    # Late subscribers

    def late(self, seconds: float, topic: str = INTEL) -> None:
        """
        One that connects some time after the reply to its request, while 200
        messages a second are published, receives them all.
        """
        publisher = self.publisher(self.joined(INTEL))
        client = self.client()
        client.subscribe(topic)
        pace = Pace(200)
        ids = []

        def publish() -> None:
            document = an_indicator()
            publisher.publish(document)
            ids.append(document["id"])
            pace.turn()

        publish()
        while pace.elapsed < seconds:
            publish()
        client.connect()
        for _ in range(100):
            publish()
        if topic == INTEL:
            self.assertEqual(client.ids_until(ids[-1]), ids)
        else:
            references = [json.loads(client.receive()[1])["reference"] for _ in ids]
            self.assertEqual(references, [f"threatbus__{id}" for id in ids])

    def test_at_once(self) -> None:
        self.late(0)

    def test_50_ms_late(self) -> None:
        self.late(0.05)

    def test_1_s_late(self) -> None:
        self.late(1)

    def test_1_s_late_vast(self) -> None:
        self.late(1, "threatbus/intel")

    def test_10_s_late(self) -> None:
        self.late(10)

    def test_late_for_snapshot(self) -> None:
        """
        A snapshot of 100 indicators waits for who asked for it, from the host itself
        and from other subscribers.
        """
        other = self.joined(INTEL)
        publisher = self.publisher(other, INTEL, ENVELOPES)
        documents = [an_indicator() for _ in range(100)]
        publisher.publish(*documents)
        other.ids_until(documents[-1]["id"])
        client = self.client()
        client.subscribe(INTEL, snapshot=1)
        request = json.loads(other.receive()[1])
        answers = [an_indicator() for _ in range(100)]
        pace = Pace(100)
        for document in answers:
            publisher.send(envelope(request["snapshot_id"], document))
            pace.turn()
        client.connect()
        ids = [document["id"] for document in (*documents, *answers)]
        received = client.ids_until(ids[-1])
        self.assertEqual([id for id in received if id in set(ids)], ids)


def envelope(snapshot: str, body: dict[str, Any]) -> bytes:
    """
    A part of an answer to a snapshot request.
    """
    document = {
        "type": "snapshotenvelope",
        "snapshot_type": 1,
        "snapshot_id": snapshot,
        "body": body,
    }
    return f"{ENVELOPES} {json.dumps(document)}".encode()


def fresh(id: str) -> str:
    """
    Another id of the same type.
    """
    return re.sub("--.*", an_indicator()["id"].removeprefix("indicator"), id)


class HostTestCase(SynchronousTestCase):
    """
    A host that ends with the test.
    """

    def directory(self) -> Path:
        """
        @return: A new directory of this test.
        """
        path = Path(self.mktemp()).resolve()
        path.mkdir(parents=True)
        return path

    def run_host(self, process: P) -> P:
        """
        @return: The process, which is ended with the test.
        """
        self.addCleanup(process.stop)
        return process


class PluginConformanceTests(ThreatBusConformance, TbvastConformance, HostTestCase):
    """
    A tbvast plugin, or the host that was named.
    """

    def setUp(self) -> None:
        if HOST:
            host, _, port = HOST.rpartition(":")
            self.host = HostPort(host, int(port))
        else:
            self.host = self.run_host(PluginProcess(self.directory())).manage


class OldHostConformanceTests(ThreatBusConformance, HostTestCase):
    """
    An unmodified Threat Bus.
    """

    def setUp(self) -> None:
        try:
            command = installed(THREATBUS)
        except Uninstallable as e:
            if os.environ.get("CI") == "true":
                raise
            raise SkipTest(str(e)) from None
        folder = self.directory()
        ports = dict(zip(("manage", "pub", "sub"), free_ports(3), strict=True))
        config = {
            "logging": logging_to_console(folder, "INFO"),
            "plugins": {
                "backbones": {"inmem": {}},
                "apps": {"zmq": {"host": "127.0.0.1", **ports}},
            },
        }
        path = folder / "config.yaml"
        path.write_text(json.dumps(config))
        process = self.run_host(BlockingProcess([*command, f"--config={path}"], folder))
        process.saw("ZeroMQ app plugin started")
        self.host = HostPort("127.0.0.1", ports["manage"])

    def settle(self, client: Client) -> None:
        # It drops what is published before the subscription has reached it.
        publisher = self.publisher(client)
        deadline = time.monotonic() + LIMIT
        while not client.waiting(0.1) and time.monotonic() < deadline:
            publisher.publish(an_indicator(name=PROBE), a_sighting(x_name=PROBE))
