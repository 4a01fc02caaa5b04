"""
Generates the TQL pipelines that drive a Tenzir node.

No value of an indicator is ever part of a pipeline: values travel as NDJSON. A pipeline
contains only numbers and the names of tables, topics and fields, which are checked here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import attrs
import msgspec

from tbvast.errors import Invalid
from tbvast.stix.observables import UNESCAPED, Kind
from tbvast.telemetry.known_fields import (
    BUILT_IN,
    POSITIONS,
    SCHEMA,
    STEP,
    Form,
    Request,
    Source,
    any_source,
)

MARKER = "tbvast.marker"
"""
The schema of markers: events that the bridge imports to see them pass the live match.
"""

MARKER_SOURCE = "tbvast_bridge"
MARKER_NUMBER = "tbvast_number"
MARKER_LEAF = "tbvast_leaf"
"""
The fields of a marker: the live match that it passes, its round, and the leaf that it passes.
"""

LIVE_BATCH_SECONDS = 0.1
"""
Seconds for which arriving events are gathered: a lookup costs per batch, not per event.
"""

SHORT_LIST_LENGTHS = (1, 4)
"""
The list lengths up to which an event counts as short; it then gets only as many lookups.
"""

UNLIMITED = 100
"""
More elements of a list than any path can ask for.
"""

FINDINGS = "_tbvast"
"""
The field of an exported event that contains the findings.
"""

REPORT = "tables"
"""
The field of a report on tables, which no exported event has at its top level without
L{FINDINGS}.
"""

REPORT_SECONDS = 5.0
"""
Seconds between two reports on the tables during a live match. Each costs the node some twenty
milliseconds.
"""

IMPORTED_KEY = "t"
CUT_KEY = "cut"
"""
The keys in L{FINDINGS} of the time when the event was imported, and of whether a list of the
event was not read to its end.
"""

MAX_LABELS = 6
"""
The most labels of a domain name whose subdomains are matched.
"""

_TABLE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_PIPELINE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
# TQL does not accept these words as the plain name of a field.
_RESERVED = re.compile(
    "and|as|else|false|fn|for|if|in|is|let|match|meta|move|not|null|or|return|self|super|this"
    "|true|use|while"
)


class Tables(NamedTuple):
    """
    The names of the three tables that a match uses, one for each type of key: a table with
    keys of several types takes minutes to read back.

    @ivar ip: The table of addresses.
    @ivar net: The table of networks.
    @ivar text: The table of all other observables.
    """

    ip: str
    net: str
    text: str

    def of(self, kind: Kind) -> str:
        """
        @return: The table for observables of a kind.
        """
        if kind is Kind.IP:
            return self.ip
        return self.net if kind is Kind.NETWORK else self.text


_SUFFIXES = Tables("ip", "net", "str")

OLD_TABLES = tuple(f"tbvast_{retro}{suffix}" for retro in ("", "r0_") for suffix in _SUFFIXES)
"""
The tables of a bridge of 0.1.0, which were the same for all.
"""


def main_tables(bridge: str) -> Tables:
    """
    @param bridge: The identity of a bridge: lower-case hexadecimal digits.
    @return: Its tables for the live match, with all entries in force.
    """
    return Tables._make(_table_name(f"tbvast_{bridge}_{suffix}") for suffix in _SUFFIXES)


def retro_tables(bridge: str) -> Tables:
    """
    @return: The tables of a bridge for searches of past events, with the entries of the current
        search.
    """
    return main_tables(f"{bridge}_r0")


PREFIXED_KINDS = (
    Kind.FILE_NAME,
    Kind.CERTIFICATE,
    Kind.JA3,
    Kind.JA3S,
    Kind.JA4,
    Kind.USER_AGENT,
    Kind.MAC,
)
"""
The kinds whose key is the kind, a blank and the value. Otherwise a file's MD5 and a JA3 with
the same digits would replace each other. The keys of all other kinds are plain values, none of
which contains a blank.
"""


class Slot(msgspec.Struct, frozen=True):
    """
    One lookup: an expression over the event's fields, looked up in one table.

    @ivar name: The key of its result in L{FINDINGS}.
    @ivar field: The path that is reported for a hit.
    @ivar kinds: The kinds that the field can hold; the table may hold other kinds too.
    @ivar expression: The TQL expression whose value is looked up.
    """

    name: str
    field: str
    kinds: frozenset[Kind]
    expression: str


class Level(msgspec.Struct, frozen=True):
    """
    The lookups in events whose lists have up to a certain length.

    @ivar condition: A TQL expression that is true for an event with a longer list than the
        next level reads; C{""} is always true.
    @ivar slots: The lookups.
    """

    condition: str
    slots: tuple[Slot, ...]


class Branch(msgspec.Struct, frozen=True):
    """
    The lookups in events of some schemas.

    @ivar condition: A TQL expression over the schema's name; C{""} is always true.
    @ivar levels: The levels, the longest lists first. Most events have short lists, and so
        skip the lookups of all later elements.
    @ivar cut: A TQL expression that is true for an event with a list that is not read to its
        end.
    """

    condition: str
    levels: tuple[Level, ...]
    cut: str = ""


class Plan(msgspec.Struct, frozen=True):
    """
    All lookups of a match.

    @ivar branches: The branches, in the order in which an event's schema is tested.
    @ivar slots: All lookups, by name.
    """

    branches: tuple[Branch, ...]
    slots: dict[str, Slot]

    @property
    def leaves(self) -> list[int]:
        """
        The number of lookups in each level of each branch, in their order.
        """
        return [len(level.slots) for branch in self.branches for level in branch.levels]


def plan(
    sources: Iterable[Source] = BUILT_IN,
    positions: int = POSITIONS,
    kinds: Collection[Kind] = frozenset(Kind),
    subdomains: bool = False,
) -> Plan:
    """
    Derive the lookups of a match from the fields of events.

    @param sources: The fields, by schema.
    @param positions: The number of elements that are read of each list whose path gives no
        number; C{1} reads only the first element of every list.
    @param kinds: The kinds to look for.
    @param subdomains: Whether a domain with two to L{MAX_LABELS} labels also matches every
        name below it.
    @raise tbvast.errors.Invalid: If a source has a malformed schema or path.
    """
    sources = tuple(sources)
    full = [source for source in sources if not source.schema.endswith("*")]
    partial = [source for source in sources if source.schema.endswith("*")]
    partial.sort(key=lambda source: len(source.schema), reverse=True)
    planner = _Planner(positions, frozenset(kinds), subdomains)
    branches = [planner.branch(source) for source in [*full, *partial, any_source(sources)]]
    return Plan(tuple(branches), {slot.name: slot for slot in planner.slots.values()})


@attrs.define(eq=False)
class _Planner:
    """
    Derives the lookups, and numbers them; equal lookups in two branches are one slot.
    """

    _positions: int
    _kinds: frozenset[Kind]
    _subdomains: bool
    slots: dict[tuple[str, str, frozenset[Kind]], Slot] = attrs.field(init=False, factory=dict)

    def branch(self, source: Source) -> Branch:
        levels: list[Level] = []
        below = 0
        for most in (*SHORT_LIST_LENGTHS, UNLIMITED):
            slots = self._slots_of(source, most)
            if levels and slots == levels[0].slots:
                continue
            condition = self._has_longer_list(source, below, below) if levels else ""
            levels.insert(0, Level(condition, slots))
            below = most
        cut = self._has_longer_list(source, UNLIMITED, 1)
        return Branch(_condition(source.schema), tuple(levels), cut)

    def _slots_of(self, source: Source, most: int) -> tuple[Slot, ...]:
        found: dict[Slot, None] = {}
        for field in source.fields:
            accesses, _ = _read(field.path, self._positions, most)
            if field.flat:
                accesses = [(field.path, f'this["{field.path}"]?')]
            for kinds in _groups_by_key(field.kinds & self._kinds):
                prefix = next((f'"{kind} " + ' for kind in PREFIXED_KINDS if kind in kinds), "")
                for shown, access in accesses:
                    expression = prefix + _NORMALISED[field.form](access)
                    found[self._slot(shown, expression, kinds)] = None
                    if self._subdomains and kinds == {Kind.DOMAIN}:
                        for above in _parent_names(expression):
                            found[self._slot(shown, above, kinds)] = None
        if Kind.URL in self._kinds:
            for request in source.requests:
                for expression in _request_expressions(request):
                    found[self._slot(request.target, expression, frozenset({Kind.URL}))] = None
        return tuple(found)

    def _slot(self, field: str, expression: str, kinds: frozenset[Kind]) -> Slot:
        key = (field, expression, kinds)
        if key not in self.slots:
            self.slots[key] = Slot(f"f{len(self.slots)}", field, kinds, expression)
        return self.slots[key]

    def _has_longer_list(self, source: Source, than: int, among: int) -> str:
        """
        @param than: The length that a list must exceed; of a shorter one that is read only in
            part, that part.
        @param among: For lists within lists, the number of outer elements that are read.
        @return: A TQL expression that is true for an event with such a list.
        """
        found = {
            f"{access}[{min(than, whole)}]? != null": None
            for field in source.fields
            if not field.flat
            for access, whole in _read(field.path, self._positions, among)[1]
        }
        return " or ".join(found)


def _groups_by_key(kinds: frozenset[Kind]) -> Iterator[frozenset[Kind]]:
    """
    Group kinds that one lookup can find.
    """
    plain = kinds.difference(PREFIXED_KINDS)
    for table in _SUFFIXES:
        part = frozenset(kind for kind in plain if _SUFFIXES.of(kind) == table)
        if part:
            yield part
    for kind in PREFIXED_KINDS:
        if kind in kinds:
            yield frozenset({kind})


def _condition(schema: str) -> str:
    if schema != "*" and not SCHEMA.fullmatch(schema):
        raise Invalid("schema", schema, "a schema's name, or the beginning of one and a *")
    if schema == "*":
        return ""
    if schema.endswith("*"):
        return f'@name.starts_with("{schema[:-1]}")'
    return f'@name == "{schema}"'


@functools.cache
def _read(
    path: str, positions: int = 1, most: int = 1
) -> tuple[list[tuple[str, str]], list[tuple[str, int]]]:
    """
    @param positions: The elements to read of each list whose part of the path gives no number.
    @param most: The most elements that are read of each list.
    @return: The paths and expressions of the elements, and the expressions of the lists, each
        with the number of its elements that are read at the most.
    """
    found = [("", "")]
    lists: list[tuple[str, int]] = []
    for step in path.split("."):
        match = STEP.fullmatch(step)
        if match is None:
            raise Invalid("field", path, "names joined by dots, each perhaps with [] or [24]")
        name, brackets, number = match.groups()
        found = [(f"{shown}.{name}", _member(access, name)) for shown, access in found]
        if brackets:
            whole = 1 if positions == 1 else int(number or positions)
            lists += [(access, whole) for _, access in found]
            found = [
                (f"{shown}[{position}]", f"{access}[{position}]?")
                for shown, access in found
                for position in range(min(most, whole))
            ]
    return [(shown[1:], access) for shown, access in found], lists


def _member(record: str, name: str) -> str:
    if _RESERVED.fullmatch(name):
        return f'{record or "this"}["{name}"]?'
    return f"{record}.{name}?" if record else f"{name}?"


def _parent_names(name: str) -> Iterator[str]:
    """
    Yield the parent names of a name, from two labels to L{MAX_LABELS}.

    A single label is a top-level domain, which would match far too much.
    """
    for more in range(1, MAX_LABELS):
        ending = rf"^.*\\.([^.]+(?:\\.[^.]+){{{more}}})$"
        yield rf'{name}.replace_regex("{ending}", "\\1")'


def _normalised_url(access: str) -> str:
    bare = (
        f'{access}.replace_regex("^[a-zA-Z][a-zA-Z0-9+.-]*://", "").replace_regex("#.*$", "")'
        r'.replace_regex("^([^/?]*)\\?", "\\1/?")'
    )
    parts = f'{bare}.split("/", max=1)'
    host = (
        f'{parts}[0]?.replace_regex("^.*@", "").replace_regex(":(?:80|443)?$", "").to_lower()'
        r'.replace_regex("\\.(:[0-9]+)?$", "\\1")'
    )
    return f'({host} + "/" + ({_with_escaped_blanks(f"{parts}[1]?")} else ""))'


def _with_escaped_blanks(access: str) -> str:
    # Zeek logs a URL's path unescaped; blanks are the only escapes in an indicator's path.
    return f'{access}.replace(" ", "%20")'


_NORMALISED: Mapping[Form, Callable[[str], str]] = {
    Form.ADDRESS: "ip({})".format,
    Form.NAME: '{}.to_lower().trim_end(".")'.format,
    Form.MAILBOX: r'{}.replace_regex("^.*<([^<>]+)>.*$", "\\1").to_lower()'.format,
    Form.DIGEST: '{}.replace(":", "").to_lower()'.format,
    Form.LOCATION: _normalised_url,
    Form.BASE_NAME: r'{}.replace_regex("^(?s:.*)[/\\\\]", "")'.format,
    Form.HARDWARE: '{}.replace("-", ":").to_lower()'.format,
    Form.VERBATIM: str,
}


def _access(path: str) -> str:
    [(_, access)], _ = _read(path)
    return access


def _request_expressions(request: Request) -> Iterator[str]:
    target = _access(request.target)
    is_path = f'{target}.starts_with("/")'
    escaped = _request_url(request, _with_escaped_blanks(target))
    yield f"({escaped} if {is_path} else {_normalised_url(target)})"
    if request.unescaped:
        yield f'("{UNESCAPED}" + {_request_url(request, target)} if {is_path})'


def _request_url(request: Request, target: str) -> str:
    host = f'{_access(request.host)}.to_lower().trim_end(".")'
    if request.port:
        port = _access(request.port)
        named = f"{port} != null and {port} != 80 and {port} != 443"
        host = f'({host} + ":" + string({port}) if {named} else {host})'
    whole = f"{host} + {target}"
    if request.query:
        query = _access(request.query)
        whole = f'{whole} + ("?" + {query} if {query} != null and {query} != "" else "")'
    return whole


def create_table(table: str) -> str:
    """
    Create a table that does not exist.
    """
    return f'context_create_lookup_table "{_table_name(table)}"\n'


def drop_table(table: str) -> str:
    """
    Delete a table with its entries.
    """
    return f'context_remove "{_table_name(table)}"\n'


_LIST = "context_list\nselect name, entries=num_entries\n"


def list_tables() -> str:
    """
    List the names of all tables, and the numbers of their entries, one per line.
    """
    return f"{_LIST}write_ndjson\n"


def _table_report(tables: Tables) -> str:
    """
    List those of some tables that exist, in one event.
    """
    names = ", ".join(f'"{_table_name(table)}"' for table in tables)
    return f"{_LIST}where name in [{names}]\nsummarize {REPORT}=collect(this)\n"


def inspect_tables(tables: Tables) -> Iterator[str]:
    """
    Read the entries of each table, one per line; the value is null if tbvast does not write it
    under this key.
    """
    conditions = Tables(
        "key == ip(value.v?)",
        "key == subnet(value.v?)",
        'key == value.v? or key == value.k? + " " + value.v?',
    )
    for table, condition in zip(tables, conditions, strict=True):
        yield (
            f'context_inspect "{_table_name(table)}"\n'
            f"select value=(value if {condition})\nwrite_ndjson\n"
        )


def update_tables(tables: Tables) -> str:
    """
    Write the rows on standard input; each replaces the previous row of its key.
    """
    return _table_writer(
        tables, 'context_update "{table}", key=_key, value={{v: v, k: k, ids: ids}}'
    )


def erase_from_tables(tables: Tables) -> str:
    """
    Remove the rows on standard input.
    """
    return _table_writer(tables, 'context_erase "{table}", key=_key')


def _table_writer(tables: Tables, operator: str) -> str:
    ip, net, text = map(_table_name, tables)
    prefixed = " or ".join(f'k == "{kind}"' for kind in PREFIXED_KINDS)
    # A null key would match every event that lacks a field: hence the `where`.
    cases = [
        (
            condition,
            [f"  _key = {key}", "  where _key != null", f"  {operator.format(table=table)}"],
        )
        for condition, key, table in (
            (f'k == "{Kind.IP}"', "ip(v)", ip),
            (f'k == "{Kind.NETWORK}"', "subnet(v)", net),
            (prefixed, 'k + " " + v', text),
            ("", "v", text),
        )
    ]
    return "\n".join(["from_stdin { read_ndjson raw=true }", *_first_of(cases), ""])


def live_match(matched: Plan, tables: Tables, name: str) -> str:
    """
    Match the events that arrive from now on, in the node; yield a text for each match, for
    each marker, and for the tables every L{REPORT_SECONDS}.

    An event without a hit, but with a list that was not read to its end, yields a text that
    has only the findings. A marker passes the lookups of its leaf, so that it comes out after
    every event that entered the leaf before it.

    @param name: The name of the match, whose markers come out; other markers are dropped.
    """
    return (
        f"export live=true\nbatch timeout={int(LIVE_BATCH_SECONDS * 1000)}ms\n"
        f'where not ({_IS_MARKER}) or {MARKER_SOURCE}? == "{_checked_name(name)}"\n'
        f"{_match_stages(matched, tables, arriving=True)}"
        f"merge {{\nevery {REPORT_SECONDS:g}s {{\n{_table_report(tables)}}}\n}}\n"
        "select line=this.print_ndjson()\n"
    )


def to_socket(path: str) -> str:
    """
    Write the texts of a pipeline, as lines, to a listening Unix socket. Without a listener,
    the pipeline fails.
    """
    return f"to_unix_socket {_socket_path(path)}, max_retry_count=2 {{ write_ndjson }}\n"


def markers_from_socket(path: str) -> str:
    """
    Import the markers that arrive from a listening Unix socket.
    """
    reading = "{ read_ndjson raw=true, _batch_timeout=10ms }"
    return f"from_unix_socket {_socket_path(path)} {reading}\n{_IMPORTED}"


def markers_from_topic(topic: str) -> str:
    """
    Import the markers that are published under a topic of the node.
    """
    return f'subscribe "{_checked_name(topic)}"\n{_IMPORTED}'


def publish_markers(topic: str, match: str, number: int, leaves: Iterable[int]) -> str:
    """
    Publish markers under a topic of the node.

    @param match: The name of the live match that they pass.
    @param number: The number of the round.
    @param leaves: The leaves that they pass, one marker each.
    """
    events = ", ".join(
        f'{{{MARKER_SOURCE}: "{_checked_name(match)}", {MARKER_NUMBER}: {int(number)},'
        f" {MARKER_LEAF}: {int(leaf)}}}"
        for leaf in leaves
    )
    return f'from {events}\npublish "{_checked_name(topic)}"\n'


_IMPORTED = f'@name = "{MARKER}"\nimport\n'
_IS_MARKER = f'@name == "{MARKER}"'
_SOCKET_PATH = re.compile(r"/[A-Za-z0-9._/+@=,-]{0,106}", re.ASCII)


def is_socket_path(path: str) -> bool:
    """
    Whether a path is short enough for a Unix socket, and safe within a pipeline.
    """
    return _SOCKET_PATH.fullmatch(path) is not None


def _socket_path(path: str) -> str:
    if not is_socket_path(path):
        raise Invalid("socket", path, "an absolute path of at most 107 plain characters")
    return f'"{path}"'


def start_pipeline(pipeline: str, name: str, lifetime: float) -> str:
    """
    Run a pipeline with a sink in the node.

    @param name: A unique name. The pipeline is not listed, and does not outlive the node.
    @param lifetime: Seconds after which the node ends the pipeline unless it is renewed; see
        L{renew_pipelines}.
    """
    return _run_in_node("create", pipeline, name, "name", lifetime)


def _run_in_node(action: str, pipeline: str, name: str, also: str, lifetime: float) -> str:
    checked = _checked_name(name)
    return (
        f'api "/pipeline/{action}", {{definition: {quoted(pipeline)}, id: "{checked}", '
        f'{also}: "{checked}", hidden: true, ttl: "{int(lifetime * 1000)}ms"}}\nwrite_ndjson\n'
    )


def renew_pipelines(names: Iterable[str]) -> str:
    """
    Restart the lifetime of pipelines. The reply names those that still run.
    """
    listed = ", ".join(f'"{_checked_name(name)}"' for name in names)
    return f'api "/pipeline/reset-ttl", {{ids: [{listed}]}}\nwrite_ndjson\n'


def retro_search(matched: Plan, tables: Tables, limit: int, since: float | None = None) -> str:
    """
    Match the stored events; also report on the tables once, at the beginning.

    @param limit: The most events with the same hits in the same fields; C{0} is unlimited.
    @param since: The earliest import time of the events, in seconds since the epoch.
    """
    recent = ""
    if since is not None:
        # Directly after the export, where it spares the node the reading of older events.
        moment = datetime.fromtimestamp(int(since), UTC)
        recent = f"where @import_time >= {moment:%Y-%m-%dT%H:%M:%S}Z\n"
    bounded = f"deduplicate {FINDINGS}, limit={int(limit)}\n" if limit else ""
    return (
        f"export\n{recent}where not ({_IS_MARKER})\n{_match_stages(matched, tables)}{bounded}"
        f"merge {{\n{_table_report(tables)}}}\n"
    )


def ping_node() -> str:
    """
    Ask for the version of the node, not of the command.
    """
    return 'api "/ping"\nwrite_ndjson\n'


def launch_pipeline(pipeline: str, stream: str, lifetime: float, whole: bool = False) -> str:
    """
    Run a pipeline in the node, and keep its results for L{serve_results}.

    Each result is wrapped as one text, because the replies of the node's API would mix the
    fields of different schemas.

    @param stream: A name for the pipeline and its results that was never used before.
    @param lifetime: Seconds after which the node ends the pipeline.
    @param whole: Whether the results are texts already.
    """
    wrapped = "" if whole else "select line=print_ndjson(this)\n"
    return _run_in_node("launch", f"{pipeline}{wrapped}", stream, "serve_id", lifetime)


def serve_results(stream: str, token: str, most: int, wait: float, least: int | None = None) -> str:
    """
    Fetch the next results of a pipeline that L{launch_pipeline} started.

    @param token: The continuation token of the previous reply; C{""} for the first fetch.
    @param most: The most results.
    @param wait: The most seconds to wait for C{least} results.
    @param least: The number of results to wait for; C{None} is half of C{most}.
    """
    if token and not _TOKEN.fullmatch(token):
        raise Invalid("continuation token", token, "letters, digits and -")
    continued = f'continuation_token: "{token}", ' if token else ""
    return (
        f'api "/serve", {{serve_id: "{_checked_name(stream)}", {continued}'
        f"max_events: {int(most)}, min_events: {int(most) // 2 if least is None else int(least)}, "
        f'timeout: "{int(wait * 1000)}ms", schema: "never"}}\nwrite_ndjson\n'
    )


def end_pipeline(stream: str) -> str:
    """
    End a pipeline that runs in the node.
    """
    return f'api "/pipeline/delete", {{id: "{_checked_name(stream)}"}}\nwrite_ndjson\n'


def _match_stages(matched: Plan, tables: Tables, arriving: bool = False) -> str:
    """
    @param arriving: Whether this is the live match, which has markers, and which reports
        events with lists that are not read to their end.
    """

    def extended(condition: str, leaves: Sequence[int]) -> str:
        # So that the markers of the leaves fulfil it, too.
        own = " or ".join(f"{MARKER_LEAF}? == {leaf}" for leaf in leaves)
        return f"{condition} or ({_IS_MARKER} and ({own}))" if condition and arriving else condition

    cases: list[tuple[str, Iterable[str]]] = []
    leaf = 0
    for branch in matched.branches:
        leaves = range(leaf, leaf + len(branch.levels))
        levels = []
        for number, level in zip(leaves, branch.levels, strict=True):
            cut = branch.cut if arriving and number == leaf else ""
            stage = _lookup_stage(level.slots, tables, arriving, cut)
            levels.append((extended(level.condition, [number]), stage))
        stages = _first_of(levels) if len(levels) > 1 else levels[0][1]
        cases.append((extended(branch.condition, leaves), stages))
        leaf = leaves.stop
    return "\n".join([*_first_of(cases), f"drop_null_fields {FINDINGS}", ""])


def _lookup_stage(slots: Sequence[Slot], tables: Tables, arriving: bool, cut: str) -> Iterator[str]:
    # Each result has its own column: adding it to a record would cost the more the wider
    # the record is.
    columns = {slot.name: f"{FINDINGS}_{slot.name}" for slot in slots}
    for slot in slots:
        table = tables.of(next(iter(slot.kinds)))
        yield f'context_enrich "{table}", key={slot.expression}, into={columns[slot.name]}'
    found = " or ".join(f"{column} != null" for column in columns.values()) or "false"
    parts = {"s": "@name"}
    if arriving:
        found = f"{found} or {_IS_MARKER}"
        parts[IMPORTED_KEY] = "@import_time"
    if cut:
        column = f"{FINDINGS}_{CUT_KEY}"
        yield f"{column} = {cut}"
        columns = {CUT_KEY: column, **columns}
    parts |= columns
    marked = [f"{FINDINGS} = {{{', '.join(f'{key}: {value}' for key, value in parts.items())}}}"]
    if columns:
        marked.append(f"drop {', '.join(columns.values())}")
    if cut:
        only_cut = f"select {FINDINGS}={{s: @name, {CUT_KEY}: true}}"
        yield from _first_of(
            [(found, marked), (f"{column} == true", [only_cut]), ("", ["where false"])]
        )
    else:
        yield f"where {found}"
        yield from marked


def _first_of(cases: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """
    Run the statements of the first case whose condition is true; C{""} is always true.
    """
    before = ""
    for condition, statements in cases:
        yield f"{before}if {condition} {{" if condition else f"{before}{{"
        yield from statements
        before = "} else "
    yield "}"


def _table_name(text: str) -> str:
    if not _TABLE_NAME.fullmatch(text):
        raise Invalid("table", text, "a table's name")
    return text


def _checked_name(text: str) -> str:
    # Of a pipeline, a stream, a topic or a live match.
    if not _PIPELINE_NAME.fullmatch(text):
        raise Invalid("identity", text, "lower-case letters, digits, - and _")
    return text


def quoted(pipeline: str) -> str:
    """
    Quote a generated pipeline as a string literal for another one.

    @raise tbvast.errors.Invalid: If it has other characters than printable ASCII and newlines,
        and so was not generated here.
    """
    if not re.fullmatch(r"[\x20-\x7e\n]*", pipeline):
        raise Invalid("pipeline", pipeline, "printable ASCII")
    return json.dumps(pipeline)  # TQL has JSON's escapes
