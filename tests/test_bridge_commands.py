"""
Tests for L{tbvast.bridge.commands}, with processes in memory.
"""

from __future__ import annotations

import os
import shlex
import stat
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bridge.commands import (
    BATCH,
    LONGEST_ANSWER,
    Command,
    CommandSink,
    StdoutSink,
    TransformContext,
    parse_command,
)
from tbvast.errors import CommandFailed, CommandRefused, SettingsInvalid
from tbvast.interfaces import IContextTransform, ISink
from tbvast.stix.sightings import MatchType
from tests.doubles_processes import MemoryProcess, MemoryProcesses

LIVE = MatchType.LIVE
IOC = "6.6.6.6"
PLAIN = Command("tool", "/bin/tool", ("-x",))
TEMPLATE = Command("tool", "/bin/tool", ("--ioc=%ioc", "%matchtype"))


def event(number: int) -> dict[str, Any]:
    return {"n": number}


def line(document: Any) -> bytes:
    return msgspec.json.encode(document) + b"\n"


class ParseCommandTests(SynchronousTestCase):
    """
    Tests for L{parse_command}.
    """

    def refused(self, text: str) -> str:
        error = self.assertRaises(SettingsInvalid, parse_command, text, "sink")
        self.assertEqual(error.field, "sink")
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_words(self) -> None:
        """
        A command is split as a shell would, and its program is found.
        """
        command = parse_command("cat --prefix 'MY PREFIX' --ioc %ioc")
        self.assertEqual(command.program, "cat")
        self.assertTrue(os.path.isabs(command.executable))
        self.assertEqual(command.arguments, ("--prefix", "MY PREFIX", "--ioc", "%ioc"))
        self.assertTrue(command.per_event)
        self.assertFalse(parse_command("cat -u").per_event)

    def test_relative(self) -> None:
        """
        The path of a program stays right when the directory changes.
        """
        directory = self.mktemp()
        os.mkdir(directory)
        path = os.path.join(directory, "tool")
        with open(path, "w") as f:
            f.write("#!/bin/sh\n")
        os.chmod(path, stat.S_IRWXU)
        relative = os.path.relpath(path)
        self.assertEqual(parse_command(shlex.quote(relative)).executable, os.path.abspath(path))

    def test_unbalanced(self) -> None:
        self.assertEqual(
            self.refused("cat 'x"), 'sink: "cat \'x" is not a command with balanced quotes'
        )

    def test_empty(self) -> None:
        for text in ("", " ", "''"):
            self.refused(text)

    def test_no_program(self) -> None:
        """
        A program that does not exist is named.
        """
        self.assertIn("'no-such-program-here'", self.refused("no-such-program-here -x"))

    def test_program_from_event(self) -> None:
        """
        What is run is never an event's choice.
        """
        self.refused("%ioc")

    def test_code(self) -> None:
        """
        A placeholder inside a program text is refused: its value would be code.
        """
        for text in (
            "sh -c 'echo %ioc'",
            "/bin/bash -lc 'echo %ioc'",
            "env sh -c 'echo %matchtype'",
            "python3 -c 'print(\"%ioc\")'",
        ):
            self.assertIn("would be read as code", self.refused(text))

    def test_argument_of_code(self) -> None:
        """
        A placeholder that becomes an argument of a program text is fine.
        """
        parse_command("sh -c 'echo \"$1\"' sh %ioc")
        parse_command("grep -e %ioc")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """
        Whatever the text, there is a command or a readable refusal.
        """
        try:
            parse_command(text)
        except SettingsInvalid as e:
            self.assertTrue(str(e).startswith("command: "))


