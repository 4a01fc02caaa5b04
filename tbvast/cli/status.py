"""
C{tbvast status}: how a bus is doing, and who has subscribed to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from rich import box
from rich.table import Table

from tbvast.bus_client.manage_client import ManageClient
from tbvast.cli.keys import KeyFiles
from tbvast.cli.terminal import Screen, styled
from tbvast.errors import BusRefused, ProtocolInvalid
from tbvast.protocol import manage
from tbvast.protocol.topics import streams_of
from tbvast.settings import HostPort
from tbvast.zeromq.sockets import Factory

_STREAMS = {"INTEL": "intel", "SIGHTING": "sighting"}


def at(document: Any, *path: str) -> Any:
    """
    A value inside a document from elsewhere.

    @return: L{None} if there is no such value.
    """
    for key in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(key)
    return document


def items(document: Any, *path: str) -> list[Any]:
    """
    A list inside a document from elsewhere; empty if there is no such list.
    """
    value = at(document, *path)
    return value if isinstance(value, list) else []


def shown(value: Any) -> str:
    """
    A value as a cell shows it.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items()) or "-"
    return str(value) or "-"


def age(seconds: Any) -> str:
    """
    A time span, for people.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return "-"
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole / size:.1f} {unit}"
    return f"{whole} s"


def lines(status: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """
    A status as plain lines: the path of a value, and the value.
    """
    if isinstance(status, Mapping):
        for key, value in status.items():
            yield from lines(value, f"{path}.{key}" if path else str(key))
    elif isinstance(status, list):
        for position, value in enumerate(status):
            yield from lines(value, f"{path}.{position}")
    else:
        plain = isinstance(status, str)
        yield path, status if plain else msgspec.json.encode(status).decode()


def tables(status: Any, bus: str) -> Iterator[Table]:
    """
    A status as tables.

    @param bus: What to call the bus.
    """
    yield _bus(status, bus)
    newest = at(status, "set_aside", "newest")
    if newest:
        yield _set_aside(at(status, "set_aside", "count"), shown(newest))
    subscriptions = items(status, "subscriptions")
    if subscriptions:
        yield _subscriptions(subscriptions)
    reporting = [each for each in subscriptions if at(each, "report", "engine") is not None]
    if reporting:
        yield _engines(reporting)
    for each in reporting:
        listed = at(each, "report", "store", "unmatched_ids")
        if isinstance(listed, Mapping) and listed:
            yield _unmatched(shown(at(each, "name")), listed)


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(
        title=styled(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(
            styled(column), justify="right" if column in numbers else "left", overflow="fold"
        )
    return table


def _bus(status: Any, bus: str) -> Table:
    table = _table(f"Bus {bus}", "", "indicators", "sightings", numbers=("indicators", "sightings"))
    table.caption = styled(
        f"tbvast {shown(at(status, 'version'))}, up for {age(at(status, 'uptime'))},"
        f" {shown(at(status, 'journal', 'head'))} entries in the journal"
    )
    table.caption_justify = "left"
    rows = [
        ("in force, kept", at(status, "journal", "indicators"), at(status, "journal", "sightings")),
        (
            "accepted per second, last minute",
            at(status, "rates", "indicator"),
            at(status, "rates", "sighting"),
        ),
    ]
    for verdict in ("accepted", "repeated", "outdated", "unknown"):
        counts = [at(status, "received", stream, verdict) for stream in ("indicator", "sighting")]
        if any(counts):
            rows.append((f"{verdict} since the start", *counts))
    for verdict in ("refused", "forbidden"):
        count = at(status, "received", "message", verdict)
        if count:
            rows.append((f"{verdict} since the start, of either", count, None))
    aside = at(status, "set_aside", "count")
    if aside:
        rows.append(("set aside, of either", aside, None))
    for name, *values in rows:
        table.add_row(styled(name), *(styled(shown(value)) for value in values))
    return table


def _set_aside(count: Any, newest: str) -> Table:
    table = _table(f"{shown(count)} set aside", "the newest: where it failed, and why")
    table.add_row(styled(newest))
    return table


def _subscriptions(subscriptions: Sequence[Any]) -> Table:
    numbers = ("queued", "sent", "dropped")
    table = _table(
        f"{len(subscriptions)} subscriptions",
        *("name", "streams", "dialect", "receives", "silent", *numbers),
        numbers=numbers,
    )
    for each in subscriptions:
        cells = (
            shown(at(each, "name")),
            _streams(items(each, "topics")),
            shown(at(each, "dialect")),
            shown(at(each, "attached")),
            age(at(each, "silent")),
            *(shown(at(each, number)) for number in numbers),
        )
        table.add_row(*map(styled, cells))
    return table


def _streams(topics: Sequence[Any]) -> str:
    streams = streams_of(topic for topic in topics if isinstance(topic, str))
    return ", ".join(sorted(_STREAMS[stream.name] for stream in streams)) or "-"


_ENGINE_ROWS = (
    ("engine", "engine", "name"),
    ("version", "engine", "version"),
    ("endpoint", "engine", "endpoint"),
    ("state", "engine", "state"),
    ("live match", "engine", "live"),
    ("live match running for, s", "engine", "live_for"),
    ("live match behind by, s", "engine", "behind"),
    ("searching what was missed", "engine", "catching_up"),
    ("all matched up to", "engine", "covered"),
    ("matches", "engine", "matched"),
    ("searches of past events", "engine", "searches"),
    ("search in progress", "engine", "searching"),
    ("events with longer lists than are looked at", "engine", "cut"),
    ("entries on their way to the engine", "engine", "pending"),
    ("indicators", "store", "indicators"),
    ("indicators not searched for yet", "store", "unsearched"),
    ("indicators not valid yet", "store", "not_yet"),
    ("indicators not matched, or not all of them", "store", "unmatched"),
    ("sightings made", "sightings", "made"),
    ("sightings handed on", "sightings", "handed_on"),
    ("sightings waiting", "store", "unsent"),
    ("set aside", "store", "set_aside", "count"),
    ("the newest of them", "store", "set_aside", "newest"),
)


def _engines(subscriptions: Sequence[Any]) -> Table:
    table = _table("Bridges", "", *(shown(at(each, "name")) for each in subscriptions))
    for label, *path in _ENGINE_ROWS:
        cells = [shown(at(each, "report", *path)) for each in subscriptions]
        table.add_row(label, *map(styled, cells))
    return table


async def status(
    reactor: Any, screen: Screen, bus: HostPort, keys: KeyFiles, as_json: bool
) -> bool:
    """
    @return: C{True}.
    @raise BusUnreachable: If the bus does not answer.
    @raise BusRefused: If it is one that has no status.
    """
    options = keys.load()
    factory = Factory(reactor, linger=0)
    try:
        reply = await ManageClient(reactor, factory, bus, options).ask(manage.encode_status())
    finally:
        factory.shutdown()
    try:
        answer = manage.decode_reply(reply)
    except ProtocolInvalid as e:
        raise BusRefused("tell its status", e.expected) from e
    if answer.get("status") == "unknown request":
        raise BusRefused("tell its status", f"{bus} is a Threat Bus, which knows no such request")
    if answer.get("status") != "success":
        raise BusRefused("tell its status", str(answer.get("status")))
    if as_json:
        screen.put_json(msgspec.json.format(reply, indent=2))
    elif screen.rich:
        for table in tables(answer, str(bus)):
            screen.show(table)
            screen.tell("")
    else:
        for path, value in lines(answer):
            screen.put(path, value)
    return True


def _unmatched(bridge: str, listed: Mapping[str, Any]) -> Table:
    table = _table(f"Not matched by {bridge}, or not all of it: the newest", "indicator", "why")
    for id, reasons in listed.items():
        why = "; ".join(map(str, reasons)) if isinstance(reasons, list) else shown(reasons)
        table.add_row(styled(id), styled(why))
    return table
