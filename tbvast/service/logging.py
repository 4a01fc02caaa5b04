"""
Where a service's log goes, and how much of it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO, Any, cast

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogLevel,
    LogLevelFilterPredicate,
    textFileLogObserver,
)
from twisted.python.logfile import LogFile

from tbvast.errors import StartupRefused

ROTATE_BYTES = 10 * 2**20
"""
The size, in bytes, at which a log file is put aside and a new one begun.
"""

KEPT_FILES = 10
"""
How many of the log files put aside are kept.
"""


class ServiceLog:
    """
    The log of a service that C{twistd} runs, by the options C{twistd} was given.

    @ivar observer: What to give the log events to.
    """

    def __init__(
        self, level: str, twistd: Mapping[str, Any], default: str, aside: bool = False
    ) -> None:
        """
        @param level: The name of the least level that is logged.
        @param twistd: The options of C{twistd}.
        @param default: The path of the file that a daemon logs to if C{twistd} was
            not told where to log.
        @param aside: Whether a service in the foreground leaves standard output to
            something else, and logs to standard error.
        @raise StartupRefused: If the log file cannot be written.
        """
        self._aside = aside
        self._file: LogFile | None = None
        self.observer: ILogObserver = FilteringLogObserver(
            self._unfiltered(twistd, default),
            [LogLevelFilterPredicate(LogLevel.levelWithName(level))],
        )

    def _unfiltered(self, twistd: Mapping[str, Any], default: str) -> ILogObserver:
        """
        The observer that writes whatever it is given.
        """
        if twistd.get("syslog"):
            from twisted.python.syslog import SyslogObserver  # connects to syslog

            legacy: Any = SyslogObserver(twistd["prefix"]).emit
            return LegacyLogObserverWrapper(legacy)
        path = twistd.get("logfile")
        foreground = twistd.get("nodaemon")
        if foreground and path in (None, "", "-"):
            return textFileLogObserver(cast(IO[Any], sys.__stderr__) if self._aside else sys.stdout)
        if path == "-":
            raise StartupRefused("a daemon cannot log to standard output: add --nodaemon")
        try:
            self._file = LogFile.fromFullPath(
                path or default, rotateLength=ROTATE_BYTES, maxRotatedFiles=KEPT_FILES
            )
        except OSError as e:
            raise StartupRefused(f"log file {path or default} is not writable: {e.strerror}") from e
        return textFileLogObserver(cast(IO[Any], self._file))

    def rotate(self) -> None:
        """
        Put the log file aside and begin a new one; nothing if there is none.
        """
        if self._file is not None:
            self._file.rotate()
