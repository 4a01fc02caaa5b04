"""
The settings of the two services: every key with its type, default and help.

The help of a key is the documentation of its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_type_hints

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
    ListenHost,
    Option,
    Parser,
    PluginNames,
    Port,
    Seconds,
    YesNo,
)
from tbvast.settings.validation import FieldMap, validate_section
from tbvast.stix.limits import SHORTEST_MESSAGE_LIMIT

_Level = Annotated[Literal["debug", "info", "warn", "error", "critical"], Option("LEVEL")]
_StateDirectory = Annotated[DirectoryPath, Option("DIR")]
_MessageBytes = Annotated[int, Meta(ge=SHORTEST_MESSAGE_LIMIT, le=2**30, extra={"unit": "bytes"})]
_TotalBytes = Annotated[int, Meta(ge=2**20, le=2**40, extra={"unit": "bytes"})]


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """
    Another bus that the plugin subscribes to.

    @ivar threatbus: The manage endpoint of the bus.
    @ivar snapshot: Days of past indicators to request from the bus.
    @ivar curve_key: As for L{BridgeSettings}.
    @ivar server_key: As for L{BridgeSettings}.
    """

    threatbus: Endpoint
    snapshot: Days = 0
    curve_key: FilePath = ""
    server_key: FilePath = ""


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
    The settings of C{tbvast-plugin}.

    @ivar host: Address on which the three endpoints listen; empty: loopback only.
    @ivar manage: Port of the manage endpoint, for requests such as subscribe and heartbeat.
    @ivar pub: Port of the pub endpoint, from which subscribers receive.
    @ivar sub: Port of the sub endpoint, to which others send.
    @ivar curve_key: The bus's secret key, a file ending in .key_secret made by tbvast keygen; then
        only the clients listed in clients may connect; empty: no keys, everybody may connect.
    @ivar clients: File of the clients that may connect: KEY NAME [PERMISSION,...] on each line;
        read again on SIGHUP.
    @ivar upstream: Other buses, from which intel is received and to which sightings are forwarded;
        each has threatbus: HOST:PORT and may have snapshot: DAYS, curve_key and server_key, as in
        bridge.
    @ivar allow_plaintext: Whether the endpoints may listen without keys on an address that is not
        loopback.
    @ivar advertise: Host to which clients of the vast dialect are told to connect; empty: the
        address on which the endpoints listen.
    @ivar state_dir: Directory for all data that must survive a restart; empty: the state directory
        set by systemd, or else the user's.
    @ivar loglevel: Lowest level that is logged: debug, info, warn, error, critical.
    @ivar heartbeat_timeout: Seconds without a heartbeat after which a subscription ends, if it has
        ever had one.
    @ivar detached_timeout: Seconds for which a subscription outlives its ZeroMQ subscription; a
        client that returns in time gets everything it has missed.
    @ivar max_message_bytes: Longest accepted message, in bytes; at least 8388608, so that every
        valid document fits.
    @ivar max_connections: Maximum number of connections to the three endpoints at a time; fewer if
        the system allows the process fewer descriptors.
    @ivar max_address_connections: Maximum number of connections from one address at a time.
    @ivar max_connection_topics: Maximum number of topics that one connection to the pub endpoint
        subscribes to.
    @ivar max_subscriptions: Maximum number of subscriptions at a time.
    @ivar max_client_subscriptions: Maximum number of subscriptions of one client at a time; a
        client is identified by its key, or by its address where there are no keys.
    @ivar max_topics: Maximum number of topics in one subscribe request.
    @ivar max_documents: Maximum number of documents in one publish request.
    @ivar max_client_request_bytes: Maximum size in bytes of the requests of one client that are
        being answered; further ones are refused.
    @ivar max_total_request_bytes: Maximum size in bytes of the requests of all clients that are
        being answered; further ones are refused, except for clients that have none.
    @ivar max_snapshot_days: Longest snapshot that a client can request, in days.
    @ivar queue_messages: Maximum number of messages queued in memory for one subscriber; further
        messages are read from the journal.
    @ivar queue_bytes: Maximum size in bytes of the messages queued in memory for one subscriber;
        further messages are read from the journal.
    @ivar queue_total_bytes: Maximum size in bytes of the messages queued in memory for all
        subscribers; above it, the longest queues are dropped, and read from the journal later.
    @ivar retention_days: Days for which the journal keeps superseded versions, ended indicators
        and sightings. Indicators in force always stay.
    @ivar retention_bytes: Size of the journal in bytes above which the oldest entries no longer in
        force are deleted sooner.
    @ivar errors_per_minute: Maximum number of errors logged per minute for each kind of bad input;
        further errors are only counted.
    """

    host: Annotated[ListenHost, Option("HOST")] = LOOPBACK
    manage: Annotated[Port, Option("PORT")] = 13370
    pub: Annotated[Port, Option("PORT")] = 13371
    sub: Annotated[Port, Option("PORT")] = 13372
    curve_key: FilePath = ""
    clients: FilePath = ""
    upstream: _Upstream = ()
    allow_plaintext: YesNo = False
    advertise: Host = ""
    state_dir: _StateDirectory = None
    loglevel: _Level = "info"
    heartbeat_timeout: Seconds = 30.0
    detached_timeout: Seconds = 60.0
    max_message_bytes: _MessageBytes = 10 * 2**20
    max_connections: Annotated[int, Meta(ge=16, le=1_000_000)] = 10_000
    max_address_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 5_000
    max_connection_topics: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    max_subscriptions: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_client_subscriptions: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    max_topics: Annotated[int, Meta(ge=1, le=10_000)] = 100
    max_documents: Annotated[int, Meta(ge=1000, le=10_000_000, extra={"unit": "documents"})] = (
        100_000
    )
    max_client_request_bytes: _TotalBytes = 64 * 2**20
    max_total_request_bytes: _TotalBytes = 256 * 2**20
    max_snapshot_days: Days = 3650
    queue_messages: Annotated[int, Meta(ge=1, le=100_000_000)] = 100_000
    queue_bytes: Annotated[int, Meta(ge=1024, le=2**40, extra={"unit": "bytes"})] = 64 * 2**20
    queue_total_bytes: _TotalBytes = 256 * 2**20
    retention_days: Days = 90
    retention_bytes: Annotated[int, Meta(ge=2**20, le=2**50, extra={"unit": "bytes"})] = 10 * 2**30
    errors_per_minute: Annotated[int, Meta(ge=0, le=100_000)] = 60

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
    The settings of C{tbvast-bridge}.

    @ivar threatbus: The manage endpoint of the bus.
    @ivar curve_key: Secret key with which to connect to the bus, a file ending in .key_secret made
        by tbvast keygen; empty: none.
    @ivar server_key: Public key of the bus, a file ending in .key; connections to any other bus
        fail.
    @ivar snapshot: Days of past indicators to request from the bus at a first start; 0: none.
    @ivar vast: The engine's node; auto: the one on vast_listen if there is one, otherwise an
        embedded node is started there.
    @ivar vast_listen: Endpoint on which an embedded node listens.
    @ivar vast_certificate: Certificate of the bridge for a node with TLS, a PEM file; empty: none.
        An embedded node has one of its own.
    @ivar vast_key: Key of vast_certificate, a PEM file.
    @ivar vast_authority: Certificates that the node's certificate must be issued by, a PEM file.
    @ivar vast_plugins: Plugins of the engine, besides those tbvast needs, that pipelines in an
        embedded node may use.
    @ivar vast_binary: The engine's client command; empty: the installed one.
    @ivar engine: Engine of the node: tenzir, or vast for its predecessor.
    @ivar state_dir: Directory for all data that must survive a restart; empty: the state directory
        set by systemd, or else the user's.
    @ivar live_match: Whether new events are matched as they arrive.
    @ivar retro_match: Whether stored events are searched for new indicators.
    @ivar retro_match_max_events: Maximum number of stored events reported per observable; 0: all.
    @ivar retro_match_days: Days of stored events that are searched, by their time of import; 0:
        all.
    @ivar retro_match_timeout: Time limit of one search, in seconds.
    @ivar subdomains: Whether an indicator's domain also matches every name below it; only with
        tenzir.
    @ivar fields: Fields of your own events, by schema, as described in docs/matching.md; only with
        tenzir.
    @ivar transform_context: Command that reads each matched event as JSON from standard input and
        prints the context that the sighting carries instead; %ioc and %matchtype are replaced in
        its arguments; empty: none.
    @ivar transform_stream: Whether one running transform command gets many events, one per line,
        and answers each with one line; otherwise the command runs once for each event.
    @ivar sink: Command that receives each matched event on standard input, in place of a sighting
        on the bus; %ioc and %matchtype are replaced in its arguments; STDOUT: print the event;
        empty: report to the bus.
    @ivar sink_stream: Whether one running sink command receives many events, one per line;
        otherwise the command runs once for each event.
    @ivar loglevel: Lowest level that is logged: debug, info, warn, error, critical.
    @ivar heartbeat: Seconds between heartbeats to the bus.
    @ivar max_message_bytes: Longest accepted message, in bytes; at least 8388608, so that every
        valid document fits.
    """

    threatbus: Annotated[Endpoint, Option("HOST:PORT")] = "localhost:13370"
    curve_key: FilePath = ""
    server_key: FilePath = ""
    snapshot: Annotated[Days, Option("DAYS")] = 0
    vast: Annotated[AutoEndpoint, Option("auto|HOST:PORT")] = "auto"
    vast_listen: Annotated[Endpoint, Option("HOST:PORT")] = "127.0.0.1:5158"
    vast_certificate: FilePath = ""
    vast_key: FilePath = ""
    vast_authority: FilePath = ""
    vast_plugins: PluginNames = ()
    vast_binary: Annotated[Command, Option("CMD")] = ""
    engine: Annotated[Literal["tenzir", "vast"], Option("tenzir|vast")] = "tenzir"
    state_dir: _StateDirectory = None
    live_match: Annotated[YesNo, Option("yes|no")] = True
    retro_match: Annotated[YesNo, Option("yes|no")] = True
    retro_match_max_events: Annotated[
        int, Meta(ge=0, le=1_000_000_000, extra={"unit": "events"}), Option("N")
    ] = 100
    retro_match_days: Annotated[Days, Option("DAYS")] = 0
    retro_match_timeout: Annotated[Seconds, Option("SECONDS")] = 300.0
    subdomains: YesNo = False
    fields: FieldMap = ()
    transform_context: Annotated[Command, Option("CMD")] = ""
    transform_stream: YesNo = False
    sink: Annotated[Command, Option("CMD|STDOUT")] = ""
    sink_stream: YesNo = False
    loglevel: _Level = "info"
    heartbeat: Annotated[float, Meta(ge=0.1, le=3600, extra={"unit": "seconds"})] = 5.0
    max_message_bytes: _MessageBytes = 10 * 2**20

    def check_consistency(self, labels: Mapping[str, str]) -> None:
        """
        @see: L{PluginSettings.check_consistency}
        @raise SettingsInvalid: If a key needs an engine other than the configured one.
        """
        for name in ("subdomains", "fields"):
            if getattr(self, name) and self.engine != "tenzir":
                label = labels.get("engine", "bridge.engine")
                raise SettingsInvalid(label, self.engine, f"an engine that supports {name}: tenzir")
        files = ("vast_certificate", "vast_key", "vast_authority")
        if missing := [name for name in files if not getattr(self, name)]:
            for name in files:
                if value := getattr(self, name):
                    label = labels.get(name, f"bridge.{name}")
                    raise SettingsInvalid(label, value, f"set together with {', '.join(missing)}")


class Settings(msgspec.Struct, frozen=True):
    """
    The whole configuration file.
    """

    plugin: PluginSettings = PluginSettings()
    bridge: BridgeSettings = BridgeSettings()


SECTIONS: Mapping[str, type[PluginSettings | BridgeSettings]] = get_type_hints(Settings)
