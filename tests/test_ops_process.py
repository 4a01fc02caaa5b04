"""
Tests for L{tbvast.ops.process}.
"""

from __future__ import annotations

import gc
import sys

from twisted.trial.unittest import SynchronousTestCase

from tbvast.ops.process import SWITCH_INTERVAL, settle


class SettleTests(SynchronousTestCase):
    """
    Tests for L{settle}.
    """

    def test_settled(self) -> None:
        """
        What there is is not looked through any more, and threads change quickly.
        """
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        self.addCleanup(gc.unfreeze)
        settle()
        self.assertGreater(gc.get_freeze_count(), 0)
        self.assertAlmostEqual(sys.getswitchinterval(), SWITCH_INTERVAL)
