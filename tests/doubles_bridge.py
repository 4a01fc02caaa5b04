"""
Doubles for the parts of a bridge: in memory, keeping the contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.store.bridge_store import BridgeStore
from tbvast.bridge.store.client import IndicatorStore, SightingOutbox
from tbvast.service.clock import Calendar
from tbvast.values import Changes, Entry
from tests.doubles import asking, call_now


def only(parts: Iterable[Changes]) -> Changes:
    """
    @return: Changes that fit in one message.
    """
    (changes,) = parts
    return changes


def reconcile(store: BridgeStore, held: Sequence[Entry]) -> Changes:
    """
    Compare a store with what an engine holds.
    """
    store.entries.add_held(held, 0)
    return only(store.entries.reconcile())


class MemoryStore:
    """
    A bridge's store without a file and a process.

    @ivar indicators: The L{tbvast.interfaces.IIndicatorStore}.
    @ivar outbox: The L{tbvast.interfaces.ISightingOutbox}.
    @ivar file: The blocking store behind both.
    """

    def __init__(
        self,
        now: Calendar,
        search: bool = True,
        call: Callable[..., Deferred[Any]] = call_now,
        path: str = ":memory:",
    ) -> None:
        """
        @param now: The date.
        @param search: Whether to search past events for new indicators.
        @param call: Makes the calls.
        @param path: The file, if it has one after all.
        """
        self.file = BridgeStore(Path(path))
        ask = asking(*self.file.objects, call=call)
        self.indicators = IndicatorStore(ask, now, search)
        self.outbox = SightingOutbox(ask, now)

    def close(self) -> None:
        self.file.close()


class FileStoreTestCase(SynchronousTestCase):
    """
    A test with a store in a file.
    """

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.open()
        self.addCleanup(lambda: self.store.close())

    def open(self) -> None:
        self.store = BridgeStore(self.path)

    def reopen(self) -> None:
        """
        The bridge is started again.
        """
        self.store.close()
        self.open()
