"""
The fields of events that can hold observables.

The built-in fields cover Suricata EVE, Zeek and OCSF. A path joins the names of nested records
by dots. C{[]} after a name means the elements of a list, up to the configured number, and
C{[24]} the first 24 elements of a list that tends to be long.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping

import msgspec

from tbvast.stix.observables import Kind

POSITIONS = 8
"""
How many elements of each list are looked at, unless a path says otherwise.
"""

STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\[([1-9][0-9]?)?\])?", re.ASCII)
SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(\.?\*)?", re.ASCII)
"""
The patterns of a part of a path between dots, and of a source's schema.
"""


class Form(enum.Enum):
    """
    The notation of a field's values, which determines how they are normalised.

    @cvar ADDRESS: An IP address, typed or as text.
    @cvar NAME: A host name, in any case, perhaps with a trailing dot.
    @cvar MAILBOX: An e-mail address, perhaps with a display name around it.
    @cvar DIGEST: A hash in hexadecimal digits, in any case, perhaps with colons.
    @cvar LOCATION: A whole URL, perhaps without its scheme.
    @cvar BASE_NAME: A file's name, perhaps with the directories before it.
    @cvar HARDWARE: A MAC address, in any case, with colons or dashes.
    @cvar VERBATIM: Text that is compared unchanged.
    """

    ADDRESS = "address"
    NAME = "name"
    MAILBOX = "mailbox"
    DIGEST = "digest"
    LOCATION = "location"
    BASE_NAME = "base name"
    HARDWARE = "hardware"
    VERBATIM = "verbatim"


class Field(msgspec.Struct, frozen=True):
    """
    A field that can hold observables of some kinds.

    @ivar path: The path in the event, such as C{"dns.answers[].rdata"}.
    @ivar form: The notation of the values.
    @ivar kinds: The kinds that the field can hold.
    @ivar flat: Whether the dots are part of one name, as in Zeek's JSON without a schema.
    """

    path: str
    form: Form
    kinds: frozenset[Kind]
    flat: bool = False


class Request(msgspec.Struct, frozen=True):
    """
    Fields that hold the parts of one URL.

    @ivar host: The path of the host name.
    @ivar target: The path of the request target: a path with a query, or a whole URL.
    @ivar port: The path of the port; C{""} for none. A normal form lacks ports 80 and 443.
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


def _notations(form: Form, *kinds: Kind) -> tuple[tuple[Form, frozenset[Kind]], ...]:
    return ((form, frozenset(kinds)),)


_HOST_NAME = _notations(Form.NAME, Kind.DOMAIN)
_ADDRESS = _notations(Form.ADDRESS, Kind.IP, Kind.NETWORK)

NOTATIONS: Mapping[str, tuple[tuple[Form, frozenset[Kind]], ...]] = {
    "ip": _ADDRESS,
    "domain": _HOST_NAME,
    "host": _HOST_NAME + _ADDRESS,
    "url": _notations(Form.LOCATION, Kind.URL),
    "email": _notations(Form.MAILBOX, Kind.EMAIL),
    "hash": _notations(Form.DIGEST, Kind.MD5, Kind.SHA1, Kind.SHA256),
    "file-name": _notations(Form.BASE_NAME, Kind.FILE_NAME),
    "certificate": _notations(Form.DIGEST, Kind.CERTIFICATE),
    "ja3": _notations(Form.DIGEST, Kind.JA3),
    "ja3s": _notations(Form.DIGEST, Kind.JA3S),
    "ja4": _notations(Form.DIGEST, Kind.JA4),
    "user-agent": _notations(Form.VERBATIM, Kind.USER_AGENT),
    "mac": _notations(Form.HARDWARE, Kind.MAC),
}
"""
The notations of a field, and the kinds that it can hold in each, by its configuration key.
"""


def fields(key: str, *paths: str, flat: bool = False) -> tuple[Field, ...]:
    """
    @param key: A key of L{NOTATIONS}.
    @param paths: The paths of the fields.
    @param flat: Whether the dots are part of a single top-level name.
    """
    return tuple(Field(path, form, kinds, flat) for form, kinds in NOTATIONS[key] for path in paths)


def _file(record: str) -> tuple[Field, ...]:
    return tuple(
        Field(f"{record}{kind.value}", Form.DIGEST, frozenset({kind}))
        for kind in (Kind.MD5, Kind.SHA1, Kind.SHA256)
    )


