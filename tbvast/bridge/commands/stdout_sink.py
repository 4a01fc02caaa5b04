"""
The sink that writes sightings to this process's standard output.
"""

from __future__ import annotations

import os
import select
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tbvast.bridge.commands.processes import PATIENCE_SECONDS, STOPPED, LineQueue, encode_line
from tbvast.errors import CommandFailed, CommandRefused
from tbvast.interfaces import ISink
from tbvast.stix.sightings import MatchType


@implementer(ISink, IWriteDescriptor)
@attrs.define(eq=False, repr=False, slots=False)
class StdoutSink(Service):
    """
    An L{ISink} that writes each context to standard output, as one line of JSON.

    If the reader is slow, the events wait and the reactor does not; if it has gone, all
    events fail. A line counts as taken when it is in the pipe.

    The descriptor is not made non-blocking, since that would affect the processes that share
    it, such as a shell. It is written to only when it is ready, and then no more than a ready
    pipe accepts at once. It is never closed.

    @param descriptor: The descriptor to write to.
    @param patience: Seconds that the reader has for the remaining lines at the end.
    """

    NAME = "STDOUT"
    GONE = "its reader has gone"

    _log = Logger()

    _reactor: IReactorFDSet
    _clock: IReactorTime
    _descriptor: int = 1
    _patience: float = PATIENCE_SECONDS
    _lines: LineQueue = attrs.field(init=False, factory=LineQueue)
    _batch: memoryview = attrs.field(init=False, default=memoryview(b""))
    _gone: bool = attrs.field(init=False, default=False)
    _stopping: Deferred[None] | None = attrs.field(init=False, default=None)

    def stopService(self) -> Deferred[None]:
        """
        Wait for the reader to take the remaining lines, with a limit.

        @return: Fires when no line waits any more.
        """
        super().stopService()
        if not self._lines:
            return succeed(None)
        self._stopping = Deferred(lambda _: self._fail(STOPPED))
        return self._stopping.addTimeout(self._patience, self._clock)

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
        if batch := self._lines.next_batch():
            self._batch = memoryview(batch)
            self._reactor.addWriter(self)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return self.NAME

    def doWrite(self) -> None:
        try:
            written = os.write(self._descriptor, self._batch[: select.PIPE_BUF])
        except BlockingIOError:
            return
        except OSError as e:
            self.connectionLost(Failure(e))
            return
        self._batch = self._batch[written:]
        if not self._batch:
            self._reactor.removeWriter(self)
            self._lines.taken()
            self._write()
            if not self._lines:
                self._finish()

    def connectionLost(self, reason: Failure) -> None:
        self._gone = True
        self._log.error("The reader of standard output has gone.")
        self._fail(self.GONE)

    def _fail(self, reason: str) -> None:
        self._reactor.removeWriter(self)
        self._lines.fail(self.NAME, reason)
        self._finish()

    def _finish(self) -> None:
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.callback(None)
