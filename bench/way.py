"""
Plugin, bridge and engine as processes, for what measures the whole way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import zmq

from bench.faults import Service
from devtools.services import free_ports
from tbvast.engines.tenzir.configuration import CERTIFICATE_NAME, Tls

LIMIT = 600.0
"""
Seconds to wait for anything.
"""

SETTINGS = """\
bridge:
  heartbeat: 1.0
  snapshot: 30
  retro_match_max_events: 0
  vast_plugins: [accept_unix_socket, read_suricata]
"""

_TAKEN = re.compile(r"The engine took (\d+) entries")


def waited(condition: Callable[[], bool]) -> None:
    """
    Wait for a condition.

    @raise TimeoutError: If it does not come true.
    """
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {LIMIT:.0f} s in vain")
        time.sleep(0.02)


class Way:
    """
    The whole way, once the live match is running; nothing is in it.

    @ivar engine: The node's endpoint.
    @ivar client: The configuration file of the node's clients.
    @ivar tls: Their certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = zmq.Context()
        self._context.linger = 0
        self._manage, pub, sub, engine = free_ports(4)
        config = folder / "tap.conf"
        config.write_text(SETTINGS)
        self.plugin = self._service(
            "tbvast-plugin",
            f"--state-dir={folder / 'plugin'}",
            *(f"--manage={self._manage}", f"--pub={pub}", f"--sub={sub}"),
        )
        self.bridge = self._service(
            "tbvast-bridge",
            *(f"--config={config}", f"--threatbus=127.0.0.1:{self._manage}"),
            *(f"--state-dir={folder / 'bridge'}", f"--vast-listen=127.0.0.1:{engine}"),
        )
        self.engine = f"127.0.0.1:{engine}"
        self.client = folder / "bridge" / "client" / "client.yaml"
        self.tls = Tls.of_embedded(self.client.with_name(CERTIFICATE_NAME))
        self._log = folder / "tbvast-bridge.log"
        waited(lambda: "The live match is running" in self._log.read_text())

    def _service(self, name: str, *arguments: str) -> Service:
        return Service(self._folder, name, None, Random(), *arguments)

    def held(self, count: int) -> None:
        """
        Wait until the engine has taken so many entries.
        """
        waited(lambda: sum(map(int, _TAKEN.findall(self._log.read_text()))) >= count)

    def end(self) -> None:
        self.bridge.stop()
        self.plugin.stop()
        self._context.term()
