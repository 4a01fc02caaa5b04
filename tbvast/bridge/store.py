"""
The bridge's own memory: SQLite, by blocking calls, from one thread at a time.

It is the truth of which indicators are in force, which observables they hold,
which of them have been looked for in past events, and which sightings have been
made. The engine's tables are a copy of it.
"""

from __future__ import annotations

import ipaddress
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tbvast.errors import Invalid, PatternUnmatchable, StartupRefused
from tbvast.intel.indicators import STIX, Indicator, Operation
from tbvast.intel.matches import Entry
from tbvast.intel.observables import Kind, Observable
from tbvast.intel.patterns import matchable
from tbvast.intel.sightings import Sighting
from tbvast.ops.database import connect, migrate
from tbvast.wire.manage import Position

SIGHTING_MEMORY_DAYS = 30
"""
Days after which a sighting that was sent may be made again.
"""

_SCHEMA = """
CREATE TABLE indicators (
    id TEXT PRIMARY KEY,
    modified INTEGER NOT NULL,
    valid_until INTEGER,
    in_force INTEGER NOT NULL,
    change INTEGER NOT NULL,
    searched INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    unmatched TEXT,
    body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX unsearched ON indicators (change) WHERE in_force AND NOT searched;
CREATE INDEX expiring ON indicators (valid_until) WHERE in_force AND valid_until IS NOT NULL;
CREATE TABLE terms (
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (kind, value, id)
) WITHOUT ROWID;
CREATE INDEX terms_by_id ON terms (id);
CREATE TABLE sightings (
    id TEXT PRIMARY KEY,
    made INTEGER NOT NULL,
    body BLOB
) WITHOUT ROWID;
CREATE TABLE position (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    plugin TEXT,
    number INTEGER,
    generation INTEGER NOT NULL
);
INSERT INTO position VALUES (1, NULL, NULL, 0);
CREATE TABLE covered (only INTEGER PRIMARY KEY CHECK (only = 1), until REAL NOT NULL);
CREATE INDEX unsent ON sightings (made) WHERE body IS NOT NULL;
"""

_MICROSECONDS = 1_000_000

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Changes(msgspec.Struct, frozen=True):
    """
    What the engine is to be told.

    @ivar number: Counts the changes; higher is later.
    @ivar write: Entries that are new, or whose ids have changed.
    @ivar erase: Observables that nobody wants any more.
    @ivar unmatched: Why some indicators are not matched, by id.
    """

    number: int
    write: tuple[Entry, ...] = ()
    erase: tuple[Observable, ...] = ()
    unmatched: dict[str, str] = {}


