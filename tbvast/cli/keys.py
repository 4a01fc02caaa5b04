"""
C{tbvast keygen}, and the keys that the other commands show to a bus.
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
    Where the keys for a bus are; two empty paths if it wants none.

    @ivar own: The path of one's own secret file.
    @ivar server: The path of the bus's public file.
    """

    own: str = ""
    server: str = ""

    def load(self) -> SocketOptions:
        """
        @raise SettingsInvalid: If only one of them is named.
        @raise KeyUnusable: If one cannot be used.
        """
        if bool(self.own) != bool(self.server):
            missing = "--server-key" if self.own else "--curve-key"
            raise SettingsInvalid(missing, "", "there: one's own key and the bus's belong together")
        return load_client_options(self.own, self.server)


async def keygen(reactor: Any, screen: Screen, directory: str, name: str) -> bool:
    """
    @return: C{True}.
    @raise SettingsInvalid: If nobody can be called that.
    @raise KeyUnusable: If the files cannot be made.
    """
    if NAME.fullmatch(name) is None:
        raise SettingsInvalid("--name", name, "a name of 1 to 64 letters, digits and _.@-")
    public, secret = make_key_pair(Path(directory), name)
    screen.put("public key", str(public))
    screen.put("secret key", str(secret))
    screen.tell("For the bus's file of clients; what the client may do can be added:")
    screen.tell(f"{load_public_key(str(public)).decode('ascii')} {name}")
    return True
