"""
Tests for L{tbvast.zeromq.curve} and L{tbvast.zeromq.zap}.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
import zmq.utils.z85
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as real_reactor
from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.curve import (
    ZAP_DOMAIN,
    KeyPair,
    KeyUnusable,
    client_options,
    load_client_options,
    load_key_pair,
    load_public_key,
    make_key_pair,
)
from tbvast.zeromq.sockets import (
    Factory,
)
from tbvast.zeromq.zap import ZapHandler

reactor: Any = real_reactor


def new_keys() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


class KeyFileTests(SynchronousTestCase):
    """
    Keys in files.
    """

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.public, self.secret = make_key_pair(self.directory, "bridge")

    def refusal(self, load: Callable[[str], Any], path: Path) -> str:
        """
        @return: The error of loading an unusable file: one line that names the file.
        """
        error = self.assertRaises(KeyUnusable, load, str(path))
        self.assertIn(str(path), str(error))
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_round_trip(self) -> None:
        """
        A new key pair can be loaded, and its keys belong together.
        """
        keys = load_key_pair(str(self.secret))
        self.assertEqual(zmq.curve_public(keys.secret), keys.public)
        self.assertEqual(load_public_key(str(self.public)), keys.public)
        self.assertEqual(load_public_key(str(self.secret)), keys.public)

    def test_modes(self) -> None:
        """
        Only the owner can read the secret file, or open the folder.
        """
        self.assertEqual(stat.S_IMODE(self.secret.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(self.public.stat().st_mode), 0o644)
        self.assertCountEqual(self.directory.iterdir(), [self.public, self.secret])

    def test_not_secret(self) -> None:
        """
        The public file holds no secret.
        """
        secret = load_key_pair(str(self.secret)).secret
        self.assertNotIn(secret, self.public.read_bytes())

    def test_exists(self) -> None:
        """
        Existing keys are not overwritten.
        """
        before = self.secret.read_bytes()
        error = self.assertRaises(KeyUnusable, make_key_pair, self.directory, "bridge")
        self.assertIn("exists already", str(error))
        self.assertEqual(self.secret.read_bytes(), before)

    def test_readable_by_others(self) -> None:
        """
        A secret file that others may read is refused, with the remedy.
        """
        for mode in (0o640, 0o604, 0o620, 0o660):
            self.secret.chmod(mode)
            said = self.refusal(load_key_pair, self.secret)
            self.assertIn(f"mode {mode:o}", said)
            self.assertIn("chmod 600", said)

    def test_stricter(self) -> None:
        """
        A read-only secret file can be used.
        """
        self.secret.chmod(0o400)
        load_key_pair(str(self.secret))

    def test_public_for_secret(self) -> None:
        """
        A public file is refused as a secret one.
        """
        self.public.chmod(0o600)
        self.assertIn("key_secret", self.refusal(load_key_pair, self.public))

    def test_missing(self) -> None:
        """
        The error names a missing file.
        """
        for load in (load_key_pair, load_public_key):
            self.refusal(load, self.directory / "nobody.key_secret")

    def test_other_file(self) -> None:
        """
        A file that holds no keys is refused.
        """
        for content in (
            b"",
            b"\xff\xfe\x00",
            b"metadata\ncurve\n",
            b'curve\n    public-key = "short"\n',
            self.secret.read_bytes().replace(b'secret-key = "', b'secret-key = "x'),
        ):
            self.secret.write_bytes(content)
            self.assertIn("not a ZeroMQ key file", self.refusal(load_key_pair, self.secret))

    def test_shown(self) -> None:
        """
        The secret key does not appear in the representation of a key pair.
        """
        keys = load_key_pair(str(self.secret))
        self.assertNotIn(keys.secret.decode(), repr(keys))

    def test_client_options(self) -> None:
        """
        The client's key and the bus's belong together; without both there are no options.
        """
        self.assertEqual(load_client_options("", ""), {})
        keys = load_key_pair(str(self.secret))
        self.assertEqual(
            load_client_options(str(self.secret), str(self.public)),
            client_options(keys, keys.public),
        )
        for key, server in ((str(self.secret), ""), ("", str(self.public))):
            error = self.assertRaises(KeyUnusable, load_client_options, key, server)
            self.assertIn("belong together", str(error))


class AnswerTests(SynchronousTestCase):
    """
    Replies of a L{ZapHandler}.
    """

    key = bytes(range(32))

    def setUp(self) -> None:
        self.asked: list[str] = []
        self.known = True
        factory = Factory(reactor, linger=0)
        self.addCleanup(factory.shutdown)
        self.handler = ZapHandler(factory, self.lets_in)

    def lets_in(self, key: str) -> bool:
        self.asked.append(key)
        return self.known

    def request(self, **changes: bytes) -> list[bytes]:
        fields = {
            "version": b"1.0",
            "id": b"7",
            "domain": ZAP_DOMAIN,
            "address": b"127.0.0.1",
            "identity": b"",
            "mechanism": b"CURVE",
            "key": self.key,
            **changes,
        }
        return list(fields.values())

    def test_known(self) -> None:
        """
        The owner of a known key is admitted, and the key becomes its user id.
        """
        answer = self.handler.answer(self.request())
        user = zmq.utils.z85.encode(self.key)
        self.assertEqual(answer, [b"1.0", b"7", b"200", b"OK", user, b""])
        self.assertEqual(self.asked, [user.decode()])

    def test_unknown(self) -> None:
        """
        The owner of an unknown key is rejected, without a user id.
        """
        self.known = False
        answer = self.handler.answer(self.request())
        self.assertEqual((answer[:3], answer[4]), ([b"1.0", b"7", b"400"], b""))

    def test_not_by_key(self) -> None:
        """
        Clients without a key, or for another domain, are rejected.
        """
        for changes in (
            {"mechanism": b"NULL"},
            {"mechanism": b"PLAIN"},
            {"domain": b"other"},
            {"key": b"short"},
            {"key": b""},
        ):
            self.assertEqual(self.handler.answer(self.request(**changes))[2], b"400")
        self.assertEqual(self.asked, [])

    def test_other_version(self) -> None:
        """
        Another version of ZAP is rejected.
        """
        self.assertEqual(self.handler.answer(self.request(version=b"2.0"))[2], b"500")

    @given(st.lists(st.binary(max_size=40), max_size=10))
    def test_malformed(self, request: list[bytes]) -> None:
        """
        Every request gets a negative reply of six frames.
        """
        answer = self.handler.answer(request)
        self.assertEqual(len(answer), 6)
        self.assertIn(answer[2], (b"400", b"500"))
