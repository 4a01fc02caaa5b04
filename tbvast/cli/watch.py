"""
The command C{tbvast watch}: indicators and sightings as they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

import attrs
import msgspec
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred

from tbvast.bus_client.subscription import BusSubscription, Listener, SubscriptionRequest
from tbvast.cli.keys import KeyFiles
from tbvast.cli.terminal import Screen
from tbvast.errors import Invalid, PatternUnmatchable
from tbvast.protocol.frames import Item
from tbvast.protocol.topics import STREAM_TOPICS, Stream
from tbvast.service.escaping import escape_controls
from tbvast.stix.documents import JsonObject, from_microseconds, json_object, timestamp
from tbvast.stix.indicators import STIX, Indicator
from tbvast.stix.pattern_conditions import matchable
from tbvast.values import HostPort
from tbvast.zeromq.sockets import Factory

STREAMS: Mapping[str, Stream] = {stream.name.lower(): stream for stream in Stream}
"""
The streams, by the names that users give them.
"""

HEARTBEAT_SECONDS = 5.0

MAX_LISTED_VALUES, MAX_REMEMBERED_MESSAGES = 5, 100_000
"""
The maximum numbers of observables listed for one message, and of messages remembered, because a
bus that was restarted sends some again.
"""

_STYLES = {
    "ADD": "green",
    "EDIT": "yellow",
    "REMOVE": "red",
    "LIVE": "bold red",
    "RETRO": "bold magenta",
}
_WIDTHS = (19, 9, 7, 30)


class Row(msgspec.Struct, frozen=True):
    """
    The columns of a message.

    @ivar time: The time of a sighting, or the version of an indicator, in microseconds
        since the epoch; C{0} if the message has none.
    @ivar kind: C{"indicator"} or C{"sighting"}.
    @ivar action: The operation of an indicator, or the match type of a sighting.
    @ivar value: The observables, or the pattern of an indicator that has none.
    @ivar event: The event of a sighting, in a few words; empty for an indicator.
    @ivar id: The indicator's id.
    """

    time: int
    kind: str
    action: str
    value: str
    event: str
    id: str


def make_row(item: Item) -> Row:
    """
    Extract the columns of a message.
    """
    if isinstance(item, Indicator):
        action = item.operation.value
        return Row(item.modified, "indicator", action, _values(item), "", item.id)
    document = json_object(item.raw)
    action = _text(document.get("x_threatbus_match_type"))
    value = _text(document.get("x_threatbus_indicator_value"))
    values = _joint_values(document.get("x_threatbus_indicator_values"))
    context = document.get("x_threatbus_sighting_context")
    event = describe_event(context) if isinstance(context, dict) else ""
    return Row(item.last_seen or 0, "sighting", action, values or value, event, item.indicator)


def _values(indicator: Indicator) -> str:
    pattern = indicator.pattern or ""
    if indicator.pattern_type != STIX or not pattern:
        return pattern
    try:
        terms = matchable(pattern).terms
    except (Invalid, PatternUnmatchable):
        return pattern
    values = [term.text for term in terms[:MAX_LISTED_VALUES]]
    if len(terms) > MAX_LISTED_VALUES:
        values.append(f"and {len(terms) - MAX_LISTED_VALUES} more")
    return ", ".join(values)


def _joint_values(values: object) -> str:
    if not isinstance(values, list):
        return ""
    return " AND ".join(value for value in values[:MAX_LISTED_VALUES] if isinstance(value, str))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def describe_event(event: JsonObject) -> str:
    """
    Describe an event in a few words: its type and its two ends.

    @param event: An event of Suricata, Zeek or OCSF; others have an empty description.
    """
    ends = [event.get("src_ip"), event.get("dest_ip")]
    if not any(ends):
        id = event.get("id")
        ends = [id.get("orig_h"), id.get("resp_h")] if isinstance(id, dict) else []
    if not any(ends):
        points = (event.get("src_endpoint"), event.get("dst_endpoint"))
        ends = [point.get("ip") for point in points if isinstance(point, dict)]
    kind = _text(event.get("event_type")) or _text(event.get("_path"))
    between = " → ".join(end for end in ends if isinstance(end, str))
    return " ".join(filter(None, (kind, between)))


def plain_fields(row: Row) -> tuple[str, ...]:
    """
    The fields of a message's line in a pipe.
    """
    time = timestamp(from_microseconds(row.time)) if row.time else ""
    return (time, row.kind, row.action, row.value, row.event, row.id)


def terminal_header(width: int) -> Text:
    """
    The header above the lines on a terminal.

    @param width: The width of the terminal, in columns.
    """
    return Text(_aligned(("time", "message", "", "value", "event or indicator"), width), "bold")


def terminal_line(row: Row, width: int, zone: tzinfo | None = None) -> Text:
    """
    A message's line on a terminal.

    @param width: The width of the terminal, in columns; the line is shorter.
    @param zone: The time zone of the times; the local one by default.
    """
    time = ""
    if row.time:
        time = from_microseconds(row.time).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")
    text = Text(_aligned((time, row.kind, row.action, row.value, row.event or row.id), width))
    start = sum(_WIDTHS[:2]) + 2
    text.stylize(_STYLES.get(row.action, ""), start, start + _WIDTHS[2])
    return text


def _aligned(cells: tuple[str, ...], width: int) -> str:
    *first, last = map(escape_controls, cells)
    padded = [
        f"{cell[: size - 1]}…" if len(cell) > size else cell.ljust(size)
        for cell, size in zip(first, _WIDTHS, strict=True)
    ]
    text = " ".join([*padded, last]).rstrip()
    return text if len(text) < width else f"{text[: width - 2]}…"


@attrs.define(eq=False)
class MessagePrinter:
    """
    Prints messages, each once, up to a maximum number.

    @param screen: The streams of the command.
    @param as_json: Whether to print STIX documents instead of lines.
    @param left: The maximum number of messages.
    @ivar done: Fires at that number; fails with C{OSError} if standard output is not writable.
    """

    _screen: Screen
    _as_json: bool
    _left: float
    done: Deferred[None] = attrs.field(init=False, factory=Deferred)
    _header_written: bool = attrs.field(init=False, default=False)
    _seen: dict[tuple[str, int], None] = attrs.field(init=False, factory=dict)

    def receive(self, items: list[Item]) -> None:
        if self.done.called:
            return
        try:
            for item in items:
                if self._left and self._is_new(item):
                    self._write(item)
                    self._left -= 1
        except OSError:
            self.done.errback()
            return
        if not self._left:
            self.done.callback(None)

    def _is_new(self, item: Item) -> bool:
        key = (item.id, hash(item.raw))
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > MAX_REMEMBERED_MESSAGES:
            del self._seen[next(iter(self._seen))]
        return True

    def _write(self, item: Item) -> None:
        screen = self._screen
        if self._as_json:
            screen.write_json(msgspec.json.format(item.raw, indent=-1))
        elif not screen.is_terminal:
            screen.write_line(*plain_fields(make_row(item)))
        else:
            if not self._header_written:
                self._header_written = True
                screen.render(terminal_header(screen.width))
            screen.render(terminal_line(make_row(item), screen.width))


async def watch(
    reactor: Any,
    screen: Screen,
    bus: HostPort,
    keys: KeyFiles,
    stream: str | None,
    snapshot: int,
    count: int,
    as_json: bool,
) -> bool:
    """
    Print the messages of a bus until the command is cancelled. The bus, its keys and the errors
    about them are as for L{tbvast.cli.publish.publish}, but an absent bus is waited for.

    @param stream: The only stream to subscribe to, by its name in L{STREAMS}; C{None}: all.
    @param snapshot: Days of past indicators to begin with.
    @param count: The number of messages after which to end; C{0} for no end.
    @param as_json: Whether to print STIX documents instead of lines.
    @return: C{True}.
    """
    printer = MessagePrinter(screen, as_json, count or math.inf)
    streams = STREAMS.values() if stream is None else (STREAMS[stream],)
    topics = tuple(STREAM_TOPICS[each][0] for each in streams)
    request = SubscriptionRequest(topics, snapshot, "tbvast watch", HEARTBEAT_SECONDS)
    options = keys.load()
    factory = Factory(reactor)
    subscription = BusSubscription(
        reactor, factory, bus, request, Listener(printer.receive), keys=options
    )
    subscription.startService()
    try:
        await printer.done
    except CancelledError:
        pass  # Ctrl-C is the usual end
    finally:
        await subscription.stopService()
        factory.shutdown()
    return True
