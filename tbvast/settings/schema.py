"""
The settings of the two services: every key with its type, default and help.

Help, unit and accepted values of a key are declared once, beside the field that holds
the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from tbvast.errors import SettingsInvalid
from tbvast.settings.types import (
    Choice,
    Command,
    DirectoryPath,
    Endpoint,
    FilePath,
    Host,
    Key,
    Seconds,
    ValueType,
    WholeNumber,
    YesNo,
)
from tbvast.settings.validation import FieldMap, validate_section
from tbvast.stix.limits import SHORTEST_MESSAGE_LIMIT
from tbvast.telemetry.known_fields import SourceMapping

LOOPBACK = "127.0.0.1"

LEVELS = ("debug", "info", "warn", "error", "critical")
"""
The log levels, lowest first.
"""

_PORT = WholeNumber(1, 65535)
_MESSAGE_BYTES = WholeNumber(SHORTEST_MESSAGE_LIMIT, 2**30, "bytes")
_loglevel = Key(f"Lowest level that is logged: {', '.join(LEVELS)}.", Choice(LEVELS), "LEVEL")
_state_dir = Key(
    "Directory for all data that must survive a restart; empty: the state directory set by "
    "systemd, or else the user's.",
    DirectoryPath(),
    "DIR",
)
_client_key = Key(
    "Secret key with which to connect to the bus, a file ending in .key_secret made by tbvast "
    "keygen; empty: none.",
    FilePath(),
)
_server_key = Key(
    "Public key of the bus, a file ending in .key; connections to any other bus fail.",
    FilePath(),
)
_max_message_bytes = Key(
    "Longest accepted message, in bytes; at least 8388608, so that every valid document fits.",
    _MESSAGE_BYTES,
)


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    Another bus that the plugin subscribes to. Each field's L{Key} documents it.
    """

    threatbus: Annotated[str, Key("The manage endpoint of the bus.", Endpoint())]
    snapshot: Annotated[
        int, Key("Days of past indicators to request from the bus.", WholeNumber(0, 36_500, "days"))
    ] = 0
    curve_key: Annotated[str, _client_key] = ""
    server_key: Annotated[str, _server_key] = ""


