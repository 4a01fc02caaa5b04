"""
Tests for L{tbvast.bridge.commands}, with real processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from devtools.services import until
from tbvast.bridge.commands.command_line import parse_command
from tbvast.bridge.commands.command_sink import CommandSink
from tbvast.bridge.commands.context_command import ContextCommand
from tbvast.bridge.commands.processes import CommandService
from tbvast.bridge.commands.stdout_sink import StdoutSink
from tbvast.errors import CommandFailed
from tbvast.stix.sightings import MatchType
from tests.functional.components import children

reactor: Any = installed_reactor
LIVE = MatchType.LIVE
NASTY = "a'b\"c; rm -rf $(id) `id` | x > y\n\\ %matchtype \N{SNOWMAN}"

STREAM = """
import json, sys
for line in sys.stdin:
    event = json.loads(line)
    event["seen"] = True
    print(json.dumps(event), flush=True)
"""
WHOLE = """
import json, sys
event = json.load(sys.stdin)
event["pid"] = __import__("os").getpid()
json.dump(event, sys.stdout, indent=2)
"""
ENVIRONMENT = """
import json, os, sys
for line in sys.stdin:
    print(json.dumps({"TBVAST_TEST": os.environ.get("TBVAST_TEST")}), flush=True)
"""
ARGUMENTS = """
import json, sys
json.dump({"arguments": sys.argv[1:], "event": json.load(sys.stdin)}, sys.stdout)
"""
APPEND = """
import sys
with open(sys.argv[1], "a") as f:
    for line in sys.stdin:
        f.write(line)
        f.flush()
"""


def python(program: str, *arguments: str) -> str:
    """
    @return: A command, as a configuration file would have it.
    """
    return shlex.join([sys.executable, "-c", program, *arguments])


def is_there(pid: int) -> bool:
    """
    Whether there is such a process, be it a zombie.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def started() -> set[int]:
    """
    The processes that this one has started and not reaped.
    """
    return set(children(os.getpid()))


class ProcessCase(TestCase):
    """
    The base of the tests: every process that a test starts has ended afterwards.
    """

    timeout = 60

    def setUp(self) -> None:
        self.before = started()

    def started(self, service: Any) -> Any:
        """
        Start a service, and stop it when the test is over.
        """
        service.startService()

        async def stop() -> None:
            await service.stopService()
            self.assertEqual(started() - self.before, set())

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return service

    def path(self) -> str:
        return os.path.abspath(self.mktemp())


