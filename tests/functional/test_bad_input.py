"""
Bad input: one readable line, and everything else goes on.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from functools import partial

from twisted.internet.threads import deferToThread

from devtools.services import RunningCommand, twistd
from tbvast.protocol.manage import encode_publish
from tests.functional.components import alive, require_tenzir, wait_until
from tests.functional.raw import RawClient
from tests.functional.services import ServicesTestCase
from tests.functional.test_main_job import indicator


class RefusedStartTests(ServicesTestCase):
    """
    A service that cannot be started says why in one line, with exit status 1.
    """

    timeout = 60

    async def refusal(self, *arguments: str) -> str:
        """
        @return: All that a service said.
        """
        command = self.ending(RunningCommand(self.reactor, arguments[0]))
        command.run(twistd(*arguments))
        status = await command.wait()
        lines = [
            line for line in command.lines if not line.startswith(("20", "\t"))
        ]  # what is left is not of the log
        self.assertEqual((status, len(lines)), (1, 1), command.output)
        return lines[0]

    def config(self, text: str) -> str:
        path = self.directory() / "tap.conf"
        path.write_text(text)
        return f"--config={path}"

    async def test_option_value(self) -> None:
        self.assertEqual(
            await self.refusal("tbvast-plugin", "--manage=99999"),
            "tbvast-plugin: --manage: '99999' is not a whole number from 1 to 65535",
        )
        self.assertEqual(
            await self.refusal("tbvast-bridge", "--live-match=perhaps"),
            "tbvast-bridge: --live-match: 'perhaps' is not yes or no",
        )

    async def test_option(self) -> None:
        self.assertIn("--colour", await self.refusal("tbvast-bridge", "--colour=red"))

    async def test_port_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            line = await self.refusal(
                "tbvast-plugin", f"--sub={port}", f"--state-dir={self.directory()}"
            )
        self.assertIn(f"the sub endpoint cannot listen on 127.0.0.1:{port}", line)
        self.assertIn(os.strerror(errno.EADDRINUSE), line)

    async def test_state_directory(self) -> None:
        """
        It is a file's child, which not even root can make.
        """
        path = self.directory() / "file"
        path.write_text("")
        for service in ("tbvast-plugin", "tbvast-bridge"):
            line = await self.refusal(service, f"--state-dir={path}/state")
            self.assertIn(f"state directory {path}/state is not writable", line)

    async def test_state_directory_in_use(self) -> None:
        state = self.directory()
        plugin = self.plugin(state=state)
        await plugin.start()
        line = await self.refusal("tbvast-plugin", f"--state-dir={state}", "--manage=1")
        self.assertIn(str(plugin.pid), line)

    async def test_broken_yaml(self) -> None:
        line = await self.refusal("tbvast-plugin", self.config("plugin:\n  host: [\n"))
        self.assertIn("line 3", line)

    async def test_unknown_key(self) -> None:
        line = await self.refusal("tbvast-plugin", self.config("plugin:\n  mange: 1\n"))
        self.assertIn("plugin.mange", line)
        self.assertIn("manage", line)

    async def test_open_to_the_network(self) -> None:
        line = await self.refusal("tbvast-plugin", "--host=0.0.0.0")
        self.assertIn("allow_plaintext", line)

    async def test_no_engine(self) -> None:
        line = await self.refusal(
            "tbvast-bridge", "--vast-binary=/no/such", f"--state-dir={self.directory()}"
        )
        self.assertIn("/no/such", line)

    async def test_no_command(self) -> None:
        line = await self.refusal(
            "tbvast-bridge", "--sink=/no/such", f"--state-dir={self.directory()}"
        )
        self.assertIn("/no/such", line)


class BadIndicatorTests(ServicesTestCase):
    """
    What is wrong with an indicator is said; what is right is kept.
    """

    timeout = 60

    async def test_published(self) -> None:
        """
        Of 1,000 indicators, the 3 bad ones are refused, each with its reason.
        """
        plugin = self.plugin()
        await plugin.start()
        documents = [
            json.dumps(indicator(f"[ipv4-addr:value = '203.0.{i // 256}.{i % 256}']")).encode()
            for i in range(1000)
        ]
        documents[10] = json.dumps(indicator("[ipv4-addr:value = '192.0.2.999']")).encode()
        documents[500] = json.dumps(indicator("[ipv4-addr:value ~ '192.0.2.1']")).encode()
        documents[999] = json.dumps(indicator("[a:b = 1]", id="indicator--1")).encode()
        reply = await plugin.ask(encode_publish(documents))
        self.assertEqual(reply["outcomes"].count("accepted"), 997)
        reasons = reply["reasons"]
        self.assertEqual(set(reasons), {"10", "500", "999"})
        self.assertIn("192.0.2.999", reasons["10"])
        self.assertIn("IPv4 or IPv6 address", reasons["10"])
        self.assertIn("at character 18", reasons["500"])
        self.assertIn("id: 'indicator--1'", reasons["999"])

    async def test_reported(self) -> None:
        """
        Nonsense on the sub endpoint is logged, and what follows is delivered.
        """
        plugin = self.plugin()
        await plugin.start()
        client = RawClient(plugin.manage.port)
        self.addCleanup(client.close)
        await deferToThread(client.subscribe, "stix2/indicator")
        good = json.dumps(indicator("[ipv4-addr:value = '192.0.2.1']")).encode()
        bad = json.dumps(indicator("[ipv4-addr:value = '192.0.2.1'")).encode()
        await deferToThread(
            client.report,
            plugin.sub.port,
            b"stix2/indicator",
            b"stix2/indicator {",
            b"stix2/nonsense {}",
            b"stix2/indicator " + bad,
            b"stix2/indicator " + good,
        )
        self.assertEqual((await deferToThread(client.receive))[1], json.loads(good))
        await plugin.saw("is not a STIX pattern")
        await plugin.saw("is not JSON", times=2)


class DaemonTests(ServicesTestCase):
    """
    Both services as daemons, from one directory.
    """

    timeout = 120

    async def test_side_by_side(self) -> None:
        require_tenzir(self)
        folder = self.directory()
        states = {name: self.directory() for name in ("tbvast-plugin", "tbvast-bridge")}
        plugin = self.plugin()  # for its free ports
        bridge = self.bridge(plugin.manage)
        options = {
            "tbvast-plugin": [
                f"--{name}={getattr(plugin, name).port}" for name in ("manage", "pub", "sub")
            ],
            "tbvast-bridge": [f"--threatbus={plugin.manage}", f"--vast-listen={bridge.engine}"],
        }
        pids = {}
        for name, state in states.items():
            command = self.ending(RunningCommand(self.reactor, name))
            twistd_, _, _, *rest = twistd(name, f"--state-dir={state}", *options[name])
            command.run([twistd_, f"--rundir={folder}", *rest])
            self.assertEqual(await command.wait(), 0, command.output)
            pid = int((state / f"{name}.pid").read_text())
            self.addCleanup(end, pid)
            pids[name] = pid
        log = states["tbvast-bridge"] / "tbvast-bridge.log"
        await deferToThread(wait_until, lambda: "The live match is running" in log.read_text())
        self.assertEqual(os.listdir(folder), [])
        for name, pid in reversed(pids.items()):
            os.kill(pid, signal.SIGTERM)
            await deferToThread(wait_until, partial(gone, pid))
            self.assertIn("Server Shut Down", (states[name] / f"{name}.log").read_text())


def gone(pid: int) -> bool:
    return not alive(pid)


def end(pid: int) -> None:
    """
    End a daemon, if it is still there.
    """
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
