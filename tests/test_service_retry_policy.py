"""
Tests for L{tbvast.service.retry_policy}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.retry_policy import doubling


class DoublingTests(SynchronousTestCase):
    """
    Tests for L{doubling}.
    """

    def test_delays(self) -> None:
        """
        The delay doubles up to the longest one, and stays there after any number of failures.
        """
        delay = doubling(0.5, 3.0)
        self.assertEqual([delay(failures) for failures in range(4)], [0.5, 1.0, 2.0, 3.0])
        self.assertEqual(delay(100_000), 3.0)
