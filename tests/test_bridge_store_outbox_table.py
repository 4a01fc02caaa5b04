"""
Tests for L{tbvast.bridge.store.outbox_table}.
"""

from __future__ import annotations

from tbvast.bridge.store.outbox_table import SIGHTING_MEMORY_DAYS
from tbvast.values import PageRequest
from tests.doubles import DAY, a_sighting
from tests.doubles_bridge import FileStoreTestCase


class OutboxTableTests(FileStoreTestCase):
    """
    Tests for L{OutboxTable}.
    """

    def open(self) -> None:
        super().open()
        self.outbox = self.store.outbox

    def test_remember(self) -> None:
        """
        A sighting is new once, and waits, in another process too.
        """
        one = a_sighting(1)
        self.assertEqual(self.outbox.remember([one, one], 0.0), (1, None))
        self.assertEqual(self.outbox.remember([one], 1.0), (0, None))
        self.reopen()
        self.assertEqual(self.outbox.page(PageRequest(10, 1000)), [(one.id, one.raw)])
        self.assertEqual(self.store.counts()["unsent"], 1)

    def test_oldest_first(self) -> None:
        """
        The oldest are given first, as many as wanted.
        """
        self.outbox.remember([a_sighting(2)], 1.0)
        self.outbox.remember([a_sighting(1)], 2.0)
        self.assertEqual(
            [id for id, _ in self.outbox.page(PageRequest(1, 1000))], [a_sighting(2).id]
        )

    def test_sent(self) -> None:
        """
        A sent sighting does not wait, and is not stored again.
        """
        one = a_sighting(1)
        self.outbox.remember([one], 0.0)
        self.outbox.mark_sent([one.id])
        self.assertEqual(self.outbox.page(PageRequest(10, 1000)), [])
        self.assertEqual(self.outbox.remember([one], 1.0), (0, None))

    def test_forget(self) -> None:
        """
        Sightings that were sent long ago are pruned; waiting ones never are.
        """
        sent, waiting = a_sighting(1), a_sighting(2)
        self.outbox.remember([sent, waiting], 0.0)
        self.outbox.mark_sent([sent.id])
        self.outbox.prune(SIGHTING_MEMORY_DAYS * DAY)
        self.assertEqual(self.outbox.remember([sent], 0.0), (0, None))
        self.outbox.prune(SIGHTING_MEMORY_DAYS * DAY + 1)
        self.assertEqual(self.outbox.page(PageRequest(10, 1000)), [(waiting.id, waiting.raw)])
        self.assertEqual(self.outbox.remember([sent], 0.0), (1, None))

    def test_unsent(self) -> None:
        """
        A page has a limit of bytes and of sightings, and leaves some out; the first is in
        it however long it is.
        """
        for number in range(1, 6):
            self.outbox.remember([a_sighting(number, x="y" * 1000)], float(number))
        ids = [a_sighting(number).id for number in range(1, 6)]
        for limit, size, without, expected in (
            (10, 1 << 20, [], ids),
            (2, 1 << 20, [], ids[:2]),
            (10, 1, [], ids[:1]),
            (10, 3000, ids[:1], ids[1:3]),
            (10, 1 << 20, ids, []),
        ):
            page = self.outbox.page(PageRequest(limit, size, tuple(without)))
            self.assertEqual([id for id, _ in page], expected)
        self.assertEqual(len(self.outbox.unsent([ids[3], "?"])), 1)
