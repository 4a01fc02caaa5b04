"""
Observables: typed, normalised values that can be seen in an event.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import quote, unquote

import idna
import msgspec

from tbvast.errors import ObservableInvalid


class Kind(enum.StrEnum):
    """
    The kind of an observable; the value is its name in logs and stores.
    """

    IP = "ip"
    NETWORK = "network"
    DOMAIN = "domain"
    URL = "url"
    EMAIL = "email"
    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"
    FILE_NAME = "file-name"
    CERTIFICATE = "certificate"
    JA3 = "ja3"
    JA3S = "ja3s"
    JA4 = "ja4"
    USER_AGENT = "user-agent"
    MAC = "mac"

    # The hash of an enumeration is slow.
    __hash__ = str.__hash__


class Observable(
    msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True, array_like=True
):
    """
    A value that can be seen in an event, in its normal form.

    @ivar kind: The kind of the value.
    @ivar value: The normal form, as L{normalise} makes it.
    """

    kind: Kind
    value: str


WIDEST_V4 = 8
WIDEST_V6 = 16
"""
The shortest prefixes, in bits, of IPv4 and IPv6 networks: wider networks match by chance.
"""

UNESCAPED = "unescaped "
"""
The prefix of the value of an unescaped URL. No normal form of a URL contains a blank.
"""

LONGEST_URL = 8192
LONGEST_NAME = 253
LONGEST_FILE_NAME = 1024
LONGEST_USER_AGENT = 8192
"""
The most characters of a URL's normal form, of a domain name, as in the DNS, of a file's name, for
which file systems allow 255, and of a user agent.
"""

_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1?[1-9][0-9]|1[0-9][0-9]|[0-9])(?:\.(?!\Z)|\Z)){4}")
_LABEL = "[a-z0-9_-]{1,63}"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LOCAL = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}")
_HEX = re.compile(r"[0-9a-f]+")
_MAC = re.compile(
    r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}"
)
_JA4 = re.compile(r"[tqd][0-9a-z]{2}[di][0-9]{4}[0-9a-z]{2}_[0-9a-f]{12}_[0-9a-f]{12}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?:\[:\]|:)//|([A-Za-z][A-Za-z0-9+.-]*)\[://\]")
_AUTHORITY_END = re.compile(r"[/?#\\]|\Z")
_PORT = re.compile(r":([0-9]*)\Z")
_TO_ENCODE = re.compile(r"[^\x21-\x7e]+")

_DEFANGED = re.compile(r"\[\.\]|\(\.\)|\{\.\}|\[dot\]|\(dot\)|\[@\]|\[at\]|\(at\)|\[:\]", re.I)
_REFANGED = {".": ".", "d": ".", "@": "@", "a": "@", ":": ":"}
_SCHEMES = {"hxxp": "http", "hxxps": "https", "fxp": "ftp"}
_JOINERS = "\u200c\u200d"
_USUAL_PORTS = ("", "80", "443")


def normalise(kind: Kind, text: str) -> Observable:
    """
    Make the observable of a text whose kind is known.

    The result has another kind if the text has the form of another kind: an address in place
    of a domain name is an L{Kind.IP}, a range in place of an address is a L{Kind.NETWORK}, and
    a range of a single address is an L{Kind.IP}. A normal form is its own normal form.
    Defanged spellings (C{hxxp://}, C{[.]}, C{[at]}) are understood.

      - Addresses: compressed, lower case; IPv4-mapped IPv6 addresses are IPv4.
      - Networks: compressed, host bits cleared. Networks wider than L{WIDEST_V4} or L{WIDEST_V6}
        are refused: C{0.0.0.0/0} would match every event.
      - Domains: lower case, no trailing dot, non-ASCII names in the form of IDNA.
      - URLs: the parts that events contain: host, port, path and query. No scheme, user or
        fragment; no port 80 or 443, whatever the scheme; an empty path is C{/}.
      - E-mail addresses: lower case, with a domain as above.
      - Hashes: lower-case hexadecimal digits.
      - Certificates: the certificate's MD5, SHA-1 or SHA-256, without colons.
      - File names: without directories, otherwise unchanged.
      - User agents: unchanged.
      - MAC addresses: lower case, with colons.
      - JA3, JA3S, JA4: lower case.

    @raise ObservableInvalid: If C{text} is malformed.
    """
    return _NORMALISERS[kind](text)


def guess(text: str) -> Observable:
    """
    Make the observable of a text whose kind is recognised by its form.

    Surrounding white space is ignored.

    @raise ObservableInvalid: If the form is unknown, or the text is malformed.
    """
    text = text.strip()
    plain = refang(text)
    size = len(plain)
    lower = plain.lower()
    if size in _HASH_OF_LENGTH and _HEX.fullmatch(lower):
        return normalise(_HASH_OF_LENGTH[size], plain)
    if _MAC.fullmatch(lower):
        return normalise(Kind.MAC, plain)
    if _JA4.fullmatch(lower):
        return normalise(Kind.JA4, plain)
    if "://" in plain:
        return normalise(Kind.URL, text)
    if plain.count(":") > 1 or _IPV4.match(plain.partition("/")[0]):
        prefix = plain.partition("/")[2]
        if not prefix or prefix.isdecimal():
            return normalise(Kind.IP, text)
    if "/" in plain:
        return normalise(Kind.URL, text)
    if "@" in plain:
        return normalise(Kind.EMAIL, text)
    if "." in plain.strip(".") or not plain.isascii():
        return normalise(Kind.DOMAIN, text)
    _refuse(
        "observable", text, "an address, a network, a URL, an e-mail address, a hash or a domain"
    )


def refang(text: str) -> str:
    """
    Undo the usual ways to make a value unclickable.

    In a URL this changes only the scheme and the host: the rest may have such characters.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        end = text.find("/")
        end = len(text) if end < 0 else end
        return _DEFANGED.sub(_refanged, text[:end]) + text[end:]
    name = (scheme[1] or scheme[2]).lower()
    start = scheme.end()
    # A host may be an address in brackets, which contains no separator.
    end = _end_of_authority(text, start)
    return f"{_SCHEMES.get(name, name)}://{_DEFANGED.sub(_refanged, text[start:end])}{text[end:]}"


def pattern_for(observable: Observable, original: str | None = None) -> str:
    """
    Make the STIX pattern of an observable.

    @param original: The text of which the observable was made. It provides the scheme of a
        URL, whose normal form has none; the default is C{http}.
    """
    kind, value = observable.kind, observable.value
    if kind is Kind.IP or kind is Kind.NETWORK:
        family = "ipv6" if ":" in value else "ipv4"
        operator = "ISSUBSET" if kind is Kind.NETWORK else "="
        return f"[{family}-addr:value {operator} '{value}']"
    if kind is Kind.URL:
        value = refang(original.strip()) if original is not None else value
        value = value if _SCHEME.match(value) else f"http://{value}"
    path = _CERTIFICATES[len(value)] if kind is Kind.CERTIFICATE else _PATHS[kind]
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"[{path} = '{escaped}']"


_PATHS = {
    Kind.DOMAIN: "domain-name:value",
    Kind.URL: "url:value",
    Kind.EMAIL: "email-addr:value",
    Kind.MD5: "file:hashes.MD5",
    Kind.SHA1: "file:hashes.'SHA-1'",
    Kind.SHA256: "file:hashes.'SHA-256'",
    Kind.FILE_NAME: "file:name",
    Kind.JA3: "network-traffic:extensions.'tls-ext'.ja3",
    Kind.JA3S: "network-traffic:extensions.'tls-ext'.ja3s",
    Kind.JA4: "network-traffic:extensions.'tls-ext'.ja4",
    Kind.USER_AGENT: "network-traffic:extensions.'http-request-ext'.request_header.'User-Agent'",
    Kind.MAC: "mac-addr:value",
}

_CERTIFICATES = {
    32: "x509-certificate:hashes.MD5",
    40: "x509-certificate:hashes.'SHA-1'",
    64: "x509-certificate:hashes.'SHA-256'",
}

_HASH_OF_LENGTH = {32: Kind.MD5, 40: Kind.SHA1, 64: Kind.SHA256}


def _refuse(field: str, value: str, expected: str) -> NoReturn:
    """
    @raise ObservableInvalid: Always; it names the first invisible character of C{value}.
    """
    hidden = _first_invisible(value)
    if hidden is not None:
        expected = f"{expected} (it holds the invisible character U+{ord(hidden):04X})"
    raise ObservableInvalid(field, value, expected)


def _first_invisible(text: str) -> str | None:
    """
    @return: The first invisible character, direction marks and surrogates included; C{None} if
        there is none. The joiners that some scripts need are ignored.
    """
    invisible = (
        c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in _JOINERS
    )
    return next(invisible, None)


def _refanged(match: re.Match[str]) -> str:
    return _REFANGED[match[0][1].lower()]


def _end_of_authority(text: str, start: int) -> int:
    end = _AUTHORITY_END.search(text, start)
    return len(text) if end is None else end.start()


def _ip(text: str) -> Observable:
    if _IPV4.fullmatch(text):
        return Observable(Kind.IP, text)
    plain = refang(text)
    if "/" in plain:
        return _network(text)
    address = _address(plain)
    if address is None:
        _refuse("ip", text, "an IPv4 or IPv6 address")
    return Observable(Kind.IP, address)


def _address(text: str) -> str | None:
    if _IPV4.fullmatch(text):
        return text
    try:
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    if packed.startswith(_EMBEDDED):  # the C library writes its end as an IPv4 address
        address = ipaddress.IPv6Address(packed)
        return str(address.ipv4_mapped or address)
    return socket.inet_ntop(socket.AF_INET6, packed)


_EMBEDDED = bytes(10)
"""
The beginning of an IPv6 address that may hold an IPv4 address.
"""


def _network(text: str) -> Observable:
    plain = refang(text)
    host, slash, bits = plain.partition("/")
    if not slash:
        return _ip(text)
    expected = "an IPv4 or IPv6 network such as 192.0.2.0/24"
    if not (bits.isascii() and bits.isdecimal() and len(bits) <= 3 and "%" not in host):
        _refuse("network", text, expected)
    try:
        network = ipaddress.ip_network((host, int(bits)), strict=False)
    except ValueError:
        _refuse("network", text, expected)
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    if network.prefixlen == network.max_prefixlen:
        return Observable(Kind.IP, _address(str(network.network_address)) or "")
    widest = WIDEST_V4 if network.version == 4 else WIDEST_V6
    if network.prefixlen < widest:
        expected = f"a network of /{widest} or narrower: a wider one matches by chance"
        _refuse("network", text, expected)
    return Observable(Kind.NETWORK, str(network))


def _domain(text: str) -> Observable:
    found = _host(text)
    if found is not None:
        return found
    plain = refang(text)
    address = _address(plain.strip("[]")) if plain.startswith("[") else None
    if address is not None:
        return Observable(Kind.IP, address)
    found = _host(plain) or _host(_to_idna(plain) or "")
    if found is None:
        _refuse("domain", text, "a domain name")
    return found


def _host(text: str) -> Observable | None:
    name = _name(text)
    if name is not None:
        return Observable(Kind.DOMAIN, name)
    address = _address(text)
    return None if address is None else Observable(Kind.IP, address)


def _name(text: str) -> str | None:
    """
    @return: The normal form of an ASCII domain name; C{None} if C{text} is not a domain name.
        A text whose last label is a number is an address, or a malformed one.
    """
    name = text.lower().removesuffix(".")
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        return None
    return None if name.rpartition(".")[2].isdecimal() else name


def _to_idna(text: str) -> str | None:
    """
    @return: A non-ASCII domain name in the form of IDNA (UTS 46); C{None} if it has none.
    """
    if text.isascii() or len(text) > LONGEST_NAME or _first_invisible(text) is not None:
        return None
    try:
        labels = idna.uts46_remap(text, std3_rules=False, transitional=False).split(".")
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels
        )
    except UnicodeError:
        return None


def _url(text: str) -> Observable:
    if not text.isprintable() and _first_invisible(text) is not None:
        _refuse("url", text, "a URL")
    plain = refang(text)
    scheme = _SCHEME.match(plain)
    start = scheme.end() if scheme else 0
    end = _end_of_authority(plain, start)
    host = plain[start:end].rpartition("@")[2]
    port = _PORT.search(host)
    number = ""
    if port is not None:
        host = host[: port.start()]
        number = port[1].lstrip("0")
        if len(number) > 5 or int(number or 0) > 65535:
            _refuse("url", text, "a URL with a port of at most 65535")
    rest, _, _ = plain[end:].partition("#")
    try:
        name = _domain(host)
    except ObservableInvalid:
        _refuse("url", text, "a URL with a domain name or an address as its host")
    if not rest.isascii() or " " in rest:
        rest = _TO_ENCODE.sub(lambda match: quote(match[0]), rest)
    value = name.value if ":" not in name.value else f"[{name.value}]"
    value += "" if number in _USUAL_PORTS else f":{number}"
    value += rest if rest.startswith("/") else f"/{rest}"
    if len(value) > LONGEST_URL:
        _refuse("url", text, f"a URL of at most {LONGEST_URL} characters")
    return Observable(Kind.URL, value)


def unescaped(observable: Observable) -> Observable | None:
    """
    Make the observable of a URL for logs that unescape it.

    @return: An observable whose value is no normal form: L{UNESCAPED} and the unescaped URL.
        C{None} if there is nothing to unescape, or if the escaped characters are not printable
        ASCII, because logs write these in several ways.
    """
    if observable.kind is not Kind.URL or "%" not in observable.value:
        return None
    plain = unquote(observable.value)
    if plain == observable.value or not (plain.isascii() and plain.isprintable()):
        return None
    return Observable(Kind.URL, UNESCAPED + plain)


def _email(text: str) -> Observable:
    local, _, host = refang(text).rpartition("@")
    local = local.lower()
    try:
        name = _domain(host) if _LOCAL.fullmatch(local) else None
    except ObservableInvalid:
        name = None
    if name is None:
        _refuse("email", text, "an e-mail address")
    if name.kind is not Kind.DOMAIN:
        _refuse("email", text, "an e-mail address with a domain name")
    return Observable(Kind.EMAIL, f"{local}@{name.value}")


def _lower_case(kind: Kind, form: str, expected: str) -> Callable[[str], Observable]:
    matches = re.compile(form).fullmatch

    def normaliser(text: str) -> Observable:
        value = text.lower()
        if not matches(value):
            _refuse(kind.value, text, expected)
        return Observable(kind, value)

    return normaliser


def _hash(kind: Kind, digits: int) -> Callable[[str], Observable]:
    return _lower_case(kind, f"[0-9a-f]{{{digits}}}", f"a hash of {digits} hexadecimal digits")


def _certificate(text: str) -> Observable:
    value = text.lower().replace(":", "")
    if len(value) not in _CERTIFICATES or not _HEX.fullmatch(value):
        _refuse("certificate", text, "a hash of 32, 40 or 64 hexadecimal digits")
    return Observable(Kind.CERTIFICATE, value)


def _mac(text: str) -> Observable:
    value = text.lower()
    if not _MAC.fullmatch(value):
        _refuse("mac", text, "a MAC address such as 00:00:5e:00:53:01")
    digits = re.sub("[:.-]", "", value)
    return Observable(Kind.MAC, ":".join(digits[i : i + 2] for i in range(0, 12, 2)))


def _file_name(text: str) -> Observable:
    value = re.split(r"[/\\]", text)[-1]
    return _unchanged(Kind.FILE_NAME, value, text, LONGEST_FILE_NAME, "a file's name")


def _user_agent(text: str) -> Observable:
    return _unchanged(Kind.USER_AGENT, text, text, LONGEST_USER_AGENT, "a user agent")


def _unchanged(kind: Kind, value: str, text: str, longest: int, expected: str) -> Observable:
    """
    @return: The observable of a value without control characters and surrogates. Direction
        marks are allowed: they disguise names of malicious files.
    """
    controls = any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    if controls or not 0 < len(value) <= longest:
        _refuse(kind.value, text, f"{expected} of at most {longest} characters")
    return Observable(kind, value)


_NORMALISERS: dict[Kind, Callable[[str], Observable]] = {
    Kind.IP: _ip,
    Kind.NETWORK: _network,
    Kind.DOMAIN: _domain,
    Kind.URL: _url,
    Kind.EMAIL: _email,
    Kind.MD5: _hash(Kind.MD5, 32),
    Kind.SHA1: _hash(Kind.SHA1, 40),
    Kind.SHA256: _hash(Kind.SHA256, 64),
    Kind.FILE_NAME: _file_name,
    Kind.CERTIFICATE: _certificate,
    Kind.JA3: _hash(Kind.JA3, 32),
    Kind.JA3S: _hash(Kind.JA3S, 32),
    Kind.JA4: _lower_case(
        Kind.JA4, _JA4.pattern, "a JA4 such as t13d1516h2_8daaf6152771_e5627efa2ab1"
    ),
    Kind.USER_AGENT: _user_agent,
    Kind.MAC: _mac,
}
