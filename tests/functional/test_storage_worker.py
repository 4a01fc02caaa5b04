"""
Tests for L{tbvast.storage.worker_client} and L{tbvast.storage.worker_server}, with a real process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tbvast.errors import JournalFailed
from tbvast.protocol.frames import Item
from tbvast.storage.worker_client import Worker, WorkerBroken
from tbvast.storage.worker_server import Served, Unencodable, serve
from tests.doubles import a_sighting, an_indicator, moment


class Tester:
    """
    The object that the process serves.
    """

    def reverse(self, text: bytes) -> bytes:
        return text[::-1]

    def pair(self, items: list[Item], names: dict[str, int | None]) -> tuple[list[Item], int]:
        return items, len(names)

    def count(self, limit: int) -> Iterator[list[int]]:
        for number in range(limit):
            if number == 7:
                raise JournalFailed("seven is too many")
            yield [number] * number

    def refuse(self) -> None:
        raise JournalFailed("it is full")

    def break_down(self) -> None:
        raise ZeroDivisionError

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class WorkerTests(TestCase):
    """
    Tests for L{Worker}, with this module as its process.
    """

    def setUp(self) -> None:
        self.lost: list[str] = []

    def worker(self, greeting: str = "hello") -> Worker:
        return Worker(reactor, "the tester", __name__, [greeting], JournalFailed, self.lost.append)

    async def test_answers(self) -> None:
        """
        Requests of any size are answered in order, and earlier requests are answered before the
        process stops.
        """
        worker = self.worker()
        self.assertEqual(worker.start(str), "hello")
        texts = [b"x", b"yz" * 3_000_000, bytes(range(256))]
        answers = gatherResults([worker.ask(Tester.reverse, text) for text in texts])
        await worker.stop()
        self.assertEqual(await answers, [text[::-1] for text in texts])
        self.assertEqual(self.lost, [])

    async def test_types(self) -> None:
        """
        Arguments and result are of the types that the method is annotated with.
        """
        worker = self.worker()
        worker.start(str)
        items: list[Item] = [an_indicator(1, valid_until=moment(5)), a_sighting(2)]
        found = await worker.ask(Tester.pair, items, {"a": None, "b": 1})
        self.assertEqual(found, (items, 2))
        await worker.stop()

    async def test_unsendable(self) -> None:
        """
        A request that cannot be encoded fails, and no other one does.
        """
        worker = self.worker()
        worker.start(str)
        await self.assertFailure(worker.ask(Tester.pair, [], {"a": 1 << 80}), Unencodable)
        self.assertEqual(await worker.ask(Tester.reverse, b"on"), b"no")
        await worker.stop()

    async def test_parts(self) -> None:
        """
        The items of an iterator come one by one, and are a list in the end; if it fails
        halfway, so does all of it.
        """
        worker = self.worker()
        worker.start(str)
        self.assertEqual(await worker.ask(Tester.count, 3), [[], [1], [2, 2]])
        self.assertEqual(await worker.ask(Tester.count, 0), [])
        e = await self.assertFailure(worker.ask(Tester.count, 9), JournalFailed)
        self.assertEqual(str(e), "seven is too many")
        self.assertEqual(await worker.ask(Tester.count, 1), [[]])
        await worker.stop()

    async def test_refused(self) -> None:
        """
        A refusal fails the request with its reason, and the worker continues.
        """
        worker = self.worker()
        worker.start(str)
        e: Any = await self.assertFailure(worker.ask(Tester.refuse), JournalFailed)
        self.assertEqual(str(e), "it is full")
        self.assertEqual(await worker.ask(Tester.reverse, b"on"), b"no")
        await worker.stop()

    async def test_defect(self) -> None:
        """
        A defect fails the request with its traceback, and the worker continues.
        """
        worker = self.worker()
        worker.start(str)
        e: Any = await self.assertFailure(worker.ask(Tester.break_down), WorkerBroken)
        self.assertIn("ZeroDivisionError", str(e))
        self.assertEqual(await worker.ask(Tester.reverse, b"on"), b"no")
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
                e = self.assertRaises(JournalFailed, self.worker(greeting).start, str)
                self.assertEqual(str(e), reason)
        self.assertEqual(self.lost, [])

    def test_hangs(self) -> None:
        """
        A process that does not start in time is refused.
        """
        e = self.assertRaises(JournalFailed, self.worker("hang").start, str, 0.1)
        self.assertEqual(str(e), "the tester did not start within 0.1 s")
        self.assertEqual(self.lost, [])

    async def test_killed(self) -> None:
        """
        When the process ends by itself, waiting and later requests fail, and the owner is told
        how it ended.
        """
        worker = self.worker()
        worker.start(str)
        answers: list[Deferred[Any]] = [
            worker.ask(Tester.die),
            worker.ask(Tester.reverse, b"on"),
        ]
        for answer in answers:
            await self.assertFailure(answer, JournalFailed)
        e = await self.assertFailure(worker.ask(Tester.reverse, b"on"), JournalFailed)
        self.assertEqual(str(e), "the tester has ended")
        await worker.stop()
        self.assertEqual(self.lost, ["the tester ended with signal 9"])


@contextlib.contextmanager
def _open(greeting: str) -> Iterator[Served]:
    if greeting == "refuse":
        raise JournalFailed("it is full")
    if greeting == "end":
        raise SystemExit(0)
    if greeting == "hang":
        signal.pause()
    yield Served([Tester()], greeting)


if __name__ == "__main__":
    serve(_open(sys.argv[1]), (JournalFailed,))
