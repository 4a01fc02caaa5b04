"""
The directory of a service for its durable state.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Mapping

from tbvast.errors import StartupRefused


def default_directory(service: str, environ: Mapping[str, str]) -> str:
    """
    Choose the state directory of a service for which none is configured.

    @param service: The service's name, e.g. C{"tbvast-plugin"}.
    @param environ: The environment of the process.
    @return: The directory that systemd made for the unit, or else one of the user's.
    """
    made = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if made:
        return made
    home = environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "tbvast", service.removeprefix("tbvast-"))


class StateDirectory:
    """
    A directory that only one process uses at a time.

    The lock belongs to an open file. Forked children, such as a daemon, inherit it, and it
    is released when the last of them ends for any reason.

    @ivar path: The absolute path of the directory, which need not exist at first.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._lock: int | None = None

    def child(self, name: str) -> str:
        """
        @return: The path of a file in the directory.
        """
        return os.path.join(self.path, name)

    def acquire(self) -> None:
        """
        Create the directory if it is missing, accessible to its owner only, and lock it.

        @raise StartupRefused: If it is not writable, if another user can replace files in it, or
            if another process has locked it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            self._shut_out()
            with tempfile.TemporaryFile(dir=self.path):
                pass
            lock = os.open(self.child("lock"), flags, 0o600)
        except OSError as e:
            raise StartupRefused(
                f"state directory {self.path} is not writable: {e.strerror}"
            ) from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise StartupRefused(
                f"state directory {self.path} is in use by "
                + (f"process {owner}" if owner.isdigit() else "another process")
            ) from e
        self._lock = lock
        self._restrict()
        self.sign()

    def _shut_out(self) -> None:
        """
        Take the permission to change the directory from others than its owner, and refuse what
        they may have put there: a link in place of a file would make the service write elsewhere.
        """
        found = os.stat(self.path)
        self._check_owner(self.path, found.st_uid)
        if found.st_mode & 0o022:
            os.chmod(self.path, stat.S_IMODE(found.st_mode) & ~0o022)
        with os.scandir(self.path) as entries:
            for entry in entries:
                self._check_owner(entry.path, entry.stat(follow_symlinks=False).st_uid)

    def _check_owner(self, path: str, owner: int) -> None:
        if owner not in (0, os.geteuid()):
            raise StartupRefused(
                f"state directory {self.path}: {path} belongs to another user, with the id"
                f" {owner}: choose a directory of your own, or run the service as that user"
            )

    def _restrict(self) -> None:
        """
        Take the access to the files and directories of earlier versions from others than their
        owner: the directory may have existed, and be readable.
        """
        with os.scandir(self.path) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and mode & 0o077:
                    os.chmod(entry.path, stat.S_IMODE(mode) & ~0o077)

    def sign(self) -> None:
        """
        Write this process's id into the lock file. Called again after a fork.
        """
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % (os.getpid(),), 0)

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
