"""
Who gets in, and what each may do; and buses that are each other's upstream.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

import tbvast
from devtools.services import free_ports, twistd
from tbvast.values import HostPort
from tbvast.zeromq.curve import (
    client_options,
    load_key_pair,
    load_public_key,
    make_key_pair,
)
from tests.functional.blocking import (
    LIMIT,
    BlockingProcess,
    Client,
    Publisher,
    Sockets,
    a_sighting,
    an_indicator,
    frame,
)
from tests.functional.components import import_events, require_tenzir, wait_until
from tests.functional.test_conformance import INTEL, HostTestCase
from tests.functional.test_main_job import BAD, PATTERNS, indicator, suricata

SIGHTINGS = "stix2/sighting"

FAILED = (
    zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.DISCONNECTED
)


class Keyed(Sockets):
    """
    Sockets that show a key.
    """

    keys: Mapping[int, int | bytes] = {}

    def socket(self, kind: int, port: int, host: str, **options: Any) -> zmq.Socket[bytes]:
        shown: dict[str, Any] = {
            zmq.SocketOption(option).name: value for option, value in self.keys.items()
        }
        return super().socket(kind, port, host, **shown, **options)


class KeyedClient(Keyed, Client):
    """
    A subscriber that shows a key.
    """

    def __init__(self, host: HostPort, keys: Mapping[int, int | bytes]) -> None:
        self.keys = keys
        super().__init__(host)


class KeyedPublisher(Keyed, Publisher):
    """
    A publisher that shows a key.
    """

    def __init__(self, host: str, port: int, keys: Mapping[int, int | bytes]) -> None:
        self.keys = keys
        super().__init__(host, port, "stix2/indicator", SIGHTINGS)


class Bus(BlockingProcess):
    """
    A plugin with keys; C{admin} may do everything.

    @ivar folder: Where it keeps everything.
    @ivar ports: Of manage, pub and sub.
    @ivar manage: Its manage endpoint.
    """

    def __init__(self, keys: Keys, folder: Path, ports: list[int], **settings: Any) -> None:
        """
        @param folder: Where it keeps everything; what was there is gone on with.
        @param ports: Of manage, pub and sub.
        """
        self.keys = keys
        self.folder, self.ports = folder, ports
        self.manage = HostPort("127.0.0.1", ports[0])
        self.pub_port, self.sub_port = ports[1:]
        config = folder / "tap.conf"
        plugin = {
            **dict(zip(("manage", "pub", "sub"), ports, strict=True)),
            "state_dir": str(folder / "state"),
            "curve_key": keys.secret("bus"),
            "clients": str(keys.clients),
            **settings,
        }
        config.write_text(json.dumps({"plugin": plugin}))
        super().__init__(twistd("tbvast-plugin", f"--config={config}"), folder)
        self.status()

    def status(self) -> dict[str, Any]:
        """
        What it says of itself.
        """
        client = KeyedClient(self.manage, self.keys.shown("admin"))
        try:
            return client.request("status")
        finally:
            client.close()

    def reload(self) -> None:
        """
        Have it read its file of clients.
        """
        before = self.log.count("clients may connect;")
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: self.log.count("clients may connect;") > before)


class Keys:
    """
    The keys of a bus and its clients.

    @ivar clients: The file of those who are let in.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        """
        @param names: For whom there are keys, beside C{bus} and C{admin}.
        """
        self._folder = folder
        self.clients = folder / "clients"
        for name in ("bus", "admin", *names):
            make_key_pair(folder, name)
        self.let_in(admin="")

    def let_in(self, **clients: str) -> None:
        """
        @param clients: What each may do; nothing said means everything.
        """
        self.clients.write_text(
            "".join(
                f"{load_public_key(self.public(name)).decode()} {name} {may}\n"
                for name, may in clients.items()
            )
        )

    def secret(self, name: str) -> str:
        return str(self._folder / f"{name}.key_secret")

    def public(self, name: str) -> str:
        return str(self._folder / f"{name}.key")

    def shown(self, name: str, server: str = "bus") -> Mapping[int, int | bytes]:
        """
        @return: The socket options of somebody's sockets.
        """
        pair = load_key_pair(self.secret(name))
        return client_options(pair, load_public_key(self.public(server)))


