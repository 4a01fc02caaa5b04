"""
Which version of an indicator is in force, whatever the clocks of those who publish say;
with the real plugin, the C{tbvast} command and the real bridge.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred

from tbvast.protocol.manage import encode_status
from tbvast.stix.documents import timestamp
from tests.doubles import indicator_document, indicator_id
from tests.functional.blocking import LIMIT
from tests.functional.components import require_tenzir, wait_until
from tests.functional.services import RunningPlugin, ServicesTestCase
from tests.functional.test_cli import Tool
from tests.functional.test_security import KeysTestCase

AHEAD = (timedelta(minutes=10), timedelta(days=57 * 365))


def dated(number: int = 1, ahead: timedelta = timedelta(0), **changes: Any) -> bytes:
    """
    An indicator's document.

    @param ahead: By how much its version is ahead of the clock.
    """
    modified = timestamp(datetime.now(UTC) + ahead)
    return indicator_document(number, None, **{"modified": modified, **changes})


class CommandVersionsTests(ServicesTestCase):
    """
    With a plugin that has no keys.
    """

    timeout = 120.0
    running: RunningPlugin

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]
        self.running = self.plugin()
        return self.running.start()

    async def call(self, name: str, *arguments: str, stdin: bytes = b"", status: int = 0) -> Tool:
        """
        Run a command to its end.

        @param status: The exit status that it has to have.
        """
        tool = Tool(name, f"--threatbus={self.running.manage}", *arguments, stdin=stdin)
        self.ending(tool)
        self.assertEqual(await tool.wait(), status, tool.output)
        return tool

    async def in_force(self) -> int:
        report = await self.running.ask(encode_status())
        return int(report["journal"]["indicators"])

    async def test_removed(self) -> None:
        """
        What is dated ahead of the bus's clock is removed when that is asked for, and
        stays so; whoever publishes it all the same is told, with its id, and fails.
        """
        for number, ahead in enumerate(AHEAD, 1):
            wrong = dated(number, ahead)
            await self.call("publish", "-", stdin=wrong)
            self.assertEqual(await self.in_force(), 1)
            tool = await self.call("remove", indicator_id(number))
            self.assertEqual((tool.out, tool.err), (["1 indicator: 1 removed"], []))
            self.assertEqual(await self.in_force(), 0)
            tool = await self.call("publish", "-", stdin=wrong, status=1)
            self.assertEqual(tool.out, ["1 indicator: 1 outdated"])
            (line,) = tool.err
            self.assertIn(f"standard input:1: indicator 1: {indicator_id(number)}: not taken", line)
            self.assertRegex(line, "removed since .*Z, and only one that was modified after .*Z")
            self.assertEqual(await self.in_force(), 0)
            tool = await self.call("remove", indicator_id(number))
            self.assertEqual(tool.out, ["1 indicator: 1 removed before"])
            tool = await self.call("publish", "-", stdin=dated(number))
            self.assertEqual(await self.in_force(), 1)
            await self.call("remove", indicator_id(number))

    async def test_corrected(self) -> None:
        """
        It is corrected and revoked by what is dated right; its repeats change nothing.
        """
        for number, ahead in enumerate(AHEAD, 1):
            wrong = dated(number, ahead)
            await self.call("publish", "-", stdin=wrong)
            tool = await self.call("publish", "-", stdin=wrong)
            self.assertEqual(tool.out, ["1 indicator: 1 repeated (in force already)"])
            right = dated(number, pattern="[domain-name:value = 'right.example']")
            tool = await self.call("publish", "-", stdin=right)
            self.assertEqual(tool.out, ["1 indicator: 1 accepted"])
            tool = await self.call("publish", "-", stdin=wrong, status=1)
            self.assertIn("was there before; a later version is in force", tool.err[0])
            await self.call("publish", "-", stdin=dated(number, revoked=True))
            self.assertEqual(await self.in_force(), 0)
            tool = await self.call("publish", "-", stdin=right, status=1)
            self.assertEqual(await self.in_force(), 0)

    async def test_older(self) -> None:
        """
        An older version is no success.
        """
        await self.call("publish", "-", stdin=dated())
        tool = await self.call("publish", "-", stdin=dated(1, -timedelta(days=1)), status=1)
        self.assertEqual(tool.out, ["1 indicator: 1 outdated"])
        self.assertIn(f"{indicator_id(1)}: not taken by the bus: a later version", tool.err[0])

    async def test_removal_of_9999(self) -> None:
        """
        A removal that says 9999 does not keep an indicator from being published again.
        """
        await self.call("publish", "-", stdin=dated())
        stranger = dated(
            pattern=None, x_threatbus_update="REMOVE", modified="9999-12-31T23:59:59.999Z"
        )
        await self.call("publish", "-", stdin=stranger)
        self.assertEqual(await self.in_force(), 0)
        tool = await self.call("publish", "-", stdin=dated())
        self.assertEqual(tool.out, ["1 indicator: 1 accepted"])
        self.assertEqual(await self.in_force(), 1)

    async def test_bridge(self) -> None:
        """
        A bridge never keeps what the bus has undone, neither while it listens nor when it
        comes back.
        """
        require_tenzir(self)
        bridge = self.bridge(self.running.manage, live=False)
        await self.started(bridge)
        await self.call("publish", "-", stdin=dated(1, AHEAD[1]) + b"\n" + dated(2, AHEAD[1]))
        await self.stored(2)
        await self.call("remove", indicator_id(1))
        await self.stored(1)
        await bridge.stop()
        await self.call("remove", indicator_id(2))
        await self.call("publish", "-", stdin=dated(1))
        again = self.ending(bridge.again())
        await self.started(again)
        await self.call("publish", "-", stdin=dated(3))
        await self.stored(2)

    async def stored(self, count: int) -> None:
        """
        Wait until a bridge says that it has so many indicators.
        """
        found = None
        deadline = self.reactor.seconds() + LIMIT
        while found != count:
            self.assertLess(self.reactor.seconds(), deadline, f"{found} indicators")
            report = await self.running.ask(encode_status())
            for each in report["subscriptions"]:
                found = each["report"].get("store", {}).get("indicators")


class OwnersTests(KeysTestCase):
    """
    With a plugin that has keys.
    """

    def call(self, client: str, name: str, *arguments: str, stdin: bytes = b"") -> tuple[int, str]:
        """
        @return: A command's exit status, and what it said.
        """
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tbvast.cli.main", name),
                f"--threatbus={self.bus.manage}",
                f"--curve-key={self.keys.secret(client)}",
                f"--server-key={self.keys.public('bus')}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            timeout=LIMIT,
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    def in_force(self) -> int:
        return int(self.bus.status()["journal"]["indicators"])

    def test_another_ones(self) -> None:
        """
        Nobody removes or replaces what is another's without the permission to manage
        intel: by request it is refused with the reason, on sub it is dropped, logged and
        counted. Its owner may, and whoever has the permission.
        """
        self.make("feed", "other", "manager", feed="publish-intel", other="publish-intel",
                  manager="publish-intel,manage-intel")  # fmt: skip
        self.assertEqual(self.call("feed", "publish", "-", stdin=dated())[0], 0)
        for name, arguments, stdin in (
            ("remove", [indicator_id(1)], b""),
            ("publish", ["-"], dated(1, timedelta(days=1))),
            ("publish", ["-"], dated(1, modified="9999-12-31T23:59:59Z", revoked=True)),
        ):
            status, said = self.call("other", name, *arguments, stdin=stdin)
            self.assertEqual(status, 1, said)
            self.assertIn(f"{indicator_id(1)}: refused by the bus: it belongs to feed", said)
            self.assertIn("manage-intel", said)
            self.assertEqual(self.in_force(), 1)
        refused = self.bus.status()["received"]["indicator"]["refused"]
        self.assertEqual(refused, 3)
        publisher = self.publisher("other")
        publisher.send(b"stix2/indicator " + dated(x_threatbus_update="REMOVE"))
        wait_until(lambda: self.bus.status()["received"]["indicator"]["refused"] == refused + 1)
        self.assertIn(f"Refused a change of {indicator_id(1)} by other", self.bus.log)
        self.assertEqual(self.in_force(), 1)
        self.assertEqual(self.call("feed", "publish", "-", stdin=dated())[0], 0)
        self.assertEqual(self.call("manager", "remove", indicator_id(1))[0], 0)
        self.assertEqual(self.in_force(), 0)
        self.assertEqual(self.call("other", "publish", "-", stdin=dated())[0], 1)
        self.assertEqual(self.call("feed", "publish", "-", stdin=dated())[0], 0)
        self.assertEqual(self.in_force(), 1)
