"""
Threads of one's own, for what blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Defer = Callable[..., Deferred[Any]]
"""
Calls a callable in a thread, for a L{Deferred} of its result.
"""


class Threads(Service):
    """
    A few threads, for as long as the service runs.

    Twisted's own pool takes twice as long to hand a call over and its result back,
    for it also makes and ends threads as there is need of them.
    """

    def __init__(self, reactor: Any, count: int, name: str) -> None:
        """
        @param name: What the threads are called, in a debugger say.
        """
        self._reactor = reactor
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name=f"{name}-{number}") for number in range(count)
        ]

    def startService(self) -> None:
        super().startService()
        for thread in self._threads:
            thread.start()

    def defer(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        @return: Fires with what C{f} returns, or fails with what it raises.
        """
        result: Deferred[Any] = Deferred()
        self._calls.put((result, f, args))
        return result

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            result, f, args = call
            try:
                value = f(*args)
            except BaseException:
                self._reactor.callFromThread(result.errback, Failure())
            else:
                self._reactor.callFromThread(result.callback, value)
            # Else they would stay until the next call.
            del call, result, f, args
            value = None

    def stopService(self) -> None:
        """
        Wait for the calls in progress, which must not be long, and end.
        """
        super().stopService()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()


_Call = tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]
