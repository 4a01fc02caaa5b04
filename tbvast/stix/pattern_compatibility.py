"""
Rewrites patterns so that the parser of Threat Bus's applications accepts them.

That parser, C{stix2-patterns} 1.3, refuses some of what the specification allows, and its
programs then crash: hashes in lists or with colons, C{NOT EXISTS}, negative list positions,
and patterns that do not begin with C{[} or C{([}.
"""

from __future__ import annotations

import re

from tbvast.errors import DocumentInvalid
from tbvast.stix.pattern_grammar import (
    Comparison,
    Expression,
    Joint,
    Literal,
    ObjectPath,
    Observation,
    Observations,
    Operator,
    Qualified,
    Test,
    Tests,
    walk,
    write,
)

_BEGINNING = re.compile(r"[ \t\n\r\v\f]*(?:\([ \t\n\r\v\f]*)?\[")

_HEX = "[0-9a-fA-F]"
_HASHES = {
    name: re.compile(f"{_HEX}{{{length}}}")
    for name, length in (
        *(("MD5", 32), ("MD6", 32), ("RIPEMD160", 40), ("SHA1", 40), ("SHA224", 56)),
        *(("SHA256", 64), ("SHA384", 96), ("SHA512", 128), ("SHA3224", 56), ("SHA3256", 64)),
        *(("SHA3384", 96), ("SHA3512", 128), ("WHIRLPOOL", 128)),
    )
} | {"SSDEEP": re.compile("[a-zA-Z0-9/+:.]{1,128}")}
"""
The hashes that the parser accepts, by name in capitals, without hyphens.
"""


def surely_compatible(pattern: str) -> bool:
    """
    Whether L{compatible_pattern} is certain to leave a pattern unchanged: a fast check.

    @param pattern: A pattern; or a text that is none.
    @return: False if it is uncertain.
    """
    return pattern.startswith("[") and (
        "hashes" not in pattern or _LIST_OR_COLON.search(pattern) is None
    )


_LIST_OR_COLON = re.compile("IN|[0-9a-fA-F:']:[0-9a-fA-F:']")


def compatible_pattern(pattern: str, expression: Expression) -> tuple[str, Expression]:
    """
    Rewrite a pattern that the parser would refuse as an equivalent one: hashes without colons,
    alternatives for a list of hashes, no comments and needless parentheses.

    @param pattern: The pattern.
    @param expression: Its tree.
    @return: The pattern, unchanged if the parser accepts it; and its tree.
    @raise DocumentInvalid: If no equivalent pattern is acceptable.
    """
    if pattern.startswith("[") and _UNUSUAL.search(pattern, 1) is None:
        return pattern, expression
    changed = _of_observations(expression)
    text = pattern
    if changed != expression or _BEGINNING.match(pattern) is None:
        text = write(changed)
        if _BEGINNING.match(text) is None:
            raise DocumentInvalid("pattern", pattern, "a pattern that begins with [ or ([")
    for test in walk(changed):
        if isinstance(test, Comparison):
            _check(pattern, test)
    return text, changed


_UNUSUAL = re.compile(r"hashes|EXISTS|\[")
"""
Without one of these after its first character, nothing in a pattern can be refused.
"""


def _of_observations(expression: Expression) -> Expression:
    if isinstance(expression, Observation):
        return Observation(_of_test(expression.test))
    if isinstance(expression, Qualified):
        return Qualified(_of_observations(expression.expression), expression.qualifiers)
    return Observations(expression.joint, tuple(map(_of_observations, expression.operands)))


def _of_test(test: Test) -> Test:
    if isinstance(test, Tests):
        return Tests(test.joint, tuple(map(_of_test, test.operands)))
    form = _form(test.path)
    if form is None:
        return test
    if not isinstance(test.value, tuple):
        plain = _without_colons(form, test.value)
        return Comparison(test.path, test.operator, plain, test.negated)
    if test.negated or not test.value:
        return test
    equal = tuple(
        Comparison(test.path, Operator.EQUAL, _without_colons(form, value)) for value in test.value
    )
    return equal[0] if len(equal) == 1 else Tests(Joint.OR, equal)


def _without_colons(form: re.Pattern[str], value: Literal) -> Literal:
    if isinstance(value, str) and form.fullmatch(value) is None:
        plain = value.replace(":", "")
        if form.fullmatch(plain) is not None:
            return plain
    return value


def _form(path: ObjectPath) -> re.Pattern[str] | None:
    """
    @return: The form of the hashes that the parser accepts at a path; C{None} for any value.
    """
    name = path.steps[-1]
    if "hashes" not in path.steps or not isinstance(name, str):
        return None
    return _HASHES.get(name.upper().replace("-", "").replace("'", ""))


def _check(pattern: str, test: Comparison) -> None:
    steps = test.path.steps
    if any(isinstance(step, int) and step < 0 for step in steps):
        raise DocumentInvalid("pattern", pattern, "one with list positions from 0 on")
    if test.operator is Operator.EXISTS:
        if test.negated:
            raise DocumentInvalid("pattern", pattern, "one without NOT EXISTS")
    elif "hashes" in steps:
        if not isinstance(steps[-1], str):
            raise DocumentInvalid("pattern", pattern, "one whose hashes have names")
        form = _form(test.path)
        if form and not (isinstance(test.value, str) and form.fullmatch(test.value)):
            raise DocumentInvalid(
                "pattern", pattern, f"one that compares {test.path} with whole hashes"
            )
