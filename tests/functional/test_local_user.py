"""
What another user of the machine can reach of the services: nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import SkipTest

from devtools.services import free_ports, twistd
from tbvast.zeromq.curve import make_key_pair
from tests.functional.blocking import LIMIT, BlockingProcess, PluginProcess
from tests.functional.components import children, require_tenzir
from tests.functional.test_conformance import HostTestCase
from tests.functional.test_engine_policy import OTHER_USER

REACH = """
import os, socket, stat, sys
user, *paths = sys.argv[1:]
kinds = {path: os.stat(path).st_mode for path in paths}
os.setgroups([])
os.setgid(int(user))
os.setuid(int(user))
for path, mode in kinds.items():
    try:
        if stat.S_ISSOCK(mode):
            with socket.socket(socket.AF_UNIX) as reached:
                reached.connect(path)
        elif stat.S_ISDIR(mode):
            os.listdir(path)
        else:
            open(path, "rb").close()
    except OSError:
        pass
    else:
        print("read", path)
    try:
        if stat.S_ISDIR(mode):
            os.rmdir(path + "/none")
        elif stat.S_ISREG(mode):
            open(path, "ab").close()
            print("written", path)
    except FileNotFoundError:
        print("searched", path)
    except OSError:
        pass
"""
"""
Prints which of some files, directories and sockets another user can use.
"""


class LocalUserTests(HostTestCase):
    """
    The services run as root, with the usual umask, and with state directories that everybody can
    enter, as tbvast 0.1.0 and administrators have made them.
    """

    def setUp(self) -> None:
        if os.getuid() != 0:
            raise SkipTest("only root can become another user")
        self.folder = Path(tempfile.mkdtemp(prefix="tbvast-others-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.addCleanup(os.umask, os.umask(0o022))

    def reached(self, *paths: Path) -> list[str]:
        """
        @return: What another user could do with any of these.
        """
        done = subprocess.run(
            [sys.executable, "-c", REACH, str(OTHER_USER), *map(str, paths)],
            capture_output=True,
            encoding="utf-8",
            timeout=LIMIT,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.splitlines()

    def assert_closed(self, folder: Path) -> list[Path]:
        """
        Nobody else can use anything below a directory that everybody can enter.

        @return: All that is there.
        """
        self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o755)
        control = folder / "control"
        control.write_text("for everybody")
        found = [each for each in folder.rglob("*") if not each.is_symlink()]
        self.assertEqual(self.reached(*found), [f"read {control}"])
        control.unlink()
        return found

    def test_plugin(self) -> None:
        """
        The journal, its companions and the keys of a plugin.
        """
        (self.folder / "state").mkdir(mode=0o755)
        _, secret = make_key_pair(self.folder / "keys", "bus")
        plugin = self.run_host(PluginProcess(self.folder))
        (self.folder / "log").unlink()  # of the test
        (self.folder / "tap.conf").unlink()
        names = {each.name for each in self.assert_closed(self.folder / "state")}
        self.assertLessEqual({"journal.db", "journal.db-wal", "lock"}, names)
        self.assertEqual(self.reached(secret, secret.parent), [])
        self.assertEqual(plugin.stop(), 0)
        self.assert_closed(self.folder / "state")

    def test_planted(self) -> None:
        """
        A plugin refuses a state directory of another user, and one in which he has put a link to
        a file that only root may change.
        """
        precious = self.folder / "precious"
        for whose, planted in ((OTHER_USER, False), (0, True)):
            precious.write_text("precious")
            state = self.folder / f"state{whose}"
            state.mkdir()
            state.chmod(0o777)
            os.chown(state, whose, whose)
            if planted:
                (state / "lock").symlink_to(precious)
                os.chown(state / "lock", OTHER_USER, OTHER_USER, follow_symlinks=False)
            command = twistd("tbvast-plugin", f"--state-dir={state}")
            done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=LIMIT)
            with self.subTest(whose):
                self.assertEqual(done.returncode, 1)
                self.assertIn(f"belongs to another user, with the id {OTHER_USER}", done.stderr)
                self.assertEqual(precious.read_text(), "precious")

    def bridge(self, state: Path) -> BlockingProcess:
        """
        @return: A bridge whose live match runs, and whose temporary files go to C{tmp}.
        """
        require_tenzir(self)
        temporary = self.folder / "tmp"
        temporary.mkdir()
        temporary.chmod(0o1777)
        plugin = self.run_host(PluginProcess(self.directory()))
        settings = {
            "threatbus": str(plugin.manage),
            "vast_listen": f"127.0.0.1:{free_ports(1)[0]}",
            "state_dir": str(state),
        }
        logs = self.directory()
        config = logs / "tap.conf"
        config.write_text(json.dumps({"bridge": settings}))  # YAML, too
        command = [
            "/usr/bin/env",
            f"TMPDIR={temporary}",
            *twistd("tbvast-bridge", f"--config={config}"),
        ]
        bridge = self.run_host(BlockingProcess(command, logs))
        bridge.saw("The live match is running")
        return bridge

    def test_bridge(self) -> None:
        """
        The store, the certificate, the engine's files and the sockets of a bridge; and it leaves
        nothing in the directory for temporary files.
        """
        state = self.folder / "state"
        old = state / "engine" / "state" / "old"
        old.parent.mkdir(parents=True)
        old.write_text("of an earlier version")
        bridge = self.bridge(state)
        found = self.assert_closed(state)
        self.assertIn(old, found)
        names = {each.name for each in found}
        self.assertLessEqual({"bridge.db", "engine.pem", "client.yaml", "node.yaml"}, names)
        self.assertEqual(list((self.folder / "tmp").iterdir()), [])
        self.assert_unreachable(self.sockets(bridge.pid))

    def test_long_path(self) -> None:
        """
        The sockets of a bridge whose state directory has too long a path for them: they are in a
        directory with a random name.
        """
        bridge = self.bridge(self.folder / ("x" * 100) / "state")
        sockets = self.sockets(bridge.pid)
        self.assert_unreachable(sockets)
        self.assertRegex(str(sockets[0].parent), r"/tbvast-[a-z0-9_]{8}\Z")

    def assert_unreachable(self, sockets: list[Path]) -> None:
        self.assertTrue(sockets)
        self.assertEqual(self.reached(*sockets), [])

    def sockets(self, pid: int) -> list[Path]:
        """
        The Unix sockets on which a process and its children listen.
        """
        inodes = set()
        for each in (pid, *children(pid)):
            for descriptor in Path(f"/proc/{each}/fd").iterdir():
                try:
                    target = os.readlink(descriptor)
                except OSError:  # it was closed
                    continue
                inodes.add(target.removeprefix("socket:[").removesuffix("]"))
        rows = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
        fields = [row.split() for row in rows]
        return [
            Path(each[7])
            for each in fields
            if len(each) > 7 and each[6] in inodes and each[7].startswith("/")
        ]
