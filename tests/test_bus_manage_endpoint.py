"""
Tests for L{tbvast.bus.manage_endpoint}.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.access_control import AccessControl
from tbvast.bus.client_work import ClientWork
from tbvast.bus.ingest import REASONS, RETRY_DELAY, Intake
from tbvast.bus.journal.values import Outcome, Verdict
from tbvast.bus.manage_endpoint import ManageEndpoint
from tbvast.bus.snapshots import JournalSource
from tbvast.bus.statistics import Statistics
from tbvast.bus.unread_answers import CLIENT_BYTES, UnreadAnswers
from tbvast.protocol import manage
from tbvast.protocol.manage import PROTOCOL
from tbvast.values import Position
from tests.doubles import DAY, MemoryJournal, MemoryPub, MemorySource, a_sighting, an_indicator
from tests.doubles_bus import MemoryBus, MemorySub, clients_file

ERRORS_PER_MINUTE = 3
MAX_DAYS = 30
MAX_DOCUMENTS = 2000


class BreakableJournal(MemoryJournal):
    """
    @ivar broken: Whether it has a defect.
    """

    broken = False

    def counts(self) -> Deferred[dict[str, int]]:
        if self.broken:
            raise ZeroDivisionError
        return super().counts()


class ManageEndpointTestCase(SynchronousTestCase):
    """
    The dialogue of a bus without sockets.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000 * DAY)
        self.access = self.make_access()
        self.journal = BreakableJournal(self.clock, "bus")
        self.source = MemorySource("memory")
        self.bus = MemoryBus(
            self.clock,
            self.journal,
            MemoryPub(),
            None,
            [self.source, JournalSource(self.journal)],
            max_subscriptions=5,
            max_snapshot_days=MAX_DAYS,
            max_documents=MAX_DOCUMENTS,
            max_client_request_bytes=1 << 20,
            max_total_request_bytes=1 << 21,
            advertise="bus.example",
            pub=13371,
            sub=13372,
            errors_per_minute=ERRORS_PER_MINUTE,
        )
        self.subscriptions = self.bus.subscriptions
        self.statistics = Statistics(
            self.clock, self.journal, self.subscriptions.everybody, lambda: 0.25, lambda: (3, 10)
        )
        self.unread = UnreadAnswers()
        work = ClientWork(self.clock)
        self.intake = Intake(
            self.clock,
            work,
            self.journal,
            self.access,
            self.statistics,
            self.bus.deliver,
            self.bus.snapshots.answered,
            MemorySub(),
            ERRORS_PER_MINUTE,
        )
        self.dialogue = ManageEndpoint(
            self.bus.parts,
            work,
            self.access,
            self.subscriptions,
            self.intake,
            self.statistics,
            self.unread,
        )

    def make_access(self) -> AccessControl:
        return AccessControl(None)

    def received(self) -> Any:
        """
        The counts of the status.
        """
        return json.loads(self.successResultOf(self.statistics.report()))["received"]

    def ask(self, *frames: bytes, user: str = "") -> bytes:
        answer = self.dialogue.answer(frames, user)
        self.done()
        reply: bytes = self.successResultOf(answer)
        return reply

    def done(self) -> None:
        """
        Let the turns pass that some work takes.
        """
        for _ in range(100):
            self.clock.advance(0)

    def request(self, user: str = "", **request: Any) -> Any:
        """
        The reply to a request, of the stix2 dialect.
        """
        return json.loads(self.ask(json.dumps(request).encode(), user=user))

    def subscribe(self, topic: Any = "stix2/indicator", user: str = "", **more: Any) -> Any:
        return self.request(user, action="subscribe", topic=topic, **more)


