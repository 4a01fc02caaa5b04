"""
The two services as child processes, for tests of what is real.

C{RunningPlugin(reactor, state)} and C{RunningBridge(reactor, bus, state)} choose
free ports; C{start()} fires when the service is ready, C{stop()} when it has ended,
with its exit status, and C{saw(text)} when a line of its log holds a text.
C{plugin.ask(request)} fires with what the manage endpoint answers.
C{again()} makes one with the same ports and state, to be started after it. A test
gets them from L{ServicesTestCase}, which ends them whatever happens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor as installed_reactor
from twisted.trial.unittest import TestCase

from devtools.services import RunningBridge, RunningCommand, RunningPlugin
from tbvast.values import HostPort

__all__ = ["RunningBridge", "RunningCommand", "RunningPlugin", "ServicesTestCase"]

T = TypeVar("T", bound=RunningCommand)


class ServicesTestCase(TestCase):
    """
    Starts services which end with the test.
    """

    def plugin(self, *options: str, state: Path | None = None) -> RunningPlugin:
        """
        @return: One that was not started.
        """
        return self.ending(RunningPlugin(self.reactor, state or self.directory(), *options))

    def bridge(
        self, bus: HostPort, *options: str, live: bool = True, state: Path | None = None
    ) -> RunningBridge:
        """
        @param bus: The manage endpoint.
        @return: One that was not started.
        """
        return self.ending(
            RunningBridge(self.reactor, bus, state or self.directory(), *options, live=live)
        )

    def ending(self, command: T) -> T:
        """
        @return: The command, which is ended with the test.
        """
        self.addCleanup(command.stop)
        return command

    async def started(self, *commands: RunningPlugin | RunningBridge) -> None:
        """
        Start services one after the other, each when the one before is ready.
        """
        for command in commands:
            await command.start()

    def directory(self) -> Path:
        """
        @return: A new directory of this test.
        """
        path = Path(self.mktemp()).resolve()
        path.mkdir(parents=True)
        return path

    @property
    def reactor(self) -> Any:
        return installed_reactor
