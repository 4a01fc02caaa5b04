"""
The boundary between the reactor's thread and those in which an engine is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    DeferredLock,
    fail,
    succeed,
)
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from tbvast.errors import EngineInterrupted
from tbvast.interfaces import IAdding, IEngine, IEngineClient
from tbvast.stix.observables import Observable
from tbvast.values import EngineIdentity, Entry, Match, Progress

THREADS = 6
"""
One each for the writer, the search and the live match, and a few for questions.
"""

Deliver = Callable[[list[Match]], "Deferred[None] | None"]
T = TypeVar("T")


@implementer(IEngineClient)
class ThreadedEngine:
    """
    An L{IEngineClient} that makes an L{IEngine}'s calls in worker threads.

    One call at a time writes, one searches, and one matches live; others wait
    for their turn.
    """

    def __init__(
        self,
        engine: IEngine,
        defer: Callable[..., Deferred[Any]],
        call_in_reactor: Callable[..., Any],
    ) -> None:
        """
        @param defer: Calls a callable in a thread, for a L{Deferred} of its
            result: C{partial(deferToThreadPool, reactor, pool)}, say.
        @param call_in_reactor: Called in a thread, calls a callable in the
            reactor's, and waits until the L{Deferred} that it returns has fired:
            C{partial(blockingCallFromThread, reactor)}, say.
        """
        self._engine = engine
        self._defer = defer
        self._call_in_reactor = call_in_reactor
        self._writing = DeferredLock()
        self._searching = DeferredLock()
        self._watching = DeferredLock()
        self._deliveries: set[_Delivery] = set()
        self._addings: set[_Adding] = set()

    def identify(self) -> Deferred[EngineIdentity]:
        return self._defer(self._engine.identify)

    def prepare(self) -> Deferred[None]:
        return _Turn(self._writing, partial(self._defer, self._engine.prepare)).result

    def adding(self) -> _Adding:
        def over(result: T) -> T:
            self._addings.discard(adding)
            return result

        adding = _Adding()
        self._addings.add(adding)
        start = partial(self._defer, self._engine.add, adding.pieces())
        adding.result = _Turn(self._writing, start, adding.cut).result.addBoth(over)
        return adding

    def remove(self, observables: Sequence[Observable]) -> Deferred[None]:
        return _Turn(self._writing, partial(self._defer, self._engine.remove, observables)).result

    def contents(self) -> Deferred[list[Entry]]:
        return self._defer(self._engine.contents)

    def find(
        self,
        entries: Sequence[Entry],
        limit: int,
        timeout: float,
        deliver: Deliver,
        since: float | None = None,
    ) -> Deferred[None]:
        found = partial(self._engine.find, entries, limit, timeout, since)
        return self._delivered(self._searching, found, deliver)

    def watch(
        self, deliver: Deliver, progress: Callable[[Progress], Deferred[None] | None]
    ) -> Deferred[None]:
        def told(news: Progress) -> None:
            self._call_in_reactor(delivery.hand_over, partial(progress, news))

        watch = partial(self._engine.watch, told)
        delivery = _Delivery(watch, deliver, self._call_in_reactor)
        return self._run(self._watching, delivery)

    def interrupt(self) -> None:
        self._engine.interrupt()
        for adding in list(self._addings):
            adding.cut()
        for delivery in list(self._deliveries):
            delivery.end(EngineInterrupted("the engine's calls were ended"))

    def resume(self) -> None:
        self._engine.resume()

    def _delivered(
        self, lock: DeferredLock, iterate: Callable[[], Iterator[list[Match]]], deliver: Deliver
    ) -> Deferred[None]:
        return self._run(lock, _Delivery(iterate, deliver, self._call_in_reactor))

    def _run(self, lock: DeferredLock, delivery: _Delivery) -> Deferred[None]:
        def start() -> Deferred[None]:
            self._deliveries.add(delivery)
            return self._defer(delivery.run).addBoth(over)

        def over(result: T) -> T:
            self._deliveries.discard(delivery)
            return result

        return _Turn(lock, start, lambda: delivery.end(CancelledError())).result


@implementer(IAdding)
class _Adding:
    """
    Pieces of entries, from the reactor's thread to a worker.

    @ivar result: Of the call that takes them.
    """

    result: Deferred[None]

    def __init__(self) -> None:
        self._given: SimpleQueue[Sequence[Entry] | None] = SimpleQueue()
        self._cut = False

    def pieces(self) -> Iterator[Sequence[Entry]]:
        """
        What has been given, as it comes. Called in a worker thread.

        @raise EngineInterrupted: If not all will be.
        """
        while (piece := self._given.get()) is not None:
            yield piece
        if self._cut:
            raise EngineInterrupted("add")

    def add(self, entries: Sequence[Entry]) -> None:
        self._given.put(entries)

    def end(self) -> Deferred[None]:
        self._given.put(None)
        return self.result

    def cut(self) -> None:
        """
        Nothing more will be given.
        """
        self._cut = True
        self._given.put(None)

    def abandon(self) -> None:
        self.result.addErrback(lambda failure: None)
        self.result.cancel()


class _Turn:
    """
    A call that waits for a lock, and keeps it until its thread is done.

    @ivar result: The call's; cancelling it gives up the wait, or, if the call
        was made already, its result: a thread cannot be stopped, only asked to.
    """

    def __init__(
        self,
        lock: DeferredLock,
        start: Callable[[], Deferred[Any]],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param start: Makes the call.
        @param stop: Asks the call to end early.
        """
        self._stop = stop
        self._start = start
        self._started = False
        self.result: Deferred[Any] = Deferred(self._cancel)
        self._turn = lock.run(self._begin)
        self._turn.addBoth(self._finished)

    def _begin(self) -> Deferred[Any]:
        self._started = True
        return self._start()

    def _cancel(self, result: Deferred[Any]) -> None:
        if self._started:
            self._stop()
        else:
            self._turn.cancel()

    def _finished(self, outcome: Any) -> None:
        if not self.result.called:
            self.result.callback(outcome)


