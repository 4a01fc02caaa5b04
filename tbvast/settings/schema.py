"""
The settings of the two services: every key with its type, default and help.

Help, unit and accepted values of a key are declared once, beside the field that holds
the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tbvast.errors import SettingsInvalid
from tbvast.settings.types import (
    LOOPBACK,
    AutoEndpoint,
    Command,
    Days,
    DirectoryPath,
    Endpoint,
    FilePath,
    Host,
    Key,
    ListenHost,
    Parser,
    Port,
    Seconds,
)
from tbvast.settings.validation import FieldMap, validate_section
from tbvast.stix.limits import SHORTEST_MESSAGE_LIMIT

_Level = Annotated[
    Literal["debug", "info", "warn", "error", "critical"],
    Key("Lowest level that is logged: debug, info, warn, error, critical.", "LEVEL"),
]
_StateDirectory = Annotated[
    DirectoryPath,
    Key(
        "Directory for all data that must survive a restart; empty: the state directory set by "
        "systemd, or else the user's.",
        "DIR",
    ),
]
_ClientKey = Annotated[
    FilePath,
    Key(
        "Secret key with which to connect to the bus, a file ending in .key_secret made by tbvast "
        "keygen; empty: none."
    ),
]
_ServerKey = Annotated[
    FilePath,
    Key("Public key of the bus, a file ending in .key; connections to any other bus fail."),
]
_MessageBytes = Annotated[
    int,
    Meta(ge=SHORTEST_MESSAGE_LIMIT, le=2**30, extra={"unit": "bytes"}),
    Key("Longest accepted message, in bytes; at least 8388608, so that every valid document fits."),
]


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    Another bus that the plugin subscribes to. Each field's L{Key} documents it.
    """

    threatbus: Annotated[Endpoint, Key("The manage endpoint of the bus.")]
    snapshot: Annotated[Days, Key("Days of past indicators to request from the bus.")] = 0
    curve_key: _ClientKey = ""
    server_key: _ServerKey = ""


