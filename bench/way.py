"""
Plugin, bridge and engine as processes, for what measures the whole way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from bench.faults import Run

LIMIT = 600.0
"""
Seconds to wait for anything.
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


class Way(Run):
    """
    The whole way, once the live match is running; nothing is in it.

    @ivar engine: The node's endpoint.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 1, False)
        self.engine = f"127.0.0.1:{self._engine_port}"
        self._log = folder / "tbvast-bridge.log"
        waited(lambda: "The live match is running" in self._log.read_text())

    def held(self, count: int) -> None:
        """
        Wait until the engine has taken so many entries.
        """
        waited(lambda: sum(map(int, _TAKEN.findall(self._log.read_text()))) >= count)

    def end(self) -> None:
        self.bridge.stop()
        self.plugin.stop()
        self._context.term()
