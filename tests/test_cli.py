"""
Tests for L{tbvast.cli.main}.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.cli.keys import KeyFiles, keygen
from tbvast.cli.main import INCOMPLETE, INTERRUPTED, UNREACHABLE, USAGE, make_parser, run
from tbvast.cli.publish import publish, remove
from tbvast.cli.status import status
from tbvast.cli.terminal import Screen
from tbvast.cli.watch import watch
from tbvast.errors import BusRefused, BusUnreachable, SettingsInvalid
from tbvast.values import HostPort
from tbvast.zeromq.curve import KeyUnusable

BUS = HostPort("localhost", 13370)
ASKED = {"bus": BUS, "keys": KeyFiles()}


class ParserTests(SynchronousTestCase):
    def command(self, *arguments: str) -> Any:
        options = make_parser().parse_args(arguments)
        return options.command(options)

    def test_publish(self) -> None:
        command = self.command("publish", "a", "-", "--threatbus", "[::1]:7")
        self.assertIs(command.func, publish)
        self.assertEqual(
            command.keywords, {"bus": HostPort("::1", 7), "keys": KeyFiles(), "files": ["a", "-"]}
        )

    def test_remove(self) -> None:
        command = self.command("remove", "a", "b")
        self.assertIs(command.func, remove)
        self.assertEqual(command.keywords, {**ASKED, "names": ["a", "b"]})

    def test_watch(self) -> None:
        command = self.command("watch")
        self.assertIs(command.func, watch)
        self.assertEqual(
            command.keywords,
            {
                **ASKED,
                "stream": None,
                "snapshot": 0,
                "count": 0,
                "as_json": False,
            },
        )
        command = self.command("watch", "sighting", "--snapshot=3", "--count=2", "--json")
        self.assertEqual(
            command.keywords,
            {**ASKED, "stream": "sighting", "snapshot": 3, "count": 2, "as_json": True},
        )

    def test_status(self) -> None:
        command = self.command("status", "--json")
        self.assertIs(command.func, status)
        self.assertEqual(command.keywords, {**ASKED, "as_json": True})

    def test_keys(self) -> None:
        """
        Every command with a connection to a bus has the options of its keys.
        """
        for arguments in (["publish", "-"], ["remove", "x"], ["watch"], ["status"]):
            command = self.command(*arguments, "--curve-key=a", "--server-key=b")
            self.assertEqual(command.keywords["keys"], KeyFiles("a", "b"))

    def test_keygen(self) -> None:
        command = self.command("keygen", "keys")
        self.assertIs(command.func, keygen)
        self.assertEqual(command.keywords, {"directory": "keys", "name": "tbvast"})
        command = self.command("keygen", "keys", "--name=feed")
        self.assertEqual(command.keywords["name"], "feed")

    def test_refused(self) -> None:
        """
        Invalid arguments are reported, with exit status 2.
        """
        for arguments, words in (
            ([], "COMMAND"),
            (["blub"], "blub"),
            (["publish"], "FILE"),
            (["keygen"], "DIR"),
            (["keygen", "keys", "--threatbus=a:1"], "--threatbus"),
            (["status", "--threatbus", "here"], "'here' is not HOST:PORT"),
            (["watch", "weather"], "weather"),
            (["watch", "--count", "-1"], "-1"),
            (["watch", "--snapshot", "many"], "'many' is not a whole number"),
        ):
            output = io.StringIO()
            with redirect_stderr(output):
                error = self.assertRaises(SystemExit, make_parser().parse_args, arguments)
            self.assertEqual(error.code, 2)
            self.assertIn(words, output.getvalue())


class RunTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.err = io.StringIO()
        self.screen = Screen(io.StringIO(), self.err)
        self.reactor = MemoryReactorClock()

    def run_with(self, outcome: Deferred[bool]) -> Deferred[int]:
        async def command(reactor: Any, screen: Screen) -> bool:
            return await outcome

        return Deferred.fromCoroutine(run(self.reactor, self.screen, command))

    def test_done(self) -> None:
        for result, expected in ((True, 0), (False, 1)):
            outcome: Deferred[bool] = Deferred()
            status = self.run_with(outcome)
            outcome.callback(result)
            self.assertEqual(self.successResultOf(status), expected)
        self.assertEqual(self.err.getvalue(), "")

    def test_failed(self) -> None:
        """
        An error is one line and an exit status.
        """
        for error, expected in (
            (BusUnreachable("localhost:13370", 5), UNREACHABLE),
            (BusRefused("publish", "no"), INCOMPLETE),
            (SettingsInvalid("FILE", "x\x1b", "a file"), USAGE),
            (KeyUnusable("a.key", "no such file"), USAGE),
        ):
            outcome: Deferred[bool] = Deferred()
            status = self.run_with(outcome)
            outcome.errback(error)
            self.assertEqual(self.successResultOf(status), expected)
            self.assertEqual(self.err.getvalue(), f"tbvast: {error}\n")
            self.err.truncate(0)
            self.err.seek(0)

    def test_interrupted(self) -> None:
        """
        When the reactor stops, it cancels the command and waits for its end.
        """
        stopping: Deferred[None] = Deferred()

        async def command(reactor: Any, screen: Screen) -> bool:
            try:
                return await Deferred()
            finally:
                await stopping

        status = Deferred.fromCoroutine(run(self.reactor, self.screen, command))
        [(trigger, arguments, keywords)] = self.reactor.triggers["before"]["shutdown"]
        waited = trigger(*arguments, **keywords)
        self.assertNoResult(waited)
        stopping.callback(None)
        self.assertIsNone(self.successResultOf(waited))
        self.assertEqual(self.successResultOf(status), INTERRUPTED)

    def test_defect(self) -> None:
        """
        An unexpected exception is not hidden.
        """
        outcome: Deferred[bool] = Deferred()
        status = self.run_with(outcome)
        outcome.errback(ZeroDivisionError())
        self.failureResultOf(status, ZeroDivisionError)
