"""
The contracts of engines and of their clients, for the ones in memory and the threads.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.threads import ThreadedEngine
from tbvast.errors import EngineInterrupted, EngineTablesChanged
from tbvast.interfaces import IEngine, IEngineClient
from tbvast.stix.observables import Observable
from tbvast.values import Match
from tests.doubles_engine import (
    ADDRESS,
    CALLS,
    EngineClientContract,
    EngineContract,
    MemoryEngine,
    MemoryEngineClient,
    SteppedThreads,
    TablesContract,
    call_at_once,
    event,
    unheeded,
)


class MemoryEngineTests(EngineContract, TablesContract, SynchronousTestCase):
    """
    L{MemoryEngine} is an engine.
    """

    def make_engine(self) -> IEngine:
        self.engine = MemoryEngine()
        self.engine.prepare()
        return self.engine

    def arrive(self, event: dict[str, Any]) -> None:
        self.engine.arrive(event)

    def mark(self, engine: IEngine) -> None:
        self.engine.mark()

    def remove_table(self) -> None:
        self.engine.remove_tables()

    def erase(self, observable: Observable) -> None:
        self.engine.empty_tables()
        self.engine.tell_change()

    def test_lost(self) -> None:
        """
        A node that was lost has to be prepared again.
        """
        engine = MemoryEngine()
        engine.prepare()
        engine.lose()
        self.assertRaises(EngineTablesChanged, engine.add, [[ADDRESS]])


class MemoryEngineClientTests(EngineClientContract, SynchronousTestCase):
    """
    L{MemoryEngineClient} is a client of an engine.
    """

    def make_client(self, engine: MemoryEngine) -> IEngineClient:
        self.memory = MemoryEngineClient(engine)
        self.memory.held = CALLS
        return self.memory

    def perform(self) -> None:
        self.memory.release()
        self.memory.held = CALLS

    def test_at_once(self) -> None:
        """
        Unless they are held, calls are made at once, and a live match goes on with each event.
        """
        self.memory.release()
        watching = self.client.watch(self.batches.append, unheeded)
        adding = self.client.adding()
        adding.add([ADDRESS])
        self.successResultOf(adding.end())
        self.memory.arrive(event(1))
        self.assertEqual([len(batch) for batch in self.batches], [0, 1])
        self.memory.end_watches()
        self.successResultOf(watching)

    def test_backpressure(self) -> None:
        """
        The next batch is delivered when the one before has been processed.
        """
        self.memory.release()
        busy: list[Deferred[None]] = []

        def deliver(batch: list[Match]) -> Deferred[None]:
            busy.append(Deferred())
            return busy[-1]

        for number in range(2):
            self.engine.arrive(event(number))
        search = self.client.find([ADDRESS], 0, 1.0, deliver)
        self.assertEqual(len(busy), 1)
        busy[0].callback(None)
        self.assertEqual(len(busy), 2)
        search.cancel()
        self.failureResultOf(search, CancelledError)

    def test_interrupt_held(self) -> None:
        """
        An interrupt ends the calls that are held.
        """
        call = self.client.identify()
        self.client.interrupt()
        self.failureResultOf(call, EngineInterrupted)


class ThreadedEngineTests(EngineClientContract, SynchronousTestCase):
    """
    L{ThreadedEngine} is a client of an engine.
    """

    def make_client(self, engine: MemoryEngine) -> IEngineClient:
        self.threads = SteppedThreads()
        return ThreadedEngine(engine, self.threads.defer, call_at_once)

    def perform(self) -> None:
        while self.threads.waiting:
            self.threads.perform()
