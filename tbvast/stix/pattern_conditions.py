"""
Derives the conditions of STIX patterns that a single event can fulfil.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from tbvast.errors import ObservableInvalid, PatternUnmatchable
from tbvast.stix.observables import Kind, Observable, normalise
from tbvast.stix.pattern_grammar import (
    Comparison,
    Exists,
    Expression,
    Joint,
    Literal,
    ObjectPath,
    Observation,
    Operator,
    Qualified,
    Repeats,
    Test,
    Within,
    parse,
)

__all__ = [
    "PATTERN_RULES",
    "AllOf",
    "AnyOf",
    "Matchable",
    "Term",
    "matchable",
    "observables",
    "parse",
    "sure_observable",
    "surely_matchable",
    "validate",
]

PATTERN_RULES = 2
"""
The version of the rules that derive conditions. Stored conditions of an older version are derived
again.
"""

LONGEST_REASON = 80
"""
The most characters of a reason. Only a reason with an object path can be longer, and is cut.
"""


class Term(msgspec.Struct, frozen=True):
    """
    An observable of a pattern.

    @ivar observable: The observable.
    @ivar text: The value as written in the pattern; for example with the scheme of a URL.
    """

    observable: Observable
    text: str


class AllOf(msgspec.Struct, frozen=True):
    """
    Conditions that must all hold in the same event.

    @ivar conditions: The conditions; at least two.
    """

    conditions: tuple[Condition, ...]


class AnyOf(msgspec.Struct, frozen=True):
    """
    Alternative conditions, of which one must hold.

    @ivar conditions: The alternatives; at least two.
    """

    conditions: tuple[Condition, ...]


Condition = Term | AllOf | AnyOf


class Matchable(msgspec.Struct, frozen=True):
    """
    The matchable part of a pattern.

    @ivar condition: The condition on an event, without the alternatives that cannot be matched.
    @ivar unmatched: The reasons why these cannot be matched, as short phrases for statistics:
        one for each unsupported part of the pattern.
    """

    condition: Condition
    unmatched: tuple[str, ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """
        The terms; at least one, each observable once, in the pattern's order.
        """
        condition = self.condition
        if isinstance(condition, Term):
            return (condition,)
        found: dict[Observable, Term] = {}
        for term in _terms(condition):
            found.setdefault(term.observable, term)
        return tuple(found.values())

    @property
    def observables(self) -> tuple[Observable, ...]:
        """
        The observables of the terms.
        """
        return tuple(term.observable for term in self.terms)

    @property
    def alone(self) -> tuple[Term, ...]:
        """
        The terms that are sufficient alone.
        """
        found: dict[Observable, Term] = {}
        for condition in _alternatives(self.condition):
            if isinstance(condition, Term):
                found.setdefault(condition.observable, condition)
        return tuple(found.values())

    @property
    def joint(self) -> bool:
        """
        Whether there are terms that need other terms in the same event.
        """
        return not all(isinstance(each, Term) for each in _alternatives(self.condition))

    @property
    def needed(self) -> tuple[frozenset[Observable], ...]:
        """
        Sets of observables: a matching event holds at least one observable of each set.
        """
        condition = self.condition
        parts = condition.conditions if isinstance(condition, AllOf) else (condition,)
        return tuple(frozenset(term.observable for term in _terms(part)) for part in parts)

    def held(self, observables: Container[Observable]) -> tuple[Term, ...]:
        """
        Match an event.

        @param observables: The observables that the event holds.
        @return: The terms of the first alternative, in the pattern's order, that holds, each
            observable once; empty if the event does not match.
        """
        return _held(self.condition, observables)


def _terms(condition: Condition) -> Iterator[Term]:
    if isinstance(condition, Term):
        yield condition
    else:
        for each in condition.conditions:
            yield from _terms(each)


def _alternatives(condition: Condition) -> Sequence[Condition]:
    # _any_of never nests alternatives.
    return condition.conditions if isinstance(condition, AnyOf) else (condition,)


def _held(condition: Condition, observables: Container[Observable]) -> tuple[Term, ...]:
    if isinstance(condition, Term):
        return (condition,) if condition.observable in observables else ()
    if isinstance(condition, AnyOf):
        each = (_held(alternative, observables) for alternative in condition.conditions)
        return next(filter(None, each), ())
    together: dict[Observable, Term] = {}
    for part in condition.conditions:
        terms = _held(part, observables)
        if not terms:
            return ()
        for term in terms:
            together.setdefault(term.observable, term)
    return tuple(together.values())


def surely_matchable(pattern: str) -> bool:
    """
    Whether L{matchable} is certain to succeed: a fast check that covers the most frequent
    patterns.

    @return: False if it is uncertain.
    """
    return _NORMAL.fullmatch(pattern) is not None


def sure_observable(pattern: str) -> Observable:
    """
    @param pattern: A pattern that is L{surely_matchable}.
    @return: Its only observable, as L{matchable} would find it.
    """
    path, _, value = pattern[1:-2].partition(" = '")
    kind = _KIND_OF_TEXT[path]
    return normalise(kind, value) if kind is _URL else Observable(kind, value)


_URL = Kind.URL  # a global name is faster than a member of an enumeration


def validate(pattern: str) -> None:
    """
    Check that a text is a STIX pattern: like L{parse}, but faster for most patterns.

    @raise PatternInvalid: If it is not.
    """
    simple = _SIMPLE.fullmatch(pattern)
    if (simple is None or simple[1] not in _KIND_OF_TEXT) and _joined(pattern) is None:
        parse(pattern)


def observables(pattern: str) -> tuple[Observable, ...]:
    """
    @return: The matchable observables of a pattern; at least one.
    @raise PatternInvalid: As L{matchable}.
    @raise PatternUnmatchable: As L{matchable}.
    @raise ObservableInvalid: As L{matchable}.
    """
    return matchable(pattern).observables


def matchable(pattern: str) -> Matchable:
    """
    Derive the matchable part of a pattern.

    @raise PatternInvalid: If C{pattern} is not a STIX 2.1 pattern.
    @raise PatternUnmatchable: If nothing of it can be matched; with the first reason.
    @raise ObservableInvalid: If nothing of it can be matched, and a value in it is malformed,
        such as an address.
    """
    simple = _SIMPLE.fullmatch(pattern)
    if simple is not None:
        kind = _KIND_OF_TEXT.get(simple[1])
        if kind is not None:
            value = simple[2]
            return Matchable(Term(normalise(_kind_of_value(kind, value), value), value))
    found = _Findings([], [])
    joined = _joined(pattern)
    if joined is None:
        condition = _of_observations(parse(pattern), found)
    else:
        joint, parts = joined
        terms = [_of_value(kind, value, found) for kind, value in parts]
        condition = _all_of(terms) if joint is Joint.AND else _any_of(terms)
    if condition is not None:
        return Matchable(condition, tuple(found.unmatched))
    if found.invalid:
        raise found.invalid[0]
    raise PatternUnmatchable(found.unmatched[0])


def _joined(pattern: str) -> tuple[Joint, list[tuple[Kind, str]]] | None:
    """
    Split a pattern of several simple comparisons that are joined by one operator.

    @return: The operator, and the kinds and values of the comparisons; C{None} for any other
        pattern.
    """
    match = _JOINED.fullmatch(pattern)
    if match is None:
        return None
    try:
        parts = [(_KIND_OF_TEXT[path], value) for path, value in _PARTS.findall(pattern)]
    except KeyError:
        return None
    return Joint.OR if match[3] is None else Joint.AND, parts


class _Findings(NamedTuple):
    """
    The obstacles found so far.

    @ivar unmatched: The reasons why parts of the pattern cannot be matched.
    @ivar invalid: The errors of malformed values.
    """

    unmatched: list[str]
    invalid: list[ObservableInvalid]


_PART = r"([a-z0-9-]+:[A-Za-z0-9_.'-]+) ?= ?'([^'\\]*)'"
_SIMPLE = re.compile(rf"\[ ?{_PART} ?\]")
"""
A single comparison without escapes: a shortcut for the object paths of L{_KIND_OF_TEXT}.
"""

_JOINED = re.compile(rf"\[ ?{_PART}(?:(?: AND {_PART})+|(?: OR {_PART})+) ?\]")
"""
Several such comparisons, joined by one operator.
"""

_PARTS = re.compile(_PART)

_OCTET = "(?:1[0-9]{0,2}|2(?:[0-4][0-9]?|5[0-5]?|[6-9])?|[3-9][0-9]?|0)"
_ADDRESS = rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}"
_HOST = r"(?:[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?\.){1,4}[a-z]{2,40}"

_NORMAL = re.compile(
    r"\[(?:"
    rf"ipv4-addr:value = '{_ADDRESS}'"
    rf"|domain-name:value = '{_HOST}'"
    rf"|url:value = 'https?://(?:{_ADDRESS}|{_HOST})(?:/[A-Za-z0-9/._~-]{{0,200}})?'"
    r"|file:hashes\.(?:MD5 = '[0-9a-f]{32}'|'SHA-1' = '[0-9a-f]{40}'|'SHA-256' = '[0-9a-f]{64}')"
    r")\]"
)
"""
A single comparison whose value is in its normal form, or a URL in nearly normal form.
"""

_KIND_OF_PATH: dict[tuple[str, tuple[object, ...]], Kind] = {
    ("ipv4-addr", ("value",)): Kind.IP,
    ("ipv6-addr", ("value",)): Kind.IP,
    ("domain-name", ("value",)): Kind.DOMAIN,
    ("url", ("value",)): Kind.URL,
    ("email-addr", ("value",)): Kind.EMAIL,
    ("email-message", ("from_ref", "value")): Kind.EMAIL,
    ("email-message", ("sender_ref", "value")): Kind.EMAIL,
    # A reference to an address or to a domain name; the value decides.
    ("network-traffic", ("src_ref", "value")): Kind.DOMAIN,
    ("network-traffic", ("dst_ref", "value")): Kind.DOMAIN,
    ("file", ("name",)): Kind.FILE_NAME,
    ("mac-addr", ("value",)): Kind.MAC,
}

# STIX has no properties for these; these are the common notations.
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
    @return: The kind of a property in an extension of network traffic; C{None} if unsupported.
    """
    if steps[:1] == ("tls-ext",) and len(steps) == 2:
        return _TLS.get(str(steps[1]).lower())
    if steps[:2] == ("http-request-ext", "request_header") and len(steps) == 3:
        return Kind.USER_AGENT if str(steps[2]).lower() == "user-agent" else None
    return None