_EVE_ENDS = fields("ip", "src_ip", "dest_ip") + fields(
    "mac", "ether.src_mac", "ether.dest_mac", "ether.src_macs[]", "ether.dest_macs[]"
)
_EVE_DNS = fields("ip", "dns.grouped.A[24]", "dns.grouped.AAAA[24]") + (
    fields("host", "dns.answers[24].rdata")
    + fields("domain", "dns.rrname", "dns.queries[].rrname", "dns.grouped.CNAME[24]")
    + fields("domain", "dns.authorities[].rrname", "dns.authorities[].soa.mname")
)
_EVE_ASKED = fields("domain", "dns.query[].rrname")
_EVE_HTTP = fields("host", "http.hostname") + fields("user-agent", "http.http_user_agent")
_EVE_TLS = (
    fields("host", "tls.sni", "tls.subjectaltname[]")
    + fields("certificate", "tls.fingerprint", "tls.client.fingerprint")
    + fields("ja3", "tls.ja3.hash")
    + fields("ja3s", "tls.ja3s.hash")
    + fields("ja4", "tls.ja4")
)
_EVE_QUIC = (
    fields("host", "quic.sni")
    + fields("ja3", "quic.ja3.hash")
    + fields("ja3s", "quic.ja3s.hash")
    + fields("ja4", "quic.ja4")
    + fields("user-agent", "quic.ua")
)
_EVE_FILE = (
    _file("fileinfo.")
    + _file("files[].")
    + fields("file-name", "fileinfo.filename", "files[].filename", "ftp_data.filename")
)
_EVE_HARDWARE = fields("mac", "arp.src_mac", "arp.dest_mac", "dhcp.client_mac")
_EVE_MAIL = (
    fields("domain", "smtp.helo")
    + fields("email", "smtp.mail_from", "smtp.rcpt_to[]", "email.from", "email.to[]", "email.cc[]")
    + fields("url", "email.url[]")
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

_ZEEK_ENDS = fields("ip", "id.orig_h", "id.resp_h")
_ZEEK_DNS = fields("domain", "query") + fields("host", "answers[24]")
_ZEEK_HTTP = (
    fields("host", "host")
    + fields("user-agent", "user_agent")
    + fields("file-name", "filename", "orig_filenames[]", "resp_filenames[]")
)
_ZEEK_TLS = (
    fields("host", "server_name", "san.dns[]")
    + fields("ip", "san.ip[]")
    + fields("certificate", "fingerprint", "cert_chain_fps[]", "client_cert_chain_fps[]")
    + fields("ja3", "ja3")
    + fields("ja3s", "ja3s")
    + fields("ja4", "ja4")
)
_ZEEK_FILES = fields("ip", "tx_hosts[]", "rx_hosts[]") + _file("") + fields("file-name", "filename")
_ZEEK_HARDWARE = fields("mac", "orig_l2_addr", "resp_l2_addr")
_ZEEK_SMTP = (
    fields("domain", "helo")
    + fields("email", "mailfrom", "rcptto[]", "from", "to[]", "cc[]", "reply_to")
    + fields("ip", "x_originating_ip", "path[]")
)
_ZEEK_OTHER = (
    fields("ip", "src", "dst", "client_addr", "server_addr", "assigned_addr", "requested_addr")
    + _ZEEK_HARDWARE
    + fields("mac", "mac")
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
        fields("ip", "src_endpoint.ip", "dst_endpoint.ip", "device.ip")
        + fields("host", "answers[].rdata", "observables[].value", "http_request.url.hostname")
        + fields("domain", "query.hostname", "src_endpoint.hostname", "dst_endpoint.hostname")
        + fields("domain", "dst_endpoint.domain", "tls.sni")
        + fields("hash", "file.hashes[].value", "process.file.hashes[].value")
        + fields("email", "email.from", "email.smtp_from", "email.to[]")
        + fields("url", "http_request.url.url_string")
        + fields("file-name", "file.name", "process.file.name")
        + fields("certificate", "tls.certificate.fingerprints[].value")
        + fields("ja3", "tls.ja3_hash.value")
        + fields("ja3s", "tls.ja3s_hash.value")
        + fields("ja4", "ja4_fingerprint_list[].value")
        + fields("ja4", "tls.ja4_fingerprint_list[].value")
        + fields("user-agent", "http_request.user_agent")
        + fields("mac", "src_endpoint.mac", "dst_endpoint.mac", "device.mac"),
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

_FLAT = fields("ip", "id.orig_h", "id.resp_h", flat=True)


def any_source(sources: tuple[Source, ...]) -> Source:
    """
    @return: A source with the fields of all sources, for events of unknown schemas.
    """
    fields = [field for source in sources for field in source.fields]
    requests = [request for source in sources for request in source.requests]
    return Source("*", tuple(dict.fromkeys([*fields, *_FLAT])), tuple(dict.fromkeys(requests)))


BUILT_IN = SURICATA + ZEEK + OCSF


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
