"""
What a bridge does with what a bus sends, however bad, and what becomes of sightings that
nobody takes.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from devtools.services import RunningBridge, RunningPlugin
from tbvast.protocol.manage import encode_publish, encode_published, encode_status
from tbvast.protocol.replay import Mark, encode_batch, encode_item, encode_mark, encode_part
from tbvast.protocol.topics import Stream
from tbvast.stix.limits import SHORTEST_MESSAGE_LIMIT
from tbvast.values import HostPort
from tests.doubles import a_sighting, indicator_document, indicator_id
from tests.functional.components import import_events, require_tenzir, wait_until
from tests.functional.hostile_bus import HostileBus
from tests.functional.raw import RawClient
from tests.functional.services import ServicesTestCase

IP = "203.0.113.66"

DEEP = indicator_document(7).replace(b"{", b'{"x":' + b"[" * 976 + b"]" * 976 + b",", 1)
"""
An indicator with a property that is nested deeper than a frame around it can be decoded.
"""


def document(number: int, **more: Any) -> bytes:
    """
    An indicator of an address of its own.
    """
    value = f"198.51.{number // 250}.{number % 250}"
    return indicator_document(number, pattern=f"[ipv4-addr:value = '{value}']", **more)


def items(*numbered: tuple[int, bytes]) -> bytes:
    return b",".join(encode_item(number, Stream.INTEL, raw) for number, raw in numbered)


def batch(after: int, *documents: bytes) -> bytes:
    """
    A batch of the numbers that follow one, each of which has a document.
    """
    numbered = enumerate(documents, after + 1)
    return encode_batch(after, after + len(documents), items(*numbered))


def part(*documents: bytes) -> bytes:
    return encode_part(items(*((0, raw) for raw in documents)))


def config(folder: Path, section: str, **keys: Any) -> str:
    """
    @return: The option that names a configuration file with some keys.
    """
    path = folder / "tap.conf"
    lines = [f"  {key}: {value}\n" for key, value in keys.items()]
    path.write_text(f"{section}:\n{''.join(lines)}")
    return f"--config={path}"


class StoreReader:
    """
    Looks into a bridge's store while the bridge uses it.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "bridge.db"

    def rows(self, query: str) -> list[Any]:
        uri = f"file:{self._path}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as database:
            return database.execute(query).fetchall()

    def ids(self) -> set[str]:
        """
        Those of the indicators in force.
        """
        return {id for (id,) in self.rows("SELECT id FROM indicators WHERE state = 1")}

    def aside(self) -> list[tuple[str, int, str]]:
        """
        The stage, the number and the reason of what was set aside.
        """
        return self.rows("SELECT stage, number, reason FROM set_aside ORDER BY place")

    def position(self) -> tuple[str, int]:
        (found,) = self.rows("SELECT plugin, number FROM position")
        plugin, number = found
        return plugin, number


class HostileBusTestCase(ServicesTestCase):
    """
    A bridge, and a bus that says what the test wants.
    """

    timeout = 180

    def setUp(self) -> None:
        require_tenzir(self)
        self.bus = HostileBus()
        self.addCleanup(self.bus.close)
        self.state = self.directory()
        self.store = StoreReader(self.state)

    async def start(self, snapshot: int = 0, live: bool = False) -> RunningBridge:
        bridge = self.bridge(
            HostPort("127.0.0.1", self.bus.manage_port),
            "--retro-match=no",
            f"--snapshot={snapshot}",
            config(self.directory(), "bridge", heartbeat=0.5),
            state=self.state,
            live=live,
        )
        await self.started(bridge)
        await self.so(self.bus.attached)
        return bridge

    async def so(self, condition: Callable[[], Any]) -> None:
        await deferToThread(self.bus.wait_for, condition)

    def holds(self, *numbers: int) -> bool:
        return self.store.ids() == set(map(indicator_id, numbers))

    async def another_journal(self, plugin: str) -> None:
        """
        Have the bridge subscribe to another journal, of which it gets a full snapshot.
        """
        times = self.bus.subscriptions + 1
        self.bus.plugin = plugin
        self.bus.answers["heartbeat"] = lambda request: b'{"status":"error"}'
        await self.so(lambda: self.bus.attached(times))
        self.bus.answers.clear()


