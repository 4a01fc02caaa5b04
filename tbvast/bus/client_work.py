"""
Divides the reactor's time between clients.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure

from tbvast.service.turns import Turn, next_turn

T = TypeVar("T")

Steps = Generator[Deferred[None] | None, None, T]
"""
Work that takes long, in short steps: it yields after each of them, or yields a C{Deferred} that
the next one waits for, and returns its result.
"""


class ClientWork:
    """
    Does the work of many clients, one step of each client in turn. The work of one client is done
    in order, so that it has no more of the time if it asks for more.
    """

    def __init__(self, clock: IReactorTime) -> None:
        def turn() -> Callable[[], bool]:
            this = Turn(clock)
            return lambda: this.over

        def schedule(call: Callable[[], None]) -> Any:  # only its cancel is called
            return next_turn(clock).addCallback(lambda _: call())

        self._cooperator = Cooperator(turn, schedule)
        self._queues: dict[str, deque[Iterator[Deferred[None] | None]]] = {}
        self._finished: Deferred[None] | None = None

    def do(self, client: str, work: Steps[Deferred[T]]) -> Deferred[T]:
        """
        @param client: The client, as the access control knows it.
        @return: Fires as the result of the work does.
        """
        done: Deferred[T] = Deferred()
        queue = self._queues.get(client)
        if queue is None:
            queue = self._queues[client] = deque()
            self._cooperator.coiterate(self._in_order(client, queue))
        queue.append(_resolving(work, done))
        return done

    def _in_order(
        self, client: str, queue: deque[Iterator[Deferred[None] | None]]
    ) -> Iterator[Deferred[None] | None]:
        while queue:
            yield from queue.popleft()
            yield None  # the last step of one work, if not its only one, and the first of the next
        del self._queues[client]
        if self._finished is not None and not self._queues:
            self._finished.callback(None)

    def finish(self) -> Deferred[None]:
        """
        @return: Fires when all work is done. None may be added.
        """
        if not self._queues:
            return succeed(None)
        self._finished = Deferred()
        return self._finished


def _resolving(work: Steps[Deferred[T]], done: Deferred[T]) -> Iterator[Deferred[None] | None]:
    try:
        result = yield from work
    except Exception:
        done.errback(Failure())
    else:
        result.chainDeferred(done)
