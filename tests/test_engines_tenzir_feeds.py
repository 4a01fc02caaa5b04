"""
Tests for L{tbvast.engines.tenzir.feeds}.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir import feeds, pipelines
from tbvast.engines.tenzir.feeds import Unreachable, socket_directory


class SocketDirectoryTests(SynchronousTestCase):
    """
    Tests for L{socket_directory}.
    """

    def setUp(self) -> None:
        self.short = Path(tempfile.mkdtemp(dir="/tmp"))
        self.addCleanup(self.short.rmdir)
        self.long = Path(self.mktemp()).resolve() / ("x" * 100)
        self.long.mkdir(parents=True)

    def test_preferred(self) -> None:
        """
        A short path is taken, and stays.
        """
        with socket_directory(self.short) as place:
            self.assertEqual(place, self.short.resolve())
        self.assertTrue(self.short.is_dir())

    def test_long(self) -> None:
        """
        Instead of a long path there is a private directory with a short one, also where the
        usual place for temporary files has a long path; it is removed at the end.
        """
        for temporary in (self.short, self.long):
            self.patch(tempfile, "tempdir", str(temporary))
            with socket_directory(self.long) as place:
                self.assertTrue(pipelines.is_socket_path(f"{place}/m"), place)
                self.assertEqual(place.stat().st_mode & 0o777, 0o700)
            self.assertFalse(place.exists())
            self.assertEqual(list(temporary.iterdir()), [])

    def test_none(self) -> None:
        """
        Where all paths are long, or nothing may be made, there is no place for sockets.
        """
        self.patch(tempfile, "tempdir", str(self.long))
        self.patch(feeds, "SHORT_DIRECTORIES", (str(self.long), "/proc/nothing"))
        self.assertRaises(Unreachable, socket_directory(self.long).__enter__)
        self.assertEqual(list(self.long.iterdir()), [])
