"""
The boundary between the reactor's thread and the worker threads that call an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, fail, maybeDeferred, succeed
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from tbvast.errors import EngineInterrupted
from tbvast.interfaces import IAdding, IEngine, IEngineClient
from tbvast.stix.observables import Observable
from tbvast.values import EngineIdentity, Entry, Match, Progress

MAX_THREADS = 6
"""
The most worker threads: one each for the writer, the search and the live match, and a few for
queries.
"""

Deliver = Callable[[list[Match]], "Deferred[None] | None"]
T = TypeVar("T")


@implementer(IEngineClient)
@attrs.define(eq=False)
class ThreadedEngine:
    """
    An L{IEngineClient} that makes an L{IEngine}'s calls in worker threads.

    At most one call writes, one searches and one matches live at a time; other calls of
    these kinds wait in line.

    @param engine: The engine, whose calls block.
    @param defer: Calls a callable in a worker thread, and returns a C{Deferred} of its
        result; for example C{partial(deferToThreadPool, reactor, pool)}.
    @param call_in_reactor: Calls a callable in the reactor's thread, from a worker
        thread, and waits until the C{Deferred} that it returns has fired; for example
        C{partial(blockingCallFromThread, reactor)}.
    """

    _engine: IEngine
    _defer: Callable[..., Deferred[Any]]
    _call_in_reactor: Callable[..., Any]
    _writing: DeferredLock = attrs.field(init=False, factory=DeferredLock)
    _searching: DeferredLock = attrs.field(init=False, factory=DeferredLock)
    _watching: DeferredLock = attrs.field(init=False, factory=DeferredLock)
    _running: set[Callable[[], None]] = attrs.field(init=False, factory=set)

    @property
    def cut(self) -> Mapping[str, int]:
        return self._engine.cut

    def identify(self) -> Deferred[EngineIdentity]:
        return self._defer(self._engine.identify)

    def prepare(self) -> Deferred[None]:
        return self._run(self._writing, self._engine.prepare)

    def adding(self) -> _Adding:
        adding = _Adding()
        add = partial(self._engine.add, adding.batches())
        adding.written = self._run(self._writing, add, adding.stop)
        return adding

    def remove(self, observables: Sequence[Observable]) -> Deferred[None]:
        return self._run(self._writing, partial(self._engine.remove, observables))

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
        search = partial(self._engine.find, entries, limit, timeout, since)
        delivery = _Delivery(search, deliver, self._call_in_reactor)
        return self._run(self._searching, delivery.run, delivery.stop)

    def watch(
        self, deliver: Deliver, progress: Callable[[Progress], Deferred[None] | None]
    ) -> Deferred[None]:
        def report(news: Progress) -> None:
            self._call_in_reactor(delivery.deliver, partial(progress, news))

        watch = partial(self._engine.watch, report)
        delivery = _Delivery(watch, deliver, self._call_in_reactor)
        return self._run(self._watching, delivery.run, delivery.stop)

    def interrupt(self) -> None:
        self._engine.interrupt()
        for stop in list(self._running):
            stop()

    def resume(self) -> None:
        self._engine.resume()

    def _run(
        self, lock: DeferredLock, call: Callable[[], T], stop: Callable[[], None] = lambda: None
    ) -> Deferred[T]:
        """
        Make a call in a thread that waits for a lock, and holds it until it has finished.

        @param lock: Serializes the calls that share it.
        @param stop: Asks the running call to end early.
        @return: The call's result. Cancelling it while the call waits removes the call from the
            line. Once the call runs, cancelling only asks it to end: a thread cannot be stopped.
        """
        started = False

        def start() -> Deferred[T]:
            nonlocal started
            started = True
            self._running.add(stop)
            return self._defer(call).addBoth(ended)

        def ended(outcome: T) -> T:
            self._running.discard(stop)
            return outcome

        def cancel(result: Deferred[T]) -> None:
            if started:
                stop()
            else:
                running.cancel()

        def finished(outcome: T | Failure) -> None:
            if not result.called:
                result.callback(outcome)

        result: Deferred[T] = Deferred(cancel)
        running = lock.run(start)
        running.addBoth(finished)
        return result


@implementer(IAdding)
@attrs.define(eq=False)
class _Adding:
    """
    Carries batches of entries from the reactor's thread to a worker thread.

    @ivar written: The result of the call that writes L{batches}.
    """

    written: Deferred[None] = attrs.field(init=False)
    _queue: SimpleQueue[Sequence[Entry] | None] = attrs.field(init=False, factory=SimpleQueue)
    _stopped: bool = attrs.field(init=False, default=False)

    def batches(self) -> Iterator[Sequence[Entry]]:
        """
        Yield the batches as they arrive. Called in a worker thread.

        @raise EngineInterrupted: If L{stop} was called.
        """
        yield from iter(self._queue.get, None)
        if self._stopped:
            raise EngineInterrupted("add")

    def add(self, entries: Sequence[Entry]) -> None:
        self._queue.put(entries)

    def end(self) -> Deferred[None]:
        self._queue.put(None)
        return self.written

    def stop(self) -> None:
        self._stopped = True
        self._queue.put(None)

    def abandon(self) -> None:
        self.written.addErrback(lambda failure: None)
        self.written.cancel()


@attrs.define(eq=False)
class _Delivery:
    """
    Carries the batches of one iterator from a worker thread to the reactor's thread. Each
    batch is delivered only after the one before has been processed.

    @param iterate: Starts the iteration. Called in a worker thread.
    @param deliver_batch: Receives each batch, in the reactor's thread.
    @param call_in_reactor: See L{ThreadedEngine}.
    """

    _iterate: Callable[[], Iterator[list[Match]]]
    _deliver_batch: Deliver
    _call_in_reactor: Callable[..., Any]
    _iterator: Any = attrs.field(init=False, default=None)
    _pending: Deferred[None] = attrs.field(init=False, factory=lambda: succeed(None))
    _stopped: bool = attrs.field(init=False, default=False)

    def run(self) -> None:
        """
        Iterate to the end. Called in a worker thread.

        @raise EngineInterrupted: If L{stop} was called.
        """
        self._iterator = self._iterate()
        try:
            if not self._stopped:
                for batch in self._iterator:
                    self._call_in_reactor(self.deliver, partial(self._deliver_batch, batch))
        except Exception as e:
            raise EngineInterrupted() if self._stopped else e from None
        finally:
            self._iterator.close()
        if self._stopped:
            raise EngineInterrupted()

    def deliver(self, receive: Callable[[], Any]) -> Deferred[None]:
        """
        Pass a batch or a progress report to its receiver. Called in the reactor's thread.

        @param receive: Calls the receiver, which may return a C{Deferred}.
        @return: Fires when the receiver has processed it.
        """
        if not self._stopped:
            self._pending = maybeDeferred(receive)
        if self._stopped:  # perhaps by the receiver
            self._pending.addErrback(lambda failure: None)
            self._pending.cancel()
            return fail(EngineInterrupted())
        return self._pending

    def stop(self) -> None:
        """
        Make L{run} end within a second. Called in the reactor's thread.
        """
        self._stopped = True
        if self._iterator is not None:
            self._iterator.close()
        self._pending.cancel()


class EngineThreads(Service):
    """
    The worker threads that call one engine; they end with the service.

    @ivar client: The engine's client for the reactor's thread. Calls made before the service
        is started wait for the start.
    """

    def __init__(self, reactor: Any, engine: IEngine) -> None:
        """
        @param reactor: Provides C{IReactorThreads} and C{IReactorFromThreads}.
        @param engine: The engine, whose calls block.
        """
        self._reactor = reactor
        self._pool = ThreadPool(0, MAX_THREADS, "tbvast-engine")
        self.client = ThreadedEngine(
            engine,
            partial(deferToThreadPool, reactor, self._pool),
            partial(blockingCallFromThread, reactor),
        )

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """
        End all calls.

        @return: Fires when every thread has ended.
        """
        super().stopService()
        self.client.interrupt()
        # The calls need the reactor until they have ended.
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)
