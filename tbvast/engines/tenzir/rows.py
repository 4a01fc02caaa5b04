"""
What goes into a Tenzir node's tables, and what comes out of its matches.

Pure: lines in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from tbvast.engines.tenzir.pipelines import (
    CUT,
    IMPORTED,
    MARK,
    MARKER,
    MARKER_LEAF,
    MARKER_NUMBER,
    Slot,
)
from tbvast.errors import Invalid
from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry, Hit, Match


class _Row(msgspec.Struct):
    """
    One line of input to L{tbvast.engines.tenzir.pipelines.update}, and the value of
    one entry of a table.
    """

    k: Kind
    v: str
    ids: tuple[str, ...] = ()


class _Inspected(msgspec.Struct):
    value: _Row


class _Marked(msgspec.Struct):
    mark: Any = msgspec.field(name=MARK, default=None)


class Marker(msgspec.Struct, frozen=True):
    """
    A marker that has passed the match.

    @ivar imported: When, by the engine's date, in seconds since the epoch.
    """

    number: int
    leaf: int
    imported: float


class _MarkerMark(msgspec.Struct):
    schema: str = msgspec.field(name="s")
    imported: datetime = msgspec.field(name=IMPORTED)


class _MarkerLine(msgspec.Struct):
    mark: _MarkerMark = msgspec.field(name=MARK)
    number: int = msgspec.field(name=MARKER_NUMBER)
    leaf: int = msgspec.field(name=MARKER_LEAF)


_CUT = f'"{CUT}":true'
_OF_MARKER = f'"{MARKER}"'
_marker_decoder = msgspec.json.Decoder(_MarkerLine)
_marked_decoder = msgspec.json.Decoder(_Marked)
_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(dict[str, Any])
_inspected_decoder = msgspec.json.Decoder(_Inspected)


def written(entries: Iterable[Entry]) -> str:
    """
    Entries as lines, grouped as the engine likes them: by the type of their key.
    """
    ordered = sorted(entries, key=lambda entry: entry.observable.kind)
    return _lines(
        _Row(entry.observable.kind, entry.observable.value, entry.ids) for entry in ordered
    )


def named(observables: Iterable[Observable]) -> str:
    """
    Observables as lines, grouped likewise.
    """
    ordered = sorted(observables, key=lambda observable: observable.kind)
    return _lines(_Row(observable.kind, observable.value) for observable in ordered)


def _lines(rows: Iterable[_Row]) -> str:
    return _encoder_lines(list(rows)).decode()


def _encoder_lines(rows: list[_Row]) -> bytes:
    return _encoder.encode_lines(rows)


def entry(line: bytes) -> Entry:
    """
    Read a line of L{tbvast.engines.tenzir.pipelines.inspect}.

    @raise Invalid: If it is none.
    """
    try:
        row = _inspected_decoder.decode(line)
    except msgspec.MsgspecError:
        raise Invalid("table entry", line, "an entry that tbvast wrote") from None
    return Entry(Observable(row.value.k, row.value.v), row.value.ids)


def match(line: bytes | str, slots: dict[str, Slot]) -> Match | None:
    """
    Read a line of a match.

    @return: C{None} if nothing was found, or only what is of a kind that the field
        cannot hold.
    @raise Invalid: If it is no line of a match.
    """
    try:
        event = _event_decoder.decode(line)
        mark = event.pop(MARK)
        if mark is None:
            return None
        schema = mark.pop("s")
        mark.pop(CUT, None)
        mark.pop(IMPORTED, None)
        hits: dict[Hit, None] = {}
        for name, value in mark.items():
            if value is None:
                continue
            row = msgspec.convert(value, _Row)
            if row.k in slots[name].kinds:
                hits[Hit(slots[name].field, row.k, row.v, row.ids)] = None
    except (msgspec.MsgspecError, KeyError, AttributeError):
        raise Invalid("match", line, "a line of a match") from None
    return Match(event, schema, tuple(hits)) if hits else None


def matches(lines: Iterable[bytes | str], slots: dict[str, Slot]) -> list[Match]:
    """
    Read lines of a match; those in which nothing was found are left out.

    @raise Invalid: If one is no line of a match.
    """
    return [found for line in lines if (found := match(line, slots)) is not None]


def markers(lines: Iterable[str]) -> tuple[list[Marker], list[str]]:
    """
    Take the markers out of the lines of a live match.

    @return: The markers, and the other lines.
    """
    found, others = [], []
    for line in lines:
        marker = _marker(line) if _OF_MARKER in line else None
        if marker is None:
            others.append(line)
        else:
            found.append(marker)
    return found, others


def _marker(line: str) -> Marker | None:
    try:
        read = _marker_decoder.decode(line)
    except msgspec.MsgspecError:
        return None
    if read.mark.schema != MARKER:
        return None
    return Marker(read.number, read.leaf, read.mark.imported.timestamp())


def cut(lines: Iterable[str]) -> Iterator[str]:
    """
    The schemas of events with a list that is longer than what was looked at of it.
    """
    for line in lines:
        if _CUT not in line:
            continue
        try:
            mark = _marked_decoder.decode(line).mark
        except msgspec.MsgspecError:
            continue  # reading the matches says so
        if isinstance(mark, dict) and mark.get(CUT) is True:
            yield str(mark.get("s"))
