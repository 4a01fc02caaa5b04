"""
The node of our own, without a process.
"""

from __future__ import annotations

from pathlib import Path

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir import embedded_node
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tbvast.engines.tenzir.node_policy import Plugin
from tbvast.errors import StartupRefused
from tbvast.values import HostPort
from tests.doubles_processes import MemoryProcess, ProcessClock

PROGRAM = "/nowhere/tenzir-engine"


class EmbeddedNodeTests(SynchronousTestCase):
    """
    L{EmbeddedNode} keeps a node running.
    """

    def setUp(self) -> None:
        self.clock = ProcessClock()
        self.refusal = ""
        self.patch(embedded_node, "check_free", self.check_free)
        self.state = Path(self.mktemp())
        self.certificate = self.state / "client" / "engine.pem"
        self.installed = [
            Plugin(name, (kind,))
            for name, kind in (
                ("shell", "operator"),
                ("export", "operator"),
                ("read_csv", "operator"),
            )
        ]
        self.patch(embedded_node, "list_plugins", lambda program, settings: self.installed)
        self.node = EmbeddedNode(
            *(self.clock, HostPort("127.0.0.1", 0), self.state, self.certificate),
            plugins=["read_csv"],
            program=PROGRAM,
        )
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def check_free(self, what: str, address: HostPort) -> None:
        """
        Check an address without the network.
        """
        if self.refusal:
            raise StartupRefused(self.refusal)

    @property
    def process(self) -> MemoryProcess:
        return self.clock.all[-1]

    def stop(self) -> None:
        self.successResultOf(self.node.stopService())

    def test_command(self) -> None:
        """
        The node is started through the launcher, at its address, with settings
        that open no second port.
        """
        self.node.startService()
        self.assertEqual(self.process.executable, PROGRAM.encode())
        self.assertTrue(self.process.bound)
        command = [word.decode() for word in self.process.argv]
        self.assertEqual(command[0], "tenzir-node")
        self.assertIn(f"--config={self.state / 'node.yaml'}", command)
        settings = (self.state / "node.yaml").read_text()
        self.assertIn('endpoint: "127.0.0.1:0"', settings)
        self.assertIn('disable-plugins: ["shell"]', settings)
        self.assertIn(f'certificate: "{self.certificate}"', settings)
        self.assertTrue(self.certificate.exists())
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
            self.process.say(b"127.0.0.1:5158\n")
        self.assertEqual([event["endpoint"] for event in events], ["127.0.0.1:0"])
        self.stop()

    def test_log(self) -> None:
        """
        The messages of the node's log are logged at their level.
        """
        self.node.startService()
        with capturedLogs() as events:
            self.process.complain(b"\x1b[34mbanner\x1b[0m\n\nwarning it is l")
            self.process.complain(b"ate\nerror: no\ninfo ready\n")
            self.process.complain(b"error lost partition x #internal 1\n")
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
            count = len(self.clock.all)
            self.process.exit(1)
            self.clock.advance(delay - 0.01)
            self.assertEqual(len(self.clock.all), count)
            self.clock.advance(0.01)
            self.assertEqual(len(self.clock.all), count + 1)
        self.clock.advance(embedded_node.STEADY_SECONDS)
        self.process.exit(1)
        self.clock.advance(embedded_node.MIN_RESTART_SECONDS)
        self.assertEqual(len(self.clock.all), 10)
        self.stop()

    def test_stop(self) -> None:
        """
        Stopping waits until the node has ended, and does not start it again.
        """
        self.node.startService()
        self.process.stubborn = True
        stopped = self.node.stopService()
        self.assertEqual(self.process.signals, ["TERM"])
        self.assertNoResult(stopped)
        self.process.exit()
        self.successResultOf(stopped)

    def test_stop_hard(self) -> None:
        """
        A node that does not end is killed.
        """
        self.node.startService()
        self.process.stubborn = True
        stopped = self.node.stopService()
        with capturedLogs() as events:
            self.clock.advance(embedded_node.STOP_SECONDS)
        self.assertEqual(self.process.signals, ["TERM", "KILL"])
        self.successResultOf(stopped)
        self.assertEqual(events[0]["name"], "The node")

    def test_stop_between(self) -> None:
        """
        Stopping while the node is to be started again leaves it be.
        """
        self.node.startService()
        self.process.exit(1)
        self.successResultOf(self.node.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_start_again(self) -> None:
        """
        The service can be started once more.
        """
        self.node.startService()
        self.stop()
        self.node.startService()
        self.assertEqual(len(self.clock.all), 2)
        self.stop()

    def test_address_taken(self) -> None:
        """
        An address that cannot be used is refused; the error names the alternatives.
        """
        self.refusal = "the engine cannot listen on it"
        e = self.assertRaises(StartupRefused, self.node.startService)
        self.assertIn("the engine cannot listen on it", str(e))
        self.assertIn("--vast-listen", str(e))
        self.assertEqual(self.clock.all, [])

    def test_state(self) -> None:
        """
        A state directory that cannot be made is refused.
        """
        self.state.parent.mkdir(parents=True, exist_ok=True)
        self.state.write_text("")
        e = self.assertRaises(StartupRefused, self.node.startService)
        self.assertIn(str(self.state), str(e))
