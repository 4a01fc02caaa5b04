"""
The users of the programs that listen on this machine's ports, as Linux tells.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

from tbvast.values import HostPort

_LISTENING = "0A"


def listening_users(address: HostPort, proc: Path = Path("/proc")) -> set[int] | None:
    """
    Find the users whose programs listen on an address of this machine.

    @param address: The address; a listener on all addresses counts, too.
    @param proc: The proc file system.
    @return: Their numbers; empty if nobody listens there, C{None} if this system does not tell.
    """
    wanted = {
        ipaddress.ip_address(found[4][0])
        for found in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    }
    users: set[int] = set()
    told = False
    for name in ("tcp", "tcp6"):
        try:
            rows = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        told = True
        for row in rows:
            _, local, _, state, _, _, _, user, *_ = row.split()
            host, _, port = local.partition(":")
            listener = _address(host)
            if (
                state == _LISTENING
                and int(port, 16) == address.port
                and (listener.is_unspecified or listener in wanted)
            ):
                users.add(int(user))
    return users if told else None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """
    @param text: An address as the kernel shows it: words of 32 bits in the machine's byte order.
    """
    words = bytes.fromhex(text)
    packed = b"".join(
        int.from_bytes(words[at : at + 4], "big").to_bytes(4, sys.byteorder)
        for at in range(0, len(words), 4)
    )
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address
