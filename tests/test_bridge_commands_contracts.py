"""
The contracts of L{ISink} and L{IContextTransform}, run against every implementation and double.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bridge.commands.command_line import Command
from tbvast.bridge.commands.command_sink import CommandSink
from tbvast.bridge.commands.context_command import ContextCommand
from tbvast.bridge.commands.stdout_sink import StdoutSink
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.interfaces import IContextTransform, ISink
from tbvast.stix.sightings import MatchType
from tests.doubles import MemorySink, MemoryTransform
from tests.doubles_processes import MemoryProcesses, an_event, json_line

IOC = "6.6.6.6"
PLAIN = Command("tool", "/bin/tool", ())
TEMPLATE = Command("tool", "/bin/tool", ("%ioc",))
UNENCODABLE = {"x": object()}


class SinkContract:
    """
    The behaviour of every L{ISink}; mixed into one class for each.

    @ivar sink: The sink, which has been started.
    """

    # Provided by the test case.
    assertEqual: Any
    assertNotIsInstance: Any
    successResultOf: Any
    failureResultOf: Any

    sink: Any

    def take(self) -> list[dict[str, Any]]:
        """
        Let the receiver take the contexts that wait.

        @return: All contexts that it has taken, in order.
        """
        raise NotImplementedError

    def send(self, context: dict[str, Any]) -> Deferred[None]:
        sent: Deferred[None] = self.sink.send(context, IOC, MatchType.LIVE)
        return sent

    def send_refused(self) -> Deferred[None]:
        """
        Send a context that can never be handed over.
        """
        return self.send(UNENCODABLE)

    def send_in_vain(self) -> Deferred[None]:
        """
        Send a context that the receiver does not take.
        """
        raise NotImplementedError

    def test_interface(self) -> None:
        """
        It provides the interface.
        """
        verifyObject(ISink, self.sink)

    def test_taken(self) -> None:
        """
        Contexts are taken in order, and each fires once it is taken.
        """
        contexts = [{"n": number, "text": "a\nb é", "list": [None, 1.5]} for number in range(3)]
        sent = [self.send(context) for context in contexts]
        self.assertEqual(self.take(), contexts)
        self.assertEqual([self.successResultOf(each) for each in sent], [None] * 3)

    def test_refused(self) -> None:
        """
        A context that can never be handed over is refused, and those around it are taken.
        """
        before = self.send(an_event(1))
        self.failureResultOf(self.send_refused(), CommandRefused)
        after = self.send(an_event(2))
        self.assertEqual(self.take(), [an_event(1), an_event(2)])
        self.assertEqual([self.successResultOf(each) for each in (before, after)], [None] * 2)

    def test_not_taken(self) -> None:
        """
        A context that was not taken fails without being refused: it can be sent again.
        """
        failure = self.failureResultOf(self.send_in_vain(), CommandFailed)
        self.assertNotIsInstance(failure.value, CommandRefused)


class MemorySinkTests(SinkContract, SynchronousTestCase):
    """
    The contract for L{MemorySink}.
    """

    def setUp(self) -> None:
        self.sink = MemorySink()

    def take(self) -> list[dict[str, Any]]:
        return [context for context, _, _ in self.sink.taken]

    def send_failing(self, failure: CommandFailed) -> Deferred[None]:
        self.sink.failure = failure
        try:
            return self.send({})
        finally:
            self.sink.failure = None

    def send_refused(self) -> Deferred[None]:
        return self.send_failing(CommandRefused("memory", "no"))

    def send_in_vain(self) -> Deferred[None]:
        return self.send_failing(CommandFailed("memory", "not now"))


class CommandTestCase(SynchronousTestCase):
    """
    A test with commands in memory.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.processes = MemoryProcesses()

    def run_service(self, service: Any) -> Any:
        """
        Start a service, and stop it after the test.
        """
        service.startService()
        self.addCleanup(self.clock.pump, [5.0, 5.0])
        self.addCleanup(service.stopService)
        return service

    def lines(self) -> list[dict[str, Any]]:
        """
        The contexts that the commands have read.
        """
        data = b"".join(process.read for process in self.processes.all)
        return [msgspec.json.decode(line) for line in data.splitlines()]


class CommandSinkTests(SinkContract, CommandTestCase):
    """
    The contract for L{CommandSink} with a process for each context.
    """

    def setUp(self) -> None:
        super().setUp()
        self.sink = self.run_service(CommandSink(TEMPLATE, self.processes, self.clock))

    def take(self) -> list[dict[str, Any]]:
        while self.processes.running:
            self.processes.running[0].exit()
        return self.lines()

    def send_in_vain(self) -> Deferred[None]:
        sent = self.send(an_event(1))
        self.processes.all[0].exit(1)
        return sent


