"""
Applies an operation to many items at once, and leaves out those for which it fails.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_OF_AN_ITEM = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
)


def is_of_an_item(error: BaseException) -> bool:
    """
    Whether the item itself may have caused an error. Errors of the disk, of the file or of
    another process that uses the file have other causes.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _OF_AN_ITEM
    return isinstance(error, Exception) and not isinstance(error, OSError | MemoryError)


def sift(
    items: Sequence[T], do: Callable[[Sequence[T]], R]
) -> tuple[list[R], list[tuple[T, Exception]]]:
    """
    Apply an operation to items, in order and to as many at once as possible.

    @param do: The operation on some of the items. It changes nothing if it raises.
    @return: The results of C{do}, and the items for which it fails even alone, with errors.
    @raise Exception: An error of C{do} that no item caused.
    """
    try:
        return [do(items)], []
    except Exception as e:
        if not items or not is_of_an_item(e):
            raise
        if len(items) == 1:
            return [], [(items[0], e)]
    half = len(items) // 2
    done, failed = sift(items[:half], do)
    more_done, more_failed = sift(items[half:], do)
    return done + more_done, failed + more_failed
