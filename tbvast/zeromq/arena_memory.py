"""
The memory that ZeroMQ's own threads have allocated: what they have received and nobody has taken.
"""

from __future__ import annotations

import ctypes
import re

_FREE = re.compile(rb'<total type="(?:fast|rest)" count="\d+" size="(\d+)"')
_TAKEN = re.compile(rb'<system type="current" size="(\d+)"')


def arena_memory() -> int:
    """
    Ask glibc, whose threads allocate from arenas of their own, for all arenas except that of the
    process's first thread. Blocks of more than 128 KiB may be missing.

    @return: The allocated bytes; 0 with another C library.
    """
    library = ctypes.CDLL(None)
    try:
        open_memstream, malloc_info = library.open_memstream, library.malloc_info
    except AttributeError:
        return 0
    open_memstream.restype = ctypes.c_void_p
    text, length = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(open_memstream(ctypes.byref(text), ctypes.byref(length)))
    if not stream:  # there is no memory left
        return 0
    malloc_info(0, stream)
    library.fclose(stream)
    report = ctypes.string_at(text, length.value)
    library.free(text)
    return sum(map(_allocated, report.split(b"</heap>")[1:-1]))


def _allocated(arena: bytes) -> int:
    taken = _TAKEN.search(arena)
    free = sum(map(int, _FREE.findall(arena)))
    return int(taken[1]) - free if taken else 0
