"""
What C{vast-threatbus} takes for the C{vast} command; the node is a folder.

C{calls} in it are the commands that were given, one JSON list each. C{export} prints
the lines of C{events} that hold the query, C{matcher attach} those that are added to
C{matches}, until its parent ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """
    C{-e FOLDER COMMAND …}
    """
    flag, folder, *command = arguments
    if flag != "-e":
        sys.exit("no endpoint")
    node = Path(folder)
    words = [word for word in command if not word.startswith("--")]
    if words[:2] == ["export", "json"]:
        for line in (node / "events").read_text().splitlines():
            if words[2] in line:
                print(line)
    if words[:2] == ["matcher", "attach"]:
        attach(node, command)
    else:
        note(node, command)


def note(node: Path, command: list[str]) -> None:
    """
    Keep what was asked, in one write: several may be asked at once.
    """
    descriptor = os.open(node / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps(command).encode() + b"\n")
    os.close(descriptor)


def attach(node: Path, command: list[str]) -> None:
    """
    Print what is added from now on.
    """
    parent = os.getppid()
    with (node / "matches").open() as matches:
        matches.seek(0, os.SEEK_END)
        note(node, command)
        while os.getppid() == parent:
            line = matches.readline()
            if line:
                print(line, end="", flush=True)
            else:
                time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
