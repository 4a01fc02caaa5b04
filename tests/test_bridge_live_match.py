"""
Tests for L{tbvast.bridge.live_match}.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent, globalLogPublisher

from tbvast.bridge.live_match import CATCH_UP_TIMEOUT, OVERLAP
from tbvast.bridge.node_watch import FIRST_RETRY_DELAY
from tbvast.errors import EngineCallFailed, EngineTimeout
from tbvast.stix.sightings import MatchType
from tests.doubles import DAY, an_indicator
from tests.engine_parts import EngineTestCase, seen


class LiveTests(EngineTestCase):
    """
    The live match.
    """

    live = True

    def setUp(self) -> None:
        super().setUp()
        self.apply(an_indicator(1))
        self.start()
        self.first = self.engine.searches.copy()
        self.engine.searches.clear()

    def test_delivered(self) -> None:
        """
        Matches are delivered.
        """
        self.client.arrive(seen(1))
        ((match, type),) = self.delivered
        self.assertEqual((match.event, type), (seen(1), MatchType.LIVE))

    def test_ended(self) -> None:
        """
        When it ends, it is started again.
        """
        self.client.end_watches()
        self.assertFalse(self.match.report()["live"])
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertTrue(self.match.report()["live"])
        self.client.end_watches(EngineCallFailed("watch", "no"))
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertEqual(self.engine.watching, 1)

    def test_not_kept(self) -> None:
        """
        When a match cannot be kept, the live match is started again.
        """
        self.failure = OSError("the disk refuses")
        self.client.arrive(seen(1))
        self.failure = None
        self.assertFalse(self.match.report()["live"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertTrue(self.match.report()["live"])

    def test_begun(self) -> None:
        """
        Events since the start of the bridge are searched at the first start, too.
        """
        (search,) = self.first
        self.assertLess(abs((search.since or 0.0) + 2 * OVERLAP), 0.1)
        known = self.store.covered()
        self.client.mark()
        self.assertNotEqual(self.store.covered(), known)

    def test_caught_up(self) -> None:
        """
        Events that arrived without a live match are searched when it runs again.
        """
        self.client.mark()
        known = self.store.covered()
        assert known is not None
        self.endpoint.die()
        self.engine.arrive(seen(1, n=2))
        self.come_back()
        self.assertEqual([each.since for each in self.engine.searches], [known.until - OVERLAP])
        self.assertEqual([match.event for match, _ in self.delivered], [seen(1, n=2)])

    def test_not_yet_heard(self) -> None:
        """
        Nothing is searched, and nothing is covered, before a marker has come out.
        """
        self.endpoint.die()
        self.engine.hears = False
        self.come_back()
        known = self.store.covered()
        self.assertEqual(self.engine.searches, [])
        self.clock.pump([1.0] * 100)
        self.assertEqual(self.store.covered(), known)

    def test_not_covered_before_caught_up(self) -> None:
        """
        Missed events do not count as covered before they have been searched.
        """
        known = self.store.covered()
        self.endpoint.die()
        self.client.held = {"find"}
        self.come_back()
        self.client.mark()
        self.assertEqual(self.store.covered(), known)
        self.assertTrue(self.match.report()["catching_up"])
        self.client.release()
        self.client.mark()
        self.assertNotEqual(self.store.covered(), known)
        self.assertFalse(self.match.report()["catching_up"])

    def test_catch_up_again(self) -> None:
        """
        A search of missed events that ran out of time is repeated with more time.
        """
        known = self.store.covered()
        self.endpoint.die()
        self.engine.failures["find"] = [EngineTimeout("find", 1.0)]
        self.come_back()
        self.client.mark()
        self.assertEqual(self.store.covered(), known)
        self.clock.advance(FIRST_RETRY_DELAY)
        first = CATCH_UP_TIMEOUT
        self.assertEqual([each[1:3] for each in self.engine.searches], [(0, first), (0, 2 * first)])
        self.client.mark()
        self.assertNotEqual(self.store.covered(), known)

    def test_caught_up_twice(self) -> None:
        """
        If the match stops during the search of missed events, all of them are searched again.
        """
        known = self.store.covered()
        assert known is not None
        self.endpoint.die()
        self.client.held = {"find"}
        self.come_back()
        self.client.end_watches()
        self.client.held = set()
        self.clock.advance(FIRST_RETRY_DELAY)
        self.assertEqual(self.engine.searches[-1].since, known.until - OVERLAP)
        self.client.mark()
        self.assertNotEqual(self.store.covered(), known)

    def test_not_delivered(self) -> None:
        """
        Events whose sightings could not be stored are not covered.
        """
        known = self.store.covered()
        self.failure = OSError("the disk refuses")
        self.client.arrive(seen(1))
        self.flushLoggedErrors(OSError)
        self.client.mark()
        self.assertEqual(self.store.covered(), known)

    def test_date_set_back(self) -> None:
        """
        Events with an earlier import date than the covered moment are searched.
        """
        self.client.mark(self.engine.date + DAY)
        self.endpoint.die()
        self.engine.date -= DAY
        self.come_back()
        (searched,) = self.engine.searches
        since = searched.since
        assert since is not None
        self.assertLess(since, self.engine.moments[0].imported)
        self.assertGreater(since, self.engine.moments[0].imported - 60)

    def test_silent(self) -> None:
        """
        When no marker comes out any more, status and log say so, once, and when one does.
        """
        logged: list[str] = []
        observer: Any = lambda event: logged.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.assertEqual(self.match.report()["behind"], 0.1)
        self.clock.pump([1.0] * 30)
        report = self.match.report()
        self.assertFalse(report["live"])
        self.assertGreater(report["behind"], 29)
        self.client.mark()
        report = self.match.report()
        self.assertTrue(report["live"])
        self.assertEqual(report["behind"], 0.1)
        self.assertEqual(
            logged,
            [
                "The live match has made no progress for 16 s.",
                "The live match makes progress again.",
            ],
        )


class FirstStartTests(EngineTestCase):
    """
    The first start of a bridge: indicators may be searched for before arriving events are matched.
    """

    live = search = True

    def test_between(self) -> None:
        """
        Events that arrive after the search for an indicator, and before the live match hears,
        are searched.
        """
        self.client.held = {"watch"}
        self.apply(an_indicator(1))
        self.start()
        self.clock.pump([1.0] * 20)
        self.assertEqual([each.since for each in self.engine.searches], [None])
        self.engine.arrive(seen(1, n=5))
        self.client.release()
        self.clock.pump([1.0] * 20)
        self.assertEqual([match.event for match, _ in self.delivered], [seen(1, n=5)])
        self.assertFalse(self.match.report()["catching_up"])

    def test_not_begun(self) -> None:
        """
        The record begins before the first search.
        """
        self.client.held = {"contents"}
        self.start()
        self.assertIsNotNone(self.store.covered())
        self.client.release()
