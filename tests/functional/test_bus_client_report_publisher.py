"""
Tests for L{tbvast.bus_client.report_publisher}.
"""

from __future__ import annotations

from tbvast.bus_client.report_publisher import ReportPublisher
from tbvast.protocol.frames import SIGHTING_TOPIC
from tests.functional.scripted_bus import ClientTestCase


class ReportPublisherTests(ClientTestCase):
    """
    Tests for L{ReportPublisher}.
    """

    async def test_waits(self) -> None:
        """
        A report is refused until the bus listens to its topic; then it arrives.
        """
        ready: list[None] = []
        publisher = ReportPublisher(
            self.factory, f"tcp://127.0.0.1:{self.bus.sub_port}", lambda: ready.append(None)
        )
        self.addCleanup(publisher.close)
        frame = SIGHTING_TOPIC + b" {}"
        self.assertFalse(publisher.send(frame))
        self.bus.listen()
        await self.until(lambda: ready)
        self.assertTrue(publisher.send(frame))
        self.assertFalse(publisher.send(b"another topic"))
        await self.until(lambda: self.bus.reports)
        self.assertEqual(self.bus.reports, [frame])

    async def test_away(self) -> None:
        """
        When the bus stops listening, or is gone, reports are refused until it listens again.
        """
        ready: list[None] = []
        publisher = ReportPublisher(
            self.factory, f"tcp://127.0.0.1:{self.bus.sub_port}", lambda: ready.append(None)
        )
        self.addCleanup(publisher.close)
        frame = SIGHTING_TOPIC + b" {}"
        for times in (1, 2):
            self.bus.listen()
            await self.until(lambda n=times: len(ready) == n)  # type: ignore[misc]
            self.bus.listen_no_more()
            await self.until(lambda: not publisher.send(frame))
        self.bus.listen()
        await self.until(lambda: len(ready) == 3)
        self.bus.leave()
        await self.until(lambda: not publisher.send(frame))
