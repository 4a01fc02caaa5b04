"""
The log of a service: its destination and its level.
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


class ServiceLog:
    """
    The log of a service that C{twistd} runs, according to the options of C{twistd}.

    @ivar observer: The observer of all log events.
    """

    def __init__(
        self, level: str, twistd: Mapping[str, Any], default: str, aside: bool = False
    ) -> None:
        """
        @param level: The name of the lowest level that is logged.
        @param twistd: The options of C{twistd}.
        @param default: The path of a daemon's log file, unless C{twistd} was given
            another one.
        @param aside: Whether a service in the foreground logs to standard error,
            because standard output has another use.
        @raise StartupRefused: If the log file cannot be written.
        """
        self._file: LogFile | None = None
        self.observer: ILogObserver = FilteringLogObserver(
            self._unfiltered(twistd, default, aside),
            [LogLevelFilterPredicate(LogLevel.levelWithName(level))],
        )

    def _unfiltered(self, twistd: Mapping[str, Any], default: str, aside: bool) -> ILogObserver:
        if twistd.get("syslog"):
            from twisted.python.syslog import SyslogObserver  # connects to syslog

            legacy: Any = SyslogObserver(twistd["prefix"]).emit
            return LegacyLogObserverWrapper(legacy)
        path = twistd.get("logfile")
        foreground = twistd.get("nodaemon")
        if foreground and path in (None, "", "-"):
            return textFileLogObserver(cast(IO[Any], sys.__stderr__) if aside else sys.stdout)
        if path == "-":
            raise StartupRefused("a daemon cannot log to standard output: add --nodaemon")
        try:
            self._file = LogFile.fromFullPath(
                path or default, rotateLength=10 * 2**20, maxRotatedFiles=10
            )
        except OSError as e:
            raise StartupRefused(f"log file {path or default} is not writable: {e.strerror}") from e
        return textFileLogObserver(cast(IO[Any], self._file))

    def rotate(self) -> None:
        if self._file is not None:
            self._file.rotate()
