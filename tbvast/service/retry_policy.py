"""
Tells how long to wait before the next attempt.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.internet import backoffPolicy


def doubling(first: float, most: float) -> Callable[[int], float]:
    """
    @param first: The delay after the first failure, in seconds.
    @param most: The longest delay, in seconds.
    @return: The delay after a number of earlier failures in a row.
    """
    return backoffPolicy(first, most, 2.0, lambda: 0.0)
