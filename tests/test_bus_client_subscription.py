"""
Tests for the states of L{tbvast.bus_client.subscription}.
"""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus_client.subscription import MACHINE, TABLE, BusSubscription, Inputs

WAYS = {
    "stopped": "",
    "applying": "start",
    "subscribing": "start applied",
    "subscribed": "start applied accepted",
    "lost": "start applied lost",
    "unsubscribing": "start applied accepted stop",
    "stopping": "start stop",
}
"""
For each state, inputs that lead to it.
"""


class EnteredState(BusSubscription):
    """
    A subscription that only records the last state that it entered.
    """

    def __init__(self) -> None:
        self.state = "stopped"

    def _enter(self, state: str) -> None:
        self.state = state


class TableTests(SynchronousTestCase):
    """
    Tests for L{TABLE}.
    """

    def test_every_input(self) -> None:
        """
        Every state answers every input, as the table says.
        """
        names, *rows = (line.split() for line in TABLE.strip().splitlines())
        self.assertEqual(names, [name for name in vars(Inputs) if name[0] != "_"])
        self.assertEqual([state for state, *_ in rows], list(WAYS))
        for state, *cells in rows:
            for name, following in zip(names, cells, strict=True):
                with self.subTest(state=state, input=name):
                    entered = EnteredState()
                    machine = MACHINE(entered)
                    for step in WAYS[state].split():
                        getattr(machine, step)()
                    self.assertEqual(entered.state, state)
                    getattr(machine, name)()
                    self.assertEqual(entered.state, state if following == "-" else following)

    def test_documented(self) -> None:
        """
        The documentation shows the table.
        """
        text = Path(__file__).parents[1].joinpath("docs", "architecture.md").read_text()
        self.assertIn(TABLE, text)
