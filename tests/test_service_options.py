"""
Tests for L{tbvast.service.options}.
"""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tbvast.service.options import ServiceOptions
from tbvast.settings.schema import BridgeSettings, PluginSettings
from tests.doubles_service import parse_as_twistd


class PluginOptions(ServiceOptions):
    service = "tbvast-plugin"
    settings_type = PluginSettings


class BridgeOptions(ServiceOptions):
    service = "tbvast-bridge"
    settings_type = BridgeSettings


class ServiceOptionsTests(SynchronousTestCase):
    """
    Tests for L{ServiceOptions}.
    """

    def parse(self, *arguments: str) -> PluginSettings:
        """
        @return: The settings that a plugin has with these arguments.
        """
        options = PluginOptions()
        options.parseOptions(list(arguments))
        settings = options.settings
        assert isinstance(settings, PluginSettings)
        return settings

    def refuse(self, options: ServiceOptions, *arguments: str) -> str:
        """
        @return: The line that the process ends with.
        """
        e = self.assertRaises(SystemExit, options.parseOptions, list(arguments))
        self.assertNotIn("\n", e.code)
        return str(e.code)

    def test_fixed(self) -> None:
        """
        People script against these options: they stay.
        """
        self.assertEqual(
            [row[0] for row in PluginOptions.optParameters],
            ["config", "host", "manage", "pub", "sub", "state-dir", "loglevel"],
        )
        self.assertEqual(
            [row[0] for row in BridgeOptions.optParameters],
            [
                "config",
                "threatbus",
                "snapshot",
                "vast",
                "vast-listen",
                "vast-binary",
                "engine",
                "state-dir",
                "live-match",
                "retro-match",
                "retro-match-max-events",
                "retro-match-days",
                "retro-match-timeout",
                "transform-context",
                "sink",
                "loglevel",
            ],
        )

    def test_defaults(self) -> None:
        """
        Without arguments, the defaults.
        """
        self.assertEqual(self.parse(), PluginSettings())

    def test_file_and_options(self) -> None:
        """
        An option overrides the file; otherwise the default applies.
        """
        path = self.mktemp()
        Path(path).write_text("plugin: {manage: 7, pub: 8}\nbridge: {engine: vast}\n")
        self.assertEqual(self.parse("--config", path, "--pub=9"), PluginSettings(manage=7, pub=9))
        options = BridgeOptions()
        options.parseOptions(["--config", path, "--live-match", "no"])
        self.assertEqual(options.settings, BridgeSettings(engine="vast", live_match=False))

    def test_refused(self) -> None:
        """
        An invalid option ends the process with one line that begins with the service's name.
        """
        path = self.mktemp()
        Path(path).write_text("bridge: {snapshot: soon}")
        for arguments, line in [
            (["--manage", "x"], "--manage: 'x' is not a whole number from 1 to 65535"),
            (["--nonsense"], "option --nonsense not recognized"),
            (["--manage"], "option --manage requires argument"),
            (["junk"], "unexpected argument: 'junk'"),
            (
                ["--config", path],
                "bridge.snapshot: 'soon' is not a whole number of days from 0 to 36500",
            ),
            (
                ["--config", "/dev/null/x"],
                "--config: '/dev/null/x' is not a file that can be read: Not a directory",
            ),
        ]:
            with self.subTest(arguments):
                self.assertEqual(self.refuse(PluginOptions(), *arguments), f"tbvast-plugin: {line}")
        self.assertEqual(
            self.refuse(BridgeOptions(), "--retro-match", "maybe"),
            "tbvast-bridge: --retro-match: 'maybe' is not yes or no",
        )

    def test_help(self) -> None:
        """
        The help has each option with its value and default.
        """
        text = " ".join(str(BridgeOptions()).split())
        for part in [
            "--live-match= Whether new events are matched as they arrive. (yes|no, default: yes)",
            "--snapshot= Days of past indicators to request from the bus at a first start; 0: none."
            " (DAYS, default: 0)",
            "--retro-match-timeout= Time limit of one search, in seconds. (SECONDS, default: 300)",
            "(CMD|STDOUT, default: empty)",
        ]:
            self.assertIn(part, text)

    def test_pid_file(self) -> None:
        """
        C{twistd}'s default pid file, one for all services, is not used; one that
        was asked for is, and so is none.
        """
        for arguments, pid_file, left in [
            ([], "", True),
            (["--pidfile", "/x/y.pid"], "/x/y.pid", False),
            (["--pidfile="], "", False),
        ]:
            with self.subTest(arguments):
                options = parse_as_twistd(PluginOptions, *arguments, "tbvast-plugin")
                self.assertEqual(options.twistd["pidfile"], pid_file)
                self.assertEqual(options.pid_file_open, left)
