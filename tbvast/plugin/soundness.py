"""
Whether a document that is in the journal can be handed out.
"""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import msgspec

from tbvast.errors import Invalid
from tbvast.intel.indicators import decode_indicator
from tbvast.intel.sightings import decode_sighting
from tbvast.stix.limits import LARGEST_INDICATOR, LARGEST_SIGHTING
from tbvast.wire.frames import Item, render
from tbvast.wire.topics import Dialect, Stream

MOST_BYTES = {Stream.INTEL: LARGEST_INDICATOR, Stream.SIGHTING: LARGEST_SIGHTING}
"""
The most bytes of a document: a frame with a longer one around it may be refused.
"""

_DECODERS: dict[Stream, Callable[[bytes], Item]] = {
    Stream.INTEL: decode_indicator,
    Stream.SIGHTING: decode_sighting,
}


def damage(stream: Stream, body: bytes, crc: int) -> str | None:
    """
    @param crc: The checksum that was written with it.
    @return: Why a document must not be handed out; C{None} if it may.
    """
    if not isinstance(body, bytes) or crc32(body) != crc:
        return "damaged: the checksum is not that of the document"
    if len(body) > MOST_BYTES[stream]:
        return f"of {len(body)} bytes, too long to be sent"
    return None


def check_document(stream: Stream, id: str, body: bytes) -> None:
    """
    Check a document that has no checksum: whether it would be accepted now, and could be
    sent to everybody.

    @param id: The id that it was accepted with.
    @raise Exception: If not; it says why.
    """
    if (found := damage(stream, body, crc32(body))) is not None:
        raise ValueError(found)
    item = _DECODERS[stream](body)
    if item.id != id:
        raise ValueError(f"it is the document of {item.id}")
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise Invalid("document", body, f"JSON that everybody can read ({e})") from e
    render(Dialect.STIX2, item)
