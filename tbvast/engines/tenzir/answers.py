"""
The replies of a Tenzir node's API. Pure.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tbvast.engines.error_text import error_summary
from tbvast.engines.json_text import decode_json
from tbvast.errors import EngineCallFailed, shown

_T = TypeVar("_T")


class Launched(msgspec.Struct):
    """
    The reply to the start of a pipeline.

    @ivar error: The reason why it was not started; C{None} if it was.
    """

    error: object = None


class Line(msgspec.Struct):
    """
    A result, as a string.
    """

    line: str


class Served(msgspec.Struct):
    """
    An entry of a page.

    @ivar data: The result.
    """

    data: Line


class Page(msgspec.Struct):
    """
    A page of a pipeline's results.

    @ivar next_continuation_token: The token for the next page; C{None} after the last one.
    @ivar state: The state of the pipeline.
    @ivar events: The results.
    @ivar error: The reason why there are no results; C{None} if there may be some.
    """

    next_continuation_token: str | None = None
    state: str = ""
    events: list[Served] = []
    error: object = None

    @property
    def lines(self) -> list[str]:
        """
        The results, in order.
        """
        return [event.data.line for event in self.events]


def decode_answer(call: str, text: bytes, kind: type[_T]) -> _T:
    """
    Decode a reply of the node.

    @param call: The name of the engine call in errors.
    @raise EngineCallFailed: If the reply is malformed.
    """
    try:
        return decode_json(text, kind)
    except msgspec.MsgspecError:
        raise EngineCallFailed(call, f"unexpected reply {shown(text)}") from None


def check_started(call: str, text: bytes) -> None:
    """
    Check the reply to the start of a pipeline.

    @raise EngineCallFailed: If the pipeline was not started.
    """
    reply = decode_answer(call, text, Launched)
    if reply.error is not None:
        raise EngineCallFailed(call, error_summary(str(reply.error)))


def decode_page(call: str, text: bytes) -> Page:
    """
    Decode a page of a pipeline's results.

    @raise EngineCallFailed: If the pipeline has failed.
    """
    page = decode_answer(call, text, Page)
    if page.error is not None or page.state == "failed":
        raise EngineCallFailed(call, error_summary(str(page.error or "it failed")))
    return page
