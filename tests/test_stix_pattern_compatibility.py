"""
Tests for L{tbvast.stix.pattern_compatibility}.
"""

from __future__ import annotations

import msgspec
import stix2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import DocumentInvalid, Invalid, ObservableInvalid, PatternUnmatchable
from tbvast.stix.admission import admit_indicator
from tbvast.stix.indicators import compatible
from tbvast.stix.observables import Observable
from tbvast.stix.pattern_compatibility import compatible_pattern, surely_compatible
from tbvast.stix.pattern_conditions import AllOf, Condition, Term, matchable
from tbvast.stix.pattern_grammar import parse
from tests.doubles import indicator_document, indicator_id
from tests.test_stix_pattern_conditions import patterns as grammatical

MD5 = "0aB1" * 8
SHA1 = "c2D3" * 10
SHA256 = "e4F5" * 16


def with_colons(digits: str) -> str:
    """
    A hash as certificates' are often written.
    """
    return ":".join(map("".join, zip(digits[::2], digits[1::2], strict=True)))


def rewritten(pattern: str) -> str:
    """
    The pattern that is delivered to the old programs.
    """
    return compatible_pattern(pattern, parse(pattern))[0]


_notation = st.sampled_from([str, str.lower, str.upper, with_colons])


def _paths(type: str) -> st.SearchStrategy[tuple[str, str]]:
    return st.sampled_from(
        [
            (f"{type}:hashes.{name}", digits)
            for names, digits in (
                (("MD5", "'MD5'", "md5"), MD5),
                (("'SHA-1'", "SHA1", "'sha-1'"), SHA1),
                (("'SHA-256'", "SHA256"), SHA256),
            )
            for name in names
        ]
    )


@st.composite
def _certificate(draw: st.DrawFn) -> str:
    path, digits = draw(_paths("x509-certificate"))
    values = draw(
        st.lists(
            st.builds(
                lambda notation, last: f"'{notation(digits[:-1] + last)}'",
                _notation,
                st.sampled_from("0123456789abcdef"),
            ),
            min_size=1,
            max_size=3,
        )
    )
    if len(values) == 1 and draw(st.booleans()):
        return f"{path} = {values[0]}"
    return f"{path} IN ({', '.join(values)})"


_other = st.sampled_from(
    [
        "url:value = 'http://a.example/hashes'",
        f"file:name = '{with_colons(SHA1)}'",
        f"file:hashes.MD5 = '{MD5}'",
        f"file:hashes.MD5 IN ('{MD5}', '{MD5[::-1]}')",
        "ipv6-addr:value IN ('2001:db8::1')",
        "domain-name:value = 'a.example'",
    ]
)
_tests = st.recursive(
    _certificate() | _other,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR"]), inner),
    max_leaves=5,
)
patterns = st.recursive(
    _tests.map("[{}]".format),
    lambda inner: st.builds("({} OR {})".format, inner, inner),
    max_leaves=3,
)
"""
Patterns of which everything can be matched.
"""


