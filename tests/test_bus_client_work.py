"""
Tests for L{tbvast.bus.client_work}.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.client_work import ClientWork, Steps


class ClientWorkTests(SynchronousTestCase):
    """
    Tests for L{ClientWork}.
    """

    def test_one_step(self) -> None:
        """
        Works of one client that have one step each do not delay another client either.
        """
        clock = Clock()
        done: list[str] = []

        def work(name: str) -> Steps[Deferred[str]]:
            yield from ()
            done.append(name)
            return succeed(name)

        clients = ClientWork(clock)
        results = [clients.do(name[0], work(name)) for name in ("a1", "a2", "a3", "b1", "b2")]
        clock.advance(0)
        self.assertEqual(done, ["a1", "b1", "a2", "b2", "a3"])
        self.assertEqual(sorted(map(self.successResultOf, results)), sorted(done))
        clock.advance(0)
        self.successResultOf(clients.finish())