class ReplyTests(ManageEndpointTestCase):
    """
    Every row of the manage table.
    """

    def test_subscribe(self) -> None:
        """
        The reply has the keys of both dialects, and a host that can be reached.
        """
        for topic, own in (
            ("stix2/indicator", r"^[a-z]{32}$"),
            (["stix2/indicator", "stix2/sighting"], r"^[a-z]{32}$"),
            ("threatbus/intel", r"^threatbus/intel[a-z]{10}$"),
            ("weather", r"^[a-z]{32}$"),
        ):
            with self.subTest(topic):
                reply = self.subscribe(topic, snapshot=1)
                self.assertRegex(reply.pop("topic"), own)
                self.assertEqual(
                    reply,
                    {
                        "pub_port": 13371,
                        "sub_port": 13372,
                        "pub_endpoint": "bus.example:13371",
                        "sub_endpoint": "bus.example:13372",
                        "status": "success",
                    },
                )

    def test_snapshot(self) -> None:
        """
        A snapshot of so many days is asked for; none if none is wanted.
        """
        now = self.clock.seconds()
        for days, since in ((7, [now - 7 * DAY]), (MAX_DAYS, [now - MAX_DAYS * DAY]), (0, [])):
            with self.subTest(days):
                self.source.asked.clear()
                self.subscribe(snapshot=days)
                self.assertEqual(self.source.asked, since)
        self.subscribe()
        self.assertEqual(self.source.asked, [])

    def test_long_snapshot(self) -> None:
        """
        More days than allowed are refused, with the reason; they are not cut in silence.
        """
        for days in (MAX_DAYS + 1, 1_000_000_000):
            reply = self.subscribe(snapshot=days)
            reason = f"snapshot: {days} is not at most {MAX_DAYS} days"
            self.assertEqual(reply, {"status": "error", "reason": reason})
        self.assertEqual(self.source.asked, [])
        self.assertEqual(len(self.bus.subscriptions.everybody()), 0)

    def test_heartbeat(self) -> None:
        """
        A heartbeat says whether the subscription is known.
        """
        topic = self.subscribe()["topic"]
        beat = functools.partial(self.request, action="heartbeat")
        self.assertEqual(beat(topic=topic), {"status": "success"})
        self.assertEqual(beat(topic=topic, report={"a": 1}), {"status": "success"})
        self.assertEqual(beat(topic="x" * 32), {"status": "error"})

    def test_unsubscribe(self) -> None:
        """
        So does an unsubscribe request, in the stix2 dialect.
        """
        topic = self.subscribe()["topic"]
        for status in ("success", "error"):
            self.assertEqual(self.request(action="unsubscribe", topic=topic), {"status": status})
        self.assertEqual(len(self.subscriptions), 0)

    def test_too_long(self) -> None:
        """
        A request above the limit is refused with its length, in one frame or in several.
        """
        longest = self.bus.parts.settings.max_message_bytes
        for frames in ([bytes(longest + 1)], [bytes(longest), b"x"]):
            self.assertEqual(
                json.loads(self.ask(*frames)),
                {
                    "status": "error",
                    "reason": f"request: {longest + 1} is not at most {longest} bytes",
                },
            )
        self.assertEqual(self.received()["request"]["refused"], 2)

    def test_unsubscribe_vast(self) -> None:
        """
        The vast dialect has one answer, which is not JSON.
        """
        topic = self.subscribe("threatbus/intel")["topic"]
        for _ in range(2):
            raw = json.dumps({"action": "unsubscribe", "topic": topic}).encode()
            self.assertEqual(self.ask(raw), b"Success")
        self.assertEqual(len(self.subscriptions), 0)

    def test_unknown(self) -> None:
        """
        An unknown request, or one without a topic, is answered with an error.
        """
        for request in (
            {},
            {"action": "dance", "topic": "stix2/indicator"},
            {"action": "subscribe"},
            {"topic": "stix2/indicator"},
            {"action": "heartbeat"},
            {"action": 7, "topic": "stix2/indicator"},
        ):
            with self.subTest(request):
                self.assertEqual(self.request(**request), {"status": "unknown request"})
        self.assertEqual(
            self.ask(b'{"action":"dance","topic":"threatbus/intel"}'), b"Unknown request"
        )

    def test_broken(self) -> None:
        """
        A message that is no request gets an error; it is counted, and logged a limited number
        of times a minute.
        """
        broken = [
            b"",
            b"subscribe",
            b"[]",
            b"7",
            b"\xff",
            b"[" * 100_000,
            b'{"action":"subscribe","topic":7}',
            b'{"action":"subscribe","topic":"stix2/indicator","snapshot":"x"}',
            b'{"action":"subscribe","topic":"stix2/indicator","snapshot":1.5}',
            b'{"action":"subscribe","topic":"stix2/indicator","snapshot":-1}',
            b'{"action":"publish","documents":7}',
        ]
        with capturedLogs() as events:
            for raw in broken:
                with self.subTest(raw[:80]):
                    self.assertEqual(self.ask(raw), b'{"status":"error"}')
        self.assertEqual(len(events), ERRORS_PER_MINUTE)
        self.assertEqual(self.received()["request"]["refused"], len(broken))
        self.assertEqual(len(self.subscriptions), 0)

    def test_in_order(self) -> None:
        """
        The requests of one peer are answered in order; another peer does not wait for them.
        """
        unknown = b'{"action":"dance"}'
        replies: list[tuple[bytes, bytes]] = []
        for peer, raw in ((b"1", b"x"), (b"1", unknown), (b"1", b""), (b"2", unknown)):
            answer = self.dialogue.answer([raw], "", peer)
            answer.addCallback(lambda reply, peer: replies.append((peer, reply)), peer)
        refused, strange = b'{"status":"error"}', b'{"status":"unknown request"}'
        self.assertEqual(replies, [(b"2", strange)])
        self.done()
        self.assertEqual(replies[1:], [(b"1", refused), (b"1", strange), (b"1", refused)])
        self.assertEqual(self.successResultOf(self.dialogue.answer([unknown], "", b"1")), strange)

    def test_several_frames(self) -> None:
        """
        The frames of one message are one request; no frame at all is none.
        """
        self.assertEqual(self.ask(b'{"action":"sta', b"", b'tus"}')[:1], b"{")
        self.assertEqual(self.ask(), b'{"status":"error"}')

    @given(st.lists(st.binary(), max_size=3) | st.builds(lambda text: [text.encode()], st.text()))
    def test_any_bytes(self, frames: list[bytes]) -> None:
        """
        There is a reply to any bytes.
        """
        self.setUp()
        self.assertNotEqual(self.ask(*frames), b"")

    @given(
        st.dictionaries(
            st.sampled_from(
                ["action", "topic", "snapshot", "protocol", "name", "resume", "report", "documents"]
            ),
            st.sampled_from(
                ["subscribe", "unsubscribe", "heartbeat", "publish", "status", PROTOCOL]
            )
            | st.sampled_from(["stix2/indicator", "threatbus/intel", ""])
            | st.sampled_from([None, 0, 3, -1, 1.5, True])
            | st.lists(st.sampled_from(["stix2/indicator", 1, {}, an_indicator().raw.decode()]))
            | st.fixed_dictionaries({"plugin": st.text(), "number": st.integers()}),
        )
    )
    def test_any_request(self, request: dict[str, Any]) -> None:
        """
        There is a reply to any object.
        """
        self.setUp()
        self.assertNotEqual(self.ask(json.dumps(request).encode()), b"")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_too_many(self) -> None:
        """
        Beyond the limit a subscription is refused.
        """
        for _ in range(5):
            self.subscribe()
        reason = "subscriptions: 5 is not less than the limit, 5"
        self.assertEqual(self.subscribe(), {"status": "error", "reason": reason})

    def test_defect(self) -> None:
        """
        There is a reply even if the bus has a defect.
        """
        self.journal.broken = True
        self.assertEqual(self.request(action="status"), {"status": "error"})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class PublishTests(ManageEndpointTestCase):
    """
    Publishing by request.
    """

    def publish(self, *documents: bytes, user: str = "") -> manage.Published:
        return manage.decode_published(self.ask(manage.encode_publish(documents), user=user))

    def test_outcomes(self) -> None:
        """
        The reply has one outcome for each document, and the reasons of refusals.
        """
        reply = self.publish(an_indicator(1).raw, b"{}", an_indicator(1).raw, a_sighting(1).raw)
        self.assertEqual(reply.outcomes, ["accepted", "refused", "repeated", "accepted"])
        self.assertEqual(list(reply.reasons), [1])
        self.assertEqual(self.journal.head, 2)
        self.assertEqual(self.publish().outcomes, [])

    def test_set_aside(self) -> None:
        """
        The reply says of a document that it was set aside.
        """
        item = a_sighting(1)
        self.patch(self.journal, "append", lambda *_: succeed([Outcome(Verdict.REFUSED, 0, item)]))
        reply = self.publish(item.raw)
        self.assertEqual(reply.outcomes, ["refused"])
        self.assertIn("set aside", reply.reasons[0])

    def test_reply_waits(self) -> None:
        """
        The reply comes when the documents are durable.
        """
        self.journal.holding = True
        reply: Deferred[bytes] = self.dialogue.answer([manage.encode_publish([a_sighting().raw])])
        self.clock.advance(0)
        self.assertNoResult(reply)
        self.journal.release()
        self.assertEqual(
            manage.decode_published(self.successResultOf(reply)).outcomes, ["accepted"]
        )

    def test_too_many(self) -> None:
        """
        A request with too many documents is refused, with the limit.
        """
        reply = json.loads(self.ask(manage.encode_publish([b"0"] * (MAX_DOCUMENTS + 1))))
        self.assertEqual(
            reply["reason"],
            f"documents: 'more than {MAX_DOCUMENTS}' is not at most {MAX_DOCUMENTS} in one request",
        )

    def test_reasons(self) -> None:
        """
        The reply has a bounded number of reasons, and all outcomes.
        """
        reply = self.publish(*[b"0"] * MAX_DOCUMENTS)
        self.assertEqual(reply.outcomes, ["refused"] * MAX_DOCUMENTS)
        self.assertEqual(list(reply.reasons), list(range(REASONS)))

    def test_unread(self) -> None:
        """
        A client that does not read its long answers gets no others, and is told why. What it
        publishes then is not taken. Its heartbeats, and others, are answered.
        """
        topic = self.subscribe(user="one")["topic"]
        read: list[bool] = []
        self.unread.sent("one", CLIENT_BYTES + 1, lambda: bool(read))
        document = an_indicator().raw.decode()
        for request in (
            {"action": "status"},
            {"action": "publish", "documents": [document]},
        ):
            reply = self.request("one", **request)
            self.assertIn(f"is not at most {CLIENT_BYTES} bytes for one client", reply["reason"])
        self.assertEqual(self.journal.head, 0)
        reply = self.request("one", action="heartbeat", topic=topic)
        self.assertEqual(reply, {"status": "success"})
        self.assertEqual(self.request("two", action="status")["status"], "success")
        read.append(True)
        self.assertEqual(self.request("one", action="status")["status"], "success")

    def test_unread_meanwhile(self) -> None:
        """
        So does one whose answer has become too long to wait for it, too.
        """
        self.journal.holding = True
        answer = self.dialogue.answer([manage.encode_publish([b"0"] * 200 + [a_sighting().raw])])
        self.done()
        self.unread.sent("", CLIENT_BYTES, lambda: False)
        self.journal.release()
        reply = json.loads(self.successResultOf(answer))
        self.assertIn(f"is not at most {CLIENT_BYTES} bytes for one client", reply["reason"])

    def hold(self, user: str, size: int) -> Deferred[bytes]:
        """
        Ask for something that waits for the journal.
        """
        document = an_indicator(size, description="x" * size).raw
        answer = self.dialogue.answer([manage.encode_publish([document])], user)
        self.done()
        return answer

    def test_one_client(self) -> None:
        """
        The requests of one client that wait are limited. It is told so, and others are answered;
        so are its heartbeats.
        """
        self.journal.holding = True
        waiting = [self.hold("one", size) for size in (500_000, 500_001)]
        refused = self.successResultOf(self.hold("one", 500_002))
        self.assertIn("is not at most 1048576 bytes for one client", json.loads(refused)["reason"])
        status = self.successResultOf(self.dialogue.answer([b'{"action":"status"}'], "one"))
        self.assertEqual(json.loads(status)["status"], "success")
        other = self.hold("other", 500_003)
        self.journal.holding = False
        self.journal.release()
        self.done()
        for each in (*waiting, other):
            self.assertEqual(json.loads(self.successResultOf(each))["status"], "success")
        self.journal.holding = True
        self.assertNoResult(self.hold("one", 500_004))
        self.journal.release()

    def test_all_clients(self) -> None:
        """
        So are those of all together, except for clients that have none.
        """
        self.journal.holding = True
        waiting = [self.hold(name, 700_000 + n) for n, name in enumerate("abc")]
        refused = self.successResultOf(self.hold("a", 200_000))
        self.assertIn("is not at most 2097152 bytes for all clients", json.loads(refused)["reason"])
        waiting.append(self.hold("d", 200_001))
        for each in waiting:
            self.assertNoResult(each)
        self.journal.holding = False
        self.journal.release()
        self.done()

    def test_long_alone(self) -> None:
        """
        A client's only request is answered, however long it is.
        """
        answer = self.hold("one", 1_040_000)
        self.assertEqual(json.loads(self.successResultOf(answer))["outcomes"], ["accepted"])

    def test_not_kept(self) -> None:
        """
        The reply says why nothing was accepted.
        """
        self.journal.failing = True
        reply = json.loads(self.ask(manage.encode_publish([a_sighting().raw])))
        self.assertEqual(reply, {"status": "error", "reason": "the disk refuses"})
        self.journal.failing = False
        self.clock.advance(RETRY_DELAY)


