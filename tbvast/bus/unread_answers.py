"""
Bounds the answers that wait for clients that do not read them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from tbvast.bus.client_budget import ClientBudget
from tbvast.errors import LimitExceeded

LONG_ANSWER = 1024
"""
The longest answer, in bytes, that is not counted. ZeroMQ holds at most 1,000 for one connection.
"""

CLIENT_BYTES = 1 << 24
TOTAL_BYTES = 1 << 28
"""
The most bytes of long answers that wait for one client, and for all.
"""

LOOKS = 64
"""
The most answers that are looked at in one call, for one client.
"""


@attrs.define(eq=False)
class UnreadAnswers:
    """
    The long answers that clients have not taken from ZeroMQ. A client that has none gets its
    answer, however long that is and however much waits for others.
    """

    _budget: ClientBudget = attrs.field(
        init=False, factory=lambda: ClientBudget(CLIENT_BYTES, TOTAL_BYTES)
    )
    _waiting: dict[str, deque[tuple[int, Callable[[], bool]]]] = attrs.field(
        init=False, factory=dict
    )

    def check(self, client: str) -> None:
        """
        @raise LimitExceeded: If the client has to read answers before it gets another long one.
        """
        self._look(client)
        unread = self._budget.of(client)
        if unread and self._budget.room(client) <= 0:
            limits = f"at most {CLIENT_BYTES} bytes for one client, and {TOTAL_BYTES} for all"
            raise LimitExceeded("unread answers", unread, limits)

    def sent(self, client: str, size: int, taken: Callable[[], bool]) -> None:
        """
        Note a long answer.

        @param size: Its bytes.
        @param taken: Tells whether ZeroMQ no longer has it.
        """
        self._waiting.setdefault(client, deque()).append((size, taken))
        self._budget.change(client, size)
        self._look(client)
        # In turn, those of all clients are found out, also of those that ask no more.
        self._look(next(iter(self._waiting), client))

    def _look(self, client: str) -> None:
        waiting = self._waiting.pop(client, None)
        if waiting is None:
            return
        for _ in range(min(len(waiting), LOOKS)):
            size, taken = waiting.popleft()
            if taken():
                self._budget.change(client, -size)
            else:
                waiting.append((size, taken))
        if waiting:
            self._waiting[client] = waiting
