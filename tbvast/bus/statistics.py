"""
The statistics of a bus.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

import attrs
from twisted.application.internet import TimerService
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from tbvast import __version__
from tbvast.interfaces import ICounters, IJournal, ISubscription
from tbvast.protocol.manage import PROTOCOL

SAMPLE_INTERVAL = 5.0
"""
Seconds between samples of the counters.
"""

_SAMPLES = 13


@implementer(ICounters)
@attrs.define(eq=False, slots=False)
class Statistics(TimerService):
    """
    Counts what a bus receives, and reports its state, with rates over the last minute.

    @param everybody: Returns all subscriptions.
    """

    _clock: IReactorTime
    _journal: IJournal
    _everybody: Callable[[], Iterable[ISubscription]]

    def __attrs_post_init__(self) -> None:
        super().__init__(SAMPLE_INTERVAL, self._sample)
        self.clock = self._clock
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._started = self._clock.seconds()
        self._samples: deque[tuple[float, Counter[str]]] = deque(maxlen=_SAMPLES)

    def count(self, kind: str, verdict: str, number: int = 1) -> None:
        self._counts[kind][verdict] += number

    def _accepted(self) -> Counter[str]:
        return Counter({kind: counts["accepted"] for kind, counts in self._counts.items()})

    def _sample(self) -> None:
        self._samples.append((self._clock.seconds(), self._accepted()))

    async def report(self) -> dict[str, object]:
        """
        @return: The answer to a C{status} request. Rates are items per second, over the last
            minute.
        """
        counts = await self._journal.counts()
        aside = await self._journal.set_aside_report()
        now, accepted = self._clock.seconds(), self._accepted()
        since, before = self._samples[0] if self._samples else (self._started, Counter[str]())
        elapsed = max(now - since, 1.0)
        return {
            "status": "success",
            "protocol": PROTOCOL,
            "version": __version__,
            "plugin": self._journal.identity,
            "uptime": now - self._started,
            "journal": {"head": self._journal.head, **counts},
            "set_aside": {"count": aside.count, "newest": aside.newest},
            "received": self._counts,
            "rates": {
                kind: round((accepted[kind] - before[kind]) / elapsed, 2)
                for kind in ("indicator", "sighting")
            },
            "subscriptions": [each.describe() for each in self._everybody()],
        }