class KeysTestCase(HostTestCase):
    """
    One bus with keys.
    """

    def make(self, *names: str, **clients: str) -> None:
        """
        @param names: For whom there are keys.
        @param clients: What each of those who are let in may do, beside C{admin}.
        """
        self.keys = Keys(self.directory(), *names)
        self.keys.let_in(admin="", **clients)
        self.bus = self.run_host(Bus(self.keys, self.directory(), free_ports(3)))

    def client(self, name: str, bus: Bus | None = None) -> KeyedClient:
        """
        @return: One that has not subscribed.
        """
        bus = bus or self.bus
        client = KeyedClient(bus.manage, bus.keys.shown(name))
        self.addCleanup(client.close)
        return client

    def publisher(self, name: str, bus: Bus | None = None) -> KeyedPublisher:
        """
        @return: One that the bus listens to.
        """
        bus = bus or self.bus
        publisher = KeyedPublisher("127.0.0.1", bus.sub_port, bus.keys.shown(name))
        self.addCleanup(publisher.close)
        return publisher

    def assert_kept_out(self, keys: Mapping[int, int | bytes], topic: str = "") -> None:
        """
        Whoever shows these keys gets no connection to any endpoint.

        @param topic: What to subscribe to.
        """
        context = zmq.Context()
        self.addCleanup(context.destroy, linger=0)
        manage = self.bus.manage
        for kind, port in (
            (zmq.DEALER, manage.port),
            (zmq.SUB, self.bus.pub_port),
            (zmq.XPUB, self.bus.sub_port),
        ):
            made = context.socket(kind)
            monitor = made.get_monitor_socket()
            for option, value in keys.items():
                made.set(option, value)
            if kind == zmq.SUB:
                made.set(zmq.SUBSCRIBE, topic.encode())
            made.connect(f"tcp://{manage.host}:{port}")
            event = 0
            while not event & FAILED:
                self.assertTrue(monitor.poll(round(LIMIT * 1000)), port)
                event = recv_monitor_message(monitor)["event"]
                self.assertNotEqual(event, zmq.Event.HANDSHAKE_SUCCEEDED)
            self.assertFalse(made.poll(0))
            made.disable_monitor()
            made.close(linger=0)


class StrangerTests(KeysTestCase):
    """
    Who has no key that is let in gets nothing.
    """

    def test_strangers(self) -> None:
        """
        Neither who shows no key, nor who shows a foreign one, nor who takes the bus
        for another one gets a connection; not even for a topic that is known.
        """
        self.make("stranger")
        admin = self.client("admin")
        admin.join(INTEL)
        for keys in (
            {},
            self.keys.shown("stranger"),
            self.keys.shown("admin", server="stranger"),
        ):
            self.assert_kept_out(keys, admin.topic)
        publisher = self.publisher("admin")
        document = an_indicator()
        publisher.publish(document)
        self.assertEqual(admin.ids_until(document["id"]), [document["id"]])

    def test_readable_key(self) -> None:
        """
        A key that others can read keeps the bus from starting, in one line.
        """
        folder = self.directory()
        _, secret = make_key_pair(folder, "bus")
        clients = folder / "clients"
        clients.write_text("")
        secret.chmod(0o640)
        config = folder / "tap.conf"
        state = str(folder / "state")
        plugin = {"curve_key": str(secret), "clients": str(clients), "state_dir": state}
        ports = dict(zip(("manage", "pub", "sub"), free_ports(3), strict=True))
        config.write_text(json.dumps({"plugin": {**plugin, **ports}}))
        process = self.run_host(
            BlockingProcess(twistd("tbvast-plugin", f"--config={config}"), folder)
        )
        wait_until(lambda: not process.alive)
        self.assertEqual(process.stop(), 1)
        [line] = [line for line in process.log.splitlines() if not line.startswith("20")]
        self.assertIn(f"key file {secret}: its mode 640 lets others read it", line)
        self.assertIn("chmod 600", line)