class UpstreamList(ValueType, frozen=True):
    """
    A list of L{UpstreamSettings}.
    """

    @property
    def expected(self) -> str:
        return "a list of buses, each with threatbus: HOST:PORT"

    def check(self, value: Any) -> tuple[UpstreamSettings, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(value)
        return tuple(
            validate_section(each, f"plugin.upstream[{i}]", UpstreamSettings)
            for i, each in enumerate(value)
        )


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    The settings of C{tbvast-plugin}. Each field's L{Key} documents it.
    """

    host: Annotated[
        str,
        Key(
            "Address on which the three endpoints listen; empty: loopback only.",
            Host(LOOPBACK),
            "HOST",
        ),
    ] = LOOPBACK
    manage: Annotated[
        int,
        Key(
            "Port of the manage endpoint, for requests such as subscribe and heartbeat.",
            _PORT,
            "PORT",
        ),
    ] = 13370
    pub: Annotated[
        int, Key("Port of the pub endpoint, from which subscribers receive.", _PORT, "PORT")
    ] = 13371
    sub: Annotated[int, Key("Port of the sub endpoint, to which others send.", _PORT, "PORT")] = (
        13372
    )
    curve_key: Annotated[
        str,
        Key(
            "The bus's secret key, a file ending in .key_secret made by tbvast keygen; then only "
            "the clients listed in clients may connect; empty: no keys, everybody may connect.",
            FilePath(),
        ),
    ] = ""
    clients: Annotated[
        str,
        Key(
            "File of the clients that may connect: KEY NAME [PERMISSION,...] on each line; read "
            "again on SIGHUP.",
            FilePath(),
        ),
    ] = ""
    upstream: Annotated[
        tuple[UpstreamSettings, ...],
        Key(
            "Other buses, from which intel is received and to which sightings are forwarded; each "
            "has threatbus: HOST:PORT and may have snapshot: DAYS, curve_key and server_key, as in"
            " bridge.",
            UpstreamList(),
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
            "Host to which clients of the vast dialect are told to connect; empty: the address on "
            "which the endpoints listen.",
            Host(),
        ),
    ] = ""
    state_dir: Annotated[str | None, _state_dir] = None
    loglevel: Annotated[str, _loglevel] = "info"
    heartbeat_timeout: Annotated[
        float,
        Key(
            "Seconds without a heartbeat after which a subscription ends, if it has ever had one.",
            Seconds(0.1, 86400),
        ),
    ] = 30.0
    detached_timeout: Annotated[
        float,
        Key(
            "Seconds for which a subscription outlives its ZeroMQ subscription; a client that "
            "returns in time gets everything it has missed.",
            Seconds(0.1, 86400),
        ),
    ] = 60.0
    max_message_bytes: Annotated[int, _max_message_bytes] = 10 * 2**20
    max_subscriptions: Annotated[
        int, Key("Maximum number of subscriptions at a time.", WholeNumber(1, 1_000_000))
    ] = 10_000
    max_client_subscriptions: Annotated[
        int,
        Key(
            "Maximum number of subscriptions of one client at a time; a client is identified by "
            "its key, or by its address where there are no keys.",
            WholeNumber(1, 1_000_000),
        ),
    ] = 10_000
    max_topics: Annotated[
        int, Key("Maximum number of topics in one subscribe request.", WholeNumber(1, 10_000))
    ] = 100
    max_snapshot_days: Annotated[
        int,
        Key("Longest snapshot that a client can request, in days.", WholeNumber(0, 36_500, "days")),
    ] = 3650
    queue_messages: Annotated[
        int,
        Key(
            "Maximum number of messages queued in memory for one subscriber; further messages are "
            "read from the journal.",
            WholeNumber(1, 100_000_000),
        ),
    ] = 100_000
    queue_bytes: Annotated[
        int,
        Key(
            "Maximum size in bytes of the messages queued in memory for one subscriber; further "
            "messages are read from the journal.",
            WholeNumber(1024, 2**40, "bytes"),
        ),
    ] = 64 * 2**20
    retention_days: Annotated[
        int,
        Key(
            "Days for which the journal keeps superseded versions, ended indicators and sightings."
            " Indicators in force always stay.",
            WholeNumber(0, 36_500, "days"),
        ),
    ] = 90
    retention_bytes: Annotated[
        int,
        Key(
            "Size of the journal in bytes above which the oldest entries no longer in force are "
            "deleted sooner.",
            WholeNumber(2**20, 2**50, "bytes"),
        ),
    ] = 10 * 2**30
    errors_per_minute: Annotated[
        int,
        Key(
            "Maximum number of errors logged per minute for each kind of bad input; further errors"
            " are only counted.",
            WholeNumber(0, 100_000),
        ),
    ] = 60

    def check_consistency(self, labels: Mapping[str, str]) -> None:
        """
        Check the keys against each other.

        @param labels: By key, the option that set it; errors name other keys by their path.
        @raise SettingsInvalid: If two endpoints have the same port.
        """
        seen: dict[int, str] = {}
        for name in ("manage", "pub", "sub"):
            port = getattr(self, name)
            label = labels.get(name, f"plugin.{name}")
            if port in seen:
                raise SettingsInvalid(
                    label, port, f"a port of its own: {seen[port]} has it already"
                )
            seen[port] = label


class BridgeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    The settings of C{tbvast-bridge}. Each field's L{Key} documents it.
    """

    threatbus: Annotated[str, Key("The manage endpoint of the bus.", Endpoint(), "HOST:PORT")] = (
        "localhost:13370"
    )
    curve_key: Annotated[str, _client_key] = ""
    server_key: Annotated[str, _server_key] = ""
    snapshot: Annotated[
        int,
        Key(
            "Days of past indicators to request from the bus at a first start; 0: none.",
            WholeNumber(0, 36_500, "days"),
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
        Key("Endpoint on which an embedded node listens.", Endpoint(), "HOST:PORT"),
    ] = "127.0.0.1:5158"
    vast_binary: Annotated[
        str,
        Key("The engine's client command; empty: the installed one.", Command(), "CMD"),
    ] = ""
    engine: Annotated[
        str,
        Key(
            "Engine of the node: tenzir, or vast for its predecessor.",
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
            "Maximum number of stored events reported per observable; 0: all.",
            WholeNumber(0, 1_000_000_000, "events"),
            "N",
        ),
    ] = 100
    retro_match_days: Annotated[
        int,
        Key(
            "Days of stored events that are searched, by their time of import; 0: all.",
            WholeNumber(0, 36_500, "days"),
            "DAYS",
        ),
    ] = 0
    retro_match_timeout: Annotated[
        float,
        Key("Time limit of one search, in seconds.", Seconds(0.1, 86400), "SECONDS"),
    ] = 300.0
    subdomains: Annotated[
        bool,
        Key(
            "Whether an indicator's domain also matches every name below it; only with tenzir.",
            YesNo(),
        ),
    ] = False
    fields: Annotated[
        tuple[SourceMapping, ...],
        Key(
            "Fields of your own events, by schema, as described in docs/matching.md; only with "
            "tenzir.",
            FieldMap(),
        ),
    ] = ()
    transform_context: Annotated[
        str,
        Key(
            "Command that reads each matched event as JSON from standard input and prints the "
            "context that the sighting carries instead; %ioc and %matchtype are replaced in its "
            "arguments; empty: none.",
            Command(),
            "CMD",
        ),
    ] = ""
    sink: Annotated[
        str,
        Key(
            "Command that receives each matched event on standard input, in place of a sighting on"
            " the bus; %ioc and %matchtype are replaced in its arguments; STDOUT: print the event;"
            " empty: report to the bus.",
            Command(),
            "CMD|STDOUT",
        ),
    ] = ""
    sink_stream: Annotated[
        bool,
        Key(
            "Whether one running sink command receives many events, one per line; otherwise the "
            "command runs once for each event.",
            YesNo(),
        ),
    ] = False
    loglevel: Annotated[str, _loglevel] = "info"
    heartbeat: Annotated[
        float, Key("Seconds between heartbeats to the bus.", Seconds(0.1, 3600))
    ] = 5.0
    max_message_bytes: Annotated[int, _max_message_bytes] = 10 * 2**20

    def check_consistency(self, labels: Mapping[str, str]) -> None:
        """
        Check the keys against each other.

        @param labels: By key, the option that set it; errors name other keys by their path.
        @raise SettingsInvalid: If a key needs an engine other than the configured one.
        """
        if self.engine == "tenzir":
            return
        for name in ("subdomains", "fields"):
            if getattr(self, name):
                label = labels.get("engine", "bridge.engine")
                raise SettingsInvalid(label, self.engine, f"an engine that supports {name}: tenzir")


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
The sections of the configuration file, by name.
"""
