"""
The queries and lookups of the legacy engine.
"""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.vast import field_holding, is_expressible, query
from tbvast.stix.observables import Kind, Observable
from tbvast.values import Entry

values = st.text() | st.text("ab.-:/'\"\\\\ \n\0|&;=()$é") | st.from_regex(r"[a-z0-9.:/-]+\Z")
entries = st.builds(
    Entry,
    st.builds(Observable, st.sampled_from(Kind), values),
    st.lists(st.just("indicator--1") | values, min_size=1, max_size=3).map(tuple),
)


class ExpressibleTests(SynchronousTestCase):
    """
    Tests for L{is_expressible} and L{query}.
    """

    @given(entries)
    def test_any_value(self, entry: Entry) -> None:
        """
        No value is an option, ends the text that it is in, or adds to the query.
        """
        value = entry.observable.value
        if not is_expressible(entry):
            return
        self.assertFalse(value.startswith("-"))
        for id_ in entry.ids:
            self.assertRegex(id_, r"\A[A-Za-z0-9-]+\Z")
        if entry.observable.kind in (Kind.IP, Kind.NETWORK):
            self.assertNotRegex(value, r"[\s\"\\\\\0]")
            return
        texts = r'"[^"\\\\\s]+" == (:string|net\.(domain|hostname|uri))'
        self.assertTrue(re.fullmatch(rf"{texts}( (\|\||&&) {texts})?", query(entry.observable)))

    def test_kinds(self) -> None:
        """
        Kinds that the engine would find in the wrong field are not queried.
        """
        asked = {
            kind
            for kind in Kind
            if is_expressible(Entry(Observable(kind, "a.b/c"), ("indicator--1",)))
        }
        self.assertEqual(set(Kind) - asked, {Kind.FILE_NAME, Kind.USER_AGENT, Kind.CERTIFICATE})


class FieldHoldingTests(SynchronousTestCase):
    """
    Tests for L{field_holding}.
    """

    LEAVES = (
        ("src_ip", "192.0.2.1"),
        ("http.hostname", "Evil.example"),
        ("http.url", "/X?y=1"),
        ("dns.answers[1].rdata", "2001:db8::1"),
        ("http.http_refer", "/Z"),
    )

    def test_fields(self) -> None:
        """
        Texts and addresses are found in any field; URLs where their parts belong.
        """
        for kind, value, field in (
            (Kind.IP, "192.0.2.1", "src_ip"),
            (Kind.IP, "2001:db8::1", "dns.answers[1].rdata"),
            (Kind.NETWORK, "192.0.2.0/24", "src_ip"),
            (Kind.NETWORK, "2001:db8::/32", "dns.answers[1].rdata"),
            (Kind.DOMAIN, "evil.example", "http.hostname"),
            (Kind.URL, "evil.example/X?y=1", "http.url"),
            (Kind.URL, "evil.example/x?y=1", None),
            (Kind.URL, "evil.example/Z", None),
            (Kind.URL, "other.example/X?y=1", None),
            (Kind.DOMAIN, "other.example", None),
            (Kind.NETWORK, "198.51.100.0/24", None),
            (Kind.NETWORK, "none", None),
        ):
            self.assertEqual(field_holding(self.LEAVES, Observable(kind, value)), field)