class ResumeTests(ManageEndpointTestCase):
    """
    Subscribers that speak tbvast/1.
    """

    def resume(self, number: int, plugin: str = "bus", **more: Any) -> Any:
        return self.subscribe(
            protocol=PROTOCOL, resume={"plugin": plugin, "number": number}, **more
        )

    def setUp(self) -> None:
        super().setUp()
        self.successResultOf(self.journal.append([an_indicator(n) for n in range(4)]))

    def beginning(self, reply: dict[str, Any]) -> Position:
        self.assertEqual((reply["status"], reply["protocol"]), ("success", PROTOCOL))
        return Position(reply["plugin"], reply["number"])

    def test_first(self) -> None:
        """
        The reply names the bus and the number after which everything is sent; the
        snapshot is the one that was asked for.
        """
        reply = self.subscribe(protocol=PROTOCOL, snapshot=7)
        self.assertEqual(self.beginning(reply), Position("bus", 4))
        self.assertEqual(self.source.asked, [self.clock.seconds() - 7 * DAY])

    def test_resumed(self) -> None:
        """
        A returning subscriber resumes after its number, without a snapshot.
        """
        self.assertEqual(self.beginning(self.resume(2, snapshot=7)), Position("bus", 2))
        self.assertEqual(self.source.asked, [])

    def test_not_resumed(self) -> None:
        """
        A subscriber of another journal, or one away for too long, gets everything that is in
        force.
        """
        self.journal.floor = 1
        for number, plugin in ((2, "other"), (0, "bus"), (5, "bus")):
            with self.subTest(number=number, plugin=plugin):
                self.source.asked.clear()
                self.assertEqual(self.beginning(self.resume(number, plugin)), Position("bus", 4))
                self.assertEqual(self.source.asked, [0.0])

    def test_refused(self) -> None:
        """
        A position that no journal can have is refused, with its field, its value and the limit.
        """
        largest = (1 << 53) - 1
        others: list[Any] = [-1, largest + 1, 1 << 62, 1 << 64, 10**30, 1.5, "1", None, True, []]
        for number in others:
            with self.subTest(number=number):
                reply = self.resume(number)
                self.assertEqual(reply["status"], "error")
                self.assertIn("resume.number: ", reply["reason"])
                self.assertIn(f" is not a whole number from 0 to {largest}", reply["reason"])
        for resume, field in (
            ([], "resume"),
            ("bus", "resume"),
            ({"number": 1}, "resume.plugin"),
            ({"plugin": "x" * 257, "number": 1}, "resume.plugin"),
            ({"plugin": "bus"}, "resume.number"),
        ):
            with self.subTest(resume=resume):
                reply = self.subscribe(protocol=PROTOCOL, resume=resume)
                self.assertEqual(reply["status"], "error")
                self.assertIn(f"{field}: ", reply["reason"])
        self.assertEqual(len(self.subscriptions), 0)
        self.assertEqual(self.beginning(self.resume(largest)), Position("bus", 4))

    def test_others(self) -> None:
        """
        Subscribers of the old dialects do not see it.
        """
        for more in ({}, {"protocol": "tbvast/9"}):
            reply = self.subscribe(**more)
            self.assertFalse({"protocol", "plugin", "number"} & reply.keys())


