"""
Executes a program that does not outlive the process that started it.

A bare interpreter runs this file, as C{launch.py PARENT NAME PROGRAM ARGUMENT…}, so it imports
nothing of tbvast. The program gets its own session: only the parent receives a terminal's Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def main(arguments: list[str]) -> None:
    """
    @param arguments: The parent's process id, the name that the program gets as its first
        argument, the program's path, and its further arguments.
    """
    parent, name, program, *rest = arguments
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # the parent ended before prctl took effect
        sys.exit(1)
    try:
        os.execv(program, [name, *rest])
    except OSError as e:
        sys.exit(f"cannot be started: {e.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