class BridgeStore:
    """
    The file. Not thread-safe.
    """

    def __init__(self, path: Path) -> None:
        """
        @raise StartupRefused: If the file cannot be used.
        """
        try:
            self._db = connect(path)
            migrate(self._db, [_SCHEMA])
        except sqlite3.Error as e:
            raise StartupRefused(f"the bridge's store {path} cannot be used: {e}") from e
        plugin, number, self._generation = self._db.execute(
            "SELECT plugin, number, generation FROM position"
        ).fetchone()
        self._position = None if plugin is None else Position(plugin, number)
        (self._change,) = self._db.execute(
            "SELECT coalesce(max(change), 0) FROM indicators"
        ).fetchone()
        self._networks = {
            ipaddress.ip_network(value)
            for (value,) in self._db.execute(
                "SELECT DISTINCT value FROM terms WHERE kind = ?", (Kind.NETWORK,)
            )
        }

    def close(self) -> None:
        self._db.close()

    @property
    def change(self) -> int:
        """
        The number of the last change.
        """
        return self._change

    @property
    def position(self) -> Position | None:
        """
        How far the bus's journal was applied.
        """
        return self._position

    # Indicators

    def apply(
        self,
        indicators: Sequence[Indicator],
        now: float,
        search: bool,
        position: Position | None = None,
    ) -> Changes:
        """
        Take indicators in; a repeat, or an older version, changes nothing.

        @param now: Seconds since the epoch; what is no longer valid then is
            removed.
        @param search: Whether past events are to be searched for the new ones.
        @param position: How far the bus's journal has been applied then, if it has
            numbers.
        @return: What the engine is to be told, durable here.
        """
        moment = int(now * _MICROSECONDS)
        touched: set[Observable] = set()
        unmatched: dict[str, str] = {}
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._change += 1
            for indicator in indicators:
                reason = self._take(indicator, moment, search, touched)
                if reason:
                    unmatched[indicator.id] = reason
            self._set_position(position)
            changes = self._changes(touched, unmatched)
        self._position = position or self._position
        return changes

    def _set_position(self, position: Position | None) -> None:
        if position is not None:
            self._db.execute(
                "UPDATE position SET plugin = ?, number = ?", (position.plugin, position.number)
            )

    def begin_snapshot(self) -> None:
        """
        All that is in force is applied from now on; what is not, ends with
        L{end_snapshot}.
        """
        with self._db:
            self._db.execute("UPDATE position SET generation = generation + 1")
        self._generation += 1

    def end_snapshot(self, position: Position) -> Changes:
        """
        End every indicator that was not applied since L{begin_snapshot}.

        @param position: How far the bus's journal has been applied.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._set_position(position)
            changes = self._end(
                "SELECT id FROM indicators WHERE in_force AND generation != ?", self._generation
            )
        self._position = position
        return changes

    def _take(
        self, indicator: Indicator, moment: int, search: bool, touched: set[Observable]
    ) -> str | None:
        known = self._db.execute(
            "SELECT modified, in_force, body, searched FROM indicators WHERE id = ?",
            (indicator.id,),
        ).fetchone()
        ends = indicator.operation is Operation.REMOVE or (
            indicator.valid_until is not None and indicator.valid_until <= moment
        )
        if not _changes_anything(indicator, ends, known):
            self._db.execute(
                "UPDATE indicators SET generation = ? WHERE id = ? AND generation != ?",
                (self._generation, indicator.id, self._generation),
            )
            return None
        before = self._terms(indicator.id)
        after: set[Observable] = set()
        reason = None
        if not ends:
            matched, reason = _observables(indicator)
            after.update(matched)
        was_searched = known is None or known[3]
        self._db.execute(
            "INSERT OR REPLACE INTO indicators VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                indicator.id,
                max(indicator.modified, known[0] if known else 0),
                indicator.valid_until,
                not ends,
                self._change,
                not search or (after <= before and was_searched),
                self._generation,
                reason,
                indicator.raw,
            ),
        )
        self._replace_terms(indicator.id, before, after)
        touched |= before ^ after
        return reason

    def _terms(self, id: str) -> set[Observable]:
        return {
            Observable(Kind(kind), value)
            for kind, value in self._db.execute("SELECT kind, value FROM terms WHERE id = ?", (id,))
        }

    def _replace_terms(self, id: str, before: set[Observable], after: set[Observable]) -> None:
        self._db.executemany(
            "DELETE FROM terms WHERE kind = ? AND value = ? AND id = ?",
            [(o.kind, o.value, id) for o in before - after],
        )
        self._db.executemany(
            "INSERT INTO terms VALUES (?, ?, ?)", [(o.kind, o.value, id) for o in after - before]
        )

    def expire(self, now: float) -> Changes:
        """
        End what is no longer valid.

        @param now: Seconds since the epoch.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            return self._end(
                "SELECT id FROM indicators"
                " WHERE in_force AND valid_until IS NOT NULL AND valid_until <= ?",
                int(now * _MICROSECONDS),
            )

    def _end(self, query: str, parameter: int) -> Changes:
        """
        @param query: Finds the ids of what is no longer in force.
        """
        ended = [id for (id,) in self._db.execute(query, (parameter,))]
        if not ended:
            return Changes(self._change)
        self._change += 1
        touched: set[Observable] = set()
        for id in ended:
            before = self._terms(id)
            self._replace_terms(id, before, set())
            touched |= before
        self._db.executemany(
            "UPDATE indicators SET in_force = 0, change = ? WHERE id = ?",
            [(self._change, id) for id in ended],
        )
        return self._changes(touched, {})

    def _changes(self, touched: set[Observable], unmatched: dict[str, str]) -> Changes:
        ids = {observable: self._ids(observable) for observable in touched}
        networks = {
            ipaddress.ip_network(o.value): bool(ids[o]) for o in touched if o.kind is Kind.NETWORK
        }
        if networks:
            for network, wanted in networks.items():
                (self._networks.add if wanted else self._networks.discard)(network)
            for network in self._networks:
                if any(_covers(changed, network) for changed in networks):
                    observable = Observable(Kind.NETWORK, str(network))
                    ids[observable] = self._covering_ids(network)
        return Changes(
            self._change,
            tuple(Entry(o, found) for o, found in ids.items() if found),
            tuple(o for o, found in ids.items() if not found),
            unmatched,
        )

    def _ids(self, observable: Observable) -> tuple[str, ...]:
        return tuple(
            id
            for (id,) in self._db.execute(
                "SELECT id FROM terms WHERE kind = ? AND value = ? ORDER BY id",
                (observable.kind, observable.value),
            )
        )

    def _covering_ids(self, network: _Network) -> tuple[str, ...]:
        ids: set[str] = set()
        for length in range(network.prefixlen + 1):
            wider = network.supernet(new_prefix=length)
            if wider in self._networks:
                ids.update(self._ids(Observable(Kind.NETWORK, str(wider))))
        return tuple(sorted(ids))

    def entries(self) -> Iterator[Entry]:
        """
        Everything that the engine should hold.
        """
        rows = self._db.execute(
            "SELECT kind, value, json_group_array(id) FROM terms GROUP BY kind, value"
        )
        for kind, value, ids in rows:
            observable = Observable(Kind(kind), value)
            if observable.kind is Kind.NETWORK:
                yield Entry(observable, self._covering_ids(ipaddress.ip_network(value)))
            else:
                yield Entry(observable, tuple(sorted(json.loads(ids))))

    def reconcile(self, held: Sequence[Entry]) -> Changes:
        """
        What the engine is to be told so that it holds what it should.

        @param held: What it holds.
        """
        stale = {entry.observable: entry.ids for entry in held}
        write = []
        for entry in self.entries():
            found = stale.pop(entry.observable, None)
            if found is None or tuple(sorted(found)) != entry.ids:
                write.append(entry)
        return Changes(self._change, tuple(write), tuple(stale))

    def unsearched(self, until: int, limit: int) -> tuple[list[str], list[Entry]]:
        """
        The oldest indicators for which no past events have been searched.

        @param until: The number of the last change to look at.
        @param limit: The most indicators.
        @return: Their ids, and what to search for.
        """
        ids = [
            id
            for (id,) in self._db.execute(
                "SELECT id FROM indicators WHERE in_force AND NOT searched AND change <= ?"
                " ORDER BY change LIMIT ?",
                (until, limit),
            )
        ]
        wanted: dict[Observable, list[str]] = {}
        for id in ids:
            for observable in self._terms(id):
                wanted.setdefault(observable, []).append(id)
        return ids, [Entry(o, self._searching(o, found, ids)) for o, found in wanted.items()]

    def _searching(
        self, observable: Observable, found: list[str], ids: list[str]
    ) -> tuple[str, ...]:
        """
        @param found: Who wants exactly this observable.
        @param ids: All whom the search is for.
        """
        if observable.kind is not Kind.NETWORK:
            return tuple(sorted(found))
        covering = self._covering_ids(ipaddress.ip_network(observable.value))
        return tuple(sorted(set(covering).intersection(ids)))

    def mark_searched(self, ids: Iterable[str], until: int) -> None:
        """
        @param until: As given to L{unsearched}; what has changed since has to be
            searched again.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "UPDATE indicators SET searched = 1 WHERE id = ? AND change <= ?",
                [(id, until) for id in ids],
            )

    @property
    def covered(self) -> float | None:
        """
        Until when every arriving event was matched; seconds since the epoch.
        """
        found = self._db.execute("SELECT until FROM covered").fetchone()
        return None if found is None else float(found[0])

    def set_covered(self, until: float) -> None:
        """
        @param until: Every event that arrived before was matched, and its sighting
            remembered.
        """
        self._db.execute("INSERT OR REPLACE INTO covered VALUES (1, ?)", (until,))

    def bodies(self, ids: Iterable[str]) -> dict[str, bytes]:
        """
        The documents of those of some indicators that are in force.
        """
        return dict(
            self._db.execute(
                "SELECT id, body FROM indicators"
                " WHERE in_force AND id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(ids)),),
            )
        )

    def counts(self) -> dict[str, Any]:
        """
        @return: C{indicators} in force, C{unsearched} ones among them,
            C{unmatched} ones by reason, and C{unsent} sightings.
        """
        reasons = Counter(
            dict(
                self._db.execute(
                    "SELECT unmatched, count(*) FROM indicators"
                    " WHERE in_force AND unmatched IS NOT NULL GROUP BY unmatched"
                )
            )
        )
        indicators, unsearched = self._db.execute(
            "SELECT count(*), count(*) FILTER (WHERE NOT searched) FROM indicators WHERE in_force"
        ).fetchone()
        (unsent,) = self._db.execute(
            "SELECT count(*) FROM sightings WHERE body IS NOT NULL"
        ).fetchone()
        return {
            "indicators": indicators,
            "unsearched": unsearched,
            "unmatched": dict(reasons),
            "unsent": unsent,
        }

    # Sightings

    def remember(self, sightings: Sequence[Sighting], now: float) -> list[Sighting]:
        """
        Keep sightings until they are sent.

        @param now: Seconds since the epoch.
        @return: Those that were new.
        """
        new = []
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for sighting in sightings:
                added = self._db.execute(
                    "INSERT OR IGNORE INTO sightings VALUES (?, ?, ?)",
                    (sighting.id, int(now), sighting.raw),
                )
                if added.rowcount:
                    new.append(sighting)
        return new

    def unsent(self, limit: int) -> list[tuple[str, bytes]]:
        """
        The oldest sightings that have not been sent: id and document.
        """
        return self._db.execute(
            "SELECT id, body FROM sightings WHERE body IS NOT NULL ORDER BY made LIMIT ?", (limit,)
        ).fetchall()

    def mark_sent(self, ids: Iterable[str]) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "UPDATE sightings SET body = NULL WHERE id = ?", [(id,) for id in ids]
            )

    def forget(self, now: float) -> None:
        """
        Forget sightings that were sent long ago.

        @param now: Seconds since the epoch.
        """
        with self._db:
            self._db.execute(
                "DELETE FROM sightings WHERE body IS NULL AND made < ?",
                (int(now) - SIGHTING_MEMORY_DAYS * 86400,),
            )


def _changes_anything(indicator: Indicator, ends: bool, known: tuple[Any, ...] | None) -> bool:
    """
    @param ends: Whether the indicator is no longer in force.
    @param known: What is kept of it: its C{modified}, whether it is in force, and
        its document.
    """
    if known is None:
        return not ends
    modified, in_force, body, *_ = known
    if ends and not indicator.modified:
        return bool(in_force)  # it has no version, and ends any
    if indicator.modified < modified:
        return False
    if ends:
        return bool(in_force)
    return indicator.raw != body if in_force else indicator.modified > modified


def _observables(indicator: Indicator) -> tuple[tuple[Observable, ...], str | None]:
    """
    @return: What of an indicator is matched, and why something of it is not.
    """
    if indicator.pattern is None:
        return (), "no pattern"
    if indicator.pattern_type != STIX:
        return (), f"pattern type {indicator.pattern_type}"
    try:
        found = matchable(indicator.pattern)
    except PatternUnmatchable as e:
        return (), e.reason
    except Invalid as e:
        return (), f"{e.field} is not {e.expected}"
    return found.observables, found.unmatched[0] if found.unmatched else None


def _covers(wide: _Network, narrow: _Network) -> bool:
    return (
        wide.version == narrow.version
        and wide.prefixlen <= narrow.prefixlen
        and narrow.network_address in wide
    )
