"""
Keeps the engine's tables equal to the store.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import msgspec
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger

from tbvast.bridge.node_watch import NodeWatch, State
from tbvast.errors import EngineTablesChanged
from tbvast.interfaces import IAdding, IIndicatorStore
from tbvast.stix.observables import Observable
from tbvast.values import Changes, Covered, Entry

CHECK_INTERVAL, MAX_CHECK_INTERVAL = 600.0, 3600.0
"""
Seconds without a change after which the engine's tables are compared with the store, and seconds
after which they are, whatever changes. A comparison reads every entry.
"""

DEBOUNCE_SECONDS = 0.02
MAX_DEBOUNCE_SECONDS = 2.0
"""
Seconds without a change, and without one in progress, after which a call of the engine ends,
and the most that a call waits for further changes. Each call costs as much as some ten
thousand entries. The engine buffers entries for up to a second, until more come or the call
ends.
"""

QUIET_SECONDS = 0.25
MAX_QUIET_WAIT_SECONDS = 10.0
"""
Seconds without a change after which L{EngineSync.quiet} returns, and the most that it waits.
"""

MAX_PENDING_ENTRIES = 200_000
"""
The most changed entries that wait in memory for an engine that is behind. With more, the
whole table is compared with the store instead.
"""

MAX_ENTRIES_PER_CALL, ENTRIES_PER_CHUNK = 50_000, 5000
"""
About the most entries that the engine is given in one call, and those that it is given at
once. As soon as so many wait, they are sent without waiting for more changes.
"""


class EngineSync:
    """
    Compares the engine's tables with the store, and writes the changes of the store to them.

    @ivar applied: The number of the last change of the store that the tables contain.
    """

    _log = Logger()

    def __init__(self, node: NodeWatch, store: IIndicatorStore) -> None:
        self.applied = 0
        self._node = node
        self._clock = node.clock
        self._engine = node.engine
        self._store = store
        self._pending: dict[Observable, Entry | None] = {}  # None for an entry to remove
        self._pending_since = 0.0
        self._pending_change = 0
        self._needs_reconcile = False
        self._changes_in_progress = 0
        self._changed_at = -QUIET_SECONDS
        self._waiters: list[Deferred[None]] = []
        self._compared_at = 0.0
        self._covered_before: Covered | None = None
        self._doubtful = False

    @property
    def pending(self) -> int:
        """
        The number of entries that wait for the engine.
        """
        return len(self._pending)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """
        A change of the store, which ends with a call of L{changed}.
        """
        self._changes_in_progress += 1
        try:
            yield
        finally:
            self._changes_in_progress -= 1

    def changed(self, changes: Changes) -> None:
        """
        Apply changes to the engine as soon as possible.
        """
        if changes.write or changes.erase:
            self._changed_at = self._clock.seconds()
            if not self._pending:
                self._pending_since = self._changed_at
        self._add_pending(changes)
        self._limit_pending()
        self._notify()

    def _add_pending(self, changes: Changes) -> None:
        self._pending |= {entry.observable: entry for entry in changes.write}
        self._pending |= dict.fromkeys(changes.erase)
        self._pending_change = max(self._pending_change, changes.number)

    def _limit_pending(self) -> None:
        if self._node.state is State.AWAY or len(self._pending) > MAX_PENDING_ENTRIES:
            # The engine's tables are compared with the store first.
            self._pending.clear()
            self._needs_reconcile = True

    def next_change(self) -> Deferred[None]:
        """
        @return: Fires at the next change of the store, or of the engine's tables.
        """
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    async def quiet(self) -> None:
        """
        Wait until no change has come for L{QUIET_SECONDS}, with a limit.
        """
        most = self._clock.seconds() + MAX_QUIET_WAIT_SECONDS
        while self._clock.seconds() < most and (
            self._has_backlog
            or self._changes_in_progress
            or self._clock.seconds() < self._changed_at + QUIET_SECONDS
        ):
            await deferLater(self._clock, QUIET_SECONDS)

    async def maintain(self) -> None:
        """
        Write changes as they come, and compare the tables when none has come for long.
        """
        while True:
            while self._has_backlog:
                await self._node.retry("update the engine", self._apply)
            due = self._compared_at + MAX_CHECK_INTERVAL - self._clock.seconds()
            try:
                await self.next_change().addTimeout(min(CHECK_INTERVAL, max(due, 0)), self._clock)
            except TimeoutError:
                check = functools.partial(self.reconcile, expect_equal=True)
                await self._node.retry("check the engine", check)

    @property
    def _has_backlog(self) -> bool:
        return bool(self._pending) or self._needs_reconcile or self.applied < self._pending_change

    async def _apply(self) -> None:
        if self._needs_reconcile:
            await self.reconcile()
        else:
            await self._write(self._pending_since + MAX_DEBOUNCE_SECONDS)

    async def reconcile(self, expect_equal: bool = False) -> None:
        """
        Compare the engine's tables with the store, and correct them.

        @param expect_equal: Whether they should differ only in changes that are still to be
            written. If they do not, matches since the last comparison may be missing.
        @raise EngineTablesChanged: If they should, and do not.
        @raise EngineError: If a call of the engine fails.
        """
        started = self._clock.seconds()
        self._needs_reconcile = True
        if self._doubtful and self._covered_before is not None:
            # Everything since the last comparison has to be searched.
            await self._store.set_covered(self._covered_before)
        self._doubtful = False
        covered = await self._store.covered()
        held = await self._engine.contents()
        desired = await self._store.reconcile(held)
        if expect_equal:
            differing = {o for changes in desired for o in observables_of(changes)}
            if unexpected := differing - self._pending.keys():
                self._doubtful = True
                raise EngineTablesChanged(f"{len(unexpected)} entries differ from the store's")
        self._covered_before, self._compared_at = covered, started
        # They contain the changes before them; those after them have not arrived yet.
        self._needs_reconcile = False
        self._pending.clear()
        for changes in desired:
            self._add_pending(changes)
        written, erased = await self._write()
        self._log.info(
            "{name} {version} at {endpoint} is ready: {held} entries were there,"
            " {written} written, {erased} erased, in {elapsed:.3f} s.",
            **msgspec.structs.asdict(self._node.identity),
            held=len(held),
            written=written,
            erased=erased,
            elapsed=self._clock.seconds() - started,
        )

    async def _write(self, most: float = 0.0) -> tuple[int, int]:
        """
        Write the pending changes, with one call that adds entries while they arrive, and one
        that removes some.

        @param most: The time until which the first call waits for changes, at the latest.
        @return: The numbers of entries that were added and removed.
        """
        started = self._clock.seconds()
        written: dict[Observable, Entry | None] = {}
        removed: list[Observable] = []
        adding: IAdding | None = None
        added, more = 0, True
        try:
            # A removed entry may be desired again by a later change: that is for another call.
            while more and len(written) < MAX_ENTRIES_PER_CALL and not removed:
                more = await self._debounce(most)
                pending, self._pending = self._pending, {}
                change = self._pending_change
                written |= pending
                removed = [observable for observable, entry in pending.items() if entry is None]
                add = [entry for entry in pending.values() if entry is not None]
                added += len(add)
                for start in range(0, len(add), ENTRIES_PER_CHUNK):
                    adding = adding or self._engine.adding()
                    adding.add(add[start : start + ENTRIES_PER_CHUNK])
            if adding is not None:
                await adding.end()
            for start in range(0, len(removed), MAX_ENTRIES_PER_CALL):
                await self._engine.remove(removed[start : start + MAX_ENTRIES_PER_CALL])
        except BaseException:
            if adding is not None:
                adding.abandon()
            self._pending = written | self._pending
            self._limit_pending()
            raise
        if written:
            self._log.info(
                "The engine took {added} entries and removed {removed} in {elapsed:.3f} s.",
                added=added,
                removed=len(removed),
                elapsed=self._clock.seconds() - started,
            )
        self.applied = max(self.applied, change)
        self._notify()
        return added, len(removed)

    async def _debounce(self, most: float) -> bool:
        """
        Wait for further changes.

        @param most: The time at which the wait ends, at the latest.
        @return: Whether more changes may come before that time.
        """
        while len(self._pending) < ENTRIES_PER_CHUNK:
            now = self._clock.seconds()
            quiet = (now if self._changes_in_progress else self._changed_at) + DEBOUNCE_SECONDS
            left = min(quiet, most) - now
            if left <= 0:
                return False
            await deferLater(self._clock, left)
        return self._clock.seconds() < most


def observables_of(changes: Changes) -> Iterator[Observable]:
    """
    @return: The observables of all entries that change.
    """
    yield from (entry.observable for entry in changes.write)
    yield from changes.erase
