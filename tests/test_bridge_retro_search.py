"""
Tests for L{tbvast.bridge.retro_search}.
"""

from __future__ import annotations

from typing import Any

from tbvast.bridge import engine_sync
from tbvast.bridge.node_watch import FIRST_RETRY_DELAY
from tbvast.errors import EngineCallFailed, EngineTimeout
from tbvast.stix.indicators import Indicator
from tbvast.stix.sightings import MatchType
from tbvast.values import Changes
from tests.doubles import DAY, an_indicator
from tests.engine_parts import EngineTestCase, entry, seen


class RecentTests(EngineTestCase):
    """
    The search of those past events that are not too old.
    """

    search = True
    days = 2

    def test_since(self) -> None:
        """
        Only the events of the last days are searched.
        """
        self.clock.advance(10 * DAY)
        self.start()
        self.apply(an_indicator(1))
        self.clock.advance(engine_sync.QUIET_SECONDS)
        (searched,) = self.engine.searches
        self.assertEqual(searched.since, self.clock.seconds() - 2 * DAY)


class SearchTests(EngineTestCase):
    """
    The search of past events.
    """

    search = True

    def start(self) -> None:
        super().start()
        self.clock.advance(engine_sync.QUIET_SECONDS)

    def apply(self, *indicators: Indicator) -> Changes:
        changes = super().apply(*indicators)
        self.clock.advance(engine_sync.QUIET_SECONDS)
        return changes

    def test_found(self) -> None:
        """
        New indicators are looked for once, within the limits.
        """
        self.engine.arrive(seen(1, n=1))
        self.engine.arrive(seen(1, n=2))
        self.start()
        self.apply(an_indicator(1))
        self.assertEqual([each.entries for each in self.engine.searches], [[entry(1)]])
        self.assertEqual([each[1:3] for each in self.engine.searches], [(10, 30.0)])
        self.assertEqual(
            [(match.event["n"], type) for match, type in self.delivered],
            [(1, MatchType.RETRO), (2, MatchType.RETRO)],
        )
        self.assertTrue(self.searched())

    def test_again(self) -> None:
        """
        Past events are not searched again for the same indicators when the node comes back.
        """
        self.apply(an_indicator(1))
        self.start()
        self.endpoint.die()
        self.come_back()
        self.assertEqual([each.entries for each in self.engine.searches], [[entry(1)]])

    def test_only_applied(self) -> None:
        """
        Past events are searched only for entries that the engine holds: no event falls between past
        and arriving ones.
        """
        self.start()
        self.client.held = {"add"}
        self.apply(an_indicator(1))
        self.assertEqual(self.engine.searches, [])
        self.client.release()
        self.clock.advance(engine_sync.QUIET_SECONDS)
        self.assertEqual([each.entries for each in self.engine.searches], [[entry(1)]])

    def test_marked_afterwards(self) -> None:
        """
        Until a search is over its indicators wait for it, also over a restart.
        """
        self.client.held = {"find"}
        self.start()
        self.apply(an_indicator(1))
        self.assertIn("searching", self.retro.report())
        self.assertFalse(self.searched())
        self.endpoint.die()
        self.client.held = ()
        self.come_back()
        self.assertEqual([each.entries for each in self.engine.searches], [[entry(1)]])
        self.assertTrue(self.searched())

    def test_not_delivered(self) -> None:
        """
        A search whose matches cannot be kept is made again.
        """
        self.engine.arrive(seen(1, n=1))
        self.failure = OSError("the disk refuses")
        self.start()
        self.apply(an_indicator(1))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertFalse(self.searched())
        self.failure = None
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertEqual(len(self.delivered), 1)
        self.assertTrue(self.searched())

    def test_in_pieces(self) -> None:
        """
        Indicators that arrive in several batches are searched for at once, when all are written.
        """
        self.start()
        for number in range(1, 6):
            super().apply(an_indicator(number))
            self.clock.advance(engine_sync.QUIET_SECONDS / 2)
        self.assertEqual(self.engine.searches, [])
        self.clock.pump([engine_sync.QUIET_SECONDS] * 2)
        self.assertEqual([len(each.entries) for each in self.engine.searches], [5])

    def test_never_quiet(self) -> None:
        """
        If changes never end, the search begins after a time limit.
        """
        self.start()
        for number in range(
            round(engine_sync.MAX_QUIET_WAIT_SECONDS / engine_sync.QUIET_SECONDS) * 2
        ):
            super().apply(an_indicator(number))
            self.clock.advance(engine_sync.QUIET_SECONDS - engine_sync.DEBOUNCE_SECONDS)
        self.assertTrue(self.engine.searches)

    def test_given_up(self) -> None:
        """
        A search is cancelled, and not repeated, if its indicators have ended.
        """
        self.client.held = {"find"}
        self.start()
        self.apply(an_indicator(1), an_indicator(2))
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.assertEqual(self.retro.report()["searching"]["observables"], 2)
        self.apply(an_indicator(2, 2, x_threatbus_update="REMOVE"))
        self.assertNotIn("searching", self.retro.report())
        self.assertTrue(self.searched())
        self.client.held = ()
        self.apply(an_indicator(3))
        self.assertEqual([each.entries for each in self.engine.searches], [[entry(3)]])

    def test_progress(self) -> None:
        """
        The report on a search has the number of its observables and sightings, and its duration.
        """
        self.client.held = {"find"}
        self.start()
        self.apply(an_indicator(1))
        self.clock.advance(2)
        self.assertEqual(
            self.retro.report()["searching"], {"observables": 1, "seconds": 2.0, "found": 0}
        )

    def test_failed(self) -> None:
        """
        A search that failed is made again.
        """
        self.engine.failures["find"] = [EngineCallFailed("find", "no")]
        self.start()
        self.apply(an_indicator(1))
        self.assertFalse(self.searched())
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertTrue(self.searched())

    def test_timeout(self) -> None:
        """
        A search that runs out of time ends with the matches found so far.
        """
        self.engine.arrive(seen(1, n=1))
        self.engine.failures["find"] = [EngineTimeout("find", 30.0)]
        self.start()
        self.apply(an_indicator(1))
        self.assertEqual(len(self.delivered), 1)
        self.assertTrue(self.searched())
        self.assertEqual(self.counters.searches, 1)

    def test_edited_while_waiting(self) -> None:
        """
        An edit without changes for the engine does not prevent the search for the indicator.
        """
        self.client.held = {"find"}
        self.start()
        self.apply(an_indicator(1))
        self.apply(an_indicator(1, 2, name="another"))
        self.client.release()
        self.assertTrue(self.searched())

    def test_unmatched(self) -> None:
        """
        An indicator that cannot be matched is not searched for, and does not wait for a search.
        """
        self.start()
        changes: Any = self.apply(an_indicator(1, pattern_type="yara", pattern="{"))
        self.assertEqual(len(changes.unmatched), 1)
        self.assertEqual(self.engine.searches, [])
        self.assertTrue(self.searched())
