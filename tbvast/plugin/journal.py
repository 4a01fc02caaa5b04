"""
The journal: L{tbvast.plugin.store.JournalStore}, asked from the reactor's thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.errors import JournalFailed
from tbvast.interfaces import IJournal, IKeeper, IReplay, ISubscriptionStore
from tbvast.ops.threads import Defer, Threads
from tbvast.plugin.store import Entered, JournalStore, Outcome
from tbvast.wire.frames import Item
from tbvast.wire.manage import Position
from tbvast.wire.topics import Stream


@implementer(IJournal, IKeeper, IReplay, ISubscriptionStore)
class Journal:
    """
    An L{IJournal} whose calls are made in threads.
    """

    def __init__(
        self, store: JournalStore, clock: IReactorTime, defer_write: Defer, defer_read: Defer
    ) -> None:
        """
        @param defer_write: Makes one call at a time, in order.
        @param defer_read: Makes one call at a time, in order, and does not wait
            for the writer.
        """
        self.identity = store.identity
        self.head = store.head
        self._store = store
        self._clock = clock
        self._write = defer_write
        self._read = defer_read
        # How many failures to append are known here, and the last one in the thread.
        self._failures = 0
        self._failed: tuple[int, JournalFailed] | None = None

    @property
    def floor(self) -> int:
        return self._store.floor

    def append(self, items: Sequence[Item]) -> Deferred[list[Outcome]]:
        failures = self._failures
        return self._write(self._append, items, self._clock.seconds(), failures).addCallbacks(
            self._cb_appended, self._eb_append, errbackArgs=(failures,)
        )

    def _append(self, items: Sequence[Item], now: float, failures: int) -> list[Outcome]:
        """
        In the writer's thread.

        @param failures: How many were known to whoever called.
        """
        if self._failed is not None and self._failed[0] == failures:
            raise self._failed[1]
        try:
            return self._store.append(items, now)
        except JournalFailed as e:
            self._failed = (failures, e)
            raise

    def _eb_append(self, failure: Failure, failures: int) -> Failure:
        self._failures = max(self._failures, failures + 1)
        return failure

    def _cb_appended(self, outcomes: list[Outcome]) -> list[Outcome]:
        # Those that were accepted are numbered in their order.
        self.head = next((each.number for each in reversed(outcomes) if each.number), self.head)
        return outcomes

    def current(
        self, after: int, until: int, since: float, limit: int
    ) -> Deferred[list[tuple[int, bytes]]]:
        now = self._clock.seconds()
        return self._read(self._store.current, after, until, since, limit, now)

    def find(self, ids: Iterable[str]) -> Deferred[dict[str, bytes]]:
        return self._read(self._store.find, list(ids))

    def counts(self) -> Deferred[dict[str, int]]:
        return self._read(self._store.counts, self._clock.seconds())

    def expire(self, limit: int) -> Deferred[list[Outcome]]:
        return self._write(self._store.expire, self._clock.seconds(), limit).addCallback(
            self._cb_appended
        )

    def forget(self, age: float, size: int, limit: int) -> Deferred[int]:
        since = self._clock.seconds() - age
        return self._write(self._store.forget, since, size, limit)

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> Deferred[None]:
        return self._write(self._store.save_subscriptions, changes)

    def entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> Deferred[list[Entered]]:
        return self._read(self._store.entries, after, streams, limit, size)

    def position(self, reader: str) -> Deferred[Position | None]:
        return self._read(self._store.position, reader)

    def set_position(self, reader: str, position: Position) -> Deferred[None]:
        return self._write(self._store.set_position, reader, position)


class JournalService(MultiService):
    """
    The journal's file and threads, for as long as the service runs.

    @ivar journal: The L{IJournal}, once the service has been started.
    @ivar saved_subscriptions: What there was before, by topic.
    """

    journal: Journal

    def __init__(self, reactor: Any, path: Path) -> None:
        super().__init__()
        self._reactor = reactor
        self._path = path
        self._writer = Threads(reactor, 1, "tbvast-journal-writer")
        self._reader = Threads(reactor, 1, "tbvast-journal-reader")
        self._writer.setServiceParent(self)
        self._reader.setServiceParent(self)

    def startService(self) -> None:
        """
        @raise JournalFailed: If the file cannot be used.
        """
        self._store = JournalStore(self._path, str(uuid.uuid4()))
        self.saved_subscriptions = self._store.subscriptions()
        super().startService()
        self.journal = Journal(self._store, self._reactor, self._writer.defer, self._reader.defer)

    def stopService(self) -> Deferred[None]:
        """
        Finish what was begun, which takes one commit at the most, and close.
        """
        return super().stopService().addCallback(lambda _: self._store.close())
