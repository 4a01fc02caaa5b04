"""
Removals of indicators whose documents are no longer readable.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from tbvast.errors import Invalid
from tbvast.stix.admission import admit_indicator
from tbvast.stix.documents import UNREADABLE, from_microseconds, microseconds, timestamp
from tbvast.stix.indicators import STIX, Indicator, Operation, encode_indicator
from tbvast.stix.limits import FIRST_YEAR
from tbvast.stix.pattern_grammar import parse


class _Essentials(msgspec.Struct):
    pattern: str
    pattern_type: str = STIX


_decoder = msgspec.json.Decoder(_Essentials)

_FIRST = microseconds(datetime(FIRST_YEAR, 1, 1, tzinfo=UTC))


def bare_removal(id: str, version: int, body: bytes = b"") -> Indicator:
    """
    Build the removal of an indicator from little more than its id. Every subscriber can
    read it.

    @param id: The indicator's STIX id.
    @param version: The version, in microseconds since the epoch.
    @param body: The indicator's document. If its pattern is readable, the removal repeats
        it; otherwise the pattern contains only the id, and matches nothing.
    @raise Invalid: If the id may not enter the bus, because old clients crash on it. It is
        damaged, or from a journal of version 0.1.0.
    """
    pattern, pattern_type = f"[indicator:id = '{id}']", STIX
    try:
        found = _decoder.decode(body)
        if found.pattern_type == STIX:
            parse(found.pattern)
        if found.pattern:
            pattern, pattern_type = found.pattern, found.pattern_type
    except (*UNREADABLE, Invalid):
        pass
    time = timestamp(from_microseconds(max(version, _FIRST)))
    raw = encode_indicator(
        id,
        time,
        pattern=pattern,
        pattern_type=pattern_type,
        valid_from=time,
        x_threatbus_update=Operation.REMOVE.value,
    )
    return msgspec.structs.replace(admit_indicator(raw), modified=version)
