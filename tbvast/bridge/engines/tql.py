"""
The pipelines that drive a Tenzir node, as text made from data.

No value of an indicator is ever part of that text: values travel as NDJSON. What
is, are names of tables, topics and fields, checked here, and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from tbvast.bridge.engines.fields import (
    BUILT_IN,
    SCHEMA,
    STEP,
    Field,
    Form,
    Request,
    Source,
    anything,
)
from tbvast.errors import Invalid
from tbvast.intel.observables import UNESCAPED, Kind

SIGN = b'{"_tbvast":null}'
"""
A line of the live match that only says that it runs.
"""

MARK = "_tbvast"
"""
The field of an exported event that holds what was found in it.
"""

CUT = "cut"
"""
Within L{MARK}: whether a list of the event is longer than what was looked at of it.
"""

POSITIONS = 8
"""
How many elements of each list are looked at, unless told otherwise.
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


class Branch(msgspec.Struct, frozen=True):
    """
    The lookups in events of some schemas.

    @ivar condition: A TQL expression over the schema's name; C{""} is always.
    @ivar long: A TQL expression that is true of an event with a second element
        in any of its lists; C{""} is never. Most events have none, and are
        spared the lookups of all later elements.
    @ivar first: The lookups in an event without.
    @ivar all: The lookups in an event with.
    @ivar cut: A TQL expression that is true of an event with a list that is longer
        than what is looked at of it.
    """

    condition: str
    long: str
    first: tuple[Slot, ...]
    all: tuple[Slot, ...]
    cut: str = ""


class Plan(msgspec.Struct, frozen=True):
    """
    Everything a match looks up, and how to read what it found.
    """

    branches: tuple[Branch, ...]
    slots: dict[str, Slot]


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
            _longer(source, lambda most: 1) if positions > 1 else "",
            numbered.of(source, 1),
            numbered.of(source, positions),
            _longer(source, lambda most: most or positions),
        )
        for source in [*full, *partial, anything(sources)]
    ]
    return Plan(tuple(branches), numbered.known())


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

    def of(self, source: Source, positions: int) -> tuple[Slot, ...]:
        found: dict[Slot, None] = {}
        for field in source.fields:
            for kinds in _by_key(field.kinds & self._kinds):
                prefix = next((f'"{kind} " + ' for kind in PREFIXED if kind in kinds), "")
                for shown, expression in _lookups(field, positions):
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


def _longer(source: Source, than: Callable[[int], int]) -> str:
    """
    @param than: The length that is exceeded, given how many elements a path says;
        C{0} if it does not.
    """
    found = {
        f"{access}[{than(most)}]? != null": None
        for field in source.fields
        if not field.flat
        for access, most in _lists(_steps(field.path))
    }
    return " or ".join(found)


def _lists(steps: list[tuple[str, int | None]]) -> Iterator[tuple[str, int]]:
    """
    The lists of a path: of lists within lists, those in the first elements.
    """
    access = ""
    for name, most in steps:
        access = _within(access, name)
        if most is not None:
            yield access, most
            access += "[0]?"


def _within(record: str, name: str) -> str:
    if name in RESERVED:
        return f'{record or "this"}["{name}"]?'
    return f"{record}.{name}?" if record else f"{name}?"


def _lookups(field: Field, positions: int) -> Iterator[tuple[str, str]]:
    """
    The expressions of a field: one for each position of a list in its path.
    """
    if field.flat:
        _steps(field.path)
        yield field.path, _undone(field.form, f'this["{field.path}"]?')
        return
    for shown, access in _accesses(_steps(field.path), positions):
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