class PermissionTests(KeysTestCase):
    """
    Who is let in does what is allowed.
    """

    def test_everything(self) -> None:
        """
        Who may do everything does: on every endpoint, and each request.
        """
        self.make()
        admin, publisher = self.client("admin"), self.publisher("admin")
        admin.join(["stix2/indicator", SIGHTINGS])
        documents = [an_indicator(), a_sighting(), an_indicator(), a_sighting()]
        publisher.publish(*documents[:2])
        admin.ids_until(documents[1]["id"])
        reply = admin.request("publish", documents=documents[2:])
        self.assertEqual(reply["outcomes"], ["accepted"] * 2)
        self.assertEqual(
            admin.ids_until(documents[3]["id"]), [document["id"] for document in documents[2:]]
        )
        self.assertEqual(admin.heartbeat(), "success")
        late = self.client("admin")
        late.join(INTEL, snapshot=1)
        self.assertEqual(
            set(late.ids_until(documents[2]["id"])), {documents[0]["id"], documents[2]["id"]}
        )
        self.assertEqual(json.loads(late.unsubscribe()), {"status": "success"})

    def test_limited(self) -> None:
        """
        Who may only publish intel is refused the rest: with an answer on manage, and
        by a count on sub.
        """
        self.make("feed", feed="publish-intel")
        feed, sending = self.client("feed"), self.publisher("feed")
        for topic in (INTEL, SIGHTINGS, "threatbus/intel", "stix2/", "", [INTEL, SIGHTINGS]):
            reply = feed.request("subscribe", topic=topic)
            self.assertNotEqual(reply["status"], "success", topic)
        reply = feed.request("subscribe", topic=INTEL)
        self.assertEqual(
            reply, {"status": "error", "reason": "you may not subscribe to indicators"}
        )
        self.assertEqual(self.bus.status()["subscriptions"], [])

        admin = self.client("admin")
        admin.join([INTEL, SIGHTINGS])
        documents = [a_sighting(), an_indicator()]
        sending.publish(*documents)
        self.assertEqual(admin.ids_until(documents[1]["id"]), [documents[1]["id"]])
        self.assertEqual(self.bus.status()["received"]["message"], {"forbidden": 1})
        envelope = {
            "type": "snapshotenvelope",
            "snapshot_type": 2,
            "snapshot_id": "x",
            "body": a_sighting(),
        }
        sending.send(b"threatbus/snapshotenvelope " + json.dumps(envelope).encode())
        reply = feed.request("publish", documents=[a_sighting(), an_indicator()])
        self.assertEqual(reply["outcomes"], ["refused", "accepted"])
        wait_until(lambda: self.bus.status()["received"]["message"]["forbidden"] == 2)
        self.bus.saw("Dropped a message from feed, which may not send it.")


CHANGED = {"modified": "2024-02-01T00:00:00Z"}


