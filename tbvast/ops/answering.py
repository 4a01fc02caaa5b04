"""
What a process does that a L{tbvast.ops.worker.Worker} asks.
"""

from __future__ import annotations

import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO

from tbvast.errors import TbvastError

DONE, REFUSED, BROKEN = b"+", b"-", b"!"
"""
What an answer begins with: the outcome follows, or why there is none.
"""

_LENGTH = struct.Struct("!I")


def serve(
    open: Callable[[], tuple[bytes, Callable[[bytes], bytes]]], refusal: type[TbvastError]
) -> None:
    """
    Be the process: answer requests, until whoever asks is gone.

    @param open: Called at first. Returns what L{Worker.start} does, and what answers
        each request.
    @param refusal: What either may raise.
    """
    # These are for whoever asks, and sent to the whole group: this one ends when it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as connection, connection.makefile("rb") as stream:
        try:
            first, answer = open()
        except refusal as e:
            _write(connection, REFUSED + str(e).encode())
            return
        try:
            _write(connection, DONE + first)
            for request in _ahead(stream):
                _write(connection, _answered(answer, request, refusal))
        except ConnectionError:
            pass  # as when there are no more requests


def _ahead(stream: BinaryIO) -> Iterator[bytes]:
    """
    Read messages while others are being answered.
    """
    messages: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        message = b" "
        while message:
            try:
                message = read_message(stream)
            except ConnectionError:
                message = b""
            messages.put(message)

    Thread(target=read, daemon=True).start()
    return iter(messages.get, b"")


def _answered(
    answer: Callable[[bytes], bytes], request: bytes, refusal: type[TbvastError]
) -> bytes:
    try:
        return DONE + answer(request)
    except refusal as e:
        return REFUSED + str(e).encode()
    except Exception:
        return BROKEN + traceback.format_exc().encode()


def read_message(stream: BinaryIO) -> bytes:
    """
    @return: A message; nothing if there is none any more.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return b""
    (length,) = _LENGTH.unpack(head)
    message = stream.read(length)
    return message if len(message) == length else b""


def _write(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)) + message)
