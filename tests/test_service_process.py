"""
Tests for L{tbvast.service.process}.
"""

from __future__ import annotations

import os
import signal
from io import StringIO
from pathlib import Path

from twisted.application.service import Application, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver, Logger, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zmq import ZMQError
from zope.interface import implementer

from tbvast.errors import StartupRefused
from tbvast.interfaces import IReloadable
from tbvast.service.options import ServiceOptions
from tbvast.service.process import SequentialService, ServiceProcess, refusing
from tbvast.settings.schema import PluginSettings
from tests.doubles_service import ProcessDouble, ReactorDouble, parse_as_twistd


class Options(ServiceOptions):
    service = "tbvast-plugin"
    settings_type = PluginSettings


def parse(*arguments: str) -> Options:
    """
    The options of a service, as C{twistd} hands them to it.
    """
    return parse_as_twistd(Options, *arguments)


def daemon(test: SynchronousTestCase, *arguments: str) -> tuple[Options, int]:
    """
    The options of a daemon, and the status that C{twistd} reads.
    """
    options = parse(*arguments)
    read, write = os.pipe()
    test.addCleanup(os.close, read)
    test.addCleanup(os.close, write)
    assert options.parent is not None
    options.parent["statusPipe"] = write
    return options, read


class ServiceDouble(Service):
    """
    A service that records its events, and stops when told to.
    """

    def __init__(self, name: str, events: list[str], error: Exception | None = None) -> None:
        self.name = name
        self.stopped: Deferred[None] = Deferred()
        self._events = events
        self._error = error

    def startService(self) -> None:
        self._events.append(f"start {self.name}")
        if self._error is not None:
            raise self._error
        super().startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._events.append(f"stop {self.name}")
        return self.stopped


class RefusingTests(SynchronousTestCase):
    """
    Tests for L{refusing}.
    """

    def refuse(self, options: ServiceOptions, error: Exception) -> str:
        """
        @return: The text on standard error.
        """
        stderr = StringIO()

        def start() -> None:
            with refusing(options, stderr):
                raise error

        self.assertEqual(self.assertRaises(SystemExit, start).code, 1)
        return stderr.getvalue()

    def test_foreground(self) -> None:
        """
        In the foreground, standard error gets one line.
        """
        for error, line in [
            (StartupRefused("no engine"), "no engine"),
            (OSError(13, "Permission denied", "x"), "[Errno 13] Permission denied: 'x'"),
            (ZMQError(98, "Address already in use"), "Address already in use"),
            (
                CannotListenError("::1", 1, OSError("taken")),
                "Couldn't listen on ::1:1: taken.",
            ),
            (StartupRefused("two\nlines"), "two lines"),
        ]:
            with self.subTest(error):
                self.assertEqual(
                    self.refuse(parse("-n", "tbvast-plugin"), error), f"tbvast-plugin: {line}\n"
                )

    def test_daemon(self) -> None:
        """
        As a daemon, C{twistd} gets as much of the line as it reads, the log all.
        """
        options, read = daemon(self, "tbvast-plugin")
        with capturedLogs() as events:
            self.assertEqual(self.refuse(options, StartupRefused("é" + "x" * 200)), "")
        self.assertEqual(os.read(read, 1000), b"1 ?" + b"x" * 97)
        [event] = [e for e in events if "reason" in e]
        self.assertEqual(event["log_level"], LogLevel.critical)
        self.assertEqual(event["reason"], "é" + "x" * 200)

    def test_pid_file(self) -> None:
        """
        The pid file is removed if it is this process's own.
        """
        for content, left in [(str(os.getpid()), False), ("1", True), ("", True)]:
            path = self.mktemp()
            Path(path).write_text(content)
            self.refuse(parse("-n", "--pidfile", path, "tbvast-plugin"), StartupRefused("x"))
            self.assertEqual(os.path.exists(path), left)

    def test_defect(self) -> None:
        """
        A defect passes, with its traceback.
        """
        with self.assertRaises(KeyError), refusing(parse("-n", "tbvast-plugin")):
            raise KeyError("x")


class SequentialServiceTests(SynchronousTestCase):
    """
    Tests for L{SequentialService}.
    """

    def setUp(self) -> None:
        self.events: list[str] = []
        self.parent = SequentialService()

    def add(self, name: str, error: Exception | None = None) -> ServiceDouble:
        """
        A child.
        """
        child = ServiceDouble(name, self.events, error)
        child.setServiceParent(self.parent)
        return child

    def test_order(self) -> None:
        """
        Each child is stopped only when the next one has stopped.
        """
        first, second = self.add("1"), self.add("2")
        self.parent.startService()
        d = self.parent.stopService()
        self.assertEqual(self.events, ["start 1", "start 2", "stop 2"])
        second.stopped.callback(None)
        self.assertEqual(self.events[3:], ["stop 1"])
        self.assertNoResult(d)
        first.stopped.callback(None)
        self.successResultOf(d)
        self.assertFalse(self.parent.running)

    def test_stop_fails(self) -> None:
        """
        A child that cannot stop is logged; the others are stopped.
        """
        first, second = self.add("1"), self.add("2")
        self.parent.startService()
        d = self.parent.stopService()
        second.stopped.errback(ZeroDivisionError())
        first.stopped.callback(None)
        self.successResultOf(d)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_start_fails(self) -> None:
        """
        If a child cannot start, those after it are not started, and those before it
        are stopped.
        """
        self.add("1")
        self.add("2")
        self.add("3", StartupRefused("x"))
        self.add("4")
        self.assertRaises(StartupRefused, self.parent.startService)
        self.assertEqual(self.events, ["start 1", "start 2", "start 3", "stop 2", "stop 1"])
        self.assertFalse(self.parent.running)


