"""
The journal, as it is asked in the reactor's thread: a process of its own writes to it, so
that the interpreter here is free, and a thread reads it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bus.ownership import Run
from tbvast.errors import JournalFailed
from tbvast.interfaces import IJournal, IKeeper, IReplay, ISubscriptionStore
from tbvast.ops.threads import Defer, Threads
from tbvast.ops.worker import Ask, Worker
from tbvast.plugin.reader import Entered, JournalReader
from tbvast.plugin.store import Outcome
from tbvast.plugin.writer import Forgotten, Opened, Settled, Writer
from tbvast.service.clock import Calendar, calendar
from tbvast.wire.frames import Item
from tbvast.wire.manage import Position
from tbvast.wire.topics import Stream


@implementer(IJournal, IKeeper, IReplay, ISubscriptionStore)
class Journal:
    """
    An L{IJournal} that is written to by somebody else, and read in a thread.
    """

    def __init__(
        self, opened: Opened, now: Calendar, ask: Ask, reader: JournalReader, defer: Defer
    ) -> None:
        """
        @param now: The date that decides what has expired, and how old an entry is.
        @param ask: Asks the L{Writer}.
        @param defer: Calls the reader, one call at a time, in order.
        """
        self.identity = opened.identity
        self.head = opened.head
        self._now = now
        self._ask = ask
        self._reader = reader
        self._read = defer
        self._failures = 0

    @property
    def floor(self) -> int:
        return self._reader.floor

    def append(
        self, items: Sequence[Item], publishers: Sequence[Run] = ()
    ) -> Deferred[list[Outcome]]:
        failures = self._failures
        return self._ask(Writer.append, items, self._now(), failures, publishers).addCallbacks(
            self._cb_settled, self._eb_append, callbackArgs=(items,), errbackArgs=(failures,)
        )

    def _cb_settled(self, settled: list[Settled], items: Sequence[Item]) -> list[Outcome]:
        outcomes = [
            Outcome(each.verdict, each.number, each.item or item, each.reason)
            for each, item in zip(settled, items, strict=True)
        ]
        # Those that were accepted are numbered in their order.
        self.head = next((each.number for each in reversed(outcomes) if each.number), self.head)
        return outcomes

    def _eb_append(self, failure: Failure, failures: int) -> Failure:
        self._failures = max(self._failures, failures + 1)
        return failure

    def current(
        self, after: int, until: int, since: float, limit: int
    ) -> Deferred[list[tuple[int, bytes]]]:
        now = self._now()
        return self._read(self._reader.current, after, until, since, limit, now)

    def find(self, ids: Iterable[str]) -> Deferred[dict[str, bytes]]:
        return self._ask(Writer.find, list(ids))

    def counts(self) -> Deferred[dict[str, int]]:
        return self._read(self._reader.counts, self._now())

    def expire(self, limit: int) -> Deferred[list[Outcome]]:
        return self._ask(Writer.expire, self._now(), limit).addCallback(
            lambda settled: self._cb_settled(settled, [each.item for each in settled])
        )

    def forget(self, age: float, size: int, limit: int) -> Deferred[int]:
        since = self._now() - age
        return self._ask(Writer.forget, since, size, limit).addCallback(self._cb_forgotten)

    def _cb_forgotten(self, forgotten: Forgotten) -> int:
        self._reader.floor = max(self._reader.floor, forgotten.floor)
        return forgotten.count

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> Deferred[None]:
        return self._ask(Writer.save_subscriptions, changes)

    def entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> Deferred[list[Entered]]:
        return self._read(self._reader.entries, after, streams, limit, size)

    def pruned(self, after: int, until: int) -> Deferred[int]:
        return self._read(self._reader.pruned, after, until)

    def position(self, reader: str) -> Deferred[Position | None]:
        return self._read(self._reader.position, reader)

    def set_position(self, reader: str, position: Position) -> Deferred[None]:
        return self._ask(Writer.set_position, reader, position)


class JournalService(MultiService):
    """
    The journal's file, the process that writes to it and the thread that reads it, for as
    long as the service runs.

    @ivar journal: The L{IJournal}, once the service has been started.
    @ivar saved_subscriptions: What there was before, by topic.
    """

    journal: Journal

    def __init__(self, reactor: Any, path: Path, lost: Callable[[str], None]) -> None:
        """
        @param lost: Called, with how, if the process that writes ends by itself: what it
            was writing may have become durable or not, and only a new start tells.
        """
        super().__init__()
        self._reactor = reactor
        self._path = path
        self._lost = lost
        self._threads = Threads(reactor, 1, "tbvast-journal-reader")
        self._threads.setServiceParent(self)

    def startService(self) -> None:
        """
        @raise JournalFailed: If the file cannot be used.
        """
        self._writer = Worker(
            self._reactor,
            "the journal's writer",
            "tbvast.plugin.writer",
            [str(self._path), str(uuid.uuid4())],
            JournalFailed,
            self._lost,
        )
        opened = self._writer.start(Opened)
        self._store = JournalReader(self._path)
        self.saved_subscriptions = self._store.subscriptions()
        super().startService()
        self.journal = Journal(opened, calendar, self._writer.ask, self._store, self._threads.defer)

    def stopService(self) -> Deferred[None]:
        """
        Finish what was begun, which takes a few commits at the most, and close.
        """
        super().stopService()  # which is over when it returns, should the reactor not run
        self._store.close()
        return self._writer.stop()
