"""
Watches a SQLite file that is in use: it may be deleted, replaced, cut or damaged while it is
open, and SQLite itself would go on writing to what nobody finds again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tbvast.errors import FileLost, TbvastError

_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)
_DAMAGE_WHILE_READ = frozenset(
    {
        sqlite3.SQLITE_IOERR_READ,
        sqlite3.SQLITE_IOERR_SHORT_READ,
        sqlite3.SQLITE_IOERR_CORRUPTFS,
    }
)
# Other errors of the disk come and go: a full one has room again.

_COMPANIONS = ("-wal", "-shm")
"""
The files that SQLite keeps beside an open one.
"""


def damage_of(error: BaseException | None) -> sqlite3.Error | None:
    """
    Find out whether a file is damaged.

    @param error: What an operation raised; what it was raised from counts, too.
    @return: The error that says so; C{None} if nothing does.
    """
    while error is not None:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:
                # Not of SQLite, but of the module: a text that is none.
                if isinstance(error, sqlite3.OperationalError):
                    return error
            elif code & 0xFF in _DAMAGE or code in _DAMAGE_WHILE_READ:
                return error
        error = error.__cause__
    return None


def beside(path: Path, word: str, now: float) -> Path:
    """
    The path of another file in the same directory, which is not there yet.

    @param word: What it is, e.g. C{rescued}.
    @param now: The date in its name; seconds since the epoch.
    """
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    name = Path(f"{path}-{word}-{date}")
    count = 1
    while name.exists():
        count += 1
        name = Path(f"{path}-{word}-{date}-{count}")
    return name


def move_aside(path: Path, word: str, now: float) -> Path:
    """
    Give a file that nobody has open another name, with what SQLite keeps beside it.

    @return: Its new path.
    @raise OSError: If it cannot be moved.
    """
    aside = beside(path, word, now)
    # The write-ahead log first: alone, it would be applied to the next file of this name.
    for companion in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{companion}", f"{aside}{companion}")
    os.rename(path, aside)
    sync_directory(path)
    return aside


def sync_directory(path: Path) -> None:
    """
    Make the names of a directory durable.

    @param path: One of its files.
    """
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class FileGuard:
    """
    Guards one open file. What uses the file is called inside, as of a context manager:
    before and after it, the file has to be the one that was opened.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        name: str,
        replacement: Callable[[], str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param connection: The only one that writes to the file, which it has used already.
        @param name: What the file is called in messages, e.g. C{the journal}.
        @param replacement: Called if what was committed cannot be written again: makes
            another file, and says what it has done.
        @param now: The date.
        """
        self._replacement = replacement
        self._connection = connection
        self._path = path
        self._name = name
        self._now = now
        self._lost: str | None = None
        self._companions = [f"{path}{each}" for each in _COMPANIONS]
        self._files = {
            each: identity
            for each in (str(path), *self._companions)
            if (identity := _identity(each)) is not None
        }
        self._size = os.stat(path).st_size

    def check(self) -> None:
        """
        @raise FileLost: If the file is not there any more, or is another one, or shorter.
            Then everything that was committed has been written to a file again, as far as
            that was possible; the text says where.
        """
        if self._lost is None and (found := self._look()) is not None:
            self._give_up(found)
        if self._lost is not None:
            raise FileLost(self._lost)

    def _look(self) -> str | None:
        """
        @return: What has happened to the file; C{None} for nothing.
        """
        for path, identity in self._files.items():
            found = _identity(path)
            if found != identity:
                return f"{path} was {'removed' if found is None else 'replaced'}"
        size = os.stat(self._path).st_size
        if size < self._size:
            return f"{self._path} was cut from {self._size} to {size} bytes"
        self._size = size
        return None

    def _give_up(self, what: str) -> None:
        """
        @param what: What has happened to the file.
        """
        try:
            self._end(what, self._rescue())
        except (sqlite3.Error, OSError) as e:
            self._end(what, f"what was committed could not be written again ({e})")
            self._replace()

    def _end(self, what: str, then: str) -> None:
        self._lost = f"{self._name} is lost: {what} while it was in use; {then}"

    def _replace(self) -> None:
        if self._replacement is None:
            return
        try:
            self._lost = f"{self._lost}; {self._replacement()}"
        except (TbvastError, OSError) as e:
            self._lost = f"{self._lost}; it cannot be made anew ({e})"

    def _rescue(self) -> str:
        """
        Write everything that was committed to a file again: the connection still has it.

        @return: Where it is.
        """
        if self._connection.in_transaction:
            self._connection.rollback()
        now = self._now()
        copy = beside(self._path, "rescued", now)
        try:
            self._connection.execute("VACUUM INTO ?", (str(copy),))
        except sqlite3.Error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
            raise
        with copy.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(copy, 0o600)
        here = _identity(str(self._path))
        if here not in (None, self._files[str(self._path)]):
            sync_directory(self._path)
            return f"all that was committed is in {copy}: to use it, move it to {self._path}"
        said = "all that was committed has been written to it again"
        if here is not None:  # damaged, perhaps, so that somebody may want to look at it
            said += f", and what was there is {move_aside(self._path, 'damaged', now)}"
        # What is left of the log belongs to the file of before: it would be applied to this one.
        for companion in self._companions:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(companion)
        os.link(copy, self._path)
        os.unlink(copy)
        sync_directory(self._path)
        return said

    def __enter__(self) -> None:
        self.check()

    def give_up(self, what: str) -> FileLost:
        """
        Make sure that nobody uses the file any more, nor what is in it.

        @param what: What is wrong with it, e.g. C{is damaged}.
        @return: An error to raise: this one is what every later L{check} raises.
        """
        if self._lost is None:
            self._end(f"{self._path} {what}", "it cannot be used any more")
            self._replace()
        return FileLost(self._lost)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        @raise FileLost: Instead of an error that says that the file is damaged, and as
            L{check} does.
        """
        damage = damage_of(error)
        if damage is not None and self._lost is None:
            self._give_up(f"{self._path} turned out to be damaged ({damage})")
        if self._lost is None:
            with contextlib.suppress(FileNotFoundError):
                self._size = os.stat(self._path).st_size  # it may be shorter: it was vacuumed
        if self._lost is not None or error is None:
            self.check()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
