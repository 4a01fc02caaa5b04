"""
What a Tenzir node answers to calls of its interface. Pure.
"""

from __future__ import annotations

import msgspec


class Launched(msgspec.Struct):
    """
    A pipeline was started, or not.
    """

    id: str = ""
    error: object = None


class Line(msgspec.Struct):
    """
    One result, as one text.
    """

    line: str


class Served(msgspec.Struct):
    """
    @ivar data: A result.
    """

    data: Line


class Page(msgspec.Struct):
    """
    Results of a pipeline.

    @ivar next_continuation_token: For the page that follows; C{None} if none does.
    @ivar state: That of the pipeline.
    """

    next_continuation_token: str | None = None
    state: str = ""
    events: list[Served] = []
    error: object = None
