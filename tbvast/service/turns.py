"""
Divides long work into turns of the reactor, so that nothing else waits long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

TURN_BUDGET_SECONDS = 0.005
"""
Seconds after which long work continues in another turn of the reactor.
"""

T = TypeVar("T")

_log = Logger()


class Turn:
    """
    The present turn of the reactor.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._until = clock.seconds() + TURN_BUDGET_SECONDS

    @property
    def over(self) -> bool:
        """
        Whether the work has to continue in another turn.
        """
        return self._clock.seconds() > self._until

    async def end(self) -> None:
        """
        Wait for the next turn.
        """
        await deferLater(self._clock, 0)
        self._until = self._clock.seconds() + TURN_BUDGET_SECONDS


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