class EachPermissionTests(KeysTestCase):
    """
    A permission allows what it says, by every way into the bus, and nothing else.

    A change or a removal is one of another client's indicator.
    """

    SUBSCRIBE_INTEL = {
        "subscribe stix2/indicator",
        "subscribe threatbus/intel",
        "snapshot",
        "tbvast/1 intel",
    }
    SUBSCRIBE_SIGHTINGS = {
        "subscribe stix2/sighting",
        "subscribe threatbus/sighting",
        "tbvast/1 sightings",
    }
    PUBLISH_INTEL = {"publish indicator", "sub indicator", "sub indicator envelope"}
    PUBLISH_SIGHTINGS = {
        "publish sighting",
        "sub sighting",
        "sub vast/sightings",
        "sub sighting envelope",
    }
    MANAGE_INTEL = {"publish change", "publish removal", "sub change", "sub removal"}
    BOTH = {"subscribe both", "subscribe all"}

    def test_subscribe_intel(self) -> None:
        self.assertEqual(self.allowed("subscribe-intel"), self.SUBSCRIBE_INTEL)

    def test_subscribe_sightings(self) -> None:
        self.assertEqual(self.allowed("subscribe-sightings"), self.SUBSCRIBE_SIGHTINGS)

    def test_subscribe_both(self) -> None:
        """
        A subscription to both streams needs both.
        """
        self.assertEqual(
            self.allowed("subscribe-intel,subscribe-sightings"),
            self.SUBSCRIBE_INTEL | self.SUBSCRIBE_SIGHTINGS | self.BOTH,
        )

    def test_publish_intel(self) -> None:
        self.assertEqual(self.allowed("publish-intel"), self.PUBLISH_INTEL)

    def test_publish_sightings(self) -> None:
        self.assertEqual(self.allowed("publish-sightings"), self.PUBLISH_SIGHTINGS)

    def test_manage_intel(self) -> None:
        """
        Alone it allows nothing; with C{publish-intel}, what belongs to others.
        """
        self.assertEqual(self.allowed("manage-intel"), set())

    def test_publish_and_manage_intel(self) -> None:
        self.assertEqual(
            self.allowed("publish-intel,manage-intel"), self.PUBLISH_INTEL | self.MANAGE_INTEL
        )

    def test_all(self) -> None:
        """
        A client without a list of permissions may do everything.
        """
        self.assertEqual(
            self.allowed(""),
            self.SUBSCRIBE_INTEL
            | self.SUBSCRIBE_SIGHTINGS
            | self.BOTH
            | self.PUBLISH_INTEL
            | self.PUBLISH_SIGHTINGS
            | self.MANAGE_INTEL,
        )

    def allowed(self, may: str) -> set[str]:
        """
        Try everything.

        @param may: The permissions of the client that tries.
        @return: What it could do.
        """
        self.make("tried", "owner", tried=may, owner="")
        answering, self.listening = self.client("admin"), self.client("admin")
        answering.join([INTEL, SIGHTINGS])
        self.listening.join([INTEL, SIGHTINGS], snapshot=1)
        requests = [json.loads(answering.receive()[1]) for _ in range(2)]
        self.asked = {each["snapshot_type"]: each["snapshot_id"] for each in requests}
        self.owner = self.client("owner")
        self.trying, self.sending = self.client("tried"), self.publisher("tried")
        self.seen: list[str] = []
        self.handled = self.count()
        return self.subscribed() | self.published() | self.sent() | self.changed()

    def subscribed(self) -> set[str]:
        ways: dict[str, dict[str, Any]] = {
            "subscribe stix2/indicator": {"topic": INTEL},
            "subscribe threatbus/intel": {"topic": "threatbus/intel"},
            "subscribe stix2/sighting": {"topic": SIGHTINGS},
            "subscribe threatbus/sighting": {"topic": "threatbus/sighting"},
            "subscribe both": {"topic": [INTEL, SIGHTINGS]},
            "subscribe all": {"topic": "stix2/"},
            "snapshot": {"topic": INTEL, "snapshot": 1},
            "tbvast/1 intel": {"topic": INTEL, "protocol": "tbvast/1"},
            "tbvast/1 sightings": {"topic": SIGHTINGS, "protocol": "tbvast/1"},
        }
        done = set()
        for way, fields in ways.items():
            reply = self.trying.request("subscribe", **fields)
            if reply["status"] == "success":
                done.add(way)
                self.trying.topic = reply["topic"]
                self.trying.unsubscribe()
            else:
                self.assertRegex(reply["reason"], r"\Ayou may not subscribe to \w+s\Z")
                self.assertNotIn("topic", reply)
        return done

    def published(self) -> set[str]:
        documents = [an_indicator(), a_sighting()]
        outcomes = self.trying.request("publish", documents=documents)["outcomes"]
        self.arrived(len(documents))
        pairs = zip(documents, outcomes, strict=True)
        return {f"publish {each['type']}" for each, outcome in pairs if outcome == "accepted"}

    def sent(self) -> set[str]:
        ways = {f"sub {each['type']}": each for each in (an_indicator(), a_sighting())}
        self.sending.publish(*ways.values())
        for number, body in enumerate((an_indicator(), a_sighting()), 1):
            ways[f"sub {body['type']} envelope"] = body
            envelope = {
                "type": "snapshotenvelope",
                "snapshot_type": number,
                "snapshot_id": self.asked[number],
                "body": body,
            }
            self.sending.send(b"threatbus/snapshotenvelope " + json.dumps(envelope).encode())
        ways["sub vast/sightings"] = of = an_indicator()
        report = {"ts": "2024-01-01T00:00:00Z", "reference": f"threatbus__{of['id']}"}
        self.sending.send(b"vast/sightings " + json.dumps(report).encode())
        text = self.arrived(len(ways))
        return {way for way, each in ways.items() if each["id"] in text}

    def changed(self) -> set[str]:
        done = set()
        for way in ("publish", "sub"):
            documents = [an_indicator(), an_indicator()]
            self.owner.request("publish", documents=documents)
            self.arrived(len(documents))
            new = [
                {**documents[0], **CHANGED, "name": "changed"},
                {**documents[1], **CHANGED, "revoked": True},
            ]
            if way == "publish":
                self.trying.request("publish", documents=new)
            else:
                self.sending.publish(*new)
            text = self.arrived(len(new))
            done |= {
                f"{way} {what}"
                for what, mark in (("change", '"changed"'), ("removal", '"revoked"'))
                if mark in text
            }
        return done

    def arrived(self, documents: int) -> str:
        """
        Wait until the bus has delivered, or refused, so many more documents.

        @return: Those that it has delivered.
        """
        self.handled += documents
        first = len(self.seen)
        wait_until(lambda: self.count() == self.handled)
        return "".join(self.seen[first:])

    def count(self) -> int:
        """
        How many documents the bus has delivered, or refused.
        """
        while self.listening.waiting(0):
            topic, payload = self.listening.receive()
            if not topic.endswith("snapshotrequest"):
                self.seen.append(payload)
        received = self.bus.status()["received"]
        refused = (("message", "forbidden"), ("message", "refused"), ("indicator", "refused"))
        return len(self.seen) + sum(
            received.get(stream, {}).get(verdict, 0) for stream, verdict in refused
        )


