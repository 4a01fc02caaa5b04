"""
The process of a service: start, stop, signals and exit status.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from zmq import ZMQError

from tbvast.errors import StartupRefused, TbvastError
from tbvast.interfaces import IReloadable
from tbvast.service.interpreter import tune_interpreter
from tbvast.service.logging import ServiceLog
from tbvast.service.options import ServiceOptions
from tbvast.service.state_directory import StateDirectory, default_directory
from tbvast.values import HostPort

_log = Logger()


@contextmanager
def refusing(options: ServiceOptions, stderr: TextIO | None = None) -> Iterator[None]:
    """
    Turn an error that keeps a service from starting into one line and exit status 1.

    In the foreground, the line goes to standard error. A daemon no longer has one: the
    line goes to its log, and its beginning to the C{twistd} that waits for it.

    @param options: The options of the service.
    @param stderr: The stream for the line in the foreground; by default the process's
        own standard error, which C{twistd} hides from C{sys.stderr}.
    @raise SystemExit: In place of L{TbvastError} and errors of the system; others are defects.
    """
    try:
        yield
    except (TbvastError, CannotListenError, OSError, ZMQError) as e:
        reason = " ".join(str(e).split())
        status_pipe = options.twistd.get("statusPipe")
        if status_pipe is None:
            print(f"{options.service}: {reason}", file=stderr or sys.__stderr__, flush=True)
        else:
            _log.critical("{service}: {reason}", service=options.service, reason=reason)
            # twistd reads 100 bytes.
            os.write(status_pipe, f"1 {reason}".encode("ascii", "replace")[:100])
        with suppress(OSError, ValueError):
            pid_file = options.twistd.get("pidfile")
            if pid_file and int(Path(pid_file).read_text()) == os.getpid():
                os.unlink(pid_file)
        raise SystemExit(1) from e


def check_free(what: str, address: HostPort) -> None:
    """
    Check that an address is free, before a daemon detaches from its terminal.

    @param what: The name of the listener for the message.
    @raise StartupRefused: If it is impossible to listen there now.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as e:
        raise StartupRefused(f"{what} cannot listen on {address}: {e.strerror}") from e


class SequentialService(MultiService):
    """
    Services that depend on each other. They are started in order and stopped in reverse
    order, each only when the previous one has stopped.
    """

    _log = Logger()

    def startService(self) -> None:
        """
        Start the children. If one cannot start, those before it are stopped.
        """
        Service.startService(self)
        started: list[IService] = []
        try:
            for service in self:
                service.startService()
                started.append(service)
        except BaseException:
            Service.stopService(self)
            for service in reversed(started):
                maybeDeferred(service.stopService).addErrback(self._eb_stop, service)
            raise

    def stopService(self) -> Deferred[None]:
        """
        @return: Fires when all children have stopped, or failed to.
        """
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop_children())

    async def _stop_children(self) -> None:
        for service in reversed(list(self)):
            await maybeDeferred(service.stopService).addErrback(self._eb_stop, service)

    def _eb_stop(self, failure: Any, service: IService) -> None:
        self._log.failure("Cannot stop {service}", failure, service=service)


class ServiceProcess(SequentialService):
    """
    The service that C{twistd} runs. It owns the state directory, the log, the signal
    handlers, the tuning of the interpreter, and the exit status.

    SIGINT, SIGTERM and a closed terminal stop it with exit status 0; SIGUSR1 rotates
    the log file; SIGHUP makes its L{IReloadable} services read their files again.

    @ivar state: The state directory, locked.
    """

    def __init__(
        self,
        options: ServiceOptions,
        reactor: Any,
        *,
        log_aside: bool = False,
        set_handler: Callable[[int, Callable[[int, Any], None]], Any] = signal.signal,
        at_exit: Callable[[Callable[[], None]], Any] = atexit.register,
        end: Callable[[int], None] = os._exit,
        tune: Callable[[], None] = tune_interpreter,
        umask: Callable[[int], int] = os.umask,
    ) -> None:
        """
        @param options: Parsed; where to find the state and the log.
        @param log_aside: Whether standard output has another use than the log.
        @param set_handler: Installs a signal handler.
        @param at_exit: Registers a callable for the end of the interpreter.
        @param end: Ends the process with an exit status.
        @param tune: Tunes the interpreter, once the reactor runs.
        @param umask: Sets the permissions that new files do not get.
        @raise StartupRefused: If the state directory or the log file cannot be used.
        """
        super().__init__()
        self.setName(options.service)
        self._options = options
        self._reactor = reactor
        self._set_handler = set_handler
        self._end = end
        self._tune = tune
        self._stopping = False
        self._failed = False
        self.state = StateDirectory(
            options.settings.state_dir or default_directory(options.service, os.environ)
        )
        umask(0o077)
        self.state.acquire()
        parent = options.parent
        if parent is not None and options.pid_file_open and not parent["nodaemon"]:
            # This process has locked the state directory, so a pid file in it is stale.
            parent["pidfile"] = self.state.child(f"{options.service}.pid")
        self._service_log = ServiceLog(
            options.settings.loglevel,
            options.twistd,
            self.state.child(f"{options.service}.log"),
            log_aside,
        )
        at_exit(self._exit)

    def setServiceParent(self, parent: Any) -> None:
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._service_log.observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        self.state.sign()  # a daemon has been forked since
        with refusing(self._options):
            super().privilegedStartService()

    def startService(self) -> None:
        with refusing(self._options):
            super().startService()
        self._reactor.callWhenRunning(self._take_signals)
        self._reactor.callWhenRunning(self._tune)

    def _take_signals(self) -> None:
        """
        Replace the reactor's signal handlers, which would end C{twistd} by the signal.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            self._set_handler(number, self._on_stop_signal)
        self._set_handler(signal.SIGHUP, self._on_hangup_signal)
        self._set_handler(
            signal.SIGUSR1, lambda *_: self._reactor.callFromThread(self._service_log.rotate)
        )
        self._had_terminal = os.isatty(0)

    def _on_stop_signal(self, number: int, frame: Any) -> None:
        self._reactor.callFromThread(self._stop, signal.Signals(number).name)

    def _on_hangup_signal(self, number: int, frame: Any) -> None:
        if self._had_terminal and not os.isatty(0):
            self._on_stop_signal(number, frame)
        else:
            self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        for service in self:
            if IReloadable.providedBy(service):
                service.reload()

    def _stop(self, reason: str) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._log.info("Stopping: {reason}.", reason=reason)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            self._log.debug("The reactor was stopped already.")

    def fail(self, reason: str) -> None:
        """
        Stop the process in order, with exit status 1.

        @param reason: The reason why it cannot continue, in one line.
        """
        self._failed = True
        self._log.critical("{service} cannot go on: {reason}", service=self.name, reason=reason)
        self._reactor.callWhenRunning(self._stop, "failed")

    def _exit(self) -> None:
        """
        Set the exit status: C{twistd} has no other way to do it.
        """
        if self._failed:
            self._end(1)
