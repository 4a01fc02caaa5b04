"""
The fuzz run, in short.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tbvast.demo.services import RunningCommand
from tests.functional.services import ServicesTestCase


class FuzzTests(ServicesTestCase):
    """
    L{bench.fuzz} with few messages.
    """

    timeout = 120

    async def test_served(self) -> None:
        """
        Everybody is served after 5,000 messages that nobody should send.
        """
        command = self.ending(RunningCommand(self.reactor, "fuzz"))
        script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from bench.fuzz import main; "
        script += "sys.exit(main(sys.argv[1:]))"
        checkout = str(Path(__file__).parents[2])
        command.run([sys.executable, "-c", script, checkout, "--messages=5000"])
        self.assertEqual(await command.wait(), 0, command.output)
        self.assertIn("everybody is served", command.output)
        self.assertIn("tracebacks in the log           0", command.output)
