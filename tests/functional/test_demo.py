"""
Tests for L{devtools.demo}: it shows what it says, and leaves nothing behind.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from devtools.services import RunningCommand
from tests.functional.components import alive, children, require_tenzir, wait_until
from tests.functional.services import ServicesTestCase

reactor: Any = installed_reactor

LIMIT = 150.0


class DemoTests(ServicesTestCase):
    timeout = 200.0

    def setUp(self) -> None:
        require_tenzir(self)
        self.temporary = self.directory()

    def start(self, *arguments: str) -> RunningCommand:
        environment = {"TMPDIR": str(self.temporary)}
        command = self.ending(RunningCommand(reactor, "demo", environment))
        command.run([sys.executable, "-m", "devtools.demo", *arguments])
        return command

    async def test_whole(self) -> None:
        """
        Every expected sighting comes, and no other; nothing is left.
        """
        demo = self.start()
        await demo.saw("They are ready", LIMIT)
        started = descendants(demo.pid)
        self.assertTrue(len(started) >= 3, started)
        status = await demo.wait()
        self.assertEqual(status, 0, demo.output)
        self.assertIn("Every expected sighting came, and no other.", demo.output)
        self.assertEqual([pid for pid in started if alive(pid)], [])
        self.assertEqual(list(self.temporary.iterdir()), [])

    async def test_interrupted(self) -> None:
        """
        Ctrl-C ends all that was started.
        """
        demo = self.start()
        await demo.saw("They are ready", LIMIT)
        started = descendants(demo.pid)
        demo.signal("INT")
        self.assertEqual(await demo.wait(), 130, demo.output)
        self.assertEqual([pid for pid in started if alive(pid)], [])
        self.assertEqual(list(self.temporary.iterdir()), [])

    async def test_killed(self) -> None:
        """
        Not even when it is killed does anything go on.
        """
        demo = self.start()
        await demo.saw("They are ready", LIMIT)
        started = descendants(demo.pid)
        demo.signal("KILL")
        await demo.wait()
        await gone(started)

    async def test_no_data(self) -> None:
        """
        Without its data it says what it needs.
        """
        missing = Path(self.mktemp()).resolve()
        demo = self.start(f"--data={missing}")
        self.assertEqual(await demo.wait(), 1)
        [line] = demo.lines
        self.assertIn(f"{missing}/suricata", line)
        self.assertIn("--data", line)


def descendants(pid: int) -> list[int]:
    """
    The processes that a process, and those it started, have started.
    """
    found = children(pid)
    return found + [each for child in found for each in descendants(child)]


def gone(pids: list[int]) -> Deferred[None]:
    """
    @return: Fires when none of the processes runs any more.
    """
    return deferToThread(wait_until, lambda: not any(map(alive, pids)))
