"""
Parses STIX 2.1 patterns into trees, and writes trees as patterns.

The grammar is that of the STIX 2.1 specification, part 9, with two limits: parentheses nest at most
L{DEEPEST} deep, and a number has at most L{LONGEST_NUMBER} characters.
"""

from __future__ import annotations

import base64
import enum
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from typing import NoReturn, TypeVar

import msgspec

from tbvast.errors import PatternInvalid

DEEPEST, LONGEST_NUMBER = 64, 1000
"""
The most levels of nested parentheses, and characters of a number.
"""


class Operator(enum.StrEnum):
    """
    The operator of a comparison.
    """

    EQUAL = "="
    UNEQUAL = "!="
    LESS = "<"
    LESS_EQUAL = "<="
    GREATER = ">"
    GREATER_EQUAL = ">="
    IN = "IN"
    LIKE = "LIKE"
    MATCHES = "MATCHES"
    ISSUBSET = "ISSUBSET"
    ISSUPERSET = "ISSUPERSET"
    EXISTS = "EXISTS"


class Joint(enum.StrEnum):
    """
    The operator that joins tests or observations.
    """

    AND = "AND"
    OR = "OR"
    FOLLOWEDBY = "FOLLOWEDBY"


class Timestamp(msgspec.Struct, frozen=True):
    """
    A point in time.

    @ivar text: The timestamp as written, such as C{2016-01-20T12:31:12.123Z}.
    """

    text: str


Literal = str | bool | int | float | bytes | Timestamp


class AnyIndex(msgspec.Struct, frozen=True):
    """
    The step C{[*]}.
    """


class ObjectPath(msgspec.Struct, frozen=True):
    """
    The path of a property, such as C{file:hashes.'SHA-256'}.

    @ivar type: The object's type.
    @ivar steps: Property names, list positions, and L{AnyIndex}; at least one.
    """

    type: str
    steps: tuple[str | int | AnyIndex, ...]

    def __str__(self) -> str:
        parts = []
        for step in self.steps:
            if isinstance(step, str):
                plain = _PLAIN_NAME.fullmatch(step) is not None
                parts.append(f".{step}" if plain else f".{_quoted(step)}")
            else:
                parts.append("[*]" if isinstance(step, AnyIndex) else f"[{step}]")
        return f"{self.type}:{''.join(parts)[1:]}"


class Comparison(msgspec.Struct, frozen=True):
    """
    The comparison of a property with a value, or the test that it exists.

    @ivar path: The property.
    @ivar operator: The operator.
    @ivar value: One literal; a tuple for L{Operator.IN}, empty for L{Operator.EXISTS}.
    @ivar negated: Whether C{NOT} precedes the operator.
    """

    path: ObjectPath
    operator: Operator
    value: Literal | tuple[Literal, ...] = ()
    negated: bool = False


class Tests(msgspec.Struct, frozen=True):
    """
    Tests of one observation, joined by an operator.

    @ivar joint: C{AND} or C{OR}.
    @ivar operands: The tests; at least two.
    """

    joint: Joint
    operands: tuple[Test, ...]


Test = Comparison | Tests


class Observation(msgspec.Struct, frozen=True):
    """
    The condition on one observation: C{[...]}.

    @ivar test: The condition.
    """

    test: Test


class Qualifier(msgspec.Struct, frozen=True):
    """
    A condition on when, or how often, observations occur.

    @ivar name: C{WITHIN}, C{REPEATS} or C{START STOP}.
    @ivar values: The seconds in which all of them occur; or the number of times; or the beginning
        of an interval, inclusive, and its end, exclusive.
    """

    name: str
    values: tuple[Literal, ...]


class Qualified(msgspec.Struct, frozen=True):
    """
    An expression with qualifiers.

    @ivar expression: The expression whose observations have to fulfil the qualifiers.
    @ivar qualifiers: The qualifiers; at least one.
    """

    expression: Expression
    qualifiers: tuple[Qualifier, ...]


