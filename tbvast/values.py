"""
Values that cross the seams between packages.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple, Self

import msgspec

from tbvast.stix.documents import JsonObject as JsonObject
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


class PageRequest(msgspec.Struct, frozen=True, array_like=True):
    """
    A request for the oldest waiting sightings.

    @ivar count: The most to return.
    @ivar size: The most bytes of documents to return; a longer one is returned alone.
    @ivar without: The keys of those to leave out.
    """

    count: int
    size: int
    without: tuple[str, ...] = ()


class WaitingSighting(NamedTuple):
    """
    A sighting that waits for its receiver.

    @ivar key: The key by which the backlog finds it.
    @ivar raw: The document.
    """

    key: str
    raw: bytes


class Received(msgspec.Struct, frozen=True, gc=False):
    """
    A message that a socket received.

    @ivar user: The sender: its public key, in Z85, on a socket with CURVE; else its network
        address if the socket names peers by it, or C{""}.
    @ivar frames: The frames; on a ROUTER socket the peer's routing frames come first.
    @ivar descriptor: The descriptor of the sender's connection, on a socket that tells its
        connections apart; empty if it is unknown.
    """

    user: str
    frames: list[bytes]
    descriptor: str = ""


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """
    A row of the engine's tables: an observable and its indicators.

    @ivar observable: The observable.
    @ivar ids: STIX ids of the indicators that contain the observable; never empty.
    @ivar joint: Whether one of these indicators requires other observables in the same event.
        Only searches use it: they must find an event with several of these observables even if
        each of them has exceeded the limit.
    """

    observable: Observable
    ids: tuple[str, ...]
    joint: bool = False


class Changes(msgspec.Struct, frozen=True, array_like=True):
    """
    Changes of the entries that the engine should hold.

    @ivar number: The number of the change; a later one has a higher number.
    @ivar write: New entries, and entries with other ids than before.
    @ivar erase: Observables that no indicator has any more.
    @ivar unmatched: The reasons why indicators are not or only partly matched, by id.
    """

    number: int
    write: tuple[Entry, ...] = ()
    erase: tuple[Observable, ...] = ()
    unmatched: dict[str, tuple[str, ...]] = {}


class Unsearched(msgspec.Struct, frozen=True):
    """
    Indicators for which no past events have been searched.

    @ivar ids: Their STIX ids.
    @ivar entries: Their observables. A network also has the ids of those that cover it.
    """

    ids: list[str]
    entries: list[Entry]


class Hit(msgspec.Struct, frozen=True):
    """
    A field of an event that holds an observable. Kind, value and ids are as in the L{Entry}.

    @ivar field: The field's path in the event, such as C{"dns.rrname"}.
    """

    field: str
    kind: Kind
    value: str
    ids: tuple[str, ...]


class Match(msgspec.Struct, frozen=True):
    """
    An event that holds at least one observable.

    @ivar event: The whole event, as the engine exports it.
    @ivar schema: The event's schema in the engine, such as C{"suricata.dns"}.
    @ivar hits: The hits; at least one. If an indicator requires several observables together,
        the hits include all of these that the event holds.
    """

    event: JsonObject
    schema: str
    hits: tuple[Hit, ...]


class Moment(msgspec.Struct, frozen=True):
    """
    The time of an import, by two clocks.

    @ivar imported: The time by the engine's clock, in seconds since the epoch.
    @ivar awake: The seconds since this machine's start, sleep included; not after the import.
    @ivar ahead: The least number of seconds by which the engine's clock was ahead of C{awake}.
    """

    imported: float
    awake: float
    ahead: float


class Progress(msgspec.Struct, frozen=True):
    """
    The progress of a live match.

    @ivar heard: The newest import that the match has received; C{None} if unknown.
    @ivar covered: Everything that was imported after the start of the match and before this
        moment has been matched with whole tables and delivered; C{None} if that is not known
        yet.
    @ivar behind: The last measured seconds from an import to its match.
    @ivar lowest: The smallest C{ahead} since C{covered}, as that clock may be set back.
    """

    heard: Moment | None = None
    covered: Moment | None = None
    behind: float = 0.0
    lowest: float = 0.0


class Covered(msgspec.Struct, frozen=True):
    """
    The point up to which everything has been matched, and its sightings are stored.

    @ivar until: The earliest date of later imports: seconds since the epoch, by the engine's clock.
    @ivar awake: The point, in seconds since the machine's start.
    @ivar boot: The id of that start of the machine; C{""} if it is not known.
    """

    until: float
    awake: float = 0.0
    boot: str = ""


class EngineIdentity(msgspec.Struct, frozen=True):
    """
    The identity of an engine.

    @ivar name: The name, such as C{"tenzir"}.
    @ivar version: The version, such as C{"6.20.0"}.
    @ivar endpoint: The address of the node, C{HOST:PORT}.
    """

    name: str
    version: str
    endpoint: str
