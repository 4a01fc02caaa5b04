"""
Tests for L{tests.isolation}.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from unittest import TestResult

import zmq
from twisted.internet import reactor
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import SynchronousTestCase

from tests.isolation import FORBIDDEN, NotIsolated

TRUE = "/bin/true"


def connect() -> None:
    with socket.socket() as one:
        one.settimeout(0)
        with contextlib.suppress(OSError):
            one.connect(("127.0.0.1", 9))


def bind() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def bind_zeromq() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as one:
        one.bind("tcp://127.0.0.1:*")


def connect_zeromq() -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as one:
        one.linger = 0
        one.connect("tcp://127.0.0.1:9")


def popen() -> None:
    subprocess.run([TRUE], check=True)


def fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def spawn() -> None:
    reactor.spawnProcess(ProcessProtocol(), TRUE, [TRUE], env={})


def in_thread() -> None:
    thread = threading.Thread(target=handled)
    thread.start()
    thread.join()


def handled() -> None:
    with contextlib.suppress(Exception):
        bind()


def run(module: str, call: Callable[[], None]) -> TestResult:
    """
    Run a test of a module.

    @param call: What the test does.
    """

    class InnerTests(SynchronousTestCase):
        def test_call(self) -> None:
            call()

    InnerTests.__module__ = module
    result = TestResult()
    InnerTests("test_call").run(result)
    return result


class IsolationTests(SynchronousTestCase):
    """
    Tests for L{tests.isolation.install}.
    """

    def test_unit_tests(self) -> None:
        """
        A unit test that opens a socket or starts a process fails, even if the code under test
        handles the error, or runs in another thread.
        """
        for call in (
            bind,
            connect,
            bind_zeromq,
            connect_zeromq,
            popen,
            fork,
            spawn,
            in_thread,
            handled,
        ):
            with self.subTest(call.__name__):
                result = run("tests.test_inner", call)
                self.assertFalse(result.wasSuccessful())
                self.assertIn(NotIsolated.__name__, (result.failures + result.errors)[-1][1])

    def test_functional_tests(self) -> None:
        """
        A functional test may do both.
        """
        for event in FORBIDDEN:
            result = run("tests.functional.test_inner", lambda event=event: sys.audit(event))  # type: ignore[misc]
            self.assertTrue(result.wasSuccessful(), event)
