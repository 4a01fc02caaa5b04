"""
A live service, and messages that nobody should send: it goes on, and loses nothing good.

C{python -m bench.fuzz} from the top of a checkout starts a plugin, and sends it 1,000,000
messages on its three endpoints: STIX objects with one to three properties made wrong (see
L{bench.hostile}), damaged messages, messages of several frames, noise, and such that are no
ZeroMQ. Good indicators and sightings are among them, by request and on sub. At the end each
of those has to be with an old subscriber of each dialect, with one of tbvast/1 and in a
snapshot, exactly once; every request was answered; C{stix2} reads what an old subscriber
got of the rest; and plugin and writer are the processes that they were, no larger than
they may be. C{python -m bench.fuzz bridge} has a bridge against a hostile bus instead (see
L{bench.fuzz_bridge}).

The exit status is 0 if all of it holds. A run with the same C{--seed} sends the same, but
for the identities that others choose.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from bench.hostile import GOOD, Damage, Good, Hostile, key_of, line
from bench.ledger import SHOWN, History, Ledger
from tbvast.values import HostPort
from tests.functional.blocking import (
    LIMIT,
    Client,
    NoPeer,
    Peer,
    PluginProcess,
    Publisher,
    Sockets,
)
from tests.functional.components import alive, children

WINDOW = 200
"""
Requests that wait for their replies at a time.
"""

TURN = 250
"""
Hostile messages between two looks at whether everything is well, with the next good ones.
"""

ASKERS = 8
"""
Publish requests with good documents that are under way at a time.
"""

ON_SUB = 6
"""
Good documents that each turn sends on the sub endpoint.
"""

IN_FLIGHT = 1000
"""
The most good documents that are on their way before more is sent.
"""

STALLED = 30.0
"""
Seconds without a good document that arrives, after which those under way are lost.
"""

BEAT = 3.0
"""
Seconds between the heartbeats of the subscribers.
"""

DAYS = 3649
"""
Of the snapshots at the end; what a hostile request asks for is cut to another number.
"""

LARGEST = 1 << 20
"""
Bytes of the largest indicators that have to arrive.
"""

ROOM = 64
"""
Bytes that an indicator becomes longer when it is corrected, or removed.
"""

SAMPLE = 2000
"""
Hostile documents that came through, of which is seen whether an old client can read them.
"""

SETTINGS = {"detached_timeout": 2.0, "errors_per_minute": 600}
"""
Of the plugin, so that subscriptions made by accident do not pile up.
"""

RECONNECTIONS = 100
"""
The most times that a connection may be cut before it is ready, one after the other.
"""

REQUESTS: tuple[bytes, ...] = tuple(
    json.dumps(request).encode()
    for request in (
        {"action": "subscribe", "topic": "stix2/indicator", "snapshot": 1},
        {"action": "subscribe", "topic": ["stix2/indicator", "stix2/sighting"]},
        {"action": "subscribe", "topic": "threatbus/intel", "snapshot": 0},
        {"action": "subscribe", "topic": "t", "protocol": "tbvast/1", "name": "fuzz"},
        {
            "action": "subscribe",
            "topic": "stix2/indicator",
            "protocol": "tbvast/1",
            "resume": {"plugin": "x", "number": 1},
        },
        {"action": "unsubscribe", "topic": "a" * 32},
        {"action": "heartbeat", "topic": "a" * 32, "report": {"a": [1, 2.5, "x"]}},
        {"action": "status"},
    )
)

TEXTS = {b"Success", b"Unknown request"}
"""
Replies of the vast dialect, which are no JSON.
"""


class Asking:
    """
    Sends requests, and counts their replies.

    @ivar replies: How many came.
    @ivar odd: Replies that are none.
    """

    def __init__(self, host: HostPort) -> None:
        self.sent = 0
        self.replies = 0
        self.odd: list[bytes] = []
        self._sockets = Sockets()
        self._dealer = self._sockets.socket(zmq.DEALER, host.port, host.host)

    def send(self, *frames: bytes) -> None:
        """
        Send a request as a REQ socket does.
        """
        self._dealer.send_multipart([b"", *frames])
        self.sent += 1
        if self.sent - self.replies >= WINDOW:
            self.receive(WINDOW // 2)

    def receive(self, waiting: int = 0) -> None:
        """
        @param waiting: The most replies that may still be missing.
        @raise AssertionError: If others do not come.
        """
        while self.sent - self.replies > waiting:
            if not self._dealer.poll(round(LIMIT * 1000)):
                raise AssertionError(f"{self.sent - self.replies} requests were not answered")
            delimiter, reply = self._dealer.recv_multipart()
            self.replies += 1
            if delimiter or not (reply in TEXTS or reply[:1] + reply[-1:] == b"{}"):
                self.odd.append(reply)

    def close(self) -> None:
        self._sockets.close()


class Sending:
    """
    Sends to an endpoint, with a new connection whenever the old one has ended.

    @ivar connections: How many there were.
    """

    def __init__(self, host: str, port: int, kind: bytes) -> None:
        self.connections = 0
        self._connect = lambda: Peer(host, port, kind)
        self._peer: Peer | None = None

    def send(self, *frames: bytes) -> None:
        """
        Send a message.
        """
        while self._peer is None or not self._peer.send(*frames):
            self.close()
            self._peer = self._connected()
            self.connections += 1

    def _connected(self) -> Peer:
        """
        Connect. The pub endpoint may take the connection for that of another sender, and cut it.
        """
        for _ in range(RECONNECTIONS):
            with contextlib.suppress(NoPeer):
                return self._connect()
        return self._connect()

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


class Item:
    """
    A good document, and by what each kind of subscriber knows it.

    @ivar raw: The document.
    @ivar frame: The message that brings it to the sub endpoint.
    @ivar document: It once more; empty for a report of a matcher of old.
    @ivar keys: What arrives at a subscriber of the stix2 dialect, or of tbvast/1.
    @ivar vast: What arrives at one of the vast dialect.
    """

    def __init__(
        self, topic: str, document: dict[str, Any], keys: tuple[str, ...], vast: tuple[str, ...]
    ) -> None:
        self.document = document
        self.raw = line(document)
        self.frame = topic.encode() + b" " + self.raw
        self.keys = keys
        self.vast = vast


class Maker:
    """
    Makes good items of all kinds.
    """

    def __init__(self, random: random.Random, good: Good) -> None:
        self._random = random
        self._good = good
        self._settled: list[Item] = []
        self._first: dict[str, Item] = {}

    def settled(self, key: str) -> None:
        """
        An item has arrived: it can be changed, or removed, whatever way that takes.
        """
        item = self._first.pop(key, None)
        if item is not None:
            self._settled.append(item)

    def make(self) -> Item:
        way = self._random.random()
        if self._settled and way < 0.1:
            edited = self._changed(x_threatbus_update="EDIT")
            if edited is not None:
                return edited
        if self._settled and 0.1 <= way < 0.14:
            return self._changed(x_threatbus_update="REMOVE") or self.indicator()
        if self._settled and 0.14 <= way < 0.16:
            return self._changed(revoked=True) or self.indicator()
        if self._settled and 0.16 <= way < 0.3:
            return self.sighting(self._random.choice(self._settled).document["id"])
        return self.indicator()

    def indicator(self) -> Item:
        way = self._random.random()
        more: dict[str, Any] = {}
        if way < 0.1:
            more = {"name": "good", "labels": ["a"], "confidence": 50, "x_own": {"a": [1, "b"]}}
        elif way < 0.1005:
            more = {"description": ""}
        item = self._item(self._good.indicator(**more))
        if "description" in more:
            rest = LARGEST - ROOM - len(item.raw)
            item = self._item({**item.document, "description": "x" * rest})
        self._first[item.keys[0]] = item
        return item

    def sighting(self, of: str) -> Item:
        """
        @param of: The id of an indicator.
        """
        document = self._good.sighting(of)
        mark = document["x_threatbus_sighting_context"]["mark"]  # type: ignore[index]
        key = f"sighting {mark}"
        return Item("stix2/sighting", document, (key,), (key,))

    def old_report(self, of: str) -> Item:
        """
        What a matcher of old says; only for the sub endpoint.
        """
        mark = self._good.id("sighting")
        key = f"sighting {mark}"
        report = {"ts": self._good.time(), "reference": f"threatbus__{of}", "mark": mark}
        return Item("vast/sightings", report, (key,), (key,))

    def _changed(self, **more: Any) -> Item | None:
        """
        @return: Nothing if that was edited before: a client of old could not tell the
            second time from the first.
        """
        place = self._random.randrange(len(self._settled))
        item = self._settled[place]
        if "x_threatbus_update" in more and more == {
            "x_threatbus_update": item.document.get("x_threatbus_update")
        }:
            return None
        document = {k: v for k, v in item.document.items() if k != "x_threatbus_update"}
        changed = self._item({**document, **more, "modified": self._good.time()})
        self._settled[place] = self._settled[-1]
        del self._settled[-1]
        if more.get("x_threatbus_update") == "EDIT":
            self._first[changed.keys[0]] = changed
        return changed

    def _item(self, document: dict[str, Any]) -> Item:
        operation = "REMOVE" if document.get("revoked") else None
        operation = operation or document.get("x_threatbus_update", "ADD")
        values = [each.split("'")[1] for each in document["pattern"].split(" OR ")]
        vast = tuple(f"{document['id']} {operation} {value}" for value in values)
        return Item("stix2/indicator", document, (key_of(document),), vast)


class Subscriber:
    """
    Receives, and keeps a ledger of the good items.

    @ivar arrived: All that came, good or not.
    """

    def __init__(
        self, host: HostPort, label: str, history: History, topic: Any, **more: Any
    ) -> None:
        """
        @param label: What it is called in the report.
        @param more: More of its request.
        """
        self.name = label
        self.ledger = Ledger(label, history)
        self.arrived = 0
        self.client = Client(host)
        self.reply = self.client.subscribe(topic, **more)
        self._sub = self.client.socket(zmq.SUB, self.client.pub, host.host, RCVHWM=0)
        self._sub.subscribe(self.client.topic)
        self._skipped = len(self.client.topic)

    def drain(self, wait: float = 0.0) -> bool:
        """
        Take what has come.

        @param wait: Seconds to wait for the first of it.
        @return: Whether there was something.
        """
        if not self._sub.poll(round(wait * 1000)):
            return False
        try:
            while True:
                kind, _, payload = self._sub.recv(zmq.NOBLOCK)[self._skipped :].partition(b" ")
                self.arrived += 1
                self.take(kind, payload)
        except zmq.Again:
            return True

    def take(self, kind: bytes, payload: bytes) -> None:
        """
        @param kind: What stands behind the subscription's own topic.
        """

    def close(self) -> None:
        self.client.unsubscribe()
        self.client.close()


def stix2_key(document: dict[str, Any]) -> str:
    """
    By what a good document is known.
    """
    if document["type"] == "sighting":
        return f"sighting {document['x_threatbus_sighting_context']['mark']}"
    return key_of(document)


class Stix2Subscriber(Subscriber):
    """
    An unmodified Threat Bus application of 2022.

    @ivar seen: Called with the key of each good item.
    @ivar asked: Snapshot requests that came, by their ids.
    @ivar asked_last: That of the last of L{DAYS}.
    @ivar sample: Some of the other documents that came.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: Callable[[str], None] = lambda key: None
        self.asked: list[bytes] = []
        self.asked_last = b""
        self.sample: list[bytes] = []
        self._others = 0
        self._random = random.Random(0)

    def take(self, kind: bytes, payload: bytes) -> None:
        if GOOD in payload:
            key = stix2_key(json.loads(payload))
            self.ledger.arrived(key)
            self.seen(key)
        elif kind == b"snapshotrequest":
            request = json.loads(payload)
            self.asked.append(request["snapshot_id"].encode())
            if request["snapshot"] == DAYS * 86400:
                self.asked_last = self.asked[-1]
        else:
            self._others += 1
            if len(self.sample) < SAMPLE:
                self.sample.append(payload)
            elif (place := self._random.randrange(self._others)) < SAMPLE:
                self.sample[place] = payload


