"""
Tests for L{tbvast.service.threads}, with real threads.
"""

from __future__ import annotations

import threading

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from tbvast.service.threads import Threads
from tests.doubles import WAIT_LIMIT


class ThreadsTests(TestCase):
    """
    Tests for L{Threads}.
    """

    def threads(self, count: int, name: str = "test-threads") -> Threads:
        """
        Threads that run until the test ends.
        """
        threads = Threads(reactor, count, name)
        threads.startService()
        self.addCleanup(self.stop, threads)
        return threads

    def stop(self, threads: Threads) -> None:
        if threads.running:
            threads.stopService()

    async def test_result(self) -> None:
        """
        The call is made in another thread, of the given name, and its result comes
        back to this one.
        """
        threads = self.threads(1)
        name, value = await threads.defer(
            lambda value: (threading.current_thread().name, value), "given"
        )
        self.assertIn("test-threads", name)
        self.assertEqual(value, "given")
        self.assertIs(threading.current_thread(), threading.main_thread())

    async def test_failure(self) -> None:
        """
        An error of the call is passed on, and the thread continues.
        """
        threads = self.threads(1)
        await self.assertFailure(threads.defer(int, "x"), ValueError)
        self.assertEqual(await threads.defer(int, "1"), 1)

    async def test_order(self) -> None:
        """
        One thread makes one call at a time, in order.
        """
        threads = self.threads(1)
        made: list[int] = []
        running: list[None] = []

        def call(number: int) -> int:
            running.append(None)
            made.append(number)
            together = len(running)
            running.pop()
            return together

        together = await gatherResults([threads.defer(call, number) for number in range(50)])
        self.assertEqual(made, list(range(50)))
        self.assertEqual(set(together), {1})

    async def test_several(self) -> None:
        """
        Several threads make several calls at a time.
        """
        threads = self.threads(2)
        both = threading.Barrier(2, timeout=WAIT_LIMIT)
        await gatherResults([threads.defer(both.wait), threads.defer(both.wait)])

    async def test_stop(self) -> None:
        """
        Calls made before the end are executed, and then no thread is left.
        """
        threads = self.threads(1, "test-stopped")
        results = [threads.defer(lambda value=value: value) for value in range(10)]
        threads.stopService()
        self.assertEqual(await gatherResults(results), list(range(10)))
        left = [t.name for t in threading.enumerate() if "test-stopped" in t.name]
        self.assertEqual(left, [])
        self.assertFalse(threads.running)

    async def test_before(self) -> None:
        """
        Calls made before the start are executed after it.
        """
        threads = Threads(reactor, 1, "test-threads")
        early = threads.defer(int, "7")
        self.assertFalse(early.called)
        threads.startService()
        self.addCleanup(threads.stopService)
        self.assertEqual(await early, 7)
