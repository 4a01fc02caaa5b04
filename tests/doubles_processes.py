"""
Processes that exist in memory only.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import (
    IConsumer,
    IProcessProtocol,
    IProcessTransport,
    IReactorProcess,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.service import launch


@implementer(IProcessTransport, IConsumer)
class MemoryProcess:
    """
    A process whose program is the test: it writes, reads and exits when the test says so.

    @ivar argv: Its command line, without the launch.
    @ivar bound: Whether it is launched so that it dies with its parent.
    @ivar environment: Its variables; C{None} if it has those of its parent.
    @ivar read: The bytes that have left for its standard input.
    @ivar input_closed: Whether its standard input has ended.
    @ivar signals: The signals it was sent, in order.
    @ivar clogged: Whether it does not read, and its pipe is full.
    @ivar stubborn: Whether it ignores SIGTERM.
    """

    pid = 1

    def __init__(
        self,
        protocol: IProcessProtocol,
        executable: bytes,
        argv: Sequence[bytes],
        environment: Mapping[Any, Any] | None,
    ) -> None:
        self.protocol: Any = protocol
        self.bound = os.fsencode(launch.__file__) in argv
        self.executable = argv[6] if self.bound else executable
        self.argv = [argv[5], *argv[7:]] if self.bound else list(argv)
        self.environment = environment
        self.read = b""
        self.input_closed = False
        self.signals: list[str] = []
        self.clogged = False
        self.stubborn = False
        self.exited = False
        self._buffer = b""
        self._producer: Any = None
        self._reason: Failure | None = None
        self._pipes = {0, 1, 2}
        self._closing = False

    # The program

    def say(self, data: bytes) -> None:
        self.protocol.childDataReceived(1, data)

    def complain(self, data: bytes) -> None:
        self.protocol.childDataReceived(2, data)

    def drain(self) -> None:
        """
        Read the bytes in the pipe and those that wait for it.
        """
        self._flush()

    def close_stdin(self) -> None:
        self._lose(0)

    def exit(self, code: int = 0, by_signal: int | None = None, leave_pipes: bool = False) -> None:
        """
        End; C{leave_pipes} leaves a process behind that holds the pipes.
        """
        assert not self.exited, "it has exited already"
        self.exited = True
        clean = code == 0 and by_signal is None
        value = (
            ProcessDone(0) if clean else ProcessTerminated(None if by_signal else code, by_signal)
        )
        self._reason = Failure(value)
        self.protocol.processExited(self._reason)
        if not leave_pipes:
            for pipe in sorted(self._pipes):
                self._lose(pipe)

    # The transport

    def write(self, data: bytes) -> None:
        if 0 in self._pipes and not self._closing:
            self._buffer += data
            if not self.clogged:
                self._flush()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def writeToChild(self, childFD: int, data: bytes) -> None:
        assert childFD == 0
        self.write(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert not streaming and self._producer is None
        self._producer = producer
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def closeStdin(self) -> None:
        if 0 in self._pipes:
            self._closing = True
            if not self.clogged:
                self._flush()

    def closeStdout(self) -> None:
        self._lose(1)

    def closeStderr(self) -> None:
        self._lose(2)

    def closeChildFD(self, descriptor: int) -> None:
        (self.closeStdin, self.closeStdout, self.closeStderr)[descriptor]()

    def getHost(self) -> Any:
        raise NotImplementedError

    def getPeer(self) -> Any:
        raise NotImplementedError

    def loseConnection(self) -> None:
        for descriptor in range(3):
            self.closeChildFD(descriptor)

    def signalProcess(self, signalID: str | int) -> None:
        if self.exited:
            raise ProcessExitedAlready()
        number = signal.Signals(int(signalID))
        self.signals.append(number.name.removeprefix("SIG"))
        if number == signal.SIGKILL or not self.stubborn:
            self.exit(by_signal=number)

    def _flush(self) -> None:
        data, self._buffer = self._buffer, b""
        self.read += data
        if self._closing:
            self._lose(0)
            self.input_closed = True
        elif data and self._producer is not None:
            self._producer.resumeProducing()

    def _lose(self, descriptor: int) -> None:
        if descriptor not in self._pipes:
            return
        self._pipes.discard(descriptor)
        if descriptor == 0 and self._producer is not None:
            producer, self._producer = self._producer, None
            producer.stopProducing()
        self.protocol.childConnectionLost(descriptor)
        if not self._pipes and self._reason is not None:
            self.protocol.processEnded(self._reason)


@implementer(IReactorProcess)
class MemoryProcesses:
    """
    An L{IReactorProcess} which starts L{MemoryProcess}es.

    @ivar all: Every process started, in order.
    @ivar missing: Whether there is no such program.
    """

    def __init__(self) -> None:
        self.all: list[MemoryProcess] = []
        self.missing = False

    @property
    def running(self) -> list[MemoryProcess]:
        return [process for process in self.all if not process.exited]

    def spawnProcess(
        self,
        processProtocol: IProcessProtocol,
        executable: bytes | str,
        args: Sequence[bytes | str],
        env: Mapping[Any, Any] | None = None,
        path: bytes | str | None = None,
        uid: int | None = None,
        gid: int | None = None,
        usePTY: bool = False,
        childFDs: Mapping[int, int | str] | None = None,
    ) -> IProcessTransport:
        if self.missing:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        assert isinstance(executable, bytes)
        argv = [word for word in args if isinstance(word, bytes) and b"\0" not in word]
        assert len(argv) == len(args), "words are bytes without NUL"
        process = MemoryProcess(processProtocol, executable, argv, env)
        self.all.append(process)
        processProtocol.makeConnection(process)
        return process


class ProcessClock(Clock, MemoryProcesses):
    """
    A reactor: a clock that also starts processes, in memory.
    """

    def __init__(self) -> None:
        Clock.__init__(self)
        MemoryProcesses.__init__(self)


def an_event(number: int) -> dict[str, Any]:
    """
    @return: An event that differs from those with other numbers.
    """
    return {"n": number}


def json_line(document: Any) -> bytes:
    """
    @return: A document as commands read and write it.
    """
    return msgspec.json.encode(document) + b"\n"
