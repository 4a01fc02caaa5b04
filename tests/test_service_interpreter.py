"""
Tests for L{tbvast.service.interpreter}.
"""

from __future__ import annotations

import gc
import sys

from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.interpreter import COLLECT_AFTER, SWITCH_INTERVAL, tune_interpreter


class TuneTests(SynchronousTestCase):
    """
    Tests for L{tune_interpreter}.
    """

    def test_tuned(self) -> None:
        """
        Existing objects are frozen, new ones are collected seldom, and threads switch quickly.
        """
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        tune_interpreter()
        self.assertGreater(gc.get_freeze_count(), 0)
        self.assertEqual(gc.get_threshold()[0], COLLECT_AFTER)
        self.assertAlmostEqual(sys.getswitchinterval(), SWITCH_INTERVAL)
