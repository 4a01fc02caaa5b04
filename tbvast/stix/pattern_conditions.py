"""
What of a STIX pattern a single event can decide.
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
Counts changes of what is matched; stored patterns are derived again when it is larger.
"""

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


class AllOf(msgspec.Struct, frozen=True):
    """
    Conditions that must all hold in the same event; at least two.
    """

    conditions: tuple[Condition, ...]


class AnyOf(msgspec.Struct, frozen=True):
    """
    Conditions of which one must hold; at least two.
    """

    conditions: tuple[Condition, ...]


Condition = Term | AllOf | AnyOf


class Matchable(msgspec.Struct, frozen=True):
    """
    What of a pattern can be matched.

    @ivar condition: What an event must hold; without the alternatives that cannot be
        matched.
    @ivar unmatched: Why these cannot be, as short phrases that can be counted: one for
        each part that is in the way.
    """

    condition: Condition
    unmatched: tuple[str, ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """
        At least one; each observable once, in the pattern's order.
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
        The terms' observables.
        """
        return tuple(term.observable for term in self.terms)

    @property
    def alone(self) -> tuple[Term, ...]:
        """
        Those of the terms each of which is enough.
        """
        found: dict[Observable, Term] = {}
        for condition in _alternatives(self.condition):
            if isinstance(condition, Term):
                found.setdefault(condition.observable, condition)
        return tuple(found.values())

    @property
    def joint(self) -> bool:
        """
        Whether there are terms that are not enough, but need others in the same event.
        """
        return not all(isinstance(each, Term) for each in _alternatives(self.condition))

    @property
    def needed(self) -> tuple[frozenset[Observable], ...]:
        """
        Sets of observables of each of which an event that matches holds one.
        """
        condition = self.condition
        parts = condition.conditions if isinstance(condition, AllOf) else (condition,)
        return tuple(frozenset(term.observable for term in _terms(part)) for part in parts)

    def held(self, observables: Container[Observable]) -> tuple[Term, ...]:
        """
        The terms by which an event matches: those of the first alternative, in the
        pattern's order, that holds.

        @param observables: What the event holds.
        @return: Each observable once; nothing if the event does not match.
        """
        return _held(self.condition, observables)


def _terms(condition: Condition) -> Iterator[Term]:
    if isinstance(condition, Term):
        yield condition
    else:
        for each in condition.conditions:
            yield from _terms(each)


def _alternatives(condition: Condition) -> Sequence[Condition]:
    # One within another is not made.
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
    A quick look, for the most frequent patterns: whether L{matchable} would find
    something, without working out what.

    @return: False if that is not known.
    """
    return _NORMAL.fullmatch(pattern) is not None


def sure_observable(pattern: str) -> Observable:
    """
    The only observable of a pattern, as L{matchable} would find it.

    @param pattern: One that L{surely_matchable} knows.
    """
    path, _, value = pattern[1:-2].partition(" = '")
    kind = _KIND_OF_TEXT[path]
    return normalise(kind, value) if kind is _URL else Observable(kind, value)


_URL = Kind.URL
# Names of the module are found quicker than those of an enumeration.


def validate(pattern: str) -> None:
    """
    Check that a text is a STIX pattern; as L{parse}, but quicker for most.

    @raise PatternInvalid: If it is not.
    """
    simple = _SIMPLE.fullmatch(pattern)
    if (simple is None or simple[1] not in _KIND_OF_TEXT) and _joined(pattern) is None:
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
    @raise PatternUnmatchable: If none of it can be matched; with the first reason.
    @raise ObservableInvalid: If none of it can be matched, and a value in it is none:
        an address that is no address, say.
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
    The parts of several simple comparisons, and what joins all of them.

    @return: L{None} if it is anything else.
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
    What has been found to be in the way so far.
    """

    unmatched: list[str]
    invalid: list[ObservableInvalid]


_PART = r"([a-z0-9-]+:[A-Za-z0-9_.'-]+) ?= ?'([^'\\]*)'"
_SIMPLE = re.compile(rf"\[ ?{_PART} ?\]")
"""
A single comparison without anything to unescape; only a shortcut, and only for the
object paths of L{_KIND_OF_TEXT}.
"""

_JOINED = re.compile(rf"\[ ?{_PART}(?:(?: AND {_PART})+|(?: OR {_PART})+) ?\]")
"""
Several of them; the same holds.
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
A single comparison with a value that needs hardly any change to be in its normal form.
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


def _of_observations(expression: Expression, found: _Findings) -> Condition | None:
    """
    @return: L{None} if nothing of it can be matched.
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
    @param conditions: L{None} for one that cannot be matched.
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
    @param conditions: At least one; L{None} for one that cannot be matched.
    """
    found = tuple(condition for condition in conditions if condition is not None)
    if len(found) < len(conditions):
        return None  # matched by the rest alone, it would be seen where it is not
    return found[0] if len(found) == 1 else AllOf(found)


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
    A reference's value may be a range, which no domain name can be.
    """
    return Kind.NETWORK if kind is Kind.DOMAIN and "/" in value else kind
