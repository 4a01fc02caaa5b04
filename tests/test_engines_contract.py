"""
The contract of engines, for the engine in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.errors import EngineCallFailed, EngineInterrupted
from tbvast.interfaces import IEngine, IEngineClient
from tbvast.values import Match
from tests.doubles_engine import (
    ADDRESS,
    EngineContract,
    MemoryEngine,
    MemoryEngineClient,
    event,
    unheeded,
)


class MemoryEngineTests(EngineContract, SynchronousTestCase):
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

    def test_lost(self) -> None:
        """
        A node that was lost has to be prepared again.
        """
        engine = MemoryEngine()
        engine.prepare()
        engine.lose()
        self.assertRaises(EngineCallFailed, engine.add, [[ADDRESS]])


class MemoryEngineClientTests(SynchronousTestCase):
    """
    L{MemoryEngineClient} is a client of an engine.
    """

    def setUp(self) -> None:
        self.client = MemoryEngineClient(MemoryEngine())
        self.successResultOf(self.client.prepare())

    def test_interface(self) -> None:
        """
        It provides its interface.
        """
        verifyObject(IEngineClient, self.client)

    def test_watch(self) -> None:
        """
        The empty batch comes first, and the match goes on until it is cancelled.
        """
        batches: list[list[Match]] = []
        watching = self.client.watch(batches.append, unheeded)
        adding = self.client.adding()
        adding.add([ADDRESS])
        self.successResultOf(adding.end())
        self.client.arrive(event(1))
        self.assertEqual([len(batch) for batch in batches], [0, 1])
        self.assertNoResult(watching)
        watching.cancel()
        self.client.arrive(event(2))
        self.assertEqual(len(batches), 2)
        self.failureResultOf(watching)

    def test_find(self) -> None:
        """
        A search delivers its matches, and ends.
        """
        batches: list[list[Match]] = []
        self.client.arrive(event(1))
        self.successResultOf(self.client.find([ADDRESS], 0, 1.0, batches.append))
        self.assertEqual([len(batch) for batch in batches], [1])

    def test_interrupt(self) -> None:
        """
        An interrupt ends the match.
        """
        watching = self.client.watch(lambda batch: None, unheeded)
        self.client.interrupt()
        self.failureResultOf(watching, EngineInterrupted)
        self.failureResultOf(self.client.identify(), EngineInterrupted)
