"""
Strangers starve nobody: a short run of the bench that shows it.
"""

from __future__ import annotations

import sys

from tests.functional.services import RunningCommand, ServicesTestCase


class StrangersTests(ServicesTestCase):
    timeout = 1800

    async def test_short(self) -> None:
        """
        Many connections, subscriptions, requests and topics of strangers cost the known clients
        no message, no connection and no answer, and the plugin little memory.
        """
        bench = self.ending(RunningCommand(self.reactor, "bench.strangers"))
        bench.run([sys.executable, "-m", "bench.strangers", "--short"])
        self.assertEqual(await bench.wait(), 0, bench.output)
        self.assertIn("Nobody is starved, and nothing is lost.", bench.output)