class TopicTests(KeysTestCase):
    """
    A subscription belongs to the client that made it; to know its topic helps nobody else.
    """

    def setUp(self) -> None:
        self.make("reader", "other", "feed", reader="", other="", feed="publish-intel")
        self.reader = self.client("reader")
        self.reader.join(INTEL)
        self.sending = self.publisher("admin")
        self.assert_received()

    def assert_received(self, *others: KeyedClient) -> None:
        """
        What is published comes to the subscriber alone.
        """
        document = an_indicator()
        self.sending.publish(document)
        self.assertEqual(self.reader.ids_until(document["id"]), [document["id"]])
        for each in others:
            self.assertFalse(each.waiting())

    def others(self) -> list[KeyedClient]:
        """
        @return: Clients who know the topic: with all permissions, and without that to subscribe.
        """
        found = [self.client("other"), self.client("feed")]
        for each in found:
            each.topic, each.pub = self.reader.topic, self.reader.pub
        return found

    def test_listen(self) -> None:
        """
        Nobody else hears it, whatever part of the topic he listens to.
        """
        others = self.others()
        for each in others:
            each.connect()
            for kind in ("indicator", "indicator "):
                each.hear(each.topic + kind)
        for _ in range(5):
            self.assert_received(*others)

    def test_listen_first(self) -> None:
        """
        Nor does who comes before its own subscriber.
        """
        self.reader.leave()
        wait_until(lambda: not self.bus.status()["subscriptions"][0]["attached"])
        others = self.others()
        for each in others:
            each.connect()
        document = an_indicator()
        self.sending.publish(document)
        for each in others:
            self.assertFalse(each.waiting())
        self.assertFalse(self.bus.status()["subscriptions"][0]["attached"])
        self.reader.connect()
        self.assertIn(document["id"], self.reader.ids_until(document["id"]))
        self.assert_received(*others)

    def test_heartbeat(self) -> None:
        """
        Another's heartbeat is answered as if there were no such subscription.
        """
        for each in self.others():
            self.assertEqual(each.heartbeat(), "error")
        self.assertEqual(self.reader.heartbeat(), "success")

    def test_kept_alive(self) -> None:
        """
        Nor does it keep the subscription alive.
        """
        self.bus.stop()
        self.bus = self.run_host(
            Bus(self.keys, self.bus.folder, self.bus.ports, heartbeat_timeout=2.0)
        )
        wait_until(lambda: self.reader.heartbeat() == "success")
        others = self.others()

        def ended() -> bool:
            for each in others:
                each.heartbeat()
            return not self.bus.status()["subscriptions"]

        wait_until(ended)

    def test_unsubscribe(self) -> None:
        """
        Nobody else ends it.
        """
        for each in self.others():
            self.assertEqual(json.loads(each.unsubscribe())["status"], "error")
        self.assertEqual(self.reader.heartbeat(), "success")
        self.assert_received()

    def test_not_told(self) -> None:
        """
        Nobody is told another's topic.
        """
        for name in ("other", "feed", "admin"):
            self.assertNotIn(self.reader.topic, json.dumps(self.client(name).request("status")))
        self.assertNotIn(self.reader.topic, self.bus.log)


