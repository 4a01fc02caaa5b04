"""
The command C{tbvast keygen}, and the keys with which the other commands connect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tbvast.bus.access_control import NAME
from tbvast.cli.terminal import Screen
from tbvast.errors import SettingsInvalid
from tbvast.zeromq.curve import load_client_options, load_public_key, make_key_pair
from tbvast.zeromq.sockets import SocketOptions


class KeyFiles(msgspec.Struct, frozen=True):
    """
    The key files for a connection to a bus; both paths are empty if it has no keys.

    @ivar client: The path of the client's secret key.
    @ivar server: The path of the bus's public key.
    """

    client: str = ""
    server: str = ""

    def load(self) -> SocketOptions:
        """
        Load the keys.

        @return: Socket options with the keys.
        @raise SettingsInvalid: If only one path is given.
        @raise KeyUnusable: If a file cannot be read or holds no such key.
        """
        if bool(self.client) != bool(self.server):
            missing = "--server-key" if self.client else "--curve-key"
            raise SettingsInvalid(
                missing, "", "the path of a key: --curve-key and --server-key require each other"
            )
        return load_client_options(self.client, self.server)


async def keygen(reactor: Any, screen: Screen, directory: str, name: str) -> bool:
    """
    Make a key pair, and write the line for the bus's file of clients.

    @param directory: The directory for the files; made if missing.
    @param name: The name of the files and of the client.
    @return: C{True}.
    @raise SettingsInvalid: If a client cannot have the name.
    @raise KeyUnusable: If the files cannot be written or exist already.
    """
    if NAME.fullmatch(name) is None:
        raise SettingsInvalid("--name", name, "a name of 1 to 64 letters, digits and _.@-")
    public, secret = make_key_pair(Path(directory), name)
    screen.write_line("public key", str(public))
    screen.write_line("secret key", str(secret))
    screen.write_line("For the bus's file of clients; permissions can be added:")
    screen.write_line(f"{load_public_key(str(public)).decode('ascii')} {name}")
    return True
