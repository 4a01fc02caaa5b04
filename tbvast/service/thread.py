"""
Threads for blocking calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Defer = Callable[..., Deferred[Any]]
"""
Calls a callable in a thread, and returns a C{Deferred} of its result.
"""


class Threads(Service):
    """
    A fixed number of threads, which run as long as the service.

    Twisted's thread pool takes twice as long for a call, because it also starts and ends
    threads as needed.
    """

    def __init__(self, reactor: Any, count: int, name: str) -> None:
        """
        @param count: The number of threads.
        @param name: The prefix of their names, for debuggers.
        """
        self._reactor = reactor
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name=f"{name}-{number}") for number in range(count)
        ]

    def startService(self) -> None:
        super().startService()
        for thread in self._threads:
            thread.start()

    def defer(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        Call C{f} in a thread.

        @return: Fires with the result of C{f}, or fails with its error.
        """
        result: Deferred[Any] = Deferred()
        self._calls.put(functools.partial(self._call, result, f, args))
        return result

    def _work(self) -> None:
        for call in iter(self._calls.get, None):
            call()
            del call  # otherwise it would live until the next one

    def _call(self, result: Deferred[Any], f: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            value = f(*args)
        except BaseException:
            self._reactor.callFromThread(result.errback, Failure())
        else:
            self._reactor.callFromThread(result.callback, value)

    def stopService(self) -> None:
        """
        Wait for the calls in progress, which must be short, and end the threads.
        """
        super().stopService()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
