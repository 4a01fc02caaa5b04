"""
Tests for L{tbvast.bridge.commands.stdout_sink}.
"""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bridge.commands.stdout_sink import StdoutSink
from tbvast.errors import CommandFailed
from tbvast.stix.sightings import MatchType
from tests.doubles_processes import an_event, json_line

LIVE = MatchType.LIVE
IOC = "6.6.6.6"


class StdoutSinkTests(SynchronousTestCase):
    """
    Tests for L{StdoutSink}, on a pipe of its own.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.reactor = MemoryReactor()
        self.reader, writer = os.pipe()
        self.addCleanup(os.close, writer)
        self.service = StdoutSink(self.reactor, self.clock, writer)
        self.service.startService()

    def tearDown(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def step(self) -> None:
        """
        The descriptor is ready: every waiting writer writes once.
        """
        for writer in list(self.reactor.writers):
            failed = writer.doWrite()
            if failed is not None:
                writer.stopWriting()
                writer.connectionLost(failed)

    def test_lines(self) -> None:
        """
        Each event is one line, taken when it was written.
        """
        sent = [self.service.send({"x": n, "t": "a\nb"}, IOC, LIVE) for n in range(2)]
        self.assertNoResult(sent[0])
        self.step()
        self.step()
        for d in sent:
            self.successResultOf(d)
        self.assertEqual(os.read(self.reader, 100), b'{"x":0,"t":"a\\nb"}\n{"x":1,"t":"a\\nb"}\n')
        self.assertEqual(list(self.reactor.writers), [])

    def test_never_blocks(self) -> None:
        """
        No more is written at a time than a pipe takes that is ready.
        """
        document = {"x": "y" * 100_000}
        d = self.service.send(document, IOC, LIVE)
        received = b""
        while self.reactor.writers:
            self.assertNoResult(d)
            self.step()
            piece = os.read(self.reader, 1 << 20)
            self.assertLessEqual(len(piece), 4096)
            received += piece
        self.successResultOf(d)
        self.assertEqual(received, json_line(document))

    def test_gone(self) -> None:
        """
        Without a reader, everything fails.
        """
        os.close(self.reader)
        self.reader = -1
        sent = [self.service.send(an_event(n), IOC, LIVE) for n in range(2)]
        self.step()
        for d in sent:
            self.failureResultOf(d, CommandFailed)
        error = self.failureResultOf(self.service.send(an_event(3), IOC, LIVE), CommandFailed).value
        self.assertEqual(str(error), "command STDOUT: its reader has gone")
        self.successResultOf(self.service.stopService())

    def test_stop(self) -> None:
        """
        The rest is still written when the service is stopped.
        """
        d = self.service.send(an_event(0), IOC, LIVE)
        stopped = self.service.stopService()
        self.failureResultOf(self.service.send(an_event(1), IOC, LIVE), CommandFailed)
        self.assertNoResult(stopped)
        self.step()
        self.successResultOf(d)
        self.successResultOf(stopped)

    def test_stop_at_once(self) -> None:
        self.successResultOf(self.service.stopService())

    def test_stop_in_vain(self) -> None:
        """
        A reader that takes nothing is not waited for longer than the limit.
        """
        d = self.service.send(an_event(0), IOC, LIVE)
        stopped = self.service.stopService()
        self.clock.advance(5.0)
        self.failureResultOf(d, CommandFailed)
        self.successResultOf(stopped)
        self.assertEqual(list(self.reactor.writers), [])
