"""
Tests that one bad item costs one item, wherever it is met.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.access_control import AccessControl
from tbvast.bus.client_work import ClientWork
from tbvast.bus.fanout import CommittedBatch, render_entries
from tbvast.bus.ingest import Intake
from tbvast.bus.journal.schema import check_document, damage
from tbvast.bus.journal.values import JournalEntry, Outcome, Verdict
from tbvast.bus.journal.writer import JournalStore
from tbvast.errors import FileLost, Invalid, JournalFailed
from tbvast.protocol.frames import Item, render_document, stream_of
from tbvast.protocol.topics import Dialect, Stream
from tbvast.stix.indicators import Indicator, Operation, decode_indicator
from tbvast.stix.limits import LARGEST_INDICATOR
from tbvast.storage.set_aside import SetAside, SetAsideReport, Stage
from tbvast.values import Received
from tests.doubles import (
    MemoryJournal,
    MemoryPub,
    a_sighting,
    an_indicator,
    indicator_id,
    moment,
    sighting_id,
)
from tests.doubles_bus import (
    FileJournal,
    FileJournalTestCase,
    MemoryBus,
    MemoryCounters,
    MemorySub,
    a_request,
    encode_report,
    found_in,
)

ALL = 1 << 60

ERRORS = (Invalid, ValueError, OverflowError)

OLD_STATE = Path(__file__).parent / "data" / "state-0.1.0"


def unreadable(number: int = 1, **changes: Any) -> Indicator:
    """
    An indicator that cannot be read as JSON, nor rendered: as if it had been let in.
    """
    item = an_indicator(number, 1, x_size=0, spec_version=None, **changes)
    raw = item.raw.replace(b'"x_size":0', b'"x_size":' + b"1" * 5000)
    return msgspec.structs.replace(item, raw=raw)


def removal(number: int, pattern: str | None = None) -> Indicator:
    return an_indicator(number, 2, pattern=pattern, x_threatbus_update="REMOVE")


class AsideTestCase(FileJournalTestCase):
    """
    A journal in a file.
    """

    def reopen(self) -> None:
        self.file.close()
        self.open()

    def verdicts(self, *items: Item) -> list[str]:
        return [outcome.verdict.value for outcome in self.append(*items)]

    def in_force(self, limit: int = 1000) -> list[int]:
        numbers: list[int] = []
        while page := self.successResultOf(
            self.journal.current(numbers[-1] if numbers else 0, ALL, 0, limit, 1 << 30)
        ):
            numbers += [number for number, _ in page]
        return numbers

    def entries(self, limit: int = 1000) -> list[int]:
        found: list[JournalEntry] = []
        while page := self.successResultOf(
            self.journal.entries(found[-1].number if found else 0, list(Stream), limit, ALL)
        ):
            found += page
        return [each.number for each in found]

    def expire(self, limit: int = 1000) -> list[Outcome]:
        outcomes: list[Outcome] = self.successResultOf(self.journal.expire(limit))
        return outcomes

    def report(self) -> SetAsideReport:
        found: SetAsideReport = self.successResultOf(self.journal.set_aside_report())
        return found

    def aside(self) -> list[tuple[int, str, str, bytes]]:
        """
        Number, id, stage and bytes of the items that were set aside.
        """
        other = sqlite3.connect(self.path)
        try:
            return other.execute(
                "SELECT number, id, stage, body FROM set_aside ORDER BY place"
            ).fetchall()
        finally:
            other.close()

    def write(self, statement: str, *parameters: Any) -> None:
        other = sqlite3.connect(self.path)
        with other:
            other.execute(statement, parameters)
        other.close()

    def damage(self, *numbers: int, body: Any = b"damaged") -> None:
        for number in numbers:
            self.write("UPDATE entries SET body = ? WHERE number = ?", body, number)


class ReadTests(AsideTestCase):
    """
    Damaged entries are found when they are read.
    """

    def test_current(self) -> None:
        """
        A page of which some entries are damaged holds the others, and they are set aside.
        """
        self.append(*(an_indicator(n) for n in range(1, 11)))
        self.damage(1, 4, 10)
        self.assertEqual(self.in_force(), [2, 3, 5, 6, 7, 8, 9])
        self.assertEqual(
            self.aside(),
            [(n, indicator_id(n), "snapshot", b"damaged") for n in (1, 4, 10)],
        )
        self.assertEqual(self.report().count, 3)
        self.assertIn("snapshot: ", self.report().newest)
        self.assertIn("damaged", self.report().newest)
        counts = self.successResultOf(self.journal.counts())
        self.assertEqual(counts, {"indicators": 7, "sightings": 0})

    def test_whole_pages(self) -> None:
        """
        Pages that hold nothing but damage are not the end.
        """
        self.append(*(an_indicator(n) for n in range(1, 11)))
        self.damage(*range(1, 8))
        self.assertEqual(self.in_force(limit=2), [8, 9, 10])
        self.assertEqual(self.entries(limit=2), [8, 9, 10])
        self.assertEqual(self.report().count, 7)
        self.reopen()
        self.assertEqual(self.entries(limit=3), [8, 9, 10])
        self.assertEqual(self.report().count, 7)

    def test_all(self) -> None:
        """
        If all is damaged, that is the end.
        """
        self.append(an_indicator(1), a_sighting(1))
        self.damage(1, 2)
        self.assertEqual((self.in_force(), self.entries()), ([], []))
        self.assertEqual(self.report().count, 2)

    def test_replayed(self) -> None:
        """
        A replay continues behind damaged entries of both streams, which are set aside once.
        """
        self.append(an_indicator(1), a_sighting(1), a_sighting(2), an_indicator(2))
        self.damage(2, 4)
        for _ in range(2):
            self.assertEqual(self.entries(), [1, 3])
        self.assertEqual(
            [row[:3] for row in self.aside()],
            [(2, sighting_id(1), "replay"), (4, indicator_id(2), "replay")],
        )

    def test_columns(self) -> None:
        """
        So it is if a byte between the columns is damaged: a text in place of bytes, a stream
        that is none, an id that is no text.
        """
        self.append(*(an_indicator(n) for n in range(1, 8)))
        self.damage(1, body="a text")
        self.damage(2, body=7)
        self.write("UPDATE entries SET crc = 'x' WHERE number = 4")
        self.write("UPDATE entries SET id = CAST(x'ff' AS TEXT) WHERE number = 5")
        self.damage(5)
        self.write("UPDATE entries SET body = CAST(body AS TEXT) WHERE number = 7")
        self.assertEqual(self.in_force(), [3, 6])
        self.assertEqual(self.entries(), [3, 6])
        self.assertEqual([row[0] for row in self.aside()], [1, 2, 4, 5, 7])
        self.assertEqual(self.verdicts(an_indicator(8), removal(6)), ["accepted"] * 2)

    def test_too_long(self) -> None:
        """
        A sound document that is too long to be sent is set aside.
        """
        raw = an_indicator(1, note="x" * LARGEST_INDICATOR).raw
        self.append(an_indicator(1), an_indicator(2))
        self.write("UPDATE entries SET body = ?, crc = ? WHERE number = 1", raw, crc32(raw))
        self.assertEqual(self.in_force(), [2])
        self.assertIn("too long", self.report().newest)
        (row,) = self.aside()
        self.assertEqual(row[3], raw[: 64 * 1024])

    def test_disk_full(self) -> None:
        """
        If setting aside fails, sound entries are still read.
        """
        self.append(an_indicator(1), an_indicator(2))
        self.damage(1)
        self.write(
            "CREATE TRIGGER refusal BEFORE INSERT ON set_aside"
            " BEGIN SELECT raise(FAIL, 'disk full'); END"
        )
        for _ in range(2):
            self.assertEqual(self.in_force(), [2])
        self.write("DROP TRIGGER refusal")
        self.assertEqual((self.in_force(), self.report().count), ([2], 1))

    def test_found(self) -> None:
        """
        A damaged document is not found by its id.
        """
        self.append(an_indicator(1), an_indicator(2))
        self.damage(1)
        found = self.successResultOf(found_in(self.journal, [indicator_id(1), indicator_id(2)]))
        self.assertEqual(found, {indicator_id(2): an_indicator(2).raw})

    def test_file_damaged(self) -> None:
        """
        If the file itself is damaged, the service is told, and the call fails.
        """
        self.append(*(an_indicator(n, note="x" * 500) for n in range(300)))
        self.reopen()
        with self.path.open("r+b") as file:
            file.seek(self.path.stat().st_size // 8192 // 2 * 8192)
            file.write(b"\xff" * 8192)
        e = self.failureResultOf(self.journal.entries(0, list(Stream), 1000, ALL), JournalFailed)
        self.assertEqual(self.file.lost, [str(e.value)])
        self.assertIn("move it away", str(e.value))


class WriteTests(AsideTestCase):
    """
    Items that fail when they are written.
    """

    def test_removed(self) -> None:
        """
        The removal of an unreadable entry is forwarded with all that is known of it, together
        with the rest of its batch.
        """
        self.append(an_indicator(1), unreadable(2), an_indicator(3), an_indicator(4))
        self.damage(3)
        outcomes = self.append(an_indicator(5), removal(2), removal(3), removal(4), a_sighting())
        self.assertEqual([o.number for o in outcomes], [5, 6, 7, 8, 9])
        patterns = [an_indicator(2).pattern, f"[indicator:id = '{indicator_id(3)}']"]
        for outcome, number, pattern in zip(outcomes[1:3], (2, 3), patterns, strict=True):
            item = outcome.item
            assert isinstance(item, Indicator)
            self.assertEqual(
                (item.id, item.operation, item.modified, item.pattern),
                (indicator_id(number), Operation.REMOVE, 2_000_000, pattern),
            )
            self.assertEqual(decode_indicator(item.raw).pattern, pattern)
        self.assertEqual([row[:3] for row in self.aside()], [
            (2, indicator_id(2), "removal"), (3, indicator_id(3), "removal"),
        ])  # fmt: skip
        self.assertEqual((self.in_force(), self.entries()), ([1, 5], [1, 4, 5, 6, 7, 8, 9]))
        self.assertEqual(self.verdicts(removal(2)), ["repeated"])

    def test_expired(self) -> None:
        """
        When an unreadable entry expires, so do the others, and its subscribers get a removal.
        """
        ending: Any = {"valid_until": moment(100)}
        self.append(
            an_indicator(1, **ending), unreadable(2, **ending), an_indicator(3, **ending),
            an_indicator(4, **ending), an_indicator(5),
        )  # fmt: skip
        self.damage(4)
        self.clock.advance(100)
        outcomes = self.expire()
        self.assertEqual([o.number for o in outcomes], [6, 7, 8, 9])
        self.assertEqual({o.item.id for o in outcomes}, {indicator_id(n) for n in range(1, 5)})
        for outcome in outcomes:
            self.assertEqual(decode_indicator(outcome.item.raw).operation, Operation.REMOVE)
        self.assertEqual([row[2] for row in self.aside()], ["expiry", "expiry"])
        self.reopen()
        self.assertEqual((self.expire(), self.in_force()), ([], [5]))
        self.assertEqual(self.verdicts(an_indicator(4, **ending)), ["outdated"])

    def test_not_latest(self) -> None:
        """
        An entry that is not the latest of its id, according to the index, ends without a
        removal.
        """
        ending: Any = {"valid_until": moment(100)}
        self.append(an_indicator(1, **ending), an_indicator(2, **ending))
        other = indicator_id(9)
        self.write("UPDATE entries SET id = ? WHERE number = 1", other)
        self.clock.advance(100)
        self.assertEqual([o.item.id for o in self.expire()], [indicator_id(2)])
        self.assertEqual(self.expire(), [])

    def test_unreadable_id(self) -> None:
        """
        An entry with a damaged id, or one that may no longer be sent, ends without a removal;
        the others get one.
        """
        ending: Any = {"valid_until": moment(100)}
        self.append(*[an_indicator(n, **ending) for n in range(1, 5)])
        self.write("UPDATE entries SET id = CAST(x'696e64ff' AS TEXT) WHERE number = 1")
        nil = "indicator--00000000-0000-0000-0000-000000000000"
        self.write("UPDATE entries SET id = ?, body = x'', crc = 0 WHERE number = 2", nil)
        self.clock.advance(100)
        outcomes = self.expire()
        self.assertEqual([o.item.id for o in outcomes], [indicator_id(3), indicator_id(4)])
        self.assertEqual([(row[0], row[2]) for row in self.aside()], [(1, "expiry")])
        self.assertEqual((self.expire(), self.in_force()), ([], []))

    def test_comes_again(self) -> None:
        """
        After an item was set aside, the same version and later ones are accepted; an earlier
        one is not. A sighting is accepted again.
        """
        self.clock.advance(50)
        self.append(an_indicator(1, 5), an_indicator(2, 5), a_sighting(1))
        self.damage(1, 2, 3)
        self.entries()
        self.assertEqual(
            self.verdicts(
                an_indicator(1, 4), an_indicator(1, 5), an_indicator(1, 5), an_indicator(2, 6),
                a_sighting(1), a_sighting(1),
            ),
            ["outdated", "accepted", "repeated", "accepted", "accepted", "repeated"],
        )  # fmt: skip
        self.assertEqual(self.entries(), [4, 5, 6])
        self.reopen()
        self.assertEqual(self.verdicts(an_indicator(1, 5), a_sighting(1)), ["repeated"] * 2)

    def test_unencodable(self) -> None:
        """
        Items that cannot be sent to the other process are set aside; nothing overtakes the
        rest.
        """
        item = msgspec.structs.replace(an_indicator(2), modified=1 << 70)
        outcomes = self.append(an_indicator(1), item, an_indicator(3))
        self.assertEqual([o.verdict.value for o in outcomes], ["accepted", "refused", "accepted"])
        self.assertEqual([o.number for o in outcomes], [1, 0, 2])
        self.assertEqual(outcomes[1].item, item)
        self.assertEqual(self.aside(), [(0, indicator_id(2), "append", item.raw)])
        self.assertEqual(self.journal.head, 2)
        self.assertEqual(self.append(item)[0].verdict, Verdict.REFUSED)

    def test_unwritable(self) -> None:
        """
        Items that the file cannot store are set aside, as if they had not been in the batch.
        """
        self.append(an_indicator(1), an_indicator(2))
        item = msgspec.structs.replace(an_indicator(2, 3), modified=1 << 63)
        self.assertEqual(
            self.verdicts(an_indicator(1, 2), item, an_indicator(3), item, an_indicator(2, 4)),
            ["accepted", "refused", "accepted", "refused", "accepted"],
        )
        self.assertEqual(self.in_force(), [3, 4, 5])
        self.assertEqual([row[2] for row in self.aside()], ["append", "append"])

    def test_unwritable_removal(self) -> None:
        """
        So is a removal, which the journal completes before it writes it.
        """
        self.append(an_indicator(1), an_indicator(2))
        for pattern in (None, "[ipv4-addr:value = '192.0.2.1']"):
            item = removal(1, pattern=pattern)
            item = msgspec.structs.replace(item, modified=1 << 63)
            self.assertEqual(self.verdicts(item, an_indicator(2, 2))[0], "refused")
        self.assertEqual(self.in_force(), [1, 3])

    def test_unexpected(self) -> None:
        """
        Whatever else is wrong with an item of a batch, it alone is refused.
        """
        item: Any = msgspec.structs.replace(an_indicator(2, 2), modified="soon")
        store = self.file.store
        store.append([an_indicator(2)], 0.0)
        outcomes = store.append([an_indicator(1), item, removal(2), a_sighting()], 0.0)
        self.assertEqual(
            [o.verdict.value for o in outcomes], ["accepted", "refused", "accepted", "accepted"]
        )
        self.assertEqual([row[2] for row in self.aside()], ["append"])

    def test_disk_error(self) -> None:
        """
        If the disk refuses, nothing is set aside.
        """
        self.write("ALTER TABLE entries RENAME TO elsewhere")
        self.failureResultOf(self.journal.append([an_indicator(1)]), JournalFailed)
        self.write("ALTER TABLE elsewhere RENAME TO entries")
        self.assertEqual(self.report(), SetAsideReport())


class ContractTests(SynchronousTestCase):
    """
    The contract of every journal for items that are set aside.
    """

    def check(self, journal: Any) -> None:
        def result(d: Deferred[Any]) -> Any:
            return self.successResultOf(d)

        one, two, seen = an_indicator(1), an_indicator(2), a_sighting(1)
        result(journal.append([one, two, seen, an_indicator(3)]))
        self.assertEqual(result(journal.set_aside_report()), SetAsideReport())
        result(
            journal.set_aside(
                [
                    SetAside(Stage.DELIVERY, "why", seen.raw, "sighting", seen.id, 3),
                    SetAside(Stage.SNAPSHOT, "because", one.raw, "indicator", one.id),
                ]
            )
        )
        newest = f"snapshot: {one.id}: because"
        self.assertEqual(result(journal.set_aside_report()), SetAsideReport(2, newest))
        # Once is enough.
        again = SetAside(Stage.REPLAY, "again", one.raw, "indicator", one.id, 1)
        result(journal.set_aside([again]))
        self.assertEqual(result(journal.set_aside_report()), SetAsideReport(2, newest))
        self.assertEqual([n for n, _ in result(journal.current(0, ALL, 0, 10, 1 << 30))], [2, 4])
        entries = result(journal.entries(0, list(Stream), 10, ALL))
        self.assertEqual([each.number for each in entries], [2, 4])
        self.assertEqual(result(journal.counts()), {"indicators": 2, "sightings": 0})
        self.assertEqual(result(found_in(journal, [one.id, two.id])), {two.id: two.raw})
        # An item without an entry is stored as well.
        result(journal.set_aside([SetAside(Stage.INTAKE, "odd", two.raw)]))
        self.assertEqual(result(journal.set_aside_report()).count, 3)
        self.assertEqual([n for n, _ in result(journal.current(0, ALL, 0, 10, 1 << 30))], [2, 4])
        # It can come again, and be removed.
        (outcome,) = result(journal.append([one]))
        self.assertEqual((outcome.verdict, outcome.number), (Verdict.ACCEPTED, 5))
        (outcome,) = result(journal.append([removal(1)]))
        self.assertEqual((outcome.verdict, outcome.number), (Verdict.ACCEPTED, 6))

    def test_memory(self) -> None:
        """
        The double.
        """
        self.check(MemoryJournal(Clock()))

    def test_file(self) -> None:
        """
        The file.
        """
        file = FileJournal(Path(self.mktemp()), Clock())
        self.addCleanup(file.close)
        self.check(file.journal)


class EveryWayOutTests(SynchronousTestCase):
    """
    Any subset of the documents is damaged.
    """

    COUNT = 8

    @settings(max_examples=50, deadline=None)
    @example({1: "\0", 2: "", 9: "\0"}, 1)
    @given(
        st.dictionaries(
            st.integers(1, COUNT + 2),
            st.binary(max_size=40) | st.text(max_size=9),
        ),
        st.integers(1, 4),
    )
    def test_others(self, damaged: dict[int, Any], limit: int) -> None:
        """
        Everything else comes through every way out, exactly once: to all dialects, by
        pages of any size, as a removal, and when it expires.
        """
        clock = Clock()
        path = Path(self.mktemp())
        file = FileJournal(path, clock)
        items: list[Item] = [
            an_indicator(n, valid_until=None if n % 2 else moment(100))
            for n in range(1, self.COUNT + 1)
        ]
        items += [a_sighting(1), a_sighting(2)]
        try:
            self.successResultOf(file.journal.append(items))
            other = sqlite3.connect(path)
            with other:
                other.executemany(
                    "UPDATE entries SET body = ? WHERE number = ?",
                    [(body, number) for number, body in damaged.items()],
                )
            other.close()
            good = {n: item for n, item in enumerate(items, 1) if n not in damaged}
            self.check_read(file, good, limit)
            self.check_ended(file, clock, good, limit)
            aside = sum(body != b"" for body in damaged.values())
            report = self.successResultOf(file.journal.set_aside_report())
            self.assertEqual(report.count, aside)
        finally:
            file.close()
            path.unlink()

    def check_read(self, file: FileJournal, good: dict[int, Item], limit: int) -> None:
        journal = file.journal
        current: list[tuple[int, bytes]] = []
        while page := self.successResultOf(
            journal.current(current[-1][0] if current else 0, ALL, 0, limit, 1 << 30)
        ):
            current += page
        expected = [(n, item.raw) for n, item in good.items() if isinstance(item, Indicator)]
        self.assertEqual(current, expected)
        for dialect in Dialect:
            for _, raw in current:
                self.assertEqual(len(render_document(dialect, Stream.INTEL, raw)), 1)
        entries: list[JournalEntry] = []
        while found := self.successResultOf(
            journal.entries(entries[-1].number if entries else 0, list(Stream), limit, ALL)
        ):
            entries += found
        self.assertEqual(
            entries, [JournalEntry(n, stream_of(item), item.raw) for n, item in good.items()]
        )

    def check_ended(
        self, file: FileJournal, clock: Clock, good: dict[int, Item], limit: int
    ) -> None:
        journal = file.journal
        every = range(1, self.COUNT + 1)
        outcomes: list[Outcome] = []
        for numbers in (every[::4], every[2::4]):  # which do not expire
            removals: list[Item] = [removal(n) for n in numbers]
            removed: list[Outcome] = self.successResultOf(journal.append(removals))
            outcomes += removed
        clock.advance(100)
        while expired := self.successResultOf(journal.expire(limit)):
            outcomes += expired
        self.assertCountEqual([o.item.id for o in outcomes], [indicator_id(n) for n in every])
        for outcome in outcomes:
            item = outcome.item
            assert isinstance(item, Indicator)
            self.assertEqual(decode_indicator(item.raw).operation, Operation.REMOVE)
            number = next(n for n in every if indicator_id(n) == item.id)
            if number in good:
                self.assertEqual(item.pattern, an_indicator(number).pattern)
        self.assertEqual(self.successResultOf(journal.current(0, ALL, 0, ALL, 1 << 30)), [])


class UpgradeTests(SynchronousTestCase):
    """
    A journal that 0.1.0 has written.
    """

    def setUp(self) -> None:
        self.contents = json.loads((OLD_STATE / "contents.json").read_text())
        self.path = Path(self.mktemp())
        self.path.write_bytes(gzip.decompress((OLD_STATE / "journal.db.gz").read_bytes()))

    def test_checked(self) -> None:
        """
        After the upgrade, every entry has a checksum; those that could not be delivered are set
        aside.
        """
        for _ in range(2):
            store = JournalStore(self.path, "new")
            self.assertEqual(store.head, self.contents["entries"])
            rows = store._connection.execute("SELECT body, crc FROM entries").fetchall()
            self.assertEqual(len(rows), self.contents["entries"])
            self.assertTrue(all(crc32(body) == crc for body, crc in rows))
            aside = store._connection.execute(
                "SELECT id, stage FROM set_aside ORDER BY place"
            ).fetchall()
            self.assertCountEqual(aside, [(id, "upgrade") for id in self.contents["bad"].values()])
            store.close()

    def test_interrupted(self) -> None:
        """
        An interrupted upgrade continues.
        """
        copy = self.path.with_name("copy")
        shutil.copy(self.path, copy)
        store = JournalStore(copy, "new")
        expected = store._connection.execute("SELECT number, body, crc FROM entries").fetchall()
        store._connection.execute("UPDATE entries SET crc = NULL WHERE number > 10")
        store._connection.execute("UPDATE meta SET value = '10' WHERE key = 'checked_until'")
        store.close()
        store = JournalStore(copy, "new")
        found = store._connection.execute("SELECT number, body, crc FROM entries").fetchall()
        # Items that had been set aside stay so.
        self.assertEqual([row[0] for row in found], [row[0] for row in expected])
        self.assertEqual([row for row in found if row[1]], [row for row in expected if row[1]])
        store.close()


class SoundnessTests(SynchronousTestCase):
    """
    Tests for L{damage} and L{check_document}.
    """

    def test_sound(self) -> None:
        """
        An entry that would still be accepted passes the check.
        """
        for stream, item in ((Stream.INTEL, an_indicator(1)), (Stream.SIGHTING, a_sighting(1))):
            self.assertIsNone(damage(stream, item.raw, crc32(item.raw)))
            check_document(stream, item.id, item.raw)

    def test_unsound(self) -> None:
        """
        A document that could not be delivered fails the check.
        """
        raw = an_indicator(1).raw
        for bad in (
            b"", b"{}", raw[:-1], unreadable(1).raw, a_sighting(1).raw, an_indicator(2).raw,
            an_indicator(1, note="x" * LARGEST_INDICATOR).raw,
            raw.replace(b'"type"', b'"x":1e400,"type"'),
        ):  # fmt: skip
            with self.subTest(bad[:60]):
                self.assertRaises(ERRORS, check_document, Stream.INTEL, indicator_id(1), bad)


class CommitTests(SynchronousTestCase):
    """
    Tests for a L{CommittedBatch} with items that cannot be rendered.
    """

    def setUp(self) -> None:
        self.aside: list[SetAside] = []
        self.items: list[Item] = [an_indicator(1), unreadable(2), a_sighting(1), an_indicator(3)]

    def commit(self) -> CommittedBatch:
        return CommittedBatch(list(enumerate(self.items, 1)), self.aside.extend)

    def test_old_dialect(self) -> None:
        """
        Subscribers of the old dialect get all others; once is it set aside, and it is in no
        form that is made later.
        """
        commit = self.commit()
        for streams in (frozenset(Stream), frozenset([Stream.INTEL])):
            payloads = commit.numbered(Dialect.STIX2, streams)[1]
            self.assertEqual(len(payloads), 1 + len(streams))
        self.assertEqual(
            [(each.number, each.id, each.stage) for each in self.aside],
            [(2, indicator_id(2), Stage.DELIVERY)],
        )
        (chunk,) = commit.chunks(frozenset(Stream))
        self.assertEqual(
            (chunk.until, chunk.items.count(b"[4,"), chunk.items.count(b"[2,")), (4, 1, 0)
        )
        self.assertEqual(len(commit.numbered(Dialect.VAST, frozenset(Stream))[1]), 3)

    def test_too_long(self) -> None:
        """
        A document that is too long is in no frame of tbvast/1.
        """
        self.items[1] = an_indicator(2, note="x" * LARGEST_INDICATOR)
        (chunk,) = self.commit().chunks(frozenset(Stream))
        self.assertEqual((chunk.until, len(chunk.items) < 10_000), (4, True))
        self.assertEqual([each.number for each in self.aside], [2])
        self.assertIn("too long", self.aside[0].reason)

    def test_long(self) -> None:
        """
        Of a sighting that is longer than an indicator may be nothing is set aside.
        """
        asked: list[Any] = []
        item = a_sighting(1)
        long = msgspec.structs.replace(item, raw=item.raw + b" " * LARGEST_INDICATOR)
        CommittedBatch([(1, long)], asked.append).chunks(frozenset(Stream))
        self.assertEqual(asked, [])

    def test_nothing_left(self) -> None:
        """
        Nothing is sent of a commit of which nothing can be.
        """
        self.items = [unreadable(1)]
        commit = self.commit()
        self.assertEqual(commit.numbered(Dialect.STIX2, frozenset(Stream))[1], [])
        self.assertEqual(commit.chunks(frozenset(Stream)), [])

    def test_each(self) -> None:
        """
        An item that is rendered as several frames is left out as a whole.
        """
        pattern = "[ipv4-addr:value = '192.0.2.1' OR ipv4-addr:value = '192.0.2.2']"
        documents = [an_indicator(n, pattern=pattern).raw for n in (1, 2, 3)]
        documents[1] = documents[1][:-1]
        numbers, frames = render_entries(
            Dialect.VAST,
            [JournalEntry(n, Stream.INTEL, raw) for n, raw in enumerate(documents, 1)],
            Stage.DELIVERY,
            self.aside.extend,
        )
        self.assertEqual((numbers, len(frames)), ([1, 1, 3, 3], 4))
        self.assertEqual(
            [(each.number, each.id, each.stage) for each in self.aside],
            [(2, indicator_id(2), Stage.DELIVERY)],
        )


class BusTestCase(SynchronousTestCase):
    """
    Subscribers of a journal with items that cannot be rendered.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = MemoryJournal(self.clock, "bus")
        self.pub = MemoryPub()
        self.bus = MemoryBus(self.clock, self.journal, self.pub)
        self.subscriptions = self.bus.subscriptions
        self.snapshots = self.bus.snapshots
        self.counters = MemoryCounters()
        self.work = ClientWork(self.clock)
        self.intake = Intake(
            self.clock,
            self.work,
            self.journal,
            AccessControl(None),
            self.counters,
            self.bus.deliver,
            lambda envelope: None,
            MemorySub(),
            60,
        )

    def subscribe(self, topic: str) -> Any:
        subscription = self.bus.open(a_request(topic))
        self.subscriptions.attach(subscription.topic.encode())
        self.clock.advance(0.01)
        return subscription

    def test_snapshot(self) -> None:
        """
        A snapshot has all other items; the one that cannot be rendered is set aside.
        """
        self.journal.append([an_indicator(1), unreadable(2), an_indicator(3)])
        subscription = self.subscribe("stix2/indicator")
        self.snapshots.deliver(subscription, None)
        self.clock.pump([0.01] * 10)
        self.assertEqual(len(self.pub.to(subscription.topic)), 2)
        self.assertEqual(
            [(each.number, each.stage) for each in self.journal.aside], [(2, Stage.SNAPSHOT)]
        )

    def test_unexpected(self) -> None:
        """
        A message that meets a defect is set aside, and those around it are taken in.
        """

        def may(user: str, permission: str) -> bool:
            if user == "odd":
                raise ZeroDivisionError("of some code")
            return True

        self.intake._access.may = may  # type: ignore[method-assign]
        frames = [encode_report(an_indicator(n)) for n in (1, 2, 3)]
        self.intake.receive(
            [Received(user, [frame]) for user, frame in zip(("", "odd", ""), frames, strict=True)]
        )
        self.clock.advance(0)
        self.assertEqual(self.journal.head, 2)
        (aside,) = self.journal.aside
        self.assertEqual((aside.stage, aside.body), (Stage.INTAKE, frames[1]))
        self.assertEqual(self.counters.counts["message", "refused"], 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

        work = self.intake.publish([an_indicator(4).raw, an_indicator(5).raw], "odd")
        published = self.work.do("odd", work)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(published).outcomes, ["refused"] * 2)
        published = self.work.do("", self.intake.publish([an_indicator(4).raw]))
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(published).outcomes, ["accepted"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_restored(self) -> None:
        """
        A remembered subscription that cannot be read is forgotten, and no other.
        """
        self.bus.start()
        kept = self.bus.open(a_request("stix2/indicator"))
        self.clock.advance(5)
        self.successResultOf(self.bus.stop())
        self.journal.saved |= {"a": b"\xff", "b": b"{}"}
        self.bus = MemoryBus(self.clock, self.journal, self.pub)
        self.bus.start()
        everybody = self.bus.subscriptions.everybody()
        self.assertEqual([each.topic for each in everybody], [kept.topic])
        self.assertEqual(
            {(each.body, each.stage) for each in self.journal.aside},
            {(b"\xff", Stage.SUBSCRIPTION), (b"{}", Stage.SUBSCRIPTION)},
        )
        self.clock.advance(5)
        self.assertEqual(self.journal.saved.keys(), {kept.topic})
        self.successResultOf(self.bus.stop())


class LossTests(SynchronousTestCase):
    """
    The loss of the journal's file.
    """

    def test_store(self) -> None:
        """
        The store's guard notices it, and writes the file again.
        """
        path = Path(self.mktemp())
        store = JournalStore(path, "new")
        self.addCleanup(store.close)
        path.unlink()
        self.assertRaises(FileLost, store.guard.check)
        self.assertTrue(path.exists())