class Observations(msgspec.Struct, frozen=True):
    """
    Expressions joined by an operator.

    @ivar joint: The operator.
    @ivar operands: The expressions; at least two.
    """

    joint: Joint
    operands: tuple[Expression, ...]


Expression = Observation | Observations | Qualified


def parse(pattern: str, most: int | None = None) -> Expression:
    """
    Parse a pattern.

    @param most: The most tokens; C{None} for any number.
    @return: Its tree.
    @raise PatternInvalid: If C{pattern} is not a STIX 2.1 pattern, or has more tokens.
    """
    parser = _Parser(pattern, most)
    expression = parser.observations()
    if parser.kind != "end":
        parser.refuse("the end")
    return expression


def walk(expression: Expression | Test) -> Iterator[Comparison | Qualifier]:
    """
    @return: The comparisons and qualifiers of an expression, in the pattern's order.
    """
    if isinstance(expression, Observation):
        yield from walk(expression.test)
    elif isinstance(expression, Qualified):
        yield from walk(expression.expression)
        yield from expression.qualifiers
    elif isinstance(expression, Observations | Tests):
        for operand in expression.operands:
            yield from walk(operand)
    else:
        yield expression


def write(expression: Expression | Test) -> str:
    """
    Write a tree, of which L{parse} makes an equal one, without comments and needless parentheses.
    """
    return _written(expression, 0)


def _written(node: Expression | Test, tightness: int) -> str:
    """
    @param tightness: The tightness of the place: a node that binds no tighter gets parentheses.
    """
    if isinstance(node, Comparison):
        return _written_comparison(node)
    if isinstance(node, Observation):
        return f"[{_written(node.test, 0)}]"
    if isinstance(node, Qualified):
        operand = write(node.expression)
        names = {qualifier.name for qualifier in node.qualifiers}
        if not isinstance(node.expression, Observation) or len(names) < len(node.qualifiers):
            operand = f"({operand})"
        return " ".join((operand, *map(_written_qualifier, node.qualifiers)))
    own = _TIGHTNESS[node.joint]
    text = f" {node.joint.value} ".join(_written(each, own) for each in node.operands)
    return text if own > tightness else f"({text})"


_TIGHTNESS = {Joint.FOLLOWEDBY: 1, Joint.OR: 2, Joint.AND: 3}


def _written_qualifier(qualifier: Qualifier) -> str:
    values = [_written_literal(value) for value in qualifier.values]
    if qualifier.name == "WITHIN":
        return f"WITHIN {values[0]} SECONDS"
    if qualifier.name == "REPEATS":
        return f"REPEATS {values[0]} TIMES"
    return f"START {values[0]} STOP {values[1]}"


def _written_comparison(test: Comparison) -> str:
    negation = "NOT " if test.negated else ""
    if test.operator is Operator.EXISTS:
        return f"{negation}EXISTS {test.path}"
    if isinstance(test.value, tuple):
        value = f"({', '.join(map(_written_literal, test.value))})"
    else:
        value = _written_literal(test.value)
    return f"{test.path} {negation}{test.operator.value} {value}"


def _written_literal(value: Literal) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return f"h'{value.hex()}'"
    if isinstance(value, Timestamp):
        return f"t'{value.text}'"
    if isinstance(value, float):
        if math.isinf(value):  # it was written with more digits than a number can have
            return f"{'-' if value < 0 else ''}{_INFINITE}"
        text = f"{Decimal(repr(value)):f}"  # the grammar has no exponents
        return text if "." in text else f"{text}.0"
    return str(value)


_INFINITE = f"1{'0' * sys.float_info.max_10_exp}0.0"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_KEYWORD = (
    "AND|OR|NOT|FOLLOWEDBY|LIKE|MATCHES|ISSUPERSET|ISSUBSET|EXISTS|LAST|IN"
    "|START|STOP|SECONDS|true|false|WITHIN|REPEATS|TIMES"
)
_PLAIN_NAME = re.compile(rf"(?!(?:{_KEYWORD})\Z)[a-zA-Z_][a-zA-Z0-9_]*")

