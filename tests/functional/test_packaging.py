"""
The wheel, an installation of it in an empty environment, and the count of test results.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast import __version__

ROOT = Path(__file__).parents[2]

FIND_PLUGINS = """
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
print(*sorted(p.tapname for p in getPlugins(IServiceMaker) if p.tapname.startswith("tbvast")))
"""

BOTH = "tbvast-bridge tbvast-plugin\n"


def build_wheel(directory: Path) -> Path:
    """
    Build a wheel with what is installed here, from a copy of what goes into it.

    @param directory: Where to; it must not exist.
    """
    source = directory / "source"
    source.mkdir(parents=True)
    for name in ["setup.py", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    for name in ["tbvast", "twisted"]:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.cache")
        )
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta as b; b.build_wheel('..')"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [wheel] = directory.glob("*.whl")
    return wheel


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


class WheelTests(SynchronousTestCase):
    """
    The wheel has what it needs, and nothing that is in the way of others.
    """

    def setUp(self) -> None:
        self.wheel = zipfile.ZipFile(build_wheel(Path(self.mktemp())))
        self.addCleanup(self.wheel.close)

    def read(self, name: str) -> bytes:
        """
        @return: The content of a file of the wheel's metadata.
        """
        return self.wheel.read(f"tbvast-{__version__}.dist-info/{name}")

    def test_files(self) -> None:
        """
        Both plugins and every module are in it; none of Twisted's own files is, nor
        are tests.
        """
        names = self.wheel.namelist()
        self.assertEqual(
            sorted(name for name in names if name.startswith("twisted/")),
            ["twisted/plugins/tbvast_bridge.py", "twisted/plugins/tbvast_plugin.py"],
        )
        self.assertEqual(
            {name for name in names if name.startswith("tbvast/")},
            {"tbvast/py.typed"}
            | {str(path.relative_to(ROOT)) for path in ROOT.glob("tbvast/**/*.py")},
        )
        self.assertEqual(
            {name.split("/")[0] for name in names},
            {"tbvast", "twisted", f"tbvast-{__version__}.dist-info"},
        )

    def test_metadata(self) -> None:
        """
        The metadata has the version, the engine as an extra, and the command.
        """
        metadata = message_from_bytes(self.read("METADATA"))
        self.assertEqual(metadata["Version"], __version__)
        self.assertEqual(metadata["License-Expression"], "BSD-3-Clause")
        self.assertEqual(metadata["Requires-Python"], ">=3.11")
        requires = metadata.get_all("Requires-Dist") or []
        self.assertIn("pyvast<3,>=2.3.1", requires)
        self.assertIn('tenzir>=6.20; extra == "engine"', requires)
        self.assertIn(b"Redistribution and use", self.read("licenses/LICENSE"))
        scripts = ConfigParser()
        scripts.read_string(self.read("entry_points.txt").decode())
        self.assertEqual(dict(scripts["console_scripts"]), {"tbvast": "tbvast.cli.main:main"})


class CountTests(SynchronousTestCase):
    """
    Tests for C{.ci/count}.
    """

    def test_counts(self) -> None:
        """
        Everything that did not pass has failed, and so has a run that says nothing.
        """
        ran = "Ran 9 tests in 1.000s\n\n"
        for status, log, line in [
            (0, f"{ran}PASSED (successes=9)\n", "9 passed, 0 failed"),
            (0, f"{ran}PASSED (skips=2, successes=7)\n", "7 passed, 2 failed"),
            (
                1,
                f"{ran}FAILED (expectedFailures=1, failures=1, errors=2, successes=5)\n",
                "5 passed, 3 failed",
            ),
            (2, f"{ran}PASSED (successes=9)\n", "9 passed, 1 failed"),
            (2, "make: *** [check] Error 1\n", "0 passed, 1 failed"),
            (0, "Ran 0 tests in 0.000s\n\nPASSED\n", "0 passed, 1 failed"),
            (
                1,
                f"PASSED (successes=1)\n{ran}FAILED (errors=1, successes=8)\nmake: Error 1\n",
                "8 passed, 1 failed",
            ),
            (
                1,
                f"{ran}PASSED (successes=9)\n{ran}FAILED (failures=1, successes=8)\n",
                "17 passed, 1 failed",
            ),
            (
                1,
                f"{ran}PASSED (successes=9)\n    FAILED (failures=2, successes=7)\n"
                "python3.11 with the oldest versions: 2 of 9 tests failed; build/x.log\n",
                "9 passed, 2 failed",
            ),
            (
                0,
                f"{ran}PASSED (successes=9)\npython3.11 with the oldest versions: 9 tests passed\n",
                "9 passed, 0 failed",
            ),
        ]:
            with self.subTest(log):
                result = subprocess.run(
                    [ROOT / ".ci" / "count", str(status)],
                    input=log,
                    capture_output=True,
                    text=True,
                )
                self.assertEqual(result.stdout, f"{line}\n")
                self.assertEqual(result.returncode, 0 if line.endswith(" 0 failed") else 1)
