"""
The threat intelligence format of VAST, as Threat Bus 2020 used it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tbvast.errors import DocumentInvalid, ObservableInvalid, PatternInvalid, PatternUnmatchable
from tbvast.stix import documents
from tbvast.stix.admission import admit_sighting, read_bounded
from tbvast.stix.documents import (
    STIX_ID,
    JsonObject,
    OptionalTime,
    from_microseconds,
    microseconds,
    timestamp,
)
from tbvast.stix.indicators import STIX, Indicator
from tbvast.stix.limits import DEEPEST_SIGHTING, LARGEST_SIGHTING
from tbvast.stix.observables import Kind
from tbvast.stix.pattern_conditions import Term, matchable
from tbvast.stix.sightings import (
    Sighting,
    canonical,
    event_time,
    required_properties,
    sighting_id,
)

PREFIX = "threatbus__"
"""
The prefix of a STIX id in a C{reference}.
"""


def encode_vast_intel(indicator: Indicator) -> list[bytes]:
    """
    Encode an indicator: one document for each observable that the format can express.

    @return: The documents. The format cannot express hashes, unmatchable patterns,
        observables that have to be seen together, and withdrawals without a pattern.
    """
    if indicator.pattern is None or indicator.pattern_type != STIX:
        return []
    try:
        terms = matchable(indicator.pattern).alone
    except (ObservableInvalid, PatternInvalid, PatternUnmatchable):
        return []
    return [
        msgspec.json.encode(
            {
                "ioc": term.text if type_ == "url" else term.observable.value,
                "type": type_,
                "reference": PREFIX + indicator.id,
                "operation": indicator.operation.value,
            }
        )
        for term in terms
        if (type_ := _type(term)) is not None
    ]


def _type(term: Term) -> str | None:
    kind = term.observable.kind
    if kind is Kind.IP:
        return "ipv6" if ":" in term.observable.value else "ip"
    if kind is Kind.DOMAIN:
        return "domain"
    return "url" if kind is Kind.URL else None


def decode_vast_sighting(raw: bytes) -> Sighting:
    """
    Decode the report of a VAST matcher: C{{"ts":TIME,"reference":"threatbus__ID",…}}.

    Other properties of the report become the sighting's context. Id and times of the
    sighting depend on the report alone, so that a repeated report is the same sighting.

    @raise DocumentInvalid: If C{raw} is not such a report.
    """
    report = documents.json_object(raw)
    reference = report.get("reference")
    indicator = reference.removeprefix(PREFIX) if isinstance(reference, str) else ""
    if indicator == reference or STIX_ID.fullmatch(indicator) is None:
        raise DocumentInvalid("reference", reference, f"{PREFIX} and a STIX id")
    seen = event_time({"ts": report.get("ts")})
    if seen is None:
        raise DocumentInvalid("ts", report.get("ts"), "a time")
    context = {key: value for key, value in report.items() if key not in ("ts", "reference")}
    id_ = sighting_id(indicator, canonical(report), "vast")
    document = {
        **required_properties(id_, indicator, seen, seen),
        "x_threatbus_source": "VAST",
        "x_threatbus_sighting_context": context,
    }
    return Sighting(id_, indicator, microseconds(seen), msgspec.json.encode(document))


def admit_vast_sighting(raw: bytes) -> Sighting:
    """
    Admit the report of a VAST matcher.

    @raise DocumentInvalid: If the report is malformed, or its sighting is refused.
    """
    read_bounded(raw, LARGEST_SIGHTING, DEEPEST_SIGHTING)
    return admit_sighting(decode_vast_sighting(raw).raw)


def encode_vast_sighting(sighting: Sighting) -> bytes:
    """
    Encode a sighting as a report that L{decode_vast_sighting} decodes.

    C{ts} is the time of the sighting, or else of its version. It replaces C{ts} in the
    sighting's context, as C{reference} does.

    @raise DocumentInvalid: If the sighting's document is damaged.
    """
    document = documents.decode(_decoder, sighting.raw)
    time = document.last_seen or document.modified or document.created
    report = dict(document.x_threatbus_sighting_context)
    report["ts"] = timestamp(from_microseconds(0) if time is None else time)
    report["reference"] = PREFIX + sighting.indicator
    return msgspec.json.encode(report)


class _Document(msgspec.Struct):
    last_seen: OptionalTime = None
    modified: OptionalTime = None
    created: OptionalTime = None
    x_threatbus_sighting_context: Annotated[JsonObject, Meta(description="an object")] = {}


_decoder = msgspec.json.Decoder(_Document)
