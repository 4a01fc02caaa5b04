"""
Tests for L{tbvast.bus.client_budget}.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.client_budget import ClientBudget


class ClientBudgetTests(SynchronousTestCase):
    """
    Tests for L{ClientBudget}.
    """

    def test_room(self) -> None:
        """
        A client has the room that it leaves itself, at most the one that all leave.
        """
        budget = ClientBudget(10, 25)
        budget.change("one", 7)
        budget.change("two", 12)
        self.assertEqual([budget.room(each) for each in ("one", "two", "three")], [3, -2, 6])
        budget.change("two", -12)
        self.assertEqual([budget.room(each) for each in ("one", "two", "three")], [3, 10, 10])
        self.assertEqual([budget.of("one"), budget.of("two"), budget.used], [7, 0, 7])