class FrameTests(HostileBusTestCase):
    """
    Frames that hold something that cannot be read.
    """

    async def test_nested(self) -> None:
        """
        A property nested 976 deep, or deeper, costs its own indicator at the most; what
        follows arrives, also after a restart.
        """
        bridge = await self.start()
        deeper = b'{"type":"indicator","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
        self.bus.send(batch(0, document(1), DEEP, document(3)))
        self.bus.send(batch(3, document(4), deeper, document(6)))
        await self.so(lambda: self.store.position() == ("hostile", 6))
        self.assertLessEqual(set(map(indicator_id, (1, 3, 4, 6))), self.store.ids())
        self.assertIn(("reception", 5), [each[:2] for each in self.store.aside()])
        self.assertEqual(self.bus.subscriptions, 1)
        await bridge.stop()
        again = bridge.again()
        self.ending(again)
        await self.started(again)
        await self.so(lambda: self.bus.attached(2))
        self.assertEqual(self.bus.asked("subscribe")[-1]["resume"]["number"], 6)
        self.bus.send(batch(6, document(8)))
        await self.so(lambda: self.store.position() == ("hostile", 8 - 1))
        self.assertIn(indicator_id(8), self.store.ids())

    async def test_in_full_snapshot(self) -> None:
        """
        In a full snapshot such a document ends none of the 100 that the bridge had, nor
        its own earlier version.
        """
        await self.start()
        self.bus.send(batch(0, *map(document, range(100))))
        await self.so(lambda: self.holds(*range(100)))
        await self.another_journal("another")
        broken = DEEP.replace(b"[" * 976, b"[" * 20_000).replace(b"]" * 976, b"]" * 20_000)
        others = [document(n) for n in range(100) if n not in (7, 99)]
        self.bus.send(part(*others[:50]), part(broken, *others[50:]))
        self.bus.send(encode_mark(Mark(5, 99, True)))
        await self.so(lambda: self.store.position() == ("another", 5))
        self.assertTrue(self.holds(*range(99)))  # the snapshot does not hold the last one
        self.assertEqual(len(self.store.aside()), 1)

    async def test_incomplete_snapshot(self) -> None:
        """
        A snapshot of which a frame is missing ends nothing, and is asked for again, at
        intervals that grow; the bridge says so.
        """
        bridge = await self.start()
        self.bus.send(batch(0, *map(document, range(100))))
        await self.so(lambda: self.holds(*range(100)))
        await self.another_journal("another")
        times = self.bus.subscriptions
        for count in range(3):
            self.bus.send(part(*map(document, range(50))), encode_mark(Mark(5, 100, True)))
            await self.so(lambda n=count: self.bus.attached(times + 1 + n))  # type: ignore[misc]
        self.assertEqual(self.store.position(), ("hostile", 100))
        self.assertTrue(self.holds(*range(100)))
        await bridge.saw("is incomplete: 50 of its 100 items came", times=3)
        self.bus.send(part(*map(document, range(50))), encode_mark(Mark(5, 50, True)))
        await self.so(lambda: self.store.position() == ("another", 5))
        self.assertTrue(self.holds(*range(50)))

    async def test_damaged_byte(self) -> None:
        """
        One damaged byte costs a new bridge one of 50 indicators, and is reported.
        """
        bridge = await self.start(snapshot=30)
        documents = [document(n) for n in range(50)]
        documents[20] = documents[20].replace(b'"pattern":"', b'"pattern":\xff', 1)
        self.bus.send(part(*documents), encode_mark(Mark(0, 50, False)))
        await self.so(lambda: self.store.position() == ("hostile", 0))
        self.assertTrue(self.holds(*(n for n in range(50) if n != 20)))
        await bridge.saw("The snapshot is complete: 50 items, 1 of them set aside")
        await bridge.saw("items could not be handled so far, and were set aside")
        await self.so(
            lambda: (
                self.bus.asked("heartbeat")[-1]["report"]["store"]["set_aside"].get("count") == 1
            )
        )

    async def test_unreadable_frame(self) -> None:
        """
        A frame of which nothing can be read is asked for once more, and then passed over.
        """
        bridge = await self.start()
        for times in (1, 2):
            if times == 1:
                self.bus.send(batch(0, document(1)))
            self.bus.send(b"batch \xff\xfe not even the range", batch(3, document(4)))
            if times == 1:
                await self.so(lambda: self.bus.attached(2))
                self.assertEqual(self.bus.asked("subscribe")[-1]["resume"]["number"], 1)
        await self.so(lambda: self.store.position() == ("hostile", 4))
        self.assertTrue(self.holds(1, 4))
        await bridge.saw("the bus does not send the numbers from 2 to 3")
        self.assertEqual(self.bus.subscriptions, 2)

    async def test_any_bytes(self) -> None:
        """
        No bytes stop the bridge, end what it has, or fill its log.
        """
        bridge = await self.start()
        self.bus.send(batch(0, *map(document, range(20))))
        await self.so(lambda: self.holds(*range(20)))
        rng = random.Random(14)
        good = [batch(20, *map(document, range(20, 25))), part(document(30)), b"mark {}"]
        for _ in range(3000):
            frame = bytearray(rng.choice(good))
            for _ in range(rng.randrange(1, 4)):
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            self.bus.send(bytes(frame[: rng.choice((None, rng.randrange(len(frame))))]))
        self.bus.send_raw([b""], [self.bus.topic.encode()], [self.bus.topic.encode(), b"x"])
        answers = [
            b"",
            b"{}",
            b"[]",
            b"\xff",
            b'{"status":1}',
            b'{"topic":"x","pub_port":-1}',
            b'{"status":"success","topic":"t","pub_port":99999999999,"sub_port":1}',
            b'{"outcomes":[1],"reasons":{"x":"y"}}',
            b"[" * 100_000,
            b"9" * 5000,
        ]
        for action in ("heartbeat", "subscribe"):
            self.bus.answers[action] = lambda request: rng.choice(answers)
            asked = len(self.bus.asked(action))
            await self.so(lambda a=action, n=asked: len(self.bus.asked(a)) >= n + 3)  # type: ignore[misc]
        self.bus.answers.clear()
        # Whatever it took for an item, none of the first 20 has ended.
        times = self.bus.subscriptions
        await self.so(lambda: self.bus.attached(times + 1))
        self.assertLessEqual(set(map(indicator_id, range(20))), self.store.ids())
        resume = self.bus.asked("subscribe")[-1]["resume"]["number"]
        self.bus.send(batch(resume, document(99)))
        await self.so(lambda: indicator_id(99) in self.store.ids())
        self.assertIsNone(bridge.status)
        self.assertLess(len(bridge.lines), 190)  # the log has room for 200
        self.assertNotIn("Traceback", bridge.output)


