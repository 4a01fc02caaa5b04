"""
The worker's side of the RPC, and its message format.

A request has the name of a method of an object, and its arguments. Their types and that of the
result come from the method's annotations.
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
from typing import Any, BinaryIO, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from tbvast.errors import FileLost
from tbvast.service.interpreter import tune_interpreter

PART, DONE, REFUSED, BROKEN, LOST = b".", b"+", b"-", b"!", b"x"
"""
The first byte of each message of an answer: one item of an iterator, the result, a refusal,
the traceback of a defect, or the loss of the file. L{LOST} is the last message of a worker.
"""

HEAD = 4
"""
The bytes of the big-endian length before each message.
"""

encode = msgspec.msgpack.Encoder().encode

_decode_request = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode


class Unencodable(Exception):
    """
    An argument cannot be encoded, e.g. a number that is too large.
    """


def encode_request(method: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    """
    Encode a call.

    @param method: A function of a class of which the worker serves an object.
    @param arguments: All of its arguments, by position.
    @raise Unencodable: If one of them cannot be encoded.
    """
    try:
        return encode((method.__qualname__, arguments))
    except Exception as e:
        raise Unencodable(f"{type(e).__name__}: {e}") from e


def result_decoder(method: Callable[..., Any]) -> Callable[[bytes], Any]:
    """
    @return: Decodes the result of a method; if that is an iterator, an item of it. Each item has
        its own message, so that a long result is not decoded in one turn, and the last is empty.
    """
    return _decoder(_signature(method)[1])


@functools.cache
def _signature(method: Callable[..., Any]) -> tuple[Any, Any, bool]:
    """
    @return: The type of the arguments; of the result or its items; whether it is an iterator.
    """
    hints = get_type_hints(method)
    returned = hints.pop("return")
    parts = get_origin(returned) is Iterator
    arguments = GenericAlias(tuple, tuple(hints.values()))
    return arguments, get_args(returned)[0] if parts else returned, parts


@functools.cache
def _decoder(type: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(type).decode


class Served(NamedTuple):
    """
    The calls that a worker serves.

    @ivar objects: The objects whose methods are called, each of another class.
    @ivar greeting: The worker's first message.
    @ivar guard: A context manager inside which each method is called.
    """

    objects: Sequence[object]
    greeting: object
    guard: AbstractContextManager[None] = nullcontext()


def answers(objects: Sequence[object], request: bytes) -> Iterator[bytes]:
    """
    Call a method of an object.

    @param objects: The objects, each of another class.
    @param request: The encoded call.
    @return: The messages of the answer.
    @raise Exception: The error of the method.
    """
    qualified, arguments = _decode_request(request)
    class_name, _, name = qualified.partition(".")
    target = next(each for each in objects if type(each).__name__ == class_name)
    method = getattr(type(target), name)
    types, _, parts = _signature(method)
    result = method(target, *_decoder(types)(arguments))
    if parts:
        for part in result:
            yield PART + encode(part)
        yield DONE
    else:
        yield DONE + encode(result)


def serve(opening: AbstractContextManager[Served], refusals: tuple[type[Exception], ...]) -> None:
    """
    Answer requests until the caller closes the socket, or L{FileLost} is raised.

    @param opening: Opens the objects whose methods are called; closed at the end.
    @param refusals: The errors of C{opening} and of the methods that are refusals.
    """
    # A terminal and systemd send these to all processes of a service.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with (
        ExitStack() as closing,
        socket.socket(fileno=0) as connection,
        connection.makefile("rb") as stream,
    ):
        try:
            served = closing.enter_context(opening)
        except refusals as e:
            _write(connection, REFUSED + str(e).encode())
            return
        tune_interpreter()
        try:
            _write(connection, DONE + encode(served.greeting))
            for request in _ahead(stream):
                for message in _answered(served, request, refusals):
                    _write(connection, message)
                    if message[:1] == LOST:
                        return
        except ConnectionError:
            pass  # the caller is gone


def _answered(
    served: Served, request: bytes, refusals: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    try:
        with served.guard:
            held: bytes | None = None
            # The last message is sent only after the guard has checked the file.
            for message in answers(served.objects, request):
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
    Read messages. While a long one is answered, another thread reads the next one.
    """
    with ThreadPoolExecutor(1) as other:
        message = read_message(stream)
        while message:
            # For a short one, another thread would add latency.
            following = other.submit(read_message, stream) if len(message) > 1 << 14 else None
            yield message
            message = following.result() if following else read_message(stream)


def read_message(stream: BinaryIO) -> bytes:
    """
    @return: The next message; empty at the end.
    """
    length = int.from_bytes(stream.read(HEAD), "big")
    message = stream.read(length)
    return message if len(message) == length else b""


def _write(connection: socket.socket, message: bytes) -> None:
    connection.sendall(len(message).to_bytes(HEAD, "big") + message)
