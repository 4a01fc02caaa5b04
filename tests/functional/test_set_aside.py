"""
One bad item costs one item: what cannot be handled is set aside, alone.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sqlite3
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from devtools.services import free_ports, twistd
from tbvast.protocol.replay import decode_delivery
from tests.functional.blocking import (
    LIMIT,
    Client,
    PluginProcess,
    an_indicator,
)
from tests.functional.components import wait_until

OLD_STATE = Path(__file__).parents[1] / "data" / "state-0.1.0"
OVER = "2024-05-18T12:00:00Z"


class Follower(Client):
    """
    A subscriber of tbvast/1 that reads frames as they are.

    @ivar items: The documents of the snapshot, and of the batches, by STIX id; of each how
        often it came.
    @ivar mark: The mark's count, once it came.
    @ivar until: The number up to which it got everything.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.items: dict[str, int] = {}
        self.mark: int | None = None
        self.until = 0

    def follow(self, topics: Sequence[str] = ("stix2/indicator",), **more: Any) -> None:
        """
        Subscribe, and connect; from the beginning if nothing else is said.
        """
        reply = self.subscribe(list(topics), **{"protocol": "tbvast/1", "snapshot": 3650, **more})
        self.plugin = reply["plugin"]
        self.connect()

    def take(self) -> None:
        """
        Receive one frame. What is in it has to be JSON.
        """
        kind, payload = self.receive()
        kind = kind.removeprefix(self.topic)
        document = json.loads(payload)
        decode_delivery(b"", [f"{kind} {payload}".encode()])
        if kind == "mark":
            self.mark = document["count"]
            self.until = document["number"]
            return
        if kind == "batch":
            self.until = document["until"]
        for _, _, item in document["items"]:
            self.items[item["id"]] = self.items.get(item["id"], 0) + 1

    def snapshot(self) -> int:
        """
        @return: How many items the mark says there were.
        """
        while self.mark is None:
            self.take()
        return self.mark

    def take_until(self, id: str) -> None:
        while id not in self.items:
            self.take()


