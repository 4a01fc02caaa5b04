"""
The caller's side of the RPC to a worker: a child process for work that takes long.

A thread shares the interpreter with the reactor, which would wait for its computations; a
process does not. The worker answers requests from a private socket, one after the other, and
ends when the socket is closed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, overload
from typing import Protocol as TypingProtocol

import attrs
import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tbvast.errors import TbvastError
from tbvast.service.child_process import ChildOwner, Children, Exit
from tbvast.storage.worker_server import (
    DONE,
    HEAD,
    LOST,
    PART,
    REFUSED,
    Unencodable,
    encode_request,
    read_message,
    result_decoder,
)

SEND_BYTES = 1 << 20
"""
The most bytes that are written in one turn of the reactor. With fewer, a long request would
take many turns, and the worker would wait for it.
"""

_Waiting = tuple[Deferred[Any], Callable[[bytes], Any], list[Any]]
# A request's answer, the decoder of its result, and the items of that so far.

_P = ParamSpec("_P")
_T = TypeVar("_T")


class CallWorker(TypingProtocol):
    """
    Calls a method of an object in a worker, given as a function of its class and all of its
    arguments, by position. Returns a C{Deferred} of the result; if that is an iterator, of a
    list of its items. Calls are executed in order.
    """

    @overload
    def __call__(
        self,
        method: Callable[Concatenate[Any, _P], Iterator[_T]],
        *arguments: _P.args,
        **keywords: _P.kwargs,
    ) -> Deferred[list[_T]]: ...

    @overload
    def __call__(
        self,
        method: Callable[Concatenate[Any, _P], _T],
        *arguments: _P.args,
        **keywords: _P.kwargs,
    ) -> Deferred[_T]: ...


class WorkerBroken(Exception):
    """
    A request failed because of a defect in the worker; the text is its traceback.
    """


@attrs.define(eq=False, slots=False)
class Worker(Protocol, ChildOwner):
    """
    A worker process, and the connection to it. Answers come in the order of their requests.

    @param reactor: The reactor that starts the process, and that adopts the socket.
    @param name: The worker's name in messages, e.g. C{the journal's writer}.
    @param module: The module to run; it calls L{tbvast.storage.worker_server.serve}.
    @param arguments: The arguments of the process.
    @param refusal: Makes the error of a request that is refused, or lost with the worker.
    @param lost: Called once, with the reason, if the process ends unexpectedly.
    """

    _reactor: Any
    _name: str
    _module: str
    _arguments: Sequence[str]
    _refusal: Callable[[str], TbvastError]
    _lost: Callable[[str], None]
    _stopping: bool = attrs.field(init=False, default=False)
    _gone: bool = attrs.field(init=False, default=False)
    _waiting: deque[_Waiting] = attrs.field(init=False, factory=deque)
    _received: bytearray = attrs.field(init=False, factory=bytearray)
    _ended: Deferred[None] = attrs.field(init=False, factory=Deferred)

    def start(self, type: type[_T], limit: float = 900.0) -> _T:
        """
        Start the process, and wait for its first message.

        @param type: The type of that message.
        @param limit: The most seconds to wait; the process is killed after that. After an update
            it may first have to convert a large file, which takes minutes.
        @return: The message.
        @raise Exception: The refusal, if the worker cannot start.
        """
        search_path = os.pathsep.join(filter(None, sys.path))
        ours, theirs = socket.socketpair()
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
            with theirs:
                # It writes its errors where this process does.
                process = Children(self._reactor, self._reactor, self._name, 0.0).spawn(
                    [sys.executable, "-P", "-m", self._module, *self._arguments],
                    self,
                    environment={**os.environ, "PYTHONPATH": search_path},
                    descriptors={0: theirs.fileno(), 1: 2, 2: 2},
                )
            ours.settimeout(limit)
            try:
                with ours.makefile("rb") as stream:
                    first = read_message(stream)
            except TimeoutError as e:
                self._stopping = True
                process.send_signal(signal.SIGKILL)
                raise self._refusal(f"{self._name} did not start within {limit:g} s") from e
            if first[:1] != DONE:
                self._stopping = True
                raise self._refusal(first[1:].decode() or f"{self._name} ended while it started")
            ours.setblocking(False)
            factory = Factory.forProtocol(lambda: self)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        return msgspec.msgpack.decode(first[1:], type=type)

    @property
    def ask(self) -> CallWorker:
        """
        Calls a method. Fails with a refusal, L{WorkerBroken}, or at once L{Unencodable}.
        """
        ask: Callable[..., Deferred[Any]] = self._ask
        return ask

    def stop(self) -> Deferred[None]:
        """
        Stop the worker after it has answered all requests.

        @return: Fires when the process has ended.
        """
        if not self._gone:
            self._stopping = self._gone = True
            transport: Any = self.transport
            transport.loseWriteConnection()
        return self._ended

    def ended(self, exit_: Exit) -> None:
        if not self._stopping:
            self._lost(f"{self._name} {exit_}")
        self._ended.callback(None)

    def _ask(self, method: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self._gone:
            return fail(self._has_ended())
        try:
            request = encode_request(method, arguments)
        except Unencodable as e:
            return fail(e)
        answer: Deferred[Any] = Deferred()
        self._waiting.append((answer, result_decoder(method), []))
        transport: Any = self.transport
        transport.writeSequence([len(request).to_bytes(HEAD, "big"), request])
        transport.doWrite()  # the reactor writes the rest, and handles errors
        return answer

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.SEND_LIMIT = SEND_BYTES

    def dataReceived(self, data: bytes) -> None:
        # Messages are too long for Int32StringReceiver, which copies its buffer each time.
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
        answer, decode, items = self._waiting[0]
        if kind == PART:
            items.append(decode(rest))
            return
        self._waiting.popleft()
        if kind == DONE:
            answer.callback(decode(rest) if rest else items)
        elif kind == REFUSED:
            answer.errback(self._refusal(rest.decode()))
        elif kind == LOST:
            if not self._stopping:
                self._stopping = True
                self._lost(rest.decode())
            answer.errback(self._refusal(rest.decode()))
        else:
            answer.errback(WorkerBroken(rest.decode()))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._gone = True
        while self._waiting:
            self._waiting.popleft()[0].errback(self._has_ended())

    def _has_ended(self) -> TbvastError:
        return self._refusal(f"{self._name} has ended")
