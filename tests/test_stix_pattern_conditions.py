"""
Tests for L{tbvast.stix.pattern_grammar} and L{tbvast.stix.pattern_conditions}.
"""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stix2patterns.exceptions import ParseException
from stix2patterns.v21.pattern import Pattern
from stix2patterns.v21.validator import DuplicateQualifierTypeError, ValidationListener
from stix2patterns.validator import run_validator
from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import ObservableInvalid, PatternInvalid, PatternUnmatchable
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.pattern_conditions import (
    _NORMAL,
    matchable,
    sure_observable,
    surely_matchable,
)
from tbvast.stix.pattern_grammar import (
    DEEPEST,
    AnyIndex,
    Comparison,
    Joint,
    ObjectPath,
    Observation,
    Observations,
    Operator,
    Qualified,
    Qualifier,
    Tests,
    Timestamp,
    parse,
    walk,
    write,
)

STIX = FilePath(__file__).sibling("data").child("stix")


def published_patterns() -> list[str]:
    """
    Every pattern of the bundles in C{tests/data/stix}.
    """
    return [
        item["pattern"]
        for bundle in sorted(STIX.children())
        for item in msgspec.json.decode(bundle.getContent())["objects"]
        if item["type"] == "indicator"
    ]


def accepted_elsewhere(pattern: str) -> bool:
    """
    Whether C{stix2-patterns} takes a text for a pattern.

    Its check of hashes is disabled: the form of values is not part of the grammar.
    """
    try:
        Pattern(pattern).walk(ValidationListener())
    except (ParseException, DuplicateQualifierTypeError):
        return False
    return True


def accepted(pattern: str) -> bool:
    """
    Whether L{parse} takes a text for a pattern.
    """
    try:
        parse(pattern)
    except PatternInvalid:
        return False
    return True


_space = st.sampled_from(["", "", "", " ", "\n\t", "\u00a0", "/* [ */", "// '\n"])
_gap = st.sampled_from([" ", " ", "  ", "\u3000", "/**/"])
_string = st.text("aX0 .%*[]é\u202e\n-", max_size=6).map("'{}'".format) | st.sampled_from(
    [r"'it\'s'", r"'\\'", "''", "'198.51.100.0/24'"]
)
_timestamp = st.sampled_from(["t'2016-01-20T12:31:12Z'", "t'2024-02-30T23:59:60.123Z'"])
_orderable = (
    _string
    | _timestamp
    | st.sampled_from(["0", "12", "-3", "+4", "1.5", "-.5", "+0.25", "h''", "h'0aFF'", "b'QUI='"])
)
_literal = _orderable | st.sampled_from(["true", "false"])
_set = st.lists(st.tuples(_space, _literal, _space).map("".join), max_size=3).map(
    lambda literals: f"({','.join(literals)})"
)
_key = st.sampled_from(["value", "hashes", "_x", "A1", "dst_ref"]) | _string
_step = _key.map(".{}".format) | st.sampled_from(["[0]", "[*]", "[ 12 ]", "[-1]"])
_path = st.builds(
    "{}{}:{}{}".format,
    st.sampled_from(["file", "ipv4-addr", "x_y", "x-", "INto", "t"]),
    _space,
    _key,
    st.lists(_step, max_size=3).map("".join),
)
_negation = st.sampled_from(["", "", "NOT "])


def _spaced(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*(part for each in parts for part in (each, _gap))).map("".join)


_comparison = (
    _spaced(_path, _negation, st.sampled_from(["=", "==", "!=", "<>"]), _literal)
    | _spaced(_path, _negation, st.sampled_from(["<", "<=", ">", ">="]), _orderable)
    | _spaced(_path, _negation, st.just("IN"), _set)
    | _spaced(
        _path, _negation, st.sampled_from(["LIKE", "MATCHES", "ISSUBSET", "ISSUPERSET"]), _string
    )
    | _spaced(_negation, st.just("EXISTS"), _path)
)


