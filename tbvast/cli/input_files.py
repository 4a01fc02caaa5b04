"""
The indicators in input files: STIX documents, or lines of observables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from tbvast.errors import Invalid, ObservableInvalid, PatternUnmatchable
from tbvast.stix.admission import admit_indicator
from tbvast.stix.documents import UNREADABLE
from tbvast.stix.indicators import (
    STIX,
    Indicator,
    Operation,
    make_indicator,
    split_bundle,
)
from tbvast.stix.observables import guess
from tbvast.stix.pattern_conditions import matchable

SOURCE = "tbvast"
"""
The label of the indicators made of plain observables.
"""

_BOM = b"\xef\xbb\xbf"


class Submission(msgspec.Struct, frozen=True):
    """
    A document to publish.

    @ivar location: Its place in the input, e.g. C{"iocs.txt:3"}.
    @ivar document: An indicator, or a removal, as JSON.
    @ivar id: The indicator's id; may be empty.
    @ivar removes: Whether the document is a removal.
    """

    location: str
    document: bytes
    id: str = ""
    removes: bool = False

    @property
    def label(self) -> str:
        """
        Location and id, which begin a line about the document.
        """
        if self.id in ("", self.location):
            return self.location
        return f"{self.location}: {self.id}"


@dataclass
class InputContents:
    """
    The documents found in input files.

    @ivar submissions: The valid indicators, in the order of the input.
    @ivar refused: For each invalid one, a line that begins with its location.
    @ivar ignored: The number of objects of other types, by type.
    @ivar unmatchable: The number of indicators that no engine can match, by reason.
    """

    submissions: list[Submission] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    unmatchable: Counter[str] = field(default_factory=Counter)

    def add(self, other: InputContents) -> None:
        """
        Append the contents of another file.
        """
        self.submissions += other.submissions
        self.refused += other.refused
        self.ignored += other.ignored
        self.unmatchable += other.unmatchable


def read_input(name: str, raw: bytes, now: datetime) -> InputContents:
    """
    Read a STIX bundle, an object, a list of objects, or lines that are each an
    object or a plain observable.

    @param name: The name of the input, for locations.
    @param raw: The whole input.
    @param now: The version of the indicators made of observables.
    @return: The contents; invalid parts are listed, not raised.
    """
    contents = InputContents()
    text = raw.removeprefix(_BOM)
    if _is_document(text):
        _read_document(contents, name, text)
    else:
        _read_lines(contents, name, text, now)
    return contents


def _is_document(text: bytes) -> bool:
    """
    Whether the whole input is meant as one JSON document.
    """
    start = text.lstrip()[:64]
    if start[:1] == b"[":  # a JSON list, or a line with an address in brackets
        return start[1:].lstrip()[:1] in (b"{", b"]", b"")
    if start[:1] != b"{":
        return False
    first, _, rest = text.lstrip().partition(b"\n")
    return not rest.strip() or not _is_object(first)


def _is_object(line: bytes) -> bool:
    with suppress(*UNREADABLE):
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        return True
    return False


def _read_document(contents: InputContents, name: str, text: bytes) -> None:
    indicators = _split_indicators(contents, name, text)
    for number, (line, document) in enumerate(_with_lines(text, indicators), 1):
        _read_object(contents, f"{name}:{line}: indicator {number}", document)


def _with_lines(text: bytes, documents: tuple[bytes, ...]) -> Iterator[tuple[int, bytes]]:
    """
    @param documents: Substrings of C{text}, in order.
    @return: Each with the number of its first line.
    """
    line, seen = 1, 0
    for document in documents:
        start = text.find(document, seen)
        line += text.count(b"\n", seen, start)
        yield line, document
        line += document.count(b"\n")
        seen = start + len(document)


def _read_lines(contents: InputContents, name: str, text: bytes, now: datetime) -> None:
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        location = f"{name}:{number}"
        if not line or line.startswith(b"#"):
            continue
        if line.startswith(b"{"):
            for document in _split_indicators(contents, location, line):
                _read_object(contents, location, document)
        else:
            _read_observable(contents, location, line, now)


def _split_indicators(contents: InputContents, location: str, text: bytes) -> tuple[bytes, ...]:
    try:
        bundle = split_bundle(text)
    except Invalid as e:
        contents.refused.append(f"{location}: {e}")
        return ()
    contents.ignored.update(bundle.others)
    return bundle.indicators


def _read_observable(contents: InputContents, location: str, line: bytes, now: datetime) -> None:
    try:
        text = line.decode("utf-8")
        observable = guess(text)
    except UnicodeDecodeError:
        contents.refused.append(f"{location}: {ObservableInvalid('observable', line, 'UTF-8')}")
    except Invalid as e:
        contents.refused.append(f"{location}: {e}")
    else:
        document = make_indicator(observable, now=now, source=SOURCE, original=text)
        contents.submissions.append(Submission(location, document, admit_indicator(document).id))


def _read_object(contents: InputContents, location: str, document: bytes) -> None:
    try:
        indicator = admit_indicator(document)
    except Invalid as e:
        contents.refused.append(f"{location}: {e}")
        return
    contents.submissions.append(
        Submission(location, indicator.raw, indicator.id, indicator.operation is Operation.REMOVE)
    )
    reason = unmatchable_reason(indicator)
    if reason is not None:
        contents.unmatchable[reason] += 1


def unmatchable_reason(indicator: Indicator) -> str | None:
    """
    The reason why no engine can match an indicator.

    @return: A phrase that is the same for all such indicators; C{None} if an engine can
        match it, or if it is a removal.
    """
    if indicator.operation is Operation.REMOVE:
        return None
    if indicator.pattern_type != STIX:
        return f"pattern type {indicator.pattern_type}"
    try:
        matchable(indicator.pattern or "")
    except PatternUnmatchable as e:
        return e.reason
    return None
