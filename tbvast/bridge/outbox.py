"""
Which of the sightings that wait are offered together.
"""

from __future__ import annotations

import msgspec

PAGE = 500
PAGE_BYTES = 1 << 20
"""
The most sightings that are offered at a time, and their bytes: well below the longest
message that a bus takes. A longer one is offered alone.
"""

STRIKES = 3
"""
How often a sighting is offered alone, while others are taken, before it is given up.
"""

STRIKE_DELAY = 60.0
"""
Seconds after which a sighting that was not taken alone is offered again.
"""

MOST_POSTPONED = 8
"""
How many sightings can be held back: where more are not taken one after the other, it is
not for what they are.
"""


class _Postponed(msgspec.Struct):
    """
    A sighting that was not taken when it was offered alone.

    @ivar strikes: How often that was, with others taken in between.
    @ivar progress: How many pages had been taken then.
    @ivar due: When it is to be offered again; seconds.
    """

    strikes: int
    progress: int
    due: float


class Pages:
    """
    Finds the one sighting of a page for which the receiver cannot take the page, so that
    it does not keep the others waiting.

    A page that fails is halved, and halved again. What fails alone is postponed. It is
    given up only when others were taken each time before it failed again: a receiver that
    takes nothing at all is no reason to give anything up.

    @ivar size: How many sightings the next page may have.
    """

    def __init__(self) -> None:
        self.size = PAGE
        self._suspects: set[str] = set()
        self._postponed: dict[str, _Postponed] = {}
        self._progress = 0
        self._failed_alone = 0

    @property
    def postponed(self) -> list[str]:
        """
        The ids of the sightings that are left out of pages.
        """
        return list(self._postponed)

    @property
    def stuck(self) -> bool:
        """
        Whether nothing is taken at all.
        """
        return self._failed_alone >= MOST_POSTPONED

    def due(self, now: float) -> str | None:
        """
        @return: The id of a sighting that is to be offered again, alone.
        """
        for id, postponed in self._postponed.items():
            if postponed.due <= now:
                return id
        return None

    def forget(self, id: str) -> None:
        """
        A postponed sighting does not wait any more.
        """
        self._postponed.pop(id, None)

    def taken(self, ids: list[str]) -> None:
        """
        Some sightings of a page were taken, or refused.
        """
        self._progress += 1
        self._failed_alone = 0
        self._clear(ids)
        for id in ids:
            self._postponed.pop(id, None)

    def _clear(self, ids: list[str]) -> None:
        self._suspects.difference_update(ids)
        if not self._suspects:
            self.size = PAGE

    def failed(self, ids: list[str], now: float) -> str | None:
        """
        A page was not taken, though its receiver is there.

        @param now: Seconds.
        @return: The id of the sighting that is to be given up, if any.
        """
        if len(ids) > 1:
            self._suspects = set(ids)
            self.size = len(ids) // 2
            return None
        (id,) = ids
        self._clear(ids)
        self._failed_alone += 1
        if self.stuck:
            self._postponed.clear()
            self.size = 1
            return None
        postponed = self._postponed.setdefault(id, _Postponed(0, -1, now))
        if self._progress != postponed.progress:
            postponed.strikes += 1
            postponed.progress = self._progress
        postponed.due = now + STRIKE_DELAY
        if postponed.strikes < STRIKES:
            return None
        del self._postponed[id]
        return id
