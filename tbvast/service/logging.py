"""
The log of a service: its destination and its level.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
)
from twisted.python.log import textFromEventDict
from twisted.python.logfile import LogFile

from tbvast.errors import StartupRefused
from tbvast.service.escaping import escape_controls


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
        @param default: The path of a daemon's log file if C{twistd} was not given one.
        @param aside: Whether the foreground logs to standard error, not to standard output.
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

            emit: Any = SyslogObserver(twistd["prefix"]).emit
            legacy: Any = lambda event: emit(_escaped_event(event))  # noqa: E731
            return LegacyLogObserverWrapper(legacy)
        path = twistd.get("logfile")
        foreground = twistd.get("nodaemon")
        out: Any = sys.__stderr__ if aside else sys.stdout
        if foreground and path in (None, "", "-"):
            return FileLogObserver(out, _format)
        if path == "-":
            raise StartupRefused("a daemon cannot log to standard output: add --nodaemon")
        path = path or default
        try:
            out = self._file = LogFile.fromFullPath(path, rotateLength=10 << 20, maxRotatedFiles=10)
        except OSError as e:
            raise StartupRefused(f"log file {path} is not writable: {e.strerror}") from e
        return FileLogObserver(out, _format)

    def rotate(self) -> None:
        if self._file is not None:
            self._file.rotate()


_LINE_BREAKS = "\n\t"
"""
Of a message with several lines, such as a traceback; its lines after the first are indented.
"""


def _format(event: LogEvent) -> str | None:
    """
    Format an event like twisted, with the texts of others in it escaped.
    """
    text = formatEventAsClassicLogText(event)
    return None if text is None else escape_controls(text, _LINE_BREAKS)


def _escaped_event(event: dict[str, Any]) -> dict[str, Any]:
    """
    @param event: An event of twisted's legacy log.
    @return: The same event with its text, escaped, in place of what makes the text.
    """
    text = textFromEventDict(event)
    return event if text is None else {**event, "message": (escape_controls(text, _LINE_BREAKS),)}
