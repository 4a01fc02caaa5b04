"""
CURVE keys: in files that only their owner can read.

The files are ZeroMQ certificates, as L{zmq.auth} writes them: a C{.key} file that
may be given away, and a C{.key_secret} file that may not.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from pathlib import Path

import msgspec
import zmq
import zmq.auth

from tbvast.errors import TbvastError
from tbvast.zeromq.sockets import SocketOptions

ZAP_DOMAIN = b"tbvast"
"""
The domain in which a client's key is looked for.
"""

KEY_LENGTH = 40
"""
Characters of a key, in Z85.
"""


class KeyUnusable(TbvastError):
    """
    A key file cannot be used.

    @ivar path: The file.
    @ivar reason: Why, and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"key file {self.path}: {self.reason}"


class KeyPair(msgspec.Struct, frozen=True):
    """
    Who somebody is, and the proof of it; both in Z85.
    """

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def make_key_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """
    Make a key pair.

    @param directory: Made, for its owner only, if it is not there.
    @param name: What the files are called.
    @return: The public file and the secret one.
    @raise KeyUnusable: If one is there already, or cannot be written.
    """
    public, secret = (directory / f"{name}.{ending}" for ending in ("key", "key_secret"))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (public, secret):
            if path.exists():
                raise KeyUnusable(str(path), "it exists already; choose another name")
        # A folder of its own, which nobody else can look into until the modes are set.
        with tempfile.TemporaryDirectory(dir=directory) as private:
            made = [Path(path) for path in zmq.auth.create_certificates(private, name)]
            for path, mode, target in zip(made, (0o644, 0o600), (public, secret), strict=True):
                path.chmod(mode)
                os.link(path, target)
    except OSError as e:
        raise KeyUnusable(str(public), e.strerror or str(e)) from e
    return public, secret


def load_key_pair(path: str) -> KeyPair:
    """
    @param path: A secret file.
    @raise KeyUnusable: If it is none, or somebody else could read it.
    """
    public, secret = _load(path)
    if secret is None:
        raise KeyUnusable(path, "it holds no secret key; name the file ending in .key_secret")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        raise KeyUnusable(
            path, f"its mode {mode:o} lets others read it; run: chmod 600 {shlex.quote(path)}"
        )
    return KeyPair(public, secret)


def load_public_key(path: str) -> bytes:
    """
    @param path: A public file, or a secret one.
    @raise KeyUnusable: If it is none.
    """
    return _load(path)[0]


def _load(path: str) -> tuple[bytes, bytes | None]:
    try:
        os.stat(path)  # what is not there is no malformed one
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError, UnicodeDecodeError) as e:
        raise KeyUnusable(path, getattr(e, "strerror", None) or "it is no ZeroMQ key file") from e
    for key in (public, secret):
        if key is not None and len(key) != KEY_LENGTH:
            raise KeyUnusable(path, "it is no ZeroMQ key file")
    return public, secret


def server_options(keys: KeyPair) -> SocketOptions:
    """
    Options of a socket that lets in only those whose key is known.
    """
    return {
        zmq.CURVE_SERVER: 1,
        zmq.CURVE_PUBLICKEY: keys.public,
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.ZAP_DOMAIN: ZAP_DOMAIN,
    }


def load_client_options(key: str, server: str) -> SocketOptions:
    """
    @param key: The path of a secret file; empty for no keys at all.
    @param server: The path of the server's public file; empty as C{key} is.
    @return: As L{client_options}; none without keys.
    @raise KeyUnusable: If a file cannot be used, or only one is named.
    """
    if not key and not server:
        return {}
    if not key or not server:
        raise KeyUnusable(
            key or server, "curve_key and server_key belong together: one's own and the bus's"
        )
    return client_options(load_key_pair(key), load_public_key(server))


def client_options(keys: KeyPair, server: bytes) -> SocketOptions:
    """
    Options of a socket that shows its key, and trusts only one server.

    @param server: The server's public key.
    """
    return {
        zmq.CURVE_PUBLICKEY: keys.public,
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.CURVE_SERVERKEY: server,
    }
