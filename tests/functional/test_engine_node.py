"""
The node of our own, as a real process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

import tbvast
from tbvast.engines.tenzir.embedded_node import EmbeddedNode
from tests.functional.components import (
    alive,
    children,
    free_port,
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

node = EmbeddedNode(reactor, HostPort.parse(sys.argv[1]), Path(sys.argv[2]))
node.startService()
node.when_ready().addCallback(lambda _: print("ready", flush=True))
reactor.run()
"""


class EmbeddedNodeTests(TestCase):
    """
    L{EmbeddedNode} runs the node that is installed.
    """

    timeout = 60

    def setUp(self) -> None:
        require_tenzir(self)
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.state = Path(self.mktemp()).absolute()

    async def test_killed(self) -> None:
        """
        A node that is killed comes back, and none is left when the service stops.
        """
        node = EmbeddedNode(reactor, HostPort.parse(self.endpoint), self.state)
        node.startService()
        self.addCleanup(node.stopService)
        await node.when_ready()
        (first,) = children(os.getpid())
        self.assertEqual(listening(first), [self.endpoint])
        os.kill(first, signal.SIGKILL)
        await self._gone(first)
        await node.when_ready()
        (second,) = children(os.getpid())
        self.assertNotEqual(first, second)
        await node.stopService()
        self.assertFalse(alive(second))
        self.flushLoggedErrors()

    def _gone(self, pid: int) -> Deferred[None]:
        gone: Deferred[None] = Deferred()
        clock: Any = reactor

        def look() -> None:
            if pid in children(os.getpid()):
                clock.callLater(0.01, look)
            else:
                gone.callback(None)

        look()
        return gone

    def test_dies_with_parent(self) -> None:
        """
        A node does not outlive a bridge that is killed.
        """
        package = str(Path(tbvast.__file__).parent.parent)
        with subprocess.Popen(
            [sys.executable, "-c", BRIDGE, self.endpoint, str(self.state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": package},
        ) as bridge:
            assert bridge.stdout is not None
            self.assertEqual(bridge.stdout.readline(), b"ready\n")
            (node,) = children(bridge.pid)
            bridge.kill()
        wait_until(lambda: not alive(node))