def _of_observations(expression: Expression, found: _Findings) -> Condition | None:
    """
    @return: The condition of an expression; C{None} if nothing of it can be matched.
    """
    if isinstance(expression, Observation):
        return _of_test(expression.test, found)
    if isinstance(expression, Qualified):
        found.unmatched.append(_name_of_qualifier(expression))
    elif expression.joint is Joint.OR:
        return _any_of(_of_observations(each, found) for each in expression.operands)
    else:
        found.unmatched.append(f"{expression.joint.value} of observations")
    return None


def _name_of_qualifier(expression: Qualified) -> str:
    qualifier = expression.qualifiers[0]
    if isinstance(qualifier, Within):
        return "qualifier WITHIN"
    return "qualifier REPEATS" if isinstance(qualifier, Repeats) else "qualifier START STOP"


def _of_test(test: Test, found: _Findings) -> Condition | None:
    if isinstance(test, Comparison):
        return _of_comparison(test, found)
    if isinstance(test, Exists):
        found.unmatched.append("EXISTS")
        return None
    if test.joint is Joint.OR:
        return _any_of(_of_test(each, found) for each in test.operands)
    return _all_of([_of_test(each, found) for each in _without_reference_types(test.operands)])


def _any_of(conditions: Iterable[Condition | None]) -> Condition | None:
    """
    @param conditions: The alternatives; C{None} for each that cannot be matched.
    """
    found: list[Condition] = []
    for condition in conditions:
        if condition is not None:
            found.extend(_alternatives(condition))
    if not found:
        return None
    return found[0] if len(found) == 1 else AnyOf(tuple(found))


