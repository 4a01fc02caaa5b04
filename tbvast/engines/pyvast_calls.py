"""
Engine commands, run through PyVAST from worker threads.

PyVAST starts a command and hands over its streams; what else a command needs is
here: a time limit, an end from another thread, its exit status and warnings
looked at, and nothing of it left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import select
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from tbvast.engines.binaries import Program, launched
from tbvast.errors import (
    EngineCallFailed,
    EngineError,
    EngineInterrupted,
    EngineMissing,
    EngineTimeout,
    EngineUnreachable,
)

CHUNK = 1 << 18
"""
The most bytes read at once.
"""

LONGEST = 1 << 26
"""
The most bytes of one line; an event is never that long.
"""

COMPLAINTS = 1 << 14
"""
The most bytes kept of what a command writes to its standard error.
"""

GRACES = (0.3, 0.5)
"""
Seconds that a command has to end by itself, each time that it is asked to. Asked
twice it hurries; killed instead, it would delay the end of its node for 11 s.
"""

REAPED = 5.0
"""
The most seconds to wait for the system to say that a killed command has ended.
"""

_UNREACHABLE = re.compile(r"failed to connect to|cannot_connect_to_node|broken_promise")
_NOTES = 300  # characters of a complaint that an error repeats

T = TypeVar("T")


class Result(msgspec.Struct, frozen=True):
    """
    What a command that ended well had to say.

    @ivar lines: Of its standard output, without their ends.
    @ivar warnings: Of its standard error; C{""} if there was none.
    """

    lines: list[bytes]
    warnings: str


class _Stoppable(Protocol):
    def stop(self) -> None: ...


class Waiter:
    """
    Waits in a worker thread for sockets, until it is interrupted.
    """

    def __init__(self, name: str) -> None:
        """
        @param name: What the call is named in errors.
        """
        self._name = name
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()

    def readable(self, other: socket.socket, timeout: float) -> bool:
        """
        Wait until something can be read, or a connection accepted.

        @return: False if not within C{timeout} seconds.
        @raise EngineInterrupted: If the calls were interrupted.
        """
        return self._ready(other, select.POLLIN, timeout)

    def writable(self, other: socket.socket, timeout: float) -> bool:
        """
        Wait until something can be written.

        @return: False if not within C{timeout} seconds.
        @raise EngineInterrupted: If the calls were interrupted.
        """
        return self._ready(other, select.POLLOUT, timeout)

    def sleep(self, seconds: float) -> None:
        """
        Wait so many seconds.

        @raise EngineInterrupted: If the calls were interrupted.
        """
        self._ready(None, 0, seconds)

    def _ready(self, other: socket.socket | None, event: int, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if other is not None:
            poll.register(other, event)
        ready = dict(poll.poll(round(max(0.0, timeout) * 1000)))
        if self._woken.fileno() in ready:
            raise EngineInterrupted(self._name)
        return bool(ready)

    def stop(self) -> None:
        """
        Make the method in progress, and all later ones, raise L{EngineInterrupted}.
        Thread-safe.
        """
        with self._lock, contextlib.suppress(OSError):
            self._wake.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._wake.close()
            self._woken.close()


class Commands:
    """
    Runs an engine's command, each time with other arguments.

    All methods are thread-safe; each call is made and awaited by one thread.
    """

    def __init__(
        self,
        binary: str,
        endpoint: str,
        options: Sequence[str] = (),
        parent: Commands | None = None,
    ) -> None:
        """
        @param binary: The path of the command.
        @param endpoint: The node to ask, C{HOST:PORT}.
        @param options: What goes before the arguments of each call.
        @param parent: What interrupts these too, when it is interrupted.
        """
        self.binary = binary
        self.endpoint = endpoint
        self._options = tuple(options)
        self._parent = parent
        self._lock = threading.Lock()
        self._calls: set[_Stoppable] = set()
        self._interrupted = False

    def run(
        self, name: str, arguments: Sequence[str], stdin: str = "", *, timeout: float
    ) -> Result:
        """
        Run a command to its end.

        @param name: What the call is named in errors.
        @param stdin: What it reads; always given to it, then ended.
        @param timeout: Seconds for all of it.
        @raise EngineMissing: If the command is not there.
        @raise EngineUnreachable: If it could not connect to the node.
        @raise EngineCallFailed: If it said that it failed.
        @raise EngineTimeout: If it did not end in time.
        @raise EngineInterrupted: If L{interrupt} was called.
        """
        with self._call(name, timeout) as call:
            call.start(arguments, stdin)
            return call.result()

    def feed(
        self, name: str, arguments: Sequence[str], texts: Iterable[str], *, timeout: float
    ) -> Result:
        """
        Run a command, and give it what it reads as that comes.

        @param texts: What it reads, then its input ends. The next one is waited for.
        @param timeout: Seconds for each of them to be read, and for what comes then.
        @raise EngineError: As for L{run}.
        """
        with self._call(name, None) as call:
            call.start(arguments, None)
            for text in texts:
                call.limit(timeout)
                if not call.write(text):
                    call.finish()
                    raise EngineCallFailed(name, "it ended before it had read everything")
            call.limit(timeout)
            call.end_input()
            return call.result()

    def stream(
        self,
        name: str,
        arguments: Sequence[str],
        stdin: str = "",
        *,
        timeout: float | None = None,
    ) -> Generator[list[bytes], None, None]:
        """
        Run a command and take its lines as they come.

        It is ended when the iterator is closed. The first batch has no lines: it
        says that the command has been started.

        @param timeout: Seconds for all of it; C{None} is without end.
        @raise EngineError: As for L{run}.
        """
        with self._call(name, timeout) as call:
            call.start(arguments, stdin)
            yield []
            yield from call.batches()
            call.finish()

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[Waiter]:
        """
        While inside, wait for something else than a command.

        @raise EngineInterrupted: If L{interrupt} was called.
        """
        waiter = Waiter(name)
        try:
            self._enter(waiter, name)
            yield waiter
        finally:
            self._leave(waiter)
            waiter.close()

    def part(self) -> Commands:
        """
        The same command, for calls that can be interrupted apart from others.
        """
        return Commands(self.binary, self.endpoint, self._options, self)

    def interrupt(self) -> None:
        """
        End all calls, and let none start.
        """
        with self._lock:
            self._interrupted = True
            for call in self._calls:
                call.stop()

    def resume(self) -> None:
        """
        Let calls start again.
        """
        with self._lock:
            self._interrupted = False

    @contextlib.contextmanager
    def _call(self, name: str, timeout: float | None) -> Iterator[_Call]:
        if shutil.which(self.binary) is None:  # else PyVAST would ask Docker for it
            raise EngineMissing(f"the engine's command is gone: {self.binary}")
        call = _Call(name, self.endpoint, self._vast, timeout)
        try:
            self._enter(call, name)
            yield call
        finally:
            self._leave(call)
            call.close()

    def _enter(self, call: _Stoppable, name: str) -> None:
        if self._parent is not None:
            self._parent._enter(call, name)
        with self._lock:
            if self._interrupted:
                raise EngineInterrupted(name)
            self._calls.add(call)

    def _leave(self, call: _Stoppable) -> None:
        with self._lock:
            self._calls.discard(call)
        if self._parent is not None:
            self._parent._leave(call)

    def _vast(self, arguments: Sequence[str]) -> Any:
        """
        @return: A C{pyvast.VAST} that is about to run a command. It keeps that
            command, so each call has one of its own.
        """
        try:
            from pyvast import VAST
        except ImportError as e:
            raise EngineMissing(
                f"PyVAST cannot be imported: {e}; from Python 3.12 on it needs setuptools"
            ) from None
        vast = VAST(binary=self.binary, endpoint=self.endpoint, logger=_quiet())
        vast.call_stack += [*self._options, *arguments]
        return vast


def _quiet() -> logging.Logger:
    """
    A logger for PyVAST that keeps quiet: it would write out all that a command
    reads.
    """
    logger = logging.Logger("pyvast", logging.CRITICAL)
    logger.addHandler(logging.NullHandler())
    return logger


class _Loop(asyncio.SelectorEventLoop):
    """
    The event loop of one call: knows the child that PyVAST starts in it.

    @ivar child: Once it was started; PyVAST hands it over only when all its input
        is written.
    @ivar complaints: What the child has written to its standard error.
    @ivar feeds: Whether it is given its input by us, not by PyVAST.
    """

    def __init__(self) -> None:
        super().__init__()
        self.feeds = False
        self.child: asyncio.subprocess.Process | None = None
        self.complaints = bytearray()
        self.drained: asyncio.Task[None] | None = None

    async def subprocess_exec(
        self, protocol_factory: Callable[[], Any], program: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Start the child so that it ends with us, reads nothing but what it is
        given, and can always get rid of its complaints.
        """
        if kwargs.get("stdin") is None:  # it would read our own
            kwargs["stdin"] = asyncio.subprocess.PIPE if self.feeds else asyncio.subprocess.DEVNULL
        path = shutil.which(program) or program
        command, *rest = launched(Program(path, path), args)
        transport, protocol = await super().subprocess_exec(
            protocol_factory, command, *rest, **kwargs
        )
        self.child = asyncio.subprocess.Process(transport, protocol, self)
        self.drained = self.create_task(self._drain(protocol.stderr))
        return transport, protocol

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(CHUNK):
            self.complaints += chunk[: COMPLAINTS - len(self.complaints)]


