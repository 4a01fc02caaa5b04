"""
The machine's clock is set an hour forward, or back, while everything runs: the real
services, under libfaketime, whose monotonic clock goes on as it is.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from devtools.services import RunningBridge, RunningPlugin, until
from tbvast.protocol.manage import encode_heartbeat, encode_publish, encode_status
from tbvast.stix.documents import timestamp
from tbvast.values import HostPort
from tests.doubles import indicator_document, indicator_id
from tests.functional.components import require_tenzir
from tests.functional.raw import RawClient
from tests.functional.services import ServicesTestCase

LIBRARIES = "/usr/lib/*/faketime/libfaketime.so.1"

HOUR = 3600.0

HEARTBEAT_TIMEOUT = 4.0
"""
Seconds of silence that end a subscription.
"""

USUAL = 25.0
"""
Seconds within which a bridge notices that its bus was killed: a heartbeat, the time
that it has for an answer, and the longest pause between two attempts.
"""


class SetClock:
    """
    A calendar for some processes, which is set while they run.
    """

    def __init__(self, folder: Path) -> None:
        """
        @raise SkipTest: If there is no libfaketime; a failure where C{CI} is C{true}.
        """
        found = sorted(Path("/").glob(LIBRARIES.lstrip("/")))
        if not found:
            reason = "libfaketime is not installed: apt-get install libfaketime"
            if os.environ.get("CI") == "true":
                raise AssertionError(reason)
            raise SkipTest(reason)
        self._file = folder / "clock"
        self.offset = 0.0
        self.set(0.0)
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: float) -> None:
        """
        @param offset: Seconds by which it is ahead of the real one.
        """
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+.0f}")
        new.rename(self._file)
        self.offset = offset

    def date(self, later: float = 0.0) -> str:
        """
        The date there, or some seconds later, as STIX writes it.
        """
        return timestamp(datetime.now(UTC) + timedelta(seconds=self.offset + later))


class ClockStepTests(ServicesTestCase):
    """
    One hour forward, back to where it was, and one hour back.
    """

    timeout = 240.0

    def setUp(self) -> None:
        self.clock = SetClock(self.directory())

    async def start_plugin(self) -> RunningPlugin:
        config = self.directory() / "tap.conf"
        config.write_text(f"plugin:\n  heartbeat_timeout: {HEARTBEAT_TIMEOUT}\n")
        plugin = RunningPlugin(
            self.reactor,
            self.directory(),
            f"--config={config}",
            environment=self.clock.environment,
        )
        self.ending(plugin)
        await plugin.start()
        return plugin

    async def publish(self, plugin: RunningPlugin, *documents: bytes) -> list[str]:
        outcomes: list[str] = (await plugin.ask(encode_publish(documents)))["outcomes"]
        return outcomes

    def document(self, number: int, **changes: Any) -> bytes:
        return indicator_document(number, None, modified=self.clock.date(), **changes)

    async def test_calendar_is_set(self) -> None:
        """
        It is the calendar of the plugin that is set, and the calendar only.
        """
        plugin = await self.start_plugin()
        before = await plugin.ask(encode_status())
        for offset in (HOUR, -HOUR):
            self.clock.set(offset)
            await deferLater(self.reactor, 1.5)
            after = await plugin.ask(encode_status())
            self.assertLess(after["uptime"] - before["uptime"], 60)
            self.assertGreater(after["uptime"], before["uptime"])
            before = after
        # The journal's dates, which come from the calendar, tell which one it is.
        await self.publish(plugin, indicator_document(1, None, modified=self.clock.date(-1)))
        removal = indicator_document(1, None, pattern=None, x_threatbus_update="REMOVE")
        self.assertEqual(await self.publish(plugin, removal), ["accepted"])
        reply = await plugin.ask(encode_publish([indicator_document(1, 1)]))
        self.assertIn(self.clock.date()[:13], reply["reasons"]["0"])

    async def test_subscriptions(self) -> None:
        """
        Subscriptions of the old dialect stay, with their heartbeats and without losing
        anything, and end when their heartbeats do.
        """
        plugin = await self.start_plugin()
        client = RawClient(plugin.manage.port)
        self.addCleanup(client.close)
        await deferToThread(client.subscribe, "stix2/indicator")
        topic = client.topic
        for number, offset in enumerate((HOUR, 0.0, -HOUR), 1):
            await self.beat(plugin, topic)
            self.clock.set(offset)
            # Longer than a look for those that are silent, but not as long as they may be.
            await deferLater(self.reactor, HEARTBEAT_TIMEOUT / 2)
            await self.beat(plugin, topic)
            self.assertEqual(await self.publish(plugin, self.document(number)), ["accepted"])
            kind, received = await deferToThread(client.receive)
            self.assertEqual((kind, received["id"]), ("indicator", indicator_id(number)))

        async def ended() -> bool:
            report = await plugin.ask(encode_status())
            return not report["subscriptions"]

        began = self.reactor.seconds()
        await until(self.reactor, ended, HEARTBEAT_TIMEOUT + 10)
        self.assertGreater(self.reactor.seconds() - began, HEARTBEAT_TIMEOUT - 2)

    async def beat(self, plugin: RunningPlugin, topic: str) -> None:
        reply = await plugin.ask(encode_heartbeat(topic))
        self.assertEqual(reply, {"status": "success"})

    async def test_versions(self) -> None:
        """
        What was published before the clock was set is corrected and removed after it,
        by somebody who has the same clock.
        """
        plugin = await self.start_plugin()
        for number, offset in enumerate((-HOUR, 0.0, -HOUR), 1):
            numbers = (2 * number, 2 * number + 1)
            before = [self.document(each) for each in numbers]
            self.assertEqual(await self.publish(plugin, *before), ["accepted"] * 2)
            self.clock.set(offset)
            await deferLater(self.reactor, 2.5)  # the bus looks at its clock each second
            after = [
                self.document(numbers[0], name="right"),
                self.document(numbers[1], pattern=None, x_threatbus_update="REMOVE"),
            ]
            self.assertEqual(await self.publish(plugin, *after), ["accepted"] * 2)
            self.assertEqual(await self.publish(plugin, *before), ["outdated"] * 2)

    async def test_validity(self) -> None:
        """
        What is valid by the date stays; what is not ends, and is in force again when it is
        published again, once the clock is right.
        """
        plugin = await self.start_plugin()
        short = self.document(1, valid_until=self.clock.date(HOUR / 2))
        long = self.document(2, valid_until=self.clock.date(2 * HOUR))
        await self.publish(plugin, short, long)

        async def in_force(count: int) -> bool:
            report = await plugin.ask(encode_status())
            return bool(report["journal"]["indicators"] == count)

        self.clock.set(HOUR)
        await plugin.saw("1 indicators have expired")
        self.assertTrue(await in_force(1))
        self.assertEqual(await self.publish(plugin, short, long), ["outdated", "repeated"])
        self.clock.set(0.0)
        await deferLater(self.reactor, 2.5)
        self.assertEqual(await self.publish(plugin, short, long), ["accepted", "repeated"])
        await until(self.reactor, lambda: in_force(2), 10)
        self.clock.set(-HOUR)
        await deferLater(self.reactor, 2.5)
        self.assertTrue(await in_force(2))

    async def test_bridge(self) -> None:
        """
        A bridge notices within its usual time that its bus was killed, and has what is
        published afterwards.
        """
        require_tenzir(self)
        plugin = await self.start_plugin()
        bridge = RunningBridge(
            self.reactor,
            HostPort("127.0.0.1", plugin.manage.port),
            self.directory(),
            live=False,
            environment=self.clock.environment,
        )
        self.ending(bridge)
        await bridge.start()
        for number, offset in enumerate((HOUR, 0.0, -HOUR), 1):
            self.clock.set(offset)
            await deferLater(self.reactor, 1.5)
            subscribed = bridge.saw("Subscribed to", limit=USUAL + 10, times=number + 1)
            plugin.signal("KILL")
            await plugin.wait()
            plugin = plugin.again()
            self.ending(plugin)
            starting: Deferred[Any] = plugin.start()
            began = self.reactor.seconds()
            await gatherResults([starting, subscribed], consumeErrors=True)
            self.assertLess(self.reactor.seconds() - began, USUAL)
            await self.publish(plugin, self.document(number))
            await bridge.saw("The engine took 1 entries", times=number)
