"""
Tests for L{tbvast.engines.tenzir.certificate}.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from twisted.trial.unittest import SynchronousTestCase

from tbvast.engines.tenzir.certificate import RENEWAL, VALIDITY, provide_certificate

NOW = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)


class ProvideCertificateTests(SynchronousTestCase):
    """
    Tests for L{provide_certificate}.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "engine.pem"

    def provide(self, now: datetime.datetime = NOW) -> bytes:
        provide_certificate(self.path, now)
        self.assertEqual([each.name for each in self.folder.iterdir()], ["engine.pem"])
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        return self.path.read_bytes()

    def test_made(self) -> None:
        """
        The first certificate is valid from before now until long after, with its key, whatever
        the umask is.
        """
        self.addCleanup(os.umask, os.umask(0))
        pem = self.provide()
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.verify_directly_issued_by(certificate)
        key = serialization.load_pem_private_key(pem, None)
        self.assertEqual(certificate.public_key(), key.public_key())
        self.assertLess(certificate.not_valid_before_utc, NOW)
        self.assertEqual(certificate.not_valid_after_utc, NOW + VALIDITY)

    def test_kept(self) -> None:
        """
        A later start keeps it, until it is due.
        """
        pem = self.provide()
        due = NOW + VALIDITY - RENEWAL
        self.assertEqual(self.provide(due - SECOND), pem)
        self.assertNotEqual(self.provide(due), pem)

    def test_unusable(self) -> None:
        """
        A file that is damaged, or of the future, or that others can read, is replaced.
        """
        pem = self.provide()
        for bad in (b"", pem[:100], pem[:-100], pem.replace(b"PRIVATE", b"PUBLIC"), b"\0" * 99):
            self.path.write_bytes(bad)
            self.assertNotIn(self.provide(), (bad, pem))
        self.path.write_bytes(pem)
        self.assertEqual(self.provide(), pem)
        self.path.chmod(0o640)
        self.assertNotEqual(new := self.provide(), pem)
        self.assertNotEqual(self.provide(NOW - datetime.timedelta(days=2)), new)

    def test_no_directory(self) -> None:
        """
        A file that cannot be written is an error of the system.
        """
        self.assertRaises(OSError, provide_certificate, self.folder / "no" / "engine.pem", NOW)
