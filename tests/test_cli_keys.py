"""
Tests for L{tbvast.cli.keys}.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

import zmq
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tbvast.bus.access_control import EVERYTHING, read_clients
from tbvast.cli.keys import KeyFiles, keygen
from tbvast.cli.terminal import Screen
from tbvast.errors import SettingsInvalid
from tbvast.zeromq.curve import KeyUnusable, load_key_pair, load_public_key, make_key_pair


class KeygenTests(SynchronousTestCase):
    """
    Tests for L{keygen}.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.out = io.StringIO()

    def make(self, name: str) -> Deferred[bool]:
        screen = Screen(self.out, io.StringIO())
        made: Any = keygen(MemoryReactorClock(), screen, str(self.folder), name)
        return Deferred.fromCoroutine(made)

    def test_made(self) -> None:
        """
        A service accepts the files, and access control the last line.
        """
        self.assertTrue(self.successResultOf(self.make("feed")))
        public, secret = self.folder / "feed.key", self.folder / "feed.key_secret"
        first, second, _, last = self.out.getvalue().splitlines()
        self.assertEqual(first, f"public key\t{public}")
        self.assertEqual(second, f"secret key\t{secret}")
        self.assertEqual(stat.S_IMODE(secret.stat().st_mode), 0o600)
        keys = load_key_pair(str(secret))
        self.assertEqual(load_public_key(str(public)), keys.public)
        self.assertNotIn(keys.secret.decode(), self.out.getvalue())
        clients = self.folder / "clients"
        clients.write_text(last + "\n")
        client = read_clients(clients)[keys.public.decode()]
        self.assertEqual((client.name, client.may), ("feed", EVERYTHING))

    def test_there_already(self) -> None:
        """
        An existing key is not replaced.
        """
        self.successResultOf(self.make("feed"))
        before = (self.folder / "feed.key_secret").read_bytes()
        error = self.failureResultOf(self.make("feed"), KeyUnusable).value
        self.assertIn("feed.key: it exists already", str(error))
        self.assertEqual((self.folder / "feed.key_secret").read_bytes(), before)

    def test_nowhere(self) -> None:
        self.folder.write_text("")
        error = self.failureResultOf(self.make("feed"), KeyUnusable).value
        self.assertNotIn("\n", str(error))

    def test_name(self) -> None:
        """
        A name that the file of clients cannot hold, or that is a path, is refused, and
        nothing is made.
        """
        for name in ("", "a b", "../feed", "a\n", "x" * 65):
            error = self.failureResultOf(self.make(name), SettingsInvalid).value
            self.assertEqual(error.field, "--name")
        self.assertFalse(self.folder.exists())


class KeyFilesTests(SynchronousTestCase):
    """
    Tests for L{KeyFiles}.
    """

    def test_none(self) -> None:
        self.assertEqual(KeyFiles().load(), {})

    def test_both(self) -> None:
        folder = Path(self.mktemp())
        _, own = make_key_pair(folder, "own")
        server, _ = make_key_pair(folder, "bus")
        options = KeyFiles(str(own), str(server)).load()
        self.assertEqual(options[zmq.CURVE_SERVERKEY], load_public_key(str(server)))
        self.assertEqual(options[zmq.CURVE_SECRETKEY], load_key_pair(str(own)).secret)

    def test_one(self) -> None:
        """
        A single key is refused; the error names the missing option.
        """
        for keys, missing in (
            (KeyFiles("a", ""), "--server-key"),
            (KeyFiles("", "a"), "--curve-key"),
        ):
            self.assertEqual(self.assertRaises(SettingsInvalid, keys.load).field, missing)

    def test_unusable(self) -> None:
        folder = Path(self.mktemp())
        public, secret = make_key_pair(folder, "own")
        for own, words in (
            (public, "it holds no secret key"),
            (folder / "none", os.strerror(errno.ENOENT)),
            (folder, os.strerror(errno.EISDIR)),
        ):
            error = self.assertRaises(KeyUnusable, KeyFiles(str(own), str(public)).load)
            self.assertIn(words, str(error))
        secret.chmod(0o640)
        error = self.assertRaises(KeyUnusable, KeyFiles(str(secret), str(public)).load)
        self.assertIn("chmod 600", str(error))
