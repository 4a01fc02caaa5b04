"""
What of a STIX pattern a single event can decide.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from tbvast.errors import ObservableInvalid, PatternUnmatchable
from tbvast.intel.grammar import (
    Comparison,
    Exists,
    Expression,
    Joint,
    ObjectPath,
    Observation,
    Operator,
    Qualified,
    Repeats,
    Test,
    Within,
    parse,
)
from tbvast.intel.observables import Kind, Observable, normalise

__all__ = ["Matchable", "Term", "matchable", "observables", "parse", "validate"]

LONGEST_REASON = 80
"""
The most characters of a reason; only an object path can make one that long.
"""


class Term(msgspec.Struct, frozen=True):
    """
    One observable of a pattern.

    @ivar text: The value as the pattern has it; a URL's scheme is in it, say.
    """

    observable: Observable
    text: str


class Matchable(msgspec.Struct, frozen=True):
    """
    What of a pattern can be matched; an event that holds any of the terms matches.

    @ivar terms: At least one; each observable once, in the pattern's order.
    @ivar unmatched: Why the pattern's other alternatives cannot be matched, as
        short phrases that can be counted; each alternative adds one.
    """

    terms: tuple[Term, ...]
    unmatched: tuple[str, ...] = ()

    @property
    def observables(self) -> tuple[Observable, ...]:
        """
        The terms' observables.
        """
        return tuple(term.observable for term in self.terms)


def surely_matchable(pattern: str) -> bool:
    """
    A quick look, for the most frequent patterns: whether L{matchable} would find
    something, without working out what.

    @return: False if that is not known.
    """
    return _NORMAL.fullmatch(pattern) is not None


def validate(pattern: str) -> None:
    """
    Check that a text is a STIX pattern; as L{parse}, but quicker for most.

    @raise PatternInvalid: If it is not.
    """
    simple = _SIMPLE.fullmatch(pattern)
    if simple is None or simple[1] not in _KIND_OF_TEXT:
        parse(pattern)


def observables(pattern: str) -> tuple[Observable, ...]:
    """
    The observables of a pattern that can be matched.

    @return: At least one.
    @raise PatternInvalid: As L{matchable}.
    @raise PatternUnmatchable: As L{matchable}.
    @raise ObservableInvalid: As L{matchable}.
    """
    return matchable(pattern).observables


def matchable(pattern: str) -> Matchable:
    """
    What of a pattern can be matched.

    @raise PatternInvalid: If C{pattern} is not a STIX 2.1 pattern.
    @raise PatternUnmatchable: If none of it can be matched; with the reason of the
        first alternative.
    @raise ObservableInvalid: If none of it can be matched, and for one alternative
        that is so because its value is none: an address that is no address, say.
    """
    simple = _SIMPLE.fullmatch(pattern)
    if simple is not None:
        kind = _KIND_OF_TEXT.get(simple[1])
        if kind is not None:
            value = simple[2]
            return Matchable((Term(normalise(_kind_of_value(kind, value), value), value),))
    found = _Findings({}, [], [])
    _look_at_observations(parse(pattern), found)
    if found.terms:
        return Matchable(tuple(found.terms.values()), tuple(found.unmatched))
    if found.invalid:
        raise found.invalid[0]
    raise PatternUnmatchable(found.unmatched[0])


class _Findings(NamedTuple):
    """
    What has been found in a pattern so far.
    """

    terms: dict[Observable, Term]
    unmatched: list[str]
    invalid: list[ObservableInvalid]


_SIMPLE = re.compile(r"\[ ?([a-z0-9-]+:[A-Za-z0-9_.'-]+) ?= ?'([^'\\]*)' ?\]")
"""
A single comparison without anything to unescape; only a shortcut, and only for the
object paths of L{_KIND_OF_TEXT}.
"""

_NORMAL = re.compile(
    r"\[(?:"
    r"ipv4-addr:value = '(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!')|(?='))){4}'"
    r"|domain-name:value = '(?:[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?\.){1,4}[a-z]{2,40}'"
    r"|file:hashes\.(?:MD5 = '[0-9a-f]{32}'|'SHA-1' = '[0-9a-f]{40}'|'SHA-256' = '[0-9a-f]{64}')"
    r")\]"
)
"""
A single comparison with a value in its normal form.
"""

_KIND_OF_PATH: dict[tuple[str, tuple[object, ...]], Kind] = {
    ("ipv4-addr", ("value",)): Kind.IP,
    ("ipv6-addr", ("value",)): Kind.IP,
    ("domain-name", ("value",)): Kind.DOMAIN,
    ("url", ("value",)): Kind.URL,
    ("email-addr", ("value",)): Kind.EMAIL,
    ("email-message", ("from_ref", "value")): Kind.EMAIL,
    ("email-message", ("sender_ref", "value")): Kind.EMAIL,
    # A reference to an address or to a domain name: the value tells which.
    ("network-traffic", ("src_ref", "value")): Kind.DOMAIN,
    ("network-traffic", ("dst_ref", "value")): Kind.DOMAIN,
    ("file", ("name",)): Kind.FILE_NAME,
    ("mac-addr", ("value",)): Kind.MAC,
}

# STIX has no property for these: this is how most write them.
_TLS = {
    "ja3": Kind.JA3,
    "ja3_hash": Kind.JA3,
    "ja3s": Kind.JA3S,
    "ja3s_hash": Kind.JA3S,
    "ja4": Kind.JA4,
    "ja4_hash": Kind.JA4,
}

_HASHES = {"MD5": Kind.MD5, "SHA1": Kind.SHA1, "SHA256": Kind.SHA256}

_KIND_OF_TEXT = {
    f"{type_}:{'.'.join(str(step) for step in steps)}": kind
    for (type_, steps), kind in _KIND_OF_PATH.items()
} | {
    f"file:hashes.{name}": kind
    for names, kind in (
        (("MD5", "'MD5'", "md5"), Kind.MD5),
        (("'SHA-1'", "SHA1", "sha1"), Kind.SHA1),
        (("'SHA-256'", "SHA256", "sha256"), Kind.SHA256),
    )
    for name in names
}

_ADDRESSES = frozenset(("ipv4-addr", "ipv6-addr"))
_REFERABLE = _ADDRESSES | {"domain-name"}


def _kind(path: ObjectPath) -> Kind | None:
    kind = _KIND_OF_PATH.get((path.type, path.steps))
    if kind is not None:
        return kind
    steps = path.steps
    if steps[0] == "hashes" and len(steps) == 2 and isinstance(steps[1], str):
        hashed = _HASHES.get(steps[1].upper().replace("-", ""))
        if path.type == "x509-certificate" and hashed is not None:
            return Kind.CERTIFICATE
        return hashed if path.type == "file" else None
    if path.type == "network-traffic" and steps[0] == "extensions":
        return _kind_in_traffic(steps[1:])
    return None


def _kind_in_traffic(steps: tuple[object, ...]) -> Kind | None:
    """
    What an extension of network traffic holds.
    """
    if steps[:1] == ("tls-ext",) and len(steps) == 2:
        return _TLS.get(str(steps[1]).lower())
    if steps[:2] == ("http-request-ext", "request_header") and len(steps) == 3:
        return Kind.USER_AGENT if str(steps[2]).lower() == "user-agent" else None
    return None


def _look_at_observations(expression: Expression, found: _Findings) -> None:
    if isinstance(expression, Observation):
        _look_at_test(expression.test, found)
    elif isinstance(expression, Qualified):
        found.unmatched.append(_name_of_qualifier(expression))
    elif expression.joint is Joint.OR:
        for operand in expression.operands:
            _look_at_observations(operand, found)
    else:
        found.unmatched.append(f"{expression.joint.value} of observations")


def _name_of_qualifier(expression: Qualified) -> str:
    qualifier = expression.qualifiers[0]
    if isinstance(qualifier, Within):
        return "qualifier WITHIN"
    return "qualifier REPEATS" if isinstance(qualifier, Repeats) else "qualifier START STOP"


def _look_at_test(test: Test, found: _Findings) -> None:
    if isinstance(test, Comparison):
        _look_at_comparison(test, found)
    elif isinstance(test, Exists):
        found.unmatched.append("EXISTS")
    elif test.joint is Joint.OR:
        for operand in test.operands:
            _look_at_test(operand, found)
    else:
        decisive = _without_reference_types(test.operands)
        if len(decisive) == 1:
            _look_at_test(decisive[0], found)
        else:
            found.unmatched.append("AND within one observation")


def _without_reference_types(operands: tuple[Test, ...]) -> list[Test]:
    """
    A conjunction's tests, less those which only repeat what another's value says.

    C{network-traffic:dst_ref.type = 'ipv4-addr' AND network-traffic:dst_ref.value =
    '192.0.2.1'} is how MISP writes a destination address.
    """
    references = {
        operand.path.steps[0]
        for operand in operands
        if isinstance(operand, Comparison) and operand.path.steps[1:] == ("value",)
    }
    return [
        operand
        for operand in operands
        if not (
            isinstance(operand, Comparison)
            and operand.path.type == "network-traffic"
            and operand.path.steps[1:] == ("type",)
            and operand.path.steps[0] in references
            and operand.operator is Operator.EQUAL
            and not operand.negated
            and operand.value in _REFERABLE
        )
    ]


def _look_at_comparison(test: Comparison, found: _Findings) -> None:
    kind = _kind(test.path)
    if kind is None:
        path = f"object path {test.path}"
        found.unmatched.append(
            path if len(path) <= LONGEST_REASON else f"{path[: LONGEST_REASON - 1]}…"
        )
        return
    if test.negated:
        found.unmatched.append("NOT")
        return
    operator = test.operator
    if operator is Operator.ISSUBSET and kind in (Kind.IP, Kind.DOMAIN):
        kind = Kind.NETWORK
    elif operator is not Operator.EQUAL and operator is not Operator.IN:
        found.unmatched.append(f"operator {operator.value}")
        return
    values = test.value if isinstance(test.value, tuple) else (test.value,)
    if not values:
        found.unmatched.append("IN of nothing")
    for value in values:
        if not isinstance(value, str):
            found.unmatched.append("a value that is no string")
            continue
        try:
            observable = normalise(_kind_of_value(kind, value), value)
        except ObservableInvalid as e:
            found.invalid.append(e)
            found.unmatched.append(f"a value that is no {kind.value}")
        else:
            found.terms.setdefault(observable, Term(observable, value))


def _kind_of_value(kind: Kind, value: str) -> Kind:
    """
    A reference's value may be a range, which no domain name can be.
    """
    return Kind.NETWORK if kind is Kind.DOMAIN and "/" in value else kind
