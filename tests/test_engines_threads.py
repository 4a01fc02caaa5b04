"""
The boundary between the reactor's thread and the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.threads import ThreadedEngine
from tbvast.errors import EngineCallFailed
from tbvast.values import Entry, Match
from tests.doubles_engine import (
    ABSENT,
    ADDRESS,
    HOST,
    MemoryEngine,
    SteppedThreads,
    WouldBlock,
    call_at_once,
    event,
)


class ThreadedTestCase(SynchronousTestCase):
    """
    A test with an engine whose threads it steps.
    """

    def setUp(self) -> None:
        self.engine = MemoryEngine()
        self.engine.prepare()
        self.engine.log.clear()
        self.threads = SteppedThreads()
        self.client = ThreadedEngine(self.engine, self.threads.defer, call_at_once)
        self.batches: list[list[Match]] = []

    def added(self, *entries: Entry) -> Deferred[None]:
        adding = self.client.adding()
        adding.add(entries)
        return adding.end()


class CallTests(ThreadedTestCase):
    """
    Calls that have one result.
    """

    def test_in_thread(self) -> None:
        """
        Nothing is asked of the engine but in a thread.
        """
        asked = self.client.identify()
        self.assertEqual(self.engine.log, [])
        self.assertNoResult(asked)
        self.threads.perform()
        self.assertEqual(self.successResultOf(asked).name, "tenzir")

    def test_one_writer(self) -> None:
        """
        Calls that write are made one after the other, in order.
        """
        written = [
            self.client.prepare(),
            self.added(ADDRESS, HOST),
            self.client.remove([HOST.observable]),
        ]
        for number, each in enumerate(written):
            self.assertEqual(self.threads.waiting, 1)
            self.assertEqual(len(self.engine.log), number)
            self.threads.perform()
            self.successResultOf(each)
        self.assertEqual(self.engine.contents(), [ADDRESS])

    def test_failure_frees(self) -> None:
        """
        A call that fails lets the next one write.
        """
        self.engine.failure = EngineCallFailed("add", "no")
        first, second = self.added(ADDRESS), self.added(HOST)
        self.threads.perform()
        self.failureResultOf(first, EngineCallFailed)
        self.engine.failure = None
        self.threads.perform()
        self.successResultOf(second)

    def test_abandon(self) -> None:
        """
        An abandoned call ends silently, whether it waits or runs; then the next writer runs.
        """
        first, second = self.client.adding(), self.client.adding()
        third = self.added(HOST)
        second.abandon()
        first.add([ADDRESS])
        first.abandon()
        self.threads.perform()
        self.threads.perform()
        self.successResultOf(third)
        self.assertEqual(self.threads.waiting, 0)
        self.client.interrupt()

    def test_cancel_waiting(self) -> None:
        """
        A waiting call can be cancelled.
        """
        first, second = self.added(ADDRESS), self.added(HOST)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.threads.perform()
        self.successResultOf(first)
        self.assertEqual(self.threads.waiting, 0)

    def test_cancel_started(self) -> None:
        """
        A call that was cancelled while it ran still keeps others waiting.
        """
        first, second = self.added(ADDRESS), self.added(HOST)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.threads.waiting, 1)
        self.threads.perform()
        self.threads.perform()
        self.successResultOf(second)
        self.assertEqual(len(self.engine.contents()), 2)


class DeliveryTests(ThreadedTestCase):
    """
    Calls whose results are delivered as they come.
    """

    def test_backpressure(self) -> None:
        """
        The thread waits until a batch has been processed.
        """
        self.engine.arrive(event(1))
        busy: Deferred[None] = Deferred()
        search = self.client.find([ADDRESS, HOST], 0, 1.0, lambda batch: busy)
        self.threads.perform()
        self.failureResultOf(search, WouldBlock)

    def test_one_search(self) -> None:
        """
        A search waits for the one before, but not for a writer.
        """
        first = self.client.find([ADDRESS], 0, 1.0, self.batches.append)
        second = self.client.find([ABSENT], 0, 1.0, self.batches.append)
        self.added(HOST)
        self.assertEqual(self.threads.waiting, 2)
        self.threads.perform()
        self.successResultOf(first)
        self.assertNoResult(second)
        self.threads.perform()
        self.threads.perform()
        self.successResultOf(second)

    def test_cancel_before(self) -> None:
        """
        A search that is cancelled before its thread runs finds nothing.
        """
        self.engine.arrive(event(1))
        search = self.client.find([ADDRESS], 0, 1.0, self.batches.append)
        search.cancel()
        self.failureResultOf(search, CancelledError)
        self.threads.perform()
        self.assertEqual(self.batches, [])

    def test_closed(self) -> None:
        """
        The iterator is closed, by the thread, however the search ends.
        """
        closed: list[bool] = []

        class Batches(Iterator[list[Match]]):
            def __next__(self) -> list[Match]:
                raise EngineCallFailed("find", "no")

            def close(self) -> None:
                closed.append(True)

        class Failing(MemoryEngine):
            def find(self, *args: Any) -> Batches:
                return Batches()

        self.client = ThreadedEngine(Failing(), self.threads.defer, call_at_once)
        search = self.client.find([ADDRESS], 0, 1.0, self.batches.append)
        self.threads.perform()
        self.failureResultOf(search, EngineCallFailed)
        self.assertEqual(closed, [True])