def _all_of(conditions: Sequence[Condition | None]) -> Condition | None:
    """
    @param conditions: The conditions, at least one; C{None} for each that cannot be matched.
    """
    found = tuple(condition for condition in conditions if condition is not None)
    if len(found) < len(conditions):
        return None  # matching only the rest would report false sightings
    return found[0] if len(found) == 1 else AllOf(found)


def _without_reference_types(operands: tuple[Test, ...]) -> list[Test]:
    """
    @return: The tests of a conjunction, without tests of a reference's type that its value
        implies. MISP writes a destination address as C{network-traffic:dst_ref.type =
        'ipv4-addr' AND network-traffic:dst_ref.value = '192.0.2.1'}.
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


def _of_comparison(test: Comparison, found: _Findings) -> Condition | None:
    kind = _kind(test.path)
    if kind is None:
        path = f"object path {test.path}"
        found.unmatched.append(
            path if len(path) <= LONGEST_REASON else f"{path[: LONGEST_REASON - 1]}…"
        )
        return None
    if test.negated:
        found.unmatched.append("NOT")
        return None
    operator = test.operator
    if operator is Operator.ISSUBSET and kind in (Kind.IP, Kind.DOMAIN):
        kind = Kind.NETWORK
    elif operator is not Operator.EQUAL and operator is not Operator.IN:
        found.unmatched.append(f"operator {operator.value}")
        return None
    values = test.value if isinstance(test.value, tuple) else (test.value,)
    if not values:
        found.unmatched.append("IN of nothing")
    return _any_of(_of_value(kind, value, found) for value in values)


def _of_value(kind: Kind, value: Literal, found: _Findings) -> Term | None:
    if not isinstance(value, str):
        found.unmatched.append("a value that is no string")
        return None
    try:
        return Term(normalise(_kind_of_value(kind, value), value), value)
    except ObservableInvalid as e:
        found.invalid.append(e)
        found.unmatched.append(f"a value that is no {kind.value}")
        return None


def _kind_of_value(kind: Kind, value: str) -> Kind:
    """
    @return: The kind of a value: that of a reference may be a range, which is no domain name.
    """
    return Kind.NETWORK if kind is Kind.DOMAIN and "/" in value else kind
