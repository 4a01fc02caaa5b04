"""
Tests for L{tbvast.ops.worker} and L{tbvast.ops.answering}, with a real process.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from tbvast.errors import JournalFailed
from tbvast.ops.answering import serve
from tbvast.ops.worker import Worker, WorkerBroken


class WorkerTests(TestCase):
    """
    Tests for L{Worker}, whose process is this module.
    """

    def setUp(self) -> None:
        self.lost: list[str] = []

    def worker(self, greeting: str = "hello") -> Worker:
        return Worker(reactor, "the tester", __name__, [greeting], JournalFailed, self.lost.append)

    async def test_answers(self) -> None:
        """
        Requests are answered in order, whatever their size, and what was asked before it is
        told to end is answered still.
        """
        worker = self.worker()
        self.assertEqual(worker.start(), b"hello")
        requests = [b"x", b"yz" * 3_000_000, bytes(range(256))]
        answers = gatherResults([worker.call(request) for request in requests])
        await worker.stop()
        self.assertEqual(await answers, [request[::-1] for request in requests])
        self.assertEqual(self.lost, [])

    async def test_refused(self) -> None:
        """
        What it refuses fails with the reason, and it goes on.
        """
        worker = self.worker()
        worker.start()
        e = await self.assertFailure(worker.call(b"refuse"), JournalFailed)
        self.assertEqual(str(e), "it is full")
        self.assertEqual(await worker.call(b"on"), b"no")
        await worker.stop()

    async def test_defect(self) -> None:
        """
        A defect is told with its traceback, and it goes on.
        """
        worker = self.worker()
        worker.start()
        e: Any = await self.assertFailure(worker.call(b"break"), WorkerBroken)
        self.assertIn("ZeroDivisionError", str(e))
        self.assertEqual(await worker.call(b"on"), b"no")
        await worker.stop()

    def test_not_opened(self) -> None:
        """
        A process that cannot be asked anything is refused, with its reason if it says one.
        """
        for greeting, reason in (
            ("refuse", "it is full"),
            ("end", "the tester ended while it started"),
        ):
            with self.subTest(greeting):
                e = self.assertRaises(JournalFailed, self.worker(greeting).start)
                self.assertEqual(str(e), reason)
        self.assertEqual(self.lost, [])

    async def test_killed(self) -> None:
        """
        When the process ends by itself, all that waits fails, as does what is asked later;
        and it is told how it ended.
        """
        worker = self.worker()
        worker.start()
        answers = [worker.call(b"die"), worker.call(b"on")]
        for answer in answers:
            await self.assertFailure(answer, JournalFailed)
        e = await self.assertFailure(worker.call(b"on"), JournalFailed)
        self.assertEqual(str(e), "the tester has ended")
        await worker.stop()
        self.assertEqual(self.lost, ["the tester ended with signal 9"])


def _answer(request: bytes) -> bytes:
    match request:
        case b"refuse":
            raise JournalFailed("it is full")
        case b"break":
            raise ZeroDivisionError
        case b"die":
            os.kill(os.getpid(), signal.SIGKILL)
    return request[::-1]


def _open(greeting: str) -> Any:
    if greeting == "refuse":
        raise JournalFailed("it is full")
    if greeting == "end":
        raise SystemExit(0)
    return greeting.encode(), _answer


if __name__ == "__main__":
    serve(lambda: _open(sys.argv[1]), JournalFailed)
