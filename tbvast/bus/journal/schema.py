"""
The format of the journal's file, which the writer and the reader share.

One table holds every accepted item under its number. A row's C{state} says whether it is
the latest version of its STIX id, and whether that version is in force. The latest versions
are indexed by a digest of the id, an eighth of the size of an index of the ids themselves;
it finds repeats.

A row whose document cannot be handled is set aside: its C{body} moves to another table, and
an empty one stays. It is never sent again and causes no more failures; a later version, a
removal or its expiry replaces it like any other row.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from tbvast.errors import JournalFailed
from tbvast.protocol.frames import stream_of
from tbvast.protocol.topics import Stream
from tbvast.stix.admission import admit
from tbvast.stix.limits import LARGEST_INDICATOR, LARGEST_SIGHTING
from tbvast.storage.digest_index import INDEXED_TABLE, index_table
from tbvast.storage.file_guard import damage_of
from tbvast.storage.set_aside import SET_ASIDE_TABLE, SetAside, Stage

OLDEST_VERSION = 3
_OLDEST_SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    stream INTEGER NOT NULL,
    id TEXT NOT NULL,
    received INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    valid_until INTEGER,
    state INTEGER NOT NULL,
    body BLOB NOT NULL,
    digest INTEGER
);
{index_table("latest")};
{INDEXED_TABLE};
CREATE INDEX expiring ON entries (valid_until) WHERE state = 1 AND valid_until IS NOT NULL;
CREATE INDEX history ON entries (number) WHERE stream != 1 OR state != 1;
CREATE INDEX sightings ON entries (number) WHERE stream = 2;
CREATE TABLE subscriptions (topic TEXT PRIMARY KEY, request BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE positions (
    reader TEXT PRIMARY KEY,
    plugin TEXT NOT NULL,
    number INTEGER NOT NULL
) WITHOUT ROWID
"""
"""
The schema of tbvast 0.1.0, and its version.
"""

_OWNED = """
ALTER TABLE entries ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE entries ADD COLUMN decided TEXT NOT NULL DEFAULT ''
"""
"""
The owner of each indicator, and its earlier decided versions, which each later row of the
same id takes over. Older rows have neither.
"""

_CHECKED = f"ALTER TABLE entries ADD COLUMN crc INTEGER; {SET_ASIDE_TABLE}"
"""
Adds a checksum of its body to each entry.
"""

MIGRATIONS = (_OLDEST_SCHEMA, _OWNED, _CHECKED)
"""
SQL for L{tbvast.storage.sqlite.migrate}: the oldest version, and from each one to the next.
"""

BODY = "coalesce(CAST(body AS BLOB), x'')"
"""
SQL for a body. In a damaged row, the column may have another type.
"""

HAS_BODY = "(length(body) > 0 OR typeof(body) != 'blob')"
"""
SQL that tells whether an entry still has its body: that of a set-aside entry is empty. The
length of a text ends at its first NUL.
"""

STREAM_NUMBER = {Stream.INTEL: 1, Stream.SIGHTING: 2}
"""
The column C{stream} of a row.
"""

STREAM_OF_NUMBER = {number: stream for stream, number in STREAM_NUMBER.items()}

MOST_BYTES = {Stream.INTEL: LARGEST_INDICATOR, Stream.SIGHTING: LARGEST_SIGHTING}
"""
The most bytes of a document: subscribers may refuse a frame with a longer one.
"""

SUPERSEDED, IN_FORCE, ENDED, LAPSED = range(4)
"""
The column C{state} of a row: L{ENDED} by a removal, or L{LAPSED} because it was no longer
valid by the bus's calendar. They are plain integers because the module C{sqlite3} is many
times slower with other types, which it first tries to adapt.
"""

DAMAGE_ADVICE = (
    "the file is damaged: move it away, with {path}-wal and {path}-shm, to begin with an empty"
    " journal, and put a copy in its place if there is one; sqlite3 {path} .recover prints what"
    " can still be read of it"
)
"""
Advice to an administrator about a damaged file.
"""


@contextlib.contextmanager
def journal_errors(action: str, path: Path) -> Iterator[None]:
    """
    Turn errors of SQLite and of the system into L{JournalFailed}.

    @param action: What is done to the journal, as a verb for the message, e.g. C{"read"}.
    @param path: The journal's file.
    @raise JournalFailed: In place of such an error.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as e:
        advice = f"; {DAMAGE_ADVICE.format(path=path)}" if damage_of(e) else ""
        raise JournalFailed(f"cannot {action} the journal {path}: {e}{advice}") from e


def readable_text(raw: bytes) -> str:
    """
    Decode text from the file. One damaged byte must not make the rest unreadable.
    """
    return raw.decode("utf-8", "replace")


FLOOR = "floor"
CHECKED = "checked_until"
"""
The keys of C{meta} for the number up to which entries may have been pruned, and for the number
up to which all have a checksum.
"""


def read_number(connection: sqlite3.Connection, key: str) -> int:
    """
    @param key: A key of C{meta}.
    @return: Its value; C{0} if there is none.
    """
    (value,) = connection.execute(
        "SELECT coalesce(max(CAST(value AS INTEGER)), 0) FROM meta WHERE key = ?", (key,)
    ).fetchone()
    return int(value)


def set_aside_row(
    number: int, stream: int, id: str, body: bytes, stage: Stage, reason: str
) -> SetAside:
    """
    Make an item to set aside from an entry that cannot be handled.

    @param number: The entry's number; C{0} if it has none yet.
    @param stream: The column C{stream} of its row, which may be damaged.
    """
    known = STREAM_OF_NUMBER.get(stream)
    type_ = "" if known is None else known.value.decode()
    return SetAside(stage, reason, bytes(body), type_, str(id), number)


def damage(stream: Stream, body: bytes, crc: int) -> str | None:
    """
    @param crc: The checksum that was written with the document.
    @return: The reason not to deliver the document; C{None} if it is sound.
    """
    if not isinstance(body, bytes) or crc32(body) != crc:
        return "damaged: the checksum is not that of the document"
    if len(body) > MOST_BYTES[stream]:
        return f"of {len(body)} bytes, too long to be sent"
    return None


def check_document(stream: Stream, id: str, body: bytes) -> None:
    """
    Check that a document without a checksum would be accepted today.

    @param id: The id under which it was accepted.
    @raise Exception: If it would not; the text gives the reason.
    """
    if (found := damage(stream, body, crc32(body))) is not None:
        raise ValueError(found)
    item = admit(body)
    if stream_of(item) is not stream or item.id != id:
        raise ValueError(f"it is the document of {item.id}")
