"""
Tests for L{tbvast.bridge.engine_session}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge import engine_session
from tbvast.bridge.coverage import OVERLAP
from tbvast.bridge.engine_session import ENTRIES_PER_CHUNK, EngineSession, Search, State
from tbvast.errors import EngineCallFailed, EngineTimeout, EngineUnsupported
from tbvast.stix.indicators import Indicator
from tbvast.stix.observables import Kind, Observable
from tbvast.stix.sightings import MatchType
from tbvast.values import Changes, Entry, Match
from tests.doubles import (
    DAY,
    MemoryEngineClient,
    MemoryNode,
    an_indicator,
    indicator_id,
)
from tests.doubles_bridge import MemoryStore

SEARCH = Search(10, 30.0)


def ip(number: int) -> Observable:
    return Observable(Kind.IP, f"192.0.2.{number}")


def entry(number: int) -> Entry:
    return Entry(ip(number), (indicator_id(number),))


class SessionTestCase(SynchronousTestCase):
    """
    A test with a session, a store, and a node and its engine in memory.

    @ivar delivered: The matches that were delivered.
    @ivar unsupported: The errors of unsupported engines.
    @ivar failure: The error with which the delivery fails.
    """

    search: Search | None = None
    live = False

    def setUp(self) -> None:
        self.clock = Clock()
        self.node = MemoryNode()
        self.engine = MemoryEngineClient()
        memory = MemoryStore(self.clock.seconds, self.search is not None)
        self.addCleanup(memory.close)
        self.store = memory.file
        self.delivered: list[tuple[Match, MatchType]] = []
        self.unsupported: list[EngineUnsupported] = []
        self.failure: Exception | None = None
        self.session = EngineSession(
            self.clock,
            self.clock.seconds,
            self.node,
            self.engine,
            memory.indicators,
            self.deliver,
            self.live,
            self.search,
            self.unsupported.append,
            "this boot",
            lambda: self.engine.awake,
        )
        self.addCleanup(self.stop)

    async def deliver(self, matches: list[Match], type: MatchType) -> int:
        if self.failure is not None:
            raise self.failure
        self.delivered.extend((match, type) for match in matches)
        return len(matches)

    def start(self) -> None:
        self.session.startService()
        self.clock.advance(0)

    def stop(self) -> None:
        if self.session.running:
            self.successResultOf(self.session.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.node.connected)
        self.assertEqual(self.engine.watching, 0)

    def apply(self, *indicators: Indicator) -> Changes:
        """
        Indicators arrive.
        """
        changes = self.store.indicators.apply(
            indicators, self.clock.seconds(), self.search is not None
        )
        self.session.changed(changes)
        self.clock.advance(engine_session.DEBOUNCE_SECONDS)
        return changes

    def come_back(self) -> None:
        self.node.up = True
        self.clock.advance(engine_session.MAX_RECONNECT_DELAY)

    def searched(self) -> bool:
        return not self.store.counts()["unsearched"]


class NodeTests(SessionTestCase):
    """
    The node's coming and going.
    """

    live = True

    def test_up(self) -> None:
        """
        Once the node runs, the session identifies, prepares, fills and watches it.
        """
        self.apply(an_indicator(1))
        self.start()
        self.assertEqual(self.engine.calls, ["identify", "prepare", "contents", "add", "watch"])
        self.assertEqual(self.engine.table, {ip(1): (indicator_id(1),)})
        self.assertIs(self.session.state, State.READY)
        self.assertTrue(self.session.live)
        self.assertEqual(self.session.report()["name"], "memory")

    def test_away(self) -> None:
        """
        While there is no node, nothing is asked of it, and no change waits in memory.
        """
        self.node.up = False
        self.start()
        self.apply(an_indicator(1))
        self.clock.advance(1)
        self.assertEqual(self.engine.calls, [])
        self.assertEqual(self.session.report()["pending"], 0)
        self.assertIs(self.session.state, State.AWAY)

    def test_down(self) -> None:
        """
        When the node goes, its calls are interrupted and nothing more is asked.
        """
        self.start()
        self.node.die()
        self.assertTrue(self.engine.interrupted)
        self.assertEqual(self.engine.watching, 0)
        self.engine.calls.clear()
        self.apply(an_indicator(1))
        self.clock.pump([1.0] * 20)
        self.assertEqual(self.engine.calls, [])
        self.assertFalse(self.session.live)

    def test_back(self) -> None:
        """
        When the node comes back it is given everything again, and matches.
        """
        self.apply(an_indicator(1))
        self.start()
        self.node.die()
        self.engine.die()
        self.apply(an_indicator(2))
        self.come_back()
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})
        self.assertTrue(self.session.live)
        self.assertEqual(self.engine.watching, 1)

    def test_down_while_asked(self) -> None:
        """
        The node may go in the middle of a call.
        """
        self.engine.held = {"contents"}
        self.start()
        self.node.die()
        self.engine.held.clear()
        self.apply(an_indicator(1))
        self.come_back()
        self.assertEqual(set(self.engine.table), {ip(1)})

    def test_stale(self) -> None:
        """
        A stale entry of the engine is removed.
        """
        self.engine.table[ip(9)] = (indicator_id(9),)
        self.apply(an_indicator(1))
        self.start()
        self.assertEqual(set(self.engine.table), {ip(1)})

    def test_unsupported(self) -> None:
        """
        An engine that cannot be driven is told, and not asked for anything more.
        """
        error = EngineUnsupported("tenzir 1.0", "tenzir 6.20 or newer")
        self.engine.failures["identify"] = [error]
        self.start()
        self.assertEqual(self.unsupported, [error])
        self.assertEqual(self.engine.calls, ["identify"])

    def test_stop(self) -> None:
        """
        Stopped in the middle of a call it leaves nothing behind.
        """
        self.engine.held = {"prepare"}
        self.start()
        self.stop()
        self.assertTrue(self.engine.interrupted)

    def test_stop_while_waiting(self) -> None:
        """
        Stopped before another attempt it leaves nothing behind.
        """
        self.engine.failures["prepare"] = [EngineCallFailed("prepare", "no")]
        self.start()
        self.stop()


class ChangeTests(SessionTestCase):
    """
    Changes while the engine runs.
    """

    def test_applied(self) -> None:
        """
        New, changed and removed entries are written at once.
        """
        self.start()
        self.apply(an_indicator(1), an_indicator(2))
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.assertEqual(set(self.engine.table), {ip(2)})

    def test_together(self) -> None:
        """
        All changes during a call are written with the next one.
        """
        self.start()
        self.engine.calls.clear()
        self.engine.held = {"add"}
        self.apply(an_indicator(1))
        self.apply(an_indicator(2))
        self.apply(an_indicator(3))
        self.engine.release()
        self.assertEqual(self.engine.calls, ["add", "add"])
        self.assertEqual(set(self.engine.table), {ip(1), ip(2), ip(3)})

    def test_gathered(self) -> None:
        """
        Changes in quick succession are written together, up to a limit.
        """
        self.start()
        self.engine.calls.clear()
        short = engine_session.DEBOUNCE_SECONDS / 2
        for number in range(1, 11):
            changes = self.store.indicators.apply(
                [an_indicator(number)], self.clock.seconds(), False
            )
            self.session.changed(changes)
            self.clock.advance(short)
        self.assertEqual(self.engine.calls, [])
        self.clock.advance(engine_session.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.calls, ["add"])
        self.assertEqual(len(self.engine.table), 10)
        for number in range(round(engine_session.MAX_DEBOUNCE_SECONDS / short) + 1):
            changes = self.store.indicators.apply([an_indicator(number, 2 + number)], 0.0, False)
            self.session.changed(
                Changes(changes.number, (Entry(ip(number % 256), (indicator_id(number),)),))
            )
            self.clock.advance(short)
        self.assertEqual(self.engine.calls, ["add", "add"])

    def many(self, first: int) -> dict[Observable, Entry]:
        """
        As many entries as the engine is given in one piece.
        """
        entries = {}
        for number in range(first, first + ENTRIES_PER_CHUNK):
            observable = Observable(Kind.DOMAIN, f"{number}.example")
            entries[observable] = Entry(observable, (indicator_id(number),))
        self.session.changed(Changes(self.store.entries.change, tuple(entries.values())))
        return entries

    def test_given(self) -> None:
        """
        As long as the store is being changed, the engine gets the changes in one call, and handles
        them meanwhile.
        """
        self.start()
        self.engine.calls.clear()
        with self.session.changing():
            entries = self.many(0)
            entries |= self.many(ENTRIES_PER_CHUNK)
            self.clock.advance(engine_session.DEBOUNCE_SECONDS)
            (adding,) = self.engine.added
            self.assertEqual(sum(map(len, adding.pieces)), 2 * ENTRIES_PER_CHUNK)
            entries |= self.many(2 * ENTRIES_PER_CHUNK)
            self.clock.advance(engine_session.DEBOUNCE_SECONDS)
            self.assertEqual(sum(map(len, adding.pieces)), 3 * ENTRIES_PER_CHUNK)
            self.assertEqual(self.engine.calls, [])
        self.clock.advance(engine_session.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.calls, ["add"])
        self.assertEqual(set(self.engine.table), set(entries))

    def test_given_and_removed(self) -> None:
        """
        An entry that the engine has just been given and that is no longer desired is removed
        afterwards; one that is desired again is written afterwards.
        """
        self.start()
        self.engine.calls.clear()
        with self.session.changing():
            entries = self.many(0)
            gone, *_ = entries
            self.session.changed(Changes(self.store.entries.change, erase=(gone,)))
            self.many(ENTRIES_PER_CHUNK)
            self.clock.advance(engine_session.DEBOUNCE_SECONDS)
            self.assertEqual(self.engine.calls, ["add", "remove"])
            self.assertNotIn(gone, self.engine.table)
            self.session.changed(Changes(self.store.entries.change, (entries[gone],)))
        self.clock.advance(engine_session.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.calls, ["add", "remove", "add"])
        self.assertIn(gone, self.engine.table)

    def test_given_full(self) -> None:
        """
        One call is not given more and more.
        """
        self.patch(engine_session, "MAX_ENTRIES_PER_CALL", 2 * ENTRIES_PER_CHUNK)
        self.start()
        self.engine.calls.clear()
        with self.session.changing():
            for piece in range(3):
                self.many(piece * ENTRIES_PER_CHUNK)
                self.clock.advance(engine_session.DEBOUNCE_SECONDS)
            self.assertEqual(self.engine.calls, ["add"])
        self.clock.advance(engine_session.DEBOUNCE_SECONDS)
        self.assertEqual(self.engine.calls, ["add", "add"])

    def test_given_in_vain(self) -> None:
        """
        If the call fails, all that it was given is given again.
        """
        self.start()
        self.engine.failures["add"] = [EngineCallFailed("add", "no")]
        with self.session.changing():
            entries = self.many(0)
            entries |= self.many(ENTRIES_PER_CHUNK)
            self.clock.advance(engine_session.DEBOUNCE_SECONDS)
        self.clock.pump([engine_session.DEBOUNCE_SECONDS, engine_session.FIRST_RETRY_DELAY])
        self.assertEqual(set(self.engine.table), set(entries))

    def test_down_while_given(self) -> None:
        """
        If the node goes while it is given something, nothing more is.
        """
        self.start()
        with self.session.changing():
            self.many(0)
            self.node.die()
        (adding,) = self.engine.added
        self.assertTrue(adding.abandoned)

    def test_retried(self) -> None:
        """
        A failed call is repeated after a delay that doubles; no change is lost.
        """
        self.start()
        self.engine.failures["add"] = [EngineCallFailed("add", "no")] * 3
        self.apply(an_indicator(1))
        for delay in (0.5, 1.0, 2.0):
            self.assertEqual(self.engine.table, {})
            self.clock.advance(delay)
        self.assertEqual(set(self.engine.table), {ip(1)})

    def test_later_wins(self) -> None:
        """
        An entry that changes after a failed call is written in its latest state.
        """
        self.start()
        self.engine.failures["add"] = [EngineCallFailed("add", "no")]
        self.apply(an_indicator(1))
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.clock.advance(1)
        self.assertEqual(self.engine.table, {})

    def test_fill_retried(self) -> None:
        """
        Filling the engine is retried as a whole.
        """
        self.apply(an_indicator(1))
        self.engine.failures = {
            "contents": [EngineCallFailed("contents", "no")],
            "add": [EngineCallFailed("add", "no")],
        }
        self.start()
        self.clock.pump([0.5, 1.0])
        self.assertEqual(set(self.engine.table), {ip(1)})
        self.assertIs(self.session.state, State.READY)

    def test_overflow(self) -> None:
        """
        If too many changes wait in memory, the store is read again, even if the first attempt
        fails.
        """
        many = tuple(
            Entry(Observable(Kind.DOMAIN, f"{number}.example"), (indicator_id(number),))
            for number in range(engine_session.MAX_PENDING_ENTRIES)
        )
        self.start()
        self.engine.held = {"add"}
        self.apply(an_indicator(1))
        self.apply(an_indicator(2))
        self.session.changed(Changes(self.store.entries.change, many))
        self.assertEqual(self.session.report()["pending"], 0)
        self.engine.failures["contents"] = [EngineCallFailed("contents", "no")]
        self.engine.calls.clear()
        self.engine.release()
        self.clock.pump([engine_session.DEBOUNCE_SECONDS, 0.5])
        self.assertEqual(self.engine.calls, ["contents", "contents", "add"])
        self.assertEqual(set(self.engine.table), {ip(1), ip(2)})

    def test_checked(self) -> None:
        """
        An engine that lost something without going away is given it again.
        """
        self.apply(an_indicator(1))
        self.start()
        self.engine.die()
        self.clock.advance(engine_session.CHECK_INTERVAL)
        self.assertEqual(set(self.engine.table), {ip(1)})


class LiveTests(SessionTestCase):
    """
    The live match.
    """

    live = True

    def setUp(self) -> None:
        super().setUp()
        self.apply(an_indicator(1))
        self.start()

    def test_delivered(self) -> None:
        """
        Matches are delivered and counted.
        """
        self.engine.arrive({"n": 1}, ip(1))
        ((match, type),) = self.delivered
        self.assertEqual((match.event, type), ({"n": 1}, MatchType.LIVE))
        self.assertEqual(self.session.report()["matched"], {"live": 1, "retro": 0})

    def test_ended(self) -> None:
        """
        When it ends, it is started again.
        """
        self.engine.end_watch()
        self.assertFalse(self.session.live)
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        self.assertTrue(self.session.live)
        self.engine.end_watch(EngineCallFailed("watch", "no"))
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        self.assertEqual(self.engine.watching, 1)

    def test_not_kept(self) -> None:
        """
        When a match cannot be kept, the live match is started again.
        """
        self.engine.end_watch(OSError("the disk refuses"))  # type: ignore[arg-type]
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        self.assertTrue(self.session.live)

    def test_begun(self) -> None:
        """
        Events from the first marker on are covered, whatever happens next.
        """
        known = self.store.searches.covered()
        assert known is not None
        self.assertEqual(known.until, self.engine.moments[0].imported)
        self.assertEqual(self.engine.since, [])

    def test_caught_up(self) -> None:
        """
        Events that arrived without a live match are searched when it runs again.
        """
        self.engine.mark()
        known = self.store.searches.covered()
        assert known is not None
        self.node.die()
        self.engine.past[ip(1)] = [{"n": 2}]
        self.come_back()
        self.assertEqual(self.engine.since, [known.until - OVERLAP])
        self.assertEqual([match.event for match, _ in self.delivered], [{"n": 2}])

    def test_not_yet_heard(self) -> None:
        """
        Nothing is searched, and nothing is covered, before a marker has come out.
        """
        self.node.die()
        self.engine.hears = False
        self.come_back()
        known = self.store.searches.covered()
        self.assertEqual(self.engine.since, [])
        self.clock.pump([1.0] * 100)
        self.assertEqual(self.store.searches.covered(), known)

    def test_not_covered_before_caught_up(self) -> None:
        """
        Missed events do not count as covered before they have been searched.
        """
        known = self.store.searches.covered()
        self.node.die()
        self.engine.held = {"find"}
        self.come_back()
        self.engine.mark()
        self.assertEqual(self.store.searches.covered(), known)
        self.assertTrue(self.session.report()["catching_up"])
        self.engine.release()
        self.engine.mark()
        self.assertNotEqual(self.store.searches.covered(), known)
        self.assertFalse(self.session.report()["catching_up"])

    def test_catch_up_again(self) -> None:
        """
        A search of missed events that ran out of time is repeated with more time.
        """
        known = self.store.searches.covered()
        self.node.die()
        self.engine.failures["find"] = [EngineTimeout("find", 1.0)]
        self.come_back()
        self.engine.mark()
        self.assertEqual(self.store.searches.covered(), known)
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        first = engine_session.CATCH_UP_TIMEOUT
        self.assertEqual(self.engine.limits, [(0, first), (0, 2 * first)])
        self.engine.mark()
        self.assertNotEqual(self.store.searches.covered(), known)

    def test_caught_up_twice(self) -> None:
        """
        If the match stops during the search of missed events, all of them are searched again.
        """
        known = self.store.searches.covered()
        assert known is not None
        self.node.die()
        self.engine.held = {"find"}
        self.come_back()
        self.engine.end_watch()
        self.engine.held = set()
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        self.assertEqual(self.engine.since[-1], known.until - OVERLAP)
        self.engine.mark()
        self.assertNotEqual(self.store.searches.covered(), known)

    def test_not_delivered(self) -> None:
        """
        Events whose sightings could not be stored are not covered.
        """
        known = self.store.searches.covered()
        self.engine.end_watch(OSError("the disk refuses"))  # type: ignore[arg-type]
        self.flushLoggedErrors(OSError)
        self.engine.mark()
        self.assertEqual(self.store.searches.covered(), known)

    def test_date_set_back(self) -> None:
        """
        Events with an earlier import date than the covered moment are searched.
        """
        self.engine.mark(self.engine.date + DAY)
        self.node.die()
        self.engine.date -= DAY
        self.come_back()
        (since,) = self.engine.since
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
        self.assertEqual(self.session.report()["behind"], 0.1)
        self.clock.pump([1.0] * 30)
        report = self.session.report()
        self.assertFalse(report["live"])
        self.assertGreater(report["behind"], 29)
        self.engine.mark()
        report = self.session.report()
        self.assertTrue(report["live"])
        self.assertEqual(report["behind"], 0.1)
        self.assertEqual(
            logged,
            [
                "The live match has made no progress for 16 s.",
                "The live match makes progress again.",
            ],
        )


class RecentTests(SessionTestCase):
    """
    The search of those past events that are not too old.
    """

    search = Search(10, 30.0, 2)

    def test_since(self) -> None:
        """
        Only the events of the last days are searched.
        """
        self.clock.advance(10 * DAY)
        self.start()
        self.apply(an_indicator(1))
        self.clock.advance(engine_session.QUIET_SECONDS)
        (since,) = self.engine.since
        self.assertEqual(since, self.clock.seconds() - 2 * DAY)


class SearchTests(SessionTestCase):
    """
    The search of past events.
    """

    search = SEARCH

    def start(self) -> None:
        super().start()
        self.clock.advance(engine_session.QUIET_SECONDS)

    def apply(self, *indicators: Indicator) -> Changes:
        changes = super().apply(*indicators)
        self.clock.advance(engine_session.QUIET_SECONDS)
        return changes

    def test_found(self) -> None:
        """
        New indicators are looked for once, within the limits.
        """
        self.engine.past[ip(1)] = [{"n": 1}, {"n": 2}]
        self.start()
        self.apply(an_indicator(1))
        self.assertEqual(self.engine.searched, [[entry(1)]])
        self.assertEqual(self.engine.limits, [(10, 30.0)])
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
        self.node.die()
        self.come_back()
        self.assertEqual(self.engine.searched, [[entry(1)]])

    def test_only_applied(self) -> None:
        """
        Past events are searched only for entries that the engine holds: no event falls between past
        and arriving ones.
        """
        self.start()
        self.engine.held = {"add"}
        self.apply(an_indicator(1))
        self.assertEqual(self.engine.searched, [])
        self.engine.release()
        self.clock.advance(engine_session.QUIET_SECONDS)
        self.assertEqual(self.engine.searched, [[entry(1)]])

    def test_marked_afterwards(self) -> None:
        """
        Until a search is over its indicators wait for it, also over a restart.
        """
        self.engine.held = {"find"}
        self.start()
        self.apply(an_indicator(1))
        self.assertFalse(self.searched())
        self.node.die()
        self.engine.held.clear()
        self.come_back()
        self.assertEqual(self.engine.searched, [[entry(1)], [entry(1)]])
        self.assertTrue(self.searched())

    def test_not_delivered(self) -> None:
        """
        A search whose matches cannot be kept is made again.
        """
        self.engine.past[ip(1)] = [{"n": 1}]
        self.failure = OSError("the disk refuses")
        self.start()
        self.apply(an_indicator(1))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertFalse(self.searched())
        self.failure = None
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        self.assertEqual(len(self.delivered), 1)
        self.assertTrue(self.searched())

    def test_in_pieces(self) -> None:
        """
        Indicators that arrive in several batches are searched for at once, when all are written.
        """
        self.start()
        for number in range(1, 6):
            super().apply(an_indicator(number))
            self.clock.advance(engine_session.QUIET_SECONDS / 2)
        self.assertEqual(self.engine.searched, [])
        self.clock.pump([engine_session.QUIET_SECONDS] * 2)
        self.assertEqual([len(entries) for entries in self.engine.searched], [5])

    def test_never_quiet(self) -> None:
        """
        If changes never end, the search begins after a time limit.
        """
        self.start()
        for number in range(
            round(engine_session.MAX_QUIET_WAIT_SECONDS / engine_session.QUIET_SECONDS) * 2
        ):
            super().apply(an_indicator(number))
            self.clock.advance(engine_session.QUIET_SECONDS - engine_session.DEBOUNCE_SECONDS)
        self.assertTrue(self.engine.searched)

    def test_given_up(self) -> None:
        """
        A search is cancelled, and not repeated, if its indicators have ended.
        """
        self.engine.held = {"find"}
        self.start()
        self.apply(an_indicator(1), an_indicator(2))
        self.apply(an_indicator(1, 2, x_threatbus_update="REMOVE"))
        self.assertEqual(self.session.report()["searching"]["observables"], 2)
        self.apply(an_indicator(2, 2, x_threatbus_update="REMOVE"))
        self.assertNotIn("searching", self.session.report())
        self.assertTrue(self.searched())
        self.engine.held.clear()
        self.apply(an_indicator(3))
        self.assertEqual(self.engine.searched[1:], [[entry(3)]])

    def test_progress(self) -> None:
        """
        The report on a search has the number of its observables and sightings, and its duration.
        """
        self.engine.held = {"find"}
        self.start()
        self.apply(an_indicator(1))
        self.clock.advance(2)
        self.assertEqual(
            self.session.report()["searching"], {"observables": 1, "seconds": 2.0, "found": 0}
        )

    def test_failed(self) -> None:
        """
        A search that failed is made again.
        """
        self.engine.failures["find"] = [EngineCallFailed("find", "no")]
        self.start()
        self.apply(an_indicator(1))
        self.assertFalse(self.searched())
        self.clock.advance(engine_session.FIRST_RETRY_DELAY)
        self.assertTrue(self.searched())

    def test_timeout(self) -> None:
        """
        A search that runs out of time ends with the matches found so far.
        """
        self.engine.past[ip(1)] = [{"n": 1}]
        self.engine.failures["find"] = [EngineTimeout("find", 30.0)]
        self.start()
        self.apply(an_indicator(1))
        self.assertEqual(len(self.delivered), 1)
        self.assertTrue(self.searched())
        self.assertEqual(self.session.searches, 1)

    def test_edited_while_waiting(self) -> None:
        """
        An edit without changes for the engine does not prevent the search for the indicator.
        """
        self.engine.held = {"find"}
        self.start()
        self.apply(an_indicator(1))
        self.apply(an_indicator(1, 2, name="another"))
        self.engine.release()
        self.assertTrue(self.searched())

    def test_unmatched(self) -> None:
        """
        An indicator that cannot be matched is not searched for, and does not wait for a search.
        """
        self.start()
        changes: Any = self.apply(an_indicator(1, pattern_type="yara", pattern="{"))
        self.assertEqual(len(changes.unmatched), 1)
        self.assertEqual(self.engine.searched, [])
        self.assertTrue(self.searched())
