"""
The command C{tbvast engine}.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tbvast.cli.terminal import Screen
from tbvast.engines.binaries import find_client
from tbvast.engines.tenzir.configuration import CLIENT_SETTINGS
from tbvast.errors import SettingsInvalid
from tbvast.service.state_directory import default_directory
from tbvast.settings.loader import load
from tbvast.settings.schema import BridgeSettings


async def engine(
    reactor: Any, screen: Screen, arguments: Sequence[str], config: str, state_dir: str
) -> bool:
    """
    Become the engine's own command, as a client of a bridge's node.

    @param arguments: The arguments of the engine's command.
    @param config: The bridge's configuration file; empty: none.
    @param state_dir: The bridge's state directory; empty: the configured or default one.
    @raise SettingsInvalid: If no bridge has been started with that directory.
    @raise EngineMissing: If the engine's command does not exist.
    """
    settings = load(config).bridge if config else BridgeSettings()
    state = Path(state_dir or settings.state_dir or default_directory("tbvast-bridge", os.environ))
    client = state / CLIENT_SETTINGS
    if not os.access(client, os.R_OK):
        expected = f"the state directory of a bridge that has run: {client} cannot be read"
        raise SettingsInvalid("--state-dir", str(state), expected)
    program = find_client(settings.vast_binary)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and children inherit that
    # The bridge itself needs none of the plugins that the engine brings along.
    os.execv(program, [program, f"--config={client}", "--plugins=bundled", *arguments])
