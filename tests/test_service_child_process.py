"""
Tests for L{tbvast.service.child_process}, with processes in memory.
"""

from __future__ import annotations

import os
import signal
import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from devtools.services import shell_status
from tbvast.service import launch
from tbvast.service.child_process import (
    LINGER_SECONDS,
    MAX_STDERR_BYTES,
    REAP_SECONDS,
    BackOff,
    Child,
    ChildOwner,
    Children,
    Exit,
    ending_signals,
    launch_command,
)
from tests.doubles_processes import MemoryProcess, MemoryProcesses


class PolicyTests(SynchronousTestCase):
    """
    Tests for the parts that blocking callers share.
    """

    def test_launch_command(self) -> None:
        """
        A bare interpreter launches the program, which dies with this process.
        """
        own = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
        for name, shown in ((None, "/bin/x"), ("y", "y")):
            command = launch_command("/bin/x", ["a b"], name)
            self.assertEqual([w.decode() for w in command], [*own, shown, "/bin/x", "a b"])

    def test_signals(self) -> None:
        """
        SIGKILL follows the last SIGTERM.
        """
        self.assertEqual(
            list(ending_signals((0.3, 0.5))),
            [
                (signal.SIGTERM, 0.3),
                (signal.SIGTERM, 0.5),
                (signal.SIGKILL, REAP_SECONDS),
            ],
        )

    def test_exit(self) -> None:
        """
        One text tells how a process ended.
        """
        self.assertEqual(str(Exit.of(3)), "ended with exit status 3")
        self.assertEqual(str(Exit.of(-9)), "ended with signal 9")
        self.assertEqual([shell_status(Exit.of(n)) for n in (0, 3, -9)], [0, 3, 137])
        self.assertEqual([Exit.of(n).clean for n in (0, 1, -15)], [True, False, False])


class ChildrenTests(SynchronousTestCase, ChildOwner):
    """
    Tests for L{Children} and L{Child}.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.processes = MemoryProcesses()
        self.children = Children(self.processes, self.clock, "The tool", 5.0)
        self.ends: list[Exit] = []
        self.read: list[bytes] = []
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def spawn(self, bound: bool = True) -> tuple[Child, MemoryProcess]:
        child = self.children.spawn(
            ["tool", b"-x"],
            self,
            executable="/bin/tool",
            bound=bound,
        )
        return child, self.processes.all[-1]

    def received(self, data: bytes) -> None:
        self.read.append(data)

    complained = received

    def ended(self, exit_: Exit) -> None:
        self.ends.append(exit_)

    def test_bound(self) -> None:
        """
        A process is launched so that it dies with this one, unless it reads on.
        """
        for bound in (True, False):
            _, process = self.spawn(bound=bound)
            self.assertEqual(process.bound, bound)
            self.assertEqual((process.executable, process.argv), (b"/bin/tool", [b"tool", b"-x"]))
            self.assertIsNone(process.environment)
            process.exit()

    def test_output(self) -> None:
        """
        Output and complaints are read until the end, and the last complaints stay.
        """
        child, process = self.spawn()
        process.say(b"a")
        process.complain(b"b")
        self.assertEqual((self.read, child.stderr), ([b"a", b"b"], "b"))
        process.complain(b"c" * (MAX_STDERR_BYTES - 1))
        process.complain(b"d")
        process.exit(2)
        self.assertEqual(self.ends, [Exit(2, None, "c" * (MAX_STDERR_BYTES - 1) + "d")])

    def test_end(self) -> None:
        """
        The end of the input comes first, then SIGTERM, then SIGKILL; the last one is logged.
        """
        child, process = self.spawn()
        process.stubborn = True
        child.end(grace=2.0)
        child.end(grace=2.0)
        self.assertEqual((process.input_closed, process.signals), (True, []))
        self.clock.advance(2.0)
        self.assertEqual(process.signals, ["TERM"])
        child.end()
        with capturedLogs() as events:
            self.clock.advance(5.0)
        self.assertEqual(process.signals, ["TERM", "KILL"])
        self.assertEqual([event["name"] for event in events], ["The tool"])
        self.assertEqual(self.ends, [Exit(None, 9)])
        child.end()
        child.send_signal(signal.SIGTERM)

    def test_linger(self) -> None:
        """
        Another process may hold the pipes of a dead one, but not for long.
        """
        _, process = self.spawn()
        process.exit(leave_pipes=True)
        stopped = self.children.stop()
        self.assertEqual(self.ends, [])
        self.clock.advance(LINGER_SECONDS)
        self.assertEqual(self.ends, [Exit(0, None)])
        self.successResultOf(stopped)

    def test_disown(self) -> None:
        """
        A disowned process reports nothing, but its owner's stop waits for it.
        """
        child, process = self.spawn()
        process.stubborn = True
        child.disown()
        process.say(b"a")
        stopped: Deferred[None] = self.children.stop()
        self.assertNoResult(stopped)
        process.exit()
        self.successResultOf(stopped)
        self.assertEqual((self.read, self.ends), ([], []))

    def test_missing(self) -> None:
        """
        A process that could not be started is not waited for.
        """
        self.processes.missing = True
        self.assertRaises(OSError, self.spawn)
        self.successResultOf(self.children.stop())


class BackOffTests(SynchronousTestCase):
    """
    Tests for L{BackOff}.
    """

    def test_delays(self) -> None:
        """
        The delay doubles up to the maximum; a success resets it.
        """
        clock = Clock()
        attempts: list[float] = []
        backoff = BackOff(clock, lambda: attempts.append(clock.seconds()), 10.0)
        for delay in (10.0, 20.0, 30.0, 30.0):
            self.assertEqual(backoff.failed(), delay)
            self.assertTrue(backoff.waiting)
            clock.advance(delay)
            self.assertFalse(backoff.waiting)
        self.assertEqual(attempts, [10.0, 30.0, 60.0, 90.0])
        backoff.succeeded()
        self.assertEqual(backoff.failed(), 10.0)
        backoff.cancel()
        self.assertEqual(clock.getDelayedCalls(), [])