class ContextCommandTests(ProcessCase):
    """
    Tests for L{ContextCommand}.
    """

    def transform(self, text: str, **kwargs: Any) -> ContextCommand:
        service: ContextCommand = self.started(
            ContextCommand(parse_command(text), reactor, reactor, **kwargs)
        )
        return service

    async def ask(self, service: ContextCommand, events: list[dict[str, Any]]) -> list[Any]:
        return await gatherResults([service.transform(e, "6.6.6.6", LIVE) for e in events])

    async def test_stream(self) -> None:
        """
        Many events go through one process, in order.
        """
        service = self.transform(python(STREAM), stream=True)
        events = [{"n": n} for n in range(2000)]
        answers = await self.ask(service, events)
        self.assertEqual(answers, [{"n": n, "seen": True} for n in range(2000)])
        self.assertEqual(len(started() - self.before), 1)

    async def test_cat(self) -> None:
        """
        Events of more than a pipe holds pass, up and down.
        """
        service = self.transform("/bin/cat", stream=True)
        events = [{"n": n, "payload": "x" * 300_000, "t": "a\nb"} for n in range(30)]
        self.assertEqual(await self.ask(service, events), events)

    async def test_whole(self) -> None:
        """
        A command that reads to the end is run once for each event.
        """
        service = self.transform(python(WHOLE))
        answers = await self.ask(service, [{"n": n} for n in range(6)])
        self.assertEqual([a["n"] for a in answers], list(range(6)))
        self.assertEqual(len({a["pid"] for a in answers}), 6)

    async def test_line_once(self) -> None:
        """
        A command that answers line by line can be run once for each event, too.
        """
        service = self.transform(python(STREAM))
        answers = await self.ask(service, [{"n": n} for n in range(3)])
        self.assertEqual(answers, [{"n": n, "seen": True} for n in range(3)])

    async def test_environment(self) -> None:
        """
        A command has the variables of the service, in either way.
        """
        self.patch(os, "environ", {**os.environ, "TBVAST_TEST": "yes"})
        for stream in (False, True):
            service = self.transform(python(ENVIRONMENT), stream=stream)
            self.assertEqual(await self.ask(service, [{}]), [{"TBVAST_TEST": "yes"}])

    async def test_pipe_through_shell(self) -> None:
        """
        A shell can be the command, and is then fed like any other.
        """
        service = self.transform("sh -c 'cat | cat'")
        self.assertEqual(await self.ask(service, [{"n": 1}]), [{"n": 1}])

    async def test_arguments(self) -> None:
        """
        Whatever the value, it is one argument, and nothing runs it.
        """
        text = python(ARGUMENTS, "--ioc", "%ioc", "x=%ioc,%matchtype")
        service = self.transform(text)
        answer = await service.transform({"n": 1}, NASTY, MatchType.RETRO)
        self.assertEqual(
            answer,
            {"arguments": ["--ioc", NASTY, f"x={NASTY},RETRO"], "event": {"n": 1}},
        )

    async def test_too_long(self) -> None:
        """
        A value that the system takes for no argument leaves the event as it is.
        """
        service = self.transform(python(ARGUMENTS, "%ioc"))
        event = {"n": 1}
        self.assertIs(await service.transform(event, "x" * (1 << 22), LIVE), event)

    async def test_failing(self) -> None:
        """
        A command that fails leaves the events as they are, and its complaint is
        in the log.
        """
        for stream in (False, True):
            service = self.transform(python("import sys; sys.exit('no licence')"), stream=stream)
            with capturedLogs() as logs:
                self.assertEqual(await self.ask(service, [{"n": 1}]), [{"n": 1}])
            failures = [e for e in logs if "stderr" in e]
            self.assertEqual([e["stderr"] for e in failures], ["no licence\n"])
            self.assertEqual([e["reason"] for e in failures], ["ended with exit status 1"])

    async def test_slow(self) -> None:
        """
        A command that does not answer is ended, even one that ignores SIGTERM.
        """
        program = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        )
        self.patch(CommandService, "TIMEOUT_SECONDS", 1.0)
        for stream in (False, True):
            service = self.transform(python(program), stream=stream, patience=0.3)
            self.assertEqual(await self.ask(service, [{"n": 1}]), [{"n": 1}])
            await until(reactor, lambda: not started() - self.before)

    async def test_killed(self) -> None:
        """
        A running command that is killed is replaced.
        """
        service = self.transform("cat", stream=True)
        await self.ask(service, [{"n": 1}, {"n": 2}])
        (pid,) = started() - self.before
        os.kill(pid, 9)
        await until(reactor, lambda: not is_there(pid))
        self.assertEqual(await self.ask(service, [{"n": 3}]), [{"n": 3}])
        (other,) = started() - self.before
        self.assertNotEqual(other, pid)

    async def test_stopped_while_asked(self) -> None:
        """
        The stop reports the waiting events unchanged and leaves no process.
        """
        service = self.transform(python("import time; time.sleep(600)", "%ioc"))
        answers = [service.transform({"n": n}, "x", LIVE) for n in range(10)]
        await until(reactor, lambda: len(started() - self.before) == 4)
        await service.stopService()
        self.assertEqual(await gatherResults(answers), [{"n": n} for n in range(10)])
        self.assertEqual(started() - self.before, set())


