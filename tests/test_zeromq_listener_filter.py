"""
Tests for the programs of L{tbvast.zeromq.listener_filter}.
"""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tbvast.zeromq.listener_filter import MAX_ADDRESSES, filter_program
from tbvast.zeromq.tcp_peer import network_of

SYN, ACK = 0x02, 0x10

HOSTS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


def passes(program: bytes, source: str, flags: int = SYN) -> bool:
    """
    Run a program as the kernel does.

    @param source: The address that a packet comes from.
    @param flags: The flags of its TCP header.
    @return: Whether the kernel lets it through.
    """
    address = ipaddress.ip_address(source)
    before = bytes(11 if address.version == 4 else 7)
    network = bytes([address.version << 4]) + before + address.packed + bytes(40)
    transport = bytes(13) + bytes([flags]) + bytes(20)
    instructions = list(struct.iter_unpack("HBBI", program))
    at = loaded = 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        header, offset = (
            (network, operand - 0xFFF00000) if operand >= 0xFFF00000 else (transport, operand)
        )
        at += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("!I", header, offset)
            case 0x30:
                loaded = header[offset]
            case 0x54:
                loaded &= operand
            case 0x15:
                at += if_true if loaded == operand else if_false
            case 0x45:
                at += if_true if loaded & operand else if_false
            case 0x06:
                return operand != 0


class FilterProgramTests(SynchronousTestCase):
    """
    Tests for L{filter_program}.
    """

    def test_addresses(self) -> None:
        """
        Attempts from the addresses and networks are dropped, and nothing else.
        """
        program = filter_program({"192.0.2.1", "2001:db8::/64", "192.0.2.3"})
        for source, expected in [
            ("192.0.2.1", False),
            ("192.0.2.2", True),
            ("192.0.2.3", False),
            ("2001:db8::1", False),
            ("2001:db8::ffff:0:0:1", False),
            ("2001:db8:0:1::1", True),
            ("::1", True),
        ]:
            with self.subTest(source):
                self.assertEqual(passes(program, source), expected)
                self.assertTrue(passes(program, source, ACK))

    def test_many(self) -> None:
        """
        The kernel takes programs of at most 4,096 instructions.
        """
        program = filter_program({f"2001:db8:0:{number:x}::/64" for number in range(1000)})
        self.assertLess(len(program) // 8, 10 * MAX_ADDRESSES)

    @given(st.sets(HOSTS, max_size=MAX_ADDRESSES), HOSTS)
    def test_any(self, held: set[str], other: str) -> None:
        """
        The connections of an address are dropped if, and only if, they count with a held one.
        """
        networks = {network_of(each) for each in held}
        program = filter_program(networks)
        for source in (*held, other):
            # A filter reads mapped addresses as the IPv4 packets that they are.
            address = ipaddress.ip_address(source)
            if address.version == 6 and address.ipv4_mapped:
                continue
            self.assertEqual(passes(program, source), network_of(source) not in networks)


class NetworkTests(SynchronousTestCase):
    """
    Tests for L{network_of}.
    """

    def test_networks(self) -> None:
        """
        IPv4 addresses stand for themselves, in either form, IPv6 addresses for their network.
        """
        for host, expected in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8::1:2:3:4", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::/64"),
        ]:
            with self.subTest(host):
                self.assertEqual(network_of(host), expected)