class ReloadTests(KeysTestCase):
    """
    The file of clients can be changed while the bus runs.
    """

    def test_removed_and_added(self) -> None:
        """
        Who is taken out is cut off at once, whatever connections it has; who is
        added is let in; all others stay as they are.
        """
        self.make("old", "new", old="")
        admin, old = self.client("admin"), self.client("old")
        admin.join(INTEL)
        old.join(INTEL)
        publishers = [self.publisher("admin"), self.publisher("old")]
        first = an_indicator()
        publishers[1].publish(first)
        for client in (admin, old):
            client.ids_until(first["id"])
        self.assert_kept_out(self.keys.shown("new"))

        self.keys.let_in(admin="", new="")
        self.bus.reload()
        refused = {"status": "error", "reason": "you may not ask for anything"}
        for request in (
            {"action": "heartbeat", "topic": old.topic},
            {"action": "subscribe", "topic": INTEL},
            {"action": "publish", "documents": [an_indicator()]},
            {"action": "status"},
        ):
            self.assertEqual(json.loads(old.ask(json.dumps(request).encode())), refused)
        publishers[1].publish(an_indicator(), a_sighting())
        wait_until(lambda: self.bus.status()["received"]["message"]["forbidden"] == 2)
        second = an_indicator()
        publishers[0].publish(second)
        self.assertEqual(admin.ids_until(second["id"]), [second["id"]])
        self.assert_kept_out(self.keys.shown("old"))
        self.assertFalse(old.waiting(0))

        new = self.client("new")
        new.join(INTEL, snapshot=1)
        self.assertEqual(set(new.ids_until(second["id"])), {first["id"], second["id"]})
        self.keys.let_in(admin="", new="", old="")
        self.bus.reload()
        old.join(INTEL)
        third = an_indicator()
        publishers[1].publish(third)
        for client in (admin, old, new):
            self.assertEqual(client.ids_until(third["id"]), [third["id"]])

    def test_while_stopped(self) -> None:
        """
        A subscription that outlives a restart ends if its subscriber may no longer
        have it, though it may still connect.
        """
        self.make("old", old="")
        admin, old = self.client("admin"), self.client("old")
        admin.join(INTEL)
        old.join(INTEL)
        self.assertEqual(self.bus.stop(), 0)
        self.keys.let_in(admin="", old="publish-intel")
        self.bus = self.run_host(Bus(self.keys, self.bus.folder, self.bus.ports))
        self.bus.saw("may no longer subscribe")
        self.assertEqual(len(self.bus.status()["subscriptions"]), 1)
        document = an_indicator()
        self.publisher("old").publish(document)
        self.assertEqual(admin.ids_until(document["id"]), [document["id"]])
        self.assertEqual(old.heartbeat(), "error")
        self.assertFalse(old.waiting(0))

    def test_unusable(self) -> None:
        """
        A file that cannot be used changes nothing.
        """
        self.make()
        self.keys.clients.write_text("nonsense\n")
        os.kill(self.bus.pid, signal.SIGHUP)
        self.bus.saw("Cannot reload the clients")
        self.assertEqual(self.bus.status()["status"], "success")


