"""
Has the kernel ignore connection attempts from some addresses, before they cost a descriptor.

A ZeroMQ client whose connection is ended connects again after 100 ms, for ever. If the kernel
drops its attempts instead, it repeats them at ever longer intervals.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Collection

MAX_ADDRESSES = 64

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27

# Instructions of the classic Berkeley packet filter.
_LOAD_WORD = 0x20
_LOAD_BYTE = 0x30
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_SET = 0x45
_AND = 0x54
_RETURN = 0x06
_NETWORK_HEADER = 0xFFF00000  # what is loaded from there on belongs to the IP header
_TCP_FLAGS = 13
_SYN = 2
_IPV4_SOURCE = 12
_IPV6_SOURCE = 8
_WHOLE_PACKET = 0xFFFFFFFF


def ignore_addresses(listener: int, addresses: Collection[str]) -> None:
    """
    Have the kernel drop attempts to connect to a listener. Connections are not affected.

    @param listener: The descriptor of a listening TCP socket.
    @param addresses: The IPv4 addresses, and IPv6 networks of 64 bits, whose attempts it drops;
        only the first L{MAX_ADDRESSES} count.
    @raise OSError: If the kernel has no such filters.
    """
    # Given family and type, Python does not query them. It must not close the descriptor.
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, listener)
    try:
        if not addresses:
            borrowed.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            return
        program = filter_program(addresses)
        kept = ctypes.create_string_buffer(program)
        header = struct.pack("HL", len(program) // 8, ctypes.addressof(kept))
        borrowed.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
    finally:
        borrowed.detach()


def filter_program(addresses: Collection[str]) -> bytes:
    """
    @param addresses: As for L{ignore_addresses}.
    @return: The program of a packet filter that drops their attempts. It drops no other packet:
        a half-open connection would take the place of another one for a minute.
    """
    accept = _instruction(_RETURN, _WHOLE_PACKET)
    program = _instruction(_LOAD_BYTE, _TCP_FLAGS)
    program += _instruction(_JUMP_IF_SET, _SYN, skipped_if_true=1) + accept
    for address in sorted(addresses)[:MAX_ADDRESSES]:
        network = ipaddress.ip_network(address)
        source, form = (_IPV4_SOURCE, "!I") if network.version == 4 else (_IPV6_SOURCE, "!2I")
        drop = _instruction(_RETURN, 0)
        for index, word in reversed(list(enumerate(struct.unpack_from(form, network[0].packed)))):
            load = _instruction(_LOAD_WORD, _NETWORK_HEADER + source + 4 * index)
            drop = load + _if_equal(word, drop)
        version = _instruction(_LOAD_BYTE, _NETWORK_HEADER) + _instruction(_AND, 0xF0)
        program += version + _if_equal(network.version << 4, drop)
    return program + accept


def _if_equal(value: int, then: bytes) -> bytes:
    """
    @return: Instructions that are executed only if the loaded value is this one.
    """
    return _instruction(_JUMP_IF_EQUAL, value, skipped_if_false=len(then) // 8) + then


def _instruction(
    code: int, operand: int, *, skipped_if_true: int = 0, skipped_if_false: int = 0
) -> bytes:
    return struct.pack("HBBI", code, skipped_if_true, skipped_if_false, operand)
