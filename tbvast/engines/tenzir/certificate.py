"""
The certificate that protects the endpoint of an embedded node.

The node and its clients prove with the same key that they belong to each other: each trusts
no other certificate. Whoever can read the file is a client.
"""

from __future__ import annotations

import datetime
import os
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALIDITY = datetime.timedelta(days=3650)
"""
The time for which a certificate is made.
"""

RENEWAL = datetime.timedelta(days=1825)
"""
The time before its end at which a start of the bridge renews it: a bridge may run for years.
"""

_CLOCK_TOLERANCE = datetime.timedelta(days=1)
_PEM = serialization.Encoding.PEM


def provide_certificate(path: Path, now: datetime.datetime) -> None:
    """
    Make a certificate and its key, unless the file already holds one that is valid for long
    enough.

    @param path: The file, in the PEM format; its directory exists. It gets the mode 600.
    @param now: The time, in UTC.
    @raise OSError: If the file cannot be read or written.
    """
    if not _is_usable(path, now):
        _replace(path, _made(now))


def _is_usable(path: Path, now: datetime.datetime) -> bool:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return False
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, None)
    except ValueError:
        return False  # damaged
    return (
        certificate.public_key() == key.public_key()
        and certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEWAL
        and path.stat().st_mode & 0o077 == 0
    )


def _made(now: datetime.datetime) -> bytes:
    """
    @return: A self-signed certificate, and its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tbvast embedded node")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    return certificate.public_bytes(_PEM) + key.private_bytes(
        _PEM, serialization.PrivateFormat.PKCS8, plain
    )


def _replace(path: Path, data: bytes) -> None:
    """
    Write a file that only its owner can ever read, as a whole or not at all.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