def _accesses(steps: list[tuple[str, int | None]], positions: int) -> list[tuple[str, str]]:
    found = [("", "")]
    for name, most in steps:
        found = [(f"{shown}.{name}", _within(access, name)) for shown, access in found]
        if most is not None:
            found = [
                (f"{shown}[{position}]", f"{access}[{position}]?")
                for shown, access in found
                for position in range(1 if positions == 1 else most or positions)
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
    ((_, access),) = _accesses(_steps(path), 1)
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


def live(matched: Plan, tables: Tables) -> str:
    """
    Match what arrives from now on, as lines on standard output.

    Once a second the node's own metrics make a line whose mark is null: the
    sign that the match runs, and that the node is still there. An event in which
    nothing was found, but a list was too long, makes a line of the mark alone.
    """
    return (
        f"export live=true\n{_matched(matched, tables, cut=True)}"
        'merge { export internal=true, live=true | where @name == "tenzir.metrics.actor" '
        f'| where name == "importer" | select {MARK}=null }}\nwrite_ndjson\n'
    )


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
    return f"export\n{recent}{_matched(matched, tables)}{bounded}"


def ping() -> str:
    """
    Ask the node, not the command, for its version.
    """
    return 'api "/ping"\nwrite_ndjson\n'


def launch(pipeline: str, stream: str, lifetime: float) -> str:
    """
    Run a pipeline in the node, with its results kept for L{serve}.

    Each result is wrapped as one text, for the answers of the node's interface
    would mix the fields of different schemas.

    @param stream: A name that was never used before, for pipeline and results.
    @param lifetime: Seconds after which the node ends it by itself.
    """
    name = identity(stream)
    definition = quoted(f"{pipeline}select line=print_ndjson(this)\n")
    return (
        f'api "/pipeline/launch", {{definition: {definition}, id: "{name}", '
        f'serve_id: "{name}", hidden: true, ttl: "{int(lifetime * 1000)}ms"}}\nwrite_ndjson\n'
    )


def serve(stream: str, token: str, most: int, wait: float) -> str:
    """
    Fetch the next results of a pipeline that was launched.

    @param token: What the fetch before answered; C{""} for the first.
    @param most: The most results.
    @param wait: Seconds to wait until there are half as many.
    """
    if token and not _TOKEN.fullmatch(token):
        raise Invalid("continuation token", token, "letters, digits and -")
    continued = f'continuation_token: "{token}", ' if token else ""
    return (
        f'api "/serve", {{serve_id: "{identity(stream)}", {continued}'
        f"max_events: {int(most)}, min_events: {int(most) // 2}, "
        f'timeout: "{int(wait * 1000)}ms", schema: "never"}}\nwrite_ndjson\n'
    )


def end(stream: str) -> str:
    """
    End a pipeline that was launched.
    """
    return f'api "/pipeline/delete", {{id: "{identity(stream)}"}}\nwrite_ndjson\n'


def _matched(matched: Plan, tables: Tables, cut: bool = False) -> str:
    lines = [f"{MARK} = {{s: @name}}"]
    for number, branch in enumerate(matched.branches):
        opening = f"if {branch.condition} {{" if branch.condition else "{"
        lines.append(f"}} else {opening}" if number else opening)
        if branch.long:
            lines.append(f"if {branch.long} {{")
            lines += _looked_up(branch.all, tables, branch.cut if cut else "")
            lines.append("} else {")
            lines += _looked_up(branch.first, tables)
            lines.append("}")
        else:
            lines += _looked_up(branch.all, tables)
    return "\n".join([*lines, "}", f"drop_null_fields {MARK}", ""])


def _looked_up(slots: Iterable[Slot], tables: Tables, cut: str = "") -> Iterator[str]:
    found = []
    if cut:
        yield f"{MARK}.{CUT} = true if {cut}"
    for slot in slots:
        table = _name(tables.of(next(iter(slot.kinds))))
        found.append(f"{MARK}.{slot.name} != null")
        yield f'context_enrich "{table}", key={slot.expression}, into={MARK}.{slot.name}'
    any_found = " or ".join(found) or "false"
    if cut:
        yield f"if {any_found} {{\npass\n}} else if {MARK}.{CUT} == true {{"
        yield f"select {MARK}\n}} else {{\nwhere false\n}}"
    else:
        yield f"where {any_found}"


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
