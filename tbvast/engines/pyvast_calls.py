"""
Runs an engine's commands through PyVAST, in worker threads.

PyVAST only starts a command and connects its streams. This module adds a time limit, an
interruption from another thread, a check of the exit status and of warnings, and the removal of
all that the command leaves behind.
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

from tbvast.engines.error_text import error_summary
from tbvast.engines.line_buffer import READ_BYTES, LineBuffer
from tbvast.errors import (
    EngineCallFailed,
    EngineError,
    EngineInterrupted,
    EngineMissing,
    EngineTimeout,
    EngineUnreachable,
)
from tbvast.service.child_process import launch_command

MAX_STDERR_BYTES = 1 << 14
"""
The most bytes that are kept of a command's standard error.
"""

TERM_GRACE_SECONDS = (0.3, 0.5)
"""
Seconds that a command has to end after each TERM signal. The second signal makes it hurry; if
it were killed instead, it would delay the end of its node by 11 s.
"""

REAP_SECONDS = 5.0
"""
The most seconds to wait until a killed command is reaped.
"""

_UNREACHABLE = re.compile(r"failed to connect to|cannot_connect_to_node|broken_promise")

T = TypeVar("T")


class Result(msgspec.Struct, frozen=True):
    """
    The output of a command that succeeded.

    @ivar lines: The lines of its standard output, without their ends.
    @ivar warnings: The warnings on its standard error; C{""} if there was none.
    """

    lines: list[bytes]
    warnings: str


class _Stoppable(Protocol):
    def stop(self) -> None: ...


class Waiter:
    """
    Waits for sockets in a worker thread, and can be interrupted.
    """

    def __init__(self, name: str) -> None:
        """
        @param name: The name of the call in errors.
        """
        self._name = name
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()

    def readable(self, other: socket.socket, timeout: float) -> bool:
        """
        Wait until a socket has data to read, or a connection to accept.

        @return: Whether it had any within C{timeout} seconds.
        @raise EngineInterrupted: If the calls were interrupted.
        """
        return self._ready(other, select.POLLIN, timeout)

    def writable(self, other: socket.socket, timeout: float) -> bool:
        """
        Wait until a socket accepts data.

        @return: Whether it did within C{timeout} seconds.
        @raise EngineInterrupted: If the calls were interrupted.
        """
        return self._ready(other, select.POLLOUT, timeout)

    def sleep(self, seconds: float) -> None:
        """
        Wait some seconds.

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
        """
        Release the waiter's own sockets.
        """
        with self._lock:
            self._wake.close()
            self._woken.close()


class Commands:
    """
    Runs an engine's command with varying arguments.

    All methods are thread-safe. Each call belongs to the thread that makes it.
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
        @param options: The options that precede the arguments of each call.
        @param parent: The commands whose interruption interrupts these, too.
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

        @param name: The name of the call in errors.
        @param stdin: The command's whole standard input.
        @param timeout: The most seconds for the whole call.
        @raise EngineMissing: If there is no such command.
        @raise EngineUnreachable: If the command could not connect to the node.
        @raise EngineCallFailed: If the command reported a failure.
        @raise EngineTimeout: If the command did not end in time.
        @raise EngineInterrupted: If L{interrupt} was called.
        """
        with self._call(name, timeout) as call:
            call.start(arguments, stdin)
            return call.result()

    def feed(
        self, name: str, arguments: Sequence[str], texts: Iterable[str], *, timeout: float
    ) -> Result:
        """
        Run a command, and write its standard input piecemeal.

        @param texts: The texts of the standard input, which ends after the last one. The
            iterator may block.
        @param timeout: The most seconds for the command to read each text, and to end after
            the last one.
        @raise EngineError: As for L{run}.
        """
        with self._call(name, None) as call:
            call.start(arguments, None)
            for text in texts:
                call.set_timeout(timeout)
                if not call.write(text):
                    call.finish()
                    raise EngineCallFailed(name, "it ended before it had read everything")
            call.set_timeout(timeout)
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
        Run a command, and yield its lines as they arrive. Closing the iterator ends the
        command.

        @param timeout: The most seconds for the whole call; C{None} is unlimited.
        @return: Batches of lines. The first batch is empty, and means that the command has been
            started.
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
        Provide a waiter for a call that does not run a command.

        @raise EngineInterrupted: If L{interrupt} was called.
        """
        waiter = Waiter(name)
        try:
            self._enter(waiter, name)
            yield waiter
        finally:
            self._leave(waiter)
            waiter.close()

    def child(self) -> Commands:
        """
        @return: The same command, for calls that can be interrupted separately.
        """
        return Commands(self.binary, self.endpoint, self._options, self)

    def interrupt(self) -> None:
        """
        End all calls, and refuse new ones.
        """
        with self._lock:
            self._interrupted = True
            for call in self._calls:
                call.stop()

    def resume(self) -> None:
        """
        Accept new calls again.
        """
        with self._lock:
            self._interrupted = False

    @contextlib.contextmanager
    def _call(self, name: str, timeout: float | None) -> Iterator[_Call]:
        if shutil.which(self.binary) is None:  # else PyVAST would ask Docker for it
            raise EngineMissing(f"the engine's command no longer exists: {self.binary}")
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
        @return: A C{pyvast.VAST} that is ready to run a command. It stores that command, so
            each call needs a new object.
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
    @return: A silent logger for PyVAST, which would log the whole input of a command.
    """
    logger = logging.Logger("pyvast", logging.CRITICAL)
    logger.addHandler(logging.NullHandler())
    return logger


