"""
The ZAP handler, which ZeroMQ asks whether the owner of a CURVE key may connect.

@see: U{https://rfc.zeromq.org/spec/27/}
"""

from __future__ import annotations

from collections.abc import Callable

import zmq.utils.z85

from tbvast.values import Received
from tbvast.zeromq.curve import ZAP_DOMAIN
from tbvast.zeromq.sockets import Factory, RouterConnection

_ADDRESS = "inproc://zeromq.zap.01"
_VERSION = b"1.0"


class ZapHandler:
    """
    Authenticates clients for all sockets of a context, in the reactor's thread.

    Every message of an admitted client carries its key, in Z85, as C{User-Id}.
    """

    def __init__(self, factory: Factory, lets_in: Callable[[str], bool]) -> None:
        """
        @param factory: The context whose sockets it serves.
        @param lets_in: Tells whether the owner of a public key, in Z85, may connect.
        """
        self._lets_in = lets_in
        self._connection = RouterConnection(factory, self._asked)
        self._connection.bind(_ADDRESS)

    def _asked(self, messages: list[Received]) -> None:
        for message in messages:
            envelope, request = message.frames[:2], message.frames[2:]
            self._connection.send_now([*envelope, *self.answer(request)])

    def answer(self, request: list[bytes]) -> list[bytes]:
        """
        Answer a ZAP request.

        @param request: Version, request id, domain, address, identity, mechanism
            and credentials.
        @return: Version, request id, status code and text, user id and metadata.
        """
        number = request[1] if len(request) > 1 else b""
        if len(request) != 7 or request[0] != _VERSION:
            return [_VERSION, number, b"500", b"not a ZAP request", b"", b""]
        _, _, domain, _, _, mechanism, key = request
        if domain == ZAP_DOMAIN and mechanism == b"CURVE" and len(key) == 32:
            user: bytes = zmq.utils.z85.encode(key)
            if self._lets_in(user.decode("ascii")):
                return [_VERSION, number, b"200", b"OK", user, b""]
        return [_VERSION, number, b"400", b"this key is not let in", b"", b""]
