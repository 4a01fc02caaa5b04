"""
Tests for L{tbvast.bus.journal.client} with its process.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tbvast.bus.journal.client import JournalService
from tbvast.bus.journal.values import Verdict
from tbvast.errors import JournalFailed
from tbvast.protocol.topics import Stream
from tests.doubles import a_sighting, an_indicator
from tests.functional.components import children


class JournalServiceTests(TestCase):
    """
    Tests for L{JournalService}, with its process and its thread.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.lost: list[str] = []
        self.told: Deferred[None] = Deferred()

    def service(self) -> JournalService:
        return JournalService(real_reactor, self.path, self.is_lost)

    def is_lost(self, why: str) -> None:
        self.lost.append(why)
        self.told.callback(None)

    async def test_process(self) -> None:
        """
        It stores items while it runs, finishes calls in progress, and starts again.
        """
        for number in (1, 2):
            service = self.service()
            service.startService()
            begun = [service.journal.append([an_indicator(n)]) for n in (number, 3, 3)]
            await service.stopService()
            outcomes = [outcome for d in begun for outcome in await d]
            self.assertEqual(
                [outcome.verdict for outcome in outcomes],
                [
                    Verdict.ACCEPTED,
                    Verdict.ACCEPTED if number == 1 else Verdict.REPEATED,
                    Verdict.REPEATED,
                ],
            )
            self.assertEqual(outcomes[0].number, number * 2 - 1)
        self.assertEqual(self.lost, [])

    async def test_floor(self) -> None:
        """
        The floor that the other process has raised is known in this one.
        """
        service = self.service()
        service.startService()
        await service.journal.append([a_sighting(number) for number in range(3)])
        self.assertEqual(await service.journal.prune(0, 1, 2), 2)
        self.assertEqual(service.journal.floor, 2)
        entries = await service.journal.entries(0, list(Stream), 10, 1 << 20)
        self.assertEqual([entry.number for entry in entries], [3])
        await service.stopService()

    def test_unusable(self) -> None:
        """
        A file that cannot be used is refused, with the reason that the process had.
        """
        self.path.write_bytes(b"x" * 10_000)
        e = self.assertRaises(JournalFailed, self.service().startService)
        self.assertIn(str(self.path), str(e))
        self.assertEqual(self.lost, [])

    async def test_killed(self) -> None:
        """
        If the process ends by itself, pending calls fail and the service is told: they may have
        been executed or not.
        """
        service = self.service()
        service.startService()
        (process,) = children(os.getpid())
        begun = service.journal.append([an_indicator(1)] * 10_000)
        os.kill(process, signal.SIGKILL)
        await self.assertFailure(begun, JournalFailed)
        await self.assertFailure(service.journal.append([an_indicator(2)]), JournalFailed)
        await service.stopService()
        self.assertEqual(self.lost, ["the journal's writer ended with signal 9"])

    async def test_signals(self) -> None:
        """
        The process does not end with the signals that are for the whole service.
        """
        service = self.service()
        service.startService()
        (process,) = children(os.getpid())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(process, number)
        await service.journal.append([an_indicator(1)])
        await service.stopService()
        self.assertEqual(self.lost, [])

    async def test_removed(self) -> None:
        """
        If the file is removed, nothing more is accepted; after a restart, everything accepted is
        there again.
        """
        service = self.service()
        service.startService()
        await service.journal.append([an_indicator(1)])
        self.path.unlink()
        e = await self.assertFailure(service.journal.append([an_indicator(2)]), JournalFailed)
        self.assertEqual(self.lost, [str(e)])
        self.assertIn("was removed", str(e))
        await self.assertFailure(service.journal.append([an_indicator(3)]), JournalFailed)
        await service.stopService()
        self.assertEqual(len(self.lost), 1)
        service = self.service()
        service.startService()
        outcomes = await service.journal.append([an_indicator(n) for n in (1, 2)])
        await service.stopService()
        self.assertEqual([o.verdict.value for o in outcomes], ["repeated", "accepted"])

    async def test_idle(self) -> None:
        """
        The process notices the loss of the file without a request, too.
        """
        service = self.service()
        service.startService()
        await service.journal.append([an_indicator(1)])
        os.unlink(f"{self.path}-wal")
        await self.told
        self.assertIn("-wal was removed", self.lost[0])
        await service.stopService()
