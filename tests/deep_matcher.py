"""
A matcher that knows no fields: it looks for observables anywhere in an event.

It takes every text of an event, also in lists and nested records, as a whole and in the parts
between blanks, commas, semicolons, quotes, brackets and after C{=}. What looks like an address, a
name, a URL, an e-mail address, a hash, a MAC address, a TLS fingerprint or a file's name counts,
whatever the field is called. Case, trailing dots, colons in hashes, dashes in MAC addresses, ports
behind hosts, and a display name around an e-mail address do not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from tests.slow_matcher import Event, Value, normal

_SEPARATORS = re.compile(r"[\s,;|<>\"'()\[\]{}=]+|->")
_PORT = re.compile(r"^(.*[^:]):[0-9]{1,5}$|^\[(.*)\](?::[0-9]{1,5})?$")
_HASHES = {32: "md5", 40: "sha1", 64: "sha256"}
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)+[a-z][a-z0-9-]*[a-z0-9]\.?", re.I)
_MAC = re.compile(r"[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}", re.I)
_FILE = re.compile(r"[^\\/]+\.[A-Za-z][A-Za-z0-9]{1,4}")


def leaves(event: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """
    @return: The texts of an event, each with the path of its field; C{[]} stands for any element.
    """
    if isinstance(event, dict):
        for name, value in event.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(event, list):
        for value in event:
            yield from leaves(value, f"{path}[]")
    elif isinstance(event, str):
        yield path, event


def observables(event: Event) -> Mapping[Value, set[str]]:
    """
    @return: Everything that an event holds, each with the paths of the fields that hold it.
    """
    found: dict[Value, set[str]] = defaultdict(set)
    for path, text in leaves(event):
        for value in _seen(path.lower(), text):
            found[value].add(path)
    return found


def _seen(path: str, text: str) -> Iterator[Value]:
    guesses = {guess for part in _parts(text) for guess in _guesses(path, part)}
    if re.search("agent", path) and text:
        guesses.add(("user-agent", text))
    last = re.split(r"[\\/]", text)[-1]
    if _FILE.fullmatch(last) and re.search("file|path|image|attachment", path):
        guesses.add(("file-name", last))
    for kind, guess in guesses:
        value = normal(kind, guess)
        if value is not None and value[0] == kind:
            yield value


def _parts(text: str) -> set[str]:
    parts = {text, *_SEPARATORS.split(text)}
    parts |= {found[1] or found[2] for part in parts if (found := _PORT.match(part))}
    return parts - {""}


def _guesses(path: str, part: str) -> Iterator[tuple[str, str]]:
    plain = part.replace(":", "").lower()
    if re.fullmatch("[0-9a-f]+", plain) and len(plain) in _HASHES:
        yield _hash_kind(path, len(plain)), plain
    if "://" in part:
        yield "url", part
    elif "@" in part:
        yield "email", part
    if _MAC.fullmatch(part):
        yield "mac", part
    if _NAME.fullmatch(part):
        yield "domain", part
    yield "ip", part
    yield "ja4", part


def _hash_kind(path: str, digits: int) -> str:
    """
    Digits alone do not tell what they are of.
    """
    if digits == 32:
        for kind in ("ja3s", "ja3"):
            if kind in path:
                return kind
    if re.search("fingerprint|_fps|cert", path):
        return "certificate"
    return _HASHES[digits]
