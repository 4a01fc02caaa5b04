"""
The process that writes to the journal, and what it can be asked.

    python -m tbvast.plugin.writer PATH IDENTITY
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tbvast.errors import JournalFailed
from tbvast.ops.answering import serve
from tbvast.ops.database import WAIT
from tbvast.ops.process import settle
from tbvast.plugin.store import JournalStore, Outcome, Verdict, translated
from tbvast.wire.frames import Item
from tbvast.wire.manage import Position


class _Request(msgspec.Struct, array_like=True, tag=True):
    """
    Base of what can be asked; the fields are the arguments of L{JournalStore}'s method.
    """


class Append(_Request):
    """
    @ivar failures: How many failures to append are known to whoever asks: while it does
        not know of the last one, nothing more is appended.
    """

    items: list[Item]
    now: float
    failures: int


class Expire(_Request):
    now: float
    limit: int


class Forget(_Request):
    since: float
    size: int
    limit: int


class Find(_Request):
    ids: list[str]


class SaveSubscriptions(_Request):
    changes: dict[str, bytes | None]


class SetPosition(_Request):
    reader: str
    position: Position


Request = Append | Expire | Forget | Find | SaveSubscriptions | SetPosition


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """
    What the process says first.

    @ivar identity: The journal's.
    @ivar head: The highest number so far.
    """

    identity: str
    head: int


class Forgotten(msgspec.Struct, frozen=True, array_like=True):
    """
    @ivar count: How many entries were let go of.
    @ivar floor: Up to which number there may be none.
    """

    count: int
    floor: int


class Settled(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """
    An L{Outcome}.

    @ivar item: L{None} if it is the one that was given.
    """

    verdict: Verdict
    number: int
    item: Item | None


LOOK_INTERVAL = 0.02
"""
Seconds between two looks whether another process still writes.
"""

encode = msgspec.msgpack.Encoder().encode

_decode = msgspec.msgpack.Decoder(Request).decode


class Writer:
    """
    Answers what is asked of a journal's file.
    """

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self._failed: tuple[int, JournalFailed] | None = None

    def answer(self, request: bytes) -> bytes:
        """
        @param request: A L{Request}.
        @return: What the method of L{JournalStore} returns.
        @raise JournalFailed: If the disk refuses.
        """
        return encode(self._answer(_decode(request)))

    def _answer(self, request: Request) -> object:
        store = self._store
        match request:
            case Append(items, now, failures):
                return self._append(items, now, failures)
            case Expire(now, limit):
                return [_settled(each) for each in store.expire(now, limit)]
            case Forget(since, size, limit):
                return Forgotten(store.forget(since, size, limit), store.floor)
            case Find(ids):
                return store.find(ids)
            case SaveSubscriptions(changes):
                store.save_subscriptions(changes)
            case SetPosition(reader, position):
                store.set_position(reader, position)
        return None

    def _append(self, items: Sequence[Item], now: float, failures: int) -> list[Settled]:
        if self._failed is not None and self._failed[0] == failures:
            raise self._failed[1]
        try:
            outcomes = self._store.append(items, now)
        except JournalFailed as e:
            self._failed = (failures, e)
            raise
        return [_settled(outcome, item) for outcome, item in zip(outcomes, items, strict=True)]


def _settled(outcome: Outcome, given: Item | None = None) -> Settled:
    item = outcome.item
    return Settled(outcome.verdict, outcome.number, None if item is given else item)


def own(path: Path, wait: float = WAIT) -> int:
    """
    Keep every other process from writing to a journal: that of a service that was killed
    may have something left to write.

    @param wait: Seconds that it is given to end.
    @return: The lock: a descriptor of an open file, which holds it until it is closed.
    @raise JournalFailed: If it has not ended by then.
    """
    with translated("lock", path):
        lock = os.open(f"{path}-writer", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as e:
            if time.monotonic() >= until:
                os.close(lock)
                raise JournalFailed(
                    f"cannot open the journal {path}: another process writes to it"
                ) from e
        time.sleep(LOOK_INTERVAL)


def main(path: str, identity: str) -> None:
    """
    Write to a journal, as asked on standard input, which is a socket.
    """
    with contextlib.ExitStack() as closing:

        def open() -> tuple[bytes, Callable[[bytes], bytes]]:
            own(Path(path))
            store = JournalStore(Path(path), identity)
            closing.callback(store.close)
            settle()
            return encode(Opened(store.identity, store.head)), Writer(store).answer

        serve(open, JournalFailed)


if __name__ == "__main__":
    main(*sys.argv[1:])
