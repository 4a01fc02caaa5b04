"""
Topics: which stream a name means, and which dialect it asks for.
"""

from __future__ import annotations

import enum
import secrets
import string
from collections.abc import Iterable

_LETTERS = string.ascii_lowercase
_VAST_RANDOM = 10


STIX2_TOPIC_LENGTH = 32
"""
Characters in the topic of a stix2 subscription, all of them random.
"""


class Stream(enum.Enum):
    """
    What flows over the bus; the value is the type that a stix2 frame names.
    """

    INTEL = b"indicator"
    SIGHTING = b"sighting"

    # Enum's own is a call of a method, for every look into a dictionary.
    __hash__ = object.__hash__


class Dialect(enum.StrEnum):
    """
    How a subscription is spoken to.
    """

    STIX2 = "stix2"
    VAST = "vast"


STREAM_TOPICS: dict[Stream, tuple[str, ...]] = {
    Stream.INTEL: ("stix2/indicator", "threatbus/intel"),
    Stream.SIGHTING: ("stix2/sighting", "threatbus/sighting"),
}
"""
The names of each stream.
"""


def streams_of(topics: Iterable[str]) -> frozenset[Stream]:
    """
    The streams that a subscription to topics gets: a topic is a prefix of the
    streams' names, as it was for Threat Bus, so that an unknown one gets none.
    """
    wanted = tuple(topics)
    return frozenset(
        stream
        for stream, names in STREAM_TOPICS.items()
        if any(name.startswith(topic) for topic in wanted for name in names)
    )


def dialect_of(topic: str) -> Dialect:
    """
    The dialect that a topic asks for.
    """
    return Dialect.VAST if topic.startswith("threatbus/") else Dialect.STIX2


def new_topic(topic: str, dialect: Dialect) -> str:
    """
    A topic for one subscription, which nobody else can guess.

    @param topic: What was asked for; the vast dialect repeats it.
    """
    if dialect is Dialect.VAST:
        return topic + _random(_VAST_RANDOM)
    return _random(STIX2_TOPIC_LENGTH)


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))
