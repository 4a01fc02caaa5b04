"""
CURVE keys, in files that only their owner can read.

The files are ZeroMQ certificates, as C{zmq.auth} writes them: a C{.key} file for
everybody, and a C{.key_secret} file that must stay secret.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq
import zmq.auth

from tbvast.errors import TbvastError
from tbvast.zeromq.sockets import SocketOptions

ZAP_DOMAIN = b"tbvast"

KEY_LENGTH = 40
"""
The length of a key, in characters of Z85.
"""


@dataclass(eq=False, repr=False)
class KeyUnusable(TbvastError):
    """
    A key file cannot be used.

    @ivar path: The file.
    @ivar reason: The reason, with the remedy if there is one.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"key file {self.path}: {self.reason}"


class KeyPair(msgspec.Struct, frozen=True):
    """
    A public key, and the secret key that proves its ownership; both in Z85.
    """

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def make_key_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """
    Write a new key pair.

    @param directory: Created, for its owner only, if it does not exist.
    @param name: The name of both files, without the ending.
    @return: The paths of the public and the secret file.
    @raise KeyUnusable: If a file exists already, or cannot be written.
    """
    public, secret = (directory / f"{name}.{ending}" for ending in ("key", "key_secret"))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (public, secret):
            if path.exists():
                raise KeyUnusable(str(path), "it exists already; choose another name")
        # Nobody else can open the files in a private folder before their modes are set.
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
    Load a key pair.

    @param path: A secret file.
    @raise KeyUnusable: If it holds no secret key, or other users can read it.
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
    Load a public key.

    @param path: A public file, or a secret one.
    @raise KeyUnusable: If it is not a key file.
    """
    return _load(path)[0]


def _load(path: str) -> tuple[bytes, bytes | None]:
    try:
        os.stat(path)  # report a missing file as missing, not as malformed
        public, secret = zmq.auth.load_certificate(path)
        if any(key is not None and len(key) != KEY_LENGTH for key in (public, secret)):
            raise ValueError("a key has another length")
    except (OSError, ValueError, UnicodeDecodeError) as e:
        raise KeyUnusable(
            path, getattr(e, "strerror", None) or "it is not a ZeroMQ key file"
        ) from e
    return public, secret


def server_options(keys: KeyPair) -> SocketOptions:
    """
    @return: Options of a socket that asks the ZAP handler about each client's key.
    """
    return {
        zmq.CURVE_SERVER: 1,
        zmq.CURVE_PUBLICKEY: keys.public,
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.ZAP_DOMAIN: ZAP_DOMAIN,
    }


def load_client_options(key: str, server: str) -> SocketOptions:
    """
    Load the keys of a client's socket.

    @param key: The path of the client's secret file; empty for no keys.
    @param server: The path of the server's public file; empty for no keys.
    @return: As L{client_options}; empty without keys.
    @raise KeyUnusable: If a file cannot be used, or only one is given.
    """
    if not key and not server:
        return {}
    if not key or not server:
        raise KeyUnusable(
            key or server,
            "curve_key and server_key belong together: the client's own key and the bus's",
        )
    return client_options(load_key_pair(key), load_public_key(server))


def client_options(keys: KeyPair, server: bytes) -> SocketOptions:
    """
    @param keys: The client's own keys.
    @param server: The server's public key.
    @return: Options of a socket that proves its key to the server, and accepts no other
        server.
    """
    return {
        zmq.CURVE_PUBLICKEY: keys.public,
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.CURVE_SERVERKEY: server,
    }