class CommandSinkTests(ProcessCase):
    """
    Tests for L{CommandSink}.
    """

    def sink(self, text: str, **kwargs: Any) -> CommandSink:
        service: CommandSink = self.started(
            CommandSink(parse_command(text), reactor, reactor, **kwargs)
        )
        return service

    async def test_each(self) -> None:
        """
        Each event was taken by a process of its own when its Deferred fires.
        """
        path = self.path()
        sink = self.sink(python(APPEND, path, "%ioc"))
        await gatherResults([sink.send({"n": n}, NASTY, LIVE) for n in range(8)])
        with open(path) as f:
            self.assertEqual(sorted(json.loads(row)["n"] for row in f), list(range(8)))

    async def test_chatty(self) -> None:
        """
        The output of a sink is ignored, and does not stop it.
        """
        sink = self.sink(python("import sys; sys.stdout.write('x' * 5_000_000)"))
        await sink.send({"n": 1}, "x", LIVE)

    async def test_failed(self) -> None:
        """
        A sink that fails says so.
        """
        sink = self.sink("sh -c 'echo disk full >&2; exit 3'")
        with self.assertRaises(CommandFailed) as caught:
            await sink.send({"n": 1}, "x", LIVE)
        self.assertIn("exit status 3 (its last line: 'disk full')", str(caught.exception))

    async def test_stream(self) -> None:
        """
        One process takes all events, and has time for the rest of them when it
        is stopped.
        """
        path = self.path()
        sink = self.sink(python(APPEND, path), stream=True)
        await gatherResults(
            [sink.send({"n": n, "payload": "x" * 1000}, "x", LIVE) for n in range(1000)]
        )
        self.assertEqual(len(started() - self.before), 1)
        await sink.stopService()
        with open(path) as f:
            self.assertEqual([json.loads(row)["n"] for row in f], list(range(1000)))

    async def test_stream_dies(self) -> None:
        """
        After the end of a process, the next one takes the events.
        """
        path = self.path()
        sink = self.sink(python(APPEND, path), stream=True)
        await sink.send({"n": 1}, "x", LIVE)
        (pid,) = started() - self.before
        await until(reactor, lambda: os.path.exists(path) and os.path.getsize(path) > 0)
        os.kill(pid, 9)
        await until(reactor, lambda: not is_there(pid))
        await sink.send({"n": 2}, "x", LIVE)
        await sink.stopService()
        with open(path) as f:
            self.assertEqual([json.loads(row)["n"] for row in f], [1, 2])

    async def test_stream_reads_nothing(self) -> None:
        """
        One that reads nothing makes events wait; stopping fails them.
        """
        sink = self.sink(python("import time; time.sleep(600)"), stream=True, patience=0.3)
        sent = [sink.send({"payload": "x" * 100_000}, "x", LIVE) for _ in range(5)]
        failed = gatherResults(
            [d.addCallbacks(lambda _: "taken", lambda f: f.check(CommandFailed)) for d in sent]
        )
        await until(reactor, lambda: started() - self.before)
        await sink.stopService()
        self.assertEqual(await failed, [CommandFailed] * 5)


class StdoutSinkTests(ProcessCase):
    """
    Tests for L{StdoutSink}.
    """

    async def test_pipe(self) -> None:
        """
        More than a pipe holds passes, with a reader that is slow.
        """
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        os.set_blocking(reading, False)
        sink = StdoutSink(reactor, reactor, writing)
        sink.startService()
        sent = gatherResults([sink.send({"n": n, "t": "x" * 50_000}, "x", LIVE) for n in range(10)])
        received = b""
        while received.count(b"\n") < 10:
            await deferLater(reactor, 0)
            with contextlib.suppress(BlockingIOError):
                received += os.read(reading, 1 << 16)
        await sent
        await sink.stopService()
        self.assertEqual([json.loads(row)["n"] for row in received.splitlines()], list(range(10)))

    async def test_file(self) -> None:
        """
        A file does as well.
        """
        path = self.path()
        with open(path, "wb") as f:
            sink = StdoutSink(reactor, reactor, f.fileno())
            await gatherResults([sink.send({"n": n}, "x", LIVE) for n in range(3)])
            await sink.stopService()
        with open(path) as f:
            self.assertEqual(f.read(), '{"n":0}\n{"n":1}\n{"n":2}\n')
