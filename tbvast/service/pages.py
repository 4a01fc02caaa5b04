"""
Chooses which waiting sightings are offered together.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tbvast.values import PageRequest

PAGE = 500
PAGE_BYTES = 1 << 20
"""
The most sightings of a page, and their bytes: well below the longest message that a bus
accepts. A longer sighting is offered alone.
"""

STRIKES, STRIKE_DELAY = 3, 60.0
"""
How often a sighting is offered alone, while others are accepted, before it is given up; and the
seconds between these attempts.
"""

MOST_POSTPONED = 8
"""
The most postponed sightings. If as many fail in a row, the sightings are not the cause.
"""


class _Postponed(msgspec.Struct):
    """
    A sighting that failed when it was offered alone.

    @ivar strikes: The number of failures, with others accepted in between.
    @ivar progress: The number of pages accepted before the last strike.
    @ivar due: When it is offered again; seconds.
    """

    strikes: int
    progress: int
    due: float


class Pages:
    """
    Finds the sighting that makes the receiver fail on a page, so that others do not wait.

    A page that fails is halved, and halved again. A sighting that fails alone is
    postponed. It is given up only if others were accepted each time before it failed
    again: a receiver that accepts nothing at all is no reason to give anything up.
    """

    def __init__(self) -> None:
        self._size = PAGE
        self._suspects: set[str] = set()
        self._postponed: dict[str, _Postponed] = {}
        self._progress = 0
        self._failed_alone = 0

    @property
    def next(self) -> PageRequest:
        """
        The next page, without the postponed sightings.
        """
        return PageRequest(self._size, PAGE_BYTES, tuple(self._postponed))

    @property
    def stuck(self) -> bool:
        """
        Whether the receiver accepts nothing at all.
        """
        return self._failed_alone >= MOST_POSTPONED

    def due(self, now: float) -> str | None:
        """
        @param now: Seconds.
        @return: The key of a sighting to offer again, alone; C{None} if there is none.
        """
        return next((key for key, each in self._postponed.items() if each.due <= now), None)

    def forget(self, key: str) -> None:
        """
        Drop a postponed sighting: it no longer waits.
        """
        self._postponed.pop(key, None)

    def taken(self, keys: Sequence[str]) -> None:
        """
        Record that the receiver accepted or refused some sightings of a page.
        """
        self._progress += 1
        self._failed_alone = 0
        self._clear(keys)
        for key in keys:
            self._postponed.pop(key, None)

    def _clear(self, keys: Sequence[str]) -> None:
        self._suspects.difference_update(keys)
        if not self._suspects:
            self._size = PAGE

    def failed(self, keys: Sequence[str], now: float) -> str | None:
        """
        Record that a page failed, although its receiver is there.

        @param now: Seconds.
        @return: The key of the sighting to give up, if any.
        """
        if len(keys) > 1:
            self._suspects = set(keys)
            self._size = len(keys) // 2
            return None
        (key,) = keys
        self._clear(keys)
        self._failed_alone += 1
        if self.stuck:
            self._postponed.clear()
            self._size = 1
            return None
        postponed = self._postponed.setdefault(key, _Postponed(0, -1, now))
        if self._progress != postponed.progress:
            postponed.strikes += 1
            postponed.progress = self._progress
        postponed.due = now + STRIKE_DELAY
        if postponed.strikes < STRIKES:
            return None
        del self._postponed[key]
        return key
