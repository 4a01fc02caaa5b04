"""
The engine's node: whether it is there, and the calls that are made while it is.
"""

from __future__ import annotations

import enum
import functools
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar
from typing import Protocol as TypingProtocol

import attrs
import msgspec
from twisted.application.internet import ClientService
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from tbvast.errors import (
    EngineError,
    EngineInterrupted,
    EngineTablesChanged,
    EngineUnsupported,
)
from tbvast.interfaces import IEngineClient
from tbvast.service.rate_limit import RateLimit
from tbvast.service.retry_policy import doubling
from tbvast.service.state_machine import machine_of
from tbvast.values import EngineIdentity

FIRST_RETRY_DELAY, MAX_RETRY_DELAY = 0.5, 30.0
"""
Seconds between attempts of a call that failed. The delay doubles up to the maximum.
"""

FIRST_RECONNECT_DELAY, MAX_RECONNECT_DELAY = 0.1, 5.0
"""
Seconds between attempts to connect to the node.
"""

_delay = doubling(FIRST_RETRY_DELAY, MAX_RETRY_DELAY)
Task = Coroutine[Deferred[Any], Any, None]
_T = TypeVar("_T")


class State(enum.StrEnum):
    """
    The state of the node: not there, its tables are being filled, its tables are filled; or
    nobody watches it any more.
    """

    AWAY = "away"
    FILLING = "filling"
    READY = "ready"
    STOPPED = "stopped"


STEADY_SECONDS = 60.0
"""
Seconds after which another change of the tables is repaired at once, as the first one was.
"""

MAX_WARNINGS = 6
"""
The most warnings a minute of tables that were changed.
"""

TABLE = """
           connected  filled  changed  lost  stop
away       filling    -       -        -     stopped
filling    -          ready   -        away  stopped
ready      -          -       filling  away  stopped
stopped    -          -       -        -     -
"""
"""
The states of a node, the events, and the state that follows; C{-} where an event has no effect.
"""


class _Events(TypingProtocol):
    """
    The events of a L{NodeWatch}: the node has accepted the connection, its tables are filled,
    somebody else has changed them, the connection is lost, the service stops.
    """

    def connected(self) -> None: ...
    def filled(self) -> None: ...
    def changed(self) -> None: ...
    def lost(self) -> None: ...
    def stop(self) -> None: ...