class ArgvTests(SynchronousTestCase):
    """
    Tests for L{Command.argv}.
    """

    def test_inside(self) -> None:
        """
        A placeholder is replaced within its word, and values are not searched
        for placeholders again.
        """
        command = Command("tool", "/bin/tool", ("a%iocb%ioc", "%matchtype", "x"))
        self.assertEqual(
            command.argv("%matchtype; $(id)\n'\"", MatchType.RETRO),
            [b"tool", b"a%matchtype; $(id)\n'\"b%matchtype; $(id)\n'\"", b"RETRO", b"x"],
        )

    def test_nul(self) -> None:
        self.assertRaises(CommandRefused, TEMPLATE.argv, "a\0b", LIVE)

    def test_surrogate(self) -> None:
        self.assertRaises(CommandRefused, TEMPLATE.argv, "\ud800", LIVE)

    def test_option(self) -> None:
        """
        A value does not become an option, but may start with a dash where it
        cannot be taken for one.
        """
        bare = Command("tool", "/bin/tool", ("--ioc", "%ioc"))
        self.assertRaises(CommandRefused, bare.argv, "-rf", LIVE)
        joined = Command("tool", "/bin/tool", ("--ioc=%ioc",))
        self.assertEqual(joined.argv("-rf", LIVE)[1:], [b"--ioc=-rf"])
        operand = Command("tool", "/bin/tool", ("--", "%ioc"))
        self.assertEqual(operand.argv("-rf", LIVE)[1:], [b"--", b"-rf"])

    @given(st.text(), st.sampled_from(MatchType))
    def test_count(self, value: str, match_type: MatchType) -> None:
        """
        No value makes another word, or none.
        """
        command = Command("tool", "/bin/tool", ("%ioc", "x=%ioc", "%matchtype"))
        try:
            argv = command.argv(value, match_type)
        except CommandRefused:
            self.assertTrue(value.startswith("-") or "\0" in value)
        else:
            encoded = value.encode()
            self.assertEqual(argv, [b"tool", encoded, b"x=" + encoded, match_type.value.encode()])


class TransformCase(SynchronousTestCase):
    """
    What the tests for L{TransformContext} share.
    """

    command = PLAIN

    def setUp(self) -> None:
        self.clock = Clock()
        self.processes = MemoryProcesses()
        self.service = TransformContext(self.command, self.processes, self.clock)
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
        return self.service.transform(event(number), value, LIVE)

    def last(self) -> MemoryProcess:
        return self.processes.all[-1]

    def unchanged(self, d: Deferred[dict[str, Any]], number: int) -> None:
        self.assertEqual(self.successResultOf(d), event(number))


