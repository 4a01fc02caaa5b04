"""
Guards a SQLite file that is in use. Somebody may delete, replace, cut or damage it while it
is open, and SQLite itself would continue to write to a file without a name.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import attrs

from tbvast.errors import FileLost, TbvastError

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DAMAGE_WHILE_READ = (
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
)
# Other disk errors are transient: a full disk has room again.

_COMPANIONS = ("-wal", "-shm")


def damage_of(error: BaseException | None) -> sqlite3.Error | None:
    """
    Find the error that shows damage to a file.

    @param error: The exception of an operation; its causes count, too.
    @return: The error; C{None} if there is no sign of damage.
    """
    while error is not None:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:
                # From the module, not from SQLite: a text that is not valid UTF-8.
                if isinstance(error, sqlite3.OperationalError):
                    return error
            elif code & 0xFF in _DAMAGE or code in _DAMAGE_WHILE_READ:
                return error
        error = error.__cause__
    return None


def beside(path: Path, word: str, now: float) -> Path:
    """
    An unused path for another file in the same directory.

    @param word: The kind of the file, e.g. C{rescued}.
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
    Rename a file that nobody has open, with its companions.

    @return: The new path.
    @raise OSError: If the file cannot be moved.
    """
    aside = beside(path, word, now)
    # The write-ahead log first: left behind, it would be applied to the next file of this name.
    for companion in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{companion}", f"{aside}{companion}")
    os.rename(path, aside)
    sync_directory(path)
    return aside


def sync_directory(path: Path) -> None:
    """
    Make the names in a directory durable.

    @param path: A file of the directory.
    """
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@attrs.define(eq=False, slots=False)
class FileGuard:
    """
    Guards one open file. Every use of the file runs inside this context manager, which checks
    before and after it that the file is still the one that was opened.

    @param connection: The only connection that writes to the file, which it has used.
    @param name: The name of the file in messages, e.g. C{the journal}.
    @param replacement: Called if the committed data cannot be written again. It creates
        another file, and returns a description of its steps.
    @param now: The calendar.
    """

    _connection: sqlite3.Connection
    _path: Path
    _name: str
    _replacement: Callable[[], str] | None = None
    _now: Callable[[], float] = time.time
    _lost: str | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._companions = [f"{self._path}{each}" for each in _COMPANIONS]
        self._files = {
            each: identity
            for each in (str(self._path), *self._companions)
            if (identity := _identity(each)) is not None
        }
        self._size = os.stat(self._path).st_size

    def check(self) -> None:
        """
        @raise FileLost: If the file is missing, another one, or shorter. All committed data is then
            written to a file again, if possible; the text says where.
        """
        if self._lost is None and (found := self._look()) is not None:
            self._give_up(found)
        if self._lost is not None:
            raise FileLost(self._lost)

    def _look(self) -> str | None:
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
        try:
            then = self._rescue()
        except (sqlite3.Error, OSError) as e:
            then = f"what was committed could not be written again ({e})"
            if self._replacement is not None:
                try:
                    then += f"; {self._replacement()}"
                except (TbvastError, OSError) as e:
                    then += f"; it cannot be rebuilt ({e})"
        self._lost = f"{self._name} is lost: {what} while it was in use; {then}"

    def _rescue(self) -> str:
        """
        Write all committed data, which the connection still has, to a file, and say where it is.
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
        if here is not None:  # it may be damaged, and worth a look
            said += f", and the old file is {move_aside(self._path, 'damaged', now)}"
        # The rest of the log belongs to the previous file, but would be applied to this one.
        for companion in self._companions:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(companion)
        os.link(copy, self._path)
        os.unlink(copy)
        sync_directory(self._path)
        return said

    def __enter__(self) -> None:
        self.check()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        @raise FileLost: In place of an error that shows damage, and as L{check} does.
        """
        damage = damage_of(error)
        if damage is not None and self._lost is None:
            self._give_up(f"{self._path} turned out to be damaged ({damage})")
        if self._lost is None:
            with contextlib.suppress(FileNotFoundError):
                self._size = os.stat(self._path).st_size  # shorter, perhaps, after a vacuum
        if self._lost is not None or error is None:
            self.check()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
