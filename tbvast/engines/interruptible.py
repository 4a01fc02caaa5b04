"""
The iterators of an engine's matches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

from tbvast.values import Match


class Closable(Iterator[list[Match]]):
    """
    An iterator that any thread may close, while another waits for its next item.
    """

    def __init__(self, items: Generator[list[Match], None, None], stop: Callable[[], None]) -> None:
        """
        @param items: A generator.
        @param stop: Makes the generator, in whatever thread it runs, raise
            L{tbvast.errors.EngineInterrupted}.
        """
        self._items = items
        self._stop = stop
        self._owner: int | None = None

    def __next__(self) -> list[Match]:
        self._owner = threading.get_ident()
        return next(self._items)

    def close(self) -> None:
        """
        End what yields the items.

        From another thread than that which takes the items, it is only asked to
        end: what takes them gets L{tbvast.errors.EngineInterrupted}, at once or
        for the next one.
        """
        self._stop()
        if self._owner in (None, threading.get_ident()):
            self._items.close()
