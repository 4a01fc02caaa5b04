"""
What a process does that a L{tbvast.storage.worker_client.Worker} asks, and what goes to and fro.

A request names a method of one object, and has its arguments; the types of these and of
the result are those that the method is annotated with.
"""

from __future__ import annotations

import functools
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import GenericAlias
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

import msgspec

from tbvast.errors import FileLost
from tbvast.service.interpreter import tune_interpreter

PART, DONE, REFUSED, BROKEN, LOST = b".", b"+", b"-", b"!", b"x"
"""
What a message of an answer begins with: a part of the result follows, the result, or why
there is none. After L{LOST}, there are no more answers: the process has lost its file.
"""

HEAD = 4
"""
The bytes of a message's length, which goes before it, the highest first.
"""

LONG = 1 << 14
"""
The bytes beyond which it takes long to answer a message, and others follow.
"""

_FOR_WHOEVER_ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A terminal, and systemd, send them to all processes of a service.

encode = msgspec.msgpack.Encoder().encode

_decode_request = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode


class Unencodable(Exception):
    """
    An argument cannot be given to another process: a number that is too large, say.
    """


def encode_request(method: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    """
    @param method: Of the class of the object that is asked.
    @param arguments: All of them, by position.
    @raise Unencodable: If one of them cannot be encoded.
    """
    try:
        return encode((method.__name__, arguments))
    except Exception as e:
        raise Unencodable(f"{type(e).__name__}: {e}") from e


class Result:
    """
    What a method returns, from the messages of its answer.

    @ivar parts: Whether it is an iterator: each item has a message of its own, so that
        not all of a long result has to be read at once.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        _, type, self.parts = _signature(method)
        self._decode = _decoder(type)
        self._found: list[Any] = []

    def add(self, part: bytes) -> None:
        self._found.append(self._decode(part))

    def end(self, last: bytes) -> Any:
        """
        @return: The result; a list of the items if it is an iterator.
        """
        return self._found if self.parts else self._decode(last)


@functools.cache
def _signature(method: Callable[..., Any]) -> tuple[Any, Any, bool]:
    """
    @return: The type of the arguments, that of the result or of each part of it, and
        whether it has parts.
    """
    hints = get_type_hints(method)
    returned = hints.pop("return")
    parts = get_origin(returned) is Iterator
    arguments = GenericAlias(tuple, tuple(hints.values()))
    return arguments, get_args(returned)[0] if parts else returned, parts


@functools.cache
def _decoder(type: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(type).decode


def answers(target: object, request: bytes) -> Iterator[bytes]:
    """
    Do what is asked of an object.

    @return: The messages of the answer.
    @raise Exception: Whatever the method raises.
    """
    name, arguments = _decode_request(request)
    method = getattr(type(target), name)
    types, _, parts = _signature(method)
    result = method(target, *_decoder(types)(arguments))
    if parts:
        for part in result:
            yield PART + encode(part)
        yield DONE
    else:
        yield DONE + encode(result)


def serve(
    opening: AbstractContextManager[tuple[object, Any]], refusals: tuple[type[Exception], ...]
) -> None:
    """
    Be the process: answer requests, until whoever asks is gone, or L{FileLost} is raised.

    @param opening: Around everything. Gives what will be asked, and what is said of it. If
        that has a C{guard}, a context manager, each of its methods is called inside.
    @param refusals: What it and the methods raise if they cannot do something.
    """
    for number in _FOR_WHOEVER_ASKS:
        signal.signal(number, signal.SIG_IGN)
    with (
        ExitStack() as closing,
        socket.socket(fileno=0) as connection,
        connection.makefile("rb") as stream,
    ):
        try:
            target, said = closing.enter_context(opening)
        except refusals as e:
            _write(connection, REFUSED + str(e).encode())
            return
        tune_interpreter()
        try:
            _write(connection, DONE + encode(said))
            for request in _ahead(stream):
                for message in _answered(target, request, refusals):
                    _write(connection, message)
                    if message[:1] == LOST:
                        return
        except ConnectionError:
            pass  # as when there are no more requests


def _answered(
    target: object, request: bytes, refusals: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    try:
        with getattr(target, "guard", None) or nullcontext():
            held: bytes | None = None
            # The last message only when the guard has let it out.
            for message in answers(target, request):
                if held is not None:
                    yield held
                held = message
        if held is not None:
            yield held
    except FileLost as e:
        yield LOST + str(e).encode()
    except refusals as e:
        yield REFUSED + str(e).encode()
    except Exception:
        yield BROKEN + traceback.format_exc().encode()


def _ahead(stream: BinaryIO) -> Iterator[bytes]:
    """
    Read messages; the next one while a long one is being answered.
    """
    with ThreadPoolExecutor(1) as other:
        message = read_message(stream)
        while message:
            following = other.submit(read_message, stream) if len(message) > LONG else None
            yield message
            # No other thread for a short one: it would be another step on its way.
            message = following.result() if following else read_message(stream)


def read_message(stream: BinaryIO) -> bytes:
    """
    @return: A message; nothing if there is none any more.
    """
    length = int.from_bytes(stream.read(HEAD), "big")
    message = stream.read(length)
    return message if len(message) == length else b""


def _write(connection: socket.socket, message: bytes) -> None:
    connection.sendall(len(message).to_bytes(HEAD, "big") + message)
