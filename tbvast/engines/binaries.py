"""
Finds the engine's programs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from tbvast.errors import EngineMissing, shown

NODE_NAME = "tenzir-node"
"""
The node's own name as it sees it: the program is the command, too, under another name.
"""


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
    return _find("bin/tenzir", "tenzir")


def find_node() -> str:
    """
    Find the program of the node as L{find_client} does; it runs under the name L{NODE_NAME}.
    """
    return _find("libexec/tenzir-engine", NODE_NAME)


def _find(bundled: str, command: str) -> str:
    """
    @param bundled: The path of the program in the package C{tenzir}.
    @param command: Its name on the search path.
    """
    spec = importlib.util.find_spec("tenzir")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(folder) / "bundled" / bundled
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which(command)
    if found is None:
        raise EngineMissing(
            "no engine is installed: pip install 'tbvast[engine]', "
            "or name a running node's command with --vast-binary"
        )
    return found
