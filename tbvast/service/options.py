"""
The command lines of the two services, generated from the keys of L{tbvast.settings}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from twisted.python import usage

from tbvast import __version__
from tbvast.errors import SettingsInvalid
from tbvast.settings.loader import load, option_name, override
from tbvast.settings.schema import BridgeSettings, PluginSettings
from tbvast.settings.types import keys_of


def _documented(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "empty" if value in (None, "") else str(value)


class ServiceOptions(usage.Options):
    """
    The options of one service, which a subclass names.

    @cvar service: The service's name in C{twistd}.
    @cvar settings_type: Its section of the configuration file.
    @ivar settings: An instance of C{settings_type}, once the options are parsed.
    @ivar pid_file_open: Whether the service chooses the pid file: no option does.
    """

    service: ClassVar[str]
    settings_type: ClassVar[type[PluginSettings | BridgeSettings]]
    settings: Any
    pid_file_open = False
    optParameters: ClassVar[list[list[str | None]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        defaults = cls.settings_type()
        text = "Configuration file, in YAML. (FILE, default: none)"
        cls.optParameters = [["config", None, None, text]]
        for name, key in keys_of(cls.settings_type).items():
            if key.metavar:
                default = _documented(getattr(defaults, name))
                text = f"{key.help} ({key.metavar}, default: {default})"
                cls.optParameters.append([option_name(name).removeprefix("--"), None, None, text])

    @property
    def twistd(self) -> Mapping[str, Any]:
        """
        The options before the service's name on the command line.
        """
        return {} if self.parent is None else self.parent

    def opt_version(self) -> None:
        """
        Print the version and exit.
        """
        print(f"tbvast {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument: {arguments[0]!r}")

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse the options.

        @raise SystemExit: If they cannot be used. Its text is one line with the reason;
            C{twistd} would print its whole help instead.
        """
        try:
            super().parseOptions(options)
        except (usage.UsageError, SettingsInvalid) as e:
            raise SystemExit(f"{self.service}: {e}") from e

    def postOptions(self) -> None:
        """
        Load the configuration file, and apply the options.

        @raise SettingsInvalid: If the file or an option cannot be used.
        """
        parent = self.parent
        if parent is not None and parent["pidfile"] == parent.defaults["pidfile"]:
            # It would be the same for all services that are started in one directory.
            self.pid_file_open = True
            parent["pidfile"] = ""
        chosen: Any = self.settings_type()
        if self["config"] is not None:
            whole = load(self["config"])
            chosen = {type(each): each for each in (whole.plugin, whole.bridge)}[type(chosen)]
        given = {
            name: self[option_name(name).removeprefix("--")]
            for name, key in keys_of(self.settings_type).items()
            if key.metavar and self[option_name(name).removeprefix("--")] is not None
        }
        self.settings = override(chosen, given)