class VastSubscriber(Subscriber):
    """
    A client of Threat Bus 2020.
    """

    def take(self, kind: bytes, payload: bytes) -> None:
        if GOOD not in payload:
            return
        document = json.loads(payload)
        if "ioc" in document:
            id = document["reference"].removeprefix("threatbus__")
            self.ledger.arrived(f"{id} {document['operation']} {document['ioc']}")
        else:
            self.ledger.arrived(f"sighting {document['mark']}")


class _Batch(msgspec.Struct):
    after: int
    until: int
    items: list[tuple[int, str, msgspec.Raw]]


class _Part(msgspec.Struct):
    items: list[tuple[int, str, msgspec.Raw]]


class NumberedSubscriber(Subscriber):
    """
    A client of tbvast/1, which checks the numbers.

    @ivar faults: What is wrong with them.
    @ivar mark: What ended the snapshot.
    @ivar in_snapshot: How many items it had.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, protocol="tbvast/1", name="numbered", **more)
        self.faults: list[str] = []
        self.mark: dict[str, Any] | None = None
        self.in_snapshot = 0
        self._at = self.reply["number"]

    def take(self, kind: bytes, payload: bytes) -> None:
        if kind == b"batch":
            try:
                batch = msgspec.json.decode(payload, type=_Batch)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
                self.faults.append(f"a frame cannot be read ({e}): {payload[:200]!r}")
                return
            if batch.after != self._at or batch.until <= batch.after:
                self.faults.append(f"a frame of {batch.after} to {batch.until} follows {self._at}")
            at = batch.after
            for number, _, raw in batch.items:
                if not at < number <= batch.until:
                    self.faults.append(f"{number} follows {at} in a frame to {batch.until}")
                at = number
                self._item(bytes(raw))
            self._at = batch.until
        elif kind == b"snapshot":
            for _, _, raw in msgspec.json.decode(payload, type=_Part).items:
                self.in_snapshot += 1
                self._item(bytes(raw))
        elif kind == b"mark":
            self.mark = json.loads(payload)
            self._at = self.mark["number"]

    def _item(self, raw: bytes) -> None:
        if GOOD in raw:
            self.ledger.arrived(stix2_key(json.loads(raw)))


class Asker:
    """
    Publishes by request, one request at a time.
    """

    def __init__(self, host: HostPort) -> None:
        self._sockets = Sockets()
        self._req = self._sockets.socket(zmq.REQ, host.port, host.host)
        self.asked: list[Item | None] = []
        self.since = 0.0

    def ask(self, items: list[Item | None], documents: list[bytes]) -> bytes:
        """
        @param items: For each document the item, if it is a good one.
        @return: The request.
        """
        request = b'{"action":"publish","documents":[' + b",".join(documents) + b"]}"
        self._req.send(request)
        self.asked = items
        self.since = time.monotonic()
        return request

    def answered(self) -> dict[str, Any] | None:
        """
        @return: The reply, if it has come.
        @raise AssertionError: If it takes too long.
        """
        if not self._req.poll(0):
            if time.monotonic() - self.since > LIMIT:
                raise AssertionError("a publish request with good documents was not answered")
            return None
        reply: dict[str, Any] = json.loads(self._req.recv())
        return reply

    def close(self) -> None:
        self._sockets.close()


class Run:
    """
    One run against one plugin.

    @ivar sent: Messages by endpoint and kind.
    @ivar good: How many good documents were sent, by the way they took.
    @ivar problems: What is wrong.
    """

    def __init__(self, plugin: PluginProcess, journal: Path, seed: int) -> None:
        """
        @param journal: The plugin's journal, to be looked into if something is lost.
        """
        self.sent: Counter[tuple[str, str]] = Counter()
        self.good: Counter[str] = Counter()
        self.problems: list[str] = []
        self.sizes: dict[str, list[int]] = {"plugin": [], "writer": []}
        self.host = plugin.manage
        self._plugin = plugin
        self._journal = journal
        (self.writer,) = children(plugin.pid)
        self._random = random.Random(seed)
        self._hostile = Hostile(self._random)
        self._damage = Damage(self._random)
        self._maker = Maker(self._random, Good(self._random, time.time() - 100_000.0))
        self._history = History()
        host, history = plugin.manage, self._history
        self.stix2 = Stix2Subscriber(host, "stix2", history, ["stix2/indicator", "stix2/sighting"])
        self.stix2.seen = self._maker.settled
        self.intel = VastSubscriber(host, "vast intel", history, "threatbus/intel")
        self.seen = VastSubscriber(host, "vast sightings", history, "threatbus/sighting")
        self.numbered = NumberedSubscriber(
            host, "tbvast/1", history, ["stix2/indicator", "stix2/sighting"]
        )
        self.subscribers = [self.stix2, self.intel, self.seen, self.numbered]
        self.asking = Asking(host)
        self._askers = [Asker(host) for _ in range(ASKERS)]
        sub, pub = self.stix2.client.sub, self.stix2.client.pub
        self._publisher = Publisher(host.host, sub, *(topic for topic, _ in _TOPICS))
        self.reporting = Sending(host.host, sub, b"PUB")
        self.listening = Sending(host.host, pub, b"SUB")
        self._beat = time.monotonic()
        self._moved = time.monotonic()
        self._in_force: dict[str, str] = {}
        self._ways: list[tuple[int, str, str, Callable[[], None]]] = [
            (4, "manage", "noise", lambda: self._ask(self._damage.noise())),
            (10, "manage", "damaged", lambda: self._ask(self._request())),
            (4, "manage", "several frames", self._ask_in_parts),
            (12, "manage", "STIX", lambda: self._ask(self._publish_request())),
            (3, "sub", "noise", lambda: self.reporting.send(self._damage.noise())),
            (8, "sub", "damaged", lambda: self.reporting.send(self._damaged_report())),
            (4, "sub", "several frames", self._report_in_parts),
            (30, "sub", "STIX", lambda: self._report(*self._stix())),
            (5, "sub", "vast sighting", self._report_old),
            (5, "sub", "envelope", lambda: self._report(_ENVELOPE, self._hostile.envelope())),
            (3, "pub", "noise", lambda: self.listening.send(self._damage.noise()[:2000])),
            (8, "pub", "subscriptions", lambda: self.listening.send(self._subscription())),
            (4, "pub", "several frames", self._listen_in_parts),
        ]  # fmt: skip
        self._weights = [weight for weight, *_ in self._ways]

    # Hostile messages

    def _ask(self, request: bytes) -> None:
        self._history.add("manage", request)
        self.asking.send(request)

    def _request(self) -> bytes:
        one, other = self._random.choices(REQUESTS, k=2)
        return self._damage.damaged(one, other)

    def _ask_in_parts(self) -> None:
        self.asking.send(*self._damage.parts(self._request))

    def _publish_request(self) -> bytes:
        documents = [self._hostile.document() for _ in range(self._random.choice((1, 1, 1, 2, 5)))]
        request = b'{"action":"publish","documents":[' + b",".join(documents) + b"]}"
        if self._random.random() < 0.2:
            return self._damage.damaged(request, REQUESTS[0])
        return request

    def _report(self, *frame: bytes) -> None:
        message = b" ".join(frame)
        self._history.add("sub", message)
        self._publisher.send(message)

    def _stix(self) -> tuple[bytes, bytes]:
        document = self._hostile.document()
        topic = b"stix2/sighting" if b'"type":"sighting"' in document else b"stix2/indicator"
        return topic, document

    def _report_old(self) -> None:
        self._report(b"vast/sightings", self._hostile.vast_sighting())

    def _damaged_report(self) -> bytes:
        report = b" ".join(self._stix())
        return self._damage.damaged(report, b" ".join((_ENVELOPE, self._hostile.envelope())))

    def _report_in_parts(self) -> None:
        parts = self._damage.parts(self._damaged_report)
        self.reporting.send(*parts)
        self._publisher.send(b"stix2/indicator " + self._hostile.document(), *parts)

    def _subscription(self) -> bytes:
        verb = self._random.choice((b"\0", b"\1", b"\1", b"\2", b""))
        letters = bytes(self._random.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in range(32))
        return verb + self._random.choice(
            (letters, b"threatbus/intel" + letters[:10], b"", self._damage.noise()[:2000])
        )

    def _listen_in_parts(self) -> None:
        self.listening.send(*(part[:2000] for part in self._damage.parts(self._subscription)))

    # The run

    def send(self, messages: int, deadline: float) -> None:
        """
        @param deadline: When to end before all are sent, as C{time.monotonic()} says.
        @raise AssertionError: If something is lost, or the plugin does not go on.
        """
        while self.sent.total() < messages:
            if time.monotonic() > deadline:
                self.problems.append("it took too long")
                break
            for _, endpoint, kind, send in self._random.choices(
                self._ways, self._weights, k=min(TURN, messages - self.sent.total())
            ):
                send()
                self.sent[endpoint, kind] += 1
            self._turn()
        self.asking.receive()
        self._until(lambda: not any(asker.asked for asker in self._askers))
        self._arrive(0)

    def _turn(self) -> None:
        """
        Send the next good items, see what has come, and whether all is well.
        """
        self._publish()
        for _ in range(ON_SUB):
            self._send_good()
        self._answer_snapshots()
        self._noise()
        self.look()
        self._arrive(IN_FLIGHT)

    def _expect(self, items: Sequence[Item], place: int) -> None:
        for item in items:
            sighting = item.keys[0].startswith("sighting")
            self.stix2.ledger.expect(item.keys, place)
            self.numbered.ledger.expect(item.keys, place)
            (self.seen if sighting else self.intel).ledger.expect(item.vast, place)
            if not sighting:
                self._keep(item)

    def _keep(self, item: Item) -> None:
        # What a snapshot afterwards has to hold.
        id = item.document["id"]
        if item.document.get("revoked") or item.document.get("x_threatbus_update") == "REMOVE":
            self._in_force.pop(id, None)
        else:
            self._in_force[id] = item.keys[0]

    def _send_good(self) -> None:
        item = self._maker.make()
        if self._random.random() < 0.1 and self._in_force:
            item = self._maker.old_report(next(iter(self._in_force)))
        self._expect([item], self._history.add("sub", item.frame))
        self._publisher.send(item.frame)
        self.good["on sub"] += 1

    def _publish(self) -> None:
        for asker in self._askers:
            if asker.asked:
                continue
            good = [self._maker.make() for _ in range(self._random.choice((1, 1, 2, 5)))]
            entries: list[tuple[Item | None, bytes]] = [(item, item.raw) for item in good]
            bad = self._random.randint(0, 5)
            entries += [(None, self._hostile.document()) for _ in range(bad)]
            self._random.shuffle(entries)
            request = asker.ask([item for item, _ in entries], [raw for _, raw in entries])
            self.sent["manage", "STIX"] += bad
            self._expect(good, self._history.add("manage", request))
            self.good["by request"] += len(good)

    def _settle(self) -> None:
        for asker in self._askers:
            if not asker.asked:
                continue
            reply = asker.answered()
            if reply is None:
                continue
            items, asker.asked = asker.asked, []
            outcomes = reply.get("outcomes")
            if outcomes is None or len(outcomes) != len(items):
                outcomes = [f"no outcome: {str(reply)[:300]}"] * len(items)
            for place, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
                if item is not None and outcome != "accepted":
                    reason = reply.get("reasons", {}).get(str(place), "")
                    self._problem(f"a good document is {outcome} ({reason}): {item.raw[:300]!r}")
                    for subscriber in self.subscribers:
                        subscriber.ledger.excuse((*item.keys, *item.vast))

    def _problem(self, text: str) -> None:
        if len(self.problems) < SHOWN:
            self.problems.append(text)

    def _answer_snapshots(self) -> None:
        for id in self.stix2.asked[:SHOWN]:
            self._report(_ENVELOPE, self._hostile.envelope(id))
            self.sent["sub", "envelope"] += 1
        self.stix2.asked.clear()

    def _noise(self) -> None:
        # Somebody calls who speaks no ZeroMQ, or stops in the middle of it.
        if self._random.random() > 0.25:
            return
        self.listening.close()  # with all its subscriptions
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        cut = greeting[: self._random.randint(0, len(greeting))]
        for endpoint, port in (
            ("manage", self.host.port),
            ("sub", self.stix2.client.sub),
            ("pub", self.stix2.client.pub),
        ):
            with socket.create_connection((self.host.host, port), LIMIT) as stranger:
                stranger.sendall(self._random.choice((b"", cut, greeting)) + self._damage.noise())
            self.sent[endpoint, "no ZeroMQ"] += 1

    def look(self) -> None:
        """
        Take what has come, and see whether all is well.
        """
        self._settle()
        if sum(subscriber.drain() for subscriber in self.subscribers):
            self._moved = time.monotonic()
        if time.monotonic() - self._beat > BEAT:
            self._beat = time.monotonic()
            for subscriber in self.subscribers:
                if subscriber.client.heartbeat() != "success":
                    raise AssertionError(f"the subscription {subscriber.name} has ended")
            self._measure()
        if not self._plugin.alive:
            raise AssertionError("the plugin has ended")

    def _measure(self) -> None:
        self.sizes["plugin"].append(self._plugin.rss())
        self.sizes["writer"].append(resident(self.writer))

    def _arrive(self, most: int) -> None:
        """
        @param most: How many good items may still be under way.
        """
        ledgers = [subscriber.ledger for subscriber in self.subscribers]
        self._until(lambda: max(ledger.missing for ledger in ledgers) <= most)

    def _until(self, condition: Callable[[], bool]) -> None:
        self._moved = time.monotonic()
        while not condition():
            self.look()
            if time.monotonic() - self._moved > STALLED:
                raise AssertionError(f"nothing moved for {STALLED:.0f} s")
            self.stix2.drain(0.01)

    # What is there afterwards

    def served(self) -> None:
        """
        See that everybody is served: those who were there all the time, and new ones; and
        that a snapshot holds all that is good and in force.
        """
        new: list[Subscriber] = [
            Stix2Subscriber(
                self.host, "new stix2", self._history, "stix2/indicator", snapshot=DAYS
            ),
            VastSubscriber(self.host, "new vast", self._history, "threatbus/intel"),
        ]
        numbered = NumberedSubscriber(
            self.host, "new tbvast/1", self._history, "stix2/indicator", snapshot=DAYS
        )
        new.append(numbered)
        snapshot = list(self._in_force.values())
        for subscriber in (new[0], numbered):
            subscriber.ledger.expect(snapshot, self._history.count)
        old, self.subscribers = self.subscribers, [*self.subscribers, *new]
        self._arrive(0)
        # The answer of another application, with what is wrong among what is right.
        self._until(lambda: bool(self.stix2.asked_last))
        id = self.stix2.asked_last
        for _ in range(20):
            item = self._maker.indicator()
            place = self._history.add("sub", item.raw)
            for subscriber in (new[0], numbered):
                if subscriber is new[0]:
                    subscriber.ledger.expect(item.keys, place)
            for body in (self._hostile.envelope(id), _envelope(id, item.raw)):
                self._publisher.send(_ENVELOPE + b" " + body)
        last = self._maker.indicator()
        self._expect([last], self._history.add("sub", last.frame))
        for subscriber in new:
            keys = last.vast if isinstance(subscriber, VastSubscriber) else last.keys
            subscriber.ledger.expect(keys, self._history.count - 1)
        self._publisher.send(last.frame)
        self._until(lambda: numbered.mark is not None)
        # Envelopes that came before the mark are in the snapshot's part, and counted there.
        self._arrive(0)
        if numbered.mark is not None and numbered.mark["count"] != numbered.in_snapshot:
            self._problem(f"{numbered.in_snapshot} items came before {numbered.mark}")
        self.new = new
        self.subscribers = old
        for subscriber in new:
            subscriber.close()

    def check(self, limit: int) -> None:
        """
        Collect what is wrong.

        @param limit: The most bytes of memory of each process.
        """
        for subscriber in (*self.subscribers, *getattr(self, "new", ())):
            if subscriber.name != "new tbvast/1":
                shown = any("missing" in problem for problem in self.problems)
                self.problems += subscriber.ledger.problems(neighbours=not shown)
                if not shown and (lost := subscriber.ledger.first_missing):
                    self.problems.append(f"    the journal has {self._journaled(lost)}")
            if isinstance(subscriber, NumberedSubscriber):
                self.problems += subscriber.faults[:SHOWN]
        self.problems += [f"an odd reply: {each[:200]!r}" for each in self.asking.odd[:SHOWN]]
        if not self._plugin.alive:
            self.problems.append("the plugin has ended")
        if not alive(self.writer) or children(self._plugin.pid) != [self.writer]:
            self.problems.append("the writer has ended")
        self._measure()
        for name, sizes in self.sizes.items():
            if max(sizes) > limit:
                self.problems.append(f"the {name} took {max(sizes) / 2**20:,.0f} MiB")
        if traces := self._plugin.log.count("Traceback"):
            start = self._plugin.log.index("Traceback")
            text = self._plugin.log[max(0, start - 300) : start + 1500]
            self.problems.append(f"{traces} tracebacks in the log, the first:\n{text}")

    def _journaled(self, key: str) -> str:
        """
        What the journal's file says of a document.
        """
        id = key.removeprefix("sighting ").partition(" ")[0]
        with sqlite3.connect(f"file:{self._journal}?mode=ro", uri=True) as db:
            rows = db.execute(
                "SELECT number, stream, state, substr(body, 1, 600) FROM entries"
                " WHERE instr(body, CAST(? AS BLOB))",
                [id],
            ).fetchall()
        return str(rows)

    def unreadable(self) -> tuple[int, Counter[str]]:
        """
        How many of what old subscribers got were tried, and why an unmodified client
        could not read them.
        """
        import stix2

        reasons: Counter[str] = Counter()
        for payload in self.stix2.sample:
            try:
                stix2.parse(payload.decode(), allow_custom=True)
            except Exception as e:  # whatever would end the client
                reasons[f"{type(e).__name__}: {str(e)[:150]}"] += 1
                if reasons.total() <= SHOWN:
                    print(f"    stix2 does not read {payload[:300]!r}", file=sys.stderr)
        return len(self.stix2.sample), reasons

    def close(self) -> None:
        self.asking.close()
        for asker in self._askers:
            asker.close()
        for sending in (self.reporting, self.listening):
            sending.close()
        for subscriber in self.subscribers:
            subscriber.client.close()
        self._publisher.context.destroy(linger=0)


_ENVELOPE = b"threatbus/snapshotenvelope"
_TOPICS = (
    ("stix2/indicator", 0),
    ("stix2/sighting", 0),
    ("vast/sightings", 0),
    (_ENVELOPE.decode(), 0),
)


def _envelope(id: bytes, body: bytes) -> bytes:
    return b'{"type":"snapshotenvelope","snapshot_type":1,"snapshot_id":"%b","body":%b}' % (
        id,
        body,
    )


def resident(pid: int) -> int:
    """
    A process's resident memory in bytes; 0 if it has ended.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(
        (int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith("VmRSS")), 0
    )


