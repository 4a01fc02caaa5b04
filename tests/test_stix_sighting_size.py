"""
Tests for L{tbvast.stix.sighting_size}.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import DocumentInvalid
from tbvast.stix.limits import DEEPEST_SIGHTING, LARGEST_SIGHTING
from tbvast.stix.sighting_size import (
    CONTEXT,
    CONTEXT_LEFT_OUT,
    INDICATOR,
    INDICATOR_LEFT_OUT,
    encode_fitting,
    fitted,
)

events = st.recursive(
    st.none() | st.booleans() | st.integers(0, 1 << 60) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | inner.map(lambda value: [value] * 200)
        | inner.map(lambda value: {"nested": [[[[[[[[value]]]]]]]]})
        | st.just("x" * 5000)
    ),
    max_leaves=6,
)


def depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        deepest += 1
        level = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
    return deepest


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class FittingTests(SynchronousTestCase):
    """
    Tests for L{encode_fitting}.
    """

    def sighting(self, context: Any, indicator: bytes = b'{"a":1}') -> dict[str, Any]:
        return {"type": "sighting", CONTEXT: context, INDICATOR: msgspec.Raw(indicator)}

    def fitted(self, *args: Any, largest: int = LARGEST_SIGHTING) -> dict[str, Any]:
        raw = encode_fitting(self.sighting(*args), largest)
        self.assertLessEqual(len(raw), largest)
        found: dict[str, Any] = msgspec.json.decode(raw)
        self.assertLessEqual(depth(found), DEEPEST_SIGHTING)
        return found

    def test_whole(self) -> None:
        """
        A sighting that fits stays unchanged.
        """
        for context in ({}, {"a": ["x" * 5000] * 300}, {"deep": nested(55)}):
            found = self.fitted(context)
            self.assertEqual(found[CONTEXT], context)
            self.assertNotIn(CONTEXT_LEFT_OUT, found)
            self.assertEqual(found[INDICATOR], {"a": 1})

    def test_deep(self) -> None:
        """
        Parts that nest too deep are left out.
        """
        for levels in (62, 63, 64, 200, 900):
            found = self.fitted({"a": 1, "deep": nested(levels)})
            self.assertEqual(found[CONTEXT]["a"], 1)
            self.assertIn(CONTEXT_LEFT_OUT, found)
            found = self.fitted({"a": 1}, msgspec.json.encode(nested(levels)))
            self.assertEqual(found[CONTEXT], {"a": 1})
            self.assertNotIn(INDICATOR, found)
            self.assertGreater(found[INDICATOR_LEFT_OUT], 2 * levels)

    def test_indicator(self) -> None:
        """
        The indicator goes when the event is gone, and that is not enough.
        """
        found = self.fitted({"a": "b" * 2000}, b'{"x":"%b"}' % (b"x" * 5000), largest=4000)
        self.assertEqual(found[CONTEXT], {})
        self.assertEqual(found[INDICATOR_LEFT_OUT], 5008)
        self.assertNotIn(INDICATOR, found)

    def test_encoded(self) -> None:
        """
        Encoded sightings are made to fit; anything else stays unchanged.
        """
        document = self.sighting({"a": "b" * (LARGEST_SIGHTING + 1), "c": 1})
        found = msgspec.json.decode(fitted(msgspec.json.encode(document)))
        self.assertEqual(found[CONTEXT], {"a": "b" * 1024, "c": 1})
        self.assertEqual(found[INDICATOR], {"a": 1})
        for raw in (b"", b"{", b"[]", b"{}", b'{"x_threatbus_sighting_context":1}', b"\xff"):
            self.assertEqual(fitted(raw), raw)

    def test_impossible(self) -> None:
        """
        A sighting that is too long without both is refused.
        """
        document = {"type": "sighting", "value": "x" * 5000, CONTEXT: {}}
        self.assertRaises(DocumentInvalid, encode_fitting, document, 4000)

    @settings(max_examples=60)
    @given(st.dictionaries(st.text(max_size=5), events, max_size=4), st.integers(300, 100_000))
    def test_any(self, context: dict[str, Any], largest: int) -> None:
        """
        Any event fits, and the sighting tells how many bytes are missing.
        """
        found = self.fitted(context, largest=largest)
        if CONTEXT_LEFT_OUT not in found:
            self.assertEqual(found[CONTEXT], context)
        else:
            self.assertEqual(
                found[CONTEXT_LEFT_OUT],
                len(msgspec.json.encode(context)) - len(msgspec.json.encode(found[CONTEXT])),
            )
