"""
The journal for the reactor's thread. Another process writes the file, so that this
interpreter is free, and threads read it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import attrs
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bus.journal.reader import JournalReader
from tbvast.bus.journal.values import (
    JournalEntry,
    Opened,
    Outcome,
    PackedOutcome,
    Page,
    Pruned,
    Run,
    Verdict,
    runs_of,
)
from tbvast.bus.journal.writer import JournalStore
from tbvast.errors import FileLost, JournalFailed
from tbvast.interfaces import IJournal, IRetention
from tbvast.protocol.frames import Item, stream_of
from tbvast.protocol.topics import Stream
from tbvast.service.clock import Calendar, calendar
from tbvast.service.thread import Defer, ServiceThread
from tbvast.storage.set_aside import SetAside, SetAsideReport, Stage, described, reason_of
from tbvast.storage.worker_client import CallWorker, Worker
from tbvast.storage.worker_server import Unencodable, encode_request
from tbvast.values import Position

GUARD_INTERVAL = 1.0
"""
Seconds between checks of the file while nothing is written.
"""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = Logger()


def set_aside(journal: IJournal, items: Sequence[SetAside]) -> Deferred[None]:
    """
    Set items aside that cannot be handled. If that fails, they are logged.

    @return: Fires when that is done; fails only if it is cancelled.
    """

    async def attempt() -> None:
        try:
            await journal.set_aside(items)
        except CancelledError:
            raise
        except Exception as e:
            for each in items:
                text = "Cannot set aside {what}: {reason}"
                _log.error(text, what=described(each), reason=str(e))

    return Deferred.fromCoroutine(attempt())


@implementer(IJournal, IRetention)
@attrs.define(eq=False, slots=False)
class Journal:
    """
    An L{IJournal} that another process writes, and a thread reads.

    @param opened: The first message of the writer's process.
    @param now: The calendar, for expiry and for the age of entries.
    @param ask: Calls a method of the L{JournalStore}.
    @param reader: Reads the same file.
    @param defer: Calls the reader in its thread, one call at a time, in order.
    @param counter: Another reader of the file, for counts, which take long.
    @param defer_count: Calls it in another thread, so that no other read waits for it.
    @param lost: Called, with the reason, if the file turns out to be damaged.
    """

    _opened: Opened
    _now: Calendar
    _ask: CallWorker
    _reader: JournalReader
    _defer: Defer
    _counter: JournalReader
    _defer_count: Defer
    _lost: Callable[[str], None]
    _failures: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.identity = self._opened.identity
        self.head = self._opened.head
        self.floor = self._opened.floor

    def _read(
        self, method: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs
    ) -> Deferred[_T]:
        result: Deferred[_T] = self._defer(method, *arguments, **keywords)
        return result.addErrback(self._eb_read)

    def _count(
        self, method: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs
    ) -> Deferred[_T]:
        result: Deferred[_T] = self._defer_count(method, *arguments, **keywords)
        return result.addErrback(self._eb_read)

    def _eb_read(self, failure: Failure) -> Failure:
        if failure.check(FileLost) is None:
            return failure
        self._lost(str(failure.value))
        return Failure(JournalFailed(str(failure.value)))

    def append(
        self, items: Sequence[Item], publishers: Sequence[Run] = ()
    ) -> Deferred[list[Outcome]]:
        return Deferred.fromCoroutine(self._append(items, publishers))

    async def _append(self, items: Sequence[Item], publishers: Sequence[Run]) -> list[Outcome]:
        failures = self._failures
        try:
            try:
                packed = await self._ask(
                    JournalStore.append, items, self._now(), publishers, failures
                )
            except Unencodable as e:  # at once, so that nothing overtakes the second attempt
                packed = await self._append_encodable(items, publishers, failures, e)
        except Exception:
            self._failures = max(self._failures, failures + 1)
            raise
        return self._outcomes(packed, items)

    async def _append_encodable(
        self,
        items: Sequence[Item],
        publishers: Sequence[Run],
        failures: int,
        error: Unencodable,
    ) -> list[PackedOutcome]:
        """
        Append only the items that can be sent to the other process; set the others aside.
        """
        good, givers, bad = [], [], []
        given_by = [who for count, who in publishers for _ in range(count)]
        for place, item in enumerate(items):
            try:
                encode_request(JournalStore.append, ([item], 0.0, (), 0))
                good.append(item)
                givers += given_by[place : place + 1]
            except Unencodable as e:
                stream = stream_of(item).value.decode()
                bad.append((place, SetAside(Stage.APPEND, reason_of(e), item.raw, stream, item.id)))
        if not bad:
            raise error
        asked = self._ask(JournalStore.append, good, self._now(), runs_of(givers), failures)
        set_aside(self, [each for _, each in bad])
        packed = await asked
        for place, _ in bad:
            packed.insert(place, PackedOutcome(Verdict.REFUSED))
        return packed

    def set_aside(self, items: Sequence[SetAside]) -> Deferred[None]:
        for each in items:
            _log.error("Set aside {what}", what=described(each))
        return self._ask(JournalStore.set_aside, items, self._now())

    def set_aside_report(self) -> Deferred[SetAsideReport]:
        return self._count(self._counter.set_aside_report)

    def _cb_page(self, page: Page[_T]) -> list[_T] | Deferred[list[_T]]:
        """
        Set damaged entries aside before the next read.
        """
        self.floor = max(self.floor, page.floor)
        if not page.damaged:
            return page.sound
        return set_aside(self, page.damaged).addCallback(lambda _: page.sound)

    def _outcomes(self, packed: list[PackedOutcome], items: Sequence[Item]) -> list[Outcome]:
        outcomes = [
            Outcome(each.verdict, each.number, each.item or item, each.reason)
            for each, item in zip(packed, items, strict=True)
        ]
        # Accepted items have ascending numbers.
        self.head = next((each.number for each in reversed(outcomes) if each.number), self.head)
        return outcomes

    def current(
        self, after: int, until: int, since: float, limit: int, size: int
    ) -> Deferred[list[tuple[int, bytes]]]:
        read = self._read(self._reader.current, after, until, since, limit, size, self._now())
        return read.addCallback(self._cb_page)

    def counts(self) -> Deferred[dict[str, int]]:
        return self._count(self._counter.counts, self._now())

    def expire(self, limit: int) -> Deferred[list[Outcome]]:
        return self._ask(JournalStore.expire, self._now(), limit).addCallback(
            lambda packed: self._outcomes(packed, [each.item for each in packed if each.item])
        )

    def prune(self, age: float, size: int, limit: int) -> Deferred[int]:
        since = self._now() - age
        return self._ask(JournalStore.prune, since, size, limit).addCallback(self._cb_pruned)

    def _cb_pruned(self, pruned: Pruned) -> int:
        self.floor = max(self.floor, pruned.floor)
        return pruned.count

    def save_subscriptions(self, changes: dict[str, bytes | None]) -> Deferred[None]:
        return self._ask(JournalStore.save_subscriptions, changes)

    def entries(
        self, after: int, streams: Collection[Stream], limit: int, size: int
    ) -> Deferred[list[JournalEntry]]:
        read = self._read(self._reader.entries, after, streams, limit, size)
        return read.addCallback(self._cb_page)

    def pruned(self, after: int, until: int) -> Deferred[int]:
        return self._read(self._reader.pruned, after, until)

    def position(self, reader: str) -> Deferred[Position | None]:
        return self._read(self._reader.position, reader)

    def set_position(self, reader: str, position: Position) -> Deferred[None]:
        return self._ask(JournalStore.set_position, reader, position)


class JournalService(MultiService):
    """
    The journal, with the process that writes it and the threads that read it.

    @ivar journal: The L{IJournal}, once the service has been started.
    @ivar saved_subscriptions: The states of subscriptions that were saved earlier, by topic.
    """

    journal: Journal

    def __init__(self, reactor: Any, path: Path, lost: Callable[[str], None]) -> None:
        """
        @param path: The journal's file.
        @param lost: Called, with the reason, if the writer's process ends by itself. Whether
            its last commit is durable is then known only after a restart.
        """
        super().__init__()
        self._reactor = reactor
        self._path = path
        self._lost = lost
        self._thread = ServiceThread(reactor, "tbvast-journal-reader")
        self._counting = ServiceThread(reactor, "tbvast-journal-counter")
        for thread in (self._thread, self._counting):
            thread.setServiceParent(self)
        timer = TimerService(GUARD_INTERVAL, self._check_file)
        timer.clock = reactor
        timer.setServiceParent(self)

    def startService(self) -> None:
        """
        @raise JournalFailed: If the file cannot be used.
        """
        self._writer = Worker(
            self._reactor,
            "the journal's writer",
            "tbvast.bus.journal.worker",
            [str(self._path), str(uuid.uuid4())],
            JournalFailed,
            self._lost,
        )
        opened = self._writer.start(Opened)
        try:
            self._store = JournalReader(self._path)
            self._counter = JournalReader(self._path)
            self.saved_subscriptions = self._store.subscriptions()
        except FileLost as e:
            raise JournalFailed(str(e)) from e
        super().startService()
        self.journal = Journal(
            opened,
            calendar,
            self._writer.ask,
            self._store,
            self._thread.defer,
            self._counter,
            self._counting.defer,
            self._lost,
        )

    async def _check_file(self) -> None:
        """
        Have the writer check the file. If the file is lost, the service ends.
        """
        try:
            await self._writer.ask(JournalStore.check)
        except JournalFailed:  # reported by the callable lost
            pass

    def stopService(self) -> Deferred[None]:
        """
        Finish the calls in progress, which takes a few commits at the most, and close.
        """
        super().stopService()  # complete when it returns, because the reactor may not run
        self._store.close()
        self._counter.close()
        return self._writer.stop()
