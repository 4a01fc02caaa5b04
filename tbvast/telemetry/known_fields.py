"""
The fields of events that can hold observables.

The built-in fields cover Suricata EVE, Zeek and OCSF. A path joins the names of nested records
by dots. C{[]} after a name means the elements of a list, up to the configured number, and
C{[24]} the first 24 elements of a list that tends to be long.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import msgspec

from tbvast.stix.observables import Kind

STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\[([1-9][0-9]?)?\])?", re.ASCII)
"""
The pattern of a part of a path between dots.
"""

POSITIONS = 8
"""
How many elements of each list are looked at, unless a path says otherwise.
"""

SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(\.?\*)?", re.ASCII)
"""
The pattern of a source's schema.
"""


class Form(enum.Enum):
    """
    The notation of a field's values, which determines how they are normalised.
    """

    ADDRESS = "address"
    """An IP address, typed or as text."""

    NAME = "name"
    """A host name, in any case, perhaps with a trailing dot."""

    MAILBOX = "mailbox"
    """An e-mail address, perhaps with a display name around it."""

    DIGEST = "digest"
    """A hash in hexadecimal digits, in any case, perhaps with colons."""

    LOCATION = "location"
    """A whole URL, perhaps without its scheme."""

    BASE_NAME = "base name"
    """A file's name, perhaps with the directories before it."""

    HARDWARE = "hardware"
    """A MAC address, in any case, with colons or dashes."""

    VERBATIM = "verbatim"
    """Text that is compared unchanged."""


class Field(msgspec.Struct, frozen=True):
    """
    A field that can hold observables of some kinds.

    @ivar path: The path in the event, such as C{"dns.answers[].rdata"}.
    @ivar form: The notation of the values.
    @ivar kinds: The kinds that the field can hold.
    @ivar flat: Whether the dots are part of a single top-level name, as in Zeek's JSON that was
        imported without a schema.
    """

    path: str
    form: Form
    kinds: frozenset[Kind]
    flat: bool = False


class Request(msgspec.Struct, frozen=True):
    """
    Fields that hold the parts of one URL.

    @ivar host: The path of the host name.
    @ivar target: The path of the request target: a path with a query, or a whole URL if it was
        sent to a proxy.
    @ivar port: The path of the port; C{""} if the log has none. Ports 80 and 443 are not part
        of the URL's normal form.
    @ivar query: The path of the query; C{""} if C{target} includes it.
    @ivar unescaped: Whether the log contains the target unescaped.
    """

    host: str
    target: str
    port: str = ""
    query: str = ""
    unescaped: bool = False


class Source(msgspec.Struct, frozen=True):
    """
    The fields in the events of some schemas.

    @ivar schema: The name of a schema; with a trailing C{*}, the common beginning of the names
        of schemas that no other source names in full.
    @ivar fields: The fields that can hold observables.
    @ivar requests: The fields that together hold URLs.
    """

    schema: str
    fields: tuple[Field, ...]
    requests: tuple[Request, ...] = ()


class SourceMapping(msgspec.Struct, frozen=True):
    """
    The fields that a user adds to the events of some schemas.

    @ivar source: The fields.
    @ivar replace: Whether they replace all other fields of these events.
    """

    source: Source
    replace: bool = False


ADDRESSES = frozenset({Kind.IP, Kind.NETWORK})
DIGESTS = frozenset({Kind.MD5, Kind.SHA1, Kind.SHA256})


def addresses(*paths: str, flat: bool = False) -> tuple[Field, ...]:
    """
    Fields that hold IP addresses.
    """
    return tuple(Field(path, Form.ADDRESS, ADDRESSES, flat) for path in paths)