class BridgeTests(KeysTestCase):
    """
    A bridge with a key, and the real engine.
    """

    def test_whole_way(self) -> None:
        """
        It subscribes, its engine gets the indicator, and the sighting comes back.
        """
        require_tenzir(self)
        self.make("bridge", bridge="subscribe-intel,publish-sightings")
        folder = self.directory()
        engine = f"127.0.0.1:{free_ports(1)[0]}"
        settings = {
            "threatbus": str(self.bus.manage),
            "curve_key": self.keys.secret("bridge"),
            "server_key": self.keys.public("bus"),
            "vast_listen": engine,
            "state_dir": str(folder / "state"),
            "retro_match": False,
        }
        config = folder / "tap.conf"
        config.write_text(json.dumps({"bridge": settings}))
        bridge = self.run_host(
            BlockingProcess(twistd("tbvast-bridge", f"--config={config}"), folder)
        )
        for sign in ("Subscribed to", "The live match is running"):
            bridge.saw(sign)
        admin = self.client("admin")
        admin.join(SIGHTINGS)
        admin.request("publish", documents=[indicator(PATTERNS["ip"])])
        bridge.saw("The engine took 1 entries")
        client = folder / "state" / "client" / "client.yaml"
        import_events(client, "".join(suricata(1, *BAD)), "suricata")
        topic, payload = admin.receive()
        self.assertEqual(topic, f"{admin.topic}sighting")
        self.assertEqual(json.loads(payload)["x_threatbus_indicator_value"], BAD[0])