class SetAsideTestCase(SynchronousTestCase):
    """
    Has a plugin with a state directory that tests look into.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        (self.folder / "state").mkdir(parents=True)
        self.journal = self.folder / "state" / "journal.db"

    def start(self) -> PluginProcess:
        self.plugin = PluginProcess(self.folder)
        self.addCleanup(self.plugin.stop)
        return self.plugin

    def run_plugin(self) -> subprocess.CompletedProcess[str]:
        options = [
            f"--{name}={port}"
            for name, port in zip(("manage", "pub", "sub"), free_ports(3), strict=True)
        ]
        return subprocess.run(
            twistd("tbvast-plugin", f"--state-dir={self.folder / 'state'}", *options),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def client(self) -> Client:
        client = Client(self.plugin.manage)
        self.addCleanup(client.close)
        return client

    def follower(self, **more: Any) -> Follower:
        follower = Follower(self.plugin.manage)
        self.addCleanup(follower.close)
        follower.follow(**more)
        return follower

    def publish(self, *documents: Any) -> list[str]:
        """
        @param documents: Bytes, or what can be written as JSON.
        @return: The outcomes.
        """
        raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in documents]
        client = self.client()
        reply = json.loads(
            client.ask(b'{"action":"publish","documents":[' + b",".join(raw) + b"]}")
        )
        client.close()
        outcomes: list[str] = reply["outcomes"]
        return outcomes

    def snapshot_ids(self, topic: str = "stix2/indicator") -> list[str]:
        """
        What somebody who subscribes in an old dialect is sent first: the ids, or the
        references.
        """
        client = self.client()
        client.join(topic, snapshot=3650)
        marker = an_indicator("[domain-name:value = 'marker.example']")
        self.publish(marker)
        found = []
        while True:
            kind, payload = client.receive()
            if kind.endswith("snapshotrequest"):
                continue
            document = json.loads(payload)
            id_ = document.get("id") or document["reference"].removeprefix("threatbus__")
            if id_ == marker["id"]:
                break
            found.append(id_)
        client.unsubscribe()
        client.close()
        self.publish({**marker, "modified": "2024-02-01T00:00:00Z", "x_threatbus_update": "REMOVE"})
        return found

    def aside(self) -> dict[str, Any]:
        found: dict[str, Any] = self.plugin.status()["set_aside"]
        return found

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.journal, timeout=LIMIT)
        try:
            with database:
                yield database
        finally:
            database.close()

    def smuggle(self, id: str, body: bytes, valid_until: int | None = None) -> None:
        """
        Put another document in an entry's place, with its checksum: as if it had been
        accepted.
        """
        with self.database() as database:
            done = database.execute(
                "UPDATE entries SET body = ?, crc = ?, valid_until = coalesce(?, valid_until)"
                " WHERE id = ?",
                (body, zlib.crc32(body), valid_until, id),
            )
        self.assertEqual(done.rowcount, 1)


def with_digits(document: dict[str, Any]) -> bytes:
    """
    A document with an integer of 5,000 digits in it, and without a version.
    """
    document = {**document, "x_size": 1}
    del document["spec_version"]
    return json.dumps(document).encode().replace(b'"x_size": 1', b'"x_size": ' + b"1" * 5000)


def with_range(document: dict[str, Any]) -> bytes:
    return json.dumps({**document, "x_size": 1}).encode().replace(b": 1}", b": 1e400}")


def with_time(document: dict[str, Any]) -> bytes:
    return json.dumps({**document, "created": "0001-01-01T00:00:00+14:00"}).encode()


BAD = (with_digits, with_range, with_time)


class ToleratedTests(SetAsideTestCase):
    """
    A document that cannot be handled is inside all the same.
    """

    def good(self, count: int, **more: Any) -> list[dict[str, Any]]:
        return [
            an_indicator(f"[ipv4-addr:value = '198.51.{n // 256}.{n % 256}']", **more)
            for n in range(count)
        ]

    def test_published(self) -> None:
        """
        Beside 100 good ones: subscribers of both dialects get the 100, and the next ones.
        """
        self.start()
        clients = {topic: self.client() for topic in ("stix2/indicator", "threatbus/intel")}
        for topic, client in clients.items():
            client.join(topic)
        follower = self.follower(snapshot=0)
        for bad in BAD:
            with self.subTest(bad.__name__):
                good = self.good(100)
                documents: list[Any] = [*good]
                it = an_indicator("[file:name = 'bad']")  # which the vast dialect cannot say
                documents.insert(50, bad(it))
                outcomes = self.publish(*documents)
                self.assertEqual(outcomes.count("accepted"), 100 + (outcomes[50] == "accepted"))
                self.assertIn(outcomes[50], ("accepted", "refused"))
                ids = [each["id"] for each in good]
                found = clients["stix2/indicator"].ids_until(ids[-1])
                self.assertEqual([id for id in found if id != it["id"]], ids)
                references = [
                    json.loads(clients["threatbus/intel"].receive()[1])["reference"]
                    for _ in range(100)
                ]
                self.assertEqual(references, [f"threatbus__{id}" for id in ids])
                follower.take_until(ids[-1])
                self.assertEqual({follower.items[id] for id in ids}, {1})

    def test_inside(self) -> None:
        """
        Every later snapshot holds all others; a removal of its id loses nothing of its
        batch; when it has expired, everything else expires, also after a restart.
        """
        self.start()
        bad = [(make, an_indicator()) for make in BAD]
        lasting = self.good(20)
        ending = self.good(20, valid_until="2099-05-18T12:00:00Z")
        removed = self.good(20)
        end_of_bad = an_indicator(valid_until="2099-05-18T12:00:00Z")
        self.publish(*lasting, end_of_bad, *ending, *removed, *[each for _, each in bad])
        self.assertEqual(self.plugin.stop(), 0)
        for make, document in bad:
            self.smuggle(document["id"], make(document))
        over = 1716033600_000_000
        for document in ending:
            self.smuggle(
                document["id"],
                json.dumps({**document, "valid_until": OVER}).encode(),
                over,
            )
        self.smuggle(end_of_bad["id"], with_digits({**end_of_bad, "valid_until": OVER}), over - 1)
        self.start()

        ids = {each["id"] for each in (*lasting, *removed)}
        wrong = {each["id"] for _, each in bad}
        wait_until(
            lambda: self.plugin.status()["received"].get("indicator", {}).get("expired") == 21
        )
        for topic in ("stix2/indicator", "threatbus/intel"):
            found = [id for id in self.snapshot_ids(topic) if id not in wrong]
            self.assertCountEqual(found, ids, topic)
        follower = self.follower()
        self.assertEqual(follower.snapshot(), sum(follower.items.values()))
        self.assertLessEqual(ids, set(follower.items))
        aside = self.aside()["count"]
        self.assertGreaterEqual(aside, 2)  # a time outside the calendar is put right

        listening = self.client()
        listening.join("stix2/indicator")
        version = {"modified": "2024-06-01T00:00:00Z", "x_threatbus_update": "REMOVE"}
        removals = [
            {key: value for key, value in {**each, **version}.items() if key != "pattern"}
            for each in (removed[0], bad[0][1], *removed[1:])
        ]
        fresh = self.good(500)
        self.assertEqual(
            self.publish(*fresh[:250], *removals, *fresh[250:]),
            ["accepted"] * (500 + len(removals)),
        )
        heard = listening.receive_until(fresh[-1]["id"])
        self.assertEqual(len(heard), 500 + len(removals))
        self.assertEqual(
            [each["id"] for _, each in heard if each.get("x_threatbus_update") == "REMOVE"],
            [each["id"] for each in removals],
        )
        self.assertTrue(all(each["pattern"] for _, each in heard))
        self.assertEqual(self.plugin.stop(), 0)
        self.start()
        self.assertEqual(self.aside()["count"], aside)
        found = [id for id in self.snapshot_ids() if id not in wrong]
        self.assertCountEqual(found, [each["id"] for each in (*lasting, *fresh)])

    def test_too_long(self) -> None:
        """
        A document that is too long for the frame around it is never sent; it alone.
        """
        self.start()
        good = self.good(50)
        self.publish(*good)
        self.plugin.stop()
        long = good[20]
        self.smuggle(long["id"], json.dumps({**long, "x_note": "x" * (1 << 20)}).encode())
        self.start()
        ids = {each["id"] for each in good} - {long["id"]}
        follower = self.follower()
        self.assertEqual(follower.snapshot(), 49)
        self.assertEqual(follower.items, dict.fromkeys(ids, 1))
        replayed = self.follower(resume={"plugin": follower.plugin, "number": 0})
        last = good[-1]["id"]
        replayed.take_until(last)
        self.assertEqual(replayed.items, dict.fromkeys(ids, 1))
        self.assertEqual(self.aside()["count"], 1)
        self.assertIn("too long", self.aside()["newest"])


class DamageTests(SetAsideTestCase):
    """
    One damaged byte.
    """

    def damage(self, id: str) -> None:
        with self.database() as database:
            (body,) = database.execute("SELECT body FROM entries WHERE id = ?", (id,)).fetchone()
            place = len(body) // 2
            changed = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
            database.execute("UPDATE entries SET body = ? WHERE id = ?", (changed, id))

    def test_document(self) -> None:
        """
        In one document of 50: a new bridge gets the 49 others, and the mark says 49. The
        document can be published again, and be removed.
        """
        self.start()
        good = [an_indicator(f"[ipv4-addr:value = '198.51.100.{n}']") for n in range(50)]
        self.publish(*good)
        for number in (7, 8):
            self.damage(good[number]["id"])
        follower = self.follower()
        self.assertEqual(follower.snapshot(), 48)
        self.assertEqual(len(follower.items), 48)
        self.assertNotIn(good[7]["id"], follower.items)
        self.assertEqual(self.aside()["count"], 2)
        self.assertIn("damaged", self.aside()["newest"])
        self.assertEqual(self.publish(good[7]), ["accepted"])
        follower.take_until(good[7]["id"])
        removal = {**good[8], "modified": "2024-06-01T00:00:00Z", "x_threatbus_update": "REMOVE"}
        del removal["pattern"]
        self.assertEqual(self.publish(removal), ["accepted"])
        follower.take_until(good[8]["id"])
        self.assertCountEqual(self.snapshot_ids(), follower.items.keys() - {good[8]["id"]})

    def test_file(self) -> None:
        """
        A file that is no journal any more: one line, and exit status 1.
        """
        self.start()
        self.publish(an_indicator())
        self.plugin.stop()
        size = self.journal.stat().st_size
        for name, content in (
            ("garbage", b"x" * size),
            ("header", b"SQLite format 3\0" + b"x" * size),
            ("cut", self.journal.read_bytes()[: size // 2]),
        ):
            with self.subTest(name):
                self.journal.write_bytes(content)
                ended = self.run_plugin()
                lines = [line for line in ended.stderr.splitlines() if "tbvast-plugin: " in line]
                self.assertEqual((ended.returncode, len(lines)), (1, 1), ended.stderr)
                self.assertIn(str(self.journal), lines[0])
                self.assertIn("move it away", lines[0])
                self.assertNotIn("Traceback", ended.stderr)


class FileTests(SetAsideTestCase):
    """
    The journal's file goes while the plugin runs.
    """

    def publish_on(self, accepted: list[str], stopped: threading.Event) -> None:
        """
        Publish until nothing is accepted any more.
        """
        client = Client(self.plugin.manage)
        try:
            while not stopped.is_set():
                documents = [an_indicator() for _ in range(20)]
                reply = client.request("publish", documents=documents)
                if reply["status"] != "success":
                    return
                accepted += [
                    each["id"]
                    for each, outcome in zip(documents, reply["outcomes"], strict=True)
                    if outcome == "accepted"
                ]
        except (AssertionError, OSError):
            pass  # it has ended
        finally:
            client.close()

    def lose(self, what: str, loss: Any) -> None:
        """
        @param what: What the log says of it.
        """
        plugin = self.start()
        accepted: list[str] = []
        stopped = threading.Event()
        publisher = threading.Thread(target=self.publish_on, args=(accepted, stopped), daemon=True)
        publisher.start()
        wait_until(lambda: len(accepted) > 200)
        loss()
        wait_until(lambda: not plugin.alive)
        stopped.set()
        self.assertEqual(plugin.stop(), 1)
        critical = [line for line in plugin.log.splitlines() if "cannot go on" in line]
        self.assertEqual(len(critical), 1, plugin.log)
        self.assertIn(what, critical[0])
        self.assertNotIn("Traceback", plugin.log)
        self.start()
        found = self.follower()
        found.snapshot()
        self.assertEqual(set(accepted) - set(found.items), set())

    def test_removed(self) -> None:
        """
        Deleted: nothing is accepted any more, and all that was is there after the restart.
        """
        self.lose("was removed", self.journal.unlink)

    def test_all_removed(self) -> None:
        """
        Deleted with what SQLite keeps beside it.
        """

        def loss() -> None:
            for path in self.journal.parent.glob("journal.db*"):
                path.unlink()

        self.lose("was removed", loss)

    def test_log_removed(self) -> None:
        """
        Only the write-ahead log is deleted.
        """
        self.lose("was removed", lambda: os.unlink(f"{self.journal}-wal"))

    def test_cut(self) -> None:
        """
        Cut, so that some of it is gone from the disk: the plugin ends, and says so, and it
        does not start with what is left, but says what can be done.
        """
        self.start()
        self.publish(*[an_indicator(x_note="x" * 1000) for _ in range(500)])
        self.plugin.stop()
        plugin = self.start()
        os.truncate(self.journal, self.journal.stat().st_size // 10)
        wait_until(lambda: not plugin.alive)
        self.assertEqual(plugin.stop(), 1)
        critical = [line for line in plugin.log.splitlines() if "cannot go on" in line]
        self.assertEqual(len(critical), 1, plugin.log)
        self.assertIn("was cut", critical[0])
        self.assertNotIn("Traceback", plugin.log)
        if "has been written to it again" in critical[0]:
            self.start()
            self.assertEqual(len(self.snapshot_ids()), 500)
        else:
            ended = self.run_plugin()
            self.assertEqual(ended.returncode, 1)
            self.assertIn("move it away", ended.stderr)

    def test_replaced(self) -> None:
        """
        Replaced: what is there now is left alone, and all that was accepted is beside it.
        """
        plugin = self.start()
        documents = [an_indicator() for _ in range(20)]
        self.assertEqual(self.publish(*documents), ["accepted"] * 20)
        other = self.folder / "other"
        other.write_bytes(b"something else")
        os.replace(other, self.journal)
        wait_until(lambda: not plugin.alive)
        self.assertEqual(plugin.stop(), 1)
        self.assertIn("was replaced", plugin.log)
        self.assertEqual(self.journal.read_bytes(), b"something else")
        (rescued,) = self.journal.parent.glob("journal.db-rescued-*")
        self.assertIn(str(rescued), plugin.log)
        for path in self.journal.parent.glob("journal.db-[ws]*"):
            path.unlink()
        rescued.rename(self.journal)
        self.start()
        self.assertEqual(len(self.snapshot_ids()), 20)

    def test_idle(self) -> None:
        """
        It is noticed if nothing is written, too.
        """
        plugin = self.start()
        self.publish(an_indicator())
        self.journal.unlink()
        began = time.monotonic()
        wait_until(lambda: not plugin.alive)
        self.assertLess(time.monotonic() - began, 15)
        self.assertEqual(plugin.stop(), 1)
        self.start()
        self.assertEqual(len(self.snapshot_ids()), 1)


class OldStateTests(SetAsideTestCase):
    """
    What 0.1.0 has written, with all that it could not handle.
    """

    def setUp(self) -> None:
        super().setUp()
        self.contents = json.loads((OLD_STATE / "contents.json").read_text())
        self.journal.write_bytes(gzip.decompress((OLD_STATE / "journal.db.gz").read_bytes()))

    def test_journal(self) -> None:
        """
        All good indicators are delivered in every dialect, what has ended ends, and what
        is bad is set aside, once.
        """
        self.start()
        contents = self.contents
        bad = contents["bad"]
        in_force = contents["in force"]
        self.assertEqual(self.aside()["count"], len(bad))
        listening = self.client()
        listening.topic, listening.pub = contents["topics"][0], self.plugin_pub()
        listening.connect()
        ended = [json.loads(listening.receive()[1]) for _ in range(4)]
        self.assertEqual({each["x_threatbus_update"] for each in ended}, {"REMOVE"})
        self.assertEqual(
            {each["id"] for each in ended}, {*contents["ending"], bad["ending digits"]}
        )
        self.assertCountEqual(self.snapshot_ids(), in_force)
        self.assertCountEqual(
            self.snapshot_ids("threatbus/intel"),
            [id for id in in_force if id != in_force[2]],  # a hash
        )
        follower = self.follower()
        self.assertEqual(follower.snapshot(), len(in_force))
        self.assertEqual(follower.items, dict.fromkeys(in_force, 1))

        replayed = self.follower(
            topics=("stix2/indicator", "stix2/sighting"),
            resume={"plugin": follower.plugin, "number": 0},
        )
        replayed.take_until(bad["ending digits"])
        good = {*in_force, *contents["ending"], *contents["removed"], *contents["sightings"]}
        self.assertLessEqual(good, replayed.items.keys())
        self.assertEqual(replayed.items.keys() & bad.values(), {bad["ending digits"]})

        removals = [
            {
                "type": "indicator",
                "id": id,
                "modified": "2024-06-01T00:00:00Z",
                "created": "2024-06-01T00:00:00Z",
                "x_threatbus_update": "REMOVE",
            }
            for id in (bad["digits"], in_force[0], bad["damaged"], bad["time"], in_force[1])
        ]
        self.assertEqual(self.publish(*removals), ["accepted"] * len(removals))
        follower.take_until(bad["time"])
        self.assertCountEqual(self.snapshot_ids(), in_force[2:])
        self.plugin.stop()
        self.start()
        self.assertEqual(self.aside()["count"], len(bad))
        self.assertCountEqual(self.snapshot_ids(), in_force[2:])

    def plugin_pub(self) -> int:
        client = self.client()
        reply = client.subscribe("stix2/sighting")
        client.unsubscribe()
        client.close()
        port: int = reply["pub_port"]
        return port
