"""
The statistics of a bus.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

import attrs
import msgspec
from twisted.application.internet import TimerService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast import __version__
from tbvast.bus.subscription import Subscription
from tbvast.interfaces import ICounters, IJournal
from tbvast.protocol.manage import PROTOCOL
from tbvast.service.turns import in_turns

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

    One report answers all requests that wait when it begins, and no more than half of the time is
    spent on reports.

    @param everybody: Returns all subscriptions.
    @param longest_turn: Returns the longest turn of the reactor, in seconds of CPU time.
    @param connections: Returns the number of open connections, and the most there may be.
    """

    _clock: IReactorTime
    _journal: IJournal
    _everybody: Callable[[], Iterable[Subscription]]
    _longest_turn: Callable[[], float]
    _connections: Callable[[], tuple[int, int]]

    def __attrs_post_init__(self) -> None:
        super().__init__(SAMPLE_INTERVAL, self._sample)
        self.clock = self._clock
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._started = self._clock.seconds()
        self._samples: deque[tuple[float, Counter[str]]] = deque(maxlen=_SAMPLES)
        self._asking: list[Deferred[bytes]] = []
        self._reporting: Deferred[None] = succeed(None)

    def count(self, kind: str, verdict: str, number: int = 1) -> None:
        self._counts[kind][verdict] += number

    def _accepted(self) -> Counter[str]:
        return Counter({kind: counts["accepted"] for kind, counts in self._counts.items()})

    def _sample(self) -> None:
        self._samples.append((self._clock.seconds(), self._accepted()))

    def report(self) -> Deferred[bytes]:
        """
        @return: Fires with the answer to a C{status} request. Rates are items per second, over
            the last minute.
        """
        answer: Deferred[bytes] = Deferred()
        self._asking.append(answer)
        if self._reporting.called:
            self._reporting = Deferred.fromCoroutine(self._report_all())
        return answer

    async def _report_all(self) -> None:
        try:
            while self._asking:
                began = self._clock.seconds()
                await self._report_to_all()
                if self._asking:
                    await deferLater(self._clock, self._clock.seconds() - began)
        except CancelledError:  # the service stops
            pass

    async def _report_to_all(self) -> None:
        asking, self._asking = self._asking, []
        try:
            report = msgspec.json.encode(await self._report())
        except CancelledError:
            raise
        except Exception:
            for each in asking:
                each.errback(Failure())
        else:
            await in_turns(
                self._clock,
                asking,
                lambda each: each.callback(report),
                "Cannot answer a status request",
            )

    def stopService(self) -> Deferred[None]:
        self._reporting.cancel()
        return super().stopService()

    async def _report(self) -> dict[str, object]:
        subscriptions: list[msgspec.Raw] = []
        await in_turns(
            self._clock,
            self._everybody(),
            lambda each: subscriptions.append(msgspec.Raw(msgspec.json.encode(each.describe()))),
            "Cannot describe a subscription",
        )
        counts = await self._journal.counts()
        aside = await self._journal.set_aside_report()
        now, accepted = self._clock.seconds(), self._accepted()
        since, before = self._samples[0] if self._samples else (self._started, Counter[str]())
        elapsed = max(now - since, 1.0)
        connected, limit = self._connections()
        return {
            "status": "success",
            "protocol": PROTOCOL,
            "version": __version__,
            "plugin": self._journal.identity,
            "uptime": now - self._started,
            "longest_turn": self._longest_turn(),
            "connections": {"open": connected, "limit": limit},
            "journal": {"head": self._journal.head, **counts},
            "set_aside": {"count": aside.count, "newest": aside.newest},
            "received": self._counts,
            "rates": {
                kind: round((accepted[kind] - before[kind]) / elapsed, 2)
                for kind in ("indicator", "sighting")
            },
            "subscriptions": subscriptions,
        }