class _Loop(asyncio.SelectorEventLoop):
    """
    The event loop of one call. It keeps the child that PyVAST starts.

    @ivar child: The child, once it was started; PyVAST returns it only after having written
        all its input.
    @ivar complaints: The child's standard error so far.
    @ivar writes_input: Whether tbvast writes the child's input, not PyVAST.
    @ivar drained: The task that reads the child's standard error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes_input = False
        self.child: asyncio.subprocess.Process | None = None
        self.complaints = bytearray()
        self.drained: asyncio.Task[None] | None = None

    async def subprocess_exec(
        self, protocol_factory: Callable[[], Any], program: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Start the child so that it ends with this process, has no standard input but its own,
        and can always write to its standard error.
        """
        if kwargs.get("stdin") is None:  # it would read this process's
            kwargs["stdin"] = (
                asyncio.subprocess.PIPE if self.writes_input else asyncio.subprocess.DEVNULL
            )
        path = shutil.which(program) or program
        command, *rest = launch_command(path, args)
        transport, protocol = await super().subprocess_exec(
            protocol_factory, command, *rest, **kwargs
        )
        self.child = asyncio.subprocess.Process(transport, protocol, self)
        self.drained = self.create_task(self._drain(protocol.stderr))
        return transport, protocol

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(READ_BYTES):
            self.complaints += chunk[: MAX_STDERR_BYTES - len(self.complaints)]


class _Call:
    """
    One run of a command, from its start until it is reaped.

    All methods except L{stop} belong to one thread.
    """

    def __init__(
        self,
        name: str,
        endpoint: str,
        vast: Callable[[Sequence[str]], Any],
        timeout: float | None,
    ) -> None:
        """
        @param name: The name of the call in errors.
        @param endpoint: The node, C{HOST:PORT}.
        @param vast: Makes a C{pyvast.VAST} for some arguments.
        @param timeout: The most seconds for the call; C{None} is unlimited.
        """
        self._name = name
        self._endpoint = endpoint
        self._vast = vast
        self._timeout: float | None = None
        self._deadline: float | None = None
        self._runner = asyncio.Runner(loop_factory=_Loop)
        self._loop: _Loop = self._runner.get_loop()  # type: ignore[assignment]
        if timeout is not None:
            self.set_timeout(timeout)
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

    def set_timeout(self, timeout: float) -> None:
        """
        Set the time limit, counted from now.
        """
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout

    def start(self, arguments: Sequence[str], stdin: str | None) -> None:
        """
        Start the command, and write all its input.

        Meanwhile the command's standard error is read, but not its output: a command that
        writes much output before it has read its input would block until the time limit. None
        of the commands that tbvast runs does so.

        @param stdin: The whole input; C{None} if L{write} follows.
        """
        self._loop.writes_input = stdin is None
        with contextlib.suppress(ConnectionError):  # it ended; its status tells why
            self._process = self._wait(self._vast(arguments).exec(stdin=stdin))
        if stdin is None:
            # Without this, write() would return before the text is in the pipe.
            self._process.stdin.transport.set_write_buffer_limits(0)

    def write(self, text: str) -> bool:
        """
        Write a part of the command's input; return when it is in the pipe.

        @return: False if the command no longer reads.
        """
        self._process.stdin.write(text.encode())
        try:
            self._wait(self._process.stdin.drain())
        except ConnectionError:
            return False
        return True

    def end_input(self) -> None:
        """
        Close the command's input.
        """
        self._process.stdin.close()

    def batches(self) -> Iterator[list[bytes]]:
        """
        Yield the complete lines of the output until it ends.
        """
        buffer = LineBuffer(self._name)
        while self._process is not None:
            chunk = self._wait(self._process.stdout.read(READ_BYTES))
            if not chunk:
                break
            if lines := buffer.add(chunk):
                yield lines
        if rest := buffer.rest():
            yield [rest]

    def result(self) -> Result:
        """
        Read all output, and wait for the end of the command.
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
            return EngineUnreachable(self._endpoint, error_summary(said))
        return EngineCallFailed(self._name, error_summary(said) or f"exit status {status}")

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
        End the command, if it still runs; return when it is reaped.
        """
        self._runner.run(self._end())
        self._runner.close()

    async def _end(self) -> None:
        child = self._loop.child
        if child is None:
            return
        for grace in TERM_GRACE_SECONDS:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), grace)
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            with contextlib.suppress(TimeoutError):  # otherwise this process might never end
                await asyncio.wait_for(child.wait(), REAP_SECONDS)
        if self._loop.drained is not None:
            self._loop.drained.cancel()
            await asyncio.wait({self._loop.drained})
