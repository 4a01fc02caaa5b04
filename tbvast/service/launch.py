"""
Becomes another program that does not outlive the process that started it.

Run as a script, by path, as C{launch.py PARENT NAME PROGRAM ARGUMENT…}: by a
bare interpreter, so it imports nothing of tbvast. The program gets a session of
its own, so that a Ctrl-C at the terminal is the parent's alone to act upon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """
    @param arguments: The parent's process id, the name the program is to see as
        its own, the program's path, and its arguments.
    """
    parent, name, program, *rest = arguments
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent):  # it had ended before that took effect
        sys.exit(1)
    os.execv(program, [name, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
