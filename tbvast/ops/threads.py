"""
Threads of one's own, for what blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

Defer = Callable[..., Deferred[Any]]
"""
Calls a callable in a thread, for a L{Deferred} of its result.
"""


class Threads(Service):
    """
    A few threads, for as long as the service runs.
    """

    def __init__(self, reactor: Any, count: int, name: str) -> None:
        """
        @param name: What the threads are called, in a debugger say.
        """
        self._reactor = reactor
        self._pool = ThreadPool(count, count, name)

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def defer(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """
        @return: Fires with what C{f} returns, or fails with what it raises.
        """
        return deferToThreadPool(self._reactor, self._pool, f, *args)

    def stopService(self) -> None:
        """
        Wait for the calls in progress, which must not be long, and end.
        """
        super().stopService()
        self._pool.stop()
