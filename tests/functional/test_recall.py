"""
What is found is what is there: a short run of the bench that shows it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.functional.components import require_tenzir
from tests.functional.services import RunningCommand, ServicesTestCase

ROOT = Path(__file__).parents[2]


class RecallTests(ServicesTestCase):
    timeout = 200

    async def test_small(self) -> None:
        """
        Of a few events nothing is missed, false or doubled, live and retro.
        """
        require_tenzir(self)
        bench = self.ending(RunningCommand(self.reactor, "bench/recall.py"))
        log = ROOT / "tests" / "data" / "suricata" / "eve-small.json"
        command = [sys.executable, str(ROOT / "bench" / "recall.py"), str(log)]
        bench.run([*command, "--each", "20", "--others", "50"])
        self.assertEqual(await bench.wait(), 0, bench.output)
