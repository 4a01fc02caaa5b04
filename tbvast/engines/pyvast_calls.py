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
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import attrs
import msgspec

from tbvast.errors import (
    EngineCallFailed,
    EngineInterrupted,
    EngineMissing,
    EngineTimeout,
    EngineUnreachable,
)
from tbvast.service.child_process import Exit, ending_signals, launch_command
from tbvast.service.lines import LineBuffer
from tbvast.values import Match

READ_BYTES = 1 << 18

MAX_LINE_BYTES = 1 << 26
"""
The most bytes of a line; no event is that long.
"""

MAX_STDERR_BYTES = 1 << 14
MAX_ERROR_CHARACTERS = 300
"""
The most bytes of a command's standard error that are kept, the last ones, and the most
characters of it that an error repeats.
"""

TERM_GRACE_SECONDS = (0.3, 0.5)
"""
Seconds that a command has to end after each SIGTERM. The second signal makes it hurry; if
it were killed instead, it would delay the end of its node by 11 s.
"""

_UNREACHABLE = re.compile(r"failed to connect to|cannot_connect_to_node|broken_promise")

# PyVAST would log the whole input of a command.
_SILENT = logging.Logger("pyvast", logging.CRITICAL)
_SILENT.addHandler(logging.NullHandler())

T = TypeVar("T")
CallType = TypeVar("CallType", bound="Waiter")


class Result(msgspec.Struct, frozen=True):
    """
    The output of a command that succeeded.

    @ivar lines: The lines of its standard output, without their ends.
    @ivar warnings: The warnings on its standard error; C{""} if there was none.
    """

    lines: list[bytes]
    warnings: str


