"""
Limits for each client and for all.
"""

from __future__ import annotations

from collections import Counter

import attrs


@attrs.define(eq=False)
class ClientBudget:
    """
    An amount of which each client may use a part.

    @param client_limit: The most that one client may use.
    @param limit: The most that all together may use.
    @ivar used: The amount that all use.
    """

    _client_limit: int
    _limit: int
    used: int = attrs.field(init=False, default=0)
    _by_client: Counter[str] = attrs.field(init=False, factory=Counter)

    def of(self, client: str) -> int:
        """
        @return: The amount that the client uses.
        """
        return self._by_client[client]

    def change(self, client: str, amount: int) -> None:
        """
        @param amount: The amount that the client uses in addition; negative if it uses less.
        """
        self.used += amount
        self._by_client[client] += amount
        if not self._by_client[client]:
            del self._by_client[client]

    def room(self, client: str) -> int:
        """
        @return: The amount that the client may use in addition; negative if it uses too much.
        """
        return min(self._client_limit - self._by_client[client], self._limit - self.used)
