"""
Values that cross the seams between packages.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from typing import Any, Self

import msgspec

from tbvast.stix.observables import Kind, Observable

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")


def is_host(text: str) -> bool:
    """
    Whether C{text} is an IP address or can be a host name.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None
    return True


class HostPort(msgspec.Struct, frozen=True):
    """
    A TCP endpoint.

    @ivar host: An IP address, without brackets, or a host name.
    @ivar port: From 1 to 65535.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        @param text: C{HOST:PORT}; an IPv6 address stands in square brackets.
        @raise ValueError: If C{text} is malformed.
        """
        host, colon, port = text.rpartition(":")
        if not colon or re.fullmatch("[0-9]{1,5}", port) is None or not 1 <= int(port) <= 65535:
            raise ValueError("the port is missing or not from 1 to 65535")
        bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if bracketed else host
        if bracketed != (":" in bare) or not is_host(bare):
            raise ValueError("the host is missing or malformed")
        return cls(bare, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Position(msgspec.Struct, frozen=True):
    """
    A subscriber's position in a bus's journal.

    @ivar plugin: The bus's identity.
    @ivar number: The number of the last item that the subscriber applied.
    """

    plugin: str
    number: int


class Received(msgspec.Struct, frozen=True, gc=False):
    """
    A message that a socket received.

    @ivar user: The sender: its public key, in Z85, on a socket with CURVE; else its network
        address if the socket names peers by it, or C{""}.
    @ivar frames: The frames; on a ROUTER socket the peer's routing frames come first.
    """

    user: str
    frames: list[bytes]


class MatchType(enum.StrEnum):
    """
    How an event was found; the value is C{x_threatbus_match_type}.
    """

    LIVE = "LIVE"
    RETRO = "RETRO"


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    A row of the engine's tables: an observable and who wants to know of it.

    @ivar ids: STIX ids of the indicators that hold the observable; never empty.
    @ivar joint: Whether it is not enough for one of these indicators, but has to be in
        one event with others. Only a search asks: it must not leave out an event with
        several because there were too many with each.
    """

    observable: Observable
    ids: tuple[str, ...]
    joint: bool = False


class Hit(msgspec.Struct, frozen=True):
    """
    One field of an event that holds an observable.

    @ivar field: The field's path in the event, e.g. C{"dns.rrname"}.
    @ivar kind: The observable's kind, as it was given in the L{Entry}.
    @ivar value: The observable's value, as it was given in the L{Entry}.
    @ivar ids: The ids, as they were given in the L{Entry}.
    """

    field: str
    kind: Kind
    value: str
    ids: tuple[str, ...]


class Match(msgspec.Struct, frozen=True):
    """
    An event that holds at least one observable. Of those that an indicator needs
    together, all that the event holds are among the hits.

    @ivar event: The whole event, as the engine exports it.
    @ivar schema: The event's schema in the engine, e.g. C{"suricata.dns"}.
    @ivar hits: At least one.
    """

    event: dict[str, Any]
    schema: str
    hits: tuple[Hit, ...]


class Moment(msgspec.Struct, frozen=True):
    """
    A moment of an engine's imports, by two clocks.

    @ivar imported: When, by the engine's date, in seconds since the epoch.
    @ivar awake: When, in seconds since this machine's start, sleep included; no later
        than the import.
    @ivar ahead: By how much the engine's date was ahead of C{awake}: at least.
    """

    imported: float
    awake: float
    ahead: float


class Progress(msgspec.Struct, frozen=True):
    """
    How far a live match has got.

    @ivar heard: The newest moment of which it has been seen that the match still hears;
        C{None} if the engine cannot tell.
    @ivar covered: All that was imported after the match had begun, and before this
        moment, has been matched and handed out; C{None} if that is not known yet.
    @ivar behind: Seconds from an import to the match: what they were last.
    @ivar lowest: The smallest C{ahead} since C{covered}: the date may have been set back.
    """

    heard: Moment | None = None
    covered: Moment | None = None
    behind: float = 0.0
    lowest: float = 0.0


class Covered(msgspec.Struct, frozen=True):
    """
    Up to where everything has been matched, and its sightings are remembered.

    @ivar until: The earliest date that an import since then can have; in seconds since
        the epoch, by the engine's clock.
    @ivar awake: The moment, in seconds since the machine's start.
    @ivar boot: Which start of the machine that was; C{""} if it is not known.
    """

    until: float
    awake: float = 0.0
    boot: str = ""


class EngineIdentity(msgspec.Struct, frozen=True):
    """
    @ivar name: E.g. C{"tenzir"}.
    @ivar version: E.g. C{"6.20.0"}.
    @ivar endpoint: C{HOST:PORT}.
    """

    name: str
    version: str
    endpoint: str