class ServiceProcessTests(SynchronousTestCase):
    """
    Tests for L{ServiceProcess}.
    """

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.reactor = ReactorDouble()
        self.process = ProcessDouble()
        self.umasks: list[int] = []

    def make(self, *arguments: str) -> ServiceProcess:
        """
        A service as it is before it was started.
        """
        service = ServiceProcess(
            parse(*(arguments or ("-n",)), "tbvast-plugin", "--state-dir", self.path),
            self.reactor,
            set_handler=self.process.set_handler,
            at_exit=self.process.at_exit.append,
            end=self.process.end,
            tune=self.process.tune,
            umask=self.umasks.append,  # type: ignore[arg-type]
        )
        self.addCleanup(service.state.release)
        return service

    def start(self, service: ServiceProcess) -> None:
        """
        Start the service as C{twistd} does.
        """
        service.privilegedStartService()
        service.startService()
        self.reactor.start()

    def test_private(self) -> None:
        """
        New files are their owner's only, whatever the umask was.
        """
        self.make()
        self.assertEqual(self.umasks, [0o077])

    def test_tuned(self) -> None:
        """
        The interpreter is set once the services have started and the reactor runs.
        """
        service = self.make()
        service.privilegedStartService()
        service.startService()
        self.assertFalse(self.process.tuned)
        self.reactor.start()
        self.assertTrue(self.process.tuned)

    def test_state_directory(self) -> None:
        """
        The state directory is locked, and signed by the process that starts.
        """
        service = self.make()
        lock = Path(service.state.child("lock"))
        self.assertRaises(StartupRefused, self.make)
        lock.write_text("1")
        service.privilegedStartService()
        self.assertEqual(lock.read_text(), f"{os.getpid()}\n")

    def test_pid_file(self) -> None:
        """
        A daemon has its pid file in the state directory, unless told otherwise.
        """
        for arguments, path in [
            (["-n"], ""),
            (["--originalname"], os.path.abspath(os.path.join(self.path, "tbvast-plugin.pid"))),
            (["--pidfile="], ""),
            (["--pidfile=/x"], "/x"),
        ]:
            with self.subTest(arguments):
                service = self.make(*arguments)
                self.assertEqual(service._options.twistd["pidfile"], path)
                service.state.release()

    def test_log(self) -> None:
        """
        The application logs where the service says.
        """
        application = Application("x")
        service = self.make("--originalname")
        service.setServiceParent(application)
        Logger(observer=application.getComponent(ILogObserver)).info("hello")
        self.assertIn("hello", Path(service.state.child("tbvast-plugin.log")).read_text())

    def test_signals(self) -> None:
        """
        SIGINT and SIGTERM stop the reactor once, with exit status 0.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            service = self.make()
            self.start(service)
            self.process.kill(number)
            self.assertFalse(self.reactor.running)
            self.process.kill(number)
            self.assertEqual(self.process.exit(), 0)
            service.state.release()

    def test_stopped_otherwise(self) -> None:
        """
        A signal when the reactor stops for another reason does no harm.
        """
        self.start(self.make())
        self.reactor.stop()
        self.process.kill(signal.SIGTERM)
        self.assertEqual(self.process.exit(), 0)

    def test_rotate(self) -> None:
        """
        SIGUSR1 begins a new log file.
        """
        service = self.make("--originalname")
        self.start(service)
        self.process.kill(signal.SIGUSR1)
        self.assertTrue(os.path.exists(service.state.child("tbvast-plugin.log.1")))

    def test_reload(self) -> None:
        """
        SIGHUP has the services that can read their files again do so.
        """
        reloaded: list[str] = []

        @implementer(IReloadable)
        class Reloadable(Service):
            def reload(self) -> None:
                reloaded.append("again")

        service = self.make()
        Service().setServiceParent(service)
        Reloadable().setServiceParent(service)
        self.start(service)
        self.process.kill(signal.SIGHUP)
        self.assertTrue(self.reactor.running)
        self.assertEqual(reloaded, ["again"])

    def test_fail(self) -> None:
        """
        A service that cannot go on stops the reactor; the exit status is 1.
        """
        service = self.make()
        self.start(service)
        with capturedLogs() as events:
            service.fail("the disk is full")
        self.assertFalse(self.reactor.running)
        self.assertEqual(self.process.exit(), 1)
        self.assertEqual(events[0]["log_level"], LogLevel.critical)
        self.assertEqual(events[0]["reason"], "the disk is full")

    def test_fail_early(self) -> None:
        """
        A service that fails while it starts ends as soon as the reactor runs.
        """
        service = self.make()
        service.fail("no")
        self.start(service)
        self.assertFalse(self.reactor.running)
        self.assertEqual(self.process.exit(), 1)

    def test_refused(self) -> None:
        """
        A child that cannot start ends the process, as L{refusing} does.
        """
        options, read = daemon(self, "tbvast-plugin", "--state-dir", self.path)
        service = ServiceProcess(
            options, self.reactor, set_handler=self.process.set_handler, at_exit=id, umask=id
        )
        self.addCleanup(service.state.release)
        ServiceDouble("1", [], StartupRefused("the port is taken")).setServiceParent(service)
        self.assertRaises(SystemExit, service.startService)
        self.assertEqual(os.read(read, 100), b"1 the port is taken")
