"""
Doubles for L{tbvast.service}: a process without signals, exit status or reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.error import ReactorNotRunning
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

from tbvast.service.options import ServiceOptions

OptionsType = TypeVar("OptionsType", bound=ServiceOptions)


def parse_as_twistd(options_type: type[OptionsType], *arguments: str) -> OptionsType:
    """
    The options of a service, as C{twistd} hands them to it.

    @param arguments: The command line of C{twistd}.
    """

    class TwistdOptions(ServerOptions):
        subCommands = [(options_type.service, None, options_type, "")]

    twistd: Any = TwistdOptions()
    twistd.parseOptions(list(arguments))
    options: OptionsType = twistd.subOptions
    return options


class ReactorDouble:
    """
    The start and stop of a reactor, without its events.

    @ivar running: Whether it runs.
    """

    def __init__(self) -> None:
        self.running = False
        self._waiting: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def start(self) -> None:
        """
        Begin to run.
        """
        self.running = True
        for call, arguments in self._waiting:
            call(*arguments)

    def callWhenRunning(self, call: Callable[..., Any], *arguments: Any) -> None:
        if self.running:
            call(*arguments)
        else:
            self._waiting.append((call, arguments))

    def callFromThread(self, call: Callable[..., Any], *arguments: Any) -> None:
        call(*arguments)

    def stop(self) -> None:
        if not self.running:
            raise ReactorNotRunning
        self.running = False


class ProcessDouble:
    """
    The state of a process: handlers by signal, exit handlers, and an exit status.

    @ivar tuned: Whether its interpreter has been tuned.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, Any], None]] = {}
        self.at_exit: list[Callable[[], None]] = []
        self.status = 0
        self.tuned = False

    def tune(self) -> None:
        self.tuned = True

    def set_handler(self, number: int, handler: Callable[[int, Any], None]) -> None:
        self.handlers[number] = handler

    def kill(self, number: int) -> None:
        """
        Deliver a signal.
        """
        self.handlers[number](number, None)

    def end(self, status: int) -> None:
        self.status = status

    def exit(self) -> int:
        """
        End as the interpreter does.

        @return: The exit status.
        """
        for call in reversed(self.at_exit):
            call()
        return self.status
