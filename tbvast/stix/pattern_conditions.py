"""
Derives the conditions of STIX patterns that a single event can fulfil.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tbvast.errors import ObservableInvalid, PatternUnmatchable
from tbvast.stix.observables import Kind, Observable, normalise
from tbvast.stix.pattern_grammar import (
    Comparison,
    Expression,
    Joint,
    Literal,
    ObjectPath,
    Observation,
    Operator,
    Qualified,
    Test,
    parse,
)

PATTERN_RULES = 2
"""
The version of the rules for conditions. Conditions by older rules are derived again.
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
        return _distinct(_terms(self.condition))

    @property
    def observables(self) -> tuple[Observable, ...]:
        return tuple(term.observable for term in self.terms)

    @property
    def alone(self) -> tuple[Term, ...]:
        """
        The terms that are sufficient alone.
        """
        return _distinct(each for each in _alternatives(self.condition) if isinstance(each, Term))

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


def _distinct(terms: Iterable[Term]) -> tuple[Term, ...]:
    found: dict[Observable, Term] = {}
    for term in terms:
        found.setdefault(term.observable, term)
    return tuple(found.values())


def _alternatives(condition: Condition) -> Sequence[Condition]:
    # _any_of never nests alternatives.
    return condition.conditions if isinstance(condition, AnyOf) else (condition,)


def _held(condition: Condition, observables: Container[Observable]) -> tuple[Term, ...]:
    if isinstance(condition, Term):
        return (condition,) if condition.observable in observables else ()
    if isinstance(condition, AnyOf):
        each = (_held(alternative, observables) for alternative in condition.conditions)
        return next(filter(None, each), ())
    together: list[Term] = []
    for part in condition.conditions:
        terms = _held(part, observables)
        if not terms:
            return ()
        together += terms
    return _distinct(together)


def surely_matchable(pattern: str) -> bool:
    """
    Whether L{matchable} is certain to succeed: a fast check that covers the most frequent
    patterns, a single comparison whose value is in its normal form, or nearly so for a URL.

    @return: False if it is uncertain.
    """
    return _NORMAL.fullmatch(pattern) is not None


def sure_observable(pattern: str) -> Observable:
    """
    @param pattern: A pattern that is L{surely_matchable}.
    @return: Its only observable, as L{matchable} would find it.
    """
    path, _, value = pattern[1:-2].partition(" = '")
    kind = _NORMAL_KINDS[path]
    return normalise(kind, value) if kind is _URL else Observable(kind, value)


_URL = Kind.URL  # a global name is faster than a member of an enumeration


def matchable(pattern: str | Expression) -> Matchable:
    """
    Derive the matchable part of a pattern.

    @param pattern: The pattern, or its tree.
    @raise PatternInvalid: If C{pattern} is not a STIX 2.1 pattern.
    @raise PatternUnmatchable: If nothing of it can be matched; with the first reason.
    @raise ObservableInvalid: If nothing of it can be matched, and some value is malformed.
    """
    if isinstance(pattern, str):
        if surely_matchable(pattern):
            return Matchable(Term(sure_observable(pattern), pattern[1:-2].partition(" = '")[2]))
        pattern = parse(pattern)
    found = _Findings([], [])
    condition = _of_observations(pattern, found)
    if condition is not None:
        return Matchable(condition, tuple(found.unmatched))
    if found.invalid:
        raise found.invalid.pop(0)  # its traceback holds the list, which may not hold it
    raise PatternUnmatchable(found.unmatched[0])


class _Findings(NamedTuple):
    """
    The reasons why parts of a pattern cannot be matched, and the errors of malformed values.
    """

    unmatched: list[str]
    invalid: list[ObservableInvalid]


_OCTET = "(?:1[0-9]{0,2}|2(?:[0-4][0-9]?|5[0-5]?|[6-9])?|[3-9][0-9]?|0)"
_ADDRESS = rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}"
_HOST = r"(?:[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?\.){1,4}[a-z]{2,40}"

_NORMAL_FORMS = {
    "ipv4-addr:value": (Kind.IP, _ADDRESS),
    "domain-name:value": (Kind.DOMAIN, _HOST),
    "url:value": (Kind.URL, rf"https?://(?:{_ADDRESS}|{_HOST})(?:/[A-Za-z0-9/._~-]{{0,200}})?"),
    "file:hashes.MD5": (Kind.MD5, "[0-9a-f]{32}"),
    "file:hashes.'SHA-1'": (Kind.SHA1, "[0-9a-f]{40}"),
    "file:hashes.'SHA-256'": (Kind.SHA256, "[0-9a-f]{64}"),
}
"""
The kinds and forms of values in L{surely_matchable} patterns, by object path.
"""