class ForbiddenTests(ManageEndpointTestCase):
    """
    The permissions for requests.
    """

    def make_access(self) -> AccessControl:
        path = Path(self.mktemp())
        self.keys = clients_file(
            path,
            intel="subscribe-intel",
            sightings="subscribe-sightings,publish-sightings",
            publisher="publish-intel",
        )
        return AccessControl(path)

    def test_stranger(self) -> None:
        """
        A client that may not connect, or no longer, cannot make any request.
        """
        for user in ("", "nobody"):
            self.assertEqual(
                self.request(user, action="status"),
                {"status": "error", "reason": "you may not ask for anything"},
            )
        self.assertEqual(self.received()["request"]["forbidden"], 2)

    def test_subscribe(self) -> None:
        """
        A subscription needs the permission for all of its streams.
        """
        allowed = {"intel": {"stix2/indicator", "threatbus/intel"}, "sightings": {"stix2/sighting"}}
        for name, user in self.keys.items():
            for topic in ("stix2/indicator", "threatbus/intel", "stix2/sighting", "stix2/"):
                with self.subTest(name=name, topic=topic):
                    reply = self.subscribe(topic, user)
                    if topic in allowed.get(name, ()):
                        self.assertEqual(reply["status"], "success")
                    else:
                        self.assertEqual(reply["status"], "error")
                        self.assertIn("you may not subscribe to ", reply["reason"])
        self.assertEqual(len(self.subscriptions), 3)

    def test_others_subscription(self) -> None:
        """
        A client that knows another's topic can neither keep that subscription alive nor end it; the
        topic is as unknown as any other.
        """
        topic = self.subscribe("stix2/indicator", self.keys["intel"])["topic"]
        vast = self.subscribe("threatbus/intel", self.keys["intel"])["topic"]
        self.clock.advance(20)
        for user in (self.keys["sightings"], self.keys["publisher"]):
            for action in ("heartbeat", "unsubscribe"):
                reply = self.request(user, action=action, topic=topic)
                self.assertEqual(reply, {"status": "error"})
                raw = json.dumps({"action": action, "topic": vast}).encode()
                unknown = json.dumps({"action": action, "topic": vast[:-1] + "0"}).encode()
                self.assertEqual(self.ask(raw, user=user), self.ask(unknown, user=user))
        silent = [each.describe()["silent"] for each in self.subscriptions.everybody()]
        self.assertEqual(silent, [20.0, 20.0])
        for action in ("heartbeat", "unsubscribe"):
            reply = self.request(self.keys["intel"], action=action, topic=topic)
            self.assertEqual(reply, {"status": "success"})

    def test_publish(self) -> None:
        """
        A publication without the permission is refused with a reason.
        """
        raw = manage.encode_publish([an_indicator().raw, a_sighting().raw])
        reply = manage.decode_published(self.ask(raw, user=self.keys["publisher"]))
        self.assertEqual(reply.outcomes, ["accepted", "refused"])
        self.assertIn("yours to publish", reply.reasons[1])

    def test_named(self) -> None:
        """
        The log names the client, never the key.
        """
        with capturedLogs() as events:
            self.subscribe("stix2/sighting", self.keys["intel"])
        self.assertEqual([event["client"] for event in events], ["intel"])
        self.assertNotIn(self.keys["intel"], repr(events))


class StatusTests(ManageEndpointTestCase):
    """
    The status of a bus.
    """

    def test_secrets(self) -> None:
        """
        The status lists subscriptions without their own topics, because knowing one is enough
        to listen.
        """
        topics = [
            self.subscribe(name="one")["topic"],
            self.subscribe("threatbus/intel")["topic"],
            self.subscribe("stix2/sighting", protocol=PROTOCOL)["topic"],
        ]
        raw = self.ask(b'{"action":"status"}')
        for topic in topics:
            self.assertNotIn(topic.encode(), raw)
        status = json.loads(raw)
        self.assertEqual(status["status"], "success")
        self.assertEqual(status["subscriptions"][0]["name"], "one")

    def test_journal_fails(self) -> None:
        """
        There is a reply if the journal cannot be asked.
        """
        self.journal.failing = True
        self.assertEqual(
            self.request(action="status"), {"status": "error", "reason": "the disk refuses"}
        )
