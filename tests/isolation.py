"""
The guard of the unit tests: they open no sockets and start no processes.
"""

from __future__ import annotations

import functools
import sys
from typing import Any
from unittest import TestCase

import zmq
from twisted.trial.unittest import SynchronousTestCase

UNIT_TESTS = "tests.test_"
"""
The beginning of the module names of all unit tests.
"""

FORBIDDEN = {
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "socket.bind",
    "socket.connect",
    "subprocess.Popen",
    "zmq.bind",
    "zmq.connect",
}
"""
The audit events that no unit test may cause. The two of ZeroMQ are our own; addresses within the
process do not cause them.
"""


_running: list[TestCase] = []
"""
The tests that run in the main thread, the innermost one last.
"""


class NotIsolated(AssertionError):
    """
    A unit test has left its process.
    """


def install() -> None:
    """
    Fail every unit test that causes a forbidden event from now on.
    """
    for name in ("bind", "connect"):
        setattr(zmq.Socket, name, _audited(name, getattr(zmq.Socket, name)))
    for kind in (TestCase, SynchronousTestCase):
        kind.run = _noted(kind.run)  # type: ignore[method-assign]
    sys.addaudithook(_check)


def _audited(name: str, method: Any) -> Any:
    @functools.wraps(method)
    def call(zeromq_socket: Any, address: str) -> Any:
        if not address.startswith("inproc:"):
            sys.audit(f"zmq.{name}", zeromq_socket, address)
        return method(zeromq_socket, address)

    return call


def _noted(method: Any) -> Any:
    # The frames of the main thread tell it, too, but in Python 3.11 who asks for them from time
    # to time waits for himself, for ever.
    @functools.wraps(method)
    def run(test: TestCase, *arguments: Any, **more: Any) -> Any:
        _running.append(test)
        try:
            return method(test, *arguments, **more)
        finally:
            _running.pop()

    return run


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in FORBIDDEN:
        return
    test = _running[-1] if _running else None  # whatever thread this is
    if test is None or not type(test).__module__.startswith(UNIT_TESTS):
        return
    error = NotIsolated(f"{event} in a unit test; tests of sockets and processes are functional")
    test.addCleanup(_fail, error)  # the code under test may handle the first one
    raise error


def _fail(error: NotIsolated) -> None:
    raise error
