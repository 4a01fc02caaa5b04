"""
The configuration files of an embedded node, and of the engine's commands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec

CLIENT_SETTINGS = "client/client.yaml"
"""
The configuration file of the engine's commands, in a bridge's state directory.
"""

CERTIFICATE_NAME = "engine.pem"
"""
The file with the certificate and the key of an embedded node, beside L{CLIENT_SETTINGS}.
"""


class Tls(msgspec.Struct, frozen=True):
    """
    The files with which a node and its clients authenticate each other, in the PEM format.

    @ivar certificate: The file of one's own certificate.
    @ivar key: The file of its key.
    @ivar authority: The file of the certificates that the other end's must be issued by.
    """

    certificate: str
    key: str
    authority: str

    @classmethod
    def of_embedded(cls, certificate: Path) -> Tls:
        """
        @param certificate: The file of an embedded node; see
            L{tbvast.engines.tenzir.certificate}.
        @return: The files of such a node and its clients, which are one.
        """
        return cls(*[str(certificate)] * 3)


_COMMON = """\
# Written by tbvast at each start.
caf:
  middleman:
    # Without this, node and commands would listen on another port, on all interfaces.
    enable-automatic-connections: false
{tls}tenzir:
  endpoint: {endpoint}
  # By default, it is made in a directory that everybody can write to. As a command-line option,
  # this would come after that.
  cache-directory: {cache}
"""

_TLS = """\
  openssl:
    certificate: {certificate}
    key: {key}
    cafile: {authority}
"""

_NODE = """\
  # Otherwise the events of a continuous import are matched a second late.
  import-buffer-timeout: 0s
  # Otherwise the node's own log would grow to gigabytes.
  file-verbosity: warning
  # Otherwise the node would store thousands of events a second about the operators of the match.
  retention:
    operator-metrics: 0s
    operator-profile-metrics: 0s
  # All but what tbvast needs, of the plugins of the installed node.
  disable-plugins: {disabled}
"""

_COMMANDS = """\
  # Without the other plugins, which tbvast does not use, a command starts in 5/6 of the time.
  plugins: [context]
"""


def node_settings(
    folder: Path, endpoint: str, tls: Tls | None = None, disabled: Iterable[str] = ()
) -> str:
    """
    @param folder: The parent of the node's cache directory.
    @param endpoint: The address that it listens on, C{HOST:PORT}.
    @param tls: The files for its endpoint; C{None} for an endpoint that everybody can use.
    @param disabled: The plugins that it must not use.
    @return: The text of the configuration file for a node that tbvast starts.
    """
    return _common(folder, endpoint, tls) + _NODE.format(disabled=json.dumps(list(disabled)))


def command_settings(folder: Path, endpoint: str, tls: Tls | None = None) -> str:
    """
    @param folder: The parent of the commands' cache directory.
    @param endpoint: The node's address, C{HOST:PORT}.
    @param tls: The files for the node's endpoint; C{None} if it asks for none.
    @return: The text of the configuration file for the engine's commands.
    """
    return _common(folder, endpoint, tls) + _COMMANDS


def _common(folder: Path, endpoint: str, tls: Tls | None) -> str:
    section = ""
    if tls is not None:
        files = msgspec.structs.asdict(tls).items()
        section = _TLS.format_map({name: json.dumps(path) for name, path in files})
    return _COMMON.format(
        tls=section,
        endpoint=json.dumps(endpoint),
        cache=json.dumps(str(folder / "cache")),
    )
