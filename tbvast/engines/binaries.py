"""
Finds the engine's programs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tbvast.errors import EngineMissing, shown
from tbvast.service import launch

NOT_INSTALLED = (
    "no engine is installed: pip install 'tbvast[engine]', "
    "or name a running node's command with --vast-binary"
)


class Program(msgspec.Struct, frozen=True):
    """
    A program of the engine.

    @ivar path: The executable.
    @ivar name: The program's own name as it sees it, which selects its mode: command or node.
    """

    path: str
    name: str


def find_client(command: str | None = None) -> str:
    """
    Find the command that talks to a node.

    @param command: Its name or path, if the user gave one.
    @return: The path of an executable.
    @raise EngineMissing: If there is no such command.
    """
    if command:
        named = shutil.which(command)
        if named is None:
            raise EngineMissing(f"--vast-binary: {shown(command)} is not an executable command")
        return named
    # The package's own command is a Python script, which would start an interpreter per call.
    bundled = _bundled("bin/tenzir")
    found = bundled or shutil.which("tenzir")
    if found is None:
        raise EngineMissing(NOT_INSTALLED)
    return found


def find_node() -> Program:
    """
    Find the program of the node.

    @raise EngineMissing: If it is not installed.
    """
    bundled = _bundled("libexec/tenzir-engine")
    found = bundled or shutil.which("tenzir-node")
    if found is None:
        raise EngineMissing(NOT_INSTALLED)
    return Program(found, "tenzir-node")


def launch_command(program: Program, arguments: Sequence[str]) -> list[str]:
    """
    @return: A command line that starts a program as a child which ends with this process.
    """
    return [
        *(sys.executable, "-I", "-S", launch.__file__, str(os.getpid())),
        *(program.name, program.path, *arguments),
    ]


def _bundled(path: str) -> str | None:
    spec = importlib.util.find_spec("tenzir")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(folder) / "bundled" / path
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    return None
