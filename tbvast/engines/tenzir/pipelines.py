"""
The pipelines that drive a Tenzir node, as text made from data.

No value of an indicator is ever part of that text: values travel as NDJSON. What
is, are names of tables, topics and fields, checked here, and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from tbvast.errors import Invalid
from tbvast.stix.observables import UNESCAPED, Kind
from tbvast.telemetry.known_fields import (
    BUILT_IN,
    POSITIONS,
    SCHEMA,
    STEP,
    Field,
    Form,
    Request,
    Source,
    anything,
)

MARKER = "tbvast.marker"
"""
The schema of the events that the bridge imports itself, and waits for on the matches' way.
"""

MARKER_SOURCE = "tbvast_bridge"
MARKER_NUMBER = "tbvast_number"
MARKER_LEAF = "tbvast_leaf"
"""
The fields of a marker: who imported it, which one it is, and the leaf that it passes.
"""

BATCH_TIMEOUT = 0.1
"""
Seconds that arriving events are gathered: a lookup costs by the batch, not by the event.
"""

LEVELS = (1, 4)
"""
How many elements of its lists are looked at in an event whose lists are no longer.
"""

MARK = "_tbvast"
"""
The field of an exported event that holds what was found in it.
"""

IMPORTED = "t"
"""
Within L{MARK}: when the event was imported.
"""

CUT = "cut"
"""
Within L{MARK}: whether a list of the event is longer than what was looked at of it.
"""

RESERVED = frozenset(
    [
        "and",
        "as",
        "else",
        "false",
        "fn",
        "for",
        "if",
        "in",
        "is",
        "let",
        "match",
        "meta",
        "move",
        "not",
        "null",
        "or",
        "return",
        "self",
        "super",
        "this",
        "true",
        "use",
        "while",
    ]
)
"""
Words that TQL does not take for the name of a field.
"""

LABELS = 6
"""
The most labels of a domain name whose subdomains are recognised, if they are.
"""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_IDENTITY = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


class Tables(msgspec.Struct, frozen=True):
    """
    The names of the three tables that one match uses.

    One for each type of key: a table of mixed keys takes minutes to read back.
    """

    ip: str
    net: str
    text: str

    def of(self, kind: Kind) -> str:
        """
        The table that holds observables of a kind.
        """
        if kind is Kind.IP:
            return self.ip
        return self.net if kind is Kind.NETWORK else self.text

    def __iter__(self) -> Iterator[str]:
        return iter((self.ip, self.net, self.text))


MAIN = Tables("tbvast_ip", "tbvast_net", "tbvast_str")
"""
What the live match uses; they hold everything in force.
"""

RETRO = Tables("tbvast_r0_ip", "tbvast_r0_net", "tbvast_r0_str")
"""
What the retro match uses; they hold only what is searched for.
"""


PREFIXED = (
    Kind.FILE_NAME,
    Kind.CERTIFICATE,
    Kind.JA3,
    Kind.JA3S,
    Kind.JA4,
    Kind.USER_AGENT,
    Kind.MAC,
)
"""
The kinds whose key is the kind, a blank and the value: one key for a file's MD5 and
for a JA3 of the same digits would make each replace the other. A blank is in no key
of the kinds that have their value as the key.
"""


class Slot(msgspec.Struct, frozen=True):
    """
    One lookup: an expression over the event's fields, in one table.

    @ivar name: Where its result is found, within L{MARK}.
    @ivar field: The path that is reported for a hit.
    @ivar kinds: What the field can hold; the table may hold other kinds too.
    """

    name: str
    field: str
    kinds: frozenset[Kind]
    expression: str


class Level(msgspec.Struct, frozen=True):
    """
    The lookups in events with lists of a certain length.

    @ivar condition: A TQL expression that is true of an event with a longer list than
        the next level looks at; C{""} is always.
    """

    condition: str
    slots: tuple[Slot, ...]


class Branch(msgspec.Struct, frozen=True):
    """
    The lookups in events of some schemas.

    @ivar condition: A TQL expression over the schema's name; C{""} is always.
    @ivar levels: The longest lists come first. Most events have short ones, and are
        spared the lookups of all later elements.
    @ivar cut: A TQL expression that is true of an event with a list that is longer
        than what is looked at of it.
    """

    condition: str
    levels: tuple[Level, ...]
    cut: str = ""

    @property
    def first(self) -> tuple[Slot, ...]:
        """
        The lookups in an event whose lists are the shortest.
        """
        return self.levels[-1].slots

    @property
    def all(self) -> tuple[Slot, ...]:
        """
        The lookups in an event whose lists are the longest.
        """
        return self.levels[0].slots


class Plan(msgspec.Struct, frozen=True):
    """
    Everything a match looks up, and how to read what it found.
    """

    branches: tuple[Branch, ...]
    slots: dict[str, Slot]

    @property
    def leaves(self) -> list[int]:
        """
        The number of lookups of each level of each branch, in their order.
        """
        return [len(level.slots) for branch in self.branches for level in branch.levels]


def plan(
    sources: Iterable[Source] = BUILT_IN,
    positions: int = POSITIONS,
    kinds: Collection[Kind] = frozenset(Kind),
    subdomains: bool = False,
) -> Plan:
    """
    Work out the lookups.

    @param positions: How many elements are looked at of each list whose path does
        not say; C{1} is only the first of any list.
    @param kinds: Look only for these.
    @param subdomains: Whether a domain is also found in every name below it, if it
        has at least two and at most L{LABELS} labels.
    @raise tbvast.errors.Invalid: If a source names a schema or a field by
        something that is no name.
    """
    sources = tuple(sources)
    full = [source for source in sources if not source.schema.endswith("*")]
    partial = sorted(
        (source for source in sources if source.schema.endswith("*")),
        key=lambda source: len(source.schema),
        reverse=True,
    )
    numbered = _Slots(frozenset(kinds), subdomains)
    branches = [
        Branch(
            _condition(source.schema),
            _levels(source, positions, numbered),
            _longer(source, _whole(positions), _only(1)),
        )
        for source in [*full, *partial, anything(sources)]
    ]
    return Plan(tuple(branches), numbered.known())


_Bound = Callable[[int], int]
"""
How many elements of a list are looked at, given how many its path says; C{0} if it does
not.
"""


def _whole(positions: int) -> _Bound:
    return lambda most: 1 if positions == 1 else most or positions


def _only(count: int) -> _Bound:
    return lambda most: count


def _levels(source: Source, positions: int, numbered: _Slots) -> tuple[Level, ...]:
    whole = _whole(positions)
    bounds: list[_Bound] = [*(_at_most(level, whole) for level in LEVELS), whole]
    levels: list[Level] = []
    below: _Bound | None = None
    for bound in bounds:
        slots = numbered.of(source, bound)
        if below is not None and slots == levels[0].slots:
            continue
        condition = _longer(source, below, below) if below is not None else ""
        levels.insert(0, Level(condition, slots))
        below = bound
    return tuple(levels)


def _at_most(level: int, whole: _Bound) -> _Bound:
    return lambda most: min(level, whole(most))


class _Slots:
    """
    Numbers lookups; the same lookup in two branches is one slot.
    """

    def __init__(self, kinds: frozenset[Kind], subdomains: bool) -> None:
        self._kinds = kinds
        self._subdomains = subdomains
        self._slots: dict[tuple[str, str, frozenset[Kind]], Slot] = {}

    def known(self) -> dict[str, Slot]:
        return {slot.name: slot for slot in self._slots.values()}

    def of(self, source: Source, bound: _Bound) -> tuple[Slot, ...]:
        found: dict[Slot, None] = {}
        for field in source.fields:
            for kinds in _by_key(field.kinds & self._kinds):
                prefix = next((f'"{kind} " + ' for kind in PREFIXED if kind in kinds), "")
                for shown, expression in _lookups(field, bound):
                    found[self._slot(shown, prefix + expression, kinds)] = None
                    if self._subdomains and kinds == {Kind.DOMAIN}:
                        for above in _above(expression):
                            found[self._slot(shown, above, kinds)] = None
        if Kind.URL in self._kinds:
            for request in source.requests:
                for expression in _requested(request):
                    found[self._slot(request.target, expression, frozenset({Kind.URL}))] = None
        return tuple(found)

    def _slot(self, field: str, expression: str, kinds: frozenset[Kind]) -> Slot:
        key = (field, expression, kinds)
        if key not in self._slots:
            self._slots[key] = Slot(f"f{len(self._slots)}", field, kinds, expression)
        return self._slots[key]


def _by_key(kinds: frozenset[Kind]) -> Iterator[frozenset[Kind]]:
    """
    Groups of kinds that one lookup can find.
    """
    plain = kinds.difference(PREFIXED)
    for table in MAIN:
        part = frozenset(kind for kind in plain if MAIN.of(kind) == table)
        if part:
            yield part
    for kind in PREFIXED:
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


def _longer(source: Source, than: _Bound, among: _Bound) -> str:
    """
    @param than: The length that is exceeded.
    @param among: Of lists within lists, in how many of the outer elements.
    """
    found = {
        f"{access}[{than(most)}]? != null": None
        for field in source.fields
        if not field.flat
        for access, most in _lists(_steps(field.path), among)
    }
    return " or ".join(found)


def _lists(steps: list[tuple[str, int | None]], among: _Bound) -> Iterator[tuple[str, int]]:
    """
    The lists of a path.
    """
    accesses = [""]
    for name, most in steps:
        accesses = [_within(access, name) for access in accesses]
        if most is not None:
            for access in accesses:
                yield access, most
            accesses = [
                f"{access}[{position}]?" for access in accesses for position in range(among(most))
            ]


def _within(record: str, name: str) -> str:
    if name in RESERVED:
        return f'{record or "this"}["{name}"]?'
    return f"{record}.{name}?" if record else f"{name}?"


def _lookups(field: Field, bound: _Bound) -> Iterator[tuple[str, str]]:
    """
    The expressions of a field: one for each position of a list in its path.
    """
    if field.flat:
        _steps(field.path)
        yield field.path, _undone(field.form, f'this["{field.path}"]?')
        return
    for shown, access in _accesses(_steps(field.path), bound):
        yield shown, _undone(field.form, access)


def _steps(path: str) -> list[tuple[str, int | None]]:
    """
    The names of a path, each with how many elements are looked at if it is a
    list: C{0} if that is not said.
    """
    steps: list[tuple[str, int | None]] = []
    for step in path.split("."):
        match = STEP.fullmatch(step)
        if match is None:
            raise Invalid("field", path, "names joined by dots, each perhaps with [] or [24]")
        steps.append((match[1], int(match[3] or 0) if match[2] else None))
    return steps


def _accesses(steps: list[tuple[str, int | None]], bound: _Bound) -> list[tuple[str, str]]:
    found = [("", "")]
    for name, most in steps:
        found = [(f"{shown}.{name}", _within(access, name)) for shown, access in found]
        if most is not None:
            found = [
                (f"{shown}[{position}]", f"{access}[{position}]?")
                for shown, access in found
                for position in range(bound(most))
            ]
    return [(shown[1:], access) for shown, access in found]


def _undone(form: Form, access: str) -> str:
    if form is Form.ADDRESS:
        return f"ip({access})"
    if form is Form.NAME:
        return f'{access}.to_lower().trim_end(".")'
    if form is Form.MAILBOX:
        return rf'{access}.replace_regex("^.*<([^<>]+)>.*$", "\\1").to_lower()'
    if form is Form.DIGEST:
        return f'{access}.replace(":", "").to_lower()'
    if form is Form.BASE_NAME:
        return rf'{access}.replace_regex("^(?s:.*)[/\\\\]", "")'
    if form is Form.HARDWARE:
        return f'{access}.replace("-", ":").to_lower()'
    if form is Form.VERBATIM:
        return access
    return _located(access)


def _above(name: str) -> Iterator[str]:
    """
    The names above a name: what is left of it that has two labels, three, and so on.

    One label is a top-level domain, which would find half the world.
    """
    for more in range(1, LABELS):
        ending = rf"^.*\\.([^.]+(?:\\.[^.]+){{{more}}})$"
        yield rf'{name}.replace_regex("{ending}", "\\1")'


def _located(access: str) -> str:
    bare = (
        f'{access}.replace_regex("^[a-zA-Z][a-zA-Z0-9+.-]*://", "").replace_regex("#.*$", "")'
        r'.replace_regex("^([^/?]*)\\?", "\\1/?")'
    )
    parts = f'{bare}.split("/", max=1)'
    host = f'{parts}[0]?.replace_regex("^.*@", "").replace_regex(":(?:80|443)?$", "")'
    return f'({_named(host)} + "/" + ({_escaped(f"{parts}[1]?")} else ""))'


def _named(access: str) -> str:
    return rf'{access}.to_lower().replace_regex("\\.(:[0-9]+)?$", "\\1")'


def _escaped(access: str) -> str:
    # Zeek logs a URL's path with its escapes undone; an indicator's has none but these.
    return f'{access}.replace(" ", "%20")'


def _access(path: str) -> str:
    ((_, access),) = _accesses(_steps(path), _only(1))
    return access


def _requested(request: Request) -> Iterator[str]:
    target = _access(request.target)
    is_path = f'{target}.starts_with("/")'
    yield f"({_joined(request, _escaped(target))} if {is_path} else {_located(target)})"
    if request.unescaped:
        yield f'("{UNESCAPED}" + {_joined(request, target)} if {is_path})'


def _joined(request: Request, target: str) -> str:
    """
    @param target: What stands for the request's own.
    """
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


def create(table: str) -> str:
    """
    Make a table that is not there.
    """
    return f'context_create_lookup_table "{_name(table)}"\n'


def drop(table: str) -> str:
    """
    Take a table away, with its entries.
    """
    return f'context_remove "{_name(table)}"\n'


def listing() -> str:
    """
    Name the tables that are there, one a line.
    """
    return "context_list\nselect name\nwrite_ndjson\n"


def inspect(table: str) -> str:
    """
    Read the entries of a table, one a line.
    """
    return f'context_inspect "{_name(table)}"\nselect value\nwrite_ndjson\n'


def update(tables: Tables) -> str:
    """
    Write the rows on standard input; each replaces what its key had.
    """
    return _stored(tables, 'context_update "{table}", key=_key, value={{v: v, k: k, ids: ids}}')


def erase(tables: Tables) -> str:
    """
    Remove the rows on standard input.
    """
    return _stored(tables, 'context_erase "{table}", key=_key')


def _stored(tables: Tables, operator: str) -> str:
    prefixed = " or ".join(f'k == "{kind}"' for kind in PREFIXED)
    # A null key would match every event that lacks a field: hence the `where`.
    lines = ["from_stdin { read_ndjson raw=true }"]
    for condition, key, table in (
        (f'if k == "{Kind.IP}"', "ip(v)", tables.ip),
        (f'else if k == "{Kind.NETWORK}"', "subnet(v)", tables.net),
        (f"else if {prefixed}", 'k + " " + v', tables.text),
        ("else", "v", tables.text),
    ):
        lines += [
            f"{condition} {{",
            f"  _key = {key}",
            "  where _key != null",
            f"  {operator.format(table=_name(table))}",
            "}",
        ]
    # A closing brace and the `else` that goes with it share a line.
    return "\n".join(lines).replace("}\nelse", "} else") + "\n"


def live(matched: Plan, tables: Tables, bridge: str) -> str:
    """
    Match in the node what arrives from now on; of each match, or marker, one text.

    An event in which nothing was found, but a list was too long, makes a text of the mark
    alone. A marker passes the lookups of its leaf, and so comes out behind every event
    that went in there before it.

    @param bridge: Who has imported the markers that come out; those of others do not.
    """
    return (
        f"export live=true\nbatch timeout={int(BATCH_TIMEOUT * 1000)}ms\n"
        f'where not ({_IS_MARKER}) or {MARKER_SOURCE}? == "{identity(bridge)}"\n'
        f"{_matched(matched, tables, arriving=True)}select line=this.print_ndjson()\n"
    )


def to_socket(path: str) -> str:
    """
    Write the texts of a pipeline, as lines, to a Unix socket that somebody listens on.
    The pipeline fails when nobody does.
    """
    return f"to_unix_socket {_path(path)}, max_retry_count=2 {{ write_ndjson }}\n"


def markers_from_socket(path: str) -> str:
    """
    Import the markers that come from a Unix socket that somebody listens on.
    """
    reading = "{ read_ndjson raw=true, _batch_timeout=10ms }"
    return f"from_unix_socket {_path(path)} {reading}\n{_IMPORTED}"


def markers_from_topic(topic: str) -> str:
    """
    Import the markers that are published, in the node, under a topic.
    """
    return f'subscribe "{identity(topic)}"\n{_IMPORTED}'


def publish_markers(topic: str, bridge: str, number: int, leaves: Iterable[int]) -> str:
    """
    Publish markers under a topic.
    """
    events = ", ".join(
        f'{{{MARKER_SOURCE}: "{identity(bridge)}", {MARKER_NUMBER}: {int(number)},'
        f" {MARKER_LEAF}: {int(leaf)}}}"
        for leaf in leaves
    )
    return f'from {events}\npublish "{identity(topic)}"\n'


_IMPORTED = f'@name = "{MARKER}"\nimport\n'
_IS_MARKER = f'@name == "{MARKER}"'
_PATH = re.compile(r"/[A-Za-z0-9._/+@=,-]{0,106}", re.ASCII)


def fits(path: str) -> bool:
    """
    Whether a path can be that of a Unix socket, and part of a pipeline.
    """
    return _PATH.fullmatch(path) is not None


def _path(path: str) -> str:
    if not fits(path):
        raise Invalid("socket", path, "an absolute path of at most 107 plain characters")
    return f'"{path}"'


def start(pipeline: str, name: str, lifetime: float) -> str:
    """
    Run a pipeline in the node that has a sink of its own.

    @param name: One that no other has. It is not listed, and gone with the node.
    @param lifetime: Seconds after which the node ends it, unless L{renew} comes first.
    """
    return (
        f'api "/pipeline/create", {{definition: {quoted(pipeline)}, id: "{identity(name)}", '
        f'name: "{identity(name)}", hidden: true, ttl: "{int(lifetime * 1000)}ms"}}\nwrite_ndjson\n'
    )


def renew(names: Iterable[str]) -> str:
    """
    Let pipelines live on for their lifetime. The answer names those that are there.
    """
    listed = ", ".join(f'"{identity(name)}"' for name in names)
    return f'api "/pipeline/reset-ttl", {{ids: [{listed}]}}\nwrite_ndjson\n'


def retro(matched: Plan, tables: Tables, limit: int, since: float | None = None) -> str:
    """
    Match what is stored, as events.

    @param limit: The most events with the same hits in the same fields; C{0}
        means all of them.
    @param since: Only events imported then or later; seconds since the epoch.
    """
    recent = ""
    if since is not None:
        # Right behind the export, where the node need not read what is older.
        moment = datetime.fromtimestamp(int(since), UTC)
        recent = f"where @import_time >= {moment:%Y-%m-%dT%H:%M:%S}Z\n"
    bounded = f"deduplicate {MARK}, limit={int(limit)}\n" if limit else ""
    return f"export\n{recent}where not ({_IS_MARKER})\n{_matched(matched, tables)}{bounded}"


def ping() -> str:
    """
    Ask the node, not the command, for its version.
    """
    return 'api "/ping"\nwrite_ndjson\n'


def launch(pipeline: str, stream: str, lifetime: float, whole: bool = False) -> str:
    """
    Run a pipeline in the node, with its results kept for L{serve}.

    Each result is wrapped as one text, for the answers of the node's interface
    would mix the fields of different schemas.

    @param stream: A name that was never used before, for pipeline and results.
    @param lifetime: Seconds after which the node ends it by itself.
    @param whole: Whether its results are texts already.
    """
    name = identity(stream)
    wrapped = "" if whole else "select line=print_ndjson(this)\n"
    definition = quoted(f"{pipeline}{wrapped}")
    return (
        f'api "/pipeline/launch", {{definition: {definition}, id: "{name}", '
        f'serve_id: "{name}", hidden: true, ttl: "{int(lifetime * 1000)}ms"}}\nwrite_ndjson\n'
    )


def serve(stream: str, token: str, most: int, wait: float, least: int | None = None) -> str:
    """
    Fetch the next results of a pipeline that was launched.

    @param token: What the fetch before answered; C{""} for the first.
    @param most: The most results.
    @param wait: Seconds to wait until there are enough.
    @param least: How many are enough; C{None} for half of the most.
    """
    if token and not _TOKEN.fullmatch(token):
        raise Invalid("continuation token", token, "letters, digits and -")
    continued = f'continuation_token: "{token}", ' if token else ""
    return (
        f'api "/serve", {{serve_id: "{identity(stream)}", {continued}'
        f"max_events: {int(most)}, min_events: {int(most) // 2 if least is None else int(least)}, "
        f'timeout: "{int(wait * 1000)}ms", schema: "never"}}\nwrite_ndjson\n'
    )


def end(stream: str) -> str:
    """
    End a pipeline that was launched.
    """
    return f'api "/pipeline/delete", {{id: "{identity(stream)}"}}\nwrite_ndjson\n'


def _matched(matched: Plan, tables: Tables, arriving: bool = False) -> str:
    """
    @param arriving: Whether this is the live match: with markers, and with the mark of
        events that are not looked at as a whole.
    """
    lines: list[str] = []
    leaf = 0
    for number, branch in enumerate(matched.branches):
        leaves = range(leaf, leaf + len(branch.levels))
        condition = _passed(branch.condition, leaves if arriving else ())
        opening = f"if {condition} {{" if branch.condition else "{"
        lines.append(f"}} else {opening}" if number else opening)
        for depth, level in enumerate(branch.levels):
            if level.condition:
                condition = _passed(level.condition, leaves[depth : depth + 1] if arriving else ())
                lines.append(f"}} else if {condition} {{" if depth else f"if {condition} {{")
            elif depth:
                lines.append("} else {")
            cut = branch.cut if arriving and not depth else ""
            lines += _looked_up(level.slots, tables, arriving, cut)
        if len(branch.levels) > 1:
            lines.append("}")
        leaf = leaves.stop
    return "\n".join([*lines, "}", f"drop_null_fields {MARK}", ""])


def _passed(condition: str, leaves: Sequence[int]) -> str:
    """
    A condition that markers of some leaves fulfil, too.
    """
    if not leaves:
        return condition
    own = " or ".join(f"{MARKER_LEAF}? == {leaf}" for leaf in leaves)
    return f"{condition} or ({_IS_MARKER} and ({own}))"


def _looked_up(
    slots: Sequence[Slot], tables: Tables, arriving: bool, cut: str = ""
) -> Iterator[str]:
    # Each result has a column of its own: to add one to a record costs as much as the
    # record is wide.
    columns = {slot.name: f"{MARK}_{slot.name}" for slot in slots}
    for slot in slots:
        table = _name(tables.of(next(iter(slot.kinds))))
        yield f'context_enrich "{table}", key={slot.expression}, into={columns[slot.name]}'
    found = " or ".join(f"{column} != null" for column in columns.values()) or "false"
    parts = ["s: @name"]
    if arriving:
        found = f"{found} or {_IS_MARKER}"
        parts.append(f"{IMPORTED}: @import_time")
    if cut:
        yield f"{MARK}_{CUT} = {cut}"
        parts.append(f"{CUT}: {MARK}_{CUT}")
        yield f"if {found} {{"
    else:
        yield f"where {found}"
    parts += [f"{name}: {column}" for name, column in columns.items()]
    yield f"{MARK} = {{{', '.join(parts)}}}"
    dropped = [*columns.values(), *([f"{MARK}_{CUT}"] if cut else [])]
    if dropped:
        yield f"drop {', '.join(dropped)}"
    if cut:
        yield f"}} else if {MARK}_{CUT} == true {{"
        yield f"select {MARK}={{s: @name, {CUT}: true}}\n}} else {{\nwhere false\n}}"


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise Invalid("table", text, "a table's name")
    return text


def identity(text: str) -> str:
    """
    @return: C{text}, which is fit to name a pipeline or a stream.
    @raise tbvast.errors.Invalid: If it is not.
    """
    if not _IDENTITY.fullmatch(text):
        raise Invalid("identity", text, "lower-case letters, digits, - and _")
    return text


def quoted(pipeline: str) -> str:
    """
    A generated pipeline as a string literal within another.

    @raise tbvast.errors.Invalid: If it holds anything but printable ASCII and
        newlines: then it was not generated here.
    """
    if not re.fullmatch(r"[\x20-\x7e\n]*", pipeline):
        raise Invalid("pipeline", pipeline, "printable ASCII")
    escaped = pipeline.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
