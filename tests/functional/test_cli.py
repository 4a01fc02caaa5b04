"""
Tests for L{tbvast.cli.main}, as a command, with the real plugin.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

from devtools.services import RunningCommand, free_ports
from tbvast.protocol import manage
from tbvast.values import HostPort, Received
from tbvast.zeromq.sockets import Factory, RouterConnection, SubConnection
from tests.doubles import indicator_document, indicator_id
from tests.functional.services import RunningPlugin, ServicesTestCase

reactor: Any = installed_reactor


class Tool(RunningCommand):
    """
    The C{tbvast} command.

    @ivar out: The lines of its standard output.
    @ivar err: The lines of its standard error.
    """

    def __init__(self, *arguments: str, stdin: bytes = b"") -> None:
        super().__init__(reactor, "tbvast")
        self._out = self._err = b""
        self.run([sys.executable, "-m", "tbvast.cli.main", *arguments], stdin)

    def received(self, data: bytes) -> None:
        self._out += data
        super().received(data)

    def complained(self, data: bytes) -> None:
        self._err += data
        super().complained(data)

    @property
    def out(self) -> list[str]:
        return self._out.decode().splitlines()

    @property
    def err(self) -> list[str]:
        return self._err.decode().splitlines()


class CommandTests(ServicesTestCase):
    """
    With a plugin that runs.
    """

    timeout = 60.0
    running: RunningPlugin

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]
        self.running = self.plugin()
        return self.running.start()

    def start(self, name: str, *arguments: str, stdin: bytes = b"") -> Tool:
        return self.ending(
            Tool(name, f"--threatbus={self.running.manage}", *arguments, stdin=stdin)
        )

    async def call(self, name: str, *arguments: str, stdin: bytes = b"", status: int = 0) -> Tool:
        """
        Run a command to its end.

        @param status: The exit status that it has to have.
        """
        tool = self.start(name, *arguments, stdin=stdin)
        self.assertEqual(await tool.wait(), status, tool.output)
        return tool

    def bundle(self, *objects: Any) -> str:
        path = Path(self.mktemp())
        path.write_text(json.dumps({"type": "bundle", "objects": objects}, indent=1))
        return str(path)

    def test_publish_bad_ones(self) -> Deferred[None]:
        """
        Of a bundle of 1,000 with 3 bad ones, 997 are on the bus; each bad one has
        a line, and the exit status tells.
        """
        return Deferred.fromCoroutine(self._publish_bad_ones())

    async def _publish_bad_ones(self) -> None:
        objects = [json.loads(indicator_document(n)) for n in range(1000)]
        objects[3]["pattern"] = "[ipv4-addr:value"
        objects[30]["id"] = "indicator--1"
        del objects[300]["pattern"]
        objects.append({"type": "malware"})
        path = self.bundle(*objects)
        tool = await self.call("publish", path, status=1)
        self.assertEqual(
            tool.out,
            ["1000 indicators: 3 refused, 997 accepted", "1 other objects ignored: 1 malware"],
        )
        self.assertEqual(len(tool.err), 3)
        for line, number in zip(tool.err, (4, 31, 301), strict=True):
            self.assertRegex(line, rf"^tbvast: {path}:\d+: indicator {number}: ")
        report = await self.running.ask(manage.encode_status())
        self.assertEqual(report["journal"]["indicators"], 997)
        again = await self.call("publish", path, status=1)
        self.assertEqual(
            again.out[0], "1000 indicators: 3 refused, 997 repeated (in force already)"
        )

    def test_publish_and_remove(self) -> Deferred[None]:
        """
        Lines are published from standard input, and removed by value or id.
        """
        return Deferred.fromCoroutine(self._publish_and_remove())

    async def _publish_and_remove(self) -> None:
        lines = b"# C2\n192[.]0[.]2[.]1\nhxxp://evil[.]example/a\n"
        tool = await self.call("publish", "-", stdin=lines + indicator_document(9))
        self.assertEqual(tool.out, ["3 indicators: 3 accepted"])
        tool = await self.call("remove", "192.0.2.1", indicator_id(9))
        self.assertEqual((tool.out, tool.err), (["2 indicators: 2 removed"], []))
        tool = await self.call("remove", indicator_id(9), indicator_id(5), status=1)
        self.assertEqual(tool.out, ["2 indicators: 1 removed before, 1 unknown"])
        self.assertEqual(
            tool.err,
            [
                f"tbvast: {indicator_id(5)}: not known to the bus, so that there is nothing"
                " to remove"
            ],
        )
        report = await self.running.ask(manage.encode_status())
        self.assertEqual(report["journal"]["indicators"], 1)

    def test_watch(self) -> Deferred[None]:
        """
        What was published comes with the snapshot, and what is published meanwhile
        after it, once; also when the bus was started again. C{--count} ends it.
        """
        return Deferred.fromCoroutine(self._watch())

    async def _watch(self) -> None:
        await self.call("publish", "-", stdin=b"a.example")
        watching = self.start("watch", "intel", "--snapshot=1", "--count=3")
        await watching.saw("a.example")
        await self.call("publish", "-", stdin=b"b.example")
        await watching.saw("b.example")
        self.assertEqual(await self.running.stop(), 0)
        self.running = self.ending(self.running.again())
        await self.running.start()
        await watching.saw("subscribing again")
        await self.call("publish", "-", stdin=b"c.example")
        self.assertEqual(await watching.wait(), 0)
        values = [line.split("\t")[3] for line in watching.out]
        self.assertEqual(values, ["a.example", "b.example", "c.example"])

    def test_watch_json(self) -> Deferred[None]:
        """
        Documents come as they are, one a line; Ctrl-C is a good end.
        """
        return Deferred.fromCoroutine(self._watch_json())

    async def _watch_json(self) -> None:
        await self.call("publish", "-", stdin=indicator_document(1))
        watching = self.start("watch", "--json", "--snapshot=1")
        line = await watching.saw("indicator--")
        self.assertEqual(json.loads(line), json.loads(indicator_document(1)))
        watching.signal("INT")
        self.assertEqual(await watching.wait(), 0)
        self.assertEqual(watching.err, [])
        report = await self.running.ask(manage.encode_status())
        self.assertEqual(report["subscriptions"], [])

    def test_status(self) -> Deferred[None]:
        """
        The status tells who has subscribed, and no subscription's topic.
        """
        return Deferred.fromCoroutine(self._status())

    async def _status(self) -> None:
        await self.call("publish", "-", stdin=indicator_document(1))
        watching = self.start("watch", "--snapshot=1")
        await watching.saw("indicator--")
        plain = await self.call("status")
        lines = dict(line.split("\t") for line in plain.out)
        self.assertEqual(lines["journal.indicators"], "1")
        self.assertEqual(lines["subscriptions.0.name"], "tbvast watch")
        document = json.loads("\n".join((await self.call("status", "--json")).out))
        self.assertNotIn("topic", document["subscriptions"][0])

    def test_broken_pipe(self) -> Deferred[None]:
        """
        A reader that has had enough is no error.
        """
        return Deferred.fromCoroutine(self._broken_pipe())

    async def _broken_pipe(self) -> None:
        for arguments in (["status"], ["watch", "--snapshot=1"], ["publish", "/dev/null"]):
            await self.call("publish", "-", stdin=b"a.example")
            tool = Tool(arguments[0], f"--threatbus={self.running.manage}", *arguments[1:])
            transport: Any = tool.child.transport
            transport.closeStdout()
            self.assertEqual((await tool.wait(), tool.err), (0, []), arguments)

    def test_interrupted(self) -> Deferred[None]:
        """
        A bus that has stopped is told, with what was not sent.
        """
        return Deferred.fromCoroutine(self._interrupted())

    async def _interrupted(self) -> None:
        await self.running.stop()
        tool = await self.call("publish", "-", stdin=b"a.example", status=3)
        self.assertEqual(tool.out, ["1 indicator: 1 not sent"])
        [line] = tool.err
        self.assertIn(f"no answer from the bus at {self.running.manage}", line)

    def test_usage(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._usage())

    async def _usage(self) -> None:
        missing = self.mktemp()
        for arguments, words in (
            (["publish", missing], f"FILE: '{missing}' is not a file that can be read"),
            (["remove", "blub"], "ID: 'blub' is not indicator--UUID"),
            (["watch", "weather"], "weather"),
        ):
            tool = await self.call(*arguments, status=2)
            self.assertIn(words, tool.err[-1])
            self.assertNotIn("Traceback", tool.output)


class OldBus:
    """
    A bus that knows what Threat Bus 2022.5.16 knows, and no more.

    @ivar received: The frames that arrived at its sub endpoint.
    """

    def __init__(self) -> None:
        self.received: list[bytes] = []
        manage_port, self._sub_port = free_ports(2)
        self.manage = HostPort("127.0.0.1", manage_port)
        self.factory = Factory(reactor)
        self._router = RouterConnection(self.factory, self._asked)
        self._router.bind(f"tcp://{self.manage}")
        sub = SubConnection(self.factory, self._heard)
        sub.subscribe(b"stix2/indicator")
        sub.subscribe(b"stix2/sighting")
        sub.bind(f"tcp://127.0.0.1:{self._sub_port}")

    def _heard(self, messages: list[Received]) -> None:
        self.received.extend(message.frames[0] for message in messages)

    def _asked(self, messages: list[Received]) -> None:
        for message in messages:
            *envelope, request = message.frames
            self._router.send_now([*envelope, msgspec.json.encode(self._answer(request))])

    def _answer(self, request: bytes) -> dict[str, Any]:
        document = json.loads(request)
        if "topic" not in document:
            return {"status": "unknown request"}
        if document["action"] == "subscribe":
            ports = {"pub_port": 1, "sub_port": self._sub_port}
            return {"topic": "abc", "status": "success", **ports}
        return {"status": "success"}


class OldBusTests(ServicesTestCase):
    """
    With a Threat Bus, which has no acknowledgements, no removals, no status.
    """

    timeout = 60.0

    def setUp(self) -> None:
        self.bus = OldBus()
        self.addCleanup(self.bus.factory.shutdown)

    def test_publish(self) -> Deferred[None]:
        """
        Indicators arrive at its sub endpoint, and the user is told that this is
        all that is known.
        """
        return Deferred.fromCoroutine(self._publish())

    async def _publish(self) -> None:
        documents = [indicator_document(n) for n in range(2500)]
        tool = self.ending(
            Tool("publish", f"--threatbus={self.bus.manage}", "-", stdin=b"\n".join(documents))
        )
        self.assertEqual(await tool.wait(), 0)
        self.assertEqual(tool.out, ["2500 indicators: 2500 sent"])
        self.assertIn("does not say", tool.err[0])
        while len(self.bus.received) < 2500:
            await turn()
        self.assertEqual(self.bus.received, [b"stix2/indicator " + d for d in documents])

    def test_others(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._others())

    async def _others(self) -> None:
        for arguments in (["remove", "192.0.2.1"], ["status"]):
            name, *rest = arguments
            tool = self.ending(Tool(name, f"--threatbus={self.bus.manage}", *rest))
            self.assertEqual(await tool.wait(), 1)
            self.assertIn("is a Threat Bus, which knows no such request", tool.err[0])


def turn() -> Deferred[None]:
    """
    @return: Fires in another turn of the reactor.
    """
    waiting: Deferred[None] = Deferred()
    reactor.callLater(0.01, waiting.callback, None)
    return waiting
