"""
Where the engine's programs are.
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

HINT = (
    "no engine is installed: pip install 'tbvast[engine]', "
    "or name a running node's command with --vast-binary"
)


class Program(msgspec.Struct, frozen=True):
    """
    @ivar path: The executable.
    @ivar name: What it is to see as its own name; it decides by that what it is.
    """

    path: str
    name: str


def client(command: str | None = None) -> str:
    """
    Find the command that asks a node.

    @param command: Its name or path, if the user named one.
    @return: The path of an executable.
    @raise EngineMissing: If there is none.
    """
    if command:
        named = shutil.which(command)
        if named is None:
            raise EngineMissing(f"--vast-binary: {shown(command)} is not an executable command")
        return named
    # The package's own command is a Python script: it would cost a start each call.
    bundled = _bundled("bin/tenzir")
    found = bundled or shutil.which("tenzir")
    if found is None:
        raise EngineMissing(HINT)
    return found


def node() -> Program:
    """
    Find the node itself.

    @raise EngineMissing: If there is none.
    """
    bundled = _bundled("libexec/tenzir-engine")
    found = bundled or shutil.which("tenzir-node")
    if found is None:
        raise EngineMissing(HINT)
    return Program(found, "tenzir-node")


def launched(program: Program, arguments: Sequence[str]) -> list[str]:
    """
    A command line that starts a program as a child which ends with this process.
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
