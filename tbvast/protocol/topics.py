"""
Topics: the streams and the dialect that a name stands for, and new random topics.
"""

from __future__ import annotations

import enum
import secrets
import string
from collections.abc import Iterable

_VAST_RANDOM = 10

STIX2_TOPIC_LENGTH = 32
"""
The length of a stix2 subscription's own topic, in random characters.
"""


class Stream(enum.Enum):
    """
    A stream of the bus; the value is the type that a stix2 frame names.
    """

    INTEL = b"indicator"
    SIGHTING = b"sighting"

    # Enum's own __hash__ is a Python method, which slows down every dictionary access.
    __hash__ = object.__hash__


class Dialect(enum.StrEnum):
    """
    The format in which a subscription receives items.
    """

    STIX2 = "stix2"
    VAST = "vast"


STREAM_TOPICS: dict[Stream, tuple[str, ...]] = {
    Stream.INTEL: ("stix2/indicator", "threatbus/intel"),
    Stream.SIGHTING: ("stix2/sighting", "threatbus/sighting"),
}
"""
The topics of each stream.
"""


def streams_of(topics: Iterable[str]) -> frozenset[Stream]:
    """
    @param topics: Requested topics. As in Threat Bus, a topic selects the streams whose
        names it is a prefix of; an unknown one selects none.
    @return: The selected streams.
    """
    wanted = tuple(topics)
    return frozenset(
        stream
        for stream, names in STREAM_TOPICS.items()
        if any(name.startswith(topic) for topic in wanted for name in names)
    )


def dialect_of(topic: str) -> Dialect:
    """
    @return: The dialect that a topic requests.
    """
    return Dialect.VAST if topic.startswith("threatbus/") else Dialect.STIX2


def new_topic(topic: str, dialect: Dialect) -> str:
    """
    Make a topic for one subscription, which no other client can guess.

    @param topic: The requested topic; in the vast dialect the new one begins with it.
    """
    beginning, length = "", STIX2_TOPIC_LENGTH
    if dialect is Dialect.VAST:
        beginning, length = topic, _VAST_RANDOM
    return beginning + "".join(secrets.choice(string.ascii_lowercase) for _ in range(length))
