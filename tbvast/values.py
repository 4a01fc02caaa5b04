"""
What travels between a bridge and its engine.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tbvast.stix.observables import Kind, Observable


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