_TOKEN = re.compile(
    rf"""
    (?: [\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+
      | /\*.*?\*/ | //[^\r\n]* )*+
    (?: (?P<end> \Z )
      | (?P<timestamp> t'[0-9]{{4}}-(?:0[1-9]|1[012])-(?:0[1-9]|[12][0-9]|3[01])
                       T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?Z' )
      | (?P<hex> h'(?:[0-9a-fA-F]{{2}})*' )
      | (?P<binary> b'(?:[A-Za-z0-9+/]{{4}})*
                    (?:[A-Za-z0-9+/]{{4}}|[A-Za-z0-9+/]{{3}}=|[A-Za-z0-9+/]{{2}}==)' )
      | (?P<string> '[^'\\]*+(?:\\['\\][^'\\]*+)*+' )
      | (?P<float> [-+]?[0-9]*\.[0-9]+ )
      | (?P<int> [-+]?(?:0|[1-9][0-9]*) )
      | (?P<sign> == | != | <> | <= | >= | [=<>:.,()\[\]*]
                | (?:{_KEYWORD})(?![a-zA-Z0-9_-]) )
      | (?P<name> [a-zA-Z_][a-zA-Z0-9_]*+(?!-) )
      | (?P<hyphenated> [a-zA-Z_][a-zA-Z0-9_-]*+ )
      | (?P<other> . ) )
    """,
    re.VERBOSE | re.DOTALL,
)

_OPERATORS: Mapping[str, Operator] = {
    **{each.value: each for each in Operator if each is not Operator.EXISTS},
    "==": Operator.EQUAL,
    "<>": Operator.UNEQUAL,
}
_ORDERS = (Operator.LESS, Operator.LESS_EQUAL, Operator.GREATER, Operator.GREATER_EQUAL)
_TEXTUAL = (Operator.LIKE, Operator.MATCHES, Operator.ISSUBSET, Operator.ISSUPERSET)

V = TypeVar("V")
Readers = Mapping[str, Callable[[str], V]]
"""
The functions that read literals, by the kind of token.
"""

_STRING: Readers[str] = {
    "string": lambda text: (
        # Between escaped backslashes, a backslash stands only before a quote.
        "\\".join([part.replace("\\'", "'") for part in text[1:-1].split("\\\\")])
    )
}
_WHOLE: Readers[int] = {"int": int}
_NUMBER: Readers[int | float] = {"int": int, "float": float}
_TIMESTAMP: Readers[Timestamp] = {"timestamp": lambda text: Timestamp(text[2:-1])}
_LITERAL: Readers[Literal] = {
    **_STRING,
    **_NUMBER,
    **_TIMESTAMP,
    "true": lambda _: True,
    "false": lambda _: False,
    "hex": lambda text: bytes.fromhex(text[2:-1]),
    "binary": lambda text: base64.b64decode(text[2:-1]),
}


