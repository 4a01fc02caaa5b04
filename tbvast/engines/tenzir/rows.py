"""
The NDJSON of a Tenzir node: rows of its tables, and results of its matches.

Pure: it converts lines to values and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import msgspec

from tbvast.engines.tenzir.pipelines import (
    CUT_KEY,
    FINDINGS,
    IMPORTED_KEY,
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
    A line of input to L{tbvast.engines.tenzir.pipelines.update_tables}, and the value of an
    entry in a table.
    """

    k: Kind
    v: str
    ids: tuple[str, ...] = ()


class _Inspected(msgspec.Struct):
    value: _Row


class _Marked(msgspec.Struct):
    mark: Any = msgspec.field(name=FINDINGS, default=None)


class Marker(msgspec.Struct, frozen=True):
    """
    A marker that has passed the match.

    @ivar number: The number of its round.
    @ivar leaf: The leaf of the match that it has passed.
    @ivar imported: The time of its import by the engine's clock, in seconds since the epoch.
    """

    number: int
    leaf: int
    imported: float


class _MarkerMark(msgspec.Struct):
    schema: str = msgspec.field(name="s")
    imported: datetime = msgspec.field(name=IMPORTED_KEY)


class _MarkerLine(msgspec.Struct):
    mark: _MarkerMark = msgspec.field(name=FINDINGS)
    number: int = msgspec.field(name=MARKER_NUMBER)
    leaf: int = msgspec.field(name=MARKER_LEAF)


_TRUNCATED = f'"{CUT_KEY}":true'
_OF_MARKER = f'"{MARKER}"'
_marker_decoder = msgspec.json.Decoder(_MarkerLine)
_marked_decoder = msgspec.json.Decoder(_Marked)
_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(dict[str, Any])
_inspected_decoder = msgspec.json.Decoder(_Inspected)


def encode_entries(entries: Iterable[Entry]) -> str:
    """
    Encode entries as lines, grouped by the type of their key, which the engine handles best.
    """
    ordered = sorted(entries, key=lambda entry: entry.observable.kind)
    return _encode_rows(
        _Row(entry.observable.kind, entry.observable.value, entry.ids) for entry in ordered
    )


def encode_observables(observables: Iterable[Observable]) -> str:
    """
    Encode observables as lines, grouped like L{encode_entries}.
    """
    ordered = sorted(observables, key=lambda observable: observable.kind)
    return _encode_rows(_Row(observable.kind, observable.value) for observable in ordered)


def _encode_rows(rows: Iterable[_Row]) -> str:
    return _encoder.encode_lines(list(rows)).decode()


def decode_entry(line: bytes) -> Entry:
    """
    Decode a line of L{tbvast.engines.tenzir.pipelines.inspect_table}.

    @raise Invalid: If the line is malformed.
    """
    try:
        row = _inspected_decoder.decode(line)
    except msgspec.MsgspecError:
        raise Invalid("table entry", line, "an entry that tbvast wrote") from None
    return Entry(Observable(row.value.k, row.value.v), row.value.ids)


def decode_match(line: bytes | str, slots: dict[str, Slot]) -> Match | None:
    """
    Decode a line of a match.

    @param slots: The lookups of the match, by name.
    @return: The match; C{None} if there is no hit, or if every hit is of a kind that its
        field cannot hold.
    @raise Invalid: If the line is malformed.
    """
    try:
        event = _event_decoder.decode(line)
        mark = event.pop(FINDINGS)
        if mark is None:
            return None
        schema = mark.pop("s")
        mark.pop(CUT_KEY, None)
        mark.pop(IMPORTED_KEY, None)
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


def decode_matches(lines: Iterable[bytes | str], slots: dict[str, Slot]) -> list[Match]:
    """
    Decode the lines of a match, without those that have no hit.

    @raise Invalid: If a line is malformed.
    """
    return [found for line in lines if (found := decode_match(line, slots)) is not None]


def split_markers(lines: Iterable[str]) -> tuple[list[Marker], list[str]]:
    """
    Split the lines of a live match into markers and other lines.

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


def truncated_schemas(lines: Iterable[str]) -> Iterator[str]:
    """
    Yield the schema of each event that has a list with more elements than the match read.
    """
    for line in lines:
        if _TRUNCATED not in line:
            continue
        try:
            mark = _marked_decoder.decode(line).mark
        except msgspec.MsgspecError:
            continue  # decode_match reports it
        if isinstance(mark, dict) and mark.get(CUT_KEY) is True:
            yield str(mark.get("s"))
