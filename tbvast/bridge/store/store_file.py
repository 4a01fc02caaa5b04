"""
The file of the bridge's store, and the rows of its indicators, read many at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tbvast.bridge.store.decisions import NO_TERMS, StoredIndicator, Terms, terms_of
from tbvast.bridge.store.schema import OLDEST_VERSION, VERSIONS
from tbvast.errors import Invalid
from tbvast.stix.indicators import decode_indicator
from tbvast.stix.observables import Kind, Observable
from tbvast.storage.digest_index import DigestIndex, digests
from tbvast.storage.set_aside import SetAside, Stage, reason_of, store_set_aside
from tbvast.storage.sifting import is_of_an_item
from tbvast.storage.sqlite import IN_JSON_LIST, JSON_LIST, connect, migrate

_T = TypeVar("_T")

encode = msgspec.json.Encoder().encode


class StoredTerm(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One observable of an indicator.

    @ivar joint: Whether it does not suffice alone: the same event has to contain others.
    """

    kind: Kind
    value: str
    joint: bool | int = False

    @property
    def observable(self) -> Observable:
        return Observable(self.kind, self.value)


class IndicatorTerms(msgspec.Struct, array_like=True):
    """
    An indicator and its observables.

    @ivar place: A further column of the query, by which the next page is read.
    """

    number: int
    id: str
    terms: tuple[StoredTerm, ...]
    place: int = 0


class StoreFile:
    """
    The open file. It reads rows, and repairs damaged ones.

    @ivar by_id: Finds indicators by the digests of their ids.
    """

    def __init__(self, path: Path) -> None:
        """
        @raise sqlite3.Error: If the file cannot be used.
        """
        self.connection = self._db = connect(path)
        migrate(self._db, VERSIONS, OLDEST_VERSION)
        self.by_id = DigestIndex(self._db, "ids", self._ids_above)

    def _ids_above(self, number: int) -> Iterator[tuple[int, int]]:
        return self._db.execute("SELECT digest, number FROM indicators WHERE number > ?", (number,))

    def read(self, read: Callable[[], _T]) -> _T:
        """
        Read rows, again after a repair if a value of some row is damaged.
        """
        try:
            return read()
        except (sqlite3.OperationalError, msgspec.MsgspecError) as e:
            if not is_of_an_item(e):
                raise
        self._repair()
        return read()

    def read_json(self, type: type[_T], query: str, *parameters: Any) -> _T:
        """
        Read all rows as one JSON text: a single step of SQLite.
        """

        def read() -> _T:
            (found,) = self._db.execute(query, parameters).fetchone()
            return msgspec.json.decode(found, type=type)

        return self.read(read)

    def read_terms(self, numbers: str, *parameters: Any) -> list[IndicatorTerms]:
        """
        Read the observables of indicators; those without any are left out.

        @param numbers: SQL that selects the indicators' numbers.
        """
        return self.read_json(
            list[IndicatorTerms],
            "SELECT json_group_array(json_array(number, id, json(wanted)))"
            f" FROM indicators WHERE wanted != '[]' AND number IN ({numbers})",
            *parameters,
        )

    def observables_of(self, numbers: Iterable[int]) -> dict[int, Terms]:
        """
        Read the observables of indicators, by number.
        """
        return {
            each.number: {term.observable: bool(term.joint) for term in each.terms}
            for each in self.read_terms(JSON_LIST, json_list(numbers))
        }

    def find(self, digests: Mapping[str, int]) -> dict[str, StoredIndicator]:
        """
        Read the known ones of some indicators.

        @param digests: The digests of their ids, by id.
        """
        numbers = self.by_id.find(tuple(digests.values()))
        if not numbers:
            return {}
        found = self.read_json(
            list[StoredIndicator],
            "SELECT json_group_array(json_array(number, id, digest, modified, state,"
            " json(iif(searched, 'true', 'false')), generation,"
            " json(unmatched)))"
            f" FROM indicators WHERE number {IN_JSON_LIST}",
            json_list(numbers),
        )
        return {stored.id: stored for stored in found if stored.id in digests}

    def documents(self, stored: Iterable[StoredIndicator]) -> dict[str, bytes]:
        """
        @return: The documents, by id; empty for an indicator that has ended.
        """
        ids = {each.number: each.id for each in stored}
        found = self._db.execute(
            f"SELECT number, body FROM indicators WHERE number {IN_JSON_LIST}", (json_list(ids),)
        )
        return {ids[number]: body for number, body in found}

    def _repair(self) -> None:
        """
        Rebuild damaged terms from the indicators' documents, and clear damaged reasons.
        """
        for number, unmatched in self._db.execute(
            "SELECT number, cast(unmatched AS BLOB) FROM indicators WHERE unmatched != '[]'"
        ).fetchall():
            if not _is(tuple[str, ...], unmatched):
                self._db.execute(
                    "UPDATE indicators SET unmatched = '[]' WHERE number = ?", (number,)
                )
        for number, id, body, wanted in self._db.execute(
            "SELECT number, id, body, cast(wanted AS BLOB) FROM indicators WHERE wanted != '[]'"
        ).fetchall():
            if _is(tuple[StoredTerm, ...], wanted):
                continue
            try:
                after, _ = terms_of(decode_indicator(body))
            except Invalid as e:
                after = NO_TERMS
                aside = SetAside(Stage.STORE, reason_of(e), body, "indicator", id)
                store_set_aside(self._db, [aside], 0)
            self._db.execute(
                "UPDATE indicators SET wanted = ? WHERE number = ?", (encode_terms(after), number)
            )


def _is(type: Any, text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=type)
    except msgspec.MsgspecError:
        return False
    return True


def json_list(numbers: Iterable[int]) -> str:
    """
    @return: A JSON list, as a parameter of L{JSON_LIST}.
    """
    return encode(list(numbers)).decode()


def encode_terms(terms: Terms) -> str:
    """
    @return: The stored form of an indicator's terms.
    """
    rows: list[Any] = list(terms)  # a bare observable is a term that is not joint
    if any(terms.values()):
        rows = [(o.kind, o.value, joint) for o, joint in terms.items()]
    return encode(rows).decode()


def digests_of(ids: Sequence[str]) -> dict[str, int]:
    """
    @return: The digests of ids, by id.
    """
    return dict(zip(ids, digests(ids), strict=True))
