"""
Real components for functional tests: found, started, fed, and ended again.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from devtools.services import free_ports
from tbvast.engines import binaries
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.certificate import provide_certificate
from tbvast.engines.tenzir.configuration import (
    CERTIFICATE_NAME,
    CLIENT_SETTINGS,
    Tls,
    command_settings,
    node_settings,
)
from tbvast.engines.tenzir.node_policy import disabled_plugins, list_plugins
from tbvast.errors import EngineMissing
from tbvast.service.child_process import launch_command

LIMIT = 60.0
"""
Seconds that anything may take before a test gives it up.
"""

FORMATS = {
    # Some batches of several event types are refused as "malformed_message" (6.20).
    "suricata": "from_stdin { read_suricata _batch_size=1 }",
    "zeek-json": "from_stdin { read_zeek_json }",
    "zeek-tsv": "from_stdin { read_zeek_tsv }",
    "ndjson": "from_stdin { read_ndjson }",
}
"""
How events of each format are imported.
"""


def require_tenzir(testcase: SynchronousTestCase) -> str:
    """
    @return: The path of the engine's command.
    @raise SkipTest: If it is not installed; a failure where C{CI} is C{true}.
    """
    try:
        binaries.find_node()
        return binaries.find_client()
    except EngineMissing as e:
        if os.environ.get("CI") == "true":
            testcase.fail(str(e))
        raise SkipTest(str(e)) from None


def wait_until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """
    Wait for a condition, from a thread that may be blocked.

    @param limit: Seconds.
    @raise AssertionError: If it did not come true in time.
    """
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not true after {limit} s: {condition}")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """
    Whether a process runs: it is there, and is not a zombie.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> list[int]:
    """
    The processes that a process has started and not reaped.
    """
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def listening(pid: int) -> list[str]:
    """
    The TCP addresses that a process listens on.
    """
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for row in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = row.split()
            if fields[3] == "0A" and fields[9] in inodes:
                host, port = fields[1].split(":")
                shown = ".".join(str(byte) for byte in reversed(bytes.fromhex(host[-8:])))
                found.append(f"{shown}:{int(port, 16)}")
    return found


class RealNode:
    """
    A Tenzir node on a free port of the loopback address, with nothing in it, with a certificate
    and the policy of an embedded one.

    @ivar endpoint: C{HOST:PORT}.
    @ivar tls: The files of its clients.
    @ivar client: The configuration file of its clients.
    @ivar state: A directory with that file, as a bridge's state directory has it.
    """

    def __init__(self, port: int | None = None, plugins: Collection[str] = ()) -> None:
        """
        @param port: Where to listen; a free port if not given.
        @param plugins: The plugins that it may use besides those that tbvast needs.
        """
        self.endpoint = f"127.0.0.1:{port or free_ports(1)[0]}"
        self.state = Path(tempfile.mkdtemp(prefix="tbvast-node-"))
        self.client = self.state / CLIENT_SETTINGS
        self.client.parent.mkdir()
        certificate = self.client.with_name(CERTIFICATE_NAME)
        provide_certificate(certificate, datetime.datetime.now(datetime.UTC))
        self.tls = Tls.of_embedded(certificate)
        self.client.write_text(command_settings(self.state, self.endpoint, self.tls))
        disabled = disabled_plugins(list_plugins(binaries.find_node(), str(self.client)), plugins)
        settings = node_settings(self.state, self.endpoint, self.tls, disabled)
        (self.state / "node.yaml").write_text(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """
        The process id of the node, which runs.
        """
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """
        Start the node, with what it kept; returns when it accepts clients.
        """
        arguments = (
            f"--config={self.state / 'node.yaml'}",
            f"--state-directory={self.state / 'state'}",
            "--print-endpoint",
        )
        self._process = subprocess.Popen(
            launch_command(binaries.find_node(), arguments, binaries.NODE_NAME),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise AssertionError(f"the node at {self.endpoint} did not start")

    def kill(self) -> None:
        """
        End the node at once, without a chance to save anything.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def freeze(self) -> None:
        """
        Stop the node from running, without ending it.
        """
        os.kill(self.pid, signal.SIGSTOP)

    def stop(self) -> None:
        """
        End the node and remove all it kept.
        """
        self.kill()  # there is nothing that it should save
        shutil.rmtree(self.state, ignore_errors=True)

    def run(self, pipeline: str, text: str = "") -> str:
        """
        Run a pipeline.

        @return: What it wrote.
        """
        return run(self.client, pipeline, text)

    def feed(self, text: str, format: str = "ndjson") -> None:
        """
        Import events; they are there when this returns.

        @param format: A key of L{FORMATS}.
        """
        self.run(f"{FORMATS[format]} | import", text)


def run(client: Path, pipeline: str, text: str) -> str:
    """
    Run a pipeline against a node.

    @param client: The configuration file of its clients.
    @return: What it wrote.
    @raise AssertionError: If it failed.
    """
    done = subprocess.run(
        [binaries.find_client(), f"--config={client}", "--console-verbosity=warning", pipeline],
        input=text,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
    )
    if done.returncode:
        raise AssertionError(f"{pipeline!r} failed: {done.stderr}")
    return done.stdout


def bridge_on(client: Path) -> str:
    """
    @return: The identity of the only bridge on a node, which is in the names of its tables.
    """
    listed = run(client, pipelines.list_tables(), "").splitlines()
    names = [json.loads(line)["name"] for line in listed]
    (ip,) = (name for name in names if re.fullmatch("tbvast_[0-9a-f]{16}_ip", name))
    return ip.split("_")[1]


def import_events(client: Path, text: str, format: str) -> None:
    """
    Import events into any node; they are there when this returns.

    @param client: The configuration file of its clients.
    @param format: A key of L{FORMATS}.
    """
    run(client, f"{FORMATS[format]} | import", text)