def _joined(joints: list[str], operands: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return _spaced(operands, st.sampled_from(joints), operands) | operands.map("({})".format)


_tests = st.recursive(_comparison, lambda inner: _joined(["AND", "OR"], inner), max_leaves=4)
_qualifier = st.sampled_from(
    [
        " WITHIN 5 SECONDS",
        " WITHIN .5 SECONDS",
        " REPEATS 2 TIMES",
        " START t'2016-01-20T12:31:12Z' STOP t'2016-01-21T12:31:12.5Z'",
    ]
)
_observation = st.builds("[{}]{}".format, _tests, st.lists(_qualifier, max_size=2).map("".join))
_compound = st.builds("({}){}".format, _observation, st.lists(_qualifier, max_size=2).map("".join))
patterns = st.recursive(
    _observation | _compound,
    lambda inner: _joined(["AND", "OR", "FOLLOWEDBY"], inner),
    max_leaves=3,
)


@st.composite
def nearly_patterns(draw: st.DrawFn) -> str:
    """
    Patterns with something taken out, put in, or said twice.
    """
    pattern: str = draw(patterns)
    start = draw(st.integers(0, len(pattern)))
    end = draw(st.integers(start, min(len(pattern), start + 3)))
    fragment = st.sampled_from(
        [
            "",
            "'",
            "\\",
            "[",
            "]",
            "(",
            ")",
            " ",
            "NOT",
            "IN",
            "=",
            "0",
            "-",
            ".",
            "a",
            "t'",
            "/",
            ";",
        ]
    )
    return pattern[:start] + draw(fragment) + pattern[end:]


class ParseTests(SynchronousTestCase):
    """
    Tests for L{parse}.
    """

    def test_comparison(self) -> None:
        """
        A path, an operator and a value, in an observation.
        """
        self.assertEqual(
            parse(r"[file:extensions.'x-y'[*].a[0] NOT LIKE 'it\'s \\']"),
            Observation(
                Comparison(
                    ObjectPath("file", ("extensions", "x-y", AnyIndex(), "a", 0)),
                    Operator.LIKE,
                    "it's \\",
                    negated=True,
                )
            ),
        )

    def test_values(self) -> None:
        """
        Every kind of literal has a value of its own.
        """
        expression = parse(
            "[a:b IN ('s', 1, -2, 1.5, -.5, true, false, h'0aFF', b'QUI=',"
            " t'2016-01-20T12:31:12Z')]"
        )
        self.assertEqual(
            expression,
            Observation(
                Comparison(
                    ObjectPath("a", ("b",)),
                    Operator.IN,
                    (
                        "s",
                        1,
                        -2,
                        1.5,
                        -0.5,
                        True,
                        False,
                        b"\x0a\xff",
                        b"AB",
                        Timestamp("2016-01-20T12:31:12Z"),
                    ),
                )
            ),
        )

    def test_precedence(self) -> None:
        """
        AND binds tighter than OR, and OR tighter than FOLLOWEDBY.
        """
        a, b, c = (_exists(name) for name in "abc")
        self.assertEqual(
            parse("[EXISTS a:x OR EXISTS b:x AND EXISTS c:x]"),
            Observation(Tests(Joint.OR, (a, Tests(Joint.AND, (b, c))))),
        )
        self.assertEqual(
            parse("[EXISTS a:x] FOLLOWEDBY [EXISTS b:x] OR [EXISTS c:x] AND [EXISTS a:x]"),
            Observations(
                Joint.FOLLOWEDBY,
                (
                    Observation(a),
                    Observations(
                        Joint.OR,
                        (
                            Observation(b),
                            Observations(Joint.AND, (Observation(c), Observation(a))),
                        ),
                    ),
                ),
            ),
        )

    def test_qualifiers(self) -> None:
        """
        Qualifiers belong to the observation, or the group, before them.
        """
        self.assertEqual(
            parse(
                "[EXISTS a:x] WITHIN 1.5 SECONDS REPEATS 2 TIMES"
                " START t'2016-01-20T12:31:12Z' STOP t'2017-01-20T12:31:12Z'"
            ),
            Qualified(
                Observation(_exists("a")),
                (
                    Qualifier("WITHIN", (1.5,)),
                    Qualifier("REPEATS", (2,)),
                    Qualifier(
                        "START STOP",
                        (Timestamp("2016-01-20T12:31:12Z"), Timestamp("2017-01-20T12:31:12Z")),
                    ),
                ),
            ),
        )

    def test_refused(self) -> None:
        """
        The message tells the position of the error, and the expected tokens.
        """
        for pattern, position, expected in (
            ("", 0, "[ or ("),
            ("domain-name:value = 'x'", 0, "[ or ("),
            ("[domain-name:value = 'x'", 24, "AND, OR or ]"),
            ("[domain-name:value = x]", 21, "a value"),
            ("[domain-name:value 'x']", 19, "a comparison operator"),
            ("[domain-name.value = 'x']", 12, ":"),
            ("[domain-name:value = 'x]", 21, "a STIX pattern token"),
            (r"[domain-name:value = '\x']", 21, "a STIX pattern token"),
            ("[domain-name:value = 'x'] [", 26, "the end"),
            ("[file:hashes.SHA-256 = 'x']", 13, "a property name"),
            ("[file:size > true]", 13, "a value that has an order"),
            ("[a:b = 1] WITHIN -5 SECONDS", 17, "a positive number"),
            ("[a:b = 1] REPEATS 1.5 TIMES", 18, "a positive whole number"),
            ("[a:b = 1] REPEATS 1 TIMES REPEATS 2 TIMES", 26, "each qualifier at most once"),
            ("[a:b = t'2016-13-20T12:31:12Z']", 7, "a value"),
            ("[a:b = 1] START 2 STOP 3", 16, "a timestamp such as t'2016-01-20T12:31:12Z'"),
            ("[NOT a:b = 1]", 5, "EXISTS"),
            ("[a:b[x] = 1]", 5, "a list position or *"),
        ):
            error = self.assertRaises(PatternInvalid, parse, pattern)
            self.assertEqual((error.position, error.expected), (position, expected))

    def test_hostile(self) -> None:
        """
        Nesting and numbers without end are refused, not a way to exhaust anything.
        """
        deep = f"{'(' * DEEPEST}[a:b = 1]{')' * DEEPEST}"
        self.assertIsInstance(parse(deep), Observation)
        for pattern in (
            "(" * 100_000,
            f"({deep})",
            f"[{'(' * 100_000}",
            f"[a:b = {'9' * 100_000}]",
            f"[a:b = 1] WITHIN {'9' * 100_000} SECONDS",
        ):
            error = self.assertRaises(PatternInvalid, parse, pattern)
            self.assertLess(len(str(error)), 500)
        wide = " OR ".join(["[a:b = 1]"] * 10_000)
        self.assertEqual(len(parse(wide).operands), 10_000)  # type: ignore[union-attr]
        parse(f"({wide}){' WITHIN 1 SECONDS' * 10_000}")

    def test_published(self) -> None:
        """
        Real patterns are patterns, here as in C{stix2-patterns}.
        """
        found = published_patterns()
        self.assertEqual(len(found), 398)
        for pattern in found:
            parse(pattern)
            self.assertEqual(run_validator(pattern, "2.1"), [])

    @settings(max_examples=150)
    @given(patterns)
    def test_generated(self, pattern: str) -> None:
        """
        Generated patterns get the verdict that C{stix2-patterns} has for them.
        """
        self.assertEqual(accepted(pattern), accepted_elsewhere(pattern))

    @settings(max_examples=300)
    @given(nearly_patterns())
    def test_nearly(self, text: str) -> None:
        """
        So do texts that are nearly patterns.
        """
        self.assertEqual(accepted(text), accepted_elsewhere(text))

    @settings(max_examples=300)
    @given(patterns)
    def test_written(self, pattern: str) -> None:
        """
        A tree is written as a pattern with the same tree, of which nothing can be left out.
        """
        try:
            tree = parse(pattern)
        except PatternInvalid:
            return
        self.assertEqual(parse(write(tree)), tree)
        self.assertEqual(write(parse(write(tree))), write(tree))
        self.assertEqual(accepted_elsewhere(write(tree)), accepted_elsewhere(pattern))

    def test_written_plainly(self) -> None:
        """
        Parentheses are written where they matter, names and values in quotes where they need
        them, numbers without exponents.
        """
        for pattern, plain in (
            ("((/* x */[ ((a:b=1))]))", "[a:b = 1]"),
            ("[(a:b = 1 AND c:d = 2) OR e:f = 3]", "[a:b = 1 AND c:d = 2 OR e:f = 3]"),
            ("[a:b = 1 AND (c:d = 2 OR e:f = 3)]", "[a:b = 1 AND (c:d = 2 OR e:f = 3)]"),
            ("([a:b = 1]) REPEATS 2 TIMES", "[a:b = 1] REPEATS 2 TIMES"),
            (
                "([a:b = 1] REPEATS 2 TIMES) REPEATS 3 TIMES",
                "([a:b = 1] REPEATS 2 TIMES) REPEATS 3 TIMES",
            ),
            (
                "([a:b = 1]) REPEATS 2 TIMES REPEATS 3 TIMES",
                "([a:b = 1]) REPEATS 2 TIMES REPEATS 3 TIMES",
            ),
            (
                r"[a:'AND'.'b'.'c-d'.'e\'f' NOT LIKE 'g\'\\']",
                r"[a:'AND'.b.'c-d'.'e\'f' NOT LIKE 'g\'\\']",
            ),
            (
                f"[a:b IN (.{'0' * 9}1, -1{'0' * 30}.0, {'9' * 400}.0, b'QUI=', true, +1,"
                " t'2016-01-20T12:31:12Z')]",
                f"[a:b IN (0.{'0' * 9}1, -1{'0' * 30}.0, 1{'0' * 309}.0, h'4142', true, 1,"
                " t'2016-01-20T12:31:12Z')]",
            ),
        ):
            self.assertEqual(write(parse(pattern)), plain)

    @given(st.text() | st.text("[]()'\\:=.*-+0123456789abtORANDI /\n\x00\ud800"))
    def test_total(self, text: str) -> None:
        """
        Any text is a pattern or refused.
        """
        try:
            parse(text)
        except PatternInvalid as e:
            str(e).encode("utf-8")

    def test_walk(self) -> None:
        """
        The tests and qualifiers of a pattern come in its order.
        """
        pattern = (
            "([a:b = 1 OR (EXISTS c:d AND e:f = 2)] REPEATS 2 TIMES FOLLOWEDBY [g:h = 3])"
            " WITHIN 5 SECONDS"
        )
        found = [
            each.name if isinstance(each, Qualifier) else str(each.path)
            for each in walk(parse(pattern))
        ]
        self.assertEqual(found, ["a:b", "c:d", "e:f", "REPEATS", "g:h", "WITHIN"])


def _exists(name: str) -> Comparison:
    return Comparison(ObjectPath(name, ("x",)), Operator.EXISTS)


_LEAVES: dict[str, Observable | None] = {
    "ipv4-addr:value = '192.0.2.1'": Observable(Kind.IP, "192.0.2.1"),
    "network-traffic:dst_ref.value = '192.0.2.1'": Observable(Kind.IP, "192.0.2.1"),
    "ipv4-addr:value ISSUBSET '192.0.2.0/24'": Observable(Kind.NETWORK, "192.0.2.0/24"),
    "domain-name:value = 'evil.example'": Observable(Kind.DOMAIN, "evil.example"),
    "file:name = 'x'": Observable(Kind.FILE_NAME, "x"),
    "domain-name:value != 'evil.example'": None,
    "domain-name:value NOT = 'evil.example'": None,
    "EXISTS domain-name:value": None,
    "process:name = 'x'": None,
}

_SHORT_PATHS = [
    "ipv4-addr:value",
    "domain-name:value",
    "network-traffic:dst_ref.value",
    "url:value",
    "file:name",
    "file:hashes.'SHA-1'",
    "file:hashes.MD5",
]


def outcome(pattern: str) -> object:
    """
    The result of L{matchable}, or the type and reason of its error.
    """
    try:
        return matchable(pattern)
    except PatternInvalid:
        return PatternInvalid
    except (PatternUnmatchable, ObservableInvalid) as e:
        return type(e), str(e)


Tree = str | tuple[str, list["Tree"]]
"""
A leaf of a pattern, or a joint and its operands.
"""


def _branches(joint: str, inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.tuples(st.just(joint), st.lists(inner, min_size=2, max_size=3))


trees: st.SearchStrategy[Tree] = st.recursive(
    st.sampled_from(list(_LEAVES)),
    lambda inner: _branches("AND", inner) | _branches("OR", inner),
    max_leaves=8,
)


def written(tree: Tree, within: str = "") -> str:
    """
    The text of a tree, in parentheses where AND would bind tighter.
    """
    if isinstance(tree, str):
        return tree
    joint, parts = tree
    text = f" {joint} ".join(written(part, joint) for part in parts)
    return f"({text})" if within == "AND" else text


def alternatives(tree: Tree) -> list[list[Observable]]:
    """
    Everything that makes a tree true, the first in its order first.
    """
    if isinstance(tree, str):
        leaf = _LEAVES[tree]
        return [] if leaf is None else [[leaf]]
    joint, parts = tree
    each = [alternatives(part) for part in parts]
    if joint == "OR":
        return [alternative for part in each for alternative in part]
    return [list(itertools.chain(*chosen)) for chosen in itertools.product(*each)]


def is_true(tree: Tree, held: set[Observable]) -> bool:
    """
    Whether a tree is true of an event that holds some observables.
    """
    if isinstance(tree, str):
        return _LEAVES[tree] in held
    joint, parts = tree
    return (all if joint == "AND" else any)(is_true(part, held) for part in parts)


class TogetherTests(SynchronousTestCase):
    """
    Tests for L{matchable} of conditions on a single event.
    """

    def held(self, pattern: str, *values: str) -> list[str]:
        """
        @param values: The values that an event holds.
        @return: The texts by which it matches.
        """
        found = matchable(pattern)
        observables = {each for each in found.observables if each.value in values}
        self.assertEqual({each.value for each in observables}, set(values))
        return [term.text for term in found.held(observables)]

    def test_all(self) -> None:
        """
        All terms have to hold; each of them is an observable.
        """
        pattern = "[domain-name:value = 'Evil.example' AND ipv4-addr:value = '192.0.2.1']"
        self.assertEqual(
            matchable(pattern).observables,
            (Observable(Kind.DOMAIN, "evil.example"), Observable(Kind.IP, "192.0.2.1")),
        )
        self.assertEqual(matchable(pattern).unmatched, ())
        self.assertEqual(self.held(pattern, "evil.example"), [])
        self.assertEqual(self.held(pattern, "192.0.2.1"), [])
        self.assertEqual(
            self.held(pattern, "192.0.2.1", "evil.example"), ["Evil.example", "192.0.2.1"]
        )

    def test_first(self) -> None:
        """
        Of several alternatives the first one that holds is named.
        """
        pattern = (
            "[ipv4-addr:value IN ('192.0.2.1', '192.0.2.2')"
            " AND (domain-name:value = 'a.example' OR domain-name:value = 'b.example')]"
            " OR [ipv4-addr:value = '192.0.2.3']"
        )
        every = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "a.example", "b.example"]
        self.assertEqual(self.held(pattern, *every), ["192.0.2.1", "a.example"])
        self.assertEqual(self.held(pattern, *every[1:]), ["192.0.2.2", "a.example"])
        self.assertEqual(self.held(pattern, "192.0.2.1", "192.0.2.3"), ["192.0.2.3"])

    def test_joint(self) -> None:
        """
        It is known which terms are enough.
        """
        a, b = "ipv4-addr:value = '192.0.2.1'", "domain-name:value = 'a.example'"
        for pattern, joint, alone in (
            (f"[{a}]", False, ["192.0.2.1"]),
            (f"[{a} OR {b}]", False, ["192.0.2.1", "a.example"]),
            (f"[{a} AND {b}]", True, []),
            (f"[{a} AND {b}] OR [{b}]", True, ["a.example"]),
            (f"[{a} AND process:name = 'x'] OR [{b}]", False, ["a.example"]),
        ):
            found = matchable(pattern)
            self.assertEqual(found.joint, joint)
            self.assertEqual([term.text for term in found.alone], alone)

    @settings(max_examples=300)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*_SHORT_PATHS, "x:y", "process:name", "file:hashes.'x'"]),
                st.sampled_from(["='", " = '", " ='", "  = '"]),
                st.text("a.1 :=[]/\u202eé") | st.sampled_from([" AND ", "' OR '", r"\'", "x:y = "]),
            ).map(lambda part: f"{part[0]}{part[1]}{part[2]}'"),
            min_size=1,
            max_size=4,
        ),
        st.sampled_from([" AND ", " OR ", " OR\n", "AND"]),
        st.sampled_from(["[{}]", "[ {} ]", "[{}", "[({})]", "[x:y = 'z' OR {}]"]),
    )
    @example(["file:name = ' AND '", "file:name = 'b'"], " OR ", "[{}]")
    def test_shortcut(self, parts: list[str], joint: str, frame: str) -> None:
        """
        The fast paths give the same result as the parser.
        """
        pattern = frame.format(joint.join(parts))
        self.assertEqual(outcome(pattern) is not PatternInvalid, accepted(pattern))
        self.assertEqual(outcome(pattern), outcome(f"/**/{pattern}"))

    def test_needed(self) -> None:
        """
        A matching event holds an observable of each part of a conjunction.
        """
        ip, names = "ipv4-addr:value = '192.0.2.1'", "domain-name:value IN ('a', 'b')"
        for pattern, expected in (
            (f"[{ip} AND {names}]", [{"192.0.2.1"}, {"a", "b"}]),
            (f"[{ip} AND {names}] OR [domain-name:value = 'c']", [{"192.0.2.1", "a", "b", "c"}]),
        ):
            needed = matchable(pattern).needed
            self.assertEqual([{each.value for each in part} for part in needed], expected)

    def test_never_less(self) -> None:
        """
        If one term cannot be matched, the others are not matched without it.
        """
        term = "domain-name:value = 'evil.example'"
        for other, reason in (
            ("process:name = 'x'", "object path process:name"),
            ("domain-name:value != 'x.example'", "operator !="),
            ("domain-name:value NOT = 'x.example'", "NOT"),
            ("EXISTS process:name", "EXISTS"),
            ("(process:name = 'x' OR domain-name:value = 5)", "object path process:name"),
        ):
            for pattern in (f"[{term} AND {other}]", f"[{other} AND {term}]"):
                error = self.assertRaises(PatternUnmatchable, matchable, pattern)
                self.assertEqual(error.reason, reason)
        for pattern in (
            f"[{term} AND ipv4-addr:value = '192.0.2.999']",
            f"[process:name = 'x' AND ipv4-addr:value = '192.0.2.999' AND {term}]",
        ):
            self.assertRaises(ObservableInvalid, matchable, pattern)
        self.assertRaises(PatternUnmatchable, matchable, f"[{term}] AND [{term}]")

    def test_rest(self) -> None:
        """
        An alternative within that cannot be matched leaves the others, with its reason.
        """
        found = matchable(
            "[(process:name = 'x' OR ipv4-addr:value = '192.0.2.1') AND file:name = 'y'"
            " OR file:name = 'y' AND file:size = 5]"
        )
        self.assertEqual(
            found.observables, (Observable(Kind.IP, "192.0.2.1"), Observable(Kind.FILE_NAME, "y"))
        )
        self.assertEqual(found.unmatched, ("object path process:name", "object path file:size"))

    def test_many(self) -> None:
        """
        However many alternatives there are, they are weighed quickly.
        """
        values = ", ".join(f"'h{number}.example'" for number in range(1000))
        pattern = " AND ".join([f"domain-name:value IN ({values})"] * 10)
        found = matchable(f"[{pattern}]")
        self.assertEqual(len(found.terms), 1000)
        self.assertEqual(len(found.held({found.observables[-1]})), 1)

    @settings(max_examples=300)
    @given(
        st.lists(trees, min_size=1, max_size=2),
        st.sets(st.sampled_from([each for each in _LEAVES.values() if each is not None])),
    )
    @example([("AND", ["file:name = 'x'", "process:name = 'x'"])], set())
    def test_truth(self, observations: list[Tree], held: set[Observable]) -> None:
        """
        An event matches exactly if the pattern is true of it, and by the first of its
        alternatives.
        """
        pattern = " OR ".join(f"[{written(tree)}]" for tree in observations)
        self.assertTrue(accepted_elsewhere(pattern))
        ways = [way for tree in observations for way in alternatives(tree)]
        try:
            found = matchable(pattern)
        except PatternUnmatchable:
            self.assertEqual(ways, [])
            return
        self.assertEqual(set(found.observables), {each for way in ways for each in way})
        terms = found.held(held)
        self.assertEqual(bool(terms), any(is_true(tree, held) for tree in observations))
        if terms:
            self.assertFalse(any(needed.isdisjoint(held) for needed in found.needed))
        first = next((way for way in ways if held.issuperset(way)), [])
        self.assertEqual([term.observable for term in terms], list(dict.fromkeys(first)))


