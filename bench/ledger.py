"""
Who was to get which document, and who got it: counted to the item.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

SHOWN = 10
"""
The most items, or neighbours, that a report names.
"""

HISTORY = 200_000
"""
How many of the messages that were sent last can be named as neighbours.
"""

LENGTH = 300
"""
The most bytes of a message that a report shows.
"""


class History:
    """
    The messages that were sent last, in their order.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last: deque[tuple[str, bytes]] = deque(maxlen=HISTORY)

    def add(self, endpoint: str, message: bytes) -> int:
        """
        @return: The place of the message.
        """
        self._last.append((endpoint, message[:LENGTH]))
        self.count += 1
        return self.count - 1

    def around(self, place: int, width: int = SHOWN) -> list[str]:
        """
        A message, and those before and behind it.
        """
        first = self.count - len(self._last)
        shown = []
        for each in range(max(first, place - width), min(self.count, place + width + 1)):
            endpoint, message = self._last[each - first]
            mark = ">" if each == place else " "
            shown.append(f"  {mark} {each} {endpoint}: {message[:LENGTH]!r}")
        return shown or [f"    what was sent at {place} is not known any more"]


class Ledger:
    """
    What one receiver was to get exactly once, and what it got.

    @ivar got: How often each item arrived, by its key.
    """

    def __init__(self, name: str, history: History) -> None:
        """
        @param name: The receiver's.
        """
        self.name = name
        self.got: Counter[str] = Counter()
        self._due: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._history = history

    def expect(self, keys: Iterable[str], place: int) -> None:
        """
        @param place: Of the message in the history.
        """
        for key in keys:
            self._due[key] = place
            if key not in self.got:
                self._open[key] = place

    def excuse(self, keys: Iterable[str]) -> None:
        """
        Something was not accepted; who sent it was told.
        """
        for key in keys:
            self._due.pop(key, None)
            self._open.pop(key, None)

    def arrived(self, key: str) -> None:
        self.got[key] += 1
        self._open.pop(key, None)

    @property
    def due(self) -> int:
        """
        How many were to come.
        """
        return len(self._due)

    @property
    def missing(self) -> int:
        """
        How many have not come yet.
        """
        return len(self._open)

    @property
    def first_missing(self) -> str:
        """
        The key of the first that has not come; empty if all have.
        """
        return next(iter(self._open), "")

    @property
    def doubled(self) -> int:
        """
        How many came too often: once more than once is one.
        """
        return self.got.total() - len(self.got)

    @property
    def foreign(self) -> list[str]:
        """
        Those that came, and nobody sent so.
        """
        return [key for key in self.got if key not in self._due]

    def problems(self, neighbours: bool = True) -> list[str]:
        """
        What is wrong, for people: the first that is missing, with its neighbours.
        """
        found = []
        if self._open:
            key, place = next(iter(self._open.items()))
            found.append(
                f"{self.name}: {len(self._open):,} of {self.due:,} missing, the first: {key}"
            )
            if neighbours:
                found += self._history.around(place)
            found += [f"    missing: {each}" for each in list(self._open)[1:SHOWN]]
        twice = [key for key, count in self.got.items() if count > 1]
        if twice:
            found.append(f"{self.name}: {self.doubled:,} doubled: {', '.join(twice[:SHOWN])}")
        if foreign := self.foreign:
            found.append(
                f"{self.name}: {len(foreign):,} that nobody sent so: {', '.join(foreign[:SHOWN])}"
            )
        return found
