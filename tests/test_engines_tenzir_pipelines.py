"""
The pipelines for Tenzir, and the decoding of their output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir import pipelines, rows
from tbvast.errors import Invalid, ObservableInvalid
from tbvast.stix.observables import Kind, Observable, normalise
from tbvast.telemetry.known_fields import (
    BUILT_IN,
    NOTATIONS,
    Field,
    Form,
    Request,
    Source,
    SourceMapping,
    any_source,
    fields,
    with_mappings,
)
from tbvast.values import Entry, Hit, Match

TABLES, RETRO_TABLES = pipelines.main_tables("0a"), pipelines.retro_tables("0a")

DNS = Source("suricata.dns", fields("ip", "src_ip") + fields("domain", "dns.answers[].rdata"))


def expressions(plan: pipelines.Plan) -> dict[str, str]:
    """
    The expressions of a plan by the paths that they are reported as.
    """
    return {slot.field: slot.expression for slot in plan.slots.values()}


class PlanTests(SynchronousTestCase):
    """
    L{pipelines.plan} derives the lookups.
    """

    def test_positions(self) -> None:
        """
        Each position of a list is a field of its own.
        """
        plan = pipelines.plan([Source("x.y", fields("domain", "a[].b"))], positions=3)
        self.assertEqual(
            [slot.field for slot in plan.branches[0].levels[0].slots],
            ["a[0].b", "a[1].b", "a[2].b"],
        )
        self.assertEqual(expressions(plan)["a[2].b"], 'a?[2]?.b?.to_lower().trim_end(".")')

    def test_positions_said(self) -> None:
        """
        A path can say how many elements of a list are looked at; in an event with
        short lists it is still the first.
        """
        branch = pipelines.plan(
            [Source("x.y", fields("domain", "a[5]", "b[]"))], positions=2
        ).branches[0]
        self.assertEqual(
            [slot.field for slot in branch.levels[0].slots],
            ["a[0]", "a[1]", "a[2]", "a[3]", "a[4]", "b[0]", "b[1]"],
        )
        self.assertEqual([slot.field for slot in branch.levels[-1].slots], ["a[0]", "b[0]"])

    def test_tables(self) -> None:
        """
        An address is looked up as itself, and in the networks.
        """
        plan = pipelines.plan([Source("x.y", fields("ip", "a"))])
        self.assertEqual(
            [(slot.expression, set(slot.kinds)) for slot in plan.branches[0].levels[0].slots],
            [("ip(a?)", {Kind.IP}), ("ip(a?)", {Kind.NETWORK})],
        )

    def test_kinds(self) -> None:
        """
        Kinds that are not looked for cost no lookup.
        """
        plan = pipelines.plan([DNS], kinds={Kind.DOMAIN})
        self.assertEqual({slot.kinds for slot in plan.slots.values()}, {frozenset({Kind.DOMAIN})})

    def test_short_lists(self) -> None:
        """
        An event whose lists are short is spared the later positions.
        """
        branch = pipelines.plan([DNS], positions=4).branches[0]
        self.assertEqual(branch.levels[0].condition, "dns?.answers?[1]? != null")
        self.assertEqual((len(branch.levels[-1].slots), len(branch.levels[0].slots)), (3, 6))

    def test_cut(self) -> None:
        """
        Only the live match reports lists that it does not read to their end.
        """
        source = Source("x.y", fields("domain", "a[]", "b[24].c[]", "d"))
        plan = pipelines.plan([source], positions=4)
        branch = plan.branches[0]
        self.assertEqual(branch.cut, "a?[4]? != null or b?[24]? != null or b?[0]?.c?[4]? != null")
        self.assertIn(f"_tbvast_cut = {branch.cut}\n", pipelines.live_match(plan, TABLES, "b"))
        self.assertNotIn("cut", pipelines.retro_search(plan, RETRO_TABLES, 1))

    def test_order(self) -> None:
        """
        Schemas named in full come before those that only begin alike, and every
        other event is looked at as a whole.
        """
        plan = pipelines.plan(
            [Source("a.*", fields("domain", "b")), Source("a.b", fields("domain", "c"))]
        )
        self.assertEqual(
            [branch.condition for branch in plan.branches],
            ['@name == "a.b"', '@name.starts_with("a.")', ""],
        )
        looked_at = {slot.field for slot in plan.branches[-1].levels[0].slots}
        self.assertEqual(looked_at, {"b", "c", "id.orig_h", "id.resp_h"})

    def test_narrow_first(self) -> None:
        """
        Of two beginnings the longer one comes first.
        """
        plan = pipelines.plan(
            [Source("a*", fields("domain", "b")), Source("a.b.*", fields("domain", "c"))]
        )
        self.assertEqual(
            [branch.condition for branch in plan.branches],
            ['@name.starts_with("a.b.")', '@name.starts_with("a")', ""],
        )

    def test_keys(self) -> None:
        """
        No two kinds of text have the same key, but those that look different, and
        those that are told apart by the field.
        """
        plan = pipelines.plan(
            [
                Source(
                    "x.y",
                    fields("hash", "a") + fields("certificate", "a") + fields("file-name", "b"),
                )
            ]
        )
        found = {min(slot.kinds): slot.expression for slot in plan.branches[0].levels[0].slots}
        undone = 'a?.replace(":", "").to_lower()'
        self.assertEqual(
            found,
            {
                Kind.MD5: undone,
                Kind.CERTIFICATE: f'"certificate " + {undone}',
                Kind.FILE_NAME: r'"file-name " + b?.replace_regex("^(?s:.*)[/\\\\]", "")',
            },
        )

    def test_subdomains(self) -> None:
        """
        If told so, the names above a name are looked up, but no top-level domain.
        """
        source = Source("x.y", fields("host", "a") + fields("url", "b"))
        plain = {slot.expression for slot in pipelines.plan([source]).branches[0].levels[0].slots}
        more = {
            slot.expression
            for slot in pipelines.plan([source], subdomains=True).branches[0].levels[0].slots
        }
        above = more - plain
        self.assertTrue(plain < more)
        self.assertEqual(len(above), pipelines.MAX_LABELS - 1)
        for expression in above:
            self.assertIn('a?.to_lower().trim_end(".").replace_regex(', expression)
        name = ".".join("gfedcba")
        endings = [
            re.sub(match[1].replace("\\\\", "\\"), r"\1", name)
            for expression in above
            if (match := re.search(r'replace_regex\("(.*?)", ', expression))
        ]
        self.assertEqual(sorted(endings), ["b.a", "c.b.a", "d.c.b.a", "e.d.c.b.a", "f.e.d.c.b.a"])

    def test_flat(self) -> None:
        """
        A name with dots in it is one name.
        """
        plan = pipelines.plan([Source("x.y", fields("ip", "id.orig_h", flat=True))])
        self.assertEqual(expressions(plan)["id.orig_h"], 'ip(this["id.orig_h"]?)')

    def test_reserved(self) -> None:
        """
        A name that means something in TQL is still the name of a field.
        """
        plan = pipelines.plan([Source("x.y", fields("ip", "match.in[].a", "b.true"))], positions=2)
        self.assertEqual(
            [
                slot.expression
                for slot in plan.branches[0].levels[0].slots
                if slot.kinds == {Kind.IP}
            ],
            [
                'ip(this["match"]?["in"]?[0]?.a?)',
                'ip(this["match"]?["in"]?[1]?.a?)',
                'ip(b?["true"]?)',
            ],
        )
        self.assertEqual(plan.branches[0].levels[0].condition, 'this["match"]?["in"]?[1]? != null')

    def test_request(self) -> None:
        """
        The parts of a URL are put together.
        """
        plan = pipelines.plan([Source("x.y", (), (Request("h", "u", "p", "q"),))])
        (slot,) = plan.branches[0].levels[0].slots
        self.assertEqual(slot.field, "u")
        for part in ("h?.to_lower()", "string(p?)", '"?" + q?', 'u?.starts_with("/")'):
            self.assertIn(part, slot.expression)

    def test_blanks(self) -> None:
        """
        A blank in a URL is written as it is in an indicator's.
        """
        whole = pipelines.plan([Source("x.y", fields("url", "u"))]).branches[0].levels[0].slots
        parts = (
            pipelines.plan([Source("x.y", (), (Request("h", "u"),))]).branches[0].levels[0].slots
        )
        for slot in (*whole, *parts):
            self.assertIn('.replace(" ", "%20")', slot.expression)

    def test_host_of_url(self) -> None:
        """
        Of a whole URL's host neither a trailing dot counts, nor a port that goes without
        saying, nor who asks; a path need not follow it.
        """
        (slot,) = pipelines.plan([Source("x.y", fields("url", "u"))]).branches[0].levels[0].slots
        for regex in (r"^([^/?]*)\\?", "^.*@", ":(?:80|443)?$", r"\\.(:[0-9]+)?$"):
            self.assertIn(f'replace_regex("{regex}", ', slot.expression)

    @given(st.text())
    def test_paths(self, path: str) -> None:
        """
        A field's path is names joined by dots, or refused.
        """
        field = Field(path, Form.NAME, frozenset({Kind.DOMAIN}))
        self._only_names(path, lambda: pipelines.plan([Source("x.y", (field,))]))

    @given(st.text())
    def test_schemas(self, schema: str) -> None:
        """
        A schema's name is a name, or refused.
        """
        self._only_names(schema, lambda: pipelines.plan([Source(schema, fields("domain", "a"))]))

    def _only_names(self, text: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Invalid as e:
            self.assertEqual(e.value, text)
        else:
            self.assertRegex(text, r"\A[A-Za-z0-9_.\[\]*]+\Z")

    def test_names_of_ours(self) -> None:
        """
        Names of tables, streams and tokens are names, or refused.
        """
        for text in ("", 'a"b', "A", "a b", "a\n", "é", "a" * 65):
            self.assertRaises(Invalid, pipelines.create_table, text)
            self.assertRaises(Invalid, pipelines.end_pipeline, text)
        self.assertRaises(Invalid, pipelines.serve_results, "a", 'x"', 1, 1.0)


class PipelineTests(SynchronousTestCase):
    """
    The pipelines are generated from names and numbers alone.
    """

    def test_no_reset(self) -> None:
        """
        No pipeline resets a table: that can end the node.
        """
        self.assertFalse([text for text in _pipelines() if "context_reset" in text])

    def test_null_keys(self) -> None:
        """
        No pipeline writes under a key that is null.
        """
        for text in (
            pipelines.update_tables(TABLES),
            pipelines.erase_from_tables(TABLES),
        ):
            writes = re.findall(r"(.*)\n\s*context_(?:update|erase)", text)
            self.assertEqual([line.strip() for line in writes], ["where _key != null"] * 4)

    def test_printable(self) -> None:
        """
        Every pipeline can be quoted within another.
        """
        for text in _pipelines():
            pipelines.quoted(text)
        self.assertRaises(Invalid, pipelines.quoted, "é")

    def test_balanced(self) -> None:
        """
        Braces and brackets pair up.
        """
        for text in _pipelines():
            bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
            for opening, closing in ("{}", "()", "[]"):
                self.assertEqual(bare.count(opening), bare.count(closing))

    def test_quoted(self) -> None:
        """
        A quoted pipeline reads back as itself.
        """
        for text in _pipelines():
            self.assertEqual(json.loads(pipelines.quoted(text)), text)  # its escapes are JSON's

    def test_limit(self) -> None:
        """
        A limit bounds the events with the same hits; none leaves them alone.
        """
        plan = pipelines.plan([DNS])
        self.assertIn(
            "deduplicate _tbvast, limit=7\n",
            pipelines.retro_search(plan, RETRO_TABLES, 7),
        )
        self.assertNotIn("deduplicate", pipelines.retro_search(plan, RETRO_TABLES, 0))

    def test_retro_tables(self) -> None:
        """
        A search looks only into the tables made for it.
        """
        searched = set(
            re.findall(
                r'context_enrich "(\w+)"',
                pipelines.retro_search(pipelines.plan(), RETRO_TABLES, 0),
            )
        )
        self.assertEqual(searched, set(RETRO_TABLES))

    def test_reports(self) -> None:
        """
        A live match and a search report on their own tables: again and again, and once.
        """
        plan = pipelines.plan([DNS])
        live = pipelines.live_match(plan, TABLES, "b")
        search = pipelines.retro_search(plan, RETRO_TABLES, 0)
        for text, tables in ((live, TABLES), (search, RETRO_TABLES)):
            (names,) = re.findall(r"context_list\n.*\nwhere name in (.*)\n", text)
            self.assertEqual(json.loads(names), list(tables))
        self.assertIn("every 5s {", live)
        self.assertNotIn("every", search)


def _pipelines() -> list[str]:
    plan = pipelines.plan(BUILT_IN)
    return [
        pipelines.create_table("a"),
        pipelines.drop_table("a"),
        pipelines.list_tables(),
        *pipelines.inspect_tables(TABLES),
        pipelines.update_tables(TABLES),
        pipelines.erase_from_tables(RETRO_TABLES),
        pipelines.live_match(plan, TABLES, "b"),
        pipelines.to_socket("/a/b"),
        pipelines.markers_from_socket("/a/b"),
        pipelines.markers_from_topic("a"),
        pipelines.publish_markers("a", "b", 1, [0, 1]),
        pipelines.start_pipeline(pipelines.live_match(plan, TABLES, "b"), "a", 1.5),
        pipelines.renew_pipelines(["a", "b"]),
        pipelines.retro_search(plan, RETRO_TABLES, 3),
        pipelines.launch_pipeline(pipelines.retro_search(plan, RETRO_TABLES, 3), "a", 1.5),
        pipelines.serve_results("a", "b-1", 10, 0.5),
        pipelines.end_pipeline("a"),
        pipelines.ping_node(),
    ]


class CutTests(SynchronousTestCase):
    """
    L{rows.decode_results} tells which events were not looked at as a whole.
    """

    def test_cut(self) -> None:
        """
        The mark says so, with a hit or without, and nothing else does.
        """
        lines = [
            '{"_tbvast":{"s":"a.b","cut":true}}',
            '{"x":1,"_tbvast":{"s":"a.c","cut":true,"f0":{"k":"ip","v":"1.2.3.4","ids":["i"]}}}',
            '{"cut":true,"_tbvast":{"s":"a.d"}}',
            '{"x":{"cut":true},"_tbvast":null}',
            '{"_tbvast":null}',
        ]
        slots = {"f0": pipelines.Slot("f0", "x", frozenset({Kind.IP}), "x?")}
        results = rows.decode_results(lines, slots)
        self.assertEqual(results.cut, ["a.b", "a.c"])
        (found,) = results.matches
        self.assertEqual(found.hits, (Hit("x", Kind.IP, "1.2.3.4", ("i",)),))


class MappedTests(SynchronousTestCase):
    """
    L{with_mappings} adds the fields that a user maps.
    """

    BASE = (
        Source("a.b", fields("domain", "n")),
        Source("a.*", fields("ip", "i"), (Request("h", "u"),)),
    )

    def test_nothing(self) -> None:
        """
        Without anything said, all stays.
        """
        self.assertEqual(with_mappings([]), BUILT_IN)

    def test_added(self) -> None:
        """
        The mapping of a schema extends its fields: those of the source with the longest
        matching prefix, or else all fields.
        """
        more = fields("domain", "x")
        known = {source.schema: source for source in self.BASE}
        for schema, base in (
            ("a.b", known["a.b"]),
            ("a.c", known["a.*"]),
            ("z.z", any_source(self.BASE)),
        ):
            found = {
                source.schema: source
                for source in with_mappings([SourceMapping(Source(schema, more))], self.BASE)
            }
            self.assertEqual(found[schema], Source(schema, base.fields + more, base.requests))
            self.assertEqual({**found, schema: None}, {**known, schema: None})

    def test_beginning(self) -> None:
        """
        The mapping of a prefix applies to all schemas with this prefix.
        """
        more = Source("a.*", fields("domain", "x"))
        found = {
            source.schema: source.fields
            for source in with_mappings([SourceMapping(more)], self.BASE)
        }
        self.assertEqual(
            found,
            {
                "a.b": fields("domain", "n") + fields("domain", "x"),
                "a.*": fields("ip", "i") + fields("domain", "x"),
            },
        )
        (only,) = with_mappings([SourceMapping(more, True)], self.BASE)
        self.assertEqual(only, more)

    def test_replaced(self) -> None:
        """
        A replacement stands alone, regardless of mappings of its prefix.
        """
        given = [
            SourceMapping(Source("a.b", ()), True),
            SourceMapping(Source("a.*", fields("domain", "x"))),
        ]
        found = {source.schema: source.fields for source in with_mappings(given, self.BASE)}
        self.assertEqual(found, {"a.b": (), "a.*": fields("ip", "i") + fields("domain", "x")})

    def test_keys(self) -> None:
        """
        Every kind that a text can have has a key, or goes with another's.
        """
        found = [field for key in NOTATIONS for field in fields(key, "a")]
        self.assertEqual({kind for field in found for kind in field.kinds}, set(Kind))


entries = st.builds(
    Entry,
    st.builds(Observable, st.sampled_from(Kind), st.text()),
    st.lists(st.text(), min_size=1).map(tuple),
)


class RowTests(SynchronousTestCase):
    """
    Entries travel as lines.
    """

    @given(st.lists(entries))
    def test_written(self, given: list[Entry]) -> None:
        """
        Whatever a value holds, an entry is one line, and reads back as it was.
        """
        text = rows.encode_entries(given).encode()
        self.assertEqual(text.count(b"\n"), len(given))
        back = [
            rows.decode_entry(b'{"key":null,"value":' + line + b"}")
            for line in text.split(b"\n")
            if line
        ]
        self.assertEqual(back, sorted(given, key=lambda e: e.observable.kind))

    @given(st.sampled_from(Kind), st.binary())
    def test_any_bytes(self, kind: Kind, raw: bytes) -> None:
        """
        The pipelines do not depend on the values of indicators, and their input has one line
        of JSON for each value.
        """
        before = _pipelines()
        text = raw.decode("utf-8", "surrogateescape")
        for each in (text, raw.decode("latin-1")):
            try:
                observable = normalise(kind, each)
            except ObservableInvalid:
                continue
            line = rows.encode_entries([Entry(observable, ("indicator--1",))])
            self.assertEqual(json.loads(line)["v"], observable.value)
            self.assertEqual(line.count("\n"), 1)
        self.assertEqual(_pipelines(), before)

    @given(entries)
    def test_values_stay_data(self, given: Entry) -> None:
        """
        No value changes a pipeline: none is made from one.
        """
        before = _pipelines()
        rows.encode_entries([given])
        rows.encode_observables([given.observable])
        self.assertEqual(_pipelines(), before)

    @given(st.binary())
    def test_entry_refused(self, line: bytes) -> None:
        """
        A line that is no entry is refused.
        """
        self.assertRaises(Invalid, rows.decode_entry, line)


SLOTS = pipelines.plan([DNS], positions=2).slots


def line(mark: Any, **event: Any) -> bytes:
    """
    A line of a match.
    """
    return json.dumps({**event, pipelines.FINDINGS: mark}).encode()


def slot_of(field: str, kind: Kind) -> str:
    """
    The slot that holds hits of a kind in a field.
    """
    return next(s.name for s in SLOTS.values() if s.field == field and kind in s.kinds)


class MatchTests(SynchronousTestCase):
    """
    L{rows.decode_results} reads a line of a match.
    """

    def decode(self, text: bytes) -> list[Match]:
        results = rows.decode_results([text], SLOTS)
        self.assertEqual((results.markers, results.cut), ([], []))
        return results.matches

    def test_hits(self) -> None:
        """
        Each slot that holds something is a hit in its field.
        """
        name = slot_of("dns.answers[1].rdata", Kind.DOMAIN)
        mark = {"s": "suricata.dns", name: {"v": "a.b", "k": "domain", "ids": ["i", "j"]}}
        self.assertEqual(
            self.decode(line(mark, src_ip="1.2.3.4")),
            [
                Match(
                    {"src_ip": "1.2.3.4"},
                    "suricata.dns",
                    (Hit("dns.answers[1].rdata", Kind.DOMAIN, "a.b", ("i", "j")),),
                )
            ],
        )

    def test_sign(self) -> None:
        """
        A line whose mark is null is no match.
        """
        self.assertEqual(self.decode(b'{"_tbvast":null}'), [])

    def test_other_kind(self) -> None:
        """
        A value that is something else, in a field that cannot hold that, is no hit.
        """
        name = slot_of("dns.answers[0].rdata", Kind.DOMAIN)
        mark = {"s": "x", name: {"v": "ab" * 16, "k": "md5", "ids": ["i"]}}
        self.assertEqual(self.decode(line(mark)), [])

    def test_large_numbers(self) -> None:
        """
        Numbers of 64 bits are exact.
        """
        name = slot_of("src_ip", Kind.IP)
        mark = {"s": "x", name: {"v": "1.2.3.4", "k": "ip", "ids": ["i"]}}
        (match,) = self.decode(line(mark, flow_id=2**63 - 1))
        self.assertEqual(match.event["flow_id"], 2**63 - 1)

    def test_malformed(self) -> None:
        """
        Malformed lines of a match are refused.
        """
        for text in ("{", "[]", "{}", *(f'{{"_tbvast":{mark}}}' for mark in ("7", '"s"', "{}"))):
            self.assertRaises(Invalid, rows.decode_results, [text], SLOTS)

    @given(st.one_of(st.binary(), st.dictionaries(st.text(), st.text()).map(line)))
    def test_refused(self, text: bytes) -> None:
        """
        A malformed line of a match is refused, and nothing else is raised.
        """
        try:
            self.decode(text)
        except Invalid:
            pass
