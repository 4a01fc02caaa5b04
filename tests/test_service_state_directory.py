"""
Tests for L{tbvast.service.state_directory}.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.errors import StartupRefused
from tbvast.service.state_directory import StateDirectory, default_directory


class DefaultDirectoryTests(SynchronousTestCase):
    """
    Tests for L{default_directory}.
    """

    def test_order(self) -> None:
        """
        The directory of systemd comes first, then the user's state directory.
        """
        for environ, path in [
            ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "HOME": "/h"}, "/var/lib/a"),
            ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/tbvast/plugin"),
            ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/tbvast/plugin"),
            ({"STATE_DIRECTORY": "", "HOME": "/h"}, "/h/.local/state/tbvast/plugin"),
        ]:
            with self.subTest(environ):
                self.assertEqual(default_directory("tbvast-plugin", environ), path)


class StateDirectoryTests(SynchronousTestCase):
    """
    Tests for L{StateDirectory}.
    """

    def acquired(self, path: str) -> StateDirectory:
        """
        A directory that is locked until the test ends.
        """
        state = StateDirectory(path)
        state.acquire()
        self.addCleanup(state.release)
        return state

    def test_created(self) -> None:
        """
        It is created with its parents, for its owner only.
        """
        path = os.path.join(self.mktemp(), "deep")
        state = self.acquired(path)
        self.assertEqual(state.path, os.path.abspath(path))
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o700)
        self.assertEqual(state.child("x"), os.path.join(state.path, "x"))
        self.assertEqual(os.listdir(path), ["lock"])

    def test_in_use(self) -> None:
        """
        Until the directory is released, another process is refused, with the id of the owner.
        """
        path = self.mktemp()
        first = self.acquired(path)
        second = StateDirectory(path)
        e = self.assertRaises(StartupRefused, second.acquire)
        self.assertEqual(str(e), f"state directory {first.path} is in use by process {os.getpid()}")
        first.release()
        self.acquired(path)

    def test_unsigned(self) -> None:
        """
        A lock without a readable id still tells of another process.
        """
        path = self.mktemp()
        first = self.acquired(path)
        Path(first.child("lock")).write_bytes(b"\xff")
        e = self.assertRaises(StartupRefused, StateDirectory(path).acquire)
        self.assertEqual(str(e), f"state directory {first.path} is in use by another process")

    def test_signed_again(self) -> None:
        """
        The id that a longer one was written over leaves nothing behind.
        """
        state = self.acquired(self.mktemp())
        Path(state.child("lock")).write_text("12345678901234567890")
        state.sign()
        self.assertEqual(Path(state.child("lock")).read_text(), f"{os.getpid()}\n")

    def test_unwritable(self) -> None:
        """
        A directory that cannot be made is refused with the reason.
        """
        above = self.mktemp()
        Path(above).write_text("")
        state = StateDirectory(os.path.join(above, "state"))
        e = self.assertRaises(StartupRefused, state.acquire)
        self.assertEqual(str(e), f"state directory {state.path} is not writable: Not a directory")

    def test_writable_by_others(self) -> None:
        """
        Others can no longer change a directory that they could change.
        """
        path = self.mktemp()
        os.mkdir(path)
        os.chmod(path, 0o777)
        self.acquired(path)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o755)

    def test_link(self) -> None:
        """
        A link in place of the lock is not followed.
        """
        path, other = self.mktemp(), Path(self.mktemp())
        os.mkdir(path)
        other.write_text("precious")
        os.symlink(other.resolve(), os.path.join(path, "lock"))
        state = StateDirectory(path)
        e = self.assertRaises(StartupRefused, state.acquire)
        self.assertIn("is not writable: Too many levels of symbolic links", str(e))
        self.assertEqual(other.read_text(), "precious")

    def test_files_of_before(self) -> None:
        """
        In a directory that others can enter, they lose the access to the files of before; the
        directory stays as the user made it.
        """
        path = self.mktemp()
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)
        for name, mode in (("journal.db", 0o644), ("log", 0o666), ("private", 0o600)):
            with open(os.path.join(path, name), "w"):
                os.chmod(os.path.join(path, name), mode)
        engine = os.path.join(path, "engine")
        os.mkdir(engine)
        os.chmod(engine, 0o755)
        os.symlink("/etc/hostname", os.path.join(path, "link"))
        before = os.stat("/etc/hostname").st_mode
        self.acquired(path)
        for name in ("journal.db", "log", "private", "lock"):
            self.assertEqual(os.stat(os.path.join(path, name)).st_mode & 0o777, 0o600, name)
        self.assertEqual(os.stat(engine).st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o755)
        self.assertEqual(os.stat("/etc/hostname").st_mode, before)
