"""
Divides long work into turns of the reactor, so that nothing else waits long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TURN_BUDGET_SECONDS = 0.005
"""
Seconds after which long work continues in another turn of the reactor.
"""

T = TypeVar("T")

_log = Logger()


class Turn:
    """
    The present turn of the reactor, for one piece of long work. If other work waits for the next
    turn already, this one is over.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._until = clock.seconds()
        if not _queue_of(clock).waiting:
            self._until += TURN_BUDGET_SECONDS

    @property
    def over(self) -> bool:
        """
        Whether the work has to continue in another turn.
        """
        return self._clock.seconds() > self._until

    async def end(self) -> None:
        """
        Wait for another turn.
        """
        self._until = await next_turn(self._clock)


def next_turn(clock: IReactorTime) -> Deferred[float]:
    """
    Wait for another turn of the reactor. All that wait share its time, and that of the next ones.

    @return: Fires with the time when that turn is over.
    """
    queue = _queue_of(clock)
    slot: Deferred[float] = Deferred(queue.cancel)
    queue.waiting.append(slot)
    queue.schedule(clock)
    return slot


class _TurnQueue:
    """
    The works that wait for a turn of one reactor.
    """

    def __init__(self) -> None:
        self.waiting: deque[Deferred[float]] = deque()
        self._call: IDelayedCall | None = None

    def schedule(self, clock: IReactorTime) -> None:
        if self._call is None:
            self._call = clock.callLater(0, self._resume, clock)

    def cancel(self, slot: Deferred[float]) -> None:
        self.waiting.remove(slot)
        if not self.waiting and self._call is not None:
            self._call.cancel()
            self._call = None

    def _resume(self, clock: IReactorTime) -> None:
        self._call = None
        until = clock.seconds() + TURN_BUDGET_SECONDS
        for _ in range(len(self.waiting)):
            if self.waiting:  # the one before may have cancelled others
                self.waiting.popleft().callback(until)
            if clock.seconds() > until:
                break
        if self.waiting:
            self.schedule(clock)


_queues: WeakKeyDictionary[IReactorTime, _TurnQueue] = WeakKeyDictionary()


def _queue_of(clock: IReactorTime) -> _TurnQueue:
    return _queues.setdefault(clock, _TurnQueue())


async def in_turns(
    clock: IReactorTime, things: Iterable[T], handle: Callable[[T], object], complaint: str
) -> None:
    """
    Handle things in order, in as many turns as that takes.

    @param complaint: Logged, with the error, if one of them cannot be handled; the others are.
    """
    turn = Turn(clock)
    for thing in things:
        if turn.over:
            await turn.end()
        try:
            handle(thing)
        except Exception:
            _log.failure(complaint)


class TurnWatch(Service):
    """
    Measures the turns of a reactor, in seconds of its thread's CPU time: those of other threads and
    processes do not count.

    @ivar longest: The longest turn since the service was started.
    """

    longest = 0.0

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: A reactor that calls its C{runUntilCurrent} in every turn, as all of
            Twisted's do.
        """
        self._reactor = reactor
        self._began: float | None = None

    def startService(self) -> None:
        super().startService()
        self._run = self._reactor.runUntilCurrent
        self._reactor.runUntilCurrent = self._begin_turn

    def stopService(self) -> None:
        super().stopService()
        self._reactor.runUntilCurrent = self._run

    def _begin_turn(self) -> None:
        now = time.thread_time()
        if self._began is not None:  # what came before the first turn was none
            self.longest = max(self.longest, now - self._began)
        self._began = now
        self._run()
