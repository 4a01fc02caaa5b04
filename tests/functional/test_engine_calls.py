"""
Engine commands as real processes: what they print, how they end, what is left.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

import tbvast
from tbvast.engines import pyvast_calls
from tbvast.engines.pyvast_calls import Commands, error_summary
from tbvast.engines.threads import EngineThreads
from tbvast.engines.vast import VastEngine
from tbvast.errors import (
    EngineCallFailed,
    EngineInterrupted,
    EngineMissing,
    EngineTimeout,
    EngineUnreachable,
)
from tbvast.values import Match
from tests.doubles_engine import unheeded
from tests.functional.components import alive, children, wait_until

LIMIT = 30.0


def script(folder: Path, text: str) -> str:
    """
    An executable of Python, that finds its arguments in C{arguments}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = folder / "body.py"
    body.write_text(f"import os, sys, time\narguments = sys.argv[1:]\n{text}\n")
    command = folder / "command"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{body}" "$@"\n')
    command.chmod(0o700)
    return str(command)


class CommandsTestCase(SynchronousTestCase):
    """
    A test with commands that leave nothing behind.
    """

    def setUp(self) -> None:
        self.addCleanup(lambda: self.assertEqual(children(os.getpid()), []))

    def commands(self, text: str) -> Commands:
        return Commands(script(Path(self.mktemp()).absolute(), text), "h:1", ("--option",))


class RunTests(CommandsTestCase):
    """
    L{Commands.run} runs a command to its end.
    """

    def test_arguments(self) -> None:
        """
        The endpoint comes first, then the options, then the arguments.
        """
        result = self.commands("print(*arguments, sep='\\n')").run("x", ["a b", ""], timeout=LIMIT)
        self.assertEqual(result.lines, [b"-e", b"h:1", b"--option", b"a b", b""])
        self.assertEqual(result.warnings, "")

    def test_input(self) -> None:
        """
        The command reads what it is given, byte for byte.
        """
        given = 'é"\n' * 100_000
        copied = self.commands("sys.stdout.write(sys.stdin.read())")
        result = copied.run("x", [], given, timeout=LIMIT)
        self.assertEqual(b"\n".join(result.lines), given.rstrip("\n").encode())

    def test_no_input(self) -> None:
        """
        A command that is given nothing to read finds the end, not our input.
        """
        result = self.commands("print(len(sys.stdin.read()))").run("x", [], timeout=LIMIT)
        self.assertEqual(result.lines, [b"0"])

    def test_long_line(self) -> None:
        """
        A line may be longer than any buffer.
        """
        result = self.commands("print('x' * 3_000_000)\nprint('y')").run("x", [], timeout=LIMIT)
        self.assertEqual([len(line) for line in result.lines], [3_000_000, 1])

    def test_endless_line(self) -> None:
        """
        A line that is longer than any event fails the call.
        """
        self.patch(pyvast_calls, "MAX_LINE_BYTES", 1_000_000)
        commands = self.commands("print('x' * 3_000_000)")
        e = self.assertRaises(EngineCallFailed, commands.run, "x", [], timeout=LIMIT)
        self.assertIn("a line is longer than 1000000 bytes", str(e))

    def test_many_complaints(self) -> None:
        """
        A command that complains at length while it is still given input is read
        to its end; what is kept of it is bounded.
        """
        text = "for line in sys.stdin:\n    print('warning: ' + 'w' * 1000, file=sys.stderr)\n"
        result = self.commands(text).run("x", [], "line\n" * 5_000, timeout=LIMIT)
        self.assertTrue(result.warnings.startswith("warning: www"))
        self.assertLessEqual(len(result.warnings), pyvast_calls.MAX_STDERR_BYTES)

    def test_failure(self) -> None:
        """
        What a command says when it fails is in the error.
        """
        commands = self.commands("sys.exit('error: context `x` not found\\n  | more')")
        e = self.assertRaises(EngineCallFailed, commands.run, "add", [], timeout=LIMIT)
        self.assertEqual(str(e), "engine call add failed: error: context `x` not found | more")

    def test_silent_failure(self) -> None:
        """
        A command that fails without a word has its status named.
        """
        commands = self.commands("sys.exit(3)")
        e = self.assertRaises(EngineCallFailed, commands.run, "add", [], timeout=LIMIT)
        self.assertIn("exit status 3", str(e))

    def test_ends_before_input(self) -> None:
        """
        A command that fails before it has read all says why.
        """
        commands = self.commands("os.close(0)\nsys.exit('error: failed to connect to node')")
        with self.assertRaises(EngineUnreachable) as raised:
            commands.run("add", [], "x" * 10_000_000, timeout=LIMIT)
        self.assertIn("h:1", str(raised.exception))

    def test_time_limit(self) -> None:
        """
        A command that takes too long is ended, even one that will not hear of it.
        """
        text = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(99)"
        began = time.monotonic()
        self.assertRaises(EngineTimeout, self.commands(text).run, "x", [], timeout=0.5)
        self.assertLess(time.monotonic() - began, 5.0)

    def test_time_limit_while_writing(self) -> None:
        """
        A command that reads nothing is ended too.
        """
        commands = self.commands("time.sleep(99)")
        self.assertRaises(EngineTimeout, commands.run, "x", [], "x" * 10_000_000, timeout=0.5)

    def test_fed(self) -> None:
        """
        A command reads what it is given as that comes.
        """
        echo = Path(self.mktemp())
        echo.touch()
        commands = self.commands(
            f"for line in sys.stdin:\n    open({str(echo.absolute())!r}, 'a').write(line)\nprint(1)"
        )

        def read(number: str) -> bool:
            return echo.read_text().endswith(f"{number}\n")

        def texts() -> Iterator[str]:
            for number in "012":
                yield f"{number}\n"
                wait_until(partial(read, number))

        self.assertEqual(commands.feed("x", [], texts(), timeout=LIMIT).lines, [b"1"])

    def test_fed_ends(self) -> None:
        """
        A command that ends before it has read all says why, or that it should not have.
        """
        for text, reason in (("os.close(0)\nsys.exit('error: no')", "no"), ("", "everything")):
            commands = self.commands(text)
            with self.assertRaises(EngineCallFailed) as raised:
                commands.feed("add", [], itertools.repeat("x" * 100_000), timeout=LIMIT)
            self.assertIn(reason, str(raised.exception))

    def test_fed_time_limit(self) -> None:
        """
        A command that reads nothing of what it is given is ended.
        """
        commands = self.commands("time.sleep(99)")
        texts = itertools.repeat("x" * 100_000)
        self.assertRaises(EngineTimeout, commands.feed, "x", [], texts, timeout=0.5)

    def test_fed_interrupted(self) -> None:
        """
        What ends the texts ends the command.
        """
        pid = Path(self.mktemp()).absolute()
        commands = self.commands(
            f"open({str(pid)!r}, 'w').write(str(os.getpid()) + ' ')\nsys.stdin.read()"
        )

        def texts() -> Iterator[str]:
            yield "x"
            wait_until(lambda: pid.exists() and pid.read_text().endswith(" "))
            raise EngineInterrupted("x")

        self.assertRaises(EngineInterrupted, commands.feed, "x", [], texts(), timeout=LIMIT)
        self.assertRaises(ProcessLookupError, os.kill, int(pid.read_text()), 0)

    def test_missing(self) -> None:
        """
        A command that is not there is not sought in a container.
        """
        commands = Commands(str(Path(self.mktemp()).absolute()), "h:1")
        self.assertRaises(EngineMissing, commands.run, "x", [], timeout=LIMIT)

    def test_quiet(self) -> None:
        """
        PyVAST writes nothing of what a command is given anywhere.
        """
        self.commands("").run("x", [], "secret", timeout=LIMIT)
        self.assertEqual(logging.getLogger("vast").handlers, [])

    def test_session(self) -> None:
        """
        A command does not see the Ctrl-C that is meant for us.
        """
        commands = self.commands("print(os.getsid(0) == os.getpid())")
        self.assertEqual(commands.run("x", [], timeout=LIMIT).lines, [b"True"])


