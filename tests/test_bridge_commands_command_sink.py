"""
Tests for L{tbvast.bridge.commands.command_sink}, with processes in memory.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.commands.command_line import Command
from tbvast.bridge.commands.command_sink import CommandSink
from tbvast.bridge.commands.processes import WRITE_BYTES
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.stix.sightings import MatchType
from tests.doubles_processes import MemoryProcess, MemoryProcesses, an_event, json_line

LIVE = MatchType.LIVE
IOC = "6.6.6.6"
PLAIN = Command("tool", "/bin/tool", ("-x",))
TEMPLATE = Command("tool", "/bin/tool", ("--ioc=%ioc", "%matchtype"))


class SinkCase(SynchronousTestCase):
    """
    The base of the tests for L{CommandSink}.
    """

    command = TEMPLATE
    stream = False

    def setUp(self) -> None:
        self.clock = Clock()
        self.processes = MemoryProcesses()
        self.service = CommandSink(self.command, self.processes, self.clock, stream=self.stream)
        self.service.startService()
        self.addCleanup(self.check_end)

    def check_end(self) -> None:
        """
        Nothing is left once the service was stopped.
        """
        stopped = self.service.stopService()
        self.clock.pump([5.0, 5.0, 1.0])
        self.successResultOf(stopped)
        self.assertEqual(self.processes.running, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def send(self, number: int, value: str = IOC) -> Deferred[None]:
        d = self.service.send(an_event(number), value, LIVE)
        d.addErrback(lambda f: f)
        return d

    def last(self) -> MemoryProcess:
        return self.processes.all[-1]


class CommandSinkTests(SinkCase):
    """
    Tests for L{CommandSink}, a process for each event.
    """

    def test_taken(self) -> None:
        """
        An event is taken when its process ends with status 0.
        """
        d = self.send(1)
        self.assertEqual(self.last().argv, [b"tool", b"--ioc=6.6.6.6", b"LIVE"])
        self.assertEqual(self.last().read, json_line(an_event(1)))
        self.last().say(b"x" * 100)
        self.assertNoResult(d)
        self.last().exit()
        self.successResultOf(d)

    def test_failed(self) -> None:
        """
        Any other end is a failure which says why, in one line.
        """
        d = self.send(1)
        self.last().complain(b"one\nno \x1b space left\n")
        self.last().exit(4)
        error = self.failureResultOf(d, CommandFailed).value
        self.assertEqual(
            str(error),
            "command tool: ended with exit status 4 (its last line: 'no \\x1b space left')",
        )
        self.assertNotIsInstance(error, CommandRefused)

    def test_late(self) -> None:
        d = self.send(1)
        self.clock.advance(10.0)
        error = self.failureResultOf(d, CommandFailed).value
        self.assertEqual(str(error), "command tool: not finished after 10 s")

    def test_refused(self) -> None:
        """
        A context that can never be sent fails with an error of its own.
        """
        self.failureResultOf(self.send(1, "a\0b"), CommandRefused)
        d = self.service.send({"x": object()}, IOC, LIVE)
        self.failureResultOf(d, CommandRefused)
        self.assertEqual(self.processes.all, [])

    def test_retry_in_errback(self) -> None:
        """
        A caller may send again at once; it takes no stack.
        """
        self.processes.missing = True
        failures: list[object] = []

        def again(failure: object) -> object:
            failures.append(failure)
            return self.send(1).addErrback(again) if len(failures) < 50 else None

        self.send(1).addErrback(again)
        self.assertEqual(len(failures), 50)

    def test_stop(self) -> None:
        """
        An event that was not taken fails, so that the caller can retry.
        """
        sent = [self.send(n) for n in range(6)]
        self.successResultOf(self.service.stopService())
        for d in sent:
            self.failureResultOf(d, CommandFailed)
        self.failureResultOf(self.send(7), CommandFailed)


class StreamSinkTests(SinkCase):
    """
    Tests for L{CommandSink} as a stream.
    """

    command = PLAIN
    stream = True

    def settle(self) -> MemoryProcess:
        self.clock.advance(0.5)
        return self.last()

    def test_one_process(self) -> None:
        """
        One process is given all lines; each is taken when it is in the pipe.
        """
        sent = [self.send(n) for n in range(3)]
        self.assertEqual(self.last().read, b"")
        self.assertFalse(self.last().bound)  # it can still read what it has taken
        process = self.settle()
        for d in sent:
            self.successResultOf(d)
        self.successResultOf(self.send(3))
        self.assertEqual(process.read, b"".join(json_line(an_event(n)) for n in range(4)))

    def test_pressure(self) -> None:
        """
        While the pipe is full, lines wait here; that it lasts is logged.
        """
        first = self.send(0)
        self.last().clogged = True
        process = self.settle()
        second = self.send(1)
        self.assertNoResult(first)
        with capturedLogs() as events:
            self.clock.advance(10.0)
        self.assertEqual(events[0]["waiting"], 2)
        self.assertNoResult(first)
        process.drain()
        self.successResultOf(first)
        self.assertNoResult(second)
        process.drain()
        self.successResultOf(second)

    def test_batches(self) -> None:
        """
        About as much as a pipe holds is on its way at a time.
        """
        self.send(0)
        process = self.settle()
        process.clogged = True
        self.send(1)
        sent = [self.service.send({"x": "y" * 1000}, IOC, LIVE) for _ in range(200)]
        process.drain()
        before = len(process.read)
        self.assertNoResult(sent[0])
        process.drain()
        self.successResultOf(sent[0])
        self.assertNoResult(sent[-1])
        self.assertLess(len(process.read) - before, WRITE_BYTES + 2000)
        for _ in range(3):
            process.drain()
        self.successResultOf(sent[-1])

    def test_death(self) -> None:
        """
        A line that was not in the pipe when the process ended is sent to the next one.
        """
        self.send(0)
        process = self.settle()
        process.clogged = True
        sent = [self.send(n) for n in (1, 2)]
        with capturedLogs() as events:
            process.exit(1)
        self.assertEqual(events[0]["reason"], "ended with exit status 1")
        self.assertEqual(len(self.processes.all), 1)
        self.clock.advance(1.0)
        self.assertEqual(self.settle().read, json_line(an_event(1)) + json_line(an_event(2)))
        for d in sent:
            self.successResultOf(d)

    def test_crash_at_start(self) -> None:
        """
        A command that dies as soon as it runs swallows no event, and is tried
        less and less often.
        """
        d = self.send(0)
        for delay in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
            self.last().exit(1)
            count = len(self.processes.all)
            self.clock.advance(delay - 0.1)
            self.assertEqual(len(self.processes.all), count)
            self.clock.advance(0.1)
            self.assertEqual(len(self.processes.all), count + 1)
        self.assertNoResult(d)
        self.settle()
        self.successResultOf(d)

    def test_long_life(self) -> None:
        """
        One that ran for long starts again soon.
        """
        self.send(0)
        self.last().exit(1)
        self.clock.advance(1.0)
        self.settle()
        self.clock.advance(31.0)
        self.last().exit(1)
        self.send(1)
        self.clock.advance(1.0)
        self.assertEqual(self.settle().read, json_line(an_event(1)))

    def test_missing(self) -> None:
        self.processes.missing = True
        d = self.send(0)
        self.assertNoResult(d)
        self.processes.missing = False
        self.clock.advance(1.0)
        self.settle()
        self.successResultOf(d)

    def test_deaf(self) -> None:
        """
        A process that closes its input has a while to end by itself, and is
        replaced.
        """
        self.send(0)
        process = self.settle()
        process.close_stdin()
        d = self.send(1)
        self.assertNoResult(d)
        self.clock.advance(9.9)
        self.assertEqual(process.signals, [])
        self.clock.advance(0.1)
        self.assertEqual(process.signals, ["TERM"])
        self.clock.advance(1.0)
        self.assertEqual(self.settle().read, json_line(an_event(1)))
        self.successResultOf(d)

    def test_stop(self) -> None:
        """
        A stream can end by itself once its input is closed; lines that were not taken fail.
        """
        self.send(0)
        process = self.settle()
        process.stubborn = True
        process.clogged = True
        d = self.send(1)
        stopped = self.service.stopService()
        self.failureResultOf(d, CommandFailed)
        self.assertEqual(process.signals, [])
        self.clock.advance(5.0)
        self.assertEqual(process.signals, ["TERM"])
        self.assertNoResult(stopped)
        self.clock.advance(5.0)
        self.assertEqual(process.signals, ["TERM", "KILL"])
        self.successResultOf(stopped)
        self.failureResultOf(self.send(2), CommandFailed)

    def test_stop_deaf(self) -> None:
        """
        Stopping does not wait for the while that a deaf process has.
        """
        self.send(0)
        process = self.settle()
        process.close_stdin()
        stopped = self.service.stopService()
        self.clock.advance(5.0)
        self.successResultOf(stopped)
        self.assertEqual(process.signals, ["TERM"])

    def test_stop_at_end_of_input(self) -> None:
        self.send(0)
        process = self.settle()
        stopped = self.service.stopService()
        self.assertTrue(process.input_closed)
        self.assertNoResult(stopped)
        process.exit()
        self.successResultOf(stopped)
        self.assertEqual(process.signals, [])

    def test_start_again(self) -> None:
        self.successResultOf(self.service.stopService())
        self.service.startService()
        d = self.send(0)
        self.settle()
        self.successResultOf(d)