class SizeTests(ServicesTestCase):
    """
    Messages as long as they may be.
    """

    timeout = 240

    def setUp(self) -> None:
        require_tenzir(self)

    async def start(self, limit: int = 10 << 20, live: bool = True) -> None:
        self.bus: RunningPlugin = self.plugin(
            config(self.directory(), "plugin", max_message_bytes=limit)
        )
        self.state = self.directory()
        self.receiver = self.bridge(
            self.bus.manage,
            "--retro-match=no",
            config(self.directory(), "bridge", max_message_bytes=limit),
            state=self.state,
            live=live,
        )
        await self.started(self.bus, self.receiver)
        self.store = StoreReader(self.state)

    async def test_publish_request(self) -> None:
        """
        A publish request of exactly C{max_message_bytes} is refused with a reason, or
        arrives; what follows it arrives, and the bridge is never cut off.
        """
        await self.start(SHORTEST_MESSAGE_LIMIT, live=False)
        missing = SHORTEST_MESSAGE_LIMIT - len(encode_publish([document(1, description="")]))
        request = encode_publish([document(1, description="x" * missing)])
        self.assertEqual(len(request), SHORTEST_MESSAGE_LIMIT)
        reply = await self.bus.ask(request)
        if reply["outcomes"] == ["refused"]:
            self.assertTrue(reply["reasons"]["0"])
        await self.bus.ask(encode_publish([document(2)]))
        await deferToThread(wait_until, lambda: indicator_id(2) in self.store.ids())
        self.assertEqual(indicator_id(1) in self.store.ids(), reply["outcomes"] == ["accepted"])
        self.assertNotIn("subscribing again", self.receiver.output)

    async def test_long_events(self) -> None:
        """
        An event of 12 MB, and more sightings than fit into one message, are all reported.
        """
        await self.start()
        client = RawClient(self.bus.manage.port)
        self.addCleanup(client.close)
        await deferToThread(client.subscribe, "stix2/sighting")
        indicator = indicator_document(1, pattern=f"[ipv4-addr:value = '{IP}']")
        await self.bus.ask(encode_publish([indicator]))
        await self.receiver.saw("The engine took 1 entries")
        long = {"event_type": "long", "src_ip": IP, "n": 0, "text": "x" * 12_000_000}
        await deferToThread(import_events, self.receiver.client, json.dumps(long), "ndjson")
        many = [{**long, "n": n, "text": "y" * 400_000} for n in range(1, 41)]
        text = "\n".join(map(json.dumps, many))
        await deferToThread(import_events, self.receiver.client, text, "ndjson")
        found: set[int] = set()
        while found != set(range(41)):
            _, sighting = await deferToThread(client.receive)
            context = sighting["x_threatbus_sighting_context"]
            found.add(context["n"])
            if context["n"] == 0:
                self.assertGreater(sighting["x_tbvast_context_left_out"], 11_000_000)
                self.assertEqual(context["event_type"], "long")
            else:
                self.assertEqual(len(context["text"]), 400_000)
        self.assertEqual(self.store.aside(), [])