class MatchableTests(SynchronousTestCase):
    """
    Tests for L{matchable}.
    """

    def assertObservables(self, pattern: str, *expected: tuple[Kind, str]) -> None:
        """
        A pattern has exactly these observables.
        """
        self.assertEqual(
            matchable(pattern).observables, tuple(Observable(*each) for each in expected)
        )

    def test_paths(self) -> None:
        """
        Each object path stands for a kind, however the pattern is spaced and quoted.
        """
        md5, sha1, sha256 = "d" * 32, "d" * 40, "d" * 64
        for test, kind, value in (
            ("ipv4-addr:value = '192.0.2.1'", Kind.IP, "192.0.2.1"),
            ("ipv6-addr:value='2001:DB8::1'", Kind.IP, "2001:db8::1"),
            ("ipv4-addr:value = '192.0.2.1/24'", Kind.NETWORK, "192.0.2.0/24"),
            ("domain-name:value = 'EVIL.example.'", Kind.DOMAIN, "evil.example"),
            ("domain-name:value = '192.0.2.1'", Kind.IP, "192.0.2.1"),
            ("url:value = 'https://evil.example/x'", Kind.URL, "evil.example/x"),
            (r"url:value = 'https://evil.example/\''", Kind.URL, "evil.example/'"),
            ("email-addr:value = 'A@evil.example'", Kind.EMAIL, "a@evil.example"),
            ("email-message:from_ref.value = 'a@evil.example'", Kind.EMAIL, "a@evil.example"),
            ("email-message:sender_ref.'value' = 'a@evil.example'", Kind.EMAIL, "a@evil.example"),
            (f"file:hashes.MD5 = '{md5}'", Kind.MD5, md5),
            (f"file:hashes.'md5' = '{md5}'", Kind.MD5, md5),
            (f"file:hashes.'SHA-1' = '{sha1.upper()}'", Kind.SHA1, sha1),
            (f"file:hashes.SHA1 = '{sha1}'", Kind.SHA1, sha1),
            (f"file:hashes.'SHA-256' = '{sha256}'", Kind.SHA256, sha256),
            (f"file:hashes.sha256='{sha256}'", Kind.SHA256, sha256),
            (f"file:hashes.'sha-256' = '{sha256}'", Kind.SHA256, sha256),
            ("network-traffic:dst_ref.value = '192.0.2.1'", Kind.IP, "192.0.2.1"),
            ("network-traffic:src_ref.value = '192.0.2.0/24'", Kind.NETWORK, "192.0.2.0/24"),
            ("network-traffic:dst_ref.value = 'evil.example'", Kind.DOMAIN, "evil.example"),
            ("ipv4-addr:value ISSUBSET '192.0.2.0/24'", Kind.NETWORK, "192.0.2.0/24"),
            ("ipv6-addr:value ISSUBSET '2001:db8::/128'", Kind.IP, "2001:db8::"),
        ):
            self.assertObservables(f"[{test}]", (kind, value))
            self.assertObservables(f"/**/ (\t[ {test} ]\n)", (kind, value))

    def test_alternatives(self) -> None:
        """
        OR within and across observations, and IN, make several observables.
        """
        self.assertObservables(
            "[domain-name:value = 'evil.example'"
            " OR (ipv4-addr:value IN ('192.0.2.1', '192.0.2.2'))]"
            " OR ([url:value = 'http://evil.example/'] OR [domain-name:value = 'evil.example'])",
            (Kind.DOMAIN, "evil.example"),
            (Kind.IP, "192.0.2.1"),
            (Kind.IP, "192.0.2.2"),
            (Kind.URL, "evil.example/"),
        )

    def test_some_unmatched(self) -> None:
        """
        Alternatives that cannot be matched leave the others; they give their reasons.
        """
        found = matchable(
            "[ipv4-addr:value = '192.0.2.1' OR process:name = 'x' OR domain-name:value LIKE '%x'"
            " OR ipv4-addr:value = '192.0.2.999' OR domain-name:value NOT = 'x.example'"
            " OR domain-name:value != 'x.example' OR EXISTS process:name OR domain-name:value = 5"
            " OR (process:name = 'x' AND file:size = 5)]"
            " OR [a:b = 1] REPEATS 5 TIMES OR [a:b = 1] WITHIN 5 SECONDS"
            " OR [a:b = 1] AND [a:b = 2] OR ([a:b = 1] FOLLOWEDBY [a:b = 2])"
        )
        self.assertEqual(found.observables, (Observable(Kind.IP, "192.0.2.1"),))
        self.assertEqual(
            found.unmatched,
            (
                "object path process:name",
                "operator LIKE",
                "a value that is no ip",
                "NOT",
                "operator !=",
                "EXISTS",
                "a value that is no string",
                "object path process:name",
                "object path file:size",
                "qualifier REPEATS",
                "qualifier WITHIN",
                "AND of observations",
                "FOLLOWEDBY of observations",
            ),
        )

    def test_unmatchable(self) -> None:
        """
        If nothing can be matched, the first reason is raised.
        """
        for pattern, reason in (
            ("[process:name = 'x']", "object path process:name"),
            ("[x-a:'b c'[*].d = 1]", "object path x-a:'b c'[*].d"),
            ("[ipv4-addr:value IN ()]", "IN of nothing"),
            (
                "[a:b = 1] START t'2016-01-20T12:31:12Z' STOP t'2017-01-20T12:31:12Z'",
                "qualifier START STOP",
            ),
            ("[ipv4-addr:value ISSUPERSET '192.0.2.1/32']", "operator ISSUPERSET"),
        ):
            error = self.assertRaises(PatternUnmatchable, matchable, pattern)
            self.assertEqual(error.reason, reason)
        error = self.assertRaises(PatternUnmatchable, matchable, f"[a:{'b' * 500} = 1]")
        self.assertEqual(len(error.reason), 80)

    def test_value_that_is_none(self) -> None:
        """
        If nothing can be matched because of a value, the value is named.
        """
        for pattern in (
            "[ipv4-addr:value = '192.0.2.999']",
            "[process:name = 'x' OR ipv4-addr:value = '192.0.2.999']",
        ):
            error = self.assertRaises(ObservableInvalid, matchable, pattern)
            self.assertEqual(str(error), "ip: '192.0.2.999' is not an IPv4 or IPv6 address")

    def test_reference_types(self) -> None:
        """
        A conjunction that only repeats the type of its value is decided by the value.
        """
        value = "network-traffic:dst_ref.value = '192.0.2.1'"
        self.assertObservables(
            f"[network-traffic:dst_ref.type = 'ipv4-addr' AND {value}]",
            (Kind.IP, "192.0.2.1"),
        )
        self.assertObservables(
            f"[network-traffic:dst_ref.type = 'ipv4-addr' AND {value}"
            " AND domain-name:value = 'evil.example']",
            (Kind.IP, "192.0.2.1"),
            (Kind.DOMAIN, "evil.example"),
        )
        for test in (
            "network-traffic:src_ref.type = 'ipv4-addr'",
            "network-traffic:dst_ref.type = 'x'",
            "network-traffic:dst_ref.type != 'ipv4-addr'",
        ):
            error = self.assertRaises(PatternUnmatchable, matchable, f"[{test} AND {value}]")
            self.assertEqual(error.reason, f"object path {test.split(' ')[0]}")

    def test_original_text(self) -> None:
        """
        A term keeps the value as the pattern has it.
        """
        found = matchable(r"[url:value IN ('HTTPS://Evil.example/\'', 'http://b.example')]")
        self.assertEqual(
            [term.text for term in found.terms], ["HTTPS://Evil.example/'", "http://b.example"]
        )

    def test_published(self) -> None:
        """
        The matchable parts of real patterns.
        """
        kinds: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for pattern in published_patterns():
            try:
                found = matchable(pattern)
            except PatternUnmatchable as e:
                reasons[e.reason] += 1
            else:
                kinds.update(each.kind.value for each in found.observables)
                reasons.update(found.unmatched)
        self.assertEqual(
            kinds,
            {"domain": 363, "ip": 47, "network": 4, "sha256": 4, "md5": 3, "file-name": 2},
        )
        self.assertEqual(
            reasons,
            {
                "object path file:path": 6,
                "object path app:id": 4,
                "object path app:cert.sha256": 3,
                "object path x509-certificate:issuer": 2,
                "object path configuration-profile:id": 1,
                "a value that is no domain": 1,  # 'domain autuo.xicp.net'
            },
        )

    @settings(max_examples=200)
    @given(patterns | nearly_patterns())
    def test_total(self, pattern: str) -> None:
        """
        Every pattern can be matched or is refused with a reason.
        """
        try:
            self.assertNotEqual(matchable(pattern).terms, ())
        except PatternInvalid:
            self.assertFalse(accepted(pattern))
        except (PatternUnmatchable, ObservableInvalid) as e:
            self.assertNotEqual(str(e), "")


