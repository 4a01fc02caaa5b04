"""
The boundary between the reactor's thread and the worker threads that call an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

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
class ThreadedEngine:
    """
    An L{IEngineClient} that makes an L{IEngine}'s calls in worker threads.

    At most one call writes, one searches and one matches live at a time; other calls of
    these kinds wait in line.
    """

    def __init__(
        self,
        engine: IEngine,
        defer: Callable[..., Deferred[Any]],
        call_in_reactor: Callable[..., Any],
    ) -> None:
        """
        @param engine: The engine, whose calls block.
        @param defer: Calls a callable in a worker thread, and returns a C{Deferred} of its
            result; for example C{partial(deferToThreadPool, reactor, pool)}.
        @param call_in_reactor: Calls a callable in the reactor's thread, from a worker
            thread, and waits until the C{Deferred} that it returns has fired; for example
            C{partial(blockingCallFromThread, reactor)}.
        """
        self._engine = engine
        self._defer = defer
        self._call_in_reactor = call_in_reactor
        self._writing = DeferredLock()
        self._searching = DeferredLock()
        self._watching = DeferredLock()
        self._running: set[_Adding | _Delivery] = set()

    @property
    def cut(self) -> Mapping[str, int]:
        """
        @see: L{IEngineClient}
        """
        return self._engine.cut

    def identify(self) -> Deferred[EngineIdentity]:
        return self._defer(self._engine.identify)

    def prepare(self) -> Deferred[None]:
        return _serialize(self._writing, partial(self._defer, self._engine.prepare))

    def adding(self) -> _Adding:
        def write(adding: _Adding) -> Deferred[None]:
            return self._run(self._writing, adding, partial(self._engine.add, adding.batches()))

        return _Adding(write)

    def remove(self, observables: Sequence[Observable]) -> Deferred[None]:
        return _serialize(self._writing, partial(self._defer, self._engine.remove, observables))

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
        return self._run(self._searching, delivery, delivery.run)

    def watch(
        self, deliver: Deliver, progress: Callable[[Progress], Deferred[None] | None]
    ) -> Deferred[None]:
        def report(news: Progress) -> None:
            self._call_in_reactor(delivery.deliver, partial(progress, news))

        watch = partial(self._engine.watch, report)
        delivery = _Delivery(watch, deliver, self._call_in_reactor)
        return self._run(self._watching, delivery, delivery.run)

    def interrupt(self) -> None:
        self._engine.interrupt()
        for call in list(self._running):
            call.stop()

    def resume(self) -> None:
        self._engine.resume()

    def _run(
        self, lock: DeferredLock, call: _Adding | _Delivery, f: Callable[[], None]
    ) -> Deferred[None]:
        def start() -> Deferred[None]:
            self._running.add(call)
            return self._defer(f).addBoth(ended)

        def ended(result: T) -> T:
            self._running.remove(call)
            return result

        return _serialize(lock, start, call.stop)


@implementer(IAdding)
class _Adding:
    """
    Carries batches of entries from the reactor's thread to a worker thread.
    """

    def __init__(self, write: Callable[[_Adding], Deferred[None]]) -> None:
        """
        @param write: Starts the call that writes L{batches}.
        """
        self._queue: SimpleQueue[Sequence[Entry] | None] = SimpleQueue()
        self._stopped = False
        self._written = write(self)

    def batches(self) -> Iterator[Sequence[Entry]]:
        """
        Yield the batches as they arrive. Called in a worker thread.

        @raise EngineInterrupted: If L{stop} was called.
        """
        while (batch := self._queue.get()) is not None:
            yield batch
        if self._stopped:
            raise EngineInterrupted("add")

    def add(self, entries: Sequence[Entry]) -> None:
        self._queue.put(entries)

    def end(self) -> Deferred[None]:
        self._queue.put(None)
        return self._written

    def stop(self) -> None:
        """
        End L{batches} early.
        """
        self._stopped = True
        self._queue.put(None)

    def abandon(self) -> None:
        self._written.addErrback(lambda failure: None)
        self._written.cancel()


class _Delivery:
    """
    Carries the batches of one iterator from a worker thread to the reactor's thread. Each
    batch is delivered only after the one before has been processed.
    """

    def __init__(
        self,
        iterate: Callable[[], Iterator[list[Match]]],
        deliver: Deliver,
        call_in_reactor: Callable[..., Any],
    ) -> None:
        """
        @param iterate: Starts the iteration. Called in a worker thread.
        @param deliver: Receives each batch, in the reactor's thread.
        @param call_in_reactor: See L{ThreadedEngine}.
        """
        self._iterate = iterate
        self._deliver_batch = deliver
        self._call_in_reactor = call_in_reactor
        self._iterator: Any = None
        self._pending: Deferred[None] = succeed(None)
        self._stopped = False

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


def _serialize(
    lock: DeferredLock, start: Callable[[], Deferred[T]], stop: Callable[[], None] = lambda: None
) -> Deferred[T]:
    """
    Make a call that waits for a lock, and holds it until its thread has finished.

    @param lock: Serializes the calls that share it.
    @param start: Starts the call; its C{Deferred} fires when the thread has finished.
    @param stop: Asks the running call to end early.
    @return: The call's result. Cancelling it while the call waits removes the call from the line.
        Once the call runs, cancelling only asks it to end: a thread cannot be stopped.
    """
    started = False

    def begin() -> Deferred[T]:
        nonlocal started
        started = True
        return start()

    def cancel(result: Deferred[T]) -> None:
        if started:
            stop()
        else:
            running.cancel()

    def finished(outcome: T | Failure) -> None:
        if not result.called:
            result.callback(outcome)

    result: Deferred[T] = Deferred(cancel)
    running = lock.run(begin)
    running.addBoth(finished)
    return result


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