class UpstreamTests(KeysTestCase):
    """
    Two buses that are each other's upstream.
    """

    def setUp(self) -> None:
        self.keys = Keys(self.directory(), "left", "right")
        self.keys.let_in(admin="", left="", right="")
        self.ports = {"left": free_ports(3), "right": free_ports(3)}
        self.folders = {name: self.directory() for name in self.ports}
        self.buses: dict[str, Bus] = {}
        for name in self.ports:
            self.start(name)
        for bus in self.buses.values():
            self.until_settled(bus)

    def start(self, name: str) -> None:
        """
        Start one of them, with what it had.
        """
        other = "right" if name == "left" else "left"
        upstream = {
            "threatbus": f"127.0.0.1:{self.ports[other][0]}",
            "snapshot": 1,
            "curve_key": self.keys.secret(name),
            "server_key": self.keys.public("bus"),
        }
        self.buses[name] = self.run_host(
            Bus(self.keys, self.folders[name], self.ports[name], upstream=[upstream])
        )

    def until_settled(self, bus: Bus) -> None:
        """
        Wait until the other one has subscribed, and listens.
        """

        def attached() -> bool:
            return any(
                each["name"] == "tbvast-plugin" and each["attached"]
                for each in bus.status()["subscriptions"]
            )

        wait_until(attached)

    def subscriber(self, name: str) -> KeyedClient:
        client = self.client("admin", self.buses[name])
        client.join([INTEL, SIGHTINGS])
        return client

    def test_once(self) -> None:
        """
        Each indicator and sighting comes to each subscriber once, wherever it was
        published; also when one of them was away.
        """
        subscribers = {name: self.subscriber(name) for name in self.buses}
        sent: set[str] = set()
        for name, bus in self.buses.items():
            sent |= self.exchange(bus, name, subscribers, len(sent))

        self.assertEqual(self.buses["left"].stop(), 0)
        away = [an_indicator(), a_sighting()]
        self.client("admin", self.buses["right"]).request("publish", documents=away)
        subscribers["right"].ids_until(away[1]["id"])
        self.start("left")
        subscribers["left"] = self.subscriber("left")
        self.until_settled(self.buses["left"])
        self.until_settled(self.buses["right"])
        sent |= {document["id"] for document in away}
        wait_until(lambda: self.heads() == [len(sent)] * 2)
        for name, bus in self.buses.items():
            # What was missed may have come before, or after, this subscription.
            sent |= self.exchange(bus, name, subscribers, len(sent), {d["id"] for d in away})

    def exchange(
        self,
        bus: Bus,
        name: str,
        subscribers: dict[str, KeyedClient],
        before: int,
        also: Set[str] = frozenset(),
    ) -> set[str]:
        """
        Publish two of each, and see who receives what.

        @param before: How many documents each bus has.
        @param also: What may be received, too.
        @return: The ids.
        """
        documents = [an_indicator(), a_sighting(), an_indicator(), a_sighting()]
        ids = {document["id"] for document in documents}
        publisher = self.publisher("admin", bus)
        for document in documents:
            publisher.send(frame(document))
        wait_until(lambda: self.heads() == [before + 4] * 2)
        for receiving in subscribers.values():
            received: list[str] = []
            while not ids <= set(received):
                topic, payload = receiving.receive()
                if not topic.endswith("snapshotrequest"):
                    received.append(json.loads(payload)["id"])
            self.assertEqual(len(received), len(set(received)), name)
            self.assertLessEqual(set(received), ids | also)
            self.assertFalse(receiving.waiting(0))
        return ids

    def heads(self) -> list[int]:
        """
        How many entries each one's journal has.
        """
        return [bus.status()["journal"]["head"] for bus in self.buses.values()]


class CommandTests(KeysTestCase):
    """
    The C{tbvast} command, with and without a key.
    """

    def call(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """
        @return: Exit status, standard output and standard error.
        """
        paths = [str(Path(tbvast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", "tbvast.cli.main", *arguments, f"--threatbus={self.bus.manage}"],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        return done.returncode, done.stdout, done.stderr

    def shown_by(self, name: str) -> list[str]:
        return [
            f"--curve-key={self.keys.secret(name)}",
            f"--server-key={self.keys.public('bus')}",
        ]

    def test_key(self) -> None:
        """
        Who shows a key that is let in publishes, watches, removes and asks.
        """
        self.make()
        keys = self.shown_by("admin")
        status, out, err = self.call("publish", "-", *keys, stdin="a.example\n")
        self.assertEqual((status, out, err), (0, "1 indicator: 1 accepted\n", ""))
        status, out, err = self.call("watch", "intel", "--snapshot=1", "--count=1", *keys)
        self.assertEqual((status, out.split("\t")[3], err), (0, "a.example", ""))
        status, out, _ = self.call("remove", "a.example", *keys)
        self.assertEqual((status, out), (0, "1 indicator: 1 removed\n"))
        status, out, _ = self.call("status", *keys)
        self.assertIn("journal.indicators\t0\n", out)

    def test_no_key(self) -> None:
        """
        Who shows none, or a foreign one, gets no answer; a limited one, what it may.
        """
        self.make("stranger", "feed", feed="publish-intel")
        for keys in ([], self.shown_by("stranger")):
            status, out, err = self.call("status", *keys)
            self.assertEqual((status, out), (3, ""))
            self.assertIn("no answer from the bus", err)
        status, _, _ = self.call("publish", "-", *self.shown_by("feed"), stdin="a.example\n")
        self.assertEqual(status, 0)
