"""
Notices that somebody else changes the tables of a live match.

Pure: no calls of the node, no clock.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from tbvast.engines.tenzir.pipelines import Tables
from tbvast.errors import EngineTablesChanged
from tbvast.stix.observables import Observable


@attrs.define(eq=False)
class TableGuard:
    """
    Compares the numbers of entries that the node reports for the tables with those that the
    bridge has made.

    The bridge knows how many entries it writes, but not how many of them are new. While it
    writes, and until the node has counted them, each number has therefore a range. All methods
    are thread-safe.

    @param tables: The names of the tables.
    @param awake: The seconds since the machine's start.
    @ivar spoiled: Whether the tables have been changed, and have to be made anew.
    """

    _tables: Tables
    _awake: Callable[[], float]
    spoiled: bool = attrs.field(init=False, default=False)
    _ranges: dict[str, tuple[int, int]] = attrs.field(init=False, factory=dict)
    _writing: int = attrs.field(init=False, default=0)
    _written: float = attrs.field(init=False, default=-math.inf)
    _lock: threading.RLock = attrs.field(init=False, factory=threading.RLock)

    def renewed(self) -> None:
        """
        Forget everything: the tables that were changed have been made anew.
        """
        with self._lock:
            self.spoiled = False
            self._ranges.clear()

    def counted(self, counts: Mapping[str, int]) -> None:
        """
        Expect these numbers of entries, by table, which have just been counted; also those
        expected so far, until the node has counted them, too.
        """
        with self._lock:
            for table, count in counts.items():
                fewest, most = self._ranges.get(table, (count, count))
                self._ranges[table] = min(fewest, count), max(most, count)
            self._written = self._awake()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """
        Wraps a call that writes to the tables.
        """
        with self._lock:
            self._writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._writing -= 1
                self._written = self._awake()

    def adding(self, observables: Iterable[Observable]) -> None:
        """
        Expect entries that are about to be written, and may be there already.
        """
        self._widen(observables, 0, 1)

    def removing(self, observables: Iterable[Observable]) -> None:
        """
        Expect that entries are removed that may be there.
        """
        self._widen(observables, 1, 0)

    def _widen(self, observables: Iterable[Observable], less: int, more: int) -> None:
        with self._lock:
            for observable in observables:
                table = self._tables.of(observable.kind)
                if table in self._ranges:
                    fewest, most = self._ranges[table]
                    self._ranges[table] = fewest - less, most + more

    def check(self, counts: Mapping[str, int], since: float) -> None:
        """
        Check a report of the node.

        @param counts: The numbers of entries of the existing tables, by name.
        @param since: The report was made later; seconds since the machine's start.
        @raise EngineTablesChanged: If somebody else has changed a table.
        """
        with self._lock:
            is_current = not self._writing and since > self._written
            for table in self._tables:
                count = counts.get(table)
                if count is None:
                    raise self.changed(f"{table} was removed")
                fewest, most = self._ranges.get(table, (0, math.inf))
                if not fewest <= count <= most:
                    expected = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                    raise self.changed(f"{table} has {count} entries instead of {expected}")
                if is_current:
                    self._ranges[table] = count, count

    def changed(self, reason: str) -> EngineTablesChanged:
        """
        Remember that the tables have to be made anew.

        @return: The error to raise.
        """
        self.spoiled = True
        return EngineTablesChanged(reason)
