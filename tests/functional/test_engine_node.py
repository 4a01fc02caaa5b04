"""
The node of our own, as a real process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

import tbvast
from devtools.services import free_ports, until
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tbvast.errors import StartupRefused
from tbvast.values import HostPort
from tests.functional.components import (
    alive,
    children,
    listening,
    require_tenzir,
    wait_until,
)

BRIDGE = """
import sys
from pathlib import Path
from twisted.internet import reactor
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tbvast.values import HostPort

state = Path(sys.argv[2])
node = EmbeddedNode(reactor, HostPort.parse(sys.argv[1]), state, state / "client" / "engine.pem")
node.startService()
reactor.run()
"""


class EmbeddedNodeTests(TestCase):
    """
    L{EmbeddedNode} runs the node that is installed.
    """

    timeout = 60

    def setUp(self) -> None:
        require_tenzir(self)
        self.endpoint = f"127.0.0.1:{free_ports(1)[0]}"
        self.state = Path(self.mktemp()).absolute()

    async def test_killed(self) -> None:
        """
        A node that is killed comes back, and none is left when the service stops.
        """
        node = EmbeddedNode(
            reactor, HostPort.parse(self.endpoint), self.state, self.state / "engine.pem"
        )
        node.startService()
        self.addCleanup(node.stopService)
        await until(reactor, lambda: self._listens(os.getpid()))
        (first,) = children(os.getpid())
        os.kill(first, signal.SIGKILL)
        await until(reactor, lambda: first not in children(os.getpid()))
        await until(reactor, lambda: self._listens(os.getpid()))
        (second,) = children(os.getpid())
        self.assertNotEqual(first, second)
        await node.stopService()
        self.assertFalse(alive(second))
        self.flushLoggedErrors()

    def _listens(self, parent: int) -> bool:
        return [listening(pid) for pid in children(parent)] == [[self.endpoint]]

    def test_dies_with_parent(self) -> None:
        """
        A node does not outlive a bridge that is killed.
        """
        package = str(Path(tbvast.__file__).parent.parent)
        with subprocess.Popen(
            [sys.executable, "-c", BRIDGE, self.endpoint, str(self.state)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": package},
        ) as bridge:
            wait_until(lambda: self._listens(bridge.pid))
            (node,) = children(bridge.pid)
            bridge.kill()
        wait_until(lambda: not alive(node))


class AddressTests(SynchronousTestCase):
    """
    An address that the node could not listen on is refused before it starts.
    """

    def refuse(self, address: HostPort) -> str:
        """
        @return: The reason of the refusal.
        """
        state = Path(self.mktemp())
        node = EmbeddedNode(reactor, address, state, state / "engine.pem")
        return str(self.assertRaises(StartupRefused, node.startService))

    def test_taken(self) -> None:
        """
        The error names the address in use, and the alternatives.
        """
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = HostPort(*taken.getsockname())
            reason = self.refuse(address)
        self.assertIn(str(address), reason)
        self.assertIn("--vast-listen", reason)

    def test_elsewhere(self) -> None:
        """
        The address of another machine is refused.
        """
        self.assertIn("192.0.2.1:5158", self.refuse(HostPort("192.0.2.1", 5158)))
