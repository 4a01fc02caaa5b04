"""
Tests for L{tbvast.demo.services}, with the real plugin.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tbvast.demo.services import CommandEnded
from tests.functional.services import ServicesTestCase


class RunningPluginTests(ServicesTestCase):
    timeout = 60.0

    def test_start_stop(self) -> Deferred[None]:
        """
        The plugin is ready when it said so; ended, another one goes on.
        """
        return Deferred.fromCoroutine(self._start_stop())

    async def _start_stop(self) -> None:
        plugin = self.plugin()
        await plugin.start()
        self.assertEqual(await plugin.stop(), 0)
        again = self.ending(plugin.again())
        await again.start()
        self.assertEqual(again.manage, plugin.manage)

    def test_refused(self) -> Deferred[None]:
        """
        A plugin that ends instead of starting says why.
        """
        return Deferred.fromCoroutine(self._refused())

    async def _refused(self) -> None:
        plugin = self.plugin("--loglevel=loud")
        failure = await self.assertFailure(plugin.start(), CommandEnded)
        self.assertIn("loud", str(failure))
        self.assertEqual(await plugin.wait(), 1)