class CompatiblePatternTests(SynchronousTestCase):
    """
    Tests for L{compatible_pattern}.
    """

    def test_hashes(self) -> None:
        """
        Hashes lose their colons, and lists of hashes become alternatives; other values stay.
        """
        path = "x509-certificate:hashes.'SHA-1'"
        for test, expected in (
            (f"{path} = '{with_colons(SHA1)}'", f"{path} = '{SHA1}'"),
            (f"{path} != '{with_colons(SHA1)}'", f"{path} != '{SHA1}'"),
            (f"{path} IN ('{SHA1}')", f"{path} = '{SHA1}'"),
            (
                f"file:name = '{with_colons(SHA1)}' AND {path} IN ('{SHA1}','{with_colons(SHA1)}')",
                f"file:name = '{with_colons(SHA1)}' AND ({path} = '{SHA1}' OR {path} = '{SHA1}')",
            ),
            (
                f"{path} IN ('{SHA1}', '{SHA1}') OR a:b = 1",
                f"({path} = '{SHA1}' OR {path} = '{SHA1}') OR a:b = 1",
            ),
        ):
            self.assertEqual(rewritten(f"[{test}]"), f"[{expected}]")
            self.assertEqual(
                rewritten(f"[{test}] REPEATS 2 TIMES OR [c:d = 2]"),
                f"[{expected}] REPEATS 2 TIMES OR [c:d = 2]",
            )

    def test_beginning(self) -> None:
        """
        Needless parentheses, comments and unusual spaces in front go.
        """
        for pattern in ("(([a:b = 1]))", "/* x */ [a:b = 1]", "\xa0[a:b = 1]", "((([a:b=1])))"):
            self.assertEqual(rewritten(pattern), "[a:b = 1]")
        self.assertEqual(
            rewritten("(([a:b = 1] OR [c:d = 2]) AND [e:f = 3])"),
            "([a:b = 1] OR [c:d = 2]) AND [e:f = 3]",
        )

    def test_unchanged(self) -> None:
        """
        Whatever the parser accepts stays as it is written.
        """
        for pattern in (
            " ( [a:b=1 /* hashes */])",
            f"[file:hashes.MD5='{MD5}' OR file:hashes.ssdeep LIKE '3:a:b']",
            f"[x:hashes.own IN ('{with_colons(SHA1)}')]",
            f"[EXISTS file:hashes.MD5 AND file:name = '{with_colons(SHA1)}']",
        ):
            tree = parse(pattern)
            text, expression = compatible_pattern(pattern, tree)
            self.assertEqual((text, expression), (pattern, tree))

    def test_refused(self) -> None:
        """
        A pattern without an acceptable equivalent is refused; the error says what was expected.
        """
        for pattern, expected in (
            ("[file:hashes.MD5 = 'x']", "file:hashes.MD5 with whole hashes"),
            (f"[file:hashes.MD5 IN ('{MD5}', 'x')]", "with whole hashes"),
            (f"[file:hashes.MD5 NOT IN ('{MD5}')]", "with whole hashes"),
            ("[file:hashes.MD5 IN ()]", "with whole hashes"),
            ("[file:hashes.MD5 = 5]", "with whole hashes"),
            ("[file:hashes[1] = 'x']", "hashes have names"),
            ("[NOT EXISTS a:b]", "without NOT EXISTS"),
            ("[a:b[-1] = 1]", "list positions from 0 on"),
            ("(([a:b = 1] OR [c:d = 1]) AND [e:f = 1]) REPEATS 2 TIMES", "begins with [ or (["),
        ):
            error = self.assertRaises(DocumentInvalid, rewritten, pattern)
            self.assertEqual(error.field, "pattern")
            self.assertIn(expected, str(error))

    @settings(max_examples=300)
    @given(patterns)
    def test_matched(self, pattern: str) -> None:
        """
        Whatever can be matched is admitted, is accepted by the old programs' library, and
        matches the same events as before.
        """
        try:
            before = matchable(pattern)
        except (PatternUnmatchable, ObservableInvalid):
            return
        raw = indicator_document(pattern=pattern)
        admitted = admit_indicator(raw)
        self.assertEqual((admitted.raw, admitted.pattern), (raw, pattern))
        text = compatible(raw).decode()
        stix2.parse(text, allow_custom=True)
        delivered = msgspec.json.decode(text)["pattern"]
        after = matchable(delivered)
        self.assertEqual(alternatives(after.condition), alternatives(before.condition))
        self.assertEqual(rewritten(delivered), delivered)

    @given(patterns | grammatical)
    def test_surely(self, pattern: str) -> None:
        """
        What is surely compatible stays unchanged.
        """
        try:
            if surely_compatible(pattern):
                self.assertEqual(rewritten(pattern), pattern)
        except Invalid:
            pass  # not admitted

    def test_document(self) -> None:
        """
        The document of an indicator changes only in its pattern, and only if it has to; patterns
        of other languages stay.
        """
        digits = with_colons(SHA1)
        path = "x509-certificate:hashes.'SHA-1'"
        raw = indicator_document(pattern=f"[{path} = '{digits}']", x_other=[1.5, None])
        self.assertEqual(compatible(raw), raw.replace(digits.encode(), SHA1.encode()))
        for same in (
            indicator_document(pattern=f"[file:name = '{digits}']"),
            indicator_document(pattern=f"[{path} = '{SHA1}' AND file:name IN ('{digits}')]"),
            indicator_document(pattern=f"[{path} = '{digits}']", pattern_type="own"),
            indicator_document(pattern="/* x */", pattern_type="own"),
        ):
            self.assertIs(compatible(same), same)
        bare = {"type": "indicator", "id": indicator_id(1), "pattern": f"(([{path}='{digits}']))"}
        self.assertEqual(
            msgspec.json.decode(compatible(msgspec.json.encode(bare)))["pattern"],
            f"[{path} = '{SHA1}']",
        )


def alternatives(condition: Condition) -> set[frozenset[Observable]]:
    """
    The sets of observables of which an event must hold one.
    """
    if isinstance(condition, Term):
        return {frozenset([condition.observable])}
    each = [alternatives(inner) for inner in condition.conditions]
    if not isinstance(condition, AllOf):
        return set().union(*each)
    found = {frozenset[Observable]()}
    for inner in each:
        found = {one | other for one in found for other in inner}
    return found
