"""
Tests for L{tbvast.service.thread}, with real threads.
"""

from __future__ import annotations

import threading

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from tbvast.service.thread import ServiceThread


class ServiceThreadTests(TestCase):
    """
    Tests for L{ServiceThread}.
    """

    def thread(self, name: str = "test-thread") -> ServiceThread:
        """
        A thread that runs until the test ends.
        """
        thread = ServiceThread(reactor, name)
        thread.startService()
        self.addCleanup(self.stop, thread)
        return thread

    def stop(self, thread: ServiceThread) -> None:
        if thread.running:
            thread.stopService()

    async def test_result(self) -> None:
        """
        The call is made in another thread, of the given name, and its result comes
        back to this one.
        """
        thread = self.thread()
        name, value = await thread.defer(
            lambda value: (threading.current_thread().name, value), "given"
        )
        self.assertEqual(name, "test-thread")
        self.assertEqual(value, "given")
        self.assertIs(threading.current_thread(), threading.main_thread())

    async def test_failure(self) -> None:
        """
        An error of the call is passed on, and the thread continues.
        """
        thread = self.thread()
        await self.assertFailure(thread.defer(int, "x"), ValueError)
        self.assertEqual(await thread.defer(int, "1"), 1)

    async def test_order(self) -> None:
        """
        It makes one call at a time, in order.
        """
        thread = self.thread()
        made: list[int] = []
        running: list[None] = []

        def call(number: int) -> int:
            running.append(None)
            made.append(number)
            together = len(running)
            running.pop()
            return together

        together = await gatherResults([thread.defer(call, number) for number in range(50)])
        self.assertEqual(made, list(range(50)))
        self.assertEqual(set(together), {1})

    async def test_stop(self) -> None:
        """
        Calls made before the end are executed, and then no thread is left.
        """
        thread = self.thread("test-stopped")
        results = [thread.defer(lambda value=value: value) for value in range(10)]
        thread.stopService()
        self.assertEqual(await gatherResults(results), list(range(10)))
        left = [t.name for t in threading.enumerate() if "test-stopped" in t.name]
        self.assertEqual(left, [])
        self.assertFalse(thread.running)

    async def test_before(self) -> None:
        """
        Calls made before the start are executed after it.
        """
        thread = ServiceThread(reactor, "test-thread")
        early = thread.defer(int, "7")
        self.assertFalse(early.called)
        thread.startService()
        self.addCleanup(thread.stopService)
        self.assertEqual(await early, 7)