class StreamSinkTests(SinkContract, CommandTestCase):
    """
    The contract for L{CommandSink} as a stream.
    """

    def setUp(self) -> None:
        super().setUp()
        self.sink = self.run_service(CommandSink(PLAIN, self.processes, self.clock, stream=True))

    def take(self) -> list[dict[str, Any]]:
        self.clock.advance(1.0)
        return self.lines()

    def send_in_vain(self) -> Deferred[None]:
        sent = self.send(an_event(1))
        self.sink.stopService()
        return sent


class StdoutSinkTests(SinkContract, SynchronousTestCase):
    """
    The contract for L{StdoutSink}, on a pipe.
    """

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        reader, writer = os.pipe()
        self.reader = os.fdopen(reader, "rb")
        self.addCleanup(self.reader.close)
        self.addCleanup(os.close, writer)
        self.sink = StdoutSink(self.reactor, Clock(), writer)
        self.sink.startService()

    def write(self) -> None:
        """
        The pipe is ready until nothing is left to write, or the reader is gone.
        """
        while self.reactor.writers:
            (writer,) = self.reactor.writers
            failed = writer.doWrite()
            if failed is not None:
                writer.stopWriting()
                writer.connectionLost(failed)

    def take(self) -> list[dict[str, Any]]:
        self.write()
        return [msgspec.json.decode(line) for line in self.reader.read1().splitlines()]

    def send_in_vain(self) -> Deferred[None]:
        self.reader.close()
        sent = self.send(an_event(1))
        self.write()
        return sent


class TransformContract:
    """
    The behaviour of every L{IContextTransform}; mixed into one class for each.

    @ivar transform: The transform, which has been started.
    """

    # Provided by the test case.
    assertEqual: Any
    assertIs: Any
    successResultOf: Any

    transform: Any

    def finish(self) -> None:
        """
        Let the transform change the events that wait.
        """

    def changed(self, event: dict[str, Any]) -> dict[str, Any]:
        """
        The context that an event is changed to.
        """
        return {"changed": event}

    def break_down(self) -> None:
        """
        No event can be changed any more.
        """
        raise NotImplementedError

    def start(self, event: dict[str, Any]) -> Deferred[dict[str, Any]]:
        result: Deferred[dict[str, Any]] = self.transform.transform(event, IOC, MatchType.LIVE)
        return result

    def test_interface(self) -> None:
        """
        It provides the interface.
        """
        verifyObject(IContextTransform, self.transform)

    def test_changed(self) -> None:
        """
        Each event gets its own context, and is not modified itself.
        """
        events = [an_event(number) for number in range(6)]
        results = [self.start(event) for event in events]
        self.finish()
        self.assertEqual(
            [self.successResultOf(each) for each in results], [self.changed(e) for e in events]
        )
        self.assertEqual(events, [an_event(number) for number in range(6)])

    def test_unchanged(self) -> None:
        """
        If an event cannot be changed, the event itself is the result.
        """
        event = an_event(1)
        self.break_down()
        result = self.start(event)
        self.finish()
        self.assertIs(self.successResultOf(result), event)

    def test_unencodable(self) -> None:
        """
        An event that cannot be encoded is no error either.
        """
        result = self.start(UNENCODABLE)
        self.finish()
        self.assertIs(self.successResultOf(result), UNENCODABLE)


class MemoryTransformTests(TransformContract, SynchronousTestCase):
    """
    The contract for L{MemoryTransform}.
    """

    def setUp(self) -> None:
        self.transform = MemoryTransform()

    def changed(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"changed": event, "value": IOC, "match_type": MatchType.LIVE}

    def break_down(self) -> None:
        self.transform.failing = True


class EachContextCommandTests(TransformContract, CommandTestCase):
    """
    The contract for L{ContextCommand} with a process for each event.
    """

    command = TEMPLATE
    stream = False

    def setUp(self) -> None:
        super().setUp()
        self.transform = self.run_service(
            ContextCommand(self.command, self.processes, self.clock, stream=self.stream)
        )

    def finish(self) -> None:
        while self.processes.running:
            process = self.processes.running[0]
            process.say(json_line(self.changed(msgspec.json.decode(process.read))))
            process.exit()

    def break_down(self) -> None:
        self.processes.missing = True


class StreamContextCommandTests(EachContextCommandTests):
    """
    The contract for L{ContextCommand} with one process for all events.
    """

    command = PLAIN
    stream = True

    def finish(self) -> None:
        answered = 0
        for process in self.processes.all:
            while answered < len(lines := process.read.splitlines()):
                process.say(json_line(self.changed(msgspec.json.decode(lines[answered]))))
                answered += 1
