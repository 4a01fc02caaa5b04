"""
Who can do what in an embedded node.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from devtools.services import free_ports, twistd
from tbvast.engines import binaries
from tbvast.engines.tenzir import pipelines
from tbvast.engines.tenzir.node_policy import list_plugins
from tbvast.errors import StartupRefused
from tests.functional.blocking import BlockingProcess
from tests.functional.components import LIMIT, RealNode, require_tenzir, run

OTHER_USER = 54_321
"""
The number of a user that does not exist.
"""

HOSTILE = {
    "shell": 'shell "id"\nread_lines\nimport',
    "python": 'from {a: 1}\npython "self.a = 2"\nimport',
    "from_file": 'from_file "/etc/passwd" { read_lines }\nimport',
    "file_contents": 'from {a: file_contents("/etc/passwd")}\nimport',
    "env": 'from {a: env("HOME")}\nimport',
    "files": 'files "/"\nimport',
    "processes": "processes\nimport",
    "nics": "nics\nimport",
    "sockets": "sockets\nimport",
    "to_file": 'export\nto_file "/tmp/tbvast-stolen" { write_ndjson }',
    "to_tcp": 'export\nto_tcp "127.0.0.1:9" { write_ndjson }',
    "from_http": 'from_http "http://127.0.0.1:9/" { read_json }\nimport',
    "to_http": 'export\nto_http "http://127.0.0.1:9/"',
    "from_tcp": 'from_tcp "127.0.0.1:9" { read_lines }\nimport',
    "accept_tcp": 'accept_tcp "127.0.0.1:0" { read_lines }\nimport',
    "serve_http": 'export\nserve_http "127.0.0.1:0" { write_ndjson }',
    "serve_tcp": 'export\nserve_tcp "127.0.0.1:0" { write_ndjson }',
    "to_kafka": 'export\nto_kafka "topic"',
    "from_s3": 'from_s3 "s3://a/b" { read_json }\nimport',
    "dns_lookup": 'from {a: "a.example"}\ndns_lookup a\nimport',
    "package::add": 'from {a: 1}\npackage_add "/tmp/x"',
}
"""
Pipelines that reach out of the node, by the plugin that they need.
"""


LISTENER = """
import os, socket, sys, time
os.setuid(int(sys.argv[2]))
with socket.socket() as listening:
    listening.bind(("127.0.0.1", int(sys.argv[1])))
    listening.listen()
    print("listening", flush=True)
    time.sleep(300)
