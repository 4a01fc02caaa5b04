"""
The command C{tbvast status}: the state of a bus, its subscriptions and engines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from rich import box
from rich.table import Table

from tbvast.bus_client.manage_client import ManageClient
from tbvast.cli.keys import KeyFiles
from tbvast.cli.terminal import Screen, escaped_text
from tbvast.errors import BusRefused, ProtocolInvalid
from tbvast.protocol import manage
from tbvast.protocol.topics import streams_of
from tbvast.stix.documents import JsonValue
from tbvast.values import HostPort
from tbvast.zeromq.sockets import Factory


def value_at(document: JsonValue, *path: str) -> JsonValue:
    """
    @return: The value at a path of keys in an untrusted document; C{None} if there is none.
    """
    for key in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(key)
    return document


def list_at(document: JsonValue, *path: str) -> list[JsonValue]:
    """
    @return: The list at a path of keys in an untrusted document; empty if there is none.
    """
    value = value_at(document, *path)
    return value if isinstance(value, list) else []


def format_value(value: JsonValue) -> str:
    """
    Format a value for a cell of a table.
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


def format_duration(seconds: object) -> str:
    """
    Format a time span with its largest unit; C{-} if it is not a number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return "-"
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole / size:.1f} {unit}"
    return f"{whole} s"


def plain_lines(status: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """
    @param status: The status, or a part of it.
    @param path: The path of that part.
    @return: The path of each value, and the value.
    """
    if isinstance(status, Mapping):
        for key, value in status.items():
            yield from plain_lines(value, f"{path}.{key}" if path else str(key))
    elif isinstance(status, list):
        for position, value in enumerate(status):
            yield from plain_lines(value, f"{path}.{position}")
    else:
        plain = isinstance(status, str)
        yield path, status if plain else msgspec.json.encode(status).decode()


def tables(status: JsonValue, bus: str) -> Iterator[Table]:
    """
    @param bus: The name of the bus.
    @return: The tables of a status.
    """
    yield _bus(status, bus)
    newest = value_at(status, "set_aside", "newest")
    if newest:
        title = f"{format_value(value_at(status, 'set_aside', 'count'))} set aside"
        columns = ("the newest: where it failed, and why",)
        yield _table(title, columns, [[format_value(newest)]])
    subscriptions = list_at(status, "subscriptions")
    if subscriptions:
        yield _subscriptions(subscriptions)
    reporting = [each for each in subscriptions if value_at(each, "report", "engine") is not None]
    if reporting:
        yield _engines(reporting)
    for each in reporting:
        listed = value_at(each, "report", "store", "unmatched_ids")
        if isinstance(listed, Mapping) and listed:
            yield _unmatched(format_value(value_at(each, "name")), listed)


def _table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Collection[str] = (),
) -> Table:
    table = Table(
        title=escaped_text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(
            escaped_text(column), justify="right" if column in numbers else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(escaped_text, row))
    return table


def _bus(status: JsonValue, bus: str) -> Table:
    rows = []
    for name, *paths in _BUS_ROWS:
        values = [value_at(status, *path) if path else None for path in paths]
        if any(values) or name in _BUS_ALWAYS:
            rows.append([name, *map(format_value, values)])
    numbers = ("indicators", "sightings")
    table = _table(f"Bus {bus}", ("", *numbers), rows, numbers)
    table.caption = escaped_text(
        f"tbvast {format_value(value_at(status, 'version'))},"
        f" up for {format_duration(value_at(status, 'uptime'))},"
        f" {format_value(value_at(status, 'journal', 'head'))} entries in the journal,"
        f" {format_value(value_at(status, 'connections', 'open'))} of at most"
        f" {format_value(value_at(status, 'connections', 'limit'))} connections"
    )
    table.caption_justify = "left"
    return table


_BUS_ALWAYS = ("in force, kept", "accepted per second, last minute")
_BUS_ROWS: Sequence[tuple[str, Sequence[str], Sequence[str]]] = (
    ("in force, kept", ("journal", "indicators"), ("journal", "sightings")),
    ("accepted per second, last minute", ("rates", "indicator"), ("rates", "sighting")),
    *(
        (
            f"{verdict} since the start",
            ("received", "indicator", verdict),
            ("received", "sighting", verdict),
        )
        for verdict in ("accepted", "repeated", "outdated", "unknown")
    ),
    *(
        (f"{verdict} since the start, of either", ("received", "message", verdict), ())
        for verdict in ("refused", "forbidden")
    ),
    ("set aside, of either", ("set_aside", "count"), ()),
)


def _subscriptions(subscriptions: Sequence[JsonValue]) -> Table:
    numbers = ("queued", "sent", "dropped")
    columns = ("name", "streams", "dialect", "receives", "silent", *numbers)
    rows = (
        (
            format_value(value_at(each, "name")),
            _streams(list_at(each, "topics")),
            format_value(value_at(each, "dialect")),
            format_value(value_at(each, "attached")),
            format_duration(value_at(each, "silent")),
            *(format_value(value_at(each, number)) for number in numbers),
        )
        for each in subscriptions
    )
    return _table(f"{len(subscriptions)} subscriptions", columns, rows, numbers)


def _streams(topics: Sequence[JsonValue]) -> str:
    streams = streams_of(topic for topic in topics if isinstance(topic, str))
    return ", ".join(sorted(stream.name.lower() for stream in streams)) or "-"


_ENGINE_ROWS = (
    ("engine", "engine", "name"),
    ("version", "engine", "version"),
    ("endpoint", "engine", "endpoint"),
    ("identity, in the names of its tables", "engine", "identity"),
    ("state", "engine", "state"),
    ("changes of its tables by others", "engine", "tables_changed", "count"),
    ("the newest of them", "engine", "tables_changed", "newest"),
    ("live match", "engine", "live"),
    ("live match running for, s", "engine", "live_for"),
    ("live match behind by, s", "engine", "behind"),
    ("searching missed events", "engine", "catching_up"),
    ("all matched up to", "engine", "covered"),
    ("matches", "engine", "matched"),
    ("searches of past events", "engine", "searches"),
    ("search in progress", "engine", "searching"),
    ("events with longer lists than are searched", "engine", "cut"),
    ("entries on their way to the engine", "engine", "pending"),
    ("indicators", "store", "indicators"),
    ("indicators not searched for yet", "store", "unsearched"),
    ("indicators not valid yet", "store", "not_yet"),
    ("indicators not matched, or not all of them", "store", "unmatched"),
    ("sightings made", "sightings", "made"),
    ("sightings sent", "sightings", "handed_on"),
    ("sightings waiting", "store", "unsent"),
    ("set aside", "store", "set_aside", "count"),
    ("the newest of them", "store", "set_aside", "newest"),
)


def _engines(subscriptions: Sequence[JsonValue]) -> Table:
    names = [format_value(value_at(each, "name")) for each in subscriptions]
    rows = (
        [label, *(format_value(value_at(each, "report", *path)) for each in subscriptions)]
        for label, *path in _ENGINE_ROWS
    )
    return _table("Bridges", ("", *names), rows)


def _unmatched(bridge: str, listed: Mapping[str, JsonValue]) -> Table:
    rows = (
        (id, "; ".join(map(str, reasons)) if isinstance(reasons, list) else format_value(reasons))
        for id, reasons in listed.items()
    )
    title = f"Not matched by {bridge}, or not all of it: the newest"
    return _table(title, ("indicator", "why"), rows)


async def status(
    reactor: Any, screen: Screen, bus: HostPort, keys: KeyFiles, as_json: bool
) -> bool:
    """
    Print the status of a bus. The bus, its keys and the errors about them are as for
    L{tbvast.cli.publish.publish}.

    @param as_json: Whether to print the reply of the bus itself.
    @return: C{True}.
    @raise BusRefused: If the bus does not know the status request.
    """
    options = keys.load()
    factory = Factory(reactor, linger=0)
    try:
        reply = await ask_status(ManageClient(reactor, factory, bus, options))
    finally:
        factory.shutdown()
    if reply is None:
        raise BusRefused("report its status", f"{bus} is a Threat Bus, which knows no such request")
    answer = manage.decode_reply(reply)
    if as_json:
        screen.write_json(msgspec.json.format(reply, indent=2))
    elif screen.is_terminal:
        for table in tables(answer, str(bus)):
            screen.render(table)
            screen.write_line("")
    else:
        for path, value in plain_lines(answer):
            screen.write_line(path, value)
    return True


async def ask_status(client: ManageClient) -> bytes | None:
    """
    @return: The status of a bus, a JSON object; C{None} if it is a Threat Bus, which has none.
    @raise BusUnreachable: If the bus does not answer.
    @raise BusRefused: If it refuses, or its reply is malformed.
    """
    reply = await client.ask(manage.encode_status())
    try:
        status = manage.decode_reply(reply).get("status")
    except ProtocolInvalid as e:
        raise BusRefused("report its status", e.expected) from e
    if status not in ("success", "unknown request"):
        raise BusRefused("report its status", str(status))
    return reply if status == "success" else None
