"""
An installation as a user makes it: the wheel in an empty environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.test_packaging import build_wheel

FIND_PLUGINS = """
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
print(*sorted(p.tapname for p in getPlugins(IServiceMaker) if p.tapname.startswith("tbvast")))
"""

BOTH = "tbvast-bridge tbvast-plugin\n"


class InstallationTests(SynchronousTestCase):
    """
    The wheel, installed into an empty environment, works from any directory.
    """

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        wheel = build_wheel(self.top / "dist")
        self.elsewhere = self.top / "elsewhere"
        self.elsewhere.mkdir()
        self.bin = self.top / "env" / "bin"
        self.run_in([sys.executable, "-m", "venv", str(self.top / "env")])
        self.environment("pip", "install", "--quiet", str(wheel))

    def run_in(self, command: list[str]) -> str:
        """
        Run a command elsewhere, with nothing of this process's Python settings.

        @return: What it printed, if it ended with status 0.
        """
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        result = subprocess.run(
            command,
            cwd=self.elsewhere,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def environment(self, command: str, *arguments: str) -> str:
        """
        Run a command of the environment.

        @return: What it printed.
        """
        return self.run_in([str(self.bin / command), *arguments])

    def test_commands(self) -> None:
        """
        Both services and the C{tbvast} command are there; the services also where
        the plugin cache cannot be written; and they leave with the package.
        """
        self.assertEqual(self.environment("python", "-c", FIND_PLUGINS), BOTH)
        self.environment("tbvast", "--help")
        for service in BOTH.split():
            self.assertIn("--state-dir=", self.environment("twistd", service, "--help"))
        [cache] = self.top.glob("env/lib/python*/site-packages/twisted/plugins/dropin.cache")
        cache.unlink()
        cache.mkdir()
        self.assertEqual(self.environment("python", "-c", FIND_PLUGINS), BOTH)
        cache.rmdir()
        self.environment("python", "-c", FIND_PLUGINS)
        self.environment("pip", "uninstall", "--quiet", "--yes", "tbvast")
        self.assertEqual(self.environment("python", "-c", FIND_PLUGINS), "\n")
