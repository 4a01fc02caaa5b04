"""
A disk that is full: nothing is accepted that cannot be kept, and all that was is.
"""

from __future__ import annotations

import json
import resource

from tbvast.protocol.manage import encode_publish
from tests.functional.components import children
from tests.functional.services import ServicesTestCase
from tests.functional.test_main_job import indicator

LIMIT = 1 << 20
"""
The most bytes that a file of the plugin may have; the system refuses what is beyond,
as it does on a disk that is full.
"""

BATCH = 200


class FullDiskTests(ServicesTestCase):
    """
    The plugin's files reach a limit while indicators arrive.
    """

    timeout = 120

    def documents(self, first: int) -> list[bytes]:
        return [
            json.dumps(indicator(f"[ipv4-addr:value = '203.{n // 256}.{n % 256}.1']")).encode()
            for n in range(first, first + BATCH)
        ]

    def limit(self, pid: int, size: int) -> None:
        """
        Bound the files of a process, and of its children.
        """
        for each in (pid, *children(pid)):
            resource.prlimit(each, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async def test_full(self) -> None:
        """
        At the limit the publisher is told; when there is room again, it goes on. What
        was accepted is there after a restart, and nothing else.
        """
        plugin = self.plugin()
        await plugin.start()
        self.limit(plugin.pid, LIMIT)
        accepted = first = 0
        while True:
            reply = await plugin.ask(encode_publish(self.documents(first)))
            if reply["status"] == "error":
                break
            accepted += reply["outcomes"].count("accepted")
            first += BATCH
            self.assertLess(first, 20_000)
        self.assertIn("cannot write the journal", reply["reason"])
        await plugin.saw("messages are not accepted")
        status = await plugin.ask(b'{"action":"status"}')
        self.assertEqual(status["journal"]["indicators"], accepted)

        self.limit(plugin.pid, resource.RLIM_INFINITY)
        reply = await plugin.ask(encode_publish(self.documents(first)))
        self.assertEqual(reply["outcomes"], ["accepted"] * BATCH)

        plugin.signal("KILL")
        await plugin.wait()
        plugin = self.ending(plugin.again())
        await plugin.start()
        status = await plugin.ask(b'{"action":"status"}')
        self.assertEqual(status["journal"]["indicators"], accepted + BATCH)
