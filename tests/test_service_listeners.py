"""
Tests for L{tbvast.service.listeners}.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.listeners import listening_users
from tbvast.values import HostPort

HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout\n"
)


def row(address: str, port: int, user: int, state: str = "0A") -> str:
    """
    A row of the kernel's table.
    """
    words = bytes.fromhex(address)
    shown = "".join(
        int.from_bytes(words[at : at + 4], sys.byteorder).to_bytes(4, "big").hex().upper()
        for at in range(0, len(words), 4)
    )
    remote = "0" * len(shown)
    return (
        f"   0: {shown}:{port:04X} {remote}:0000 {state} 00000000:00000000 00:00000000 00000000"
        f"  {user}        0 12345 1 0000000000000000 100 0 0 10 0\n"
    )


LOOPBACK = "7F000001"
LOOPBACK_V6 = "0" * 31 + "1"


class ListeningUsersTests(SynchronousTestCase):
    """
    Tests for L{listening_users}.
    """

    def users(self, address: str, tcp: str | None, tcp6: str | None = None) -> set[int] | None:
        proc = Path(self.mktemp())
        (proc / "net").mkdir(parents=True)
        for name, rows in (("tcp", tcp), ("tcp6", tcp6)):
            if rows is not None:
                (proc / "net" / name).write_text(HEAD + rows)
        return listening_users(HostPort.parse(address), proc)

    def test_found(self) -> None:
        """
        Listeners on the address itself count, in both families, and those on all addresses.
        """
        for address, tcp, tcp6, expected in (
            ("127.0.0.1:5158", row(LOOPBACK, 5158, 1000), "", {1000}),
            ("127.0.0.1:5158", row("0" * 8, 5158, 0), "", {0}),
            ("127.0.0.1:5158", "", row("0" * 32, 5158, 7), {7}),
            ("127.0.0.1:5158", "", row("0" * 20 + "FFFF" + LOOPBACK, 5158, 8), {8}),
            ("[::1]:5158", "", row(LOOPBACK_V6, 5158, 9), {9}),
            (
                "127.0.0.1:5158",
                row(LOOPBACK, 5158, 1000) + row("0" * 8, 5158, 1001),
                row("0" * 32, 5158, 1002),
                {1000, 1001, 1002},
            ),
        ):
            self.assertEqual(self.users(address, tcp, tcp6), expected)

    def test_others(self) -> None:
        """
        Other ports, other addresses, and sockets that do not listen do not count.
        """
        rows = (
            row(LOOPBACK, 5159, 1)
            + row("7F000002", 5158, 2)
            + row(LOOPBACK, 5158, 3, "01")
            + row("C0000201", 5158, 4)
        )
        self.assertEqual(self.users("127.0.0.1:5158", rows, row(LOOPBACK_V6, 5158, 5)), set())
        self.assertEqual(self.users("127.0.0.1:5158", "", None), set())

    def test_not_told(self) -> None:
        """
        A system without these tables does not tell.
        """
        self.assertIsNone(self.users("127.0.0.1:5158", None))
