"""
Keeps a sighting within the size and depth that every hop can carry.

An event may be longer than any document. Its sighting is sent all the same, without the
long parts, and says how many bytes are missing.
"""

from __future__ import annotations

import itertools

import msgspec

from tbvast.errors import DocumentInvalid
from tbvast.stix.documents import UNREADABLE, JsonObject, JsonValue
from tbvast.stix.limits import DEEPEST_INDICATOR, DEEPEST_SIGHTING, LARGEST_SIGHTING

CONTEXT = "x_threatbus_sighting_context"
INDICATOR = "x_threatbus_indicator"

CONTEXT_LEFT_OUT = "x_tbvast_context_left_out"
INDICATOR_LEFT_OUT = "x_tbvast_indicator_left_out"
"""
The properties that say how many bytes of the event or the indicator are missing.
"""

ROOM = 256 * 1024
"""
Bytes of headroom: a bus may add properties to a sighting, or write some in a longer form.
"""

LONGEST_TEXT = 1024
MOST_ITEMS = 100
DEEPEST_CONTEXT = DEEPEST_SIGHTING - 4
"""
The most characters of a text, and items of a list or an object, in too long an event; and the most
levels of any event.
"""


def encode_fitting(document: JsonObject, largest: int = LARGEST_SIGHTING - ROOM) -> bytes:
    """
    Encode a sighting. Leave out the parts of its context that are too long or too deep, and
    its indicator if that is not enough.

    @param document: The sighting; its context is a C{dict}, and its indicator, if it has
        one, a C{msgspec.Raw}. This function changes it.
    @param largest: The most bytes.
    @raise DocumentInvalid: If it is too long even then.
    """
    raw = msgspec.json.encode(document)
    # Depth takes as many brackets. Most sightings have few, and a count is cheap.
    if len(raw) <= largest and raw.count(b"[") + raw.count(b"{") <= DEEPEST_INDICATOR:
        return raw
    indicator = document.get(INDICATOR)
    if indicator is not None and _is_deeper(msgspec.Raw(indicator), DEEPEST_INDICATOR):
        _leave_indicator_out(document)
        raw = msgspec.json.encode(document)
    context = document.get(CONTEXT, {})
    if len(raw) <= largest and not _is_deeper(context, DEEPEST_CONTEXT):
        return raw
    whole = len(msgspec.json.encode(context))
    for kept in (_cut(context, DEEPEST_CONTEXT), _outline(context), {}):
        document[CONTEXT] = kept
        document[CONTEXT_LEFT_OUT] = whole - len(msgspec.json.encode(kept))
        raw = msgspec.json.encode(document)
        if len(raw) <= largest:
            return raw
    if INDICATOR in document:
        _leave_indicator_out(document)
        raw = msgspec.json.encode(document)
    if len(raw) > largest:
        raise DocumentInvalid("length", len(raw), f"at most {largest} bytes")
    return raw


def fitted(raw: bytes) -> bytes:
    """
    Encode an encoded sighting again with L{encode_fitting}. Anything else stays unchanged.
    """
    try:
        document: JsonObject = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        document[CONTEXT] = msgspec.json.decode(document[CONTEXT], type=JsonObject)
        return encode_fitting(document)
    except (*UNREADABLE, KeyError):
        return raw


def _leave_indicator_out(document: JsonObject) -> None:
    document[INDICATOR_LEFT_OUT] = len(bytes(document.pop(INDICATOR)))


def _is_deeper(value: JsonValue, deepest: int) -> bool:
    if isinstance(value, msgspec.Raw):
        try:
            value = msgspec.json.decode(value)
        except UNREADABLE:
            return True
    level = [value]
    for _ in range(deepest + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _cut(value: JsonValue, deepest: int) -> JsonValue:
    """
    A value with its texts, lists and objects cut, and without the parts that nest too deep.
    """
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if isinstance(value, dict | list) and not deepest:
        return None
    if isinstance(value, dict):
        return {
            name[:LONGEST_TEXT]: _cut(each, deepest - 1)
            for name, each in itertools.islice(value.items(), MOST_ITEMS)
        }
    if isinstance(value, list):
        return [_cut(each, deepest - 1) for each in value[:MOST_ITEMS]]
    return value


def _outline(context: JsonObject) -> JsonObject:
    return {
        name[:LONGEST_TEXT]: _cut(value, 0)
        for name, value in itertools.islice(context.items(), MOST_ITEMS)
        if not isinstance(value, dict | list)
    }
