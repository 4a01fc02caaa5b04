"""
Decodes the messages that a subscriber of the stix2 dialect or of tbvast/1 receives.
"""

from __future__ import annotations

from collections.abc import Callable

from tbvast.errors import ProtocolInvalid
from tbvast.protocol.frames import Item
from tbvast.protocol.replay import Delivery, decode_replay
from tbvast.protocol.topics import Stream
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.sightings import decode_sighting

_ITEMS: dict[bytes, Callable[[bytes], Item]] = {
    Stream.INTEL.value: decode_indicator,
    Stream.SIGHTING.value: decode_sighting,
}


def decode_delivery(topic: bytes, message: list[bytes]) -> Item | Delivery:
    """
    Decode a message of the pub endpoint.

    @param topic: The subscription's own topic.
    @return: An item, from a bus that speaks stix2 only, or a delivery of tbvast/1. A
        delivery lists its unreadable items.
    @raise Invalid: If the message is not one frame of that topic, or its payload does not
        match its type.
    """
    if len(message) != 1 or not message[0].startswith(topic):
        raise ProtocolInvalid("message", b" ".join(message), "a frame of this subscription")
    kind, _, payload = message[0][len(topic) :].partition(b" ")
    decode = _ITEMS.get(kind)
    if decode is not None:
        return decode(payload)
    delivery = decode_replay(kind, payload)
    if delivery is None:
        raise ProtocolInvalid("type", kind, "a type of the pub endpoint")
    return delivery
