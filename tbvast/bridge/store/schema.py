"""
The tables of the bridge's store, and their upgrades.
"""

from __future__ import annotations

from tbvast.storage.digest_index import INDEXED_TABLE, index_table
from tbvast.storage.set_aside import SET_ASIDE_TABLE

FIRST_SCHEMA = """
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

NO_END = 1 << 62
"""
The C{valid_until} of an indicator without one.
"""

NUMBERED = f"""
DROP INDEX unsearched;
DROP INDEX expiring;
ALTER TABLE indicators RENAME TO named;
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
INSERT INTO indicators (
    id, digest, modified, valid_from, valid_until, state, change, searched, generation,
    wanted, unmatched, body
) SELECT
    id, digest_of(id), modified, 0, coalesce(valid_until, {NO_END}), in_force, change,
    searched, generation,
    (SELECT json_group_array(json_array(kind, value, 0)) FROM terms WHERE terms.id = named.id),
    '[]',
    body
FROM named;
DROP TABLE named;
CREATE INDEX by_digest ON indicators (digest);
CREATE INDEX by_state ON indicators (state, searched, change);
CREATE INDEX beginning ON indicators (valid_from) WHERE state = 2;
CREATE INDEX ending ON indicators (valid_until) WHERE state != 0 AND valid_until < {NO_END};
CREATE INDEX unmatched ON indicators (change) WHERE state = 1 AND unmatched != '[]';
ALTER TABLE terms RENAME TO named_terms;
CREATE TABLE terms (
    digest INTEGER NOT NULL,
    number INTEGER NOT NULL,
    network INTEGER NOT NULL,
    PRIMARY KEY (digest, number)
) WITHOUT ROWID;
CREATE INDEX networks ON terms (number) WHERE network;
INSERT OR IGNORE INTO terms
SELECT digest_of(kind || ' ' || value), number, kind = 'network'
FROM named_terms JOIN indicators ON indicators.id = named_terms.id;
DROP TABLE named_terms;
ALTER TABLE position ADD COLUMN rules INTEGER NOT NULL DEFAULT 0
"""

GATHERED = f"""
DROP INDEX by_digest;
DROP INDEX networks;
{INDEXED_TABLE};
{index_table("ids")};
INSERT INTO ids SELECT digest, number FROM indicators ORDER BY digest, number;
CREATE TABLE networks (number INTEGER PRIMARY KEY);
INSERT INTO networks SELECT DISTINCT number FROM terms WHERE network;
ALTER TABLE terms RENAME TO wide_terms;
{index_table("terms")};
INSERT INTO terms SELECT digest, number FROM wide_terms ORDER BY digest, number;
DROP TABLE wide_terms;
INSERT INTO indexed SELECT 'ids', coalesce(max(number), 0) FROM indicators;
INSERT INTO indexed SELECT 'terms', coalesce(max(number), 0) FROM indicators
"""

BY_TWO_CLOCKS = """
ALTER TABLE covered ADD COLUMN awake REAL NOT NULL DEFAULT 0;
ALTER TABLE covered ADD COLUMN boot TEXT NOT NULL DEFAULT ''
"""


VERSIONS = [FIRST_SCHEMA, NUMBERED, GATHERED, SET_ASIDE_TABLE, BY_TWO_CLOCKS]
"""
The SQL from each version to the next; it needs the function C{digest_of}.
"""
