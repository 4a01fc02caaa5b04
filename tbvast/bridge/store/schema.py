"""
The tables of the bridge's store, and their upgrades.
"""

from __future__ import annotations

from tbvast.storage.digest_index import INDEXED_TABLE, index_table
from tbvast.storage.set_aside import SET_ASIDE_TABLE

NO_END = 1 << 62
"""
The C{valid_until} of an indicator without one.
"""

OLDEST_VERSION = 3
OLDEST_SCHEMA = f"""
CREATE TABLE indicators (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    digest INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    valid_from INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    state INTEGER NOT NULL,
    change INTEGER NOT NULL,
    searched INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    wanted TEXT NOT NULL,
    unmatched TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX by_state ON indicators (state, searched, change);
CREATE INDEX beginning ON indicators (valid_from) WHERE state = 2;
CREATE INDEX ending ON indicators (valid_until) WHERE state != 0 AND valid_until < {NO_END};
CREATE INDEX unmatched ON indicators (change) WHERE state = 1 AND unmatched != '[]';
{INDEXED_TABLE};
{index_table("ids")};
{index_table("terms")};
CREATE TABLE networks (number INTEGER PRIMARY KEY);
CREATE TABLE sightings (
    id TEXT PRIMARY KEY,
    made INTEGER NOT NULL,
    body BLOB
) WITHOUT ROWID;
CREATE INDEX unsent ON sightings (made) WHERE body IS NOT NULL;
CREATE TABLE position (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    plugin TEXT,
    number INTEGER,
    generation INTEGER NOT NULL,
    rules INTEGER NOT NULL DEFAULT 0
);
INSERT INTO position VALUES (1, NULL, NULL, 0, 0);
CREATE TABLE covered (only INTEGER PRIMARY KEY CHECK (only = 1), until REAL NOT NULL)
"""
"""
The schema of tbvast 0.1.0, and its version.
"""

BY_TWO_CLOCKS = """
ALTER TABLE covered ADD COLUMN awake REAL NOT NULL DEFAULT 0;
ALTER TABLE covered ADD COLUMN boot TEXT NOT NULL DEFAULT ''
"""

IDENTIFIED = """
CREATE TABLE identity (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT NOT NULL);
INSERT INTO identity VALUES (1, lower(hex(randomblob(8))))
"""

VERSIONS = [OLDEST_SCHEMA, SET_ASIDE_TABLE, BY_TWO_CLOCKS, IDENTIFIED]
"""
The SQL for the oldest version, and from each version to the next.
"""
