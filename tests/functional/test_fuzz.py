"""
The fuzz runs, in short.
"""

from __future__ import annotations

import sys
from pathlib import Path

from devtools.services import RunningCommand
from tests.functional.components import require_tenzir
from tests.functional.services import ServicesTestCase

CHECKOUT = Path(__file__).parents[2]

SCRIPT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from bench.fuzz import main; sys.exit(main(sys.argv[1:]))"
)


class FuzzTests(ServicesTestCase):
    """
    L{bench.fuzz} with few messages.
    """

    timeout = 300

    async def run_bench(self, *arguments: str) -> None:
        """
        Run it, and see that it found nothing.
        """
        command = self.ending(RunningCommand(self.reactor, "fuzz"))
        command.run([sys.executable, "-c", SCRIPT, str(CHECKOUT), *arguments])
        self.assertEqual(await command.wait(), 0, command.output)
        self.assertIn("everybody is served, and nothing good is lost", command.output)

    async def test_plugin(self) -> None:
        """
        A plugin loses nothing that is good among 20,000 messages that nobody should send.
        """
        await self.run_bench("--messages=20000")

    async def test_bridge(self) -> None:
        """
        Nor does a bridge, of what a hostile bus sends.
        """
        require_tenzir(self)
        await self.run_bench("bridge", "--messages=10000")
