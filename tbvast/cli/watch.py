"""
C{tbvast watch}: what goes over the bus, as it comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any

import msgspec
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred

from tbvast.bus_client.subscription import BusSubscription, Listener, SubscriptionRequest
from tbvast.cli.keys import KeyFiles
from tbvast.cli.terminal import Screen, visible
from tbvast.errors import Invalid, PatternUnmatchable
from tbvast.protocol.frames import Item
from tbvast.protocol.topics import STREAM_TOPICS, Stream
from tbvast.settings import HostPort
from tbvast.stix.documents import from_microseconds, timestamp
from tbvast.stix.indicators import STIX, Indicator
from tbvast.stix.pattern_conditions import matchable
from tbvast.stix.sightings import Sighting
from tbvast.zeromq.sockets import Factory

STREAMS: Mapping[str, Stream] = {"intel": Stream.INTEL, "sighting": Stream.SIGHTING}
"""
The streams, as users name them.
"""

HEARTBEAT = 5.0
"""
Seconds between heartbeats to the bus.
"""

MOST_VALUES = 5
"""
How many observables of one indicator are listed.
"""

MEMORY = 100_000
"""
How many of the messages seen are known again: a bus that comes back sends some of
them once more.
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
    What there is to see of a message.

    @ivar time: When it was seen, of a sighting; its version, of an indicator. In
        microseconds since the epoch; C{0} if the message does not say.
    @ivar kind: C{indicator} or C{sighting}.
    @ivar what: What the indicator does, or how the sighting was made.
    @ivar value: The observables.
    @ivar about: The event of a sighting, in a few words.
    @ivar id: The indicator's id.
    """

    time: int
    kind: str
    what: str
    value: str
    about: str
    id: str


class _Document(msgspec.Struct):
    """
    What is shown of a sighting beside what every sighting has.
    """

    x_threatbus_indicator_value: Any = None
    x_threatbus_indicator_values: Any = None
    x_threatbus_match_type: Any = None
    x_threatbus_sighting_context: Any = None


_decoder = msgspec.json.Decoder(_Document)


def row(item: Item) -> Row:
    """
    What there is to see of a message.
    """
    if isinstance(item, Sighting):
        return _sighting(item)
    return Row(
        time=item.modified,
        kind="indicator",
        what=item.operation.value,
        value=_values(item),
        about="",
        id=item.id,
    )


def _values(indicator: Indicator) -> str:
    """
    An indicator's observables, or else its pattern.
    """
    pattern = indicator.pattern or ""
    if indicator.pattern_type != STIX or not pattern:
        return pattern
    try:
        terms = matchable(pattern).terms
    except (Invalid, PatternUnmatchable):
        return pattern
    values = [term.text for term in terms[:MOST_VALUES]]
    if len(terms) > MOST_VALUES:
        values.append(f"and {len(terms) - MOST_VALUES} more")
    return ", ".join(values)


def _sighting(sighting: Sighting) -> Row:
    document = _decoder.decode(sighting.raw)
    context = document.x_threatbus_sighting_context
    return Row(
        time=sighting.last_seen or 0,
        kind="sighting",
        what=_text(document.x_threatbus_match_type),
        value=_seen(document.x_threatbus_indicator_values)
        or _text(document.x_threatbus_indicator_value),
        about=about(context) if isinstance(context, dict) else "",
        id=sighting.indicator,
    )


def _seen(values: Any) -> str:
    """
    What was seen together, if anything was.
    """
    if not isinstance(values, list):
        return ""
    return " AND ".join(value for value in values[:MOST_VALUES] if isinstance(value, str))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def about(event: Mapping[str, Any]) -> str:
    """
    An event in a few words: what it is, and between whom; as far as it is one of
    Suricata, Zeek or OCSF.
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


def fields(row: Row) -> tuple[str, ...]:
    """
    A message as the fields of a plain line.
    """
    time = timestamp(from_microseconds(row.time)) if row.time else ""
    return (time, row.kind, row.what, row.value, row.about, row.id)


def header(width: int) -> Text:
    """
    What stands above the lines on a terminal.

    @param width: Columns of the terminal.
    """
    return Text(_aligned(("time", "message", "", "value", "event or indicator"), width), "bold")


def line(row: Row, width: int, zone: tzinfo | None = None) -> Text:
    """
    A message as a line on a terminal.

    @param width: Columns of the terminal.
    @param zone: Of the times; the local one by default.
    """
    time = ""
    if row.time:
        time = from_microseconds(row.time).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")
    text = Text(_aligned((time, row.kind, row.what, row.value, row.about or row.id), width))
    start = sum(_WIDTHS[:2]) + 2
    text.stylize(_STYLES.get(row.what, ""), start, start + _WIDTHS[2])
    return text


def _aligned(cells: tuple[str, ...], width: int) -> str:
    *first, last = map(visible, cells)
    padded = [
        f"{cell[: size - 1]}…" if len(cell) > size else cell.ljust(size)
        for cell, size in zip(first, _WIDTHS, strict=True)
    ]
    text = " ".join([*padded, last]).rstrip()
    return text if len(text) < width else f"{text[: width - 2]}…"


class Watching:
    """
    What arrives, each message once, until there is enough of it.

    @ivar enough: Fires when there is.
    """

    def __init__(self, screen: Screen, as_json: bool, count: int) -> None:
        """
        @param as_json: Whether to write documents instead of lines.
        @param count: Messages that are enough; C{0} if there is never enough.
        """
        self.enough: Deferred[None] = Deferred()
        self._screen = screen
        self._json = as_json
        self._left: int | None = count if count else None
        self._begun = False
        self._seen: dict[tuple[str, int], None] = {}

    def receive(self, items: list[Item]) -> None:
        """
        Write messages out.
        """
        if self.enough.called:
            return
        try:
            for item in items:
                if self._left != 0 and self._is_new(item):
                    self._write(item)
                    if self._left is not None:
                        self._left -= 1
        except OSError:
            self.enough.errback()
            return
        if self._left == 0:
            self.enough.callback(None)

    def _is_new(self, item: Item) -> bool:
        key = (item.id, hash(item.raw))
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > MEMORY:
            del self._seen[next(iter(self._seen))]
        return True

    def _write(self, item: Item) -> None:
        screen = self._screen
        if self._json:
            screen.put_json(msgspec.json.format(item.raw, indent=-1))
        elif not screen.rich:
            screen.put(*fields(row(item)))
        else:
            if not self._begun:
                self._begun = True
                screen.show(header(screen.width))
            screen.show(line(row(item), screen.width))


async def watch(
    reactor: Any,
    screen: Screen,
    bus: HostPort,
    keys: KeyFiles,
    streams: tuple[Stream, ...],
    snapshot: int,
    count: int,
    as_json: bool,
) -> bool:
    """
    @param snapshot: Days of past indicators to begin with.
    @param count: Messages after which to end; C{0} for not at all.
    @return: C{True}.
    """
    watching = Watching(screen, as_json, count)
    request = SubscriptionRequest(
        topics=tuple(STREAM_TOPICS[stream][0] for stream in streams),
        snapshot=snapshot,
        name="tbvast watch",
        heartbeat=HEARTBEAT,
    )
    options = keys.load()
    factory = Factory(reactor)
    subscription = BusSubscription(
        reactor, factory, bus, request, Listener(watching.receive), keys=options
    )
    subscription.startService()
    try:
        await watching.enough
    except CancelledError:
        pass  # Ctrl-C is how it usually ends
    finally:
        await subscription.stopService()
        factory.shutdown()
    return True
