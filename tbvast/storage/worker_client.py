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

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.python.failure import Failure

from tbvast.errors import TbvastError
from tbvast.storage.worker_server import (
    DONE,
    HEAD,
    LOST,
    PART,
    REFUSED,
    Result,
    Unencodable,
    encode_request,
    read_message,
)

CallWorker = Callable[..., Deferred[Any]]
"""
Calls a method of an object that is elsewhere: given as a function of its class, and all of
its arguments, by position. Returns a L{Deferred} of the result; if that is an iterator,
of a list of its items. What is asked is done in order, one after the other.
"""

AT_ONCE = 1 << 20
"""
The most bytes that are handed to the system in one turn of the reactor, if it takes them:
otherwise a long request would wait for many turns, and the process for it.
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
        @param module: What the process runs, which calls L{tbvast.storage.worker_server.serve}.
        @param refusal: Makes the error that a request fails with if the worker refuses
            it, or is not there any more.
        @param lost: Called, once, with how or why, if the process ends before it should.
        """
        self._reactor = reactor
        self._name = name
        self._module = module
        self._arguments = arguments
        self._refusal = refusal
        self._lost = lost
        self._stopping = False
        self._ended: Deferred[None] = Deferred()

    def start(self, type: Any) -> Any:
        """
        Start the process, and wait until it can be asked.

        @param type: What it says first.
        @raise Exception: The refusal, if it cannot.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AT_ONCE)
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
            self._calls = _Calls(self._name, self._refusal, self._told)
            if first[:1] != DONE:
                self._stopping = True
                raise self._refusal(first[1:].decode() or f"{self._name} ended while it started")
            ours.setblocking(False)
            factory = Factory.forProtocol(lambda: self._calls)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        return msgspec.msgpack.decode(first[1:], type=type)

    def ask(self, method: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        A L{CallWorker} of the process.

        @return: Fails with a refusal, at once with L{Unencodable}, or with L{WorkerBroken}.
        """
        return self._calls.ask(method, arguments)

    def stop(self) -> Deferred[None]:
        """
        Have it answer what it has been asked, and end.

        @return: Fires when it has.
        """
        if not self._calls.gone:
            self._stopping = True
            self._calls.end()
        return self._ended

    def _told(self, why: str) -> None:
        """
        The process says that it cannot go on.
        """
        if not self._stopping:
            self._stopping = True
            self._lost(why)

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


class _Calls(Protocol):
    """
    Requests, and the answers that come in their order.

    @ivar gone: Whether nothing can be asked any more.
    """

    def __init__(
        self, name: str, refusal: Callable[[str], TbvastError], lost: Callable[[str], None]
    ) -> None:
        self._name = name
        self._refusal = refusal
        self._lost = lost
        self._waiting: deque[tuple[Deferred[Any], Result]] = deque()
        self._received = bytearray()
        self.gone = False

    def ask(self, method: Callable[..., Any], arguments: Sequence[Any]) -> Deferred[Any]:
        if self.gone:
            return fail(self._has_ended())
        try:
            request = encode_request(method, arguments)
        except Unencodable as e:
            return fail(e)
        answer: Deferred[Any] = Deferred()
        self._waiting.append((answer, Result(method)))
        self._send(request)
        return answer

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.SEND_LIMIT = AT_ONCE

    def _send(self, message: bytes) -> None:
        transport: Any = self.transport
        transport.writeSequence([len(message).to_bytes(HEAD, "big"), message])
        transport.doWrite()  # what it cannot take now, or if it is gone, is for the reactor

    def end(self) -> None:
        self.gone = True
        transport: Any = self.transport
        transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        # Longer ones than Int32StringReceiver is made for, which copies what it has each time.
        received = self._received
        received += data
        while len(received) >= HEAD:
            end = HEAD + int.from_bytes(received[:HEAD], "big")
            if len(received) < end:
                break
            message = bytes(received[HEAD:end])
            del received[:end]
            self._answered(message[:1], message[1:])

    def _answered(self, kind: bytes, rest: bytes) -> None:
        answer, result = self._waiting[0]
        if kind == PART:
            result.add(rest)
            return
        self._waiting.popleft()
        if kind == DONE:
            answer.callback(result.end(rest))
        elif kind == REFUSED:
            answer.errback(self._refusal(rest.decode()))
        elif kind == LOST:
            self._lost(rest.decode())
            answer.errback(self._refusal(rest.decode()))
        else:
            answer.errback(WorkerBroken(rest.decode()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone = True
        while self._waiting:
            answer, _ = self._waiting.popleft()
            answer.errback(self._has_ended())

    def _has_ended(self) -> TbvastError:
        return self._refusal(f"{self._name} has ended")
