"""
The node of our own, without a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.binaries import Program
from tbvast.engines.tenzir import embedded_node
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tbvast.errors import StartupRefused
from tbvast.values import HostPort

PROGRAM = Program("/nowhere/tenzir-engine", "tenzir-node")


class MemoryProcess:
    """
    A child process that a test plays.

    @ivar signals: The signals that it was sent.
    """

    def __init__(self, protocol: ProcessProtocol, command: Sequence[str]) -> None:
        self.protocol = protocol
        self.command = list(command)
        self.signals: list[str] = []
        self._ended = False

    def signalProcess(self, signal: str) -> None:
        if self._ended:
            raise ProcessExitedAlready
        self.signals.append(signal)

    def end(self, status: int = 0) -> None:
        """
        The process has ended and is reaped.
        """
        self._ended = True
        reason = ProcessTerminated(status) if status else ProcessDone(0)
        self.protocol.processEnded(Failure(reason))


class ProcessClock(Clock):
    """
    A clock that also starts processes, in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[MemoryProcess] = []

    def spawnProcess(
        self, protocol: ProcessProtocol, executable: str, args: Sequence[str], env: Any
    ) -> MemoryProcess:
        process = MemoryProcess(protocol, args)
        self.processes.append(process)
        return process


class EmbeddedNodeTests(SynchronousTestCase):
    """
    L{EmbeddedNode} keeps a node running.
    """

    def setUp(self) -> None:
        self.clock = ProcessClock()
        self.refusal = ""
        self.patch(embedded_node, "check_free", self.check_free)
        self.state = Path(self.mktemp())
        self.node = EmbeddedNode(self.clock, HostPort("127.0.0.1", 0), self.state, PROGRAM)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def check_free(self, what: str, address: HostPort) -> None:
        """
        Check an address without the network.
        """
        if self.refusal:
            raise StartupRefused(self.refusal)

    @property
    def process(self) -> MemoryProcess:
        return self.clock.processes[-1]

    def stop(self) -> None:
        stopped = self.node.stopService()
        if not stopped.called:
            self.process.end()
        self.successResultOf(stopped)

    def test_command(self) -> None:
        """
        The node is started through the launcher, at its address, with settings
        that open no second port.
        """
        self.node.startService()
        self.assertIn(PROGRAM.path, self.process.command)
        self.assertIn("--endpoint=127.0.0.1:0", self.process.command)
        self.assertIn(f"--config={self.state / 'node.yaml'}", self.process.command)
        settings = (self.state / "node.yaml").read_text()
        self.assertIn("enable-automatic-connections: false", settings)
        self.assertIn("import-buffer-timeout: 0s", settings)
        self.assertIn(f'cache-directory: "{self.state}/cache"', settings)
        self.stop()

    def test_ready(self) -> None:
        """
        It is logged when the node has said where it listens.
        """
        self.node.startService()
        with capturedLogs() as events:
            self.process.protocol.outReceived(b"127.0.0.1:5158\n")
        self.assertEqual([event["endpoint"] for event in events], ["127.0.0.1:0"])
        self.stop()

    def test_log(self) -> None:
        """
        The messages of the node's log are logged at their level.
        """
        self.node.startService()
        with capturedLogs() as events:
            self.process.protocol.errReceived(b"\x1b[34mbanner\x1b[0m\n\nwarning it is l")
            self.process.protocol.errReceived(b"ate\nerror: no\ninfo ready\n")
            self.process.protocol.errReceived(b"error lost partition x #internal 1\n")
        said = [(event["log_level"], event["line"]) for event in events]
        self.assertEqual(
            said,
            [
                (LogLevel.debug, "banner"),
                (LogLevel.warn, "it is late"),
                (LogLevel.error, "no"),
                (LogLevel.info, "ready"),
                (LogLevel.debug, "lost partition x #internal 1"),
            ],
        )
        self.stop()

    def test_restart(self) -> None:
        """
        A node that ends is started again, each time a little later.
        """
        self.node.startService()
        for delay in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
            count = len(self.clock.processes)
            self.process.end(1)
            self.clock.advance(delay - 0.01)
            self.assertEqual(len(self.clock.processes), count)
            self.clock.advance(0.01)
            self.assertEqual(len(self.clock.processes), count + 1)
        self.clock.advance(embedded_node.STEADY_SECONDS)
        self.process.end(1)
        self.clock.advance(embedded_node.MIN_RESTART_SECONDS)
        self.assertEqual(len(self.clock.processes), 10)
        self.stop()

    def test_stop(self) -> None:
        """
        Stopping waits until the node has ended, and does not start it again.
        """
        self.node.startService()
        stopped = self.node.stopService()
        self.assertEqual(self.process.signals, ["TERM"])
        self.assertNoResult(stopped)
        self.process.end()
        self.successResultOf(stopped)

    def test_stop_hard(self) -> None:
        """
        A node that does not end is killed.
        """
        self.node.startService()
        stopped = self.node.stopService()
        self.clock.advance(embedded_node.STOP_SECONDS)
        self.assertEqual(self.process.signals, ["TERM", "KILL"])
        self.process.end(1)
        self.successResultOf(stopped)

    def test_stop_between(self) -> None:
        """
        Stopping while the node is to be started again leaves it be.
        """
        self.node.startService()
        self.process.end(1)
        self.successResultOf(self.node.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_start_again(self) -> None:
        """
        The service can be started once more.
        """
        self.node.startService()
        self.stop()
        self.node.startService()
        self.assertEqual(len(self.clock.processes), 2)
        self.stop()

    def test_address_taken(self) -> None:
        """
        An address that cannot be used is refused; the error names the alternatives.
        """
        self.refusal = "the engine cannot listen on it"
        e = self.assertRaises(StartupRefused, self.node.startService)
        self.assertIn("the engine cannot listen on it", str(e))
        self.assertIn("--vast-listen", str(e))
        self.assertEqual(self.clock.processes, [])

    def test_state(self) -> None:
        """
        A state directory that cannot be made is refused.
        """
        self.state.parent.mkdir(parents=True, exist_ok=True)
        self.state.write_text("")
        e = self.assertRaises(StartupRefused, self.node.startService)
        self.assertIn(str(self.state), str(e))