class _Delivery:
    """
    Carries the batches of one iterator from a thread to the reactor's, each
    only when the one before has been dealt with.
    """

    def __init__(
        self,
        iterate: Callable[[], Iterator[list[Match]]],
        deliver: Deliver,
        call_in_reactor: Callable[..., Any],
    ) -> None:
        self._iterate = iterate
        self._deliver = deliver
        self._call_in_reactor = call_in_reactor
        self._iterator: Any = None
        self._pending: Deferred[None] | None = None
        self._ended: BaseException | None = None

    def run(self) -> None:
        """
        Iterate to the end. Called in a worker thread.
        """
        self._iterator = self._iterate()
        try:
            if self._ended is None:
                for batch in self._iterator:
                    self._call_in_reactor(self.hand_over, partial(self._deliver, batch))
        except Exception as e:
            raise self._ended or e from None
        finally:
            self._iterator.close()
        if self._ended is not None:
            raise self._ended

    def hand_over(self, give: Callable[[], Deferred[None] | None]) -> Deferred[None]:
        """
        Give what the engine has found, or said, to whom it is for. Called in the
        reactor's thread.

        @return: Fires when it has been dealt with.
        """
        if self._ended is None:
            try:
                delivered = give()
            except Exception:
                return fail()
            self._pending = succeed(None) if delivered is None else delivered
        return self._waited_for()

    def _waited_for(self) -> Deferred[None]:
        if self._ended is None and self._pending is not None:
            return self._pending
        if self._pending is not None:  # what it was delivered to has ended it
            self._pending.addErrback(lambda failure: None)
            self._pending.cancel()
        return fail(self._ended)

    def end(self, reason: BaseException) -> None:
        """
        Make L{run} end within a second, by raising C{reason}. Called in the
        reactor's thread.
        """
        if self._ended is None:
            self._ended = reason
        if self._iterator is not None:
            self._iterator.close()
        if self._pending is not None:
            self._pending.cancel()


class EngineThreads(Service):
    """
    The threads in which one engine is asked; they end with the service.

    @ivar client: The engine, for the reactor's thread. Calls made before the
        service is started wait for that.
    """

    def __init__(self, reactor: Any, engine: IEngine) -> None:
        self._pool = ThreadPool(0, THREADS, "tbvast-engine")
        self._reactor = reactor
        self._calls: set[Deferred[Any]] = set()
        self.client = ThreadedEngine(engine, self._call, partial(blockingCallFromThread, reactor))

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """
        End all calls; fires when no thread is left.
        """
        super().stopService()
        self.client.interrupt()
        return DeferredList(list(self._calls)).addCallback(lambda _: self._pool.stop())

    def _call(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        call = deferToThreadPool(self._reactor, self._pool, f, *args)
        done: Deferred[None] = Deferred()
        self._calls.add(done)

        def over(result: Any) -> Any:
            self._calls.discard(done)
            done.callback(None)
            return result

        return call.addBoth(over)
