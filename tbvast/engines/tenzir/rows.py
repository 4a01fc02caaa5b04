"""
The NDJSON of a Tenzir node: rows of its tables, and results of its matches.

Pure: it converts lines to values and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from tbvast.engines.tenzir import pipelines
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
    value: _Row | None


class TableSize(msgspec.Struct):
    """
    A table in the node.

    @ivar name: Its name.
    @ivar entries: The number of its entries.
    """

    name: str
    entries: int


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


class Results(msgspec.Struct):
    """
    The results of a match.

    @ivar matches: The matches.
    @ivar markers: The markers that have passed a live match.
    @ivar cut: The schema of each event that has a list with more elements than a live match
        read.
    @ivar reports: The numbers of entries by table, as the node has reported them.
    """

    matches: list[Match] = []
    markers: list[Marker] = []
    cut: list[str] = []
    reports: list[dict[str, int]] = []


_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(dict[str, Any])
_inspected_decoder = msgspec.json.Decoder(_Inspected)


def encode_entries(entries: Iterable[Entry]) -> str:
    """
    Encode entries as lines, grouped by the type of their key, which the engine handles best.
    """
    rows = [_Row(entry.observable.kind, entry.observable.value, entry.ids) for entry in entries]
    rows.sort(key=lambda row: row.k)
    return _encoder.encode_lines(rows).decode()


def encode_observables(observables: Iterable[Observable]) -> str:
    """
    Encode observables as lines, like L{encode_entries}.
    """
    return encode_entries(Entry(each, ()) for each in observables)


def decode_entry(line: bytes) -> Entry:
    """
    Decode a line of L{tbvast.engines.tenzir.pipelines.inspect_tables}.

    @raise Invalid: If tbvast did not write the entry.
    """
    try:
        row = _inspected_decoder.decode(line).value
    except msgspec.MsgspecError:
        row = None
    if row is None:
        raise Invalid("table entry", line, "an entry that tbvast wrote")
    return Entry(Observable(row.k, row.v), row.ids)


def decode_results(lines: Iterable[bytes | str], slots: dict[str, pipelines.Slot]) -> Results:
    """
    Decode the lines of a match. A line is no match if it has no hit, or if every hit is of a
    kind that its field cannot hold.

    @param slots: The lookups of the match, by name.
    @raise Invalid: If a line is malformed.
    """
    results = Results()
    for line in lines:
        try:
            event = _event_decoder.decode(line)
            if pipelines.FINDINGS not in event:
                results.reports.append(_report(event[pipelines.REPORT]))
                continue
            mark: dict[str, Any] | None = event.pop(pipelines.FINDINGS)
            if mark is None:
                continue
            schema = mark.pop("s")
            imported = mark.pop(pipelines.IMPORTED_KEY, None)
            if mark.pop(pipelines.CUT_KEY, None) is True:
                results.cut.append(schema)
            hits = {
                Hit(slots[name].field, row.k, row.v, row.ids): None
                for name, value in mark.items()
                if value is not None
                and (row := msgspec.convert(value, _Row)).k in slots[name].kinds
            }
        except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
            raise Invalid("match", line, "a line of a match") from None
        if hits:
            results.matches.append(Match(event, schema, tuple(hits)))
        elif schema == pipelines.MARKER and (marker := _marker(event, imported)) is not None:
            results.markers.append(marker)
    return results


def _report(listed: Any) -> dict[str, int]:
    return {each.name: each.entries for each in msgspec.convert(listed, list[TableSize])}


def _marker(event: dict[str, Any], imported: Any) -> Marker | None:
    """
    @return: The marker; C{None} if it is another event that has the schema of markers.
    """
    try:
        return Marker(
            msgspec.convert(event.get(pipelines.MARKER_NUMBER), int),
            msgspec.convert(event.get(pipelines.MARKER_LEAF), int),
            msgspec.convert(imported, datetime).timestamp(),
        )
    except msgspec.MsgspecError:
        return None
