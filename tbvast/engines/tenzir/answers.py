"""
The replies of a Tenzir node's API. Pure.
"""

from __future__ import annotations

import msgspec


class Launched(msgspec.Struct):
    """
    The reply to a pipeline start.
    """

    id: str = ""
    error: object = None


class Line(msgspec.Struct):
    """
    One result, as a string.
    """

    line: str


class Served(msgspec.Struct):
    """
    @ivar data: A result.
    """

    data: Line


class Page(msgspec.Struct):
    """
    A page of a pipeline's results.

    @ivar next_continuation_token: The token for the next page; C{None} after the last one.
    @ivar state: The state of the pipeline.
    """

    next_continuation_token: str | None = None
    state: str = ""
    events: list[Served] = []
    error: object = None
