"""
What is to be published: STIX documents, or lines of observables, as read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from tbvast.errors import Invalid, ObservableInvalid, PatternUnmatchable
from tbvast.stix.admission import admit_indicator
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
The label of the indicators that are made of plain observables.
"""

_BOM = b"\xef\xbb\xbf"


class Submission(msgspec.Struct, frozen=True):
    """
    A document that is to be published.

    @ivar where: Where it stands, to begin a line about it with.
    @ivar id: The indicator's id; may be empty.
    @ivar removes: Whether the document is a removal.
    """

    where: str
    document: bytes
    id: str = ""
    removes: bool = False

    @property
    def name(self) -> str:
        """
        What a line about it begins with, once the bus has it.
        """
        return f"{self.where}: {self.id}" if self.id not in ("", self.where) else self.where


@dataclass
class Reading:
    """
    What was read.

    @ivar submissions: In the order of the input.
    @ivar refused: What was no indicator: a line about each, which begins with
        where it stands.
    @ivar ignored: How many objects were no indicators and never meant to be, by
        type.
    @ivar unmatchable: How many indicators no engine will be asked for, by reason.
    """

    submissions: list[Submission] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    unmatchable: Counter[str] = field(default_factory=Counter)

    def add(self, other: Reading) -> None:
        """
        Take what was read elsewhere in, too.
        """
        self.submissions += other.submissions
        self.refused += other.refused
        self.ignored += other.ignored
        self.unmatchable += other.unmatchable


def read(name: str, raw: bytes, now: datetime) -> Reading:
    """
    Read a STIX bundle, an object, a list of objects, or lines that are each an
    object or a plain observable.

    @param name: What the input is called.
    @param raw: All of it.
    @param now: The version of the indicators made of observables.
    """
    reading = Reading()
    text = raw.removeprefix(_BOM)
    if _is_document(text):
        _read_document(reading, name, text)
    else:
        _read_lines(reading, name, text, now)
    return reading


def _is_document(text: bytes) -> bool:
    """
    Whether the whole is one JSON document, or meant to be.
    """
    start = text.lstrip()[:64]
    if start[:1] == b"[":  # or an address in brackets, which may be a line
        return start[1:].lstrip()[:1] in (b"{", b"]", b"")
    if start[:1] != b"{":
        return False
    first, _, rest = text.lstrip().partition(b"\n")
    return not rest.strip() or not _is_object(first)


def _is_object(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _read_document(reading: Reading, name: str, text: bytes) -> None:
    try:
        contents = split_bundle(text)
    except Invalid as e:
        reading.refused.append(f"{name}: {e}")
        return
    reading.ignored.update(contents.others)
    for number, (line, document) in enumerate(_with_lines(text, contents.indicators), 1):
        _read_object(reading, f"{name}:{line}: indicator {number}", document)


def _with_lines(text: bytes, documents: tuple[bytes, ...]) -> Iterator[tuple[int, bytes]]:
    """
    @param documents: Parts of C{text}, in order.
    @return: Each with the number of the line that it begins on.
    """
    line, seen = 1, 0
    for document in documents:
        start = text.find(document, seen)
        line += text.count(b"\n", seen, start)
        yield line, document
        line += document.count(b"\n")
        seen = start + len(document)


def _read_lines(reading: Reading, name: str, text: bytes, now: datetime) -> None:
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        where = f"{name}:{number}"
        if not line or line.startswith(b"#"):
            continue
        if line.startswith(b"{"):
            _read_object_line(reading, where, line)
        else:
            _read_observable(reading, where, line, now)


def _read_object_line(reading: Reading, where: str, line: bytes) -> None:
    try:
        contents = split_bundle(line)
    except Invalid as e:
        reading.refused.append(f"{where}: {e}")
        return
    reading.ignored.update(contents.others)
    for document in contents.indicators:
        _read_object(reading, where, document)


def _read_observable(reading: Reading, where: str, line: bytes, now: datetime) -> None:
    try:
        text = line.decode("utf-8")
        observable = guess(text)
    except UnicodeDecodeError:
        reading.refused.append(f"{where}: {ObservableInvalid('observable', line, 'UTF-8')}")
    except Invalid as e:
        reading.refused.append(f"{where}: {e}")
    else:
        document = make_indicator(observable, now=now, source=SOURCE, original=text)
        reading.submissions.append(Submission(where, document, admit_indicator(document).id))


def _read_object(reading: Reading, where: str, document: bytes) -> None:
    try:
        indicator = admit_indicator(document)
    except Invalid as e:
        reading.refused.append(f"{where}: {e}")
        return
    reading.submissions.append(
        Submission(where, indicator.raw, indicator.id, indicator.operation is Operation.REMOVE)
    )
    reason = unmatchable(indicator)
    if reason is not None:
        reading.unmatchable[reason] += 1


def unmatchable(indicator: Indicator) -> str | None:
    """
    Why an engine cannot be asked for an indicator, as a phrase that can be counted.

    @return: L{None} if it can be, or need not.
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
