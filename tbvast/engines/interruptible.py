"""
Iterators over matches that another thread can end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

from tbvast.values import Match


class InterruptibleIterator(Iterator[list[Match]]):
    """
    An iterator that any thread may close, even while another thread waits for its next item.
    """

    def __init__(self, items: Generator[list[Match], None, None], stop: Callable[[], None]) -> None:
        """
        @param items: The generator to iterate over.
        @param stop: Makes the generator raise L{tbvast.errors.EngineInterrupted}, in whatever
            thread it runs. Thread-safe.
        """
        self._items = items
        self._stop = stop
        self._consumer: int | None = None

    def __next__(self) -> list[Match]:
        self._consumer = threading.get_ident()
        return next(self._items)

    def close(self) -> None:
        """
        End the generator.

        If another thread consumes it, this only requests the end: that thread gets
        L{tbvast.errors.EngineInterrupted} from the current or the next item.
        """
        self._stop()
        if self._consumer in (None, threading.get_ident()):
            self._items.close()
