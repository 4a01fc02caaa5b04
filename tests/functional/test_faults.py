"""
Nothing is lost, whatever dies: a short run of the bench that shows it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.functional.components import require_tenzir
from tests.functional.services import RunningCommand, ServicesTestCase

BENCH = Path(__file__).parents[2] / "bench" / "faults.py"


class FaultsTests(ServicesTestCase):
    """
    Plugin, bridge and engine are killed under load, or cut off from each other.
    """

    timeout = 400

    async def run_bench(self, *arguments: str) -> None:
        require_tenzir(self)
        bench = self.ending(RunningCommand(self.reactor, "bench/faults.py"))
        bench.run([sys.executable, str(BENCH), "--seeds", "7", *arguments])
        self.assertEqual(await bench.wait(), 0, bench.output)

    async def test_kills(self) -> None:
        await self.run_bench("--kills", "6")

    async def test_cuts(self) -> None:
        await self.run_bench("--kills", "1", "--cut")
