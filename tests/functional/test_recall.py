"""
What is found is what is there: a short run of the bench that shows it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.functional.components import require_tenzir
from tests.functional.services import RunningCommand, ServicesTestCase

DATA = Path(__file__).parents[1] / "data"


class RecallTests(ServicesTestCase):
    timeout = 240

    async def test_small(self) -> None:
        """
        Of a few events nothing is missed, false or double, live and retro.
        """
        require_tenzir(self)
        bench = self.ending(RunningCommand(self.reactor, "bench.recall"))
        logs = [DATA / "suricata" / "eve-small.json", DATA / "zeek-json" / "http.log.json.gz"]
        command = [sys.executable, "-m", "bench.recall", "--short", "--each=10", "--invented=0"]
        command += ["--telemetry", *map(str, logs)]
        command += ["--indicators", str(DATA / "stix" / "amnesty-novispy.json")]
        bench.run(command)
        self.assertEqual(await bench.wait(), 0, bench.output)
        totals = re.findall(r"^  all +([0-9,]+) +([0-9,]+) +0 +0 +0$", bench.output, re.MULTILINE)
        self.assertEqual(len(totals), 2, bench.output)
        for expected, found in totals:
            self.assertEqual(found, expected)
            self.assertGreater(int(expected.replace(",", "")), 100)
