"""
Tests for L{tbvast.bridge.store.client}.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.bridge.store.values import MAX_ENTRIES_PER_MESSAGE
from tbvast.interfaces import IIndicatorStore, ISightingOutbox
from tbvast.storage.set_aside import SetAside, Stage
from tbvast.values import Covered, Entry, PageRequest, Position, Unsearched
from tests.doubles import a_sighting, an_indicator, indicator_id, moment
from tests.doubles_bridge import MemoryStore

T = TypeVar("T")

MANY = 2 * MAX_ENTRIES_PER_MESSAGE + 1


class ClientTestCase(SynchronousTestCase):
    """
    A test with a store in memory.

    @ivar now: The date.
    """

    def setUp(self) -> None:
        self.now = 0.0
        memory = MemoryStore(lambda: self.now)
        self.addCleanup(memory.close)
        self.store, self.outbox = memory.indicators, memory.outbox

    def result(self, made: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(made))


class IndicatorStoreTests(ClientTestCase):
    """
    Tests for L{tbvast.bridge.store.client.IndicatorStore}.
    """

    def know(self, count: int) -> tuple[Entry, ...]:
        """
        So many indicators arrive.
        """
        indicators = [
            an_indicator(number, pattern=f"[url:value = 'http://{number}.example/']")
            for number in range(count)
        ]
        return self.successResultOf(self.store.apply(indicators, None, 1)).write

    def test_interface(self) -> None:
        """
        It provides L{IIndicatorStore}.
        """
        verifyObject(IIndicatorStore, self.store)

    def test_many(self) -> None:
        """
        Long lists arrive complete.
        """
        written = self.know(MANY)
        self.assertEqual(len(written), MANY)
        entries = self.result(self.store.entries())
        self.assertCountEqual(entries, written)
        found = self.result(self.store.unsearched(1, 10 * MANY))
        self.assertEqual(found.ids, [indicator_id(number) for number in range(MANY)])
        self.assertCountEqual(found.entries, written)
        (same,) = self.result(self.store.reconcile(entries))
        self.assertEqual((same.write, same.erase), ((), ()))
        self.result(self.store.mark_searched(found.ids, 1))
        self.assertEqual(self.result(self.store.unsearched(1, MANY)), Unsearched([], []))

    def test_some(self) -> None:
        """
        The oldest unsearched indicators come first. Their networks do not name the others that
        cover them.
        """
        for number, network in enumerate(("10.0.0.0/8", "10.1.0.0/16"), 1):
            indicator = an_indicator(number, pattern=f"[ipv4-addr:value = '{network}']")
            self.successResultOf(self.store.apply([indicator], None, 1))
        found = self.result(self.store.unsearched(2, 1))
        self.assertEqual(found.ids, [indicator_id(1)])
        self.result(self.store.mark_searched(found.ids, 2))
        found = self.result(self.store.unsearched(2, 1))
        (entry,) = found.entries
        self.assertEqual((found.ids, entry.ids), ([indicator_id(2)], (indicator_id(2),)))
        entries = self.result(self.store.entries())
        self.assertIn((indicator_id(1), indicator_id(2)), [each.ids for each in entries])

    def test_dates(self) -> None:
        """
        Its calendar decides whether an indicator is valid.
        """
        indicator = an_indicator(1, valid_from=moment(10), valid_until=moment(20))
        applied = self.successResultOf(self.store.apply([indicator], None, 1))
        self.assertEqual(applied.write, ())
        self.now = 10.0
        (activated,) = self.successResultOf(self.store.update_validity())
        self.assertEqual(len(activated.write), 1)
        bodies = self.successResultOf(self.store.bodies([indicator.id]))
        self.assertEqual(bodies, {indicator.id: indicator.raw})
        self.now = 20.0
        (expired,) = self.successResultOf(self.store.update_validity())
        self.assertEqual(len(expired.erase), 1)
        self.assertEqual(self.successResultOf(self.store.bodies([indicator.id])), {})

    def test_snapshot(self) -> None:
        """
        An indicator that a snapshot does not have ends, unless an item claims its id that was
        set aside.
        """
        self.know(3)
        self.successResultOf(self.store.begin_snapshot())
        aside = SetAside(Stage.RECEPTION, "unreadable", b"{", id=indicator_id(0))
        self.successResultOf(self.store.set_aside([aside], [indicator_id(1)]))
        (ended,) = self.successResultOf(self.store.end_snapshot(Position("bus", 9)))
        self.assertEqual(len(ended.erase), 1)
        counts = self.successResultOf(self.store.counts())
        self.assertEqual((counts["indicators"], counts["set_aside"]["count"]), (2, 1))

    def test_covered(self) -> None:
        """
        The covered moment is stored.
        """
        self.assertIsNone(self.successResultOf(self.store.covered()))
        self.successResultOf(self.store.set_covered(Covered(7.0, 3.0, "boot")))
        self.assertEqual(self.successResultOf(self.store.covered()), Covered(7.0, 3.0, "boot"))


class SightingOutboxTests(ClientTestCase):
    """
    Tests for L{tbvast.bridge.store.client.SightingOutbox}.
    """

    def test_interface(self) -> None:
        """
        It provides L{ISightingOutbox}.
        """
        verifyObject(ISightingOutbox, self.outbox)

    def test_way(self) -> None:
        """
        A sighting waits until it was sent or set aside; its id is pruned later.
        """
        one, two = a_sighting(1), a_sighting(2)
        request = PageRequest(10, 1 << 20)
        waiting = [(one.id, one.raw), (two.id, two.raw)]
        remembered = self.successResultOf(self.outbox.remember([one, two, one], request))
        self.assertEqual(remembered, (2, waiting))
        self.assertEqual(self.successResultOf(self.outbox.one(two.id)), waiting[1:])
        self.assertEqual(
            self.successResultOf(self.outbox.mark_sent([one.id], request)), waiting[1:]
        )
        self.successResultOf(self.outbox.set_aside({two.id: "refused"}))
        self.assertEqual(self.successResultOf(self.outbox.page(request)), [])
        self.assertEqual(self.successResultOf(self.outbox.remember([one], None)), (0, None))
        self.now = 365 * 86400.0
        self.successResultOf(self.outbox.prune())
        self.assertEqual(self.successResultOf(self.outbox.remember([one], None)), (1, None))
