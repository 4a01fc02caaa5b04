"""
Tests for L{tbvast.bridge.commands.context_command}, with processes in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.commands.command_line import Command
from tbvast.bridge.commands.context_command import MAX_ANSWER_BYTES, ContextCommand
from tbvast.stix.sightings import MatchType
from tests.doubles_processes import MemoryProcess, MemoryProcesses, an_event, json_line

LIVE = MatchType.LIVE
IOC = "6.6.6.6"
PLAIN = Command("tool", "/bin/tool", ("-x",))
TEMPLATE = Command("tool", "/bin/tool", ("--ioc=%ioc", "%matchtype"))


class ContextCommandCase(SynchronousTestCase):
    """
    The base of the tests for L{ContextCommand}.
    """

    command = PLAIN
    stream = False

    def setUp(self) -> None:
        self.clock = Clock()
        self.processes = MemoryProcesses()
        self.service = ContextCommand(self.command, self.processes, self.clock, self.stream)
        self.service.startService()
        self.addCleanup(self.check_end)

    def check_end(self) -> None:
        """
        Nothing is left once the service was stopped.
        """
        stopped = self.service.stopService()
        self.clock.pump([5.0, 1.0])
        self.successResultOf(stopped)
        self.assertEqual(self.processes.running, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def ask(self, number: int, value: str = IOC) -> Deferred[dict[str, Any]]:
        return self.service.transform(an_event(number), value, LIVE)

    def last(self) -> MemoryProcess:
        return self.processes.all[-1]

    def unchanged(self, d: Deferred[dict[str, Any]], number: int) -> None:
        self.assertEqual(self.successResultOf(d), an_event(number))


class StreamTests(ContextCommandCase):
    """
    Tests for L{ContextCommand} as a stream.
    """

    stream = True

    def answering(self) -> MemoryProcess:
        """
        A command that has answered an event.
        """
        d = self.ask(0)
        self.last().say(json_line({"x": 0}))
        self.assertEqual(self.successResultOf(d), {"x": 0})
        return self.last()

    def test_idle(self) -> None:
        """
        There is no process before there is an event.
        """
        self.assertEqual(self.processes.all, [])

    def test_one_process(self) -> None:
        """
        One process answers all events, in order, whatever the pieces.
        """
        process = self.answering()
        self.assertEqual(process.argv, [b"tool", b"-x"])
        self.assertEqual(process.executable, b"/bin/tool")
        self.assertTrue(process.bound)
        answers = [self.ask(n) for n in range(1, 4)]
        self.assertEqual(process.read, b"".join(json_line(an_event(n)) for n in range(4)))
        said = b"".join(json_line({"x": n}) for n in range(1, 4))
        for position in range(len(said)):
            process.say(said[position : position + 1])
        self.assertEqual([self.successResultOf(d) for d in answers], [{"x": n} for n in (1, 2, 3)])
        self.assertEqual(len(self.processes.all), 1)

    def test_bounded(self) -> None:
        """
        No more than C{in_flight} events are ahead of the answers.
        """
        process = self.answering()
        for n in range(100):
            self.ask(n)
        self.assertEqual(process.read.count(b"\n"), 1 + 64)
        process.say(json_line({}) * 10)
        self.assertEqual(process.read.count(b"\n"), 1 + 64 + 10)

    def test_asks_in_callback(self) -> None:
        """
        An event may be added when another's answer arrives.
        """
        process = self.answering()
        answers: list[dict[str, Any]] = []

        def again(context: dict[str, Any]) -> None:
            answers.append(context)
            if len(answers) < 3:
                self.ask(len(answers)).addCallback(again)

        self.ask(0).addCallback(again)
        for n in range(3):
            process.say(json_line({"x": n}))
        self.assertEqual(answers, [{"x": 0}, {"x": 1}, {"x": 2}])

    def test_no_json(self) -> None:
        """
        A line that is no JSON object leaves its event as it is; the others are
        asked again of a new process.
        """
        for bad in (b"oops\n", b"[1]\n", b"\xff\n", b'{"a":' * 100_000 + b"\n"):
            process = self.answering()
            first, second = self.ask(1), self.ask(2)
            with capturedLogs() as events:
                process.complain(b"something is odd")
                process.say(bad)
                self.clock.advance(1.0)
            self.unchanged(first, 1)
            self.assertNoResult(second)
            self.assertEqual(process.signals, ["TERM"])
            self.assertEqual(self.last().read, json_line(an_event(2)))
            self.last().say(json_line({"x": 2}))
            self.assertEqual(self.successResultOf(second), {"x": 2})
            for e in events:
                self.assertEqual(e["log_level"], LogLevel.warn)
                self.assertEqual(e["reason"], "its answer is not a JSON object")
                self.assertEqual(e["stderr"], "something is odd")
            self.clock.advance(100.0)

    def test_late(self) -> None:
        """
        An answer that does not come in time leaves its event as it is.
        """
        process = self.answering()
        first, second = self.ask(1), self.ask(2)
        self.clock.advance(9.9)
        self.assertNoResult(first)
        self.clock.advance(0.1)
        self.unchanged(first, 1)
        self.assertEqual(process.signals, ["TERM"])
        self.clock.advance(1.0)
        self.last().say(json_line({"x": 2}))
        self.assertEqual(self.successResultOf(second), {"x": 2})

    def test_time_for_each(self) -> None:
        """
        The time of an event begins when it is the first in line.
        """
        process = self.answering()
        answers = [self.ask(n) for n in range(3)]
        for _ in range(3):
            self.clock.advance(9.0)
            process.say(json_line({"x": 1}))
        for d in answers:
            self.assertEqual(self.successResultOf(d), {"x": 1})

    def test_death(self) -> None:
        """
        A death leaves the first event as it is; the others are asked again.
        """
        process = self.answering()
        first, second = self.ask(1), self.ask(2)
        with capturedLogs() as events:
            process.exit(3)
        self.unchanged(first, 1)
        self.assertEqual(events[0]["reason"], "ended with exit status 3")
        self.assertEqual(len(self.processes.all), 1)
        self.clock.advance(1.0)
        self.last().say(json_line({"x": 2}))
        self.assertEqual(self.successResultOf(second), {"x": 2})

    def test_idle_death(self) -> None:
        """
        A process that ends while it has nothing to do is replaced when needed.
        """
        process = self.answering()
        self.ask(0)
        process.say(json_line({}))
        process.exit(0)
        d = self.ask(1)
        self.last().say(json_line({"x": 1}))
        self.assertEqual(self.successResultOf(d), {"x": 1})
        self.assertEqual(len(self.processes.all), 2)

    def test_limited_run(self) -> None:
        """
        A command that ends by itself after some events goes on in a new process
        at once, and no event suffers.
        """
        process = self.answering()
        answers = [self.ask(n) for n in (1, 2)]
        process.say(json_line({"x": 1}))
        process.exit(0)
        self.last().say(json_line({"x": 2}))
        self.assertEqual([self.successResultOf(d) for d in answers], [{"x": 1}, {"x": 2}])

    def test_extra_line(self) -> None:
        """
        A line that answers nothing means that the command is out of step.
        """
        process = self.answering()
        process.say(json_line({"x": "extra"}))
        self.assertEqual(process.signals, ["TERM"])
        d = self.ask(1)
        self.clock.advance(1.0)
        self.last().say(json_line({"x": 1}))
        self.assertEqual(self.successResultOf(d), {"x": 1})

    def test_endless_line(self) -> None:
        """
        An answer without an end does not fill the memory.
        """
        process = self.answering()
        d = self.ask(1)
        piece = b"x" * (1 << 20)
        for _ in range(MAX_ANSWER_BYTES // len(piece) + 1):
            if not process.exited:
                process.say(piece)
        self.unchanged(d, 1)
        self.assertEqual(process.signals, ["TERM"])

    def test_broken(self) -> None:
        """
        While a command keeps failing, events do not wait for it; it is tried
        again, less and less often.
        """
        answers = [self.ask(n) for n in range(5)]
        self.last().exit(1)
        self.clock.advance(1.0)
        self.last().exit(1)
        self.clock.advance(2.0)
        self.assertNoResult(answers[3])
        self.last().exit(1)
        for n, d in enumerate(answers):
            self.unchanged(d, n)
        self.unchanged(self.ask(6), 6)
        self.clock.advance(4.0)
        self.assertEqual(len(self.processes.all), 3)
        d = self.ask(7)
        self.last().say(json_line({"x": 7}))
        self.assertEqual(self.successResultOf(d), {"x": 7})

    def test_missing(self) -> None:
        """
        A program that has vanished is a failure like any other.
        """
        self.processes.missing = True
        with capturedLogs() as events:
            self.unchanged(self.ask(1), 1)
        self.assertEqual(events[0]["reason"], "cannot be started: No such file or directory")
        self.processes.missing = False
        d = self.ask(2)
        self.clock.advance(1.0)
        self.last().say(json_line({"x": 2}))
        self.assertEqual(self.successResultOf(d), {"x": 2})

    def test_complaints(self) -> None:
        """
        Failures are logged once a minute, with their number.
        """
        with capturedLogs() as events:
            for _ in range(4):
                self.ask(1)
                self.last().exit(1)
                self.clock.advance(30.0)
        self.assertEqual([e["failures"] for e in events], [1, 2])

    def test_stop(self) -> None:
        """
        Waiting events are reported unchanged, and the process is ended.
        """
        process = self.answering()
        process.stubborn = True
        answers = [self.ask(n) for n in range(100)]
        stopped = self.service.stopService()
        for n, d in enumerate(answers):
            self.unchanged(d, n)
        self.assertEqual(process.signals, ["TERM"])
        self.clock.advance(4.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(process.signals, ["TERM", "KILL"])
        self.unchanged(self.ask(1), 1)

    def test_start_again(self) -> None:
        """
        A stopped service can be started again.
        """
        self.answering()
        self.successResultOf(self.service.stopService())
        self.service.startService()
        self.answering()

    def test_no_newline_at_end(self) -> None:
        """
        A line without an end is an answer, if the command ends with it.
        """
        d = self.ask(0)
        self.last().say(b'{"x": 0}')
        self.assertNoResult(d)
        self.last().exit()
        self.assertEqual(self.successResultOf(d), {"x": 0})
        d = self.ask(1)
        self.last().say(json_line({"x": 1}))
        self.assertEqual(self.successResultOf(d), {"x": 1})

    def test_silent_end(self) -> None:
        """
        A command that ends well but without an answer has failed.
        """
        d = self.ask(0)
        with capturedLogs() as events:
            self.last().exit()
        self.unchanged(d, 0)
        self.assertEqual(events[0]["reason"], "ended without an answer")


class OnceTests(ContextCommandCase):
    """
    Tests for L{ContextCommand} with a command that is run once for each event.
    """

    def test_each(self) -> None:
        """
        Each event has a process, which finds the end of its input; its whole output is the
        answer.
        """
        answers = [self.ask(n) for n in range(2)]
        self.assertEqual(len(self.processes.all), 2)
        for n, (process, d) in enumerate(zip(self.processes.all, answers, strict=True)):
            self.assertEqual(process.read, json_line(an_event(n)))
            self.assertTrue(process.input_closed)
            process.say(b'{"each":\n')
            process.say(b"true}")
            self.assertNoResult(d)
            process.exit()
            self.assertEqual(self.successResultOf(d), {"each": True})

    def test_environment(self) -> None:
        """
        The command has the variables of the service.
        """
        self.ask(0)
        self.assertIsNone(self.last().environment)

    def test_silent_end(self) -> None:
        """
        A command that ends well but without an answer has failed.
        """
        d = self.ask(0)
        with capturedLogs() as events:
            self.last().exit()
        self.unchanged(d, 0)
        self.assertEqual(events[0]["reason"], "its answer is not a JSON object")


class TemplateTests(ContextCommandCase):
    """
    Tests for L{ContextCommand} with a command that has placeholders.
    """

    command = TEMPLATE

    def test_arguments(self) -> None:
        """
        Each event has a process, with its own arguments.
        """
        d = self.ask(0, "a b; c")
        process = self.last()
        self.assertEqual(process.argv, [b"tool", b"--ioc=a b; c", b"LIVE"])
        self.assertEqual(process.read, json_line(an_event(0)))
        self.assertTrue(process.input_closed)
        process.say(b'{"x"')
        process.say(b": 1}\n")
        self.assertNoResult(d)
        process.exit()
        self.assertEqual(self.successResultOf(d), {"x": 1})

    def test_concurrency(self) -> None:
        """
        No more than four processes run at a time; the others wait.
        """
        answers = [self.ask(n) for n in range(10)]
        for n in range(10):
            self.assertLessEqual(len(self.processes.running), 4)
            process = self.processes.all[n]
            process.say(json_line({"x": n}))
            process.exit()
            self.assertEqual(self.successResultOf(answers[n]), {"x": n})

    def test_failures(self) -> None:
        """
        Whatever goes wrong, the event is reported unchanged.
        """
        d = self.ask(1)
        with capturedLogs() as events:
            self.last().complain(b"x" * 5000 + b"no")
            self.last().say(json_line({"x": 1}))
            self.last().exit(1)
        self.unchanged(d, 1)
        self.assertEqual(events[0]["reason"], "ended with exit status 1")
        self.assertTrue(events[0]["stderr"].endswith("no"))
        self.assertLess(len(events[0]["stderr"]), 3000)
        d = self.ask(2)
        self.last().exit(by_signal=9)
        self.unchanged(d, 2)
        d = self.ask(3)
        self.last().say(b"oops")
        self.last().exit()
        self.unchanged(d, 3)
        self.unchanged(self.ask(4, "a\0b"), 4)
        self.processes.missing = True
        self.unchanged(self.ask(5), 5)

    def test_late(self) -> None:
        """
        A process that does not end in time is ended; its place is free when it
        is gone.
        """
        answers = [self.ask(n) for n in range(5)]
        for process in self.processes.all:
            process.stubborn = True
        self.clock.advance(10.0)
        for n in range(4):
            self.unchanged(answers[n], n)
        self.assertEqual(len(self.processes.all), 4)
        self.clock.advance(5.0)
        self.assertEqual(len(self.processes.all), 5)
        self.assertEqual(self.processes.all[0].signals, ["TERM", "KILL"])

    def test_too_much(self) -> None:
        """
        A process that says too much is ended.
        """
        d = self.ask(0)
        self.last().say(b"x" * (MAX_ANSWER_BYTES + 1))
        self.unchanged(d, 0)
        self.assertEqual(self.last().signals, ["TERM"])

    def test_left_behind(self) -> None:
        """
        A process that holds on to the pipes of a dead one is not waited for.
        """
        d = self.ask(0)
        self.last().say(json_line({"x": 0}))
        self.last().exit(leave_pipes=True)
        self.assertNoResult(d)
        self.clock.advance(1.0)
        self.assertEqual(self.successResultOf(d), {"x": 0})

    def test_stop(self) -> None:
        """
        Waiting events are reported unchanged at once, many of them too.
        """
        answers = [self.ask(n) for n in range(5000)]
        self.successResultOf(self.service.stopService())
        for n, d in enumerate(answers):
            self.unchanged(d, n)
        self.assertEqual(len(self.processes.all), 4)