def memory_lines(sizes: dict[str, list[int]]) -> list[tuple[str, str]]:
    """
    For each process how large it was, at the quarters of the run, and at most.
    """
    return [
        (
            f"{name} MiB",
            " ".join(f"{at[(len(at) - 1) * part // 4] / 2**20:.0f}" for part in range(5))
            + f", at most {max(at) / 2**20:.0f}",
        )
        for name, at in sizes.items()
        if at
    ]


def table(run: Run, status: dict[str, Any], seconds: float) -> list[tuple[str, str]]:
    """
    What was sent, and what came of it.
    """
    sent = run.sent.total()
    rows = [(f"{one:8}{kind}", f"{count:,}") for (one, kind), count in sorted(run.sent.items())]
    rows += [
        ("all", f"{sent:,}"),
        ("seconds", f"{seconds:,.1f}"),
        ("messages per second", f"{sent / seconds:,.0f}"),
        ("requests answered", f"{run.asking.replies:,} of {run.asking.sent:,}"),
        *((f"good {way}", f"{count:,}") for way, count in sorted(run.good.items())),
    ]
    for subscriber in (*run.subscribers, *getattr(run, "new", ())):
        ledger = subscriber.ledger
        rows.append(
            (
                f"at {subscriber.name}",
                f"{ledger.due:,} good: {ledger.missing:,} lost, {ledger.doubled:,} doubled; "
                f"{subscriber.arrived:,} messages",
            )
        )
    for stream, counts in sorted(status.get("received", {}).items()):
        if isinstance(counts, dict):
            rows += [(f"{stream} {verdict}", f"{n:,}") for verdict, n in sorted(counts.items())]
    return rows + memory_lines(run.sizes)