_Upstream = Annotated[
    tuple[UpstreamSettings, ...],
    Parser(
        "a list of buses, each with threatbus: HOST:PORT",
        lambda found: tuple(
            validate_section(each, f"plugin.upstream[{i}]", UpstreamSettings)
            for i, each in enumerate(found)
        ),
        list,
    ),
]


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    The settings of C{tbvast-plugin}. Each field's L{Key} documents it.
    """

    host: Annotated[
        ListenHost,
        Key("Address on which the three endpoints listen; empty: loopback only.", "HOST"),
    ] = LOOPBACK
    manage: Annotated[
        Port,
        Key("Port of the manage endpoint, for requests such as subscribe and heartbeat.", "PORT"),
    ] = 13370
    pub: Annotated[
        Port, Key("Port of the pub endpoint, from which subscribers receive.", "PORT")
    ] = 13371
    sub: Annotated[Port, Key("Port of the sub endpoint, to which others send.", "PORT")] = 13372
    curve_key: Annotated[
        FilePath,
        Key(
            "The bus's secret key, a file ending in .key_secret made by tbvast keygen; then only "
            "the clients listed in clients may connect; empty: no keys, everybody may connect."
        ),
    ] = ""
    clients: Annotated[
        FilePath,
        Key(
            "File of the clients that may connect: KEY NAME [PERMISSION,...] on each line; read "
            "again on SIGHUP."
        ),
    ] = ""
    upstream: Annotated[
        _Upstream,
        Key(
            "Other buses, from which intel is received and to which sightings are forwarded; each "
            "has threatbus: HOST:PORT and may have snapshot: DAYS, curve_key and server_key, as in"
            " bridge."
        ),
    ] = ()
    allow_plaintext: Annotated[
        bool,
        Key("Whether the endpoints may listen without keys on an address that is not loopback."),
    ] = False
    advertise: Annotated[
        Host,
        Key(
            "Host to which clients of the vast dialect are told to connect; empty: the address on "
            "which the endpoints listen."
        ),
    ] = ""
    state_dir: _StateDirectory = None
    loglevel: _Level = "info"
    heartbeat_timeout: Annotated[
        Seconds,
        Key("Seconds without a heartbeat after which a subscription ends, if it has ever had one."),
    ] = 30.0
    detached_timeout: Annotated[
        Seconds,
        Key(
            "Seconds for which a subscription outlives its ZeroMQ subscription; a client that "
            "returns in time gets everything it has missed."
        ),
    ] = 60.0
    max_message_bytes: _MessageBytes = 10 * 2**20
    max_subscriptions: Annotated[
        int, Meta(ge=1, le=1_000_000), Key("Maximum number of subscriptions at a time.")
    ] = 10_000
    max_client_subscriptions: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        Key(
            "Maximum number of subscriptions of one client at a time; a client is identified by "
            "its key, or by its address where there are no keys."
        ),
    ] = 10_000
    max_topics: Annotated[
        int, Meta(ge=1, le=10_000), Key("Maximum number of topics in one subscribe request.")
    ] = 100
    max_snapshot_days: Annotated[
        Days, Key("Longest snapshot that a client can request, in days.")
    ] = 3650
    queue_messages: Annotated[
        int,
        Meta(ge=1, le=100_000_000),
        Key(
            "Maximum number of messages queued in memory for one subscriber; further messages are "
            "read from the journal."
        ),
    ] = 100_000
    queue_bytes: Annotated[
        int,
        Meta(ge=1024, le=2**40, extra={"unit": "bytes"}),
        Key(
            "Maximum size in bytes of the messages queued in memory for one subscriber; further "
            "messages are read from the journal."
        ),
    ] = 64 * 2**20
    retention_days: Annotated[
        Days,
        Key(
            "Days for which the journal keeps superseded versions, ended indicators and sightings."
            " Indicators in force always stay."
        ),
    ] = 90
    retention_bytes: Annotated[
        int,
        Meta(ge=2**20, le=2**50, extra={"unit": "bytes"}),
        Key(
            "Size of the journal in bytes above which the oldest entries no longer in force are "
            "deleted sooner."
        ),
    ] = 10 * 2**30
    errors_per_minute: Annotated[
        int,
        Meta(ge=0, le=100_000),
        Key(
            "Maximum number of errors logged per minute for each kind of bad input; further errors"
            " are only counted."
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

    threatbus: Annotated[Endpoint, Key("The manage endpoint of the bus.", "HOST:PORT")] = (
        "localhost:13370"
    )
    curve_key: _ClientKey = ""
    server_key: _ServerKey = ""
    snapshot: Annotated[
        Days,
        Key("Days of past indicators to request from the bus at a first start; 0: none.", "DAYS"),
    ] = 0
    vast: Annotated[
        AutoEndpoint,
        Key(
            "The engine's node; auto: the one on vast_listen if there is one, otherwise "
            "an embedded node is started there.",
            "auto|HOST:PORT",
        ),
    ] = "auto"
    vast_listen: Annotated[
        Endpoint, Key("Endpoint on which an embedded node listens.", "HOST:PORT")
    ] = "127.0.0.1:5158"
    vast_binary: Annotated[
        Command, Key("The engine's client command; empty: the installed one.", "CMD")
    ] = ""
    engine: Annotated[
        Literal["tenzir", "vast"],
        Key("Engine of the node: tenzir, or vast for its predecessor.", "tenzir|vast"),
    ] = "tenzir"
    state_dir: _StateDirectory = None
    live_match: Annotated[bool, Key("Whether new events are matched as they arrive.", "yes|no")] = (
        True
    )
    retro_match: Annotated[
        bool, Key("Whether stored events are searched for new indicators.", "yes|no")
    ] = True
    retro_match_max_events: Annotated[
        int,
        Meta(ge=0, le=1_000_000_000, extra={"unit": "events"}),
        Key("Maximum number of stored events reported per observable; 0: all.", "N"),
    ] = 100
    retro_match_days: Annotated[
        Days,
        Key("Days of stored events that are searched, by their time of import; 0: all.", "DAYS"),
    ] = 0
    retro_match_timeout: Annotated[
        Seconds, Key("Time limit of one search, in seconds.", "SECONDS")
    ] = 300.0
    subdomains: Annotated[
        bool,
        Key("Whether an indicator's domain also matches every name below it; only with tenzir."),
    ] = False
    fields: Annotated[
        FieldMap,
        Key(
            "Fields of your own events, by schema, as described in docs/matching.md; only with "
            "tenzir."
        ),
    ] = ()
    transform_context: Annotated[
        Command,
        Key(
            "Command that reads each matched event as JSON from standard input and prints the "
            "context that the sighting carries instead; %ioc and %matchtype are replaced in its "
            "arguments; empty: none.",
            "CMD",
        ),
    ] = ""
    transform_stream: Annotated[
        bool,
        Key(
            "Whether one running transform command gets many events, one per line, and answers each"
            " with one line; otherwise the command runs once for each event."
        ),
    ] = False
    sink: Annotated[
        Command,
        Key(
            "Command that receives each matched event on standard input, in place of a sighting on"
            " the bus; %ioc and %matchtype are replaced in its arguments; STDOUT: print the event;"
            " empty: report to the bus.",
            "CMD|STDOUT",
        ),
    ] = ""
    sink_stream: Annotated[
        bool,
        Key(
            "Whether one running sink command receives many events, one per line; otherwise the "
            "command runs once for each event."
        ),
    ] = False
    loglevel: _Level = "info"
    heartbeat: Annotated[
        float,
        Meta(ge=0.1, le=3600, extra={"unit": "seconds"}),
        Key("Seconds between heartbeats to the bus."),
    ] = 5.0
    max_message_bytes: _MessageBytes = 10 * 2**20

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