_NORMAL_KINDS = {path: kind for path, (kind, _) in _NORMAL_FORMS.items()}
_NORMAL = re.compile(
    r"\[(?:"
    + "|".join(f"{re.escape(path)} = '{form}'" for path, (_, form) in _NORMAL_FORMS.items())
    + r")\]"
)

_KINDS: Mapping[tuple[object, ...], Kind] = {
    ("ipv4-addr", "value"): Kind.IP,
    ("ipv6-addr", "value"): Kind.IP,
    ("domain-name", "value"): Kind.DOMAIN,
    ("url", "value"): Kind.URL,
    ("email-addr", "value"): Kind.EMAIL,
    ("email-message", "from_ref", "value"): Kind.EMAIL,
    ("email-message", "sender_ref", "value"): Kind.EMAIL,
    # A reference to an address or to a domain name; the value decides.
    ("network-traffic", "src_ref", "value"): Kind.DOMAIN,
    ("network-traffic", "dst_ref", "value"): Kind.DOMAIN,
    ("file", "name"): Kind.FILE_NAME,
    ("mac-addr", "value"): Kind.MAC,
}
"""
The kinds of properties, by object type and steps.
"""

_NAMED_KINDS: Mapping[tuple[object, ...], Mapping[str, Kind]] = {
    ("file", "hashes"): {"MD5": Kind.MD5, "SHA1": Kind.SHA1, "SHA256": Kind.SHA256},
    ("x509-certificate", "hashes"): dict.fromkeys(("MD5", "SHA1", "SHA256"), Kind.CERTIFICATE),
    # STIX has no properties for these; these are the common notations.
    ("network-traffic", "extensions", "tls-ext"): {
        name + suffix: kind
        for name, kind in (("ja3", Kind.JA3), ("ja3s", Kind.JA3S), ("ja4", Kind.JA4))
        for suffix in ("", "_hash")
    },
    ("network-traffic", "extensions", "http-request-ext", "request_header"): {
        "user-agent": Kind.USER_AGENT
    },
}
"""
The kinds of properties with names in any case, by object type and the other steps. Hyphens in the
name of a hash do not matter.
"""

_REFERABLE = frozenset(("ipv4-addr", "ipv6-addr", "domain-name"))


def _kind(path: ObjectPath) -> Kind | None:
    kind = _KINDS.get((path.type, *path.steps))
    if kind is not None:
        return kind
    *where, last = path.steps
    names = _NAMED_KINDS.get((path.type, *where), {})
    hashed = where == ["hashes"]
    return names.get(str(last).upper().replace("-", "") if hashed else str(last).lower())


def _of_observations(expression: Expression, found: _Findings) -> Condition | None:
    if isinstance(expression, Observation):
        return _of_test(expression.test, found)
    if isinstance(expression, Qualified):
        found.unmatched.append(f"qualifier {expression.qualifiers[0].name}")
    elif expression.joint is Joint.OR:
        return _any_of(_of_observations(each, found) for each in expression.operands)
    else:
        found.unmatched.append(f"{expression.joint.value} of observations")
    return None


def _of_test(test: Test, found: _Findings) -> Condition | None:
    if isinstance(test, Comparison):
        return _of_comparison(test, found)
    if test.joint is Joint.OR:
        return _any_of(_of_test(each, found) for each in test.operands)
    return _all_of([_of_test(each, found) for each in _without_reference_types(test.operands)])


def _any_of(conditions: Iterable[Condition | None]) -> Condition | None:
    found: list[Condition] = []
    for condition in conditions:
        if condition is not None:
            found.extend(_alternatives(condition))
    if not found:
        return None
    return found[0] if len(found) == 1 else AnyOf(tuple(found))


def _all_of(conditions: Sequence[Condition | None]) -> Condition | None:
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
    if test.operator is Operator.EXISTS:
        found.unmatched.append("EXISTS")
        return None
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


def _of_value(expected: Kind, value: Literal, found: _Findings) -> Term | None:
    if not isinstance(value, str):
        found.unmatched.append("a value that is no string")
        return None
    # A reference may be to a range, which is no domain name.
    kind = Kind.NETWORK if expected is Kind.DOMAIN and "/" in value else expected
    try:
        return Term(normalise(kind, value), value)
    except ObservableInvalid as e:
        found.invalid.append(e.with_traceback(None))
        found.unmatched.append(f"a value that is no {expected.value}")
        return None
