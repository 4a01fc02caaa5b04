"""
The guard of the unit tests: they open no sockets and start no processes.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any
from unittest import TestCase

import zmq

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
    sys.addaudithook(_check)


def _audited(name: str, method: Any) -> Any:
    @functools.wraps(method)
    def call(zeromq_socket: Any, address: str) -> Any:
        if not address.startswith("inproc:"):
            sys.audit(f"zmq.{name}", zeromq_socket, address)
        return method(zeromq_socket, address)

    return call


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in FORBIDDEN:
        return
    test = _running_test()
    if test is None or not type(test).__module__.startswith(UNIT_TESTS):
        return
    error = NotIsolated(f"{event} in a unit test; tests of sockets and processes are functional")
    test.addCleanup(_fail, error)  # the code under test may handle the first one
    raise error


def _fail(error: NotIsolated) -> None:
    raise error


def _running_test() -> TestCase | None:
    """
    @return: The test that runs in the main thread, whatever thread this is; the innermost one.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "run":
            test = frame.f_locals.get("self")
            if isinstance(test, TestCase):
                return test
        frame = frame.f_back
    return None
