"""
Runs the unit tests on every supported Python with the newest versions of the dependencies, and on
the oldest Python with the oldest ones. Each has a virtual environment in C{build/matrix}.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "matrix"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""
The versions of Python on which the tests are to pass, from the oldest on.
"""

TEST_PACKAGES = ("hypothesis", "stix2", "stix2-patterns")
"""
The packages of the extra C{test} that the unit tests import.
"""

OLDEST, NEWEST = "oldest", "newest"


def find_python(version: str) -> str | None:
    """
    Find an interpreter on the path, or one of pyenv.

    @return: Its path; C{None} if there is none.
    """
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    on_path = shutil.which(f"python{version}")
    for path in (on_path, *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"))):
        if path is None:
            continue
        code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        asked = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if asked.stdout.strip() == version:  # a shim of pyenv may have no interpreter behind it
            return path
    return None


def requirements(project: dict[str, Any], versions: str) -> list[str]:
    """
    List the requirements of the unit tests, as C{pip} takes them.

    @param project: The table C{project} of C{pyproject.toml}.
    @param versions: L{OLDEST} pins the dependencies to their lower bounds.
    """
    dependencies: list[str] = project["dependencies"]
    if versions == OLDEST:
        dependencies = [re.sub(r">=([^,;]+)[^;]*", r"==\1", each, count=1) for each in dependencies]
    tests: list[str] = project["optional-dependencies"]["test"]
    return [*dependencies, *(each for each in tests if each.split(">=")[0] in TEST_PACKAGES)]


def summary(output: str, status: int) -> tuple[int, int]:
    """
    Read the last summary of C{trial}.

    @param status: The exit status of C{trial}.
    @return: The numbers of tests that passed, and that did not; the latter is at least 1 if the
        run itself failed.
    """
    lines = [line for line in output.splitlines() if re.match(r"(PASSED|FAILED) \(", line)]
    counts = {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", lines[-1] if lines else "")}
    passed = counts.pop("successes", 0)
    counts.pop("expectedFailures", 0)
    failed = sum(counts.values())
    return passed, failed or int(bool(status) or not passed)


def run(python: str, version: str, versions: str, jobs: int) -> bool:
    """
    Run the unit tests in an environment, which is created if necessary.

    @param python: The interpreter.
    @param jobs: The number of tests at the same time.
    @return: Whether all passed. The result is printed, and of a failure the end of the log.
    """
    name = f"python{version} with the {versions} versions"
    path = BUILD / f"{version}-{versions}"
    log = BUILD / f"{path.name}.log"
    executable = str(path / "bin" / "python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = [f"tests.{each.stem}" for each in sorted((ROOT / "tests").glob("test_*.py"))]
    trial = [executable, "-m", "twisted.trial", f"--temp-directory={path / 'trial'}"]
    if jobs > 1:
        trial.append(f"--jobs={jobs}")
    install = [executable, "-m", "pip", "install", "--quiet", "--upgrade"]
    commands = [
        [python, "-m", "venv", str(path)],
        [*install, *requirements(project, versions)],
        [*trial, *modules],
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        for command in commands:
            status = subprocess.run(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ).returncode
            if status:
                break
    text = log.read_text(errors="replace")
    passed, failed = summary(text, status)
    if failed:
        sys.stdout.writelines(f"    {line}\n" for line in text.splitlines()[-100:])
        print(f"{name}: {failed} of {passed + failed} tests failed; {log.relative_to(ROOT)}")
    else:
        print(f"{name}: {passed} tests passed")
    return not failed


def main(arguments: Sequence[str] | None = None) -> int:
    """
    @return: The exit status: 1 if a test failed or none was run.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("--oldest", action="store_true", help="only the oldest versions")
    parser.add_argument("--jobs", type=int, default=1, help="tests at the same time; default: 1")
    options = parser.parse_args(arguments)
    results = []
    for version in PYTHONS[:1] if options.oldest else PYTHONS:
        python = find_python(version)
        if python is None:
            print(f"python{version}: not found")
            continue
        for versions in (OLDEST, NEWEST) if version == PYTHONS[0] else (NEWEST,):
            if versions == OLDEST or not options.oldest:
                results.append(run(python, version, versions, options.jobs))
    return int(not results or not all(results))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
