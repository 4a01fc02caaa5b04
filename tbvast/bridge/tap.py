"""
C{twistd tbvast-bridge}: the bridge as a service of its own.
"""

from __future__ import annotations

from typing import Any

from tbvast.bridge.commands.stdout_sink import StdoutSink
from tbvast.bridge.service import Bridge
from tbvast.service.clock import use_monotonic_time
from tbvast.service.options import ServiceOptions
from tbvast.service.process import ServiceProcess, refusing
from tbvast.settings.schema import BridgeSettings


class Options(ServiceOptions):
    """
    The command line of C{twistd tbvast-bridge}.
    """

    service = "tbvast-bridge"
    settings_type = BridgeSettings


def makeService(options: Options, reactor: Any = None) -> ServiceProcess:
    """
    Make the service of C{twistd tbvast-bridge}.

    @param reactor: The reactor; twistd's if not given.
    @raise SystemExit: If the bridge cannot be started; the reason is on standard error.
    """
    if reactor is None:  # twistd passes none
        from twisted.internet import reactor

        use_monotonic_time(reactor)
    with refusing(options):
        to_stdout = options.settings.sink == StdoutSink.NAME
        process = ServiceProcess(options, reactor, log_aside=to_stdout)
        Bridge(reactor, options.settings, process).setServiceParent(process)
    return process
