"""
What a live plugin lets in: each case costs the one document, and nobody else anything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from random import Random
from typing import Any

import stix2

from tbvast.protocol.manage import encode_publish
from tbvast.protocol.replay import Batch, Mark, Part, decode_delivery
from tbvast.stix.limits import LARGEST_INDICATOR, SHORTEST_MESSAGE_LIMIT
from tests import documents
from tests.functional.blocking import (
    Client,
    PluginProcess,
    Publisher,
    a_sighting,
    an_indicator,
    frame,
)
from tests.functional.test_conformance import HostTestCase

BOTH = ["stix2/indicator", "stix2/sighting"]

MADE_UP = 1369
"""
How many made-up documents are published.
"""

Literally = documents.Literally


def bad_documents() -> list[tuple[bytes, str]]:
    """
    @return: Documents that are to be refused, each with what the reason begins with.
    """
    long = an_indicator(x_number=Literally("9" * 5000))
    del long["spec_version"]
    found: list[tuple[dict[str, Any], str]] = [
        (long, "x_number: "),
        (an_indicator(x_number=Literally("1e400")), "x_number: b'1e400' is not "),
        (
            an_indicator(created="0001-01-01T00:00:00+14:00"),
            "created: '0001-01-01T00:00:00+14:00' is not a timestamp",
        ),
        (an_indicator(x_deep=Literally("[" * 976 + "]" * 976)), "x_deep: "),
        (an_indicator(confidence="high"), "confidence: 'high' is not a whole number"),
        (an_indicator(created_by_ref="me"), "created_by_ref: 'me' is not an id"),
        (an_indicator(id=f"indicator--{'0' * 8}-0000-0000-0000-{'0' * 12}"), "id: "),
        (an_indicator(object_marking_refs=["red"]), "object_marking_refs[0]: 'red' is not"),
        (
            an_indicator(external_references=[{"url": "https://example.com/"}]),
            "external_references[0].source_name: None is not",
        ),
        (an_indicator(kill_chain_phases=[{"phase_name": "x"}]), "kill_chain_phases[0].kill_"),
        (an_indicator(granular_markings=[{"selectors": ["id"]}]), "granular_markings[0].marking"),
        (a_sighting(created="yesterday"), "created: 'yesterday' is not a timestamp"),
        (a_sighting(first_seen="2025-01-01T00:00:00Z"), "last_seen: "),
        (a_sighting(count=-1), "count: -1 is not a whole number"),
        (a_sighting(sighting_of_ref=documents.an_id("x--y")), "sighting_of_ref: 'x--y--"),
        (an_indicator(Name="x"), "document: 'Name' is not a property"),
        (
            an_indicator("[" + " OR ".join(f"a:b = '{n}'" for n in range(1000)) + "]"),
            "pattern: ",
        ),
    ]
    return [(documents.encoded(document), reason) for document, reason in found]


class Fed(Client):
    """
    A subscriber that speaks tbvast/1, as a bridge does: with the limit of one.
    """

    def follow(self, topics: Sequence[str] = BOTH) -> None:
        self.subscribe(list(topics), protocol="tbvast/1", name="test")
        self.connect(MAXMSGSIZE=SHORTEST_MESSAGE_LIMIT)

    def ids(self, last: str) -> list[str]:
        """
        @return: The ids of all that arrives, up to one.
        """
        found: list[str] = []
        while last not in found:
            topic, payload = self.receive()
            kind = topic.removeprefix(self.topic)
            delivery = decode_delivery(b"", [f"{kind} {payload}".encode()])
            assert isinstance(delivery, Batch | Part | Mark)
            if not isinstance(delivery, Mark):
                assert not delivery.refused
                found += [item.id for item in delivery.items]
        return found


class AdmissionTests(HostTestCase):
    """
    Good documents arrive everywhere, bad ones nowhere.
    """

    def setUp(self) -> None:
        self.folder = self.directory()
        self.bus = self.run_host(
            PluginProcess(self.folder, max_message_bytes=SHORTEST_MESSAGE_LIMIT)
        )
        self.old = self.client(Client(self.bus.manage))
        self.old.join(BOTH)
        self.fed = self.client(Fed(self.bus.manage))
        self.fed.follow()

    def client(self, client: Any) -> Any:
        self.addCleanup(client.close)
        return client

    def publish(self, given: Sequence[bytes]) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.old.ask(encode_publish(given)))
        return reply

    def check_snapshot(self, wanted: Sequence[str]) -> None:
        """
        See that a new subscriber gets some indicators, and no others.
        """
        newcomer = self.client(Client(self.bus.manage))
        newcomer.join("stix2/indicator", 30)
        last = an_indicator()
        found: list[str] = []
        while len(found) < len(wanted):
            topic, payload = newcomer.receive()
            if topic.endswith("indicator"):
                found.append(json.loads(payload)["id"])
        self.assertEqual(sorted(found), sorted(wanted))
        self.publish([json.dumps(last).encode()])
        self.assertEqual(newcomer.ids_until(last["id"]), [last["id"]])
        self.publish([json.dumps({**last, "x_threatbus_update": "REMOVE"}).encode()])
        self.old.ids_until(last["id"])
        self.old.ids_until(last["id"])
        self.fed.ids(last["id"])
        self.fed.ids(last["id"])

    def test_bad_among_good(self) -> None:
        """
        Of a request with good and bad documents the good ones are accepted, and reach
        everybody, in snapshots, too; each bad one is refused with its property. Then
        removals, and the end of what is over, work as ever.
        """
        good = [an_indicator(f"[ipv4-addr:value = '198.51.100.{n}']") for n in range(100)]
        bad = bad_documents()
        mixed: list[tuple[bytes, str]] = []
        for number, document in enumerate(good):
            mixed.append((json.dumps(document).encode(), ""))
            if number < len(bad):
                mixed.append(bad[number])
        reply = self.publish([raw for raw, _ in mixed])
        for number, (raw, reason) in enumerate(mixed):
            with self.subTest(raw[:300]):
                self.assertEqual(
                    reply["outcomes"][number], "refused" if reason else "accepted", reply["reasons"]
                )
                self.assertTrue(reply["reasons"].get(str(number), "").startswith(reason))
        wanted = [document["id"] for document in good]
        self.assertEqual(self.old.ids_until(wanted[-1]), wanted)
        self.assertEqual(self.fed.ids(wanted[-1]), wanted)
        self.check_snapshot(wanted)

        # A batch with removals of bad ones and of good ones, and with new ones.
        over = an_indicator(
            valid_until=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
        )
        batch = [
            *({"type": "indicator", "id": json.loads(raw)["id"], "revoked": True}
              for raw, _ in bad[4:5]),
            *({"type": "indicator", "id": id, "revoked": True} for id in wanted[:50]),
            over,
        ]  # fmt: skip
        reply = self.publish([json.dumps(each).encode() for each in batch])
        self.assertEqual(reply["outcomes"], ["unknown"] + ["accepted"] * 51)
        self.old.ids_until(over["id"])  # accepted
        (ended,) = (d for _, d in self.old.receive_until(over["id"]))
        self.assertEqual(ended["x_threatbus_update"], "REMOVE")
        self.assertEqual(len(self.fed.ids(over["id"])), 51)
        self.fed.ids(over["id"])
        self.check_snapshot(wanted[50:])

    def test_sub(self) -> None:
        """
        On the sub endpoint, too, a bad document costs nobody else anything; nor does one
        in a snapshot envelope.
        """
        publisher = Publisher("127.0.0.1", self.old.sub, "stix2/sighting", "stix2/indicator")
        self.addCleanup(publisher.close)
        wanted = []
        bad = bad_documents()
        for raw, _ in bad:
            for topic in (b"stix2/indicator", b"stix2/sighting", b"vast/sightings"):
                publisher.send(topic + b" " + raw)
            publisher.send(
                b'threatbus/snapshotenvelope {"type":"snapshotenvelope","snapshot_type":1,'
                b'"snapshot_id":"x","body":%b}' % raw
            )
            document = an_indicator()
            publisher.send(frame(document))
            wanted.append(document["id"])
        self.assertEqual(self.old.ids_until(wanted[-1]), wanted)
        self.assertEqual(self.fed.ids(wanted[-1]), wanted)
        self.check_snapshot(wanted)
        received = self.bus.status()["received"]
        self.assertEqual(received["message"]["refused"], 4 * len(bad))

    def test_longest_request(self) -> None:
        """
        All that a request of just C{max_message_bytes} holds arrives, at a subscriber
        that takes no longer message itself, and what comes behind it.
        """
        alone = json.dumps(an_indicator(description="x" * SHORTEST_MESSAGE_LIMIT)).encode()
        alone = alone[: SHORTEST_MESSAGE_LIMIT - len(encode_publish([b""])) - 2] + b'"}'
        self.assertEqual(len(encode_publish([alone])), SHORTEST_MESSAGE_LIMIT)
        reply = self.publish([alone])
        self.assertEqual(reply["outcomes"], ["refused"])
        self.assertIn(f"at most {LARGEST_INDICATOR} bytes", reply["reasons"]["0"])

        largest = [an_indicator(description="") for _ in range(7)]
        for document in largest:
            document["description"] = "x" * (LARGEST_INDICATOR - len(json.dumps(document)))
        given = [json.dumps(document).encode() for document in largest]
        self.assertEqual({len(raw) for raw in given}, {LARGEST_INDICATOR})
        last = an_indicator()
        room = SHORTEST_MESSAGE_LIMIT - len(encode_publish([*given, json.dumps(last).encode()]))
        rest = an_indicator(description="")
        rest["description"] = "x" * (room - len(json.dumps(rest)) - 1)
        given += [json.dumps(rest).encode(), json.dumps(last).encode()]
        self.assertEqual(len(encode_publish(given)), SHORTEST_MESSAGE_LIMIT)
        self.assertEqual(self.publish(given)["outcomes"], ["accepted"] * 9)
        wanted = [document["id"] for document in (*largest, rest, last)]
        self.assertEqual(self.fed.ids(last["id"]), wanted)
        self.assertEqual(self.old.ids_until(last["id"]), wanted)
        behind = an_indicator()
        self.publish([json.dumps(behind).encode()])
        self.assertEqual(self.fed.ids(behind["id"]), [behind["id"]])

    def test_made_up(self) -> None:
        """
        Nothing that reaches an old subscriber is refused by the library that the old
        programs read it with: 1,369 made-up documents, and what is in a snapshot of them.
        """
        random = Random(14)
        accepted = 0
        made = [documents.document(random) for _ in range(MADE_UP)]
        made = [raw for raw in made if len(raw) < 100_000]
        for start in range(0, len(made), 100):
            reply = self.publish(made[start : start + 100])
            self.assertEqual(reply["status"], "success", reply.get("reason"))
            accepted += reply["outcomes"].count("accepted")
        last = an_indicator()
        self.publish([json.dumps(last).encode()])
        newcomer = self.client(Client(self.bus.manage))
        newcomer.join("stix2/indicator", 3650)
        probe = an_indicator()
        self.publish([json.dumps(probe).encode()])
        for client, end in ((self.old, last), (newcomer, probe)):
            found = client.receive_until(end["id"])
            for _, document in found:
                stix2.parse(json.dumps(document), allow_custom=True)
            self.assertGreater(len(found), 200)
        self.assertGreater(accepted, 300)
        self.assertLess(accepted, len(made) - 300)
        self.assertTrue(self.bus.alive)
        self.assertNotIn("Traceback", self.bus.log)

    def test_damaged(self) -> None:
        """
        A document that is no JSON costs only itself; where it cannot be told which it
        is, the request is refused with a reason.
        """
        for damaged in (
            b"nope",
            b'{"type":"indicator"',
            b'{"a":1,}',
            b'{"a":"b}',
            b"\xff",
            b"{'a':1}",
        ):
            with self.subTest(damaged):
                good = [an_indicator() for _ in range(5)]
                given = [json.dumps(document).encode() for document in good]
                given.insert(2, damaged)
                reply = self.publish(given)
                self.assertEqual(
                    reply["outcomes"], ["accepted"] * 2 + ["refused"] + ["accepted"] * 3
                )
                self.assertEqual(list(reply["reasons"]), ["2"])
                self.assertEqual(
                    self.old.ids_until(good[-1]["id"]), [document["id"] for document in good]
                )
        reply = json.loads(self.old.ask(b'{"action":"publish","documents":[{"a":1},{"b":'))
        self.assertEqual(reply["status"], "error")
        self.assertIn("publish request", reply["reason"])
