"""
Nothing is lost, whatever dies: a short run of the bench that shows it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import SkipTest

from bench.faults import NO_FAKETIME, faketime
from tests.functional.components import require_tenzir
from tests.functional.services import RunningCommand, ServicesTestCase

BENCH = Path(__file__).parents[2] / "bench" / "faults.py"


class FaultsTests(ServicesTestCase):
    """
    Everything is killed, frozen, or told another time under load, or cut off.
    """

    timeout = 600

    async def run_bench(self, *arguments: str) -> None:
        """
        Run it, and see that nothing was lost.
        """
        require_tenzir(self)
        bench = self.ending(RunningCommand(self.reactor, "bench/faults.py"))
        bench.run([sys.executable, str(BENCH), "--seeds", "7", *arguments])
        self.assertEqual(await bench.wait(), 0, bench.output)
        self.assertIn("nothing is lost, and nothing doubled", bench.output)

    async def test_faults(self) -> None:
        if faketime() is None:
            if os.environ.get("CI") == "true":
                self.fail(NO_FAKETIME)
            raise SkipTest(NO_FAKETIME)
        await self.run_bench("--faults", "12")

    async def test_cuts(self) -> None:
        await self.run_bench("--faults", "1", "--cut")