class OutboxTests(HostileBusTestCase):
    """
    A sighting that the bus does not take.
    """

    async def test_poison(self) -> None:
        """
        It holds up none of the others; the log says that it waits.
        """
        bridge = await self.start(live=True)

        def publish(request: dict[str, Any]) -> bytes | None:
            contexts = [each["x_threatbus_sighting_context"] for each in request["documents"]]
            if any(context["n"] == 7 for context in contexts):
                return b'{"status":"error"}'
            return self.bus.answer(request)

        self.bus.answers["publish"] = publish
        self.bus.send(batch(0, indicator_document(1, pattern=f"[ipv4-addr:value = '{IP}']")))
        await bridge.saw("The engine took 1 entries")
        events = [{"event_type": "some", "src_ip": IP, "n": n} for n in range(30)]
        text = "\n".join(map(json.dumps, events))
        await deferToThread(import_events, bridge.client, text, "ndjson")

        def sighted() -> bool:
            published = list(self.bus.published)
            return {each["x_threatbus_sighting_context"]["n"] for each in published} == {
                n for n in range(30) if n != 7
            }

        await self.so(sighted)
        await bridge.saw("A sighting is not taken")


class UpstreamTests(ServicesTestCase):
    """
    A sighting that an upstream bus does not take.
    """

    timeout = 180

    async def test_poison(self) -> None:
        """
        It holds up none of the others, which are passed up once; one that the other bus
        refuses is set aside. After a kill the one that waits is offered again.
        """
        bus = HostileBus()
        self.addCleanup(bus.close)
        sightings = [json.loads(a_sighting(n).raw) for n in range(1, 40)]
        bad, refused = sightings[7]["id"], sightings[20]["id"]

        def publish(request: dict[str, Any]) -> bytes | None:
            ids = [each["id"] for each in request["documents"]]
            if bad in ids:
                return b'{"status":"error"}'
            bus.answer(request)
            outcomes = ["refused" if id == refused else "accepted" for id in ids]
            reasons = {n: "not of ours" for n, id in enumerate(ids) if id == refused}
            return encode_published(outcomes, reasons)

        def passed() -> list[str]:
            return [each["id"] for each in bus.published]

        bus.answers["publish"] = publish
        upstream = f"[{{threatbus: 127.0.0.1:{bus.manage_port}}}]"
        plugin = self.plugin(config(self.directory(), "plugin", upstream=upstream))
        await plugin.start()
        await deferToThread(bus.wait_for, bus.attached)
        await plugin.ask(encode_publish([json.dumps(each).encode() for each in sightings]))
        others = {each["id"] for each in sightings} - {bad}
        await deferToThread(wait_until, lambda: set(passed()) >= others)
        self.assertEqual(sorted(passed()), sorted(others))
        await plugin.saw("A sighting is not taken")
        aside = (await plugin.ask(encode_status()))["set_aside"]
        self.assertEqual((aside["count"], "not of ours" in aside["newest"]), (1, True))
        plugin.signal("KILL")
        await plugin.wait()
        bus.published.clear()
        del bus.answers["publish"]
        again = self.ending(plugin.again())
        await again.start()
        await deferToThread(wait_until, lambda: bad in passed())


class LostStoreTests(ServicesTestCase):
    """
    The bridge's store is deleted between two runs.
    """

    timeout = 180

    async def test_deleted(self) -> None:
        """
        The bridge says so, and makes it anew from the bus, however old the indicators
        are, with the engine as it should be.
        """
        require_tenzir(self)
        plugin = self.plugin()
        state = self.directory()
        options = ("--retro-match=no", "--snapshot=0")
        bridge = self.bridge(plugin.manage, *options, live=False, state=state)
        await self.started(plugin, bridge)
        store = StoreReader(state)
        await plugin.ask(encode_publish([document(n) for n in range(20)]))
        await deferToThread(wait_until, lambda: len(store.ids()) == 20)
        await bridge.stop()
        for name in ("bridge.db", "bridge.db-wal", "bridge.db-shm"):
            (state / name).unlink(missing_ok=True)
        again = bridge.again()
        self.ending(again)
        await self.started(again)
        await again.saw("is gone: a new one was made, which the bus fills")
        await again.saw("with everything that is in force")
        await again.saw("The snapshot is complete: 20 items")
        await deferToThread(wait_until, lambda: len(store.ids()) == 20)
        await again.saw("The engine took 20 entries")