class StreamingTransformTests(TransformCase):
    """
    Tests for L{TransformContext} with a command that answers line by line.
    """

    def stream(self) -> MemoryProcess:
        """
        Get the command to show that it streams.
        """
        d = self.ask(0)
        self.last().say(line({"x": 0}))
        self.assertEqual(self.successResultOf(d), {"x": 0})
        return self.last()

    def test_interface(self) -> None:
        verifyObject(IContextTransform, self.service)

    def test_idle(self) -> None:
        """
        There is no process before there is an event.
        """
        self.assertEqual(self.processes.all, [])

    def test_one_process(self) -> None:
        """
        One process answers all events, in order, whatever the pieces.
        """
        process = self.stream()
        self.assertEqual(process.argv, [b"tool", b"-x"])
        self.assertEqual(process.executable, b"/bin/tool")
        answers = [self.ask(n) for n in range(1, 4)]
        self.assertEqual(process.read, b"".join(line(event(n)) for n in range(4)))
        said = b"".join(line({"x": n}) for n in range(1, 4))
        for position in range(len(said)):
            process.say(said[position : position + 1])
        self.assertEqual([self.successResultOf(d) for d in answers], [{"x": n} for n in (1, 2, 3)])
        self.assertEqual(len(self.processes.all), 1)

    def test_careful(self) -> None:
        """
        Before its first answer, a command gets one event only.
        """
        self.ask(0)
        self.ask(1)
        self.assertEqual(self.last().read, line(event(0)))
        self.last().say(line({}))
        self.assertEqual(self.last().read, line(event(0)) + line(event(1)))

    def test_bounded(self) -> None:
        """
        No more than C{in_flight} events are ahead of the answers.
        """
        process = self.stream()
        for n in range(100):
            self.ask(n)
        self.assertEqual(process.read.count(b"\n"), 1 + 64)
        process.say(line({}) * 10)
        self.assertEqual(process.read.count(b"\n"), 1 + 64 + 10)

    def test_asks_in_callback(self) -> None:
        """
        An event may be added when another's answer arrives.
        """
        process = self.stream()
        answers: list[dict[str, Any]] = []

        def again(context: dict[str, Any]) -> None:
            answers.append(context)
            if len(answers) < 3:
                self.ask(len(answers)).addCallback(again)

        self.ask(0).addCallback(again)
        for n in range(3):
            process.say(line({"x": n}))
        self.assertEqual(answers, [{"x": 0}, {"x": 1}, {"x": 2}])

    def test_no_json(self) -> None:
        """
        A line that is no JSON object leaves its event as it is; the others are
        asked again of a new process.
        """
        for bad in (b"oops\n", b"[1]\n", b"\xff\n", b'{"a":' * 100_000 + b"\n"):
            process = self.stream()
            first, second = self.ask(1), self.ask(2)
            with capturedLogs() as events:
                process.complain(b"something is odd")
                process.say(bad)
                self.clock.advance(1.0)
            self.unchanged(first, 1)
            self.assertNoResult(second)
            self.assertEqual(process.signals, ["TERM"])
            self.assertEqual(self.last().read, line(event(2)))
            self.last().say(line({"x": 2}))
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
        process = self.stream()
        first, second = self.ask(1), self.ask(2)
        self.clock.advance(9.9)
        self.assertNoResult(first)
        self.clock.advance(0.1)
        self.unchanged(first, 1)
        self.assertEqual(process.signals, ["TERM"])
        self.clock.advance(1.0)
        self.last().say(line({"x": 2}))
        self.assertEqual(self.successResultOf(second), {"x": 2})

    def test_time_for_each(self) -> None:
        """
        The time of an event begins when it is the first in line.
        """
        process = self.stream()
        answers = [self.ask(n) for n in range(3)]
        for _ in range(3):
            self.clock.advance(9.0)
            process.say(line({"x": 1}))
        for d in answers:
            self.assertEqual(self.successResultOf(d), {"x": 1})

    def test_death(self) -> None:
        """
        A death leaves the first event as it is; the others are asked again.
        """
        process = self.stream()
        first, second = self.ask(1), self.ask(2)
        with capturedLogs() as events:
            process.exit(3)
        self.unchanged(first, 1)
        self.assertEqual(events[0]["reason"], "ended with exit status 3")
        self.assertEqual(len(self.processes.all), 1)
        self.clock.advance(1.0)
        self.last().say(line({"x": 2}))
        self.assertEqual(self.successResultOf(second), {"x": 2})

    def test_idle_death(self) -> None:
        """
        A process that ends while it has nothing to do is replaced when needed.
        """
        process = self.stream()
        self.ask(0)
        process.say(line({}))
        process.exit(0)
        d = self.ask(1)
        self.last().say(line({"x": 1}))
        self.assertEqual(self.successResultOf(d), {"x": 1})
        self.assertEqual(len(self.processes.all), 2)

    def test_limited_run(self) -> None:
        """
        A command that ends by itself after some events goes on in a new process
        at once, and no event suffers.
        """
        process = self.stream()
        answers = [self.ask(n) for n in (1, 2)]
        process.say(line({"x": 1}))
        process.exit(0)
        self.last().say(line({"x": 2}))
        self.assertEqual([self.successResultOf(d) for d in answers], [{"x": 1}, {"x": 2}])

    def test_extra_line(self) -> None:
        """
        A line that answers nothing means that the command is out of step.
        """
        process = self.stream()
        process.say(line({"x": "extra"}))
        self.assertEqual(process.signals, ["TERM"])
        d = self.ask(1)
        self.clock.advance(1.0)
        self.last().say(line({"x": 1}))
        self.assertEqual(self.successResultOf(d), {"x": 1})

    def test_endless_line(self) -> None:
        """
        An answer without an end does not fill the memory.
        """
        process = self.stream()
        d = self.ask(1)
        piece = b"x" * (1 << 20)
        for _ in range(LONGEST_ANSWER // len(piece) + 1):
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
        self.last().say(line({"x": 7}))
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
        self.last().say(line({"x": 2}))
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

    def test_no_json_form(self) -> None:
        """
        An event that cannot be given to the command is reported unchanged.
        """
        odd = {"x": object()}
        self.assertIs(self.successResultOf(self.service.transform(odd, IOC, LIVE)), odd)

    def test_stop(self) -> None:
        """
        What is waited for is reported unchanged; the process is ended.
        """
        process = self.stream()
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
        self.stream()
        self.successResultOf(self.service.stopService())
        self.service.startService()
        self.stream()


class DiscoveryTests(TransformCase):
    """
    Tests for L{TransformContext} with a command that turns out not to answer
    line by line.
    """

    def check_each(self, number: int) -> None:
        """
        From now on, each event has a process.
        """
        before = len(self.processes.all)
        answers = [self.ask(n) for n in range(number, number + 2)]
        self.assertEqual(len(self.processes.all), before + 2)
        for process, d in zip(self.processes.all[before:], answers, strict=True):
            self.assertTrue(process.input_closed)
            process.say(b'{"each":\n')
            process.say(b"true}")
            process.exit()
            self.assertEqual(self.successResultOf(d), {"each": True})

    def test_waits_for_end(self) -> None:
        """
        A command that waits for the end of its input gets it; said once.
        """
        first, second = self.ask(0), self.ask(1)
        process = self.last()
        self.clock.advance(2.9)
        self.assertFalse(process.input_closed)
        self.clock.advance(0.1)
        self.assertTrue(process.input_closed)
        with capturedLogs() as events:
            process.say(b'{\n "x":\n 0}\n')
            self.assertNoResult(first)
            process.exit()
            self.assertEqual(self.successResultOf(first), {"x": 0})
            self.last().say(b'{"x":1}')
            self.last().exit()
            self.assertEqual(self.successResultOf(second), {"x": 1})
            self.check_each(2)
        self.assertEqual([e["log_level"] for e in events], [LogLevel.info])

    def test_many_lines(self) -> None:
        """
        An answer of many lines, which begins at once, is taken whole.
        """
        d = self.ask(0)
        self.last().say(b"{\n")
        self.assertTrue(self.last().input_closed)
        self.last().say(b'"x": 0\n}\n')
        self.last().exit()
        self.assertEqual(self.successResultOf(d), {"x": 0})
        self.check_each(1)

    def test_one_line_and_end(self) -> None:
        """
        A command that ends after its first answer is run for each event.
        """
        first, second = self.ask(0), self.ask(1)
        self.last().say(line({"x": 0}))
        self.assertEqual(self.successResultOf(first), {"x": 0})
        self.last().exit()
        self.last().say(line({"x": 1}))
        self.last().exit()
        self.assertEqual(self.successResultOf(second), {"x": 1})
        self.check_each(2)

    def test_no_newline_and_end(self) -> None:
        """
        An answer without a newline, and the end, is an answer.
        """
        d = self.ask(0)
        self.last().say(b'{"x": 0}')
        self.last().exit()
        self.assertEqual(self.successResultOf(d), {"x": 0})
        self.check_each(1)

    def test_nothing(self) -> None:
        """
        A command that says nothing at all says nothing about how it works.
        """
        d = self.ask(0)
        self.clock.advance(3.0)
        self.assertTrue(self.last().input_closed)
        self.clock.advance(6.9)
        self.assertNoResult(d)
        self.clock.advance(0.1)
        self.unchanged(d, 0)
        d = self.ask(1)
        self.clock.advance(1.0)
        self.last().say(line({"x": 1}))
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


class TemplateTransformTests(TransformCase):
    """
    Tests for L{TransformContext} with a command that has placeholders.
    """

    command = TEMPLATE

    def test_arguments(self) -> None:
        """
        Each event has a process, with its own arguments.
        """
        d = self.ask(0, "a b; c")
        process = self.last()
        self.assertEqual(process.argv, [b"tool", b"--ioc=a b; c", b"LIVE"])
        self.assertEqual(process.read, line(event(0)))
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
            process.say(line({"x": n}))
            process.exit()
            self.assertEqual(self.successResultOf(answers[n]), {"x": n})

    def test_failures(self) -> None:
        """
        Whatever goes wrong, the event is reported unchanged.
        """
        d = self.ask(1)
        with capturedLogs() as events:
            self.last().complain(b"x" * 5000 + b"no")
            self.last().say(line({"x": 1}))
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
        self.last().say(b"x" * (LONGEST_ANSWER + 1))
        self.unchanged(d, 0)
        self.assertEqual(self.last().signals, ["TERM"])

    def test_left_behind(self) -> None:
        """
        A process that holds on to the pipes of a dead one is not waited for.
        """
        d = self.ask(0)
        self.last().say(line({"x": 0}))
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


class SinkCase(SynchronousTestCase):
    """
    What the tests for L{CommandSink} share.
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
        d = self.service.send(event(number), value, LIVE)
        d.addErrback(lambda f: f)
        return d

    def last(self) -> MemoryProcess:
        return self.processes.all[-1]


class CommandSinkTests(SinkCase):
    """
    Tests for L{CommandSink}, a process for each event.
    """

    def test_interface(self) -> None:
        verifyObject(ISink, self.service)

    def test_taken(self) -> None:
        """
        An event is taken when its process ends with status 0.
        """
        d = self.send(1)
        self.assertEqual(self.last().argv, [b"tool", b"--ioc=6.6.6.6", b"LIVE"])
        self.assertEqual(self.last().read, line(event(1)))
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
        What can never be handed over fails in a way of its own.
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
        What was not taken fails, so that the caller can keep it.
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

    def test_interface(self) -> None:
        verifyObject(ISink, self.service)

    def test_placeholders(self) -> None:
        """
        A stream has no single value for a placeholder.
        """
        error = self.assertRaises(
            SettingsInvalid, CommandSink, TEMPLATE, self.processes, self.clock, stream=True
        )
        self.assertIn("--ioc=%ioc", str(error))

    def test_one_process(self) -> None:
        """
        One process is given all lines; each is taken when it is in the pipe.
        """
        sent = [self.send(n) for n in range(3)]
        self.assertEqual(self.last().read, b"")
        process = self.settle()
        for d in sent:
            self.successResultOf(d)
        self.successResultOf(self.send(3))
        self.assertEqual(process.read, b"".join(line(event(n)) for n in range(4)))

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
        self.assertLess(len(process.read) - before, BATCH + 2000)
        for _ in range(3):
            process.drain()
        self.successResultOf(sent[-1])

    def test_death(self) -> None:
        """
        What was not in the pipe when the process died is given to the next one.
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
        self.assertEqual(self.settle().read, line(event(1)) + line(event(2)))
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
        self.assertEqual(self.settle().read, line(event(1)))

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
        self.assertEqual(self.settle().read, line(event(1)))
        self.successResultOf(d)

    def test_stop(self) -> None:
        """
        A stream can end by itself once its input is closed; what was not taken
        fails.
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


class StdoutSinkTests(SynchronousTestCase):
    """
    Tests for L{StdoutSink}, on a pipe of its own.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.reactor = MemoryReactor()
        self.reader, writer = os.pipe()
        self.addCleanup(os.close, writer)
        self.service = StdoutSink(self.reactor, self.clock, writer)
        self.service.startService()

    def tearDown(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def step(self) -> None:
        """
        The descriptor is ready: let what waits for it write once.
        """
        for writer in list(self.reactor.writers):
            failed = writer.doWrite()
            if failed is not None:
                writer.stopWriting()
                writer.connectionLost(failed)

    def test_interface(self) -> None:
        verifyObject(ISink, self.service)

    def test_lines(self) -> None:
        """
        Each event is one line, taken when it was written.
        """
        sent = [self.service.send({"x": n, "t": "a\nb"}, IOC, LIVE) for n in range(2)]
        self.assertNoResult(sent[0])
        self.step()
        self.step()
        for d in sent:
            self.successResultOf(d)
        self.assertEqual(os.read(self.reader, 100), b'{"x":0,"t":"a\\nb"}\n{"x":1,"t":"a\\nb"}\n')
        self.assertEqual(list(self.reactor.writers), [])

    def test_never_blocks(self) -> None:
        """
        No more is written at a time than a pipe takes that is ready.
        """
        document = {"x": "y" * 100_000}
        d = self.service.send(document, IOC, LIVE)
        received = b""
        while self.reactor.writers:
            self.assertNoResult(d)
            self.step()
            piece = os.read(self.reader, 1 << 20)
            self.assertLessEqual(len(piece), 4096)
            received += piece
        self.successResultOf(d)
        self.assertEqual(received, line(document))

    def test_gone(self) -> None:
        """
        Without a reader, everything fails.
        """
        os.close(self.reader)
        self.reader = -1
        sent = [self.service.send(event(n), IOC, LIVE) for n in range(2)]
        self.step()
        for d in sent:
            self.failureResultOf(d, CommandFailed)
        error = self.failureResultOf(self.service.send(event(3), IOC, LIVE), CommandFailed).value
        self.assertEqual(str(error), "command STDOUT: its reader has gone")
        self.successResultOf(self.service.stopService())

    def test_refused(self) -> None:
        self.failureResultOf(self.service.send({"x": object()}, IOC, LIVE), CommandRefused)

    def test_stop(self) -> None:
        """
        The rest is still written when the service is stopped.
        """
        d = self.service.send(event(0), IOC, LIVE)
        stopped = self.service.stopService()
        self.failureResultOf(self.service.send(event(1), IOC, LIVE), CommandFailed)
        self.assertNoResult(stopped)
        self.step()
        self.successResultOf(d)
        self.successResultOf(stopped)

    def test_stop_at_once(self) -> None:
        self.successResultOf(self.service.stopService())

    def test_stop_in_vain(self) -> None:
        """
        A reader that takes nothing is not waited for longer than the limit.
        """
        d = self.service.send(event(0), IOC, LIVE)
        stopped = self.service.stopService()
        self.clock.advance(5.0)
        self.failureResultOf(d, CommandFailed)
        self.successResultOf(stopped)
        self.assertEqual(list(self.reactor.writers), [])
