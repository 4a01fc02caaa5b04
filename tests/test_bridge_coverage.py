"""
Tests for L{tbvast.bridge.live_match}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.live_match import covered, search_from
from tbvast.values import Covered, Moment

BOOT = "this one"
STEPS = st.lists(st.integers(-100_000, 100_000), min_size=1, max_size=6)


class SearchFromTests(SynchronousTestCase):
    """
    L{search_from} leaves nothing out.
    """

    @given(STEPS, st.integers(-100_000, 100_000))
    def test_set(self, ahead: list[int], now: int) -> None:
        """
        Every event that was imported after the covered moment is searched, however often the date
        is set, forward and back, during the match and once before it restarts.
        """
        base = 1e9
        moments = [
            Moment(base + offset + second, float(second), base + offset)
            for second, offset in enumerate(ahead)
        ]
        lowest = min(moment.ahead for moment in moments)
        known = covered(moments[0], lowest, BOOT)
        awake = float(len(ahead) + 5)
        heard = Moment(base + now + awake, awake, base + now)
        since = search_from(known, heard, BOOT)
        assert since is not None
        for moment in [*moments, heard]:
            self.assertLess(since, moment.imported)
        missed = Moment(base + now + len(ahead) + 1, float(len(ahead) + 1), base + now)
        self.assertLess(since, missed.imported)

    def test_not_set(self) -> None:
        """
        If the date was not set, little more than the missed events is searched.
        """
        known = covered(Moment(1000.0, 5.0, 995.0), 995.0, BOOT)
        since = search_from(known, Moment(2000.0, 1005.0, 995.0), BOOT)
        assert since is not None
        self.assertTrue(900 < since < 1000)

    def test_other_start(self) -> None:
        """
        After another start of the machine only the dates can be compared; if they
        contradict, everything is searched.
        """
        for boot in ("", "another"):
            known = Covered(1000.0, 5.0, BOOT)
            self.assertIsNone(search_from(known, Moment(999.0, 1.0, 998.0), boot))
            since = search_from(known, Moment(1001.0, 1.0, 1000.0), boot)
            assert since is not None
            self.assertLess(since, 1000.0)
