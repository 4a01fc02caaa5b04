"""
The sink that writes sightings to this process's standard output.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IPullProducer, IReactorFDSet, IReactorTime
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bridge.commands.json_lines import LineQueue, encode_line
from tbvast.bridge.commands.processes import STOPPED
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.interfaces import ISink
from tbvast.stix.sightings import MatchType


class Output(FileDescriptor):
    """
    Writes to a descriptor of this process without blocking.

    The descriptor is not made non-blocking, since that would affect the processes that share
    it, such as a shell. It is written to only when it is ready, and then no more than a ready
    pipe accepts at once. It is never closed.
    """

    connected = 1

    def __init__(self, reactor: IReactorFDSet, descriptor: int, lost: Callable[[], None]) -> None:
        """
        @param reactor: The reactor that watches the descriptor.
        @param descriptor: The descriptor.
        @param lost: Called when its reader has gone.
        """
        super().__init__(reactor)
        self._descriptor = descriptor
        self._lost = lost

    def fileno(self) -> int:
        return self._descriptor

    def writeSomeData(self, data: bytes) -> int | Exception:
        try:
            return os.write(self._descriptor, data[: select.PIPE_BUF])
        except BlockingIOError:
            return 0
        except OSError:
            return CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._lost()


@implementer(ISink, IPullProducer)
class StdoutSink(Service):
    """
    An L{ISink} that writes each context to this process's standard output, as one line of
    JSON.

    If the reader is slow, the events wait and the reactor does not; if it has gone, all
    events fail. A line counts as taken when it is in the pipe.
    """

    NAME = "STDOUT"
    GONE = "its reader has gone"

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        descriptor: int = 1,
        kill_after: float = 5.0,
    ) -> None:
        """
        @param reactor: The reactor that watches the descriptor.
        @param clock: The clock of the limit.
        @param descriptor: The descriptor to write to; it stays open.
        @param kill_after: Seconds that the reader has for the remaining lines when the
            service is stopped.
        """
        self._clock = clock
        self._kill_after = kill_after
        self._lines = LineQueue()
        self._gone = False
        self._stopping: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._output = Output(reactor, descriptor, self._lost)
        self._output.registerProducer(self, False)

    def stopService(self) -> Deferred[None]:
        """
        Wait for the reader to take the remaining lines, with a limit.

        @return: Fires when no line waits any more.
        """
        super().stopService()
        if not self._lines:
            return succeed(None)
        self._stopping = Deferred()
        self._timer = self._clock.callLater(self._kill_after, self._give_up)
        return self._stopping

    def send(self, context: dict[str, Any], value: str, match_type: MatchType) -> Deferred[None]:
        if self._gone or self._stopping is not None:
            return fail(CommandFailed(self.NAME, self.GONE if self._gone else STOPPED))
        try:
            line = encode_line(self.NAME, context)
        except CommandRefused as e:
            return fail(e)
        taken = self._lines.add(line)
        self._write()
        return taken

    def _write(self) -> None:
        batch = self._lines.next_batch()
        if batch:
            self._output.write(batch)

    def resumeProducing(self) -> None:
        """
        The batch is in the pipe.
        """
        self._lines.taken()
        self._write()
        if not self._lines:
            self._finish()

    def stopProducing(self) -> None:
        """
        Do nothing: L{Output} reports that the reader has gone.
        """

    def _lost(self) -> None:
        self._gone = True
        self._log.error("The reader of standard output has gone.")
        self._lines.fail(self.NAME, self.GONE)
        self._finish()

    def _give_up(self) -> None:
        self._timer = None
        self._output.stopWriting()
        self._lines.fail(self.NAME, STOPPED)
        self._finish()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.callback(None)