class Waiter:
    """
    Blocks a worker thread until something happens; another thread can interrupt that.

    All methods except L{stop} belong to one thread.

    @ivar name: The name of the call in errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._runner = asyncio.Runner(loop_factory=_Loop)
        self._loop = self._runner.get_loop()
        self._stopped = self._loop.create_future()

    def ready(self, other: socket.socket, timeout: float, *, to_write: bool = False) -> bool:
        """
        Wait until a socket has data to read, or a connection to accept.

        @param to_write: Whether to wait until it accepts data instead.
        @return: Whether it was ready within C{timeout} seconds.
        @raise EngineInterrupted: If the calls were interrupted.
        """
        add, remove = self._loop.add_reader, self._loop.remove_reader
        if to_write:
            add, remove = self._loop.add_writer, self._loop.remove_writer

        async def ready() -> bool:
            event = asyncio.Event()
            add(other, event.set)
            try:
                return await event.wait()
            finally:
                remove(other)

        try:
            return self.wait(ready(), timeout)
        except TimeoutError:
            return False

    def wait(self, awaitable: Awaitable[T], timeout: float | None) -> T:
        """
        Wait for a result.

        @param timeout: The most seconds; C{None} is unlimited.
        @raise TimeoutError: If there is none within the time.
        @raise EngineInterrupted: If the calls were interrupted.
        """
        return self._runner.run(self._raced(awaitable, timeout))

    async def _raced(self, awaitable: Awaitable[T], timeout: float | None) -> T:
        task = asyncio.ensure_future(awaitable)
        await asyncio.wait(
            {task, self._stopped}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done() and not self._stopped.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        if self._stopped.done():
            raise EngineInterrupted(self.name)
        raise TimeoutError

    def stop(self) -> None:
        """
        Make the present or the next call raise L{EngineInterrupted}. Thread-safe.
        """
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._stopped.cancel)

    def close(self) -> None:
        """
        End the waiter. Not to be called during a wait.
        """
        self._runner.close()


@attrs.define(eq=False)
class Commands:
    """
    Runs an engine's command with varying arguments.

    All methods are thread-safe. Each call belongs to the thread that makes it.

    @param binary: The path of the command.
    @param endpoint: The node to ask, C{HOST:PORT}.
    @param options: The options that precede the arguments of each call.
    @param parent: The commands whose interruption interrupts these, too.
    """

    _binary: str
    _endpoint: str
    _options: Sequence[str] = ()
    _parent: Commands | None = None
    _lock: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    _calls: set[Waiter] = attrs.field(init=False, factory=set)
    _interrupted: bool = attrs.field(init=False, default=False)

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
        with self._call(name, arguments, timeout) as call:
            call.write(stdin)
            return call.result()

    def feed(
        self, name: str, arguments: Sequence[str], texts: Iterable[str], *, timeout: float
    ) -> Result:
        """
        Run a command, and write its standard input piecemeal.

        @param texts: The texts of the standard input, to its end. The iterator may block.
        @param timeout: The most seconds for each text, and to end after the last one.
        @raise EngineError: As for L{run}.
        """
        with self._call(name, arguments, None) as call:
            for text in texts:
                call.set_timeout(timeout)
                if not call.write(text):
                    call.finish()
                    raise EngineCallFailed(name, "it ended before it had read everything")
            call.set_timeout(timeout)
            return call.result()

    def stream(
        self, name: str, arguments: Sequence[str], *, timeout: float | None = None
    ) -> Generator[list[bytes], None, None]:
        """
        Run a command without input, and yield its lines. Closing the iterator ends the command.

        @param timeout: The most seconds for the whole call; C{None} is unlimited.
        @return: Batches of lines; the first, empty one means that the command has started.
        @raise EngineError: As for L{run}.
        """
        with self._call(name, arguments, timeout) as call:
            call.end_input()
            yield []
            yield from call.batches()
            call.finish()

    def waiting(self, name: str) -> AbstractContextManager[Waiter]:
        """
        Provide a waiter for a call that does not run a command.

        @raise EngineInterrupted: If L{interrupt} was called.
        """
        return self._entered(Waiter(name))

    def child(self) -> Commands:
        """
        @return: The same command, for calls that can be interrupted separately.
        """
        return Commands(self._binary, self._endpoint, self._options, self)

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
    def _call(self, name: str, arguments: Sequence[str], timeout: float | None) -> Iterator[_Call]:
        if shutil.which(self._binary) is None:  # else PyVAST would ask Docker for it
            raise EngineMissing(f"the engine's command no longer exists: {self._binary}")
        try:
            from pyvast import VAST
        except ImportError as e:
            raise EngineMissing(
                f"PyVAST cannot be imported: {e}; from Python 3.12 on it needs setuptools"
            ) from None
        vast = VAST(binary=self._binary, endpoint=self._endpoint, logger=_SILENT)
        vast.call_stack += [*self._options, *arguments]
        with self._entered(_Call(name, self._endpoint, timeout)) as call:
            call.start(vast)
            yield call

    @contextlib.contextmanager
    def _entered(self, call: CallType) -> Iterator[CallType]:
        lineage = [self]
        while (parent := lineage[-1]._parent) is not None:
            lineage.append(parent)
        try:
            for commands in lineage:
                with commands._lock:
                    if commands._interrupted:
                        raise EngineInterrupted(call.name)
                    commands._calls.add(call)
            yield call
        finally:
            for commands in lineage:
                with commands._lock:
                    commands._calls.discard(call)
            call.close()


class InterruptibleIterator(Iterator[list[Match]]):
    """
    An iterator over matches that any thread may close, even while another one waits for it.
    """

    def __init__(
        self,
        commands: Commands,
        search: Callable[[Commands], Generator[list[Match], None, None]],
    ) -> None:
        """
        @param commands: The parent of the commands that are run for this iterator only.
        @param search: Yields the matches, and runs the given commands for them.
        """
        self._commands = commands.child()
        self._items = search(self._commands)
        self._consumer: int | None = None

    def __next__(self) -> list[Match]:
        self._consumer = threading.get_ident()
        return next(self._items)

    def close(self) -> None:
        """
        End the search.

        If another thread consumes it, this only requests the end: that thread gets
        L{EngineInterrupted} from the current or the next item.
        """
        self._commands.interrupt()
        if self._consumer in (None, threading.get_ident()):
            self._items.close()


class _Loop(asyncio.SelectorEventLoop):
    """
    The event loop of one call. It starts the command so that it ends with this process, and
    reads a pipe: PyVAST would have it read the input of this process.
    """

    async def subprocess_exec(
        self, protocol_factory: Callable[[], Any], program: Any, *args: Any, **kwargs: Any
    ) -> Any:
        kwargs["stdin"] = asyncio.subprocess.PIPE
        command = launch_command(shutil.which(program) or program, args)
        return await super().subprocess_exec(protocol_factory, *command, **kwargs)


class _Call(Waiter):
    """
    One run of a command, from its start until it is reaped.
    """

    def __init__(self, name: str, endpoint: str, timeout: float | None) -> None:
        super().__init__(name)
        self._endpoint = endpoint
        self.set_timeout(timeout)
        self._stderr = b""
        self._process: Any = None

    def set_timeout(self, timeout: float | None) -> None:
        """
        Set the time limit, counted from now; C{None} is unlimited.
        """
        self._timeout = timeout
        self._deadline = None if timeout is None else self._loop.time() + timeout

    def start(self, vast: Any) -> None:
        """
        @param vast: A C{pyvast.VAST} with the command's arguments.
        """
        self._process = self._runner.run(vast.exec())
        # Without this, write() would return before the text is in the pipe.
        self._process.stdin.transport.set_write_buffer_limits(0)
        self._drained = self._loop.create_task(self._drain(self._process.stderr))

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(READ_BYTES):
            self._stderr = (self._stderr + chunk)[-MAX_STDERR_BYTES:]

    def write(self, text: str) -> bool:
        """
        Write a part of the command's input; return when it is in the pipe.

        Meanwhile the command's standard error is read, but not its output: a command that
        writes much output before it has read its input would block until the time limit. None
        of the commands that tbvast runs does so.

        @return: False if the command no longer reads.
        """
        self._process.stdin.write(text.encode())
        try:
            self._wait(self._process.stdin.drain())
        except ConnectionError:
            return False
        return True

    def end_input(self) -> None:
        self._process.stdin.close()

    def batches(self) -> Iterator[list[bytes]]:
        """
        Yield the complete lines of the output until it ends.
        """
        buffer = LineBuffer()
        while chunk := self._wait(self._process.stdout.read(READ_BYTES)):
            if lines := add_lines(self.name, buffer, chunk):
                yield lines
        if rest := buffer.take_rest():
            yield [rest]

    def result(self) -> Result:
        """
        Close the command's input, read all output, and wait for the end of the command.
        """
        self.end_input()
        lines = [line for batch in self.batches() for line in batch]
        return Result(lines, self.finish())

    def finish(self) -> str:
        """
        Wait for the end of the command.

        @return: Its warnings.
        """
        status = self._wait(self._process.wait())
        self._wait(self._drained)
        said = self._stderr.decode("utf-8", "replace")
        if status == 0:
            return said[said.index("warning:") :] if "warning:" in said else ""
        if _UNREACHABLE.search(said):
            raise EngineUnreachable(self._endpoint, error_summary(said))
        raise EngineCallFailed(self.name, error_summary(said) or str(Exit.of(status)))

    def _wait(self, awaitable: Awaitable[T]) -> T:
        left = None if self._deadline is None else max(0.0, self._deadline - self._loop.time())
        try:
            return self.wait(awaitable, left)
        except TimeoutError:
            raise EngineTimeout(self.name, self._timeout or 0.0) from None

    def close(self) -> None:
        """
        End the command, if it still runs; return when it is reaped.
        """
        if self._process is not None:
            self._runner.run(self._end(self._process))
        super().close()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        for number, seconds in ending_signals(TERM_GRACE_SECONDS):
            if process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):  # this process must not wait for ever
                await asyncio.wait_for(process.wait(), seconds)
        self._drained.cancel()
        await asyncio.wait({self._drained})


def add_lines(name: str, buffer: LineBuffer, chunk: bytes) -> list[bytes]:
    """
    Add a chunk of a stream to a buffer.

    @param name: The name of the call in errors.
    @return: The lines that it completes.
    @raise EngineCallFailed: If a line is longer than L{MAX_LINE_BYTES}.
    """
    lines = buffer.add(chunk)
    if buffer.size > MAX_LINE_BYTES:
        raise EngineCallFailed(name, f"a line is longer than {MAX_LINE_BYTES} bytes")
    return lines


def error_summary(text: str) -> str:
    """
    Summarise the standard error of a command in one bounded line: from its last error on, else
    from its first warning on, else as a whole.
    """
    start = max(text.rfind("error: "), 0) or max(text.find("warning: "), 0)
    line = " ".join(text[start:].split())
    return line if len(line) <= MAX_ERROR_CHARACTERS else f"{line[:MAX_ERROR_CHARACTERS]}…"


def decode_json(text: bytes | str, kind: type[T]) -> T:
    """
    Decode JSON that an engine has written, whose texts need not be UTF-8.

    An engine imports texts in other encodings, from CSV or syslog for example, and exports their
    bytes unchanged. Such an event must not stop the match of all other events: invalid bytes are
    replaced.

    @param kind: The type of the result.
    @raise msgspec.MsgspecError: If C{text} is malformed, or of another type.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return msgspec.json.decode(text, type=kind)