def show(rows: Sequence[tuple[str, str]]) -> None:
    """
    Print a table.
    """
    for name, value in rows:
        print(f"    {name:28} {value}")
    sys.stdout.flush()


def options_of(arguments: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser("bench.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("target", nargs="?", choices=("plugin", "bridge"), default="plugin")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds that it may take")
    parser.add_argument("--memory", type=int, default=768, help="MiB that a process may take")
    parser.add_argument("--log", type=Path, help="where to keep the log of the service")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """
    @return: The exit status.
    """
    options = options_of(arguments)
    print(f"{options.target}, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tbvast-fuzz-") as folder:
        if options.target == "bridge":
            from bench.fuzz_bridge import attack_bridge

            return attack_bridge(Path(folder), options)
        plugin = PluginProcess(Path(folder), **SETTINGS)
        try:
            return attack(plugin, Path(folder), options)
        finally:
            plugin.stop()
            if options.log:
                options.log.write_text(plugin.log)


def attack(plugin: PluginProcess, folder: Path, options: Any) -> int:
    """
    @return: The exit status.
    """
    began = time.monotonic()
    run = Run(plugin, folder / "state" / "journal.db", options.seed)
    status: dict[str, Any] = {}
    try:
        run.send(options.messages, began + options.limit)
        seconds = time.monotonic() - began
        run.served()
        status = plugin.status()
    except (AssertionError, OSError) as e:
        seconds = time.monotonic() - began
        run.problems.append(f"failed after {run.sent.total():,} messages: {e}")
    run.check(options.memory << 20)
    tried, reasons = run.unreadable()
    rows = table(run, status, seconds)
    rows.append(("not read by stix2", f"{reasons.total():,} of {tried:,}"))
    run.close()
    show(rows)
    return verdict([*run.problems, *(f"{n} not read: {why}" for why, n in reasons.most_common(20))])


def verdict(problems: Sequence[str]) -> int:
    """
    Say what is wrong.

    @return: The exit status.
    """
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("everybody is served, and nothing good is lost")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
