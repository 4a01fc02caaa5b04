"""
Parses STIX 2.1 patterns into trees.

The grammar is that of the STIX 2.1 specification, part 9, with two additional limits:
parentheses nest at most L{DEEPEST} deep, and a number has at most L{LONGEST_NUMBER} characters.
Patterns that exceed them are refused.
"""

from __future__ import annotations

import base64
import enum
import re
from typing import NoReturn

import msgspec

from tbvast.errors import PatternInvalid

DEEPEST = 64
"""
The most levels of nested parentheses.
"""

LONGEST_NUMBER = 1000
"""
The most characters of a number.
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
                parts.append(f".{step}" if _PLAIN_NAME.fullmatch(step) else f".'{step}'")
            else:
                parts.append("[*]" if isinstance(step, AnyIndex) else f"[{step}]")
        return f"{self.type}:{''.join(parts)[1:]}"


class Comparison(msgspec.Struct, frozen=True):
    """
    The comparison of a property with a value.

    @ivar path: The property.
    @ivar operator: The operator.
    @ivar value: A tuple for L{Operator.IN}, a single literal for all other operators.
    @ivar negated: Whether C{NOT} precedes the operator.
    """

    path: ObjectPath
    operator: Operator
    value: Literal | tuple[Literal, ...]
    negated: bool = False


class Exists(msgspec.Struct, frozen=True):
    """
    The test that a property exists.

    @ivar path: The property.
    @ivar negated: Whether C{NOT} precedes the test.
    """

    path: ObjectPath
    negated: bool = False


class Tests(msgspec.Struct, frozen=True):
    """
    Tests of one observation, joined by an operator.

    @ivar joint: C{AND} or C{OR}.
    @ivar operands: The tests; at least two.
    """

    joint: Joint
    operands: tuple[Test, ...]


Test = Comparison | Exists | Tests


class Observation(msgspec.Struct, frozen=True):
    """
    The condition on one observation: C{[...]}.

    @ivar test: The condition.
    """

    test: Test


class Within(msgspec.Struct, frozen=True):
    """
    The qualifier that all observations occur within some seconds.

    @ivar seconds: The seconds.
    """

    seconds: float


class Repeats(msgspec.Struct, frozen=True):
    """
    The qualifier that the observations occur several times.

    @ivar times: The number of times.
    """

    times: int


class StartStop(msgspec.Struct, frozen=True):
    """
    The qualifier that the observations occur in an interval.

    @ivar start: The beginning, inclusive.
    @ivar stop: The end, exclusive.
    """

    start: Timestamp
    stop: Timestamp


Qualifier = Within | Repeats | StartStop


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


def parse(pattern: str) -> Expression:
    """
    Parse a pattern.

    @return: Its tree.
    @raise PatternInvalid: If C{pattern} is not a STIX 2.1 pattern.
    """
    parser = _Parser(pattern)
    expression = parser.observations()
    parser.expect("end", "the end")
    return expression


def count_terms(pattern: str) -> tuple[int, int]:
    """
    Measure the work of a recursive parser.

    @param pattern: A pattern that L{parse} accepts.
    @return: The number of comparisons and qualifiers, and the number of steps of the longest
        object path.
    """
    terms, steps, longest = 1, 0, 0
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text in _TERM_KEYWORDS:
            terms += 1
        elif text == ":":
            steps = 1
        elif text in (".", "["):
            steps += 1
            longest = max(longest, steps)
    return terms, longest


_TERM_KEYWORDS = frozenset(("AND", "OR", "FOLLOWEDBY", "WITHIN", "REPEATS", "START"))

_PLAIN_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

_TOKEN = re.compile(
    r"""
    (?P<space> [\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+
             | /\*.*?\*/ | //[^\r\n]* )
  | (?P<timestamp> t'[0-9]{4}-(?:0[1-9]|1[012])-(?:0[1-9]|[12][0-9]|3[01])
                   T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?Z' )
  | (?P<hex> h'(?:[0-9a-fA-F]{2})*' )
  | (?P<binary> b'(?:[A-Za-z0-9+/]{4})*
                (?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)' )
  | (?P<name> [a-zA-Z_][a-zA-Z0-9_-]* )
  | (?P<string> '(?:[^'\\]|\\['\\])*' )
  | (?P<float> [-+]?[0-9]*\.[0-9]+ )
  | (?P<int> [-+]?(?:0|[1-9][0-9]*) )
  | (?P<sign> == | != | <> | <= | >= | [=<>:.,()\[\]*] )
    """,
    re.VERBOSE | re.DOTALL,
)

_KEYWORDS = {
    *("AND", "OR", "NOT", "FOLLOWEDBY", "LIKE", "MATCHES", "ISSUPERSET", "ISSUBSET", "EXISTS"),
    *("LAST", "IN", "START", "STOP", "SECONDS", "true", "false", "WITHIN", "REPEATS", "TIMES"),
}

_EQUALITIES = {
    "=": Operator.EQUAL,
    "==": Operator.EQUAL,
    "!=": Operator.UNEQUAL,
    "<>": Operator.UNEQUAL,
}
_ORDERS = {
    "<": Operator.LESS,
    "<=": Operator.LESS_EQUAL,
    ">": Operator.GREATER,
    ">=": Operator.GREATER_EQUAL,
}
_TEXTUAL = {
    "LIKE": Operator.LIKE,
    "MATCHES": Operator.MATCHES,
    "ISSUBSET": Operator.ISSUBSET,
    "ISSUPERSET": Operator.ISSUPERSET,
}


_LOOSEST_FIRST = (Joint.FOLLOWEDBY, Joint.OR, Joint.AND)


class _Parser:
    """
    A recursive-descent parser for one pattern.

    @ivar kind: The kind of the current token: the token itself if it is a keyword or a sign,
        else the name of a group of L{_TOKEN}; C{"end"} after the last token.
    @ivar text: The current token.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._next = 0
        self._depth = 0
        self.kind = ""
        self.text = ""
        self.advance()

    def advance(self) -> None:
        """
        Advance to the next token.
        """
        pattern = self._pattern
        while True:
            self._position = self._next
            if self._position == len(pattern):
                self.kind = "end"
                return
            token = _TOKEN.match(pattern, self._position)
            if token is None:
                self.refuse("a STIX pattern token")
            self._next = token.end()
            kind = token.lastgroup or ""
            if kind == "space":
                continue
            self.text = token[0]
            if kind == "sign" or (kind == "name" and self.text in _KEYWORDS):
                kind = self.text
            elif kind == "name" and "-" in self.text:
                kind = "hyphenated"
            self.kind = kind
            return

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

    def observations(self, joints: tuple[Joint, ...] = _LOOSEST_FIRST) -> Expression:
        """
        Parse an expression.

        @param joints: The operators that may join its operands, the loosest first.
        """
        if not joints:
            return self._qualified()
        operands = [self.observations(joints[1:])]
        while self.accept(joints[0].value):
            operands.append(self.observations(joints[1:]))
        return operands[0] if len(operands) == 1 else Observations(joints[0], tuple(operands))

    def _qualified(self) -> Expression:
        expression: Expression
        simple = self.kind == "["
        if self.accept("["):
            expression = Observation(self._tests())
            self.expect("]", "AND, OR or ]")
        else:
            self._open("[ or (")
            expression = self.observations()
            self._close("AND, OR, FOLLOWEDBY, a qualifier or )")
        qualifiers: list[Qualifier] = []
        while self.kind in ("WITHIN", "REPEATS", "START"):
            position = self._position
            qualifier = self._qualifier()
            if simple and any(type(qualifier) is type(other) for other in qualifiers):
                raise PatternInvalid(self._pattern, position, "each qualifier at most once")
            qualifiers.append(qualifier)
        return Qualified(expression, tuple(qualifiers)) if qualifiers else expression

    def _qualifier(self) -> Qualifier:
        if self.accept("WITHIN"):
            seconds = self._positive("a positive number", "int", "float")
            self.expect("SECONDS", "SECONDS")
            return Within(seconds)
        if self.accept("REPEATS"):
            times = self._positive("a positive whole number", "int")
            self.expect("TIMES", "TIMES")
            return Repeats(int(times))
        self.expect("START", "START")
        start = self._timestamp()
        self.expect("STOP", "STOP")
        return StartStop(start, self._timestamp())

    def _positive(self, expected: str, *kinds: str) -> float:
        if self.kind not in kinds or self.text.startswith("-"):
            self.refuse(expected)
        return self._number()

    def _timestamp(self) -> Timestamp:
        return Timestamp(
            self.expect("timestamp", "a timestamp such as t'2016-01-20T12:31:12Z'")[2:-1]
        )

    def _open(self, expected: str) -> None:
        if self.kind != "(":
            self.refuse(expected)
        self._depth += 1
        if self._depth > DEEPEST:
            self.refuse(f"at most {DEEPEST} nested parentheses")
        self.advance()

    def _close(self, expected: str) -> None:
        self.expect(")", expected)
        self._depth -= 1

    def _tests(self) -> Test:
        alternatives = [self._conjunction()]
        while self.accept("OR"):
            alternatives.append(self._conjunction())
        return alternatives[0] if len(alternatives) == 1 else Tests(Joint.OR, tuple(alternatives))

    def _conjunction(self) -> Test:
        operands = [self._test()]
        while self.accept("AND"):
            operands.append(self._test())
        return operands[0] if len(operands) == 1 else Tests(Joint.AND, tuple(operands))

    def _test(self) -> Test:
        if self.kind == "(":
            self._open("(")
            test = self._tests()
            self._close("AND, OR or )")
            return test
        if self.kind in ("NOT", "EXISTS"):
            negated = self.accept("NOT")
            self.expect("EXISTS", "EXISTS")
            return Exists(self._path(), negated)
        path = self._path()
        negated = self.accept("NOT")
        kind = self.kind
        if kind in _EQUALITIES:
            self.advance()
            return Comparison(path, _EQUALITIES[kind], self._literal(), negated)
        if kind in _ORDERS:
            self.advance()
            if self.kind in ("true", "false"):
                self.refuse("a value that has an order")
            return Comparison(path, _ORDERS[kind], self._literal(), negated)
        if kind in _TEXTUAL:
            self.advance()
            return Comparison(path, _TEXTUAL[kind], self._string(), negated)
        self.expect("IN", "a comparison operator")
        return Comparison(path, Operator.IN, self._set(), negated)

    def _set(self) -> tuple[Literal, ...]:
        self.expect("(", "(")
        values: list[Literal] = []
        if not self.accept(")"):
            values.append(self._literal())
            while self.accept(","):
                values.append(self._literal())
            self.expect(")", ", or )")
        return tuple(values)

    def _path(self) -> ObjectPath:
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
                steps.append(self._index())
                self.expect("]", "]")
            else:
                return ObjectPath(kind, tuple(steps))

    def _key(self) -> str:
        if self.kind == "string":
            return self._string()
        return self.expect("name", "a property name")

    def _index(self) -> int | AnyIndex:
        if self.accept("*"):
            return AnyIndex()
        if self.kind != "int":
            self.refuse("a list position or *")
        return int(self._number())

    def _literal(self) -> Literal:
        kind, text = self.kind, self.text
        if kind == "string":
            return self._string()
        if kind in ("int", "float"):
            return self._number()
        value: Literal
        if kind in ("true", "false"):
            value = kind == "true"
        elif kind == "timestamp":
            value = Timestamp(text[2:-1])
        elif kind == "hex":
            value = bytes.fromhex(text[2:-1])
        elif kind == "binary":
            value = base64.b64decode(text[2:-1])
        else:
            self.refuse("a value")
        self.advance()
        return value

    def _string(self) -> str:
        text = self.expect("string", "a string in single quotes")[1:-1]
        return _ESCAPE.sub(r"\1", text) if "\\" in text else text

    def _number(self) -> int | float:
        text = self.text
        if len(text) > LONGEST_NUMBER:
            self.refuse(f"a number of at most {LONGEST_NUMBER} characters")
        value = int(text) if self.kind == "int" else float(text)
        self.advance()
        return value


_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