class SurelyMatchableTests(SynchronousTestCase):
    """
    Tests for L{surely_matchable}, which spares most indicators a closer look.
    """

    @given(
        st.one_of(
            st.ip_addresses(v=4).map(lambda address: f"[ipv4-addr:value = '{address}']"),
            st.from_regex(r"[a-z0-9][a-z0-9.-]{0,30}", fullmatch=True).map(
                lambda name: f"[domain-name:value = '{name}']"
            ),
            st.from_regex(r"[0-9.]{1,20}", fullmatch=True).map(
                lambda digits: f"[ipv4-addr:value = '{digits}']"
            ),
            st.from_regex(r"[0-9a-f]{30,66}", fullmatch=True).map(
                lambda digits: f"[file:hashes.MD5 = '{digits}']"
            ),
            st.from_regex(
                r"https?://[a-z0-9][a-z0-9.-]{0,30}(:[0-9]{1,6})?[a-zA-Z0-9/.~#?-]{0,20}",
                fullmatch=True,
            ).map(lambda url: f"[url:value = '{url}']"),
            st.from_regex(_NORMAL, fullmatch=True),
        )
    )
    def test_no_more_than_matchable(self, pattern: str) -> None:
        """
        It is never true of a pattern that L{matchable} refuses, and the observable is the one
        that L{matchable} finds.
        """
        if surely_matchable(pattern):
            thorough = matchable(parse(pattern))
            self.assertEqual(matchable(pattern), thorough)
            self.assertEqual(thorough.observables, (sure_observable(pattern),))

    def test_frequent(self) -> None:
        """
        The most frequent patterns are spared.
        """
        for pattern in (
            "[ipv4-addr:value = '192.0.2.1']",
            "[domain-name:value = 'www.evil.example']",
            "[url:value = 'http://www.evil.example/a/b.exe']",
            "[url:value = 'https://192.0.2.1']",
            f"[file:hashes.'SHA-256' = '{'0a' * 32}']",
        ):
            with self.subTest(pattern):
                self.assertTrue(surely_matchable(pattern))

    def test_not_sure(self) -> None:
        """
        Values that are not in their normal form take the slow path.
        """
        for pattern in (
            "[ipv4-addr:value = '192.0.2.256']",
            "[ipv4-addr:value = '192.0.2']",
            "[domain-name:value = '192.0.2.256']",
            "[url:value = 'http://192.0.2.256/']",
            "[url:value = 'http://evil.example/\u202e']",
            "[file:hashes.MD5 = '00']",
            "[ipv4-addr:value = '192.0.2.1' OR ipv4-addr:value = '192.0.2.2']",
        ):
            with self.subTest(pattern):
                self.assertFalse(surely_matchable(pattern))