"""


class NodeTestCase(SynchronousTestCase):
    """
    A test with a node as the bridge starts it.
    """

    def setUp(self) -> None:
        require_tenzir(self)
        self.node = RealNode()
        self.addCleanup(self.node.stop)


class PolicyTests(NodeTestCase):
    """
    A client with the certificate can use the node's plugins, but these are few.
    """

    def launched(self, pipeline: str) -> str:
        """
        Start a pipeline in the node, through its API.
        """
        return self.node.run(pipelines.start_pipeline(pipeline, f"t{id(pipeline)}", 60.0))

    def test_hostile(self) -> None:
        """
        No pipeline in the node runs a program, reads or writes a file, or opens a connection.
        """
        installed = {
            each.name for each in list_plugins(binaries.find_node(), str(self.node.client))
        }
        for plugin, pipeline in HOSTILE.items():
            with self.subTest(plugin):
                self.assertIn(plugin, installed)
                self.assertIn("not found", self.launched(pipeline))
        self.assertFalse(Path("/tmp/tbvast-stolen").exists())
        stored = self.node.run("export\nsummarize count=count()\nwrite_ndjson")
        self.assertEqual(stored, '{"count":0}\n')

    def test_harmless(self) -> None:
        """
        What only processes events runs.
        """
        self.assertNotIn("error", self.launched('from {a: "X".to_lower()}\nimport'))
        self.assertEqual(self.node.run("export live=false\nwrite_ndjson").strip(), '{"a":"x"}')

    def test_not_listed(self) -> None:
        """
        A node whose plugins are not known is not started.
        """
        for program in ("/nowhere/engine", shutil.which("false") or ""):
            self.assertRaises(StartupRefused, list_plugins, program, str(self.node.client))


class CertificateTests(NodeTestCase):
    """
    Only a client with the node's certificate can use its endpoint.
    """

    def ask(self, settings: str, user: int | None = None) -> str:
        """
        Ask the node for its tables with other settings.

        @param settings: The settings of the client.
        @param user: The user who asks; this process's own if not given.
        @return: The client's errors.
        """
        folder = Path(tempfile.mkdtemp(prefix="tbvast-stranger-"))
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o777)
        (folder / "client.yaml").write_text(settings)
        command = [binaries.find_client(), f"--config={folder / 'client.yaml'}"]
        command += ["--connection-timeout=2s", "context_list\nwrite_ndjson"]
        if user is not None:
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
        environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=LIMIT, env=environment
        )
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout, "")
        return done.stderr

    def plain(self) -> str:
        """
        Settings without a certificate.
        """
        return f'tenzir:\n  endpoint: "{self.node.endpoint}"\n'

    def test_admitted(self) -> None:
        """
        With the certificate, a client is admitted.
        """
        run(self.node.client, pipelines.create_table("tbvast_x"), "")
        self.assertIn("tbvast_x", self.node.run("context_list\nwrite_ndjson"))

    def test_no_certificate(self) -> None:
        """
        A client without a certificate is refused in the handshake.
        """
        self.assertIn("handshake", self.ask(self.plain()))

    def test_other_certificate(self) -> None:
        """
        So is one with the certificate of another node.
        """
        other = RealNode()
        self.addCleanup(other.stop)
        text = other.client.read_text().replace(other.endpoint, self.node.endpoint)
        self.assertRegex(self.ask(text), "handshake|cannot_connect_to_node")

    def test_local_user(self) -> None:
        """
        Another user of the machine cannot read the certificate, and is refused without.
        """
        if os.getuid() != 0 or shutil.which("setpriv") is None:
            raise SkipTest("only root can become another user")
        errors = self.ask(self.plain(), OTHER_USER)
        if "Permission denied" in errors:
            raise SkipTest("other users cannot run the engine's command where it is installed")
        self.assertIn("handshake", errors)
        self.assertNotIn("handshake", self.ask(self.node.client.read_text(), OTHER_USER))


class CommandTests(NodeTestCase):
    """
    C{tbvast engine} is a client of a bridge's node.
    """

    def tbvast(self, *arguments: str, text: str = "") -> tuple[int, str, str]:
        """
        @return: The exit status, the output and the errors.
        """
        done = subprocess.run(
            [sys.executable, "-m", "tbvast.cli.main", "engine", *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT,
        )
        return done.returncode, done.stdout, done.stderr

    def test_pipeline(self) -> None:
        """
        It runs a pipeline with the standard streams, and ends with the engine's exit status.
        """
        state = f"--state-dir={self.node.state}"
        imported = self.tbvast(state, "--", "from_stdin { read_ndjson }\nimport", text='{"a":1}\n')
        self.assertEqual(imported[:2], (0, ""))
        found = self.tbvast(state, "--", "--console-verbosity=quiet", "export\nwrite_ndjson")
        self.assertEqual(found, (0, '{"a":1}\n', ""))
        failed = self.tbvast(state, "--", "no_such_operator")
        self.assertNotEqual(failed[0], 0)
        self.assertIn("no_such_operator", failed[2])

    def test_configured(self) -> None:
        """
        The bridge's configuration file tells where the state directory is.
        """
        config = Path(self.mktemp())
        config.write_text(f"bridge:\n  state_dir: {self.node.state}\n")
        status, out, _ = self.tbvast(f"--config={config}", "--", "context_list\nwrite_ndjson")
        self.assertEqual((status, out), (0, ""))

    def test_no_bridge(self) -> None:
        """
        Without a bridge's files, it ends with one line, and the status of a usage error.
        """
        status, out, errors = self.tbvast("--state-dir=/nowhere", "--", "version")
        self.assertEqual((status, out), (2, ""))
        self.assertEqual(
            errors,
            "tbvast: --state-dir: '/nowhere' is not the state directory of a bridge that has run:"
            " /nowhere/client/client.yaml cannot be read\n",
        )


class ExposedNodeTests(SynchronousTestCase):
    """
    A bridge whose embedded node listens on all addresses of the machine.
    """

    def setUp(self) -> None:
        require_tenzir(self)
        # Short enough for sockets in it; everything that is not told otherwise keeps its files
        # below the others.
        self.folder = Path(tempfile.mkdtemp(prefix="tbvast-bridge-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.temporary = Path(tempfile.mkdtemp(prefix="tbvast-temporary-"))
        self.addCleanup(shutil.rmtree, self.temporary)
        self.homes = [self.folder / name for name in ("home", "cache", "runtime")]
        for folder in (self.folder / "state", *self.homes):
            folder.mkdir(parents=True)
        names = ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
        for name, place in zip(names, self.homes, strict=True):
            self.patch(os, "environ", {**os.environ, name: str(place)})
        self.patch(os, "environ", {**os.environ, "TMPDIR": str(self.temporary)})
        self.port, away = free_ports(2)
        command = twistd(
            "tbvast-bridge",
            f"--threatbus=127.0.0.1:{away}",
            f"--vast-listen=0.0.0.0:{self.port}",
            f"--state-dir={self.folder / 'state'}",
        )
        self.bridge = BlockingProcess(command, self.folder)
        self.addCleanup(self.bridge.stop)
        self.bridge.saw("The live match is running")

    def ask(self, host: str, settings: str) -> subprocess.CompletedProcess[str]:
        """
        Ask the node for its tables.

        @param settings: The settings of the client.
        """
        path = self.folder / "settings.yaml"
        path.write_text(settings.replace("0.0.0.0", host))
        command = [binaries.find_client(), f"--config={path}", "--connection-timeout=3s"]
        command.append("context_list\nwrite_ndjson")
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=LIMIT)

    def test_reached(self) -> None:
        """
        Whoever reaches the node at an address beyond loopback gets nothing without the
        certificate, and its tables with it.
        """
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("198.51.100.1", 9))  # sends nothing
            except OSError:
                raise SkipTest("this machine has no address beyond loopback") from None
            host = probe.getsockname()[0]
        client = (self.folder / "state" / "client" / "client.yaml").read_text()
        cache = f"  cache-directory: {self.folder / 'cache'}\n"
        plain = f'tenzir:\n  endpoint: "{host}:{self.port}"\n{cache}'
        refused = self.ask(host, plain)
        self.assertNotEqual(refused.returncode, 0)
        self.assertEqual(refused.stdout, "")
        self.assertIn("handshake", refused.stderr)
        admitted = self.ask(host, client)
        self.assertIn("_str", admitted.stdout)

    def test_files(self) -> None:
        """
        Bridge, node and commands keep no files where others can write, and none in their user's
        home.
        """
        command = [sys.executable, "-m", "tbvast.cli.main", "engine"]
        command += [f"--state-dir={self.folder / 'state'}", "--", "context_list\nwrite_ndjson"]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT,
        )
        places = [self.temporary, *self.homes]
        self.assertEqual([path for place in places for path in place.rglob("*")], [])
        self.assertEqual(self.bridge.stop(), 0)
        self.assertEqual([path for place in places for path in place.rglob("*")], [])


class OwnerTests(SynchronousTestCase):
    """
    A bridge that finds a node where it would start its own.
    """

    def test_other_user(self) -> None:
        """
        If the port belongs to another user, the bridge does not start, and the line says how to
        choose.
        """
        require_tenzir(self)
        if os.getuid() != 0:
            raise SkipTest("only root can become another user")
        (port,) = free_ports(1)
        listener = subprocess.Popen(
            [sys.executable, "-c", LISTENER, str(port), str(OTHER_USER)],
            stdout=subprocess.PIPE,
        )
        self.addCleanup(listener.communicate)
        self.addCleanup(listener.kill)
        assert listener.stdout is not None
        self.assertEqual(listener.stdout.readline(), b"listening\n")
        done = subprocess.run(
            twistd(
                "tbvast-bridge",
                f"--vast-listen=127.0.0.1:{port}",
                f"--state-dir={Path(self.mktemp()).absolute()}",
            ),
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn(
            f"tbvast-bridge: a program of the user {OTHER_USER} listens on 127.0.0.1:{port}; if it"
            f" is your node, name it with --vast 127.0.0.1:{port}; otherwise let the embedded"
            " node listen elsewhere with --vast-listen\n",
            done.stderr,
        )
