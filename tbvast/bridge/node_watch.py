"""
The engine's node: whether it is there, and the calls that are made while it is.
"""

from __future__ import annotations

import enum
import functools
import itertools
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

from tbvast.errors import EngineError, EngineInterrupted, EngineUnsupported
from tbvast.interfaces import IEngineClient
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


TABLE = """
           connected  filled  lost  stop
away       filling    -       -     stopped
filling    -          ready   away  stopped
ready      -          -       away  stopped
stopped    -          -       -     -
"""
"""
The states of a node, the events, and the state that follows; C{-} where an event has no effect.
"""


class _Events(TypingProtocol):
    """
    The events of a L{NodeWatch}: the node has accepted the connection, its tables are filled, the
    connection is lost, the service stops.
    """

    def connected(self) -> None: ...
    def filled(self) -> None: ...
    def lost(self) -> None: ...
    def stop(self) -> None: ...


@attrs.define(eq=False, repr=False, slots=False)
class NodeWatch(MultiService):
    """
    Fills the node's tables whenever the node comes, and then makes the calls that last.

    An idle TCP connection shows when the node ends. From then on until the node is back and its
    tables are filled again, no call is made.

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

    def __attrs_post_init__(self) -> None:
        super().__init__()
        self._events = _machine(self)
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
        The state and the engine's identity, for the status report.
        """
        return {"state": self.state, **msgspec.structs.asdict(self.identity)}

    async def retry(self, task: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """
        Repeat a call until it succeeds.

        @param task: The description of the call, for the log.
        @raise EngineInterrupted: If the node is lost.
        @raise EngineUnsupported: If the call does.
        """
        for delay in map(doubling(FIRST_RETRY_DELAY, MAX_RETRY_DELAY), itertools.count()):
            try:
                return await call()
            except (CancelledError, EngineInterrupted, EngineUnsupported):
                raise
            except EngineError as e:
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
        self.state = State(state)
        if self.state is State.FILLING:
            self.engine.resume()
            self._start(self._prepare())
        elif self.state is State.READY:
            for task in self._serve():
                self._start(task)
        else:
            if self.state is State.AWAY:
                self._log.warn("The engine has gone; waiting for it.")
            self.engine.interrupt()
            for running in list(self._tasks):
                running.cancel()

    async def _prepare(self) -> None:
        try:
            self.identity = await self.retry("identify the engine", self.engine.identify)
        except EngineUnsupported as e:
            self._unsupported(e)
            return
        await self.retry("prepare the engine", self.engine.prepare)
        await self.retry("fill the engine", self._fill)
        self._events.filled()

    def _start(self, coroutine: Task) -> None:
        task = Deferred.fromCoroutine(coroutine)
        self._tasks.append(task)
        task.addErrback(self._eb_task).addCallback(lambda _: self._tasks.remove(task))

    def _eb_task(self, failure: Failure) -> None:
        if not failure.check(CancelledError, EngineInterrupted):
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
