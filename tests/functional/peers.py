"""
The old programs, unmodified, as they are to be had from the package registry.

Each is installed once into a virtual environment of its own, in C{build/peers} of the
checkout; a test gets it from L{PeersTestCase}, which ends it whatever happens.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import SkipTest

import msgspec
from twisted.internet.threads import deferToThread

from tbvast.protocol.manage import encode_publish
from tests.functional.raw import LIMIT, RawClient
from tests.functional.services import RunningCommand, RunningPlugin, ServicesTestCase

INSTALL_LIMIT = 300.0
"""
Seconds that an installation may take.
"""

REPEAT = 1.0
"""
Seconds without an answer after which something is sent again.
"""

CONSTRAINTS = Path(__file__).with_name("peer_constraints.txt")

PEERS = Path(__file__).parents[2] / "build" / "peers"

INTERPRETERS = ("python3.12", "python3.11", "python3.10", "python3.9", "python3.8")

SUITABLE = "import ensurepip, sys, venv; sys.exit(not (3, 8) <= sys.version_info[:2] <= (3, {}))"
"""
What an interpreter ends well with if an old program runs on it.
"""


class Program(msgspec.Struct, frozen=True):
    """
    @ivar command: What it is called.
    @ivar requirements: What has to be installed; the versions are in L{CONSTRAINTS}.
    @ivar newest: The minor version of the last Python that it runs on.
    """

    command: str
    requirements: tuple[str, ...]
    newest: int = 12


THREATBUS = Program(
    "threatbus",
    ("threatbus", "threatbus-inmem", "threatbus-zmq"),
    newest=11,  # since 3.12, no thread can be started once the main thread has ended
)

SURICATA_THREATBUS = Program("suricata-threatbus", ("suricata-threatbus",))

VAST_THREATBUS = Program(
    "vast-threatbus",
    # pyvast imports distutils, which Python has not had since 3.12.
    ("vast-threatbus", "pyvast", "setuptools; python_version >= '3.12'"),
)


class Uninstallable(Exception):
    """
    An old program cannot be had; the argument says why, in one line.
    """


def installed(program: Program) -> list[str]:
    """
    Install a program, if it was not before. Blocks.

    @return: The start of a command line.
    @raise Uninstallable: If it cannot be.
    """
    folder = PEERS / program.command
    stamp = folder / "installed"
    wanted = "\n".join((*program.requirements, CONSTRAINTS.read_text()))
    python = folder / "bin" / "python"
    PEERS.mkdir(parents=True, exist_ok=True)
    with (PEERS / f"{program.command}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tests may run at the same time
        if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
            _run(program, interpreter(program), "-m", "venv", "--clear", str(folder))
            _run(
                *(program, str(python), "-m", "pip", "install", "--quiet", "--retries=1"),
                *("--disable-pip-version-check", f"--constraint={CONSTRAINTS}"),
                *program.requirements,
            )
            stamp.write_text(wanted)
    # Isolated, so that it does not see what the tests themselves run with.
    return [str(python), "-I", str(folder / "bin" / program.command)]


def _run(program: Program, python: str, *arguments: str) -> None:
    try:
        done = subprocess.run(
            [python, "-I", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=INSTALL_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise Uninstallable(
            f"{program.command} was not installed within {INSTALL_LIMIT:g} s"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it did not say why"]
        reason = next((line for line in said if line.startswith("ERROR: ")), said[-1])
        raise Uninstallable(
            f"{program.command} cannot be installed: {reason.removeprefix('ERROR: ')}"
        )


def logging_to_console(folder: Path, verbosity: str) -> dict[str, Any]:
    """
    What the programs have to be told of their logs.
    """
    return {
        "console": True,
        "console_verbosity": verbosity,
        "file": False,
        "file_verbosity": verbosity,
        "filename": str(folder / "log"),
    }


def interpreter(program: Program) -> str:
    """
    A Python that a program runs on: this one, if it is.

    @raise Uninstallable: If there is none.
    """
    question = SUITABLE.format(program.newest)
    for candidate in (sys.executable, *filter(None, map(shutil.which, INTERPRETERS))):
        asked = subprocess.run([candidate, "-I", "-c", question], capture_output=True)
        if asked.returncode == 0:
            return candidate
    raise Uninstallable(
        f"{program.command} needs a Python from 3.8 to 3.{program.newest}, and there is none"
    )


class RunningPeer(RunningCommand):
    """
    An old program as a child process, with its configuration file.
    """

    def __init__(
        self, reactor: Any, command: Sequence[str], config: dict[str, Any], folder: Path
    ) -> None:
        """
        @param command: As from L{installed}.
        @param folder: Where the configuration file is written.
        """
        super().__init__(reactor, Path(command[-1]).name)
        self._command = command
        self._config = config
        self._folder = folder

    def start(self) -> None:
        """
        Start it; L{saw} tells how far it is.
        """
        path = self._folder / "config.yaml"
        path.write_text(json.dumps(self._config))  # YAML, too
        self.run([*self._command, f"--config={path}"])

    def again(self) -> RunningPeer:
        """
        @return: One to start when this has ended, with the same configuration.
        """
        return RunningPeer(self._reactor, self._command, self._config, self._folder)


class PeersTestCase(ServicesTestCase):
    """
    Starts old programs which end with the test.
    """

    async def peer(
        self, program: Program, config: dict[str, Any], commands: Path | None = None
    ) -> RunningPeer:
        """
        @param config: What its configuration file holds, but for the logging.
        @param commands: A folder in which it looks for commands first.
        @return: One that was not started.
        @raise SkipTest: If it cannot be installed; a failure where C{CI} is C{true}.
        """
        try:
            command = await deferToThread(installed, program)
        except Uninstallable as e:
            self._unavailable(str(e))
        if commands is not None:
            path = os.pathsep.join((str(commands), os.environ.get("PATH", os.defpath)))
            command = [shutil.which("env") or "env", f"PATH={path}", *command]
        folder = self.directory()
        logging = logging_to_console(folder, "DEBUG")
        return self.ending(
            RunningPeer(self.reactor, command, {"logging": logging, **config}, folder)
        )

    async def restarted(self, bus: RunningPlugin) -> RunningPlugin:
        """
        @param bus: One that has ended.
        @return: One that runs, with the same ports and state.
        """
        again = self.ending(bus.again())
        await again.start()
        return again

    async def subscriber(self, port: int, topic: str = "stix2/sighting") -> RawClient:
        """
        @param port: Of a manage endpoint.
        @return: One that has subscribed.
        """
        client = RawClient(port)
        self.addCleanup(client.close)
        await deferToThread(client.subscribe, topic)
        return client

    def _unavailable(self, reason: str) -> NoReturn:
        if os.environ.get("CI") == "true":
            raise AssertionError(reason)
        raise SkipTest(reason)


def sighting(
    client: RawClient, known: dict[str, Any], report: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """
    Wait for a sighting; whatever else comes is passed over.

    @param known: The indicator that was seen.
    @param report: Has it reported; called again while nothing comes, since an old
        program's PUB socket drops what it is given before the bus listens.
    """
    deadline = time.monotonic() + LIMIT
    report()
    while time.monotonic() < deadline:
        try:
            kind, document = client.receive(REPEAT)
        except AssertionError:
            report()
            continue
        if kind == "sighting" and document["sighting_of_ref"] == known["id"]:
            found: dict[str, Any] = document
            return found
    raise AssertionError(f"no sighting of {known['id']} within {LIMIT} s")


def write_command(path: Path, line: str) -> None:
    """
    Make an executable command.

    @param line: What it does, for the shell; C{"$@"} are its arguments.
    """
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)


async def publish(bus: RunningPlugin, document: dict[str, Any]) -> None:
    """
    Publish an indicator, and see it accepted.
    """
    reply = await bus.ask(encode_publish([json.dumps(document).encode()]))
    if reply["outcomes"] != ["accepted"]:
        raise AssertionError(f"{document['id']}: {reply}")
