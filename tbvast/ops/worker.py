"""
A child process that does what would keep the reactor's interpreter busy.

A thread shares the interpreter with the reactor: what is computed in it, the reactor
waits for. A process does not. It is asked over a socket that nobody else has, one
request after the other, and ends when the socket does.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from tbvast.errors import TbvastError
from tbvast.ops.answering import DONE, REFUSED, read_message

MOST_BYTES = (1 << 31) - 1
"""
The longest message. Both ends are one program.
"""


class WorkerBroken(Exception):
    """
    A request met a defect of the worker; the text is its traceback.
    """


class Worker:
    """
    The process, as the reactor sees it.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        module: str,
        arguments: Sequence[str],
        refusal: Callable[[str], TbvastError],
        lost: Callable[[str], None],
    ) -> None:
        """
        @param name: What it is called in messages, e.g. C{the journal's writer}.
        @param module: What the process runs, which calls L{tbvast.ops.answering.serve}.
        @param refusal: Makes the error that a request fails with if the worker refuses
            it, or is not there any more.
        @param lost: Called, with how, if the process ends before it should.
        """
        self._reactor = reactor
        self._name = name
        self._module = module
        self._arguments = arguments
        self._refusal = refusal
        self._lost = lost
        self._stopping = False
        self._ended: Deferred[None] = Deferred()

    def start(self) -> bytes:
        """
        Start the process, and wait until it can be asked.

        @return: What it says first.
        @raise Exception: The refusal, if it cannot.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._reactor.spawnProcess(
                    _Exit(self._exited),
                    sys.executable,
                    [sys.executable, "-P", "-m", self._module, *self._arguments],
                    {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    childFDs={0: theirs.fileno(), 1: 2, 2: 2},
                )
            with ours.makefile("rb") as stream:
                first = read_message(stream)
            self._calls = _Calls(self._name, self._refusal)
            if first[:1] != DONE:
                self._stopping = True
                raise self._refusal(first[1:].decode() or f"{self._name} ended while it started")
            ours.setblocking(False)
            factory = Factory.forProtocol(lambda: self._calls)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        return first[1:]

    def call(self, request: bytes) -> Deferred[bytes]:
        """
        @return: Fires with the answer. Fails with a refusal, or with L{WorkerBroken}.
        """
        return self._calls.call(request)

    def stop(self) -> Deferred[None]:
        """
        Have it answer what it has been asked, and end.

        @return: Fires when it has.
        """
        if not self._calls.gone:
            self._stopping = True
            self._calls.end()
        return self._ended

    def _exited(self, how: str) -> None:
        if not self._stopping:
            self._lost(f"{self._name} ended with {how}")
        self._ended.callback(None)


class _Exit(ProcessProtocol):
    def __init__(self, exited: Callable[[str], None]) -> None:
        self._exited = exited

    def processEnded(self, reason: Failure) -> None:
        status: Any = reason.value
        how = f"signal {status.signal}" if status.signal else f"exit status {status.exitCode}"
        self._exited(how)


class _Calls(Int32StringReceiver):
    """
    Requests, and the answers that come in their order.

    @ivar gone: Whether nothing can be asked any more.
    """

    MAX_LENGTH = MOST_BYTES

    def __init__(self, name: str, refusal: Callable[[str], TbvastError]) -> None:
        self._name = name
        self._refusal = refusal
        self._waiting: deque[Deferred[bytes]] = deque()
        self.gone = False

    def call(self, request: bytes) -> Deferred[bytes]:
        if self.gone:
            return fail(self._has_ended())
        answer: Deferred[bytes] = Deferred()
        self._waiting.append(answer)
        self.sendString(request)
        return answer

    def end(self) -> None:
        self.gone = True
        transport: Any = self.transport
        transport.loseWriteConnection()

    def stringReceived(self, string: bytes) -> None:
        answer = self._waiting.popleft()
        kind = string[:1]
        if kind == DONE:
            answer.callback(string[1:])
        elif kind == REFUSED:
            answer.errback(self._refusal(string[1:].decode()))
        else:
            answer.errback(WorkerBroken(string[1:].decode()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone = True
        while self._waiting:
            self._waiting.popleft().errback(self._has_ended())

    def _has_ended(self) -> TbvastError:
        return self._refusal(f"{self._name} has ended")
