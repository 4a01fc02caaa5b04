"""
Tests for L{devtools.services}, with the real plugin.
"""

from __future__ import annotations

import json
import os
import signal

from twisted.internet.defer import Deferred

from devtools.services import CommandEnded
from tbvast.protocol.manage import encode_publish
from tests.doubles import until
from tests.functional.components import alive, children
from tests.functional.services import ServicesTestCase
from tests.functional.test_main_job import indicator


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

    async def test_writer_killed(self) -> None:
        """
        A plugin whose journal is not written to any more ends, with status 1 and the
        reason in its log; started again, it has what was acknowledged.
        """
        plugin = self.plugin()
        await plugin.start()
        document = json.dumps(indicator("[ipv4-addr:value = '203.0.113.9']")).encode()
        reply = await plugin.ask(encode_publish([document]))
        self.assertEqual(reply["outcomes"], ["accepted"])
        (writer,) = children(plugin.pid)
        os.kill(writer, signal.SIGKILL)
        await plugin.saw("cannot go on: the journal's writer ended with signal 9")
        self.assertEqual(await plugin.wait(), 1)
        again = self.ending(plugin.again())
        await again.start()
        reply = await again.ask(encode_publish([document]))
        self.assertEqual(reply["outcomes"], ["repeated"])

    async def test_killed(self) -> None:
        """
        When a plugin is killed, the process that writes to its journal ends, too.
        """
        plugin = self.plugin()
        await plugin.start()
        (writer,) = children(plugin.pid)
        plugin.signal("KILL")
        await plugin.wait()
        await until(self.reactor, lambda: not alive(writer))
