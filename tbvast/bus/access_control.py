"""
Access control: which clients may connect to a bus, and their permissions there.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec
import zmq.utils.z85
from twisted.logger import Logger

from tbvast.bus.journal.values import EVERYBODY, Publisher
from tbvast.errors import StartupRefused, shown
from tbvast.protocol.topics import Stream
from tbvast.zeromq.curve import KEY_LENGTH


class Permission(enum.StrEnum):
    """
    A permission of a client; the value is its name in the file of clients.
    """

    SUBSCRIBE_INTEL = "subscribe-intel"
    SUBSCRIBE_SIGHTINGS = "subscribe-sightings"
    PUBLISH_INTEL = "publish-intel"
    PUBLISH_SIGHTINGS = "publish-sightings"
    MANAGE_INTEL = "manage-intel"


EVERYTHING = frozenset(Permission)

TO_SUBSCRIBE = {
    Stream.INTEL: Permission.SUBSCRIBE_INTEL,
    Stream.SIGHTING: Permission.SUBSCRIBE_SIGHTINGS,
}
TO_PUBLISH = {
    Stream.INTEL: Permission.PUBLISH_INTEL,
    Stream.SIGHTING: Permission.PUBLISH_SIGHTINGS,
}
"""
The permissions to subscribe, and to publish, to each stream.
"""

NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
"""
The form of a client's name.
"""


class Client(msgspec.Struct, frozen=True):
    """
    A client that may connect.

    @ivar key: The public key, in Z85.
    @ivar name: Its name, which no other client has. It owns what it publishes under this
        name.
    @ivar may: Its permissions.
    """

    key: str
    name: str
    may: frozenset[Permission]


def read_clients(path: Path) -> dict[str, Client]:
    """
    Read the file of clients: one a line, C{KEY NAME [PERMISSIONS]}. Permissions are
    separated by commas; a client without a list has all of them. Empty lines and lines
    that begin with C{#} are ignored.

    @return: The clients, by key.
    @raise StartupRefused: If the file cannot be read; the text names the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise StartupRefused(f"the file of clients {path} cannot be read: {e}") from e
    clients: dict[str, Client] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            client = _read_client(line.split())
            if client.key in clients or client.name in names:
                raise ValueError(f"{client.name}: that key or name stands there twice")
        except ValueError as e:
            raise StartupRefused(f"{path}, line {number}: {e}") from e
        clients[client.key] = client
        names.add(client.name)
    return clients


def _read_client(words: list[str]) -> Client:
    if not 2 <= len(words) <= 3:
        raise ValueError("KEY NAME [PERMISSION,…] was expected")
    key, name, *rest = words
    try:
        if len(key) != KEY_LENGTH:
            raise ValueError(len(key))
        zmq.utils.z85.decode(key.encode("ascii"))
    except (ValueError, KeyError, struct.error) as e:
        raise ValueError(f"{shown(key)} is not a public key of {KEY_LENGTH} characters") from e
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{shown(name)} is not a name of letters, digits and _.@-")
    if not rest:
        return Client(key, name, EVERYTHING)
    try:
        return Client(key, name, frozenset(map(Permission, rest[0].split(","))))
    except ValueError as e:
        raise ValueError(f"{shown(rest[0])} is not a list of {', '.join(Permission)}") from e


_NOBODY = Client("", "", frozenset())


class AccessControl:
    """
    Decides which clients may connect, and what each may do.

    A user is a client's key; the empty string if there are no keys.
    """

    _log = Logger()

    def __init__(self, path: Path | None) -> None:
        """
        @param path: The file of clients; C{None} allows everybody everything.
        @raise StartupRefused: If it cannot be used.
        """
        self._path = path
        self._clients = {} if path is None else read_clients(path)
        self._publishers: dict[str, Publisher] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def reload(self) -> frozenset[str]:
        """
        Read the file again. If it cannot be used, nothing changes.

        @return: The keys of the clients that were removed or have lost permissions.
        """
        if self._path is None:
            return frozenset()
        try:
            clients = read_clients(self._path)
        except StartupRefused as e:
            text = "Cannot reload the clients, which stay as they were: {reason}"
            self._log.error(text, reason=str(e))
            return frozenset()
        before, self._clients = self._clients, clients
        self._publishers = {}
        lost = frozenset(
            key for key, client in before.items() if not client.may <= clients.get(key, _NOBODY).may
        )
        text = "{count} clients may connect; {lost} have lost permissions."
        self._log.info(text, count=len(clients), lost=len(lost))
        return lost

    def may_connect(self, key: str) -> bool:
        """
        Whether a client may connect.
        """
        return self._path is None or key in self._clients

    def may(self, user: str, permission: Permission) -> bool:
        """
        Whether a user has a permission.
        """
        return self._path is None or permission in self._clients.get(user, _NOBODY).may

    def may_subscribe(self, user: str, streams: Iterable[Stream]) -> bool:
        """
        Whether a user may subscribe to all of these streams.
        """
        return self.may_connect(user) and all(
            self.may(user, TO_SUBSCRIBE[each]) for each in streams
        )

    def key(self, user: str) -> str:
        """
        The key that a user has shown; empty if there are no keys. Then an address is no proof.
        """
        return "" if self._path is None else user

    def name(self, user: str) -> str:
        """
        The name of a user; empty if it has none.
        """
        return self._clients.get(user, _NOBODY).name

    def publisher(self, user: str) -> Publisher:
        """
        A user as an owner of indicators.
        """
        if self._path is None:
            return EVERYBODY
        found = self._publishers.get(user)
        if found is None:
            client = self._clients.get(user, _NOBODY)
            manages = Permission.MANAGE_INTEL in client.may
            found = self._publishers[user] = Publisher(client.name, manages)
        return found
