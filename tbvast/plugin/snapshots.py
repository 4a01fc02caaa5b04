"""
Snapshots: the intel of the last days, from every source that can answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from tbvast.interfaces import IJournal, ISnapshotSource
from tbvast.plugin.subscriptions import Subscription
from tbvast.wire.frames import render_intel

PAGE = 1000
"""
Indicators that are read, and held in memory, at a time.
"""

_DAY = 86400.0


@implementer(ISnapshotSource)
class JournalSource:
    """
    The bus's own memory.
    """

    name = "journal"

    def __init__(self, journal: IJournal) -> None:
        self._journal = journal

    async def pages(self, since: float, send: Callable[[list[bytes]], Deferred[None]]) -> int:
        count = after = 0
        until = self._journal.head
        while page := await self._journal.current(after, until, since, PAGE):
            await send([document for _, document in page])
            after = page[-1][0]
            count += len(page)
        return count


class Snapshots:
    """
    Answers a subscription's wish for a snapshot, from every source in turn.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, sources: Sequence[ISnapshotSource]) -> None:
        self._clock = clock
        self._sources = sources

    def deliver(self, subscription: Subscription, days: int) -> None:
        """
        Send a subscription the intel of some days, before anything else.

        A source that fails is named in the log; the others are still asked.
        """
        subscription.take_snapshot(
            lambda send: Deferred.fromCoroutine(self._deliver(subscription, days, send))
        )

    async def _deliver(
        self,
        subscription: Subscription,
        days: int,
        send: Callable[[Iterable[bytes]], Deferred[None]],
    ) -> None:
        dialect = subscription.request.dialect
        started = self._clock.seconds()
        count = 0
        for source in self._sources:
            try:
                count += await source.pages(
                    started - days * _DAY,
                    lambda documents: send(
                        tail for raw in documents for tail in render_intel(dialect, raw)
                    ),
                )
            except Exception:
                self._log.failure("No snapshot from {source}", source=source.name)
        self._log.info(
            "Snapshot of {days} days for {name}: {count} indicators in {elapsed:.3f} s.",
            days=days,
            name=subscription.request.name or "somebody",
            count=count,
            elapsed=self._clock.seconds() - started,
        )
