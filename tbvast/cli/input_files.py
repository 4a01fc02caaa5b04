"""
The indicators in input files: STIX documents, or lines of observables.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

import attrs
import msgspec

from tbvast.errors import Invalid, ObservableInvalid, PatternUnmatchable
from tbvast.stix.admission import admit_indicator
from tbvast.stix.documents import UNREADABLE
from tbvast.stix.indicators import STIX, Operation, make_indicator, split_bundle
from tbvast.stix.observables import guess
from tbvast.stix.pattern_conditions import matchable

SOURCE = "tbvast"
"""
The label of the indicators made of plain observables.
"""


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


@attrs.define
class InputContents:
    """
    The documents found in input files.

    @ivar submissions: The valid indicators, in the order of the input.
    @ivar refused: For each invalid one, a line that begins with its location.
    @ivar ignored: The number of objects of other types, by type.
    @ivar unmatchable: The number of indicators that no engine can match, by reason.
    """

    submissions: list[Submission] = attrs.field(factory=list)
    refused: list[str] = attrs.field(factory=list)
    ignored: Counter[str] = attrs.field(factory=Counter)
    unmatchable: Counter[str] = attrs.field(factory=Counter)

    def read(self, name: str, raw: bytes, now: datetime) -> None:
        """
        Add the documents of an input: a STIX bundle, an object, a list of objects, or lines
        that are each an object or a plain observable. Invalid parts are listed, not raised.

        @param name: The name of the input, for locations.
        @param raw: The whole input.
        @param now: The version of the indicators made of observables.
        """
        text = raw.removeprefix(BOM_UTF8)
        if _is_document(text):
            indicators = _with_lines(text, self._split(name, text))
            for number, (line, document) in enumerate(indicators, 1):
                self._add_object(f"{name}:{line}: indicator {number}", document)
            return
        for number, raw_line in enumerate(text.splitlines(), 1):
            stripped = raw_line.strip()
            location = f"{name}:{number}"
            if stripped.startswith(b"{"):
                for document in self._split(location, stripped):
                    self._add_object(location, document)
            elif stripped and not stripped.startswith(b"#"):
                self._add_observable(location, stripped, now)

    def _split(self, location: str, text: bytes) -> tuple[bytes, ...]:
        try:
            bundle = split_bundle(text)
        except Invalid as e:
            self.refused.append(f"{location}: {e}")
            return ()
        self.ignored.update(bundle.others)
        return bundle.indicators

    def _add_observable(self, location: str, line: bytes, now: datetime) -> None:
        try:
            text = line.decode("utf-8")
            observable = guess(text)
        except UnicodeDecodeError:
            self.refused.append(f"{location}: {ObservableInvalid('observable', line, 'UTF-8')}")
        except Invalid as e:
            self.refused.append(f"{location}: {e}")
        else:
            document = make_indicator(observable, now=now, source=SOURCE, original=text)
            self.submissions.append(Submission(location, document, admit_indicator(document).id))

    def _add_object(self, location: str, document: bytes) -> None:
        try:
            indicator = admit_indicator(document)
        except Invalid as e:
            self.refused.append(f"{location}: {e}")
            return
        removes = indicator.operation is Operation.REMOVE
        self.submissions.append(Submission(location, indicator.raw, indicator.id, removes))
        if removes:
            return
        if indicator.pattern_type != STIX:
            self.unmatchable[f"pattern type {indicator.pattern_type}"] += 1
            return
        try:
            matchable(indicator.pattern or "")
        except PatternUnmatchable as e:
            self.unmatchable[e.reason] += 1


def _is_document(text: bytes) -> bool:
    start = text.lstrip()[:64]
    if start[:1] == b"[":  # a JSON list, or a line with an address in brackets
        return start[1:].lstrip()[:1] in (b"{", b"]", b"")
    if start[:1] != b"{":
        return False
    first, _, rest = text.lstrip().partition(b"\n")
    if rest.strip():
        with suppress(*UNREADABLE):
            msgspec.json.decode(first, type=dict[str, msgspec.Raw])
            return False
    return True


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
