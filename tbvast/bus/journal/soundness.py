"""
Checks whether a document of the journal can be delivered.
"""

from __future__ import annotations

from zlib import crc32

from tbvast.protocol.frames import stream_of
from tbvast.protocol.topics import Stream
from tbvast.stix.admission import admit
from tbvast.stix.limits import LARGEST_INDICATOR, LARGEST_SIGHTING

MOST_BYTES = {Stream.INTEL: LARGEST_INDICATOR, Stream.SIGHTING: LARGEST_SIGHTING}
"""
The most bytes of a document: subscribers may refuse a frame with a longer one.
"""


def damage(stream: Stream, body: bytes, crc: int) -> str | None:
    """
    @param crc: The checksum that was written with the document.
    @return: The reason not to deliver the document; C{None} if it is sound.
    """
    if not isinstance(body, bytes) or crc32(body) != crc:
        return "damaged: the checksum is not that of the document"
    if len(body) > MOST_BYTES[stream]:
        return f"of {len(body)} bytes, too long to be sent"
    return None


def check_document(stream: Stream, id: str, body: bytes) -> None:
    """
    Check that a document without a checksum would be accepted today.

    @param id: The id under which it was accepted.
    @raise Exception: If it would not; the text gives the reason.
    """
    if (found := damage(stream, body, crc32(body))) is not None:
        raise ValueError(found)
    item = admit(body)
    if stream_of(item) is not stream or item.id != id:
        raise ValueError(f"it is the document of {item.id}")