ENDLESS = """
number = 0
while True:
    print(number, flush=True)
    number += 1
    time.sleep(0.01)
"""


class StreamTests(CommandsTestCase):
    """
    L{Commands.stream} gives lines as they come.
    """

    def test_started(self) -> None:
        """
        The first batch says that the command has started.
        """
        with closing(self.commands("time.sleep(99)").stream("x", [])) as batches:
            self.assertEqual(next(batches), [])
            self.assertEqual(len(children(os.getpid())), 1)

    def test_closed(self) -> None:
        """
        Closing the iterator ends the command.
        """
        batches = self.commands(ENDLESS).stream("x", [])
        while next(batches) == []:
            pass
        batches.close()
        self.assertEqual(children(os.getpid()), [])

    def test_interrupt(self) -> None:
        """
        An interrupt from another thread ends all calls, and those of a child, too.
        """
        commands = self.commands("time.sleep(99)")
        child = commands.child()
        batches = child.stream("x", [])
        next(batches)
        timer = threading.Timer(0.2, commands.interrupt)
        timer.start()
        began = time.monotonic()
        self.assertRaises(EngineInterrupted, next, batches)
        self.assertLess(time.monotonic() - began, 2.0)
        for each in (commands, child):
            self.assertRaises(EngineInterrupted, each.run, "x", [], timeout=LIMIT)
        commands.resume()
        timer.join()

    def test_waiting(self) -> None:
        """
        An interrupt from another thread ends a wait for a socket, and lets none begin.
        """
        commands = self.commands("print(1)")
        one, other = socket.socketpair()
        self.addCleanup(one.close)
        self.addCleanup(other.close)
        with commands.child().waiting("x") as waiter:
            self.assertTrue(waiter.ready(one, LIMIT, to_write=True))
            self.assertFalse(waiter.ready(one, 0.0))
            other.send(b"x")
            self.assertTrue(waiter.ready(one, LIMIT))
            one.recv(1)
            timer = threading.Timer(0.2, commands.interrupt)
            timer.start()
            began = time.monotonic()
            self.assertRaises(EngineInterrupted, waiter.ready, one, LIMIT)
            self.assertLess(time.monotonic() - began, 2.0)
            commands.resume()
            self.assertRaises(EngineInterrupted, waiter.ready, one, LIMIT, to_write=True)
            timer.join()
        commands.interrupt()
        self.assertRaises(EngineInterrupted, commands.waiting("x").__enter__)
        commands.resume()

    def test_interrupt_part(self) -> None:
        """
        An interruption of a child leaves the others alone.
        """
        commands = self.commands("print(1)")
        child = commands.child()
        child.interrupt()
        self.assertRaises(EngineInterrupted, child.run, "x", [], timeout=LIMIT)
        self.assertEqual(commands.run("x", [], timeout=LIMIT).lines, [b"1"])

    def test_slow_reader(self) -> None:
        """
        A command whose lines are not taken waits, and loses none.
        """
        text = "for number in range(200_000): print(number)"
        batches = self.commands(text).stream("x", [])
        next(batches)
        time.sleep(0.2)
        lines = [int(line) for batch in batches for line in batch]
        self.assertEqual(lines, list(range(200_000)))