class _Parser:
    """
    A recursive-descent parser for one pattern.

    @ivar kind: The kind of the current token: the token itself if it is a keyword or a sign,
        else the name of a group of L{_TOKEN}.
    @ivar text: The current token.
    """

    def __init__(self, pattern: str, most: int | None = None) -> None:
        """
        @param most: As for L{parse}.
        """
        self._pattern = pattern
        self._most = math.inf if most is None else most
        self._count = 0
        self._position = self._end = 0
        self._depth = 0
        self.kind = ""
        self.text = ""
        self.advance()

    def advance(self) -> None:
        token = _TOKEN.match(self._pattern, self._end)
        assert token is not None  # it matches anything
        self._count += 1
        kind = token.lastgroup or ""
        self.text = token[kind]
        self._position, self._end = token.span(kind)
        self.kind = self.text if kind == "sign" else kind
        if kind == "other":
            self.refuse("a STIX pattern token")
        if self._count > self._most and kind != "end":
            self.refuse(f"the end after at most {self._most} tokens")

    def refuse(self, expected: str) -> NoReturn:
        """
        @raise PatternInvalid: Always, with the current token's position.
        """
        raise PatternInvalid(self._pattern, self._position, expected)

    def expect(self, kind: str, expected: str) -> str:
        """
        Consume a token that must be the current one.

        @return: The token.
        @raise PatternInvalid: If it is not.
        """
        if self.kind != kind:
            self.refuse(expected)
        text = self.text
        self.advance()
        return text

    def accept(self, kind: str) -> bool:
        """
        Consume a token if it is the current one.

        @return: Whether it was.
        """
        if self.kind != kind:
            return False
        self.advance()
        return True

    def observations(self) -> Expression:
        return self._joined((Joint.FOLLOWEDBY, Joint.OR, Joint.AND), self._qualified, Observations)

    def _tests(self) -> Test:
        return self._joined((Joint.OR, Joint.AND), self._test, Tests)

    def _joined(
        self,
        joints: tuple[Joint, ...],
        operand: Callable[[], V],
        node: Callable[[Joint, tuple[V, ...]], V],
    ) -> V:
        """
        Parse operands.

        @param joints: The operators that may join them, the loosest first.
        @param operand: Parses an operand.
        @param node: Makes the node of several operands.
        """
        operands = [operand()]
        signs: list[str] = []
        while self.kind in joints:
            signs.append(self.kind)
            self.advance()
            operands.append(operand())
        return _grouped(joints, operands, signs, node)

    def _parenthesised(self, inner: Callable[[], V], expected: str) -> V:
        self._depth += 1
        if self._depth > DEEPEST:
            self.refuse(f"at most {DEEPEST} nested parentheses")
        self.advance()
        found = inner()
        self.expect(")", expected)
        self._depth -= 1
        return found

    def _qualified(self) -> Expression:
        expression: Expression
        simple = self.kind == "["
        if self.accept("["):
            expression = Observation(self._tests())
            self.expect("]", "AND, OR or ]")
        elif self.kind == "(":
            expression = self._parenthesised(
                self.observations, "AND, OR, FOLLOWEDBY, a qualifier or )"
            )
        else:
            self.refuse("[ or (")
        qualifiers: list[Qualifier] = []
        while self.kind in ("WITHIN", "REPEATS", "START"):
            position = self._position
            qualifier = self._qualifier()
            if simple and any(qualifier.name == other.name for other in qualifiers):
                raise PatternInvalid(self._pattern, position, "each qualifier at most once")
            qualifiers.append(qualifier)
        return Qualified(expression, tuple(qualifiers)) if qualifiers else expression

    def _qualifier(self) -> Qualifier:
        if self.accept("WITHIN"):
            seconds = self._positive("a positive number", _NUMBER)
            self.expect("SECONDS", "SECONDS")
            return Qualifier("WITHIN", (seconds,))
        if self.accept("REPEATS"):
            times = self._positive("a positive whole number", _WHOLE)
            self.expect("TIMES", "TIMES")
            return Qualifier("REPEATS", (times,))
        self.expect("START", "START")
        start = self._value("a timestamp such as t'2016-01-20T12:31:12Z'", _TIMESTAMP)
        self.expect("STOP", "STOP")
        stop = self._value("a timestamp such as t'2016-01-20T12:31:12Z'", _TIMESTAMP)
        return Qualifier("START STOP", (start, stop))

    def _positive(self, expected: str, readers: Readers[V]) -> V:
        if self.text.startswith("-"):
            self.refuse(expected)
        return self._value(expected, readers)

    def _test(self) -> Test:
        usual = _USUAL.match(self._pattern, self._position)
        if usual is not None and (known := _usual_path(usual[1])) is not None:
            self._end = usual.end()
            self.advance()
            return Comparison(known, Operator.EQUAL, usual[2])
        if self.kind == "(":
            return self._parenthesised(self._tests, "AND, OR or )")
        if self.kind in ("NOT", "EXISTS"):
            negated = self.accept("NOT")
            self.expect("EXISTS", "EXISTS")
            return Comparison(self.path(), Operator.EXISTS, negated=negated)
        path = self.path()
        negated = self.accept("NOT")
        operator = _OPERATORS.get(self.kind)
        if operator is None:
            self.refuse("a comparison operator")
        self.advance()
        value: Literal | tuple[Literal, ...]
        if operator is Operator.IN:
            value = self._set()
        elif operator in _TEXTUAL:
            value = self._value("a string in single quotes", _STRING)
        elif operator in _ORDERS and self.kind in ("true", "false"):
            self.refuse("a value that has an order")
        else:
            value = self._value("a value", _LITERAL)
        return Comparison(path, operator, value, negated)

    def _set(self) -> tuple[Literal, ...]:
        self.expect("(", "(")
        values: list[Literal] = []
        if not self.accept(")"):
            values.append(self._value("a value", _LITERAL))
            while self.accept(","):
                values.append(self._value("a value", _LITERAL))
            self.expect(")", ", or )")
        return tuple(values)

    def path(self) -> ObjectPath:
        if self.kind not in ("name", "hyphenated"):
            self.refuse("an object path such as ipv4-addr:value")
        kind = self.text
        self.advance()
        self.expect(":", ":")
        steps: list[str | int | AnyIndex] = [self._key()]
        while True:
            if self.accept("."):
                steps.append(self._key())
            elif self.accept("["):
                steps.append(
                    AnyIndex() if self.accept("*") else self._value("a list position or *", _WHOLE)
                )
                self.expect("]", "]")
            else:
                return ObjectPath(kind, tuple(steps))

    def _key(self) -> str:
        if self.kind == "name":
            return self.expect("name", "a property name")
        return self._value("a property name", _STRING)

    def _value(self, expected: str, readers: Readers[V]) -> V:
        """
        Consume a literal.

        @param expected: The valid literals in words, for the error.
        @param readers: The functions that read the valid kinds.
        @raise PatternInvalid: If the current token is of another kind, or too long a number.
        """
        read = readers.get(self.kind)
        if read is None:
            self.refuse(expected)
        if len(self.text) > LONGEST_NUMBER and self.kind in _NUMBER:
            self.refuse(f"a number of at most {LONGEST_NUMBER} characters")
        value = read(self.text)
        self.advance()
        return value


def _grouped(
    joints: tuple[Joint, ...],
    operands: list[V],
    signs: list[str],
    node: Callable[[Joint, tuple[V, ...]], V],
) -> V:
    """
    @param joints: The operators, the loosest first.
    @param operands: One more than C{signs}.
    @param signs: The operators between them.
    """
    if not signs:
        return operands[0]
    joint, tighter = joints[0], joints[1:]
    ends = [index for index, sign in enumerate(signs) if sign == joint]
    starts = [0, *(end + 1 for end in ends)]
    ends.append(len(signs))
    groups = [
        _grouped(tighter, operands[start : end + 1], signs[start:end], node)
        for start, end in zip(starts, ends, strict=True)
    ]
    return groups[0] if len(groups) == 1 else node(joint, tuple(groups))


_USUAL = re.compile(r"([a-zA-Z][a-zA-Z0-9_-]{0,40}:[a-zA-Z0-9_.'-]{1,80}) = '([^'\\]*)'")
"""
Most comparisons. This expression only saves time: the other way has the same result.
"""


@lru_cache(1000)
def _usual_path(text: str) -> ObjectPath | None:
    parser = _Parser(text)
    with suppress(PatternInvalid):
        path = parser.path()
        if parser.kind == "end":
            return path
    return None
