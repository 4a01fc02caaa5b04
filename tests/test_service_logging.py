"""
Tests for L{tbvast.service.logging}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from twisted.logger import ILogObserver, Logger
from twisted.python.log import textFromEventDict
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tbvast.errors import StartupRefused
from tbvast.service.logging import ServiceLog


class ServiceLogTests(SynchronousTestCase):
    """
    Tests for L{ServiceLog}.
    """

    def setUp(self) -> None:
        self.default = self.mktemp()

    def open(self, level: str, **twistd: Any) -> tuple[ServiceLog, Logger]:
        """
        A log, and something that logs to it.
        """
        log = ServiceLog(level, twistd, self.default)
        verifyObject(ILogObserver, log.observer)
        return log, Logger(observer=log.observer)

    def test_level(self) -> None:
        """
        A daemon logs to the default file, from the level on that was asked for.
        """
        _, logger = self.open("warn")
        logger.info("not this")
        logger.warn("but {what}", what="this")
        text = Path(self.default).read_text()
        self.assertIn("#warn] but this\n", text)
        self.assertNotIn("not this", text)

    def test_escaped(self) -> None:
        """
        What others wrote cannot act on a terminal, hide, or look like a line of its own.
        """
        _, logger = self.open("info")
        logger.info("from {who}", who="\x1b[2J\x9b\u202ea\r\u2028b\n2026-11-30 [x#info] forged\x7f")
        try:
            raise ValueError("\x1b]0;title\x07")
        except ValueError:
            logger.failure("Failed")
        text = Path(self.default).read_text()
        self.assertIn("from \\x1b[2J\\x9b\\u202ea\\r\\u2028b\n\t2026-11-30 [x#info] forged", text)
        self.assertIn("ValueError: \\x1b]0;title\\x07\n", text)
        self.assertEqual(set("\x1b\x9b\u202e\r\u2028\x7f\x07") & set(text), set())
        self.assertEqual(len([line for line in text.splitlines() if line[:1] != "\t"]), 2)

    def test_syslog(self) -> None:
        """
        Neither can it in the system's log.
        """
        got: list[str] = []

        class Syslog:
            def __init__(self, prefix: str) -> None:
                pass

            def emit(self, event: dict[str, Any]) -> None:
                got.append(textFromEventDict(event) or "")

        module = ModuleType("twisted.python.syslog")
        module.SyslogObserver = Syslog  # type: ignore[attr-defined]
        self.patch(sys, "modules", {**sys.modules, "twisted.python.syslog": module})
        _, logger = self.open("info", syslog=True, prefix="tbvast")
        logger.info("from {who}", who="\x1b[2J")
        self.assertEqual(got, ["from \\x1b[2J"])

    def test_log_file(self) -> None:
        """
        The file that C{twistd} was given is used instead, in the foreground too.
        """
        for nodaemon in (0, 1):
            path = self.mktemp()
            _, logger = self.open("info", logfile=path, nodaemon=nodaemon)
            logger.info("here")
            self.assertIn("here", Path(path).read_text())
        self.assertFalse(os.path.exists(self.default))

    def test_foreground(self) -> None:
        """
        In the foreground there is no file, and nothing to rotate.
        """
        log, _ = self.open("info", logfile=None, nodaemon=1)
        log.rotate()
        self.assertFalse(os.path.exists(self.default))

    def test_rotate(self) -> None:
        """
        Rotating begins a new file and keeps the old one.
        """
        log, logger = self.open("info")
        logger.info("old")
        log.rotate()
        logger.info("new")
        self.assertIn("old", Path(self.default + ".1").read_text())
        self.assertNotIn("old", Path(self.default).read_text())

    def test_refused(self) -> None:
        """
        A file that cannot be written, and a daemon's standard output, are refused.
        """
        e = self.assertRaises(StartupRefused, self.open, "info", logfile="/dev/null/x")
        self.assertEqual(str(e), "log file /dev/null/x is not writable: Not a directory")
        e = self.assertRaises(StartupRefused, self.open, "info", logfile="-")
        self.assertEqual(str(e), "a daemon cannot log to standard output: add --nodaemon")