PARENT = """
import sys
from tbvast.engines.pyvast_calls import Commands
for lines in Commands(sys.argv[1], "h:1").stream("x", []):
    print("started", flush=True)
"""


class OrphanTests(CommandsTestCase):
    """
    No command outlives the process that runs it.
    """

    def test_killed(self) -> None:
        """
        When that is killed, the command ends.
        """
        command = script(Path(self.mktemp()).absolute(), "time.sleep(99)")
        package = str(Path(tbvast.__file__).parent.parent)
        with subprocess.Popen(
            [sys.executable, "-c", PARENT, command],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": package},
        ) as parent:
            assert parent.stdout is not None
            self.assertEqual(parent.stdout.readline(), b"started\n")
            (child,) = children(parent.pid)
            os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: not alive(child))


class ErrorSummaryTests(SynchronousTestCase):
    """
    L{error_summary} makes one bounded line of what a command said.
    """

    def test_line(self) -> None:
        """
        The error counts for more than the warnings before it.
        """
        self.assertEqual(error_summary("warning: a\n\nerror: b\n  | c\n"), "error: b | c")
        self.assertEqual(error_summary("noise\nwarning: a"), "warning: a")
        self.assertEqual(error_summary("noise"), "noise")
        self.assertEqual(error_summary(""), "")
        self.assertLess(len(error_summary("x" * 10_000)), 400)


class EngineThreadsTests(TestCase):
    """
    L{EngineThreads} asks an engine in threads, and ends with all of them.
    """

    timeout = 60

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        text = (
            "if 'attach' in arguments:\n"
            "    time.sleep(99)\n"
            "if 'version' in arguments:\n"
            '    print(\'{"VAST": "1"}\')\n'
        )
        engine = VastEngine("127.0.0.1:1", script(folder, text), "abc")
        self.service = EngineThreads(reactor, engine)
        self.service.startService()

    async def test_stop(self) -> None:
        """
        Stopping ends what runs, and leaves neither threads nor commands.
        """
        client = self.service.client
        started: Deferred[list[Match]] = Deferred()
        watch = client.watch(started.callback, unheeded)
        self.assertEqual(await started, [])
        self.assertEqual((await client.identify()).name, "vast")
        stopped = self.service.stopService()
        await self.assertFailure(watch, EngineInterrupted)
        await stopped
        self.assertEqual(children(os.getpid()), [])
        left = [thread.name for thread in threading.enumerate() if "tbvast" in thread.name]
        self.assertEqual(left, [])

    async def test_cancel(self) -> None:
        """
        A live match that is cancelled ends, while the engine can still be asked.
        """
        client = self.service.client
        started: Deferred[list[Match]] = Deferred()
        watch = client.watch(started.callback, unheeded)
        await started
        watch.cancel()
        await self.assertFailure(watch, CancelledError)
        again: Deferred[list[Match]] = Deferred()
        other: Any = client.watch(again.callback, unheeded)
        self.assertEqual(await again, [])  # the first has ended: only one runs at a time
        self.assertEqual(len(children(os.getpid())), 1)
        stopped = self.service.stopService()
        await self.assertFailure(other, EngineInterrupted)
        await stopped