@attrs.define(eq=False, repr=False, slots=False)
class NodeWatch(MultiService):
    """
    Fills the node's tables whenever the node comes, and then makes the calls that last.

    An idle TCP connection shows when the node ends. From then on until the node is back and its
    tables are filled again, no call is made. If somebody else changes the tables, all calls end,
    and begin again when the tables are filled.

    @ivar identity: The engine's name and version; empty until the node came first.
    @param endpoint: The endpoint of the node, for the idle connection.
    @param fill: Makes the node's tables equal to the store.
    @param serve: Makes the coroutines that then run until they are cancelled, when the node is
        lost.
    @param unsupported: Called if the engine is not supported.
    """

    _log = Logger()

    clock: IReactorTime
    _endpoint: IStreamClientEndpoint
    engine: IEngineClient
    _fill: Callable[[], Awaitable[None]]
    _serve: Callable[[], Iterable[Task]]
    _unsupported: Callable[[EngineUnsupported], None]
    state: State = attrs.field(init=False, default=State.AWAY)
    identity: EngineIdentity = attrs.field(init=False, default=EngineIdentity("", "", ""))
    _tasks: list[Deferred[None]] = attrs.field(init=False, factory=list)
    _changes: int = attrs.field(init=False, default=0)
    _last_change: str = attrs.field(init=False, default="")
    _changed_at: float = attrs.field(init=False, default=-math.inf)
    _repairs_in_a_row: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        super().__init__()
        self._events = _machine(self)
        self._warnings = RateLimit(self.clock, MAX_WARNINGS)
        factory = Factory.forProtocol(functools.partial(_Connection, self._events))
        factory.noisy = False
        retry_policy = doubling(FIRST_RECONNECT_DELAY, MAX_RECONNECT_DELAY)
        client = ClientService(self._endpoint, factory, retry_policy, self.clock)
        client.setServiceParent(self)

    def stopService(self) -> Deferred[None]:
        """
        Interrupt the engine's calls.

        @return: Fires when all calls have ended.
        """
        tasks = list(self._tasks)
        self._events.stop()
        return gatherResults(tasks).addCallback(lambda _: MultiService.stopService(self))

    def report(self) -> dict[str, Any]:
        """
        The state, the engine's identity, and the changes of tables, for the status report.
        """
        report = {"state": self.state, **msgspec.structs.asdict(self.identity)}
        if self._changes:
            report["tables_changed"] = {"count": self._changes, "newest": self._last_change}
        return report

    def tables_changed(self, error: EngineTablesChanged) -> None:
        """
        Fill the tables again, which somebody else has changed. If that happens again and again,
        each repair waits longer.
        """
        if self.state is not State.READY:
            return
        now = self.clock.seconds()
        steady = now - self._changed_at >= STEADY_SECONDS
        self._repairs_in_a_row = 0 if steady else self._repairs_in_a_row + 1
        self._changed_at = now
        self._changes += 1
        self._last_change = error.reason
        self._warnings.warn(self._log, "{error}. They are filled again.", error=str(error))
        self._events.changed()

    async def retry(self, task: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """
        Repeat a call until it succeeds.

        @param task: The description of the call, for the log.
        @raise EngineInterrupted: If the node is lost.
        @raise EngineUnsupported: If the call does.
        @raise EngineTablesChanged: If the call does, once the tables were filled.
        """
        for delay in map(_delay, itertools.count()):
            try:
                return await call()
            except (CancelledError, EngineInterrupted, EngineUnsupported):
                raise
            except EngineError as e:
                if isinstance(e, EngineTablesChanged) and self.state is State.READY:
                    raise
                self._log.error(
                    "Cannot {task}: {reason}; trying again in {delay} s.",
                    task=task,
                    reason=str(e),
                    delay=delay,
                )
            except Exception:
                self._log.failure("Could not {task}; trying again.", task=task)
            await deferLater(self.clock, delay)
        raise AssertionError("there is no last attempt")

    def _enter(self, state: str) -> None:
        entered = self.state = State(state)
        if entered is State.FILLING:
            self._end_tasks()
            self.engine.resume()
            self._start(self._prepare())
        elif entered is State.READY:
            for task in self._serve():
                self._start(task)
                if self.state is not entered:  # the task has found changed tables
                    break
        else:
            if entered is State.AWAY:
                self._repairs_in_a_row = 0
                self._log.warn("The engine has gone; waiting for it.")
            self._end_tasks()

    def _end_tasks(self) -> None:
        self.engine.interrupt()
        for running in list(self._tasks):
            running.cancel()

    async def _prepare(self) -> None:
        if self._repairs_in_a_row:
            await deferLater(self.clock, _delay(self._repairs_in_a_row - 1))
        try:
            self.identity = await self.retry("identify the engine", self.engine.identify)
        except EngineUnsupported as e:
            self._unsupported(e)
            return
        await self.retry("fill the engine", self._prepare_tables)
        self._events.filled()

    async def _prepare_tables(self) -> None:
        await self.engine.prepare()
        await self._fill()

    def _start(self, coroutine: Task) -> None:
        task = Deferred.fromCoroutine(coroutine)
        self._tasks.append(task)
        task.addErrback(self._eb_task).addCallback(lambda _: self._tasks.remove(task))

    def _eb_task(self, failure: Failure) -> None:
        if isinstance(failure.value, EngineTablesChanged):
            self.tables_changed(failure.value)
        elif not failure.check(CancelledError, EngineInterrupted):
            self._log.failure("The session with the engine failed", failure)


_machine = machine_of(TABLE, _Events, NodeWatch, NodeWatch._enter)


@attrs.define(eq=False, slots=False)
class _Connection(Protocol):
    """
    The idle connection to the node, which is lost when the node ends.
    """

    _events: _Events

    def connectionMade(self) -> None:
        self._events.connected()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._events.lost()
