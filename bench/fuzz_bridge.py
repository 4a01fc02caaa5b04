"""
A bridge, and a bus that says what no bus should say.

C{python -m bench.fuzz bridge} starts a bridge with a real engine at a bus of the bench's own.
That has a journal, in which good indicators stand among hostile ones and among items that
are damaged in one place, and which it sends, truly numbered, to whoever subscribes; between
its frames it sends others, whose numbers go back or ahead, of the old dialect, snapshots and
marks that nobody asked for, and noise; its replies are, now and then, none. A snapshot of
everything comes, too: twice so that it cannot be complete, and then whole.

At the end every good indicator in force has to be in the engine, and no other good one, and
each event that holds one must have been reported once; bridge, the process of its store, and
its engine are those that they were, and no larger than they may be.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.engine import Node, flow
from bench.fuzz import TURN, memory_lines, resident, show, verdict
from bench.hostile import GOOD, Damage, Good, Hostile, line
from bench.ledger import LENGTH, SHOWN
from devtools.services import free_ports, twistd
from tests.functional.blocking import BlockingProcess
from tests.functional.components import alive, children
from tests.functional.hostile_bus import HostileBus

IN_FLIGHT = 10_000
"""
The most numbers that the bridge may be behind before more is sent.
"""

STALLED = 60.0
"""
Seconds after which something that did not happen never will.
"""

ODD_REPLIES = 5.0
"""
Seconds, at least, between replies that are none; each costs the bridge a moment.
"""

EVENTS = 20
"""
Events that are imported at a time, each with one good indicator's address.
"""

EVENT_INTERVAL = 3.0
"""
Seconds between them.
"""

KEPT = 50_000
"""
Items of the journal that can be sent again.
"""

SNAPSHOTS = 3
"""
How many snapshots of everything the bus sends, the last one whole.
"""

_NAMED = re.compile(
    rb'"type":"indicator","spec_version":"2.1","id":"indicator--[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"'
)


class JournalBus(HostileBus):
    """
    A bus with a journal.

    @ivar head: The number of its last item.
    @ivar began: Where the newest subscription began; C{-1} for a snapshot.
    @ivar first: Whether it is of somebody who was not here before.
    @ivar odd: What replies next to an action, once.
    @ivar snapshot: Whether the next subscriber gets a snapshot.
    @ivar claims: What subscribers said that they have, and where the bus was then.
    """

    def __init__(self) -> None:
        self.head = 0
        self.began = 0
        self.first = True
        self.odd: dict[str, bytes | None] = {}
        self.snapshot = False
        self.claims: list[tuple[int, int]] = []
        super().__init__()
        for action in ("subscribe", "heartbeat", "publish"):
            self.answers[action] = self._reply

    def _reply(self, request: dict[str, Any]) -> bytes | None:
        action = request["action"]
        if action in self.odd:
            return self.odd.pop(action)
        if action == "heartbeat" and request.get("topic") != self.topic:
            return b'{"status":"error"}'
        if action != "subscribe":
            return self.answer(request)
        resume = request.get("resume") or {}
        if resume:
            self.claims.append((resume["number"], self.head))
        if self.snapshot and resume:
            self.resumes, self.number, self.began = False, self.head, -1
        else:
            self.resumes, self.number = True, 0
            self.began = resume.get("number", 0)
        self.first = not resume
        return self.answer(request)


class BridgeRun:
    """
    One run against one bridge.

    @ivar sent: Messages, by kind.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.sent: Counter[str] = Counter()
        self.problems: list[str] = []
        self.sizes: dict[str, list[int]] = {"bridge": [], "store": []}
        self._random = random.Random(seed)
        self._hostile = Hostile(self._random)
        self._damage = Damage(self._random)
        self._good = Good(self._random, time.time() - 100_000.0)
        self.bus = JournalBus()
        (engine,) = free_ports(1)
        state = folder / "bridge"
        config = folder / "tap.conf"
        settings = {
            "threatbus": f"127.0.0.1:{self.bus.manage_port}",
            "state_dir": str(state),
            "vast_listen": f"127.0.0.1:{engine}",
            "heartbeat": 1.0,
            "snapshot": 30,
            "retro_match_max_events": 0,
        }
        config.write_text(json.dumps({"bridge": settings}))
        self._store = state / "bridge.db"
        self.node = Node(state / "client" / "client.yaml")
        self.bridge = BlockingProcess(twistd("tbvast-bridge", f"--config={config}"), folder)
        self._journal: dict[int, bytes] = {}
        self._places: dict[str, int] = {}
        self._in_force: dict[str, dict[str, Any]] = {}
        self._gone: set[str] = set()
        self._topic = ""
        self._at = 0
        self._flows = 0
        self.expected: dict[tuple[str, int], int] = {}
        self._odd_at = self._event_at = time.monotonic()
        self._snapshots = 0
        self._asked = 0
        self.bridge.saw("The live match is running")
        self._family = sorted(children(self.bridge.pid))
        self._node_pid = next(pid for pid in self._family if "tenzir" in command(pid))
        self._keeper = next(
            pid for pid in self._family if pid != self._node_pid and "python" in command(pid)
        )

    # What the bus says

    def _append(self, item: bytes) -> None:
        number = self.bus.head + 1
        self._journal[number] = item
        self._journal.pop(number - KEPT, None)
        self.bus.head = number

    def _append_good(self) -> None:
        way = self._random.random()
        document: dict[str, Any]
        if self._in_force and way < 0.1:
            id = self._random.choice(list(self._in_force)[:500])
            document = {**self._in_force.pop(id), "modified": self._good.time()}
            self._gone.add(id)
            self._expired(id)
            document |= {"revoked": True} if way < 0.05 else {"x_threatbus_update": "REMOVE"}
        else:
            document = self._good.indicator()
            self._in_force[document["id"]] = document
        raw = line(document)
        self._places[document["id"]] = self.bus.head + 1
        self._append(b'[%d,"indicator",%b]' % (self.bus.head + 1, raw))
        self.sent["good"] += 1

    def _expired(self, id: str) -> None:
        # Whether an event of before is still reported is a matter of chance.
        self._places.pop(id, None)

    def _append_hostile(self) -> None:
        raw = self._hostile.document()
        way = self._random.random()
        kind = b"sighting" if b'"type":"sighting"' in raw else b"indicator"
        if way < 0.1:
            kind = self._random.choice(
                (b"indicator", b"sighting", b"", b"malware", b"\\u0000", b"x" * 99)
            )
        number = self.bus.head + 1
        item = b'[%d,"%b",%b]' % (number, kind, raw)
        if way > 0.9:
            item = self._random.choice(
                (
                    b"null", b"[]", b"{}", b"1", b'[%d]' % number, b'[%d,"indicator"]' % number,
                    b'["x","indicator",%b]' % raw, b'[%d,1,%b]' % (number, raw),
                    b'[%d,"indicator",%b,1]' % (number, raw), b'[-1,"indicator",%b]' % raw,
                    b'[%d,"indicator",%b]' % (number + 5, raw), b'[1e400,"indicator",%b]' % raw,
                    b'[%d,"indicator","%b"]' % (number, b"x" * 100), b'[%d,null,null]' % number,
                    b'[%b,"indicator",%b]' % (b"9" * 5000, raw),
                )
            )  # fmt: skip
        elif way > 0.87:
            # One byte that no JSON has, within a text: where the item ends can be told.
            item = item.replace(b'"spec_version":"2', b'"spec_version":"' + self._random.choice(
                (b"\xff", b"\x01", b"\\x", b"\\u12", b"\xc3(", b"\xed\xa0\x80")
            ), 1)  # fmt: skip
        self._append(item)
        self.sent["items"] += 1

    def _say(self, tail: bytes) -> None:
        """
        Send a frame to the subscription that is followed.
        """
        self.bus.send_raw([self._topic.encode() + tail])

    def _follow(self) -> None:
        """
        Send the newest subscription what it lacks.
        """
        bus = self.bus
        if bus.topic != self._topic:
            topic = bus.topic
            deadline = time.monotonic() + 10.0
            while topic.encode() not in bus.listening:
                if bus.topic != topic or time.monotonic() > deadline:
                    return
                time.sleep(0.005)
            self._topic = topic
            if bus.began < 0:
                self._send_snapshot()
                self._at = bus.number
            else:
                self._at = bus.began
                if bus.first:  # who waits for a snapshot; there is nothing in it
                    self._say(b'mark {"number":0,"count":0,"full":false,"failed":[]}')
            if self._at + KEPT < bus.head:
                raise AssertionError(f"the bridge went back to {self._at:,}")
        while self._at < bus.head:
            until = min(bus.head, self._at + self._random.choice((1, 5, 20, 100)))
            items = b",".join([self._journal[n] for n in range(self._at + 1, until + 1)])
            self._say(b'batch {"after":%d,"until":%d,"items":[%b]}' % (self._at, until, items))
            self._at = until

    def _send_snapshot(self) -> None:
        self._snapshots += 1
        self.sent["snapshots"] += 1
        whole = self._snapshots >= SNAPSHOTS
        items = [
            b'[%d,"indicator",%b]' % (self.bus.number, line(document))
            for document in self._in_force.values()
        ]
        # What is wrong there costs nothing else, either, as long as it can be named; of
        # what has no id, nobody knows what it should keep in force.
        named = filter(_NAMED.search, (self._hostile.document() for _ in range(len(items) // 4)))
        items += [b'[%d,"indicator",%b]' % (self.bus.number, raw) for raw in named]
        self._random.shuffle(items)
        kept = items if whole else items[: len(items) // 2]
        for start in range(0, len(kept), 100):
            self._say(b'snapshot {"items":[%b]}' % b",".join(kept[start : start + 100]))
        self._say(
            b'mark {"number":%d,"count":%d,"full":true,"failed":[]}' % (self.bus.number, len(items))
        )
        # One that cannot be complete is asked for again.
        self.bus.snapshot = not whole

    def _hostile_frame(self) -> None:
        """
        A frame between those of the journal.
        """
        raw = self._hostile.document()
        at, way = self._at, self._random.random()
        self.sent["frames"] += 1
        if way < 0.25:
            self._say(self._random.choice((b"indicator ", b"sighting ")) + raw)
        elif way < 0.4:
            self._say(self._damage.noise())
        elif way < 0.55:
            parts = self._damage.parts(lambda: b"batch " + raw)
            self.bus.send_raw([self._topic.encode() + parts[0], *parts[1:]])
        elif way < 0.7:
            kind = self._random.choice(
                (b"batc", b"snapshotrequest", b"Batch", b"", b"marks", b"\0")
            )
            self._say(kind + b" " + raw)
        elif way < 0.85:
            self._say(b"snapshot " + self._random.choice((
                b'{"items":[[1,"indicator",%b]]}' % raw, b'{"items":null}', b"{}", b"[]", raw,
                b'{"items":[[1,"indicator",%b' % raw, b'{"items":[%b]}' % (b"[" * 900 + b"]" * 900),
            )))  # fmt: skip
        elif way < 0.999:
            self._say(b"mark " + self._random.choice((
                b"{}", b"null", b'{"number":"x"}', b'{"number":%d}' % at,
                b'{"number":1e400,"count":0,"full":true}',
                b'{"number":%d,"count":-1,"full":true}' % at,
                b'{"number":null,"count":1,"full":true}', raw,
            )))  # fmt: skip
        else:
            # These cannot be passed over: what they are of may be missing.
            self.sent["gaps"] += 1
            item = b'[%d,"indicator",%b]' % (at + 1, raw)
            self._say(b"batch " + self._random.choice((
                b'{"after":%d,"until":%d,"items":[%b]}' % (at + 7, at + 8, item),
                b'{"after":%d,"until":%d,"items":[%b]}' % (max(0, at - 5), at, item),
                b'{"after":%d,"until":%d,"items":[%b]}' % (at, at - 9, item),
                b'{"after":-1,"until":-1,"items":[]}', b'{"after":%d,"until":%d' % (at, at + 1),
                b'{"after":%b,"until":%b,"items":[]}' % (b"9" * 30, b"9" * 30),
                b'{"after":1e400,"until":1,"items":[]}', b'{"items":[%b]}' % item, b"null", b"[]",
                b'{"after":"%d","until":"%d","items":[]}' % (at, at + 1),
                b'{"after":%d,"until":%d,"items":{}}' % (at, at),
                b'mark {"number":%d,"count":7,"full":true,"failed":[]}' % (at + 9),
            )))  # fmt: skip

    def _odd_reply(self) -> None:
        if time.monotonic() - self._odd_at < ODD_REPLIES:
            return
        self._odd_at = time.monotonic()
        self.sent["odd replies"] += 1
        bus = self.bus
        action = self._random.choice(("subscribe", "heartbeat", "publish", "publish"))
        port = b'"topic":"t","pub_port":%b,"sub_port":1,"status":"success"'
        bus.odd[action] = self._random.choice(
            (
                b"", b"null", b"[]", b'{"status":"error"}', b'{"status":"error","reason":1e400}',
                b"Success", b"\xff\xfe", self._damage.noise(), b"{" + port % b'"x"' + b"}",
                b"{" + port % b"-1" + b"}", b"{" + port % b"99999999999999999999" + b"}",
                b'{"a":' * 900,
                b'{"status":"success"}' if action != "heartbeat" else b"{}",
                b'{"status":"success","outcomes":["accepted"]}' if action != "publish" else b"{}",
                b'{"status":"success","outcomes":[1e400]}',
                b'{"status":"success","outcomes":[],"reasons":1}',
            )
        )  # fmt: skip
        if action == "heartbeat" and self._random.random() < 0.3:
            bus.odd[action] = b'{"status":"error"}'  # it has forgotten the subscription
        elif self._random.random() < 0.05:
            bus.odd[action] = None  # it does not reply
        if action != "heartbeat" and self._random.random() < 0.5:
            bus.odd.setdefault("heartbeat", b'{"status":"error"}')

    def _ask_for_snapshot(self, done: float) -> None:
        """
        @param done: How much of the run is over.
        """
        if not self.bus.snapshot and done * (SNAPSHOTS + 1) > self._asked + 1:
            self._asked += 1
            self.bus.snapshot = True
            self.bus.odd["heartbeat"] = b'{"status":"error"}'

    def _events(self) -> None:
        if time.monotonic() - self._event_at < EVENT_INTERVAL:
            return
        self._event_at = time.monotonic()
        self._import(EVENTS)

    def _import(self, count: int) -> None:
        """
        Have events happen; whether the indicator, or its event, comes first is the same.
        """
        addresses = [
            (id, value)
            for id, document in self._in_force.items()
            if (value := document["pattern"].split("'")[1]).startswith("10.")
        ]
        events = []
        for id, address in self._random.sample(addresses, min(count, len(addresses))):
            self._flows += 1
            events.append(flow(self._flows, address))
            self.expected[id, self._flows] = self.bus.head
        if events and not self.node.import_events(events):
            self.problems.append("the engine did not take events")

    # The run

    def _applied(self) -> int:
        try:
            with sqlite3.connect(f"file:{self._store}?mode=ro", uri=True) as db:
                ((number,),) = db.execute("SELECT number FROM position")
        except sqlite3.Error:
            return 0
        return number or 0

    def send(self, messages: int, deadline: float) -> None:
        """
        @param deadline: When to end before all are sent, as C{time.monotonic()} says.
        """
        while self.hostile < messages:
            if time.monotonic() > deadline:
                self.problems.append("it took too long")
                break
            for _ in range(min(TURN, messages - self.hostile)):
                if self._random.random() < 0.04:
                    self._append_good()
                if self._random.random() < 0.75:
                    self._append_hostile()
                else:
                    self._hostile_frame()
            self._odd_reply()
            self._ask_for_snapshot(self.hostile / messages)
            self._events()
            self._until(lambda: self.bus.head - self._applied() <= IN_FLIGHT)
        self.bus.odd.clear()
        self._until(lambda: self._applied() >= self.bus.head)

    @property
    def hostile(self) -> int:
        """
        How many hostile messages, and items, were sent.
        """
        return self.sent["frames"] + self.sent["items"]

    def _until(self, condition: Any, limit: float = STALLED) -> None:
        moved, before = time.monotonic(), self._applied()
        while True:
            self._follow()
            if condition():
                return
            if not self.bridge.alive:
                raise AssertionError("the bridge has ended")
            if (now := self._applied()) != before:
                moved, before = time.monotonic(), now
            if time.monotonic() - moved > limit:
                raise AssertionError(
                    f"the bridge does not go on behind {before:,} of {self.bus.head:,}"
                )
            self._measure()
            time.sleep(0.05)

    def _measure(self) -> None:
        self.sizes["bridge"].append(resident(self.bridge.pid))
        self.sizes["store"].append(resident(self._keeper))

    def reported(self) -> Counter[tuple[str, int]]:
        """
        The sightings of good indicators that the bus has taken, each id once.
        """
        found = {}
        for document in list(self.bus.published):
            if document.get("sighting_of_ref", "").find(GOOD.decode()) > 0:
                flow_id = document["x_threatbus_sighting_context"]["flow_id"]
                found[document["id"]] = document["sighting_of_ref"], flow_id
        return Counter(found.values())

    def settle(self) -> None:
        """
        Wait for the last of it, and see what is missing.
        """
        wanted: dict[tuple[str, str], str] = {}
        for id, document in self._in_force.items():
            for each in document["pattern"].split(" OR "):
                value = each.split("'")[1].removeprefix("http://")
                wanted[id, value] = id

        def good() -> Counter[tuple[str, str]]:
            held = self.node.held() or Counter()
            return Counter({key: n for key, n in held.items() if GOOD.decode() in key[0]})

        deadline = time.monotonic() + STALLED
        held = good()
        while set(held) != set(wanted) and time.monotonic() < deadline:
            self._follow()
            time.sleep(1.0)
            held = good()
        self._import(5 * EVENTS)
        lost = [key for key in wanted if key not in held]
        self._tell("in the engine", [key[0] for key in lost], len(wanted))
        surplus = [key for key in held if key not in wanted]
        if surplus:
            self.problems.append(
                f"{len(surplus):,} that are over are in the engine: {surplus[:SHOWN]}"
            )
        deadline = time.monotonic() + STALLED

        def missing() -> list[tuple[str, int]]:
            # An event of an indicator that was removed soon after may go either way.
            reported = self.reported()
            return [
                key for key in self.expected if key not in reported and key[0] in self._in_force
            ]

        while missing() and time.monotonic() < deadline:
            self._follow()
            time.sleep(0.5)
        self._tell("sighted", [f"{id} by event {n}" for id, n in missing()], len(self.expected))
        self.doubled = {key: n for key, n in self.reported().items() if n > 1}
        if self.doubled:
            self.problems.append(
                f"{len(self.doubled):,} sighted twice: {list(self.doubled)[:SHOWN]}"
            )
        self.lost = len(lost), len(missing())

    def _tell(self, where: str, lost: list[str], due: int) -> None:
        if not lost:
            return
        self.problems.append(
            f"{len(lost):,} of {due:,} good ones not {where}, the first: {lost[0]}"
        )
        place = self._places.get(lost[0].split(" ")[0])
        if place is not None:
            self.problems += [
                f"  {'>' if number == place else ' '} {number}: {self._journal[number][:LENGTH]!r}"
                for number in range(place - SHOWN, place + SHOWN + 1)
                if number in self._journal
            ]

    def check(self, limit: int) -> None:
        """
        Collect what else is wrong.

        @param limit: The most bytes of memory of each process.
        """
        ahead = [claim for claim in self.bus.claims if claim[0] > claim[1]]
        if ahead:
            self.problems.append(f"the bridge claims numbers that nobody sent: {ahead[:SHOWN]}")
        if not self.bridge.alive:
            self.problems.append("the bridge has ended")
        for name, pid in (
            ("the process of the store", self._keeper),
            ("the engine", self._node_pid),
        ):
            if not alive(pid):
                self.problems.append(f"{name} has ended")
        for name, sizes in self.sizes.items():
            if sizes and max(sizes) > limit:
                self.problems.append(f"the {name} took {max(sizes) / 2**20:,.0f} MiB")
        log = self.bridge.log
        if traces := log.count("Traceback"):
            start = max(0, log.index("Traceback") - 300)
            text = log[start : start + 1800]
            self.problems.append(f"{traces} tracebacks in the log, the first:\n{text}")

    def close(self) -> None:
        self.bridge.stop()
        self.bus.close()


def command(pid: int) -> str:
    """
    A process's command line.
    """
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def attack_bridge(folder: Path, options: Any) -> int:
    """
    @return: The exit status.
    """
    began = time.monotonic()
    run = BridgeRun(folder, options.seed)
    seconds = 0.0
    try:
        run.send(options.messages, began + options.limit)
        seconds = time.monotonic() - began
        run.settle()
    except AssertionError as e:
        seconds = seconds or time.monotonic() - began
        run.problems.append(f"failed after {run.hostile:,} messages: {e}")
    run.check(options.memory << 20)
    run.close()
    if options.log:
        options.log.write_text(run.bridge.log)
    rows = [(kind, f"{count:,}") for kind, count in sorted(run.sent.items())]
    rows += [
        ("hostile, all", f"{run.hostile:,}"),
        ("seconds", f"{seconds:,.1f}"),
        ("messages per second", f"{run.hostile / seconds:,.0f}"),
        ("subscriptions", f"{run.bus.subscriptions:,}"),
        ("sightings", f"{len(run.expected):,} due, {len(run.reported()):,} reported"),
        *memory_lines(run.sizes),
    ]
    show(rows)
    return verdict(run.problems)