def names(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold host names.
    """
    return tuple(Field(path, Form.NAME, frozenset({Kind.DOMAIN})) for path in paths)


def hosts(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold a host's name or its address.
    """
    return names(*paths) + addresses(*paths)


def mailboxes(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold e-mail addresses.
    """
    return tuple(Field(path, Form.MAILBOX, frozenset({Kind.EMAIL})) for path in paths)


def locations(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold whole URLs.
    """
    return tuple(Field(path, Form.LOCATION, frozenset({Kind.URL})) for path in paths)


def digests(*paths: str, kinds: frozenset[Kind] = DIGESTS) -> tuple[Field, ...]:
    """
    Fields that hold hashes, by default those of files.
    """
    return tuple(Field(path, Form.DIGEST, kinds) for path in paths)


def file_names(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold the names of files.
    """
    return tuple(Field(path, Form.BASE_NAME, frozenset({Kind.FILE_NAME})) for path in paths)


def certificates(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold the hashes of certificates.
    """
    return digests(*paths, kinds=frozenset({Kind.CERTIFICATE}))


def user_agents(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold user agents.
    """
    return tuple(Field(path, Form.VERBATIM, frozenset({Kind.USER_AGENT})) for path in paths)


def hardware(*paths: str) -> tuple[Field, ...]:
    """
    Fields that hold MAC addresses.
    """
    return tuple(Field(path, Form.HARDWARE, frozenset({Kind.MAC})) for path in paths)


def handshakes(ja3: str = "", ja3s: str = "", ja4: str = "") -> tuple[Field, ...]:
    """
    Fields that hold fingerprints of TLS clients and servers.

    @param ja3: The path of a JA3; C{""} if there is none.
    @param ja3s: The path of a JA3S, likewise.
    @param ja4: The path of a JA4, likewise.
    """
    return tuple(
        field
        for kind, path in ((Kind.JA3, ja3), (Kind.JA3S, ja3s), (Kind.JA4, ja4))
        if path
        for field in digests(path, kinds=frozenset({kind}))
    )


def _file(record: str) -> tuple[Field, ...]:
    return tuple(
        field
        for kind in (Kind.MD5, Kind.SHA1, Kind.SHA256)
        for field in digests(f"{record}{kind.value}", kinds=frozenset({kind}))
    )


_EVE_ENDS = addresses("src_ip", "dest_ip") + hardware(
    "ether.src_mac", "ether.dest_mac", "ether.src_macs[]", "ether.dest_macs[]"
)
_EVE_DNS = addresses("dns.grouped.A[24]", "dns.grouped.AAAA[24]") + (
    hosts("dns.answers[24].rdata")
    + names("dns.rrname", "dns.queries[].rrname", "dns.grouped.CNAME[24]")
    + names("dns.authorities[].rrname", "dns.authorities[].soa.mname")
)
_EVE_ASKED = names("dns.query[].rrname")
_EVE_HTTP = hosts("http.hostname") + user_agents("http.http_user_agent")
_EVE_TLS = (
    hosts("tls.sni", "tls.subjectaltname[]")
    + certificates("tls.fingerprint", "tls.client.fingerprint")
    + handshakes("tls.ja3.hash", "tls.ja3s.hash", "tls.ja4")
)
_EVE_QUIC = (
    hosts("quic.sni")
    + handshakes("quic.ja3.hash", "quic.ja3s.hash", "quic.ja4")
    + user_agents("quic.ua")
)
_EVE_FILE = (
    _file("fileinfo.")
    + _file("files[].")
    + file_names("fileinfo.filename", "files[].filename", "ftp_data.filename")
)
_EVE_HARDWARE = hardware("arp.src_mac", "arp.dest_mac", "dhcp.client_mac")
_EVE_MAIL = (
    names("smtp.helo")
    + mailboxes("smtp.mail_from", "smtp.rcpt_to[]", "email.from", "email.to[]", "email.cc[]")
    + locations("email.url[]")
)
_EVE_REQUEST = (Request("http.hostname", "http.url", "http.http_port"),)

SURICATA = (
    Source("suricata.flow", _EVE_ENDS),
    Source("suricata.dns", _EVE_ENDS + _EVE_DNS),
    Source("suricata.http", _EVE_ENDS + _EVE_HTTP, _EVE_REQUEST),
    Source("suricata.tls", _EVE_ENDS + _EVE_TLS),
    Source("suricata.fileinfo", _EVE_ENDS + _EVE_HTTP + _EVE_FILE + _EVE_MAIL, _EVE_REQUEST),
    Source("suricata.smtp", _EVE_ENDS + _EVE_MAIL),
    Source(
        "suricata.*",
        _EVE_ENDS
        + (_EVE_DNS + _EVE_ASKED + _EVE_HTTP + _EVE_TLS + _EVE_QUIC)
        + (_EVE_FILE + _EVE_MAIL + _EVE_HARDWARE),
        _EVE_REQUEST,
    ),
)

_ZEEK_ENDS = addresses("id.orig_h", "id.resp_h")
_ZEEK_DNS = names("query") + hosts("answers[24]")
_ZEEK_HTTP = (
    hosts("host")
    + user_agents("user_agent")
    + file_names("filename", "orig_filenames[]", "resp_filenames[]")
)
_ZEEK_TLS = (
    hosts("server_name", "san.dns[]")
    + addresses("san.ip[]")
    + certificates("fingerprint", "cert_chain_fps[]", "client_cert_chain_fps[]")
    + handshakes("ja3", "ja3s", "ja4")
)
_ZEEK_FILES = addresses("tx_hosts[]", "rx_hosts[]") + _file("") + file_names("filename")
_ZEEK_HARDWARE = hardware("orig_l2_addr", "resp_l2_addr")
_ZEEK_SMTP = (
    names("helo")
    + mailboxes("mailfrom", "rcptto[]", "from", "to[]", "cc[]", "reply_to")
    + addresses("x_originating_ip", "path[]")
)
_ZEEK_OTHER = (
    addresses("src", "dst", "client_addr", "server_addr", "assigned_addr", "requested_addr")
    + _ZEEK_HARDWARE
    + hardware("mac")
)
# Zeek logs the host without a port: the request with the server's port is another URL.
_ZEEK_REQUEST = (
    Request("host", "uri", unescaped=True),
    Request("host", "uri", "id.resp_p", unescaped=True),
)

ZEEK = (
    Source("zeek.conn", _ZEEK_ENDS + _ZEEK_HARDWARE),
    Source("zeek.dns", _ZEEK_ENDS + _ZEEK_DNS),
    Source("zeek.http", _ZEEK_ENDS + _ZEEK_HTTP + _file(""), _ZEEK_REQUEST),
    Source("zeek.ssl", _ZEEK_ENDS + _ZEEK_TLS),
    Source("zeek.x509", _ZEEK_TLS),
    Source("zeek.files", _ZEEK_ENDS + _ZEEK_FILES),
    Source("zeek.smtp", _ZEEK_ENDS + _ZEEK_SMTP),
    Source(
        "zeek.*",
        _ZEEK_ENDS + (_ZEEK_DNS + _ZEEK_HTTP + _ZEEK_TLS + _ZEEK_FILES + _ZEEK_SMTP + _ZEEK_OTHER),
        _ZEEK_REQUEST,
    ),
)

OCSF = (
    Source(
        "ocsf.*",
        addresses("src_endpoint.ip", "dst_endpoint.ip", "device.ip")
        + hosts("answers[].rdata", "observables[].value", "http_request.url.hostname")
        + names("query.hostname", "src_endpoint.hostname", "dst_endpoint.hostname")
        + names("dst_endpoint.domain", "tls.sni")
        + digests("file.hashes[].value", "process.file.hashes[].value")
        + mailboxes("email.from", "email.smtp_from", "email.to[]")
        + locations("http_request.url.url_string")
        + file_names("file.name", "process.file.name")
        + certificates("tls.certificate.fingerprints[].value")
        + handshakes("tls.ja3_hash.value", "tls.ja3s_hash.value")
        + handshakes(ja4="ja4_fingerprint_list[].value")
        + handshakes(ja4="tls.ja4_fingerprint_list[].value")
        + user_agents("http_request.user_agent")
        + hardware("src_endpoint.mac", "dst_endpoint.mac", "device.mac"),
        (
            Request(
                "http_request.url.hostname",
                "http_request.url.path",
                "http_request.url.port",
                "http_request.url.query_string",
            ),
        ),
    ),
)

_FLAT = addresses("id.orig_h", "id.resp_h", flat=True)


def any_source(sources: tuple[Source, ...]) -> Source:
    """
    @return: A source with the fields of all sources, for events of unknown schemas.
    """
    fields: dict[Field, None] = dict.fromkeys(
        field for source in sources for field in source.fields
    )
    fields.update(dict.fromkeys(_FLAT))
    requests: dict[Request, None] = dict.fromkeys(
        request for source in sources for request in source.requests
    )
    return Source("*", tuple(fields), tuple(requests))


BUILT_IN = SURICATA + ZEEK + OCSF

FIELDS_BY_KEY: Mapping[str, Callable[..., tuple[Field, ...]]] = {
    "ip": addresses,
    "domain": names,
    "host": hosts,
    "url": locations,
    "email": mailboxes,
    "hash": digests,
    "file-name": file_names,
    "certificate": certificates,
    "ja3": partial(digests, kinds=frozenset({Kind.JA3})),
    "ja3s": partial(digests, kinds=frozenset({Kind.JA3S})),
    "ja4": partial(digests, kinds=frozenset({Kind.JA4})),
    "user-agent": user_agents,
    "mac": hardware,
}
"""
The functions that make fields of paths, by their configuration keys.
"""


def with_mappings(
    given: Iterable[SourceMapping], sources: Iterable[Source] = BUILT_IN
) -> tuple[Source, ...]:
    """
    Apply mappings to sources.

    The mapping of a prefix applies to all schemas with this prefix. The mapping of a longer
    prefix, or of a whole name, extends or replaces that of a shorter one.

    @param given: The mappings, in any order.
    @param sources: The sources to extend.
    @return: The resulting sources.
    """
    found = {source.schema: source for source in sources}
    everything = any_source(tuple(found.values()))
    for each in sorted(given, key=_width):
        own = each.source
        covered = [schema for schema in found if _covers(own.schema, schema)]
        if each.replace:
            for schema in covered:
                del found[schema]
            found[own.schema] = own
            continue
        if own.schema not in found:
            near = [source for source in found.values() if _covers(source.schema, own.schema)]
            base = max(near, key=lambda source: len(source.schema), default=everything)
            found[own.schema] = Source(own.schema, base.fields, base.requests)
            covered.append(own.schema)
        for schema in covered:
            fields = dict.fromkeys(found[schema].fields + own.fields)
            found[schema] = Source(schema, tuple(fields), found[schema].requests)
    return tuple(found.values())


def _width(each: SourceMapping) -> tuple[bool, int]:
    schema = each.source.schema
    return not schema.endswith("*"), len(schema)


def _covers(wide: str, schema: str) -> bool:
    return wide == schema or (wide.endswith("*") and schema.startswith(wide[:-1]))