class _Call:
    """
    One command, from its start until nothing is left of it.

    All methods but L{stop} belong to one thread.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        vast: Callable[[Sequence[str]], Any],
        timeout: float | None,
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        self._vast = vast
        self._timeout: float | None = None
        self._deadline: float | None = None
        self._runner = asyncio.Runner(loop_factory=_Loop)
        self._loop: _Loop = self._runner.get_loop()  # type: ignore[assignment]
        if timeout is not None:
            self.limit(timeout)
        self._stopped = self._loop.create_future()
        self._process: Any = None

    def stop(self) -> None:
        """
        Make the method in progress, or else the next one, raise
        L{EngineInterrupted}. Thread-safe.
        """
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def limit(self, timeout: float) -> None:
        """
        From now on it is given so many seconds.
        """
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout

    def start(self, arguments: Sequence[str], stdin: str | None) -> None:
        """
        Start the command and write all its input.

        While it is written, the command's complaints are read, but not its
        output: one that writes much before it has read all would be ended at
        the time limit. No command of ours does.

        @param stdin: C{None} if L{write} follows.
        """
        self._loop.feeds = stdin is None
        with contextlib.suppress(ConnectionError):  # it ended: its status says why
            self._process = self._wait(self._vast(arguments).exec(stdin=stdin))
        if stdin is None:
            # What is not written while somebody waits for it is not written.
            self._process.stdin.transport.set_write_buffer_limits(0)

    def write(self, text: str) -> bool:
        """
        Give the command some of its input; returns when it is in the pipe.

        @return: False if the command does not read any more.
        """
        self._process.stdin.write(text.encode())
        try:
            self._wait(self._process.stdin.drain())
        except ConnectionError:
            return False
        return True

    def end_input(self) -> None:
        """
        Nothing more is written.
        """
        self._process.stdin.close()

    def batches(self) -> Iterator[list[bytes]]:
        """
        Read whole lines until the output ends.
        """
        rest: list[bytes] = []
        size = 0
        while self._process is not None:
            chunk = self._wait(self._process.stdout.read(CHUNK))
            if not chunk:
                break
            *whole, tail = chunk.split(b"\n")
            if whole:
                whole[0] = b"".join([*rest, whole[0]])
                rest, size = [], 0
                yield whole
            rest.append(tail)
            size += len(tail)
            if size > LONGEST:
                raise EngineCallFailed(self._name, f"a line is longer than {LONGEST} bytes")
        if any(rest):
            yield [b"".join(rest)]

    def result(self) -> Result:
        """
        Read all its output, and wait for the end of the command.
        """
        lines = [line for batch in self.batches() for line in batch]
        return Result(lines, self.finish())

    def finish(self) -> str:
        """
        Wait for the end of the command.

        @return: Its warnings.
        """
        status = self._wait(self._reaped())
        said = self._loop.complaints.decode("utf-8", "replace")
        if status != 0:
            raise self._failed(status, said)
        return said[said.index("warning:") :] if "warning:" in said else ""

    async def _reaped(self) -> int:
        child = self._loop.child
        if child is None:
            raise EngineCallFailed(self._name, "it could not be started")
        status = await child.wait()
        if self._loop.drained is not None:
            await self._loop.drained
        return status

    def _failed(self, status: int, said: str) -> EngineError:
        if _UNREACHABLE.search(said):
            return EngineUnreachable(self._endpoint, complaint(said))
        return EngineCallFailed(self._name, complaint(said) or f"exit status {status}")

    def _wait(self, awaitable: Awaitable[T]) -> T:
        return self._runner.run(self._raced(awaitable))

    async def _raced(self, awaitable: Awaitable[T]) -> T:
        left = None if self._deadline is None else max(0.0, self._deadline - self._loop.time())
        task = asyncio.ensure_future(awaitable)
        await asyncio.wait(
            {task, self._stopped},
            timeout=left,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if task.done() and not self._stopped.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        if self._stopped.done():
            raise EngineInterrupted(self._name)
        raise EngineTimeout(self._name, self._timeout or 0.0)

    def close(self) -> None:
        """
        End the command, if it has not ended; returns when it is reaped.
        """
        self._runner.run(self._end())
        self._runner.close()

    async def _end(self) -> None:
        child = self._loop.child
        if child is None:
            return
        for grace in GRACES:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), grace)
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            with contextlib.suppress(TimeoutError):  # or this process could never end
                await asyncio.wait_for(child.wait(), REAPED)
        if self._loop.drained is not None:
            self._loop.drained.cancel()
            await asyncio.wait({self._loop.drained})


def complaint(said: str) -> str:
    """
    What a command complained of, in one bounded line.
    """
    start = max(said.rfind("error: "), 0) or max(said.find("warning: "), 0)
    text = " ".join(said[start:].split())
    return text if len(text) <= _NOTES else f"{text[:_NOTES]}…"
