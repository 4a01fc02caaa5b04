"""
A thread for blocking calls.
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


class ServiceThread(Service):
    """
    A thread that runs as long as the service, and makes one call after the other.

    Twisted's pool, which starts and ends threads as needed, takes twice as long for a call.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        """
        @param name: The thread's name, for debuggers.
        """
        self._reactor = reactor
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name)

    def startService(self) -> None:
        super().startService()
        self._thread.start()

    def defer(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        Call C{f} in the thread.

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
        Wait for the calls in progress, which must be short, and end the thread.
        """
        super().stopService()
        self._calls.put(None)
        self._thread.join()
