"""
Tests for L{tbvast.bus_client.manage_client}.
"""

from __future__ import annotations

from tbvast.bus_client.manage_client import REQUEST_TIMEOUT, ManageClient
from tbvast.errors import BusUnreachable
from tbvast.protocol import manage
from tests.functional.scripted_bus import ClientTestCase


class ManageClientTests(ClientTestCase):
    """
    Tests for L{ManageClient}.
    """

    def setUp(self) -> None:
        super().setUp()
        self.manage = ManageClient(self.clock, self.factory, self.bus.address)
        self.addCleanup(self.manage.close)

    async def test_answer(self) -> None:
        """
        A request gets its reply, and leaves no timer.
        """
        reply = await self.manage.ask(manage.encode_heartbeat("x"))
        self.assertEqual(reply, manage.SUCCESS)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_in_turn(self) -> None:
        """
        Requests are sent one at a time, in order, over one socket.
        """
        replies = [self.manage.ask(manage.encode_heartbeat(str(n))) for n in range(5)]
        for reply in replies:
            await reply
        self.assertEqual([request["topic"] for request in self.bus.requests], list("01234"))

    async def test_unreachable(self) -> None:
        """
        A bus that does not reply in time is unreachable; the message names address and time.
        """
        self.bus.silent = True
        asked = self.manage.ask(manage.encode_heartbeat("x"), 3.0)
        await self.until(lambda: self.bus.requests)
        self.clock.advance(3.0)
        error = self.failureResultOf(asked, BusUnreachable).value
        self.assertEqual(str(error), f"no answer from the bus at {self.bus.address} within 3 s")

    async def test_late_answer(self) -> None:
        """
        A late reply does not answer the next request.
        """
        self.bus.silent = True
        late = self.manage.ask(manage.encode_heartbeat("late"))
        await self.until(lambda: self.bus.requests)
        self.clock.advance(REQUEST_TIMEOUT)
        self.failureResultOf(late, BusUnreachable)
        asked = self.manage.ask(manage.encode_heartbeat("next"))
        await self.until(lambda: len(self.bus.requests) == 2)
        late_envelope, next_envelope = self.bus.silenced
        self.bus.silenced = [late_envelope]
        self.bus.reply_late(b"late")
        self.bus.silenced = [next_envelope]
        self.bus.reply_late(b"next")
        self.assertEqual(await asked, b"next")

    async def test_close(self) -> None:
        """
        Closing the client fails the pending request.
        """
        self.bus.silent = True
        asked = self.manage.ask(manage.encode_heartbeat("x"))
        await self.until(lambda: self.bus.requests)
        self.manage.close()
        self.failureResultOf(asked, BusUnreachable)
        self.assertEqual(self.clock.getDelayedCalls(), [])
