"""
The configuration file and the command line, as typed and validated settings.

What there is to say about a key (its help, its unit, what it accepts, whether it
is an option) is said once, beside the field that holds it.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_type_hints

import msgspec
import yaml

from tbvast.engines.tenzir.pipelines import LIST_POSITIONS
from tbvast.errors import SHOWN, SettingsInvalid
from tbvast.stix.limits import SHORTEST_MESSAGE_LIMIT
from tbvast.telemetry.known_fields import FIELDS_BY_KEY, SCHEMA, STEP, Source, SourceMapping

LOOPBACK = "127.0.0.1"

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def _is_host(text: str) -> bool:
    """
    Whether C{text} is an IP address or can be a host name.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None
    return True


class HostPort(msgspec.Struct, frozen=True):
    """
    Where something listens.

    @ivar host: An IP address, without brackets, or a host name.
    @ivar port: From 1 to 65535.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        @param text: C{HOST:PORT}; an IPv6 address stands in square brackets.
        @raise ValueError: If C{text} is something else.
        """
        host, colon, port = text.rpartition(":")
        if not colon or re.fullmatch("[0-9]{1,5}", port) is None or not 1 <= int(port) <= 65535:
            raise ValueError("the port is missing or not from 1 to 65535")
        bracketed = host.startswith("[") and host.endswith("]")
        bare = host[1:-1] if bracketed else host
        if bracketed != (":" in bare) or not _is_host(bare):
            raise ValueError("the host is missing or malformed")
        return cls(bare, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


T = TypeVar("T", bound=msgspec.Struct)


class Form(msgspec.Struct, frozen=True):
    """
    What the value of a key has to look like.
    """

    @property
    def expected(self) -> str:
        """
        It in words, to follow "is not".
        """
        raise NotImplementedError

    def check(self, value: Any) -> Any:
        """
        @param value: As the YAML file gives it.
        @return: The value of the field.
        @raise ValueError: If it does not look like this.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """
        @param text: As the command line gives it.
        @return: The value of the field.
        @raise ValueError: If it does not look like this.
        """
        return self.check(text)


class Whole(Form, frozen=True):
    """
    A whole number within bounds, both included.
    """

    low: int
    high: int
    unit: str = ""

    @property
    def expected(self) -> str:
        of = f" of {self.unit}" if self.unit else ""
        return f"a whole number{of} from {self.low} to {self.high}"

    def check(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(value)
        return value

    def parse(self, text: str) -> int:
        if _WHOLE.fullmatch(text) is None:
            raise ValueError(text)
        return self.check(int(text))


class Seconds(Form, frozen=True):
    """
    A time in seconds within bounds, both included.
    """

    low: float
    high: float

    @property
    def expected(self) -> str:
        return f"a number of seconds from {self.low:g} to {self.high:g}"

    def check(self, value: Any) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high:
            raise ValueError(value)
        return float(value)

    def parse(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return self.check(number)


class YesNo(Form, frozen=True):
    """
    A switch.
    """

    @property
    def expected(self) -> str:
        return "yes or no"

    def check(self, value: Any) -> bool:
        if type(value) is not bool:
            raise ValueError(value)
        return value

    def parse(self, text: str) -> bool:
        if text not in ("yes", "no"):
            raise ValueError(text)
        return text == "yes"


class Choice(Form, frozen=True):
    """
    One of a few words.
    """

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.words)}"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(value)
        return value


class Host(Form, frozen=True):
    """
    An IP address or a host name.

    @ivar empty: What an empty value stands for.
    """

    empty: str = ""

    @property
    def expected(self) -> str:
        return "an IP address or a host name"

    def check(self, value: Any) -> str:
        if value is None or value == "":
            return self.empty
        if not isinstance(value, str):
            raise ValueError(value)
        bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if not _is_host(bare):
            raise ValueError(value)
        return bare


class Endpoint(Form, frozen=True):
    """
    C{HOST:PORT}, or one of a few words instead.
    """

    words: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return " or ".join([*self.words, "HOST:PORT (an IPv6 address in square brackets)"])

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value if value in self.words else str(HostPort.parse(value))


class Command(Form, frozen=True):
    """
    A command with its arguments, quoted as for a shell but run without one; or
    nothing.
    """

    @property
    def expected(self) -> str:
        return "a command with its arguments, every quote closed"

    def check(self, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(value)
        shlex.split(value)
        return value.strip()


class Directory(Form, frozen=True):
    """
    A directory's path, or nothing.
    """

    @property
    def expected(self) -> str:
        return "the path of a directory"

    def check(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(value)
        return value


class File(Form, frozen=True):
    """
    A file's path, or nothing.
    """

    @property
    def expected(self) -> str:
        return "the path of a file"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(value)
        return value


MOST_LOOKUPS = 256
"""
The most elements that one path of a field map may stand for.
"""

_PATHS = "paths such as a.b[].c, separated by commas, each of at most 256 elements of lists"


class FieldMap(Form, frozen=True):
    """
    Which fields hold what, by schema.
    """

    @property
    def expected(self) -> str:
        return "a mapping of schemas to what their fields hold"

    def check(self, value: Any) -> tuple[SourceMapping, ...]:
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise ValueError(value)
        return tuple(_mapped(schema, said) for schema, said in value.items())


def _mapped(schema: Any, said: Any) -> SourceMapping:
    where = f"bridge.fields.{_label(schema)}"
    if not isinstance(schema, str) or len(schema) > 200 or not SCHEMA.fullmatch(schema):
        raise SettingsInvalid(where, schema, "a schema's name, or the beginning of one and a *")
    found = _mapping(said, where)
    _refuse_unknown(found, f"{where}.", [*FIELDS_BY_KEY, "replace"])
    replace = found.get("replace", False)
    if type(replace) is not bool:
        raise SettingsInvalid(f"{where}.replace", replace, "yes or no")
    fields = tuple(
        field
        for key, paths in found.items()
        if key != "replace"
        for field in FIELDS_BY_KEY[key](*_paths(f"{where}.{key}", paths))
    )
    return SourceMapping(Source(schema, fields), replace)


def _paths(where: str, value: Any) -> list[str]:
    """
    @param value: A list of paths, or one text with commas.
    """
    paths = value.split(",") if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths:
        raise SettingsInvalid(where, value, _PATHS)
    found = []
    for each in paths:
        path = each.strip() if isinstance(each, str) else ""
        steps = [STEP.fullmatch(step) for step in path.split(".")]
        lists = [int(step[3] or LIST_POSITIONS) for step in steps if step is not None and step[2]]
        if None in steps or len(path) > 200 or math.prod(lists) > MOST_LOOKUPS:
            raise SettingsInvalid(where, each, _PATHS)
        found.append(path)
    return found


class Key(msgspec.Struct, frozen=True):
    """
    What there is to say about one key, besides its name and default.

    @ivar help: One or two sentences, with the unit.
    @ivar form: What it accepts.
    @ivar metavar: What stands for the value in the help of the command line
        option; empty if the key is no option.
    """

    help: str
    form: Form
    metavar: str = ""


LEVELS = ("debug", "info", "warn", "error", "critical")

_PORT = Whole(1, 65535)
_MESSAGE_BYTES = Whole(SHORTEST_MESSAGE_LIMIT, 2**30, "bytes")
_loglevel = Key(f"The least level that is logged: {', '.join(LEVELS)}.", Choice(LEVELS), "LEVEL")
_state_dir = Key(
    "Directory for everything that must survive a restart; empty: the one systemd "
    "gives, or the user's own state directory.",
    Directory(),
    "DIR",
)
_client_key = Key(
    "The key to show to the bus, a file ending in .key_secret that tbvast keygen made; "
    "empty: none.",
    File(),
)
_server_key = Key(
    "The public key of the bus, a file ending in .key; nobody else is talked to.",
    File(),
)
_max_message_bytes = Key(
    "The longest message accepted, in bytes; at least 8388608, so that every document fits in.",
    _MESSAGE_BYTES,
)


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    Another bus that a plugin subscribes to; each field's L{Key} says what it means.
    """

    threatbus: Annotated[str, Key("The manage endpoint of the bus.", Endpoint())]
    snapshot: Annotated[
        int, Key("Days of past indicators to ask the bus for.", Whole(0, 36_500, "days"))
    ] = 0
    curve_key: Annotated[str, _client_key] = ""
    server_key: Annotated[str, _server_key] = ""


class Upstreams(Form, frozen=True):
    """
    A list of other buses.
    """

    @property
    def expected(self) -> str:
        return "a list of buses, each with threatbus: HOST:PORT"

    def check(self, value: Any) -> tuple[UpstreamSettings, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(value)
        return tuple(
            _section(each, f"plugin.upstream[{i}]", UpstreamSettings)
            for i, each in enumerate(value)
        )


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    What C{tbvast-plugin} is told; each field's L{Key} says what it means.
    """

    host: Annotated[
        str,
        Key(
            "Address that the three endpoints listen on; empty: loopback only.",
            Host(LOOPBACK),
            "HOST",
        ),
    ] = LOOPBACK
    manage: Annotated[
        int, Key("Port of the manage endpoint: subscribe, heartbeat.", _PORT, "PORT")
    ] = 13370
    pub: Annotated[
        int, Key("Port of the pub endpoint: what subscribers receive.", _PORT, "PORT")
    ] = 13371
    sub: Annotated[int, Key("Port of the sub endpoint: what others send.", _PORT, "PORT")] = 13372
    curve_key: Annotated[
        str,
        Key(
            "The bus's own key, a file ending in .key_secret that tbvast keygen made: then "
            "only those in clients are let in; empty: everybody is.",
            File(),
        ),
    ] = ""
    clients: Annotated[
        str,
        Key(
            "File of those who are let in: KEY NAME [PERMISSION,...] a line; read again on SIGHUP.",
            File(),
        ),
    ] = ""
    upstream: Annotated[
        tuple[UpstreamSettings, ...],
        Key(
            "Other buses, whose intel is taken in, and to whom sightings are passed up; each "
            "has threatbus: HOST:PORT and may have snapshot: DAYS, curve_key and server_key, "
            "as in bridge.",
            Upstreams(),
        ),
    ] = ()
    allow_plaintext: Annotated[
        bool,
        Key(
            "Whether the endpoints may listen without keys on an address that is not loopback.",
            YesNo(),
        ),
    ] = False
    advertise: Annotated[
        str,
        Key(
            "Host that clients of the vast dialect are told to connect to; empty: the "
            "address that the endpoints listen on.",
            Host(),
        ),
    ] = ""
    state_dir: Annotated[str | None, _state_dir] = None
    loglevel: Annotated[str, _loglevel] = "info"
    heartbeat_timeout: Annotated[
        float,
        Key(
            "Seconds without a heartbeat that end a subscription which had heartbeats.",
            Seconds(0.1, 86400),
        ),
    ] = 30.0
    detached_timeout: Annotated[
        float,
        Key(
            "Seconds that a subscription lives without its ZeroMQ subscription; who comes back "
            "in time gets what it has missed.",
            Seconds(0.1, 86400),
        ),
    ] = 60.0
    max_message_bytes: Annotated[int, _max_message_bytes] = 10 * 2**20
    max_subscriptions: Annotated[
        int, Key("The most subscriptions at a time.", Whole(1, 1_000_000))
    ] = 10_000
    max_client_subscriptions: Annotated[
        int,
        Key(
            "The most subscriptions of one client at a time; a client is a key, or an "
            "address where there are no keys.",
            Whole(1, 1_000_000),
        ),
    ] = 10_000
    max_topics: Annotated[
        int, Key("The most topics in one subscribe request.", Whole(1, 10_000))
    ] = 100
    max_snapshot_days: Annotated[
        int,
        Key("The longest snapshot that can be asked for, in days.", Whole(0, 36_500, "days")),
    ] = 3650
    queue_messages: Annotated[
        int,
        Key(
            "The most messages that wait in memory for one subscriber; what is beyond is read "
            "from the journal.",
            Whole(1, 100_000_000),
        ),
    ] = 100_000
    queue_bytes: Annotated[
        int,
        Key(
            "The most bytes that wait in memory for one subscriber; what is beyond is read "
            "from the journal.",
            Whole(1024, 2**40, "bytes"),
        ),
    ] = 64 * 2**20
    retention_days: Annotated[
        int,
        Key(
            "Days that the journal keeps what is no longer in force: old versions, what "
            "has ended, and sightings. Indicators in force always stay.",
            Whole(0, 36_500, "days"),
        ),
    ] = 90
    retention_bytes: Annotated[
        int,
        Key(
            "Size of the journal beyond which the oldest of that is let go of earlier, in bytes.",
            Whole(2**20, 2**50, "bytes"),
        ),
    ] = 10 * 2**30
    errors_per_minute: Annotated[
        int,
        Key(
            "The most errors logged per minute for each kind of bad input; the rest are counted.",
            Whole(0, 100_000),
        ),
    ] = 60


class BridgeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    What C{tbvast-bridge} is told; each field's L{Key} says what it means.
    """

    threatbus: Annotated[str, Key("The manage endpoint of the bus.", Endpoint(), "HOST:PORT")] = (
        "localhost:13370"
    )
    curve_key: Annotated[str, _client_key] = ""
    server_key: Annotated[str, _server_key] = ""
    snapshot: Annotated[
        int,
        Key(
            "Days of past indicators to ask the bus for, at a first start; 0: none.",
            Whole(0, 36_500, "days"),
            "DAYS",
        ),
    ] = 0
    vast: Annotated[
        str,
        Key(
            "The engine's node; auto: the one on vast_listen if there is one, otherwise "
            "an embedded node is started there.",
            Endpoint(("auto",)),
            "auto|HOST:PORT",
        ),
    ] = "auto"
    vast_listen: Annotated[
        str,
        Key("Where an embedded node listens.", Endpoint(), "HOST:PORT"),
    ] = "127.0.0.1:5158"
    vast_binary: Annotated[
        str,
        Key("The engine's client command; empty: the installed one.", Command(), "CMD"),
    ] = ""
    engine: Annotated[
        str,
        Key(
            "What the node is: tenzir, or vast for its predecessor.",
            Choice(("tenzir", "vast")),
            "tenzir|vast",
        ),
    ] = "tenzir"
    state_dir: Annotated[str | None, _state_dir] = None
    live_match: Annotated[
        bool, Key("Whether new events are matched as they arrive.", YesNo(), "yes|no")
    ] = True
    retro_match: Annotated[
        bool, Key("Whether stored events are searched for new indicators.", YesNo(), "yes|no")
    ] = True
    retro_match_max_events: Annotated[
        int,
        Key(
            "The most stored events reported per observable; 0: all.",
            Whole(0, 1_000_000_000, "events"),
            "N",
        ),
    ] = 100
    retro_match_days: Annotated[
        int,
        Key(
            "Days of stored events that are searched, by when they arrived; 0: all.",
            Whole(0, 36_500, "days"),
            "DAYS",
        ),
    ] = 0
    retro_match_timeout: Annotated[
        float,
        Key("Seconds after which one search ends.", Seconds(0.1, 86400), "SECONDS"),
    ] = 300.0
    subdomains: Annotated[
        bool,
        Key(
            "Whether a domain is also matched by every name below it; only with tenzir.",
            YesNo(),
        ),
    ] = False
    fields: Annotated[
        tuple[SourceMapping, ...],
        Key(
            "Fields of your own events, by schema, as docs/matching.md says; only with tenzir.",
            FieldMap(),
        ),
    ] = ()
    transform_context: Annotated[
        str,
        Key(
            "Command that gets each matched event as JSON on standard input and prints "
            "what the sighting carries instead; %ioc and %matchtype are replaced in its "
            "arguments; empty: none.",
            Command(),
            "CMD",
        ),
    ] = ""
    sink: Annotated[
        str,
        Key(
            "Command that gets each matched event on standard input instead of the bus; "
            "%ioc and %matchtype are replaced in its arguments; STDOUT: print it; empty: "
            "the bus.",
            Command(),
            "CMD|STDOUT",
        ),
    ] = ""
    sink_stream: Annotated[
        bool,
        Key(
            "Whether one running sink command gets many events, one per line; otherwise "
            "the command is run for each.",
            YesNo(),
        ),
    ] = False
    loglevel: Annotated[str, _loglevel] = "info"
    heartbeat: Annotated[
        float, Key("Seconds between heartbeats to the bus.", Seconds(0.1, 3600))
    ] = 5.0
    max_message_bytes: Annotated[int, _max_message_bytes] = 10 * 2**20


class Settings(msgspec.Struct, frozen=True):
    """
    The whole configuration file.
    """

    plugin: PluginSettings = PluginSettings()
    bridge: BridgeSettings = BridgeSettings()


SECTIONS: Mapping[str, type[PluginSettings | BridgeSettings]] = {
    "plugin": PluginSettings,
    "bridge": BridgeSettings,
}
"""
The sections of the configuration file.
"""

S = TypeVar("S", PluginSettings, BridgeSettings)


@functools.cache
def keys(section: type[msgspec.Struct]) -> Mapping[str, Key]:
    """
    The keys of a section by name, in the order of its fields.
    """
    hints = get_type_hints(section, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in section.__struct_fields__}


def load(path: str) -> Settings:
    """
    Read a configuration file.

    @param path: The file's path.
    @raise SettingsInvalid: If the file cannot be read, or anything in it cannot
        be used.
    """
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise SettingsInvalid("--config", path, f"a file that can be read: {reason}") from e
    return decode(text, _label(path))


def decode(text: bytes, name: str = "configuration") -> Settings:
    """
    Validate the text of a configuration file.

    @param name: What error messages call the file.
    @raise SettingsInvalid: If anything in it cannot be used.
    """
    document = _mapping(_yaml(text, name), name)
    _refuse_unknown(document, "", SECTIONS)
    settings = Settings(
        plugin=_section(document.get("plugin"), "plugin", PluginSettings),
        bridge=_section(document.get("bridge"), "bridge", BridgeSettings),
    )
    _check_ports(settings.plugin, {})
    _check_engine(settings.bridge, {})
    return settings


def override(settings: S, given: Mapping[str, str]) -> S:
    """
    Apply command line options.

    @param given: What the command line gives, by the name of the key.
    @raise SettingsInvalid: If it cannot be used; it names the option.
    """
    known = keys(type(settings))
    values = {}
    for name, text in given.items():
        try:
            values[name] = known[name].form.parse(text)
        except ValueError as e:
            raise SettingsInvalid(option(name), text, known[name].form.expected) from e
    changed = msgspec.structs.replace(settings, **values)
    labels = {name: option(name) for name in given}
    _check_ports(changed, labels)
    _check_engine(changed, labels)
    return changed


def option(name: str) -> str:
    """
    The command line option that sets a key: C{--state-dir} for C{state_dir}.
    """
    return "--" + name.replace("_", "-")


def _section(value: Any, path: str, section: type[T]) -> T:
    """
    Validate one section; one that is missing or empty has only defaults.
    """
    found: dict[Any, Any] = _mapping(value, path)
    known = keys(section)
    _refuse_unknown(found, f"{path}.", known)
    values = {}
    for name in dict.fromkeys([*found, *_required(section)]):
        try:
            values[name] = known[name].form.check(found.get(name))
        except ValueError as e:
            raise SettingsInvalid(
                f"{path}.{name}", found.get(name), known[name].form.expected
            ) from e
    return section(**values)


def _required(section: type[msgspec.Struct]) -> list[str]:
    """
    The keys of a section that have no default.
    """
    return [
        field.name
        for field in msgspec.structs.fields(section)
        if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
    ]


def _label(name: Any) -> str:
    """
    A key as part of a path: on one line, bounded.
    """
    return repr(str(name))[1:-1][:SHOWN]


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    """
    A mapping of the file; an empty one where there is nothing.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsInvalid(where, value, "a mapping of keys to values")
    return value


def _refuse_unknown(found: Mapping[Any, Any], prefix: str, known: Collection[str]) -> None:
    """
    @raise SettingsInvalid: If a key is not known; it names the nearest that is.
    """
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise SettingsInvalid(
                prefix + _label(name), name, f"a known key; the nearest is {prefix}{near}"
            )


def _check_ports(settings: PluginSettings | BridgeSettings, labels: Mapping[str, str]) -> None:
    """
    @param labels: What to call a key; one that is left out is called by its path.
    @raise SettingsInvalid: If two endpoints of a plugin have one port.
    """
    if not isinstance(settings, PluginSettings):
        return
    seen: dict[int, str] = {}
    for name in ("manage", "pub", "sub"):
        port = getattr(settings, name)
        label = labels.get(name, f"plugin.{name}")
        if port in seen:
            raise SettingsInvalid(label, port, f"a port of its own: {seen[port]} has it already")
        seen[port] = label


def _check_engine(settings: PluginSettings | BridgeSettings, labels: Mapping[str, str]) -> None:
    """
    @param labels: As for L{_check_ports}.
    @raise SettingsInvalid: If the engine cannot do what it is to do.
    """
    if not isinstance(settings, BridgeSettings) or settings.engine == "tenzir":
        return
    for name in ("subdomains", "fields"):
        if getattr(settings, name):
            label = labels.get("engine", "bridge.engine")
            raise SettingsInvalid(label, settings.engine, f"an engine that can do {name}: tenzir")


def _yaml(text: bytes, name: str) -> Any:
    """
    The value of a YAML document, no key of which is given twice.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for path, first, again in _repeats(node, "", set()):
            both = f"lines {first.start_mark.line + 1} and {again.start_mark.line + 1}"
            raise SettingsInvalid(path, again.value, f"a key that may be given twice ({both})")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        lines = text.decode("utf-8", "replace").splitlines()
        line = lines[mark.line] if mark and mark.line < len(lines) else ""
        raise SettingsInvalid(where, line.strip(), f"valid YAML: {e.problem}") from e
    except SettingsInvalid:
        raise
    except Exception as e:
        # PyYAML lets through what its own constructors and decoder stumble over.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise SettingsInvalid(name, text, f"valid YAML: {reason}") from e


def _repeats(
    node: yaml.Node, path: str, seen: set[int]
) -> Iterator[tuple[str, yaml.ScalarNode, yaml.ScalarNode]]:
    """
    The keys that a mapping, at any depth, has twice: path, first and second.

    @param seen: The nodes visited so far, for an alias may name its own parent.
    """
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    first: dict[str, yaml.ScalarNode] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        where = f"{path}.{_label(key.value)}" if path else _label(key.value)
        if key.value in first:
            yield where, first[key.value], key
        first[key.value] = key
        yield from _repeats(value, where, seen)
